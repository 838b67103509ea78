"""How fast to learn at each step: pure functions of the step, scaled to any length, and a weight average (torch only).

Sources: DLSS-STEM (Ede 2019, arXiv:1910.10467, table 1) and partial STEM (Ede and Beanland 2020,
doi:10.1038/s41598-020-65261-0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rate and beta1 of one Adam optimiser; beta2 stays 0.999."""

    lr: float
    beta1: float = 0.9


@dataclass(frozen=True, slots=True)
class StepRates:
    """What a policy says of one step.

    Parameters
    ----------
    generator : Rates
        Of the network wanted (both stages of one that has two).
    trainer, predictor, discriminator : Rates or None
        Of the inner stage's auxiliary trainer, the noise predictor and each discriminator; None = does not learn.
    norm_frozen : bool
        Batch norm uses its running statistics and keeps them.
    """

    generator: Rates
    trainer: Rates | None = None
    predictor: Rates | None = None
    discriminator: Rates | None = None
    norm_frozen: bool = False

    @property
    def adversarial(self) -> bool:
        """Discriminators take part. Every optimiser starts anew, without moments, at the first such step."""
        return self.discriminator is not None


def two_stage(step: int, total: int, *, lr: float = 3e-4, beta1_decays: bool = True) -> StepRates:
    """Return the rates of the two-stage generator: squared error in the first half, discriminators in the second.

    In quarters of `total`, f = 1, 7/8 .. 1/8 in eight equal levels of a quarter: lr, lr f, lr/3, lr/3 f for generator
    and (first half) noise predictor; twice that for the trainer; lr/3 for the discriminators. beta1 of generator and
    trainer: 0.9, 0.5 + 0.4 f, 0.5, 0.5; predictor 0.9; discriminators 0.5. (DLSS-STEM, table 1, whose printed formula
    for f and last bound are misprints.) Squared error alone: run half of `total`.

    Parameters
    ----------
    step, total : int
        From 0; published total 2,000,000.
    lr : float
        Of the generator to begin with.
    beta1_decays : bool
        As the paper says. The public scripts kept 0.9 in the first half, so the published errors were reached that way.

    Examples
    --------
    >>> two_stage(999_999, 2_000_000).generator
    Rates(lr=3.75e-05, beta1=0.55)
    """
    _check_step(step, total)
    quarter, level = divmod(32 * step // total, 8)  # integers: no level begins a step late by rounding
    f = 1 - level / 8 if quarter % 2 else 1.0
    if quarter >= 2:
        late = Rates(lr / 3 * f, 0.5)
        return StepRates(late, Rates(2 * late.lr, 0.5), discriminator=Rates(lr / 3, 0.5), norm_frozen=True)
    beta1 = 0.5 + 0.4 * f if beta1_decays else 0.9
    return StepRates(Rates(lr * f, beta1), trainer=Rates(2 * lr * f, beta1), predictor=Rates(lr * f))


def one_stage(step: int, total: int, *, lr: float = 1e-3) -> StepRates:
    """Return the rates of the one-stage generator (DLSS-STEM): lr, lr/2 from 1/8 on, lr/4 from 1/4 on.

    From half of `total` on beta1 is 0.5 instead of 0.9, and batch norm frozen. Published: batch 16, total 100,000; the
    public script adds 1e-5 sum(w^2) / 2 over all weights, which is `weight_decay=1e-5` of torch's Adam.

    Examples
    --------
    >>> one_stage(50_000, 100_000).generator
    Rates(lr=0.00025, beta1=0.5)
    """
    _check_step(step, total)
    eighth = 8 * step // total
    halvings = min(eighth, 2)
    late = eighth >= 4
    return StepRates(Rates(lr / 2**halvings, 0.5 if late else 0.9), norm_frozen=late)


def cosine(step: int, total: int, *, lr: float, warm_up: int = 0, last: float = 0.0) -> StepRates:
    """Return rates that rise to `lr` in a straight line and fall to `last` along half a cosine.

    lr (step + 1) / warm_up while step < warm_up, then last + (lr - last) (1 + cos(pi x)) / 2, x from 0 to 1 at `total`
    (arXiv:1608.03983, without restarts).

    Parameters
    ----------
    step, total, warm_up : int
        step from 0; warm_up < total.
    lr, last : float
        Greatest, and that at the end.
    """
    _check_step(step, total)
    if not 0 <= warm_up < total:
        raise ValueError(f"warm_up must be 0 to total - 1 = {total - 1}, got {warm_up}")
    if step < warm_up:
        return StepRates(Rates(lr * (step + 1) / warm_up))
    x = (step - warm_up) / (total - warm_up)
    return StepRates(Rates(last + (lr - last) * 0.5 * (1 + math.cos(math.pi * x))))


def _check_step(step: int, total: int) -> None:
    if not 0 <= step < total:
        raise ValueError(f"step must be 0 to total - 1 = {total - 1}, got {step}: choose a greater total to go on")


def apply(optimizer: torch.optim.Optimizer, lr: float, beta1: float) -> None:
    """Set the learning rate and beta1 of an Adam optimiser in all its groups; its moments stay.

    Raises
    ------
    ValueError
        If it has no betas.
    """
    for group in optimizer.param_groups:
        if "betas" not in group:
            raise ValueError(f"a schedule sets beta1 of Adam or AdamW, got {type(optimizer).__name__}")
        group["lr"] = lr
        group["betas"] = (beta1, group["betas"][1])


class WeightAverage:
    """Exponential moving average of a network's weights, which errs less than the last ones.

    average <- d average + (1 - d) weights with d = min(decay, (1 + n) / (10 + n)) at update n = 1, 2 ..: the start is
    forgotten soon. Buffers of numbers (running means) are averaged alike, whole numbers copied.

    Parameters
    ----------
    model : torch.nn.Module
        Its weights are the first average.
    decay : float
        In the long run, per update.
    """

    def __init__(self, model: torch.nn.Module, *, decay: float = 0.999) -> None:
        self.decay = decay
        self.updates = 0
        self.weights: dict[str, Tensor] = {name: t.detach().clone() for name, t in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Take in the weights as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, now in model.state_dict().items():
            average = self.weights[name]
            if average.is_floating_point():
                average.lerp_(now, 1 - decay)
            else:
                average.copy_(now)

    def copy_to(self, model: torch.nn.Module) -> None:
        """Give `model` the average weights."""
        model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the weights themselves, not a copy."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned.

        Raises
        ------
        ValueError
            If names or shapes are those of another network.
        """
        own, other = ({name: tuple(t.shape) for name, t in w.items()} for w in (self.weights, state["weights"]))
        if own != other:
            differing = sorted(name for name in own.keys() | other.keys() if own.get(name) != other.get(name))
            raise ValueError(
                f"the average is of another network: {len(differing)} weights differ, the first is {differing[0]} "
                f"(here {own.get(differing[0])}, in the state {other.get(differing[0])}); build the network it is of"
            )
        self.updates = state["updates"]
        for name, average in self.weights.items():
            average.copy_(state["weights"][name])
