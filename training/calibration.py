"""Calibration: the factor by which a network's deviations hold what they promise on examples it never saw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lowdose.training.learner import evaluating
from lowdose.training.losses import NORMAL_90

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from lowdose.training.data import TrainingData

SHARE = 0.9
"""Of the pixels, to lie within `NORMAL_90` standard deviations."""
PIXELS = 4096
"""Taken of every example."""


def calibrated_scale(network: nn.Module, data: TrainingData, *, examples: int) -> float:
    """Return the factor that makes the 90 % intervals of a network hold 90 % of the pixels.

    Patterns count alike, whatever their share of the examples: a factor for all of them errs least for each.

    Parameters
    ----------
    network : nn.Module
        Puts out mean and standard deviation.
    data : TrainingData
        Of the validation split.
    examples : int
        How many are looked at, from the first on.
    """
    found: dict[int, list[NDArray[np.float32]]] = {}
    with torch.inference_mode(), evaluating(network):
        for index in range(examples):
            example = data.example(index)
            output = network(torch.from_numpy(example.inputs)[None]).numpy()[0]
            off = np.abs(example.target[0] - output[0]) / (NORMAL_90 * output[1])
            chosen = np.random.default_rng(index).integers(off.size, size=PIXELS)
            found.setdefault(example.pattern, []).append(off.reshape(-1)[chosen])
    return scale_for_share({pattern: np.concatenate(parts) for pattern, parts in found.items()})


def scale_for_share(off: Mapping[int, NDArray[np.float32]], share: float = SHARE) -> float:
    """Return the number that a share of the values of every group does not exceed, on average over the groups.

    Examples
    --------
    >>> import numpy as np
    >>> round(scale_for_share({0: np.linspace(0, 1, 1001, dtype=np.float32)}), 3)
    0.9
    """
    groups = [np.sort(values) for values in off.values()]
    low, high = 0.0, max(float(values[-1]) for values in groups)
    for _ in range(40):
        middle = (low + high) / 2
        within = _mean_share(groups, middle)
        low, high = (middle, high) if within < share else (low, middle)
    return high


def _mean_share(groups: Sequence[NDArray[np.float32]], limit: float) -> float:
    return float(np.mean([np.searchsorted(values, limit, side="right") / len(values) for values in groups]))
