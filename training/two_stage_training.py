"""TwoStageTraining: the two-stage generator with its auxiliary trainer, and what may help it (imports torch).

Sources: DLSS-STEM (Ede 2019, arXiv:1910.10467), partial STEM (Ede and Beanland 2020, doi:10.1038/s41598-020-65261-0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lowdose.reconstruction.models.discriminators import MultiscaleDiscriminator
from lowdose.reconstruction.models.layers import freeze_running_means, initialise_from_example, uniform_example
from lowdose.reconstruction.models.noise_predictor import NoisePredictor, random_crops
from lowdose.reconstruction.models.two_stage import InnerTrainer, TwoStageGenerator, halve
from lowdose.training import schedules
from lowdose.training.adversarial_losses import adversarial_loss, discriminator_loss
from lowdose.training.learner import (
    Batch,
    Workplace,
    autocast,
    joined,
    make_network,
    parts_of,
    placed,
    require_finite,
    step_seed,
)
from lowdose.training.losses import (
    ALRC,
    PIXEL_WEIGHT,
    ExpectedErrors,
    blurred_pixel_loss,
    gaussian_blur,
    huberised,
    p_of_coverage,
    pixel_loss,
)
from lowdose.training.noise_losses import keep_measured, noise_homogenised, noise_predictor_loss
from lowdose.training.replay import Replay
from lowdose.training.settings import RecipeSettings, TwoStageObjective

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lowdose.training.schedules import Rates, StepRates


class TwoStageTraining:
    """Trains inner and outer generator together; see `Learner`.

    The outer generator learns from the main loss alone, the inner one from it and from the auxiliary one, which says
    how well its features show a halved, blurred truth. With `adversarial` the second half of the steps begins with new
    optimisers, frozen running means and discriminators.

    Parameters
    ----------
    settings : RecipeSettings
        With a two-stage objective.
    workplace : Workplace
        Where and with whom.
    """

    network: TwoStageGenerator

    def __init__(self, settings: RecipeSettings, workplace: Workplace) -> None:
        assert isinstance(settings.objective, TwoStageObjective)  # noqa: S101 for the type checker
        self._settings, self._objective, self._workplace = settings, settings.objective, workplace
        self._generator = torch.Generator()
        self._networks = self._make_networks()
        self._optimizers: dict[str, torch.optim.Adam] = {}
        self._adversarial = False
        self._renew_optimizers("inner", "outer", "trainer", "predictor")
        self._alrc = {name: ALRC() for name in ("main", "auxiliary", "adversarial", "error")}
        self._expected = ExpectedErrors()
        replay = self._objective.replay
        self._replay = replay and Replay(
            torch.Generator().manual_seed(step_seed(settings.seed, settings.steps, workplace.ranks.rank)),
            **replay.model_dump(),
        )

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Learn from a batch, some of whose examples are replaced by hard ones seen before, and return its losses."""
        rates = self._rates(step)
        if rates.adversarial and not self._adversarial:
            self._begin_adversarial()
        self._generator.manual_seed(step_seed(self._settings.seed, step, self._workplace.ranks.rank))
        mixed, fresh = self._replay.mix(batch) if self._replay else (batch, None)
        seen = []
        for part in parts_of(mixed, self._settings.accumulate):
            losses = self._losses(part)
            require_finite(losses, step)
            total: Tensor = sum(loss.mean() for loss in losses.values()) / self._settings.accumulate  # type: ignore[assignment]
            total.backward()
            seen.append(losses)
        self._update(rates)
        losses = joined(seen)
        if self._replay and fresh is not None:
            self._replay.store(mixed, losses=losses["main"], fresh=fresh)
        return losses

    def _rates(self, step: int) -> StepRates:
        """Return the learning rates: squared error alone is the first half of the published ladder."""
        total = self._settings.steps * (1 if self._objective.adversarial else 2)
        return schedules.two_stage(step, total, lr=self._objective.lr, beta1_decays=self._objective.beta1_decays)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of the networks that learn; each of these has its gradient from one of them alone.

        But for the inner generator, whose gradient is that of both, `main` and `auxiliary`.
        """
        p = self._p(batch)
        with autocast(self._settings, self._workplace.device):
            completed, features = self.network.forward_with_features(batch["inputs"])
            shown = self._networks["trainer"](features)
        small_truth = gaussian_blur(halve(batch["truth"], self.network.options["half_size"]))
        auxiliary = self._alrc["auxiliary"](pixel_loss(shown, small_truth, p=p))
        if self._adversarial:
            return {"auxiliary": auxiliary, **self._adversarial_losses(completed.float(), batch["truth"], p)}
        if self._objective.homogenise_noise:
            return {"auxiliary": auxiliary, **self._homogenised_losses(completed.float(), batch, p)}
        error = pixel_loss(completed, batch["target"], p=p)
        self._note(batch, error, p)
        main = self._alrc["main"](error)
        return {"auxiliary": auxiliary, "main": huberised(main) if self._objective.huberise else main}

    def _homogenised_losses(self, completed: Tensor, batch: Batch, p: Tensor | float) -> dict[str, Tensor]:
        error = pixel_loss(keep_measured(completed, batch["target"], batch["mask"]), batch["target"], p=p)
        self._note(batch, error, p)
        predicted = self._networks["predictor"](random_crops(batch["truth"], generator=self._generator))
        mean_error = self._alrc["error"].mu1
        self._alrc["error"](error.detach())
        return {
            "main": self._alrc["main"](noise_homogenised(error, predicted, mean_error)),
            "predictor": noise_predictor_loss(predicted, error),
        }

    def _adversarial_losses(self, completed: Tensor, truth: Tensor, p: Tensor | float) -> dict[str, Tensor]:
        assert self._objective.adversarial is not None  # noqa: S101 for the type checker
        discriminator = self._networks["discriminator"]
        real, fake = discriminator(truth, completed.detach(), generator=self._generator)
        discriminator.requires_grad_(False)  # the generator's loss is not theirs
        (judged,) = discriminator(completed, generator=self._generator)
        discriminator.requires_grad_(True)
        return {
            "main": self._alrc["adversarial"](blurred_pixel_loss(completed, truth, p=p)),
            "adversarial": adversarial_loss(judged.unbind(), weight=self._objective.adversarial.weight),
            "discriminator": discriminator_loss(real.unbind(), fake.unbind()),
        }

    def _p(self, batch: Batch) -> Tensor | float:
        """Return the errors expected of examples, relative to others."""
        if self._objective.expected_error == "lattice":
            return p_of_coverage(batch["coverage"])
        if self._objective.expected_error == "tracked":
            return self._expected.p(batch["pattern"], batch["coverage"])
        return 1.0

    def _note(self, batch: Batch, error: Tensor, p: Tensor | float) -> None:
        if self._objective.expected_error == "tracked":
            self._expected.update(batch["pattern"], batch["coverage"], error.detach() * p / PIXEL_WEIGHT)

    def _update(self, rates: StepRates) -> None:
        learning = {name: rate for name in self._optimizers if (rate := _rate_of(name, rates))}
        self._workplace.ranks.average_gradients(*(self._part(name) for name in learning))
        for name, rate in learning.items():
            schedules.apply(self._optimizers[name], rate.lr, rate.beta1)
            self._optimizers[name].step()
            self._optimizers[name].zero_grad()

    def _begin_adversarial(self) -> None:
        """Freeze running means and begin with new optimisers; the noise predictor has done its part."""
        self._adversarial = True
        self._optimizers.clear()
        self._renew_optimizers("inner", "outer", "trainer", "discriminator")
        freeze_running_means(self.network)
        freeze_running_means(self._networks["trainer"])

    def _renew_optimizers(self, *names: str) -> None:
        for name in names:
            if name in ("inner", "outer") or name in self._networks:
                # one for all three discriminators: Adam treats every weight alone
                self._optimizers[name] = torch.optim.Adam(self._part(name).parameters(), fused=True)

    def _part(self, name: str) -> nn.Module:
        """Return what an optimiser trains."""
        if name in ("inner", "outer"):
            part: nn.Module = getattr(self.network, name)
            return part
        return self._networks[name]

    def _make_networks(self) -> nn.ModuleDict:
        """Return the generator, which becomes `network`, and those that help to train it, on the device."""
        settings, objective = self._settings, self._objective
        self.network = make_network(settings.network.name, settings.network.options)  # type: ignore[assignment]
        shared = {key: self.network.options[key] for key in ("variant", "width", "mean_source")}
        networks: dict[str, nn.Module] = {"generator": self.network, "trainer": InnerTrainer(**shared)}
        if objective.initialise == "example":
            self._initialise(networks["trainer"])
        if objective.homogenise_noise:
            networks["predictor"] = NoisePredictor()
        if objective.adversarial:
            resize, width = objective.adversarial.resize, objective.adversarial.width
            networks["discriminator"] = MultiscaleDiscriminator(width=width, resize=resize)
        for name, module in networks.items():
            networks[name] = placed(module, settings, self._workplace.device).train()
        return nn.ModuleDict(networks)

    @torch.no_grad()
    def _initialise(self, trainer: nn.Module) -> None:
        """Give all layers normalised activations for one random picture, 512 × 512 whatever the crops.

        Of one of 96 × 96 the innermost layers have 9 pixels: outputs for other pictures were then 10 times too large.
        """
        example = uniform_example(len(self._settings.data.channels))
        initialise_from_example(self.network, example)
        initialise_from_example(trainer, self.network.forward_with_features(example)[1])

    def state_dict(self) -> dict[str, Any]:
        """Return all that later steps depend on."""
        return {
            "adversarial": self._adversarial,
            "networks": self._networks.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "alrc": {name: alrc.state_dict() for name, alrc in self._alrc.items()},
            "expected": self._expected.state_dict(),
            "replay": self._replay.state_dict() if self._replay else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        if state["adversarial"] and not self._adversarial:
            self._begin_adversarial()
        self._networks.load_state_dict(state["networks"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, alrc in self._alrc.items():
            alrc.load_state_dict(state["alrc"][name])
        self._expected.load_state_dict(state["expected"])
        if self._replay:
            self._replay.load_state_dict(state["replay"])


def _rate_of(name: str, rates: StepRates) -> Rates | None:
    of: dict[str, Rates | None] = {
        "inner": rates.generator,
        "outer": rates.generator,
        "trainer": rates.trainer,
        "predictor": rates.predictor,
        "discriminator": rates.discriminator,
    }
    return of[name]
