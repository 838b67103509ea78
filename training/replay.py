"""Experience replay: hard examples come again (partial STEM, doi:10.1038/s41598-020-65261-0; imports torch only)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SMOOTHING = 0.99


class StoreThreshold:
    """The loss above which an example is stored, steered so that a given share of them is.

    Per loss L, with moving averages r of stored or not, m of L and q of L^2 (factor 0.99), s = sqrt(q - m^2):
    threshold <- 0.99 threshold + 0.01 (m - 5 s) while r < share, else 0.99 threshold + 0.01 (m + 5 s).

    Parameters
    ----------
    share : float
        To store in the long run, 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._rate = share
        self._mean, self._mean_square, self._threshold = 1.5, 4.0, 0.0  # as published

    def exceeded_by(self, loss: float) -> bool:
        """Return whether an example of this loss is to be stored."""
        return loss > self._threshold

    def update(self, loss: float, *, stored: bool) -> None:
        """Take in the loss of a fresh example, and what became of it."""
        self._rate = _smoothed(self._rate, float(stored))
        self._mean = _smoothed(self._mean, loss)
        self._mean_square = _smoothed(self._mean_square, loss**2)
        deviation = math.sqrt(max(self._mean_square - self._mean**2, 0.0))
        aim = self._mean + (-5 if self._rate < self.share else 5) * deviation
        self._threshold = _smoothed(self._threshold, aim)

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {
            "rate": self._rate,
            "mean": self._mean,
            "mean_square": self._mean_square,
            "threshold": self._threshold,
        }

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take up what `state_dict` returned."""
        self._rate, self._mean = state["rate"], state["mean"]
        self._mean_square, self._threshold = state["mean_square"], state["threshold"]


def _smoothed(average: float, value: float) -> float:
    return SMOOTHING * average + (1 - SMOOTHING) * value


class Replay:
    """A few slots of hard examples, one of which takes the place of a fresh example now and then.

    The first examples fill the slots; from then on each example of a batch is replaced by a slot with `probability`,
    and a fresh one that is harder than the threshold overwrites a slot drawn at random. Examples that came from a
    slot are never stored again and steer nothing. A fresh example that gives way is not trained on.

    Parameters
    ----------
    generator : torch.Generator
        On the CPU; alone decides every draw. Its state is part of the checkpoint.
    slots : int
        Published 50.
    probability : float
        Of replay, per example.
    share : float
        Of fresh examples to be stored in the long run.

    Examples
    --------
    >>> replay = Replay(torch.Generator().manual_seed(1), slots=2)
    >>> batch, fresh = replay.mix({"inputs": torch.zeros(4, 1, 8, 8)})
    >>> replay.store(batch, losses=torch.ones(4), fresh=fresh)
    [0, 1, 2, 3]
    """

    def __init__(
        self, generator: torch.Generator, *, slots: int = 50, probability: float = 0.2, share: float = 0.2
    ) -> None:
        if slots < 1 or not 0 <= probability <= 1 or not 0 <= share <= 1:
            raise ValueError(
                "replay needs slots >= 1, and probability and share from 0 to 1; "
                f"got slots {slots}, probability {probability}, share {share}"
            )
        self.slots = slots
        self.probability = probability
        self._generator = generator
        self._threshold = StoreThreshold(share)
        self._examples: dict[str, Tensor] = {}  # each (slots, ...), made with the first batch
        self._filled = 0

    def mix(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the batch with some examples replaced by stored ones.

        Parameters
        ----------
        batch : mapping of (batch, ...) Tensor
            Collated examples; left as they are.

        Returns
        -------
        batch : dict of (batch, ...) Tensor
            As given while the slots are being filled.
        fresh : (batch,) bool Tensor
            On the CPU; False = came from a slot.

        Raises
        ------
        ValueError
            If the stored examples are of other names or shapes, as after a change of the recipe.
        """
        self._check_alike(batch)
        n = len(next(iter(batch.values())))
        fresh = torch.ones(n, dtype=torch.bool)
        if self._filled < self.slots:
            return dict(batch), fresh
        fresh = torch.rand(n, generator=self._generator) >= self.probability
        replayed = torch.nonzero(~fresh)[:, 0]
        slots = torch.randint(self.slots, (len(replayed),), generator=self._generator)
        return {name: _with_rows(t, replayed, self._examples[name], slots) for name, t in batch.items()}, fresh

    def store(self, batch: Mapping[str, Tensor], *, losses: Tensor, fresh: Tensor) -> list[int]:
        """Store the hard ones among the fresh examples of a batch that `mix` returned.

        Parameters
        ----------
        batch : mapping of (batch, ...) Tensor
            All batches of one replay have the same names, shapes and dtypes.
        losses : (batch,) Tensor
            Of the main output, clipped. An example whose loss is not finite is neither stored nor counted.
        fresh : (batch,) bool Tensor
            As `mix` returned it.

        Returns
        -------
        list of int
            Which of the batch were stored.
        """
        numbers = losses.detach().tolist()
        countable = [i for i, is_fresh in enumerate(fresh.tolist()) if is_fresh and math.isfinite(numbers[i])]
        return [i for i in countable if self._store_if_hard(batch, i, numbers[i])]

    def _store_if_hard(self, batch: Mapping[str, Tensor], i: int, loss: float) -> bool:
        filling = self._filled < self.slots
        hard = filling or self._threshold.exceeded_by(loss)
        if hard:
            slot = self._filled if filling else int(torch.randint(self.slots, (), generator=self._generator))
            self._write(slot, batch, i)
            self._filled += filling
        self._threshold.update(loss, stored=hard)
        return hard

    def _check_alike(self, batch: Mapping[str, Tensor]) -> None:
        stored, given = ({k: tuple(t.shape[1:]) for k, t in b.items()} for b in (self._examples, batch))
        if stored and stored != given:
            raise ValueError(f"stored examples are {stored}, the batch has {given}: go on with the data of the start")

    def _write(self, slot: int, batch: Mapping[str, Tensor], i: int) -> None:
        if not self._examples:
            self._examples = {name: t.new_zeros((self.slots, *t.shape[1:])) for name, t in batch.items()}
        for name, stored in self._examples.items():
            stored[slot] = batch[name][i].detach()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the examples themselves (not copies), the threshold, the generator."""
        return {
            "slots": self.slots,
            "filled": self._filled,
            "examples": self._examples,
            "threshold": self._threshold.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned; draws go on where they stopped.

        Raises
        ------
        ValueError
            If it has another number of slots.
        """
        if state["slots"] != self.slots or any(len(t) != self.slots for t in state["examples"].values()):
            raise ValueError(
                f"this replay has {self.slots} slots, its state has {state['slots']}: set replay slots to that"
            )
        self._filled = state["filled"]
        self._examples = {name: t.clone() for name, t in state["examples"].items()}
        self._threshold.load_state_dict(state["threshold"])
        self._generator.set_state(state["generator"])


def _with_rows(fresh: Tensor, rows: Tensor, stored: Tensor, slots: Tensor) -> Tensor:
    if len(rows) == 0:
        return fresh
    return fresh.index_copy(0, rows.to(fresh.device), stored[slots.to(stored.device)].to(fresh.device))
