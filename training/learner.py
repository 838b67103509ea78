"""Learner: what one step of training does to the networks it holds, and what all kinds of it share (imports torch)."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from lowdose.reconstruction.models import MODELS
from lowdose.reconstruction.models.layers import freeze_running_means
from lowdose.reconstruction.models.one_stage import OffsetNorm
from lowdose.training.settings import RecipeError, RecipeSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor

    from lowdose.training.ranks import Ranks

Batch = dict[str, "Tensor"]


class Learner(Protocol):
    """Holds a network and all it takes to train it; `make_learner` returns one."""

    @property
    def network(self) -> nn.Module:
        """The one that is wanted in the end."""
        ...

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Learn from a batch and return the losses, name -> (examples,) Tensor without gradient.

        Raises
        ------
        NonFiniteLossError
            Before any weight has changed.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that later steps depend on, fit for a checkpoint."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        ...


class NonFiniteLossError(RuntimeError):
    """A loss is infinite or not a number: which, at which step, of which examples."""


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where a learner works, and how.

    Parameters
    ----------
    device : torch.device
        Of networks and batches.
    ranks : Ranks
        The processes that train together.
    """

    device: torch.device
    ranks: Ranks


def make_learner(settings: RecipeSettings, workplace: Workplace) -> Learner:
    """Return what a recipe trains, with new weights drawn from torch's global generator.

    Raises
    ------
    RecipeError
        If the network cannot be built.
    """
    from lowdose.training.completion_training import CompletionTraining
    from lowdose.training.two_stage_training import TwoStageTraining

    if settings.objective.kind == "two_stage":
        return TwoStageTraining(settings, workplace)
    return CompletionTraining(settings, workplace)


def make_network(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Return a network by its name in MODELS.

    Raises
    ------
    RecipeError
        If its class does not take the options.
    """
    module, _, cls = MODELS[name].partition(":")
    try:
        network: nn.Module = getattr(import_module(module), cls)(**options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"network {name} cannot be built with {dict(options)}: {error}") from None
    return network


def placed(network: nn.Module, settings: RecipeSettings, device: torch.device) -> nn.Module:
    """Return a network on the device, in the memory layout that the recipe names."""
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    return network.to(device=device, memory_format=layout)  # type: ignore[call-overload,no-any-return]


def autocast(settings: RecipeSettings, device: torch.device) -> torch.autocast:
    """Return the context in which networks run in the precision of the recipe."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16")


def parts_of(batch: Batch, count: int) -> Iterator[Batch]:
    """Yield a batch in `count` parts of equal size."""
    if count == 1:
        yield batch
        return
    pieces = {name: tensor.chunk(count) for name, tensor in batch.items()}
    for i in range(count):
        yield {name: chunks[i] for name, chunks in pieces.items()}


def joined(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the losses of all parts of a batch, without gradient."""
    first, *others = parts
    return {name: torch.cat([losses.detach(), *(o[name].detach() for o in others)]) for name, losses in first.items()}


def require_finite(losses: Mapping[str, Tensor], step: int) -> None:
    """Raise NonFiniteLossError if any loss is infinite or not a number."""
    if bool(torch.stack([loss.detach().sum() for loss in losses.values()]).sum().isfinite()):
        return
    found = [
        f"{name} of example {i + 1} of {len(loss)} is {value}"
        for name, loss in losses.items()
        for i, value in enumerate(loss.tolist())
        if not np.isfinite(value)
    ]
    raise NonFiniteLossError(f"at step {step} the loss {'; '.join(found[:3]) or 'is too large to be summed'}")


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed for the draws of one step: they depend on nothing that happened before it."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def freeze_norms(network: nn.Module) -> None:
    """Let every normalisation keep and use its running statistics, in training, too."""
    freeze_running_means(network)
    for module in network.modules():
        if isinstance(module, OffsetNorm | nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 their common base
            module.eval()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode and afterwards every module of it back."""
    training = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, was in training:
            module.training = was
