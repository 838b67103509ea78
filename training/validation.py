"""Validation: how well a network completes a fixed set of examples that it never trains on (imports torch)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowdose.reconstruction.completion import all_maps
from lowdose.training.learner import autocast, evaluating
from lowdose.training.losses import mse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from lowdose.training.data import TrainingData
    from lowdose.training.learner import Batch
    from lowdose.training.settings import RecipeSettings

NORMAL_50, NORMAL_90 = 0.6744898, 1.6448536
"""Half widths of the central intervals of a normal distribution, in standard deviations."""
PIXELS = 4096
"""Of every example, whose deviations are compared."""
AT_ONCE = 8
LEAST_RANGE = 1e-6
"""A picture of a smaller range is blank and does not count."""


@dataclass(frozen=True, slots=True)
class Score:
    """How well the examples of a pattern, or of all, are completed; every example has the same weight.

    Parameters
    ----------
    pattern : str
        "all" for all of them.
    examples : int
        That counted; blank ones do not.
    rms_01 : float
        RMS error against the target, in units where the unblurred truth of every example reaches from 0 to 1: the
        median over examples, for the few of a nearly blank crop are as large as one likes.
    ratio_to_linear : float
        RMS error of the network / RMS error of linear infill of the measured pixels, both against the target: the mean
        over examples. Below 1 is better than linear.
    interval50, interval90 : float or None
        Share of pixels whose target lies in the central 50 % and 90 % interval of the normal distribution that the
        network puts out; None if it puts out no standard deviation.
    deviation_scale : float or None
        Factor for the standard deviations with which the 90 % intervals would hold 90 % of the pixels, on average over
        the patterns; None if there is no standard deviation, and in scores of early versions.
    """

    pattern: str
    examples: int
    rms_01: float
    ratio_to_linear: float
    interval50: float | None
    interval90: float | None
    deviation_scale: float | None = None

    def row(self) -> dict[str, Any]:
        """Return it as JSON and checkpoints keep it."""
        return asdict(self)


class ValidationSet:
    """Examples 0 to n of the validation data, with their linear infill.

    Parameters
    ----------
    data : TrainingData
        Of the validation split.
    settings : RecipeSettings
        How many, their channels and patterns, and the precision of the network.
    device : torch.device
        Of the network.
    """

    def __init__(self, data: TrainingData, settings: RecipeSettings, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self._names = data.pattern_names
        examples = [data[index] for index in range(settings.validation_examples)]
        self._examples: Batch = {name: torch.stack([e[name] for e in examples]) for name in examples[0]}
        self._linear = self._linear_infill()
        size = self._linear[0].numel()
        self._some_pixels = torch.randint(size, (PIXELS,), generator=torch.Generator().manual_seed(0)).to(device)

    def scores(self, network: nn.Module) -> list[Score]:
        """Return the score of all examples, then those of each pattern that occurs."""
        with torch.inference_mode(), evaluating(network):
            parts = [self._errors(network, slice(i, i + AT_ONCE)) for i in range(0, len(self._linear), AT_ONCE)]
        errors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        pattern = self._examples["pattern"].numpy()
        groups = {"all": np.ones(len(pattern), bool)}
        if len(self._names) > 1:
            groups |= {f"{name} ({i})": pattern == i for i, name in enumerate(self._names)}
        return [
            _score(name, {k: v[group] for k, v in errors.items()}, pattern[group])
            for name, group in groups.items()
            if group.any()
        ]

    def _errors(self, network: nn.Module, some: slice) -> dict[str, NDArray[np.float64]]:
        """Return, for each of some examples, squared errors, the range of its truth, and shares in intervals."""
        batch = {name: tensor[some].to(self._device) for name, tensor in self._examples.items()}
        with autocast(self._settings, self._device):
            output = network(batch["inputs"])
        mean, target = output[:, :1].float(), batch["target"]
        errors = {
            "network": mse(mean, target),
            "linear": mse(self._linear[some].to(self._device), target),
            "range": batch["truth"].amax((1, 2, 3)) - batch["truth"].amin((1, 2, 3)),
        }
        if output.shape[1] == 2:
            off = (target - mean).abs()
            errors["interval50"] = (off <= NORMAL_50 * output[:, 1:]).float().mean((1, 2, 3))
            errors["interval90"] = (off <= NORMAL_90 * output[:, 1:]).float().mean((1, 2, 3))
            errors["off"] = (off / (NORMAL_90 * output[:, 1:])).flatten(1)[:, self._some_pixels]
        return {name: tensor.double().cpu().numpy() for name, tensor in errors.items()}

    def _linear_infill(self) -> Tensor:
        """Return the linear infill of the measured pixels, in the units of the target."""
        data = self._settings.data
        if "linear" in data.channels and data.normalisation in ("mean_std", "min_max"):
            return self._examples["inputs"][:, data.channels.index("linear"), None]
        pairs = zip(self._examples["truth"].numpy(), self._examples["mask"].numpy(), strict=True)
        return torch.from_numpy(np.stack([_filled(truth[0], mask[0]) for truth, mask in pairs]))


def _filled(truth: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    infill = all_maps(mask).infill("linear")
    assert infill is not None  # noqa: S101 for the type checker
    return infill.apply(truth[mask][None])


def _score(name: str, errors: dict[str, NDArray[np.float64]], pattern: NDArray[np.int64]) -> Score:
    counting = (errors["range"] > LEAST_RANGE) & (errors["linear"] > LEAST_RANGE**2)
    if not counting.any():
        return Score(name, 0, 0.0, 0.0, None, None)
    found = {name: values[counting] for name, values in errors.items()}
    rms_01 = float(np.median(np.sqrt(found["network"]) / found["range"]))
    ratio = float(np.sqrt(found["network"] / found["linear"]).mean())
    if "off" not in found:
        return Score(name, int(counting.sum()), rms_01, ratio, None, None)
    interval50, interval90 = (float(found[share].mean()) for share in ("interval50", "interval90"))
    kinds = pattern[counting]
    scale = scale_for_share([found["off"][kinds == kind].ravel() for kind in np.unique(kinds)])
    return Score(name, int(counting.sum()), rms_01, ratio, interval50, interval90, scale)


def scale_for_share(off: Sequence[NDArray[np.float64]], share: float = 0.9) -> float:
    """Return the number that a share of the values of every group does not exceed, on average over the groups.

    Examples
    --------
    >>> import numpy as np
    >>> round(scale_for_share([np.linspace(0, 1, 1001)]), 3)
    0.9
    """
    groups = [np.sort(values) for values in off]
    low, high = 0.0, max(float(values[-1]) for values in groups)
    for _ in range(40):
        middle = (low + high) / 2
        within = np.mean([np.searchsorted(values, middle, side="right") / len(values) for values in groups])
        low, high = (middle, high) if within < share else (low, middle)
    return high
