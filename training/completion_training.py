"""CompletionTraining: one network that completes scans, trained by errors against a target (imports torch)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowdose.training import schedules
from lowdose.training.learner import (
    Batch,
    Workplace,
    autocast,
    freeze_norms,
    joined,
    make_network,
    parts_of,
    placed,
    require_finite,
)
from lowdose.training.losses import ALRC, gaussian_nll, interval_loss, pixel_loss, relative_mse
from lowdose.training.settings import CompletionObjective, CosineRate, RecipeError, RecipeSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


class CompletionTraining:
    """Trains one network on a weighted sum of losses; see `Learner`.

    Parameters
    ----------
    settings : RecipeSettings
        With a completion objective.
    workplace : Workplace
        Where and with whom.
    """

    def __init__(self, settings: RecipeSettings, workplace: Workplace) -> None:
        assert isinstance(settings.objective, CompletionObjective)  # noqa: S101 for the type checker
        self._settings, self._objective, self._workplace = settings, settings.objective, workplace
        self._linear = settings.data.channels.index("linear") if "linear" in settings.data.channels else None
        network = make_network(settings.network.name, settings.network.options)
        _require_channels(network, settings)
        self.network = placed(network, settings, workplace.device).train()
        self._optimizer = OPTIMIZERS[self._objective.optimizer](
            self.network.parameters(), weight_decay=self._objective.weight_decay, fused=True
        )
        self._alrc = ALRC()
        self._frozen = False

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Learn from a batch and return its losses, weighted."""
        rates = self._rates(step)
        schedules.apply(self._optimizer, rates.generator.lr, rates.generator.beta1)
        if rates.norm_frozen and not self._frozen:
            freeze_norms(self.network)
            self._frozen = True
        seen = []
        for part in parts_of(batch, self._settings.accumulate):
            losses = self._losses(part)
            require_finite(losses, step)
            total: Tensor = sum(loss.mean() for loss in losses.values()) / self._settings.accumulate  # type: ignore[assignment]
            total.backward()
            seen.append(losses)
        self._workplace.ranks.average_gradients(self.network)
        if self._objective.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._objective.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return joined(seen)

    def _rates(self, step: int) -> schedules.StepRates:
        rate, steps = self._objective.learning_rate, self._settings.steps
        if isinstance(rate, CosineRate):
            return schedules.cosine(step, steps, lr=rate.lr, warm_up=min(rate.warm_up, steps // 10), last=rate.last)
        return schedules.one_stage(step, steps, lr=rate.lr)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        weights, target = self._objective.loss, batch["target"]
        with autocast(self._settings, self._workplace.device):
            output = self.network(batch["inputs"])
        mean = output[:, :1].float()
        losses: dict[str, Tensor] = {}
        linear = None if self._linear is None else batch["inputs"][:, self._linear, None]
        if weights.relative_mse:
            assert linear is not None  # noqa: S101 the settings saw to it
            losses["relative_mse"] = weights.relative_mse * relative_mse(mean, target, linear)
        if weights.pixel:
            losses["pixel"] = weights.pixel * self._alrc(pixel_loss(mean, target))
        if weights.nll:
            # pixels with a large deviation hardly pull on the mean, which another loss trains better
            of = mean.detach() if losses else mean
            losses["nll"] = weights.nll * gaussian_nll(of, _deviation(output), target)
        if weights.interval:
            assert linear is not None  # noqa: S101 the settings saw to it
            interval = interval_loss(mean.detach(), _deviation(output), target, linear)
            losses["interval"] = weights.interval * interval
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Return all that later steps depend on."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "alrc": self._alrc.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._alrc.load_state_dict(state["alrc"])


def _require_channels(network: nn.Module, settings: RecipeSettings) -> None:
    """Raise RecipeError if a network that says which channels it takes, in which order, would get others."""
    wanted = getattr(network, "channels", settings.data.channels)
    if wanted != settings.data.channels:
        raise RecipeError(
            f"network {settings.network.name} takes the channels {', '.join(wanted)} in this order: "
            f"expected them in data.channels, got {', '.join(settings.data.channels)}"
        )


def _deviation(output: Tensor) -> Tensor:
    if output.shape[1] != 2:
        raise RecipeError(f"nll needs a network of 2 outputs, mean and standard deviation, got {output.shape[1]}")
    return output[:, 1:].float()
