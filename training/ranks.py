"""Ranks: the processes of `torchrun` that train one network together (imports torch)."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from lowdose.training.data import TrainingData


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this one is; alone, all of its methods cost nothing.

    Parameters
    ----------
    rank, count : int
        The first, 0, validates and writes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process validates and writes."""
        return self.rank == 0

    def average_gradients(self, *networks: nn.Module) -> None:
        """Give every process the mean of all processes' gradients and running statistics."""
        if self.count == 1:
            return
        parameters = [parameter for network in networks for parameter in network.parameters()]
        tensors = [p.grad for p in parameters if p.grad is not None]
        tensors += [b for network in networks for b in network.buffers() if b.is_floating_point()]
        for waiting in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            waiting.wait()
        for tensor in tensors:
            tensor.div_(self.count)

    def any(self, flag: bool) -> bool:
        """Return whether any process says so."""
        if self.count == 1:
            return flag
        votes = torch.tensor(float(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(votes)
        return votes.item() > 0

    def share_of(self, data: TrainingData, batch: int) -> TrainingData:
        """Return this process's examples of every batch of all: together they are those of one process alone."""
        return data if self.count == 1 else cast("TrainingData", _Share(data, batch, self))


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the other processes, if `torchrun` started any."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


class _Share(Dataset["dict[str, Tensor]"]):
    """The examples of one process, numbered as its own batches want them."""

    def __init__(self, data: TrainingData, batch: int, ranks: Ranks) -> None:
        self._data, self._batch, self._size = data, batch, batch // ranks.count
        self._offset = ranks.rank * self._size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        step, i = divmod(index, self._size)
        return self._data[step * self._batch + self._offset + i]
