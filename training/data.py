"""TrainingData: example i depends on settings, seed and i alone, so that training resumes exactly (imports torch)."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lowdose.reconstruction.infill import NEED_LINEAR
from lowdose.training.data_settings import ImageSource, PhysicalNoise
from lowdose.training.data_store import DataError, Store
from lowdose.training.examples import Example, scanned
from lowdose.training.masks import MaskPool
from lowdose.training.sources import ImageFolder, Specimens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from lowdose.training.data_settings import DataSettings, ProceduralSource
    from lowdose.training.sources import Split

BLAS_THREADS = "OPENBLAS_NUM_THREADS"
EXAMPLES, SPECIMENS, MASKS = range(3)
"""What a stream of random numbers is for."""


class TrainingData(Dataset["dict[str, Tensor]"]):
    """Examples without end; a context manager.

    Parameters
    ----------
    settings : DataSettings
        What they are made of.
    seed : int
        Of everything random, >= 0.
    split : "train" or "validation"
        Both have no image source, no specimen and no random mask in common.

    Raises
    ------
    DataError
        If images or patterns cannot be used.
    """

    def __init__(self, settings: DataSettings, seed: int, split: Split = "train") -> None:
        self._settings = settings
        self._seed = (seed, ("train", "validation").index(split))
        self._store = Store(settings.cache)
        try:
            self._sources = self._open_sources(split)
            self._pools = [self._open_pool(index) for index in range(len(settings.patterns))]
        except BaseException:
            self._store.close()
            raise
        self._source_ends = _cumulative([weight for weight, _ in self._sources])
        self._pattern_ends = _cumulative([mix.weight for mix in settings.patterns])

    def __enter__(self) -> TrainingData:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was kept for this run alone; twice is fine."""
        self._store.close()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        example = self.example(index)
        return {
            "inputs": torch.from_numpy(example.inputs),
            "target": torch.from_numpy(example.target),
            "truth": torch.from_numpy(example.truth),
            "mask": torch.from_numpy(example.mask),
            "coverage": torch.tensor(example.coverage, dtype=torch.float32),
            "pattern": torch.tensor(example.pattern),
        }

    def example(self, index: int) -> Example:
        """Return example `index`, 0 to any number; the same one whenever and wherever it is asked for."""
        rng = np.random.default_rng([*self._seed, EXAMPLES, index])
        _, source = self._sources[_drawn(self._source_ends, rng)]
        share = self._crop(source.picture(index, rng), rng)
        pattern = _drawn(self._pattern_ends, rng)
        pool = self._pools[pattern]
        return scanned(share, pool[int(rng.integers(len(pool)))], pattern, self._settings, rng)

    @property
    def provenance(self) -> tuple[dict[str, str], ...]:
        """Source, licence and number of images of all that is looked at."""
        return tuple(row for _, source in self._sources for row in source.provenance)

    @property
    def pattern_names(self) -> tuple[str, ...]:
        """Names of the patterns, in the order of the settings."""
        return tuple(mix.pattern["name"] for mix in self._settings.patterns)

    @property
    def coverages(self) -> tuple[float, ...]:
        """Nominal coverages of all masks, each once, ascending."""
        return tuple(sorted({coverage for pool in self._pools for coverage in pool.coverages}))

    def _open_sources(self, split: Split) -> list[tuple[float, ImageFolder | Specimens]]:
        """Return the sources that have something for a split, with their weights."""
        settings = self._settings
        levels = isinstance(settings.noise, PhysicalNoise)
        folders = {
            index: ImageFolder(source, split, self._store, min_edge_px=settings.crop_px, levels=levels)
            for index, source in enumerate(settings.sources)
            if isinstance(source, ImageSource)
        }
        used = [index for index in range(len(settings.sources)) if index not in folders or len(folders[index])]
        if not used:
            raise DataError(
                f"no image is left for {split}: give validation_sources or another validation_share, or add a "
                "procedural source"
            )
        total = sum(settings.sources[index].weight for index in used)
        return [(settings.sources[index].weight, folders.get(index) or self._specimens(index, total)) for index in used]

    def _specimens(self, index: int, total_weight: float) -> Specimens:
        source = cast("ProceduralSource", self._settings.sources[index])
        edge_px = source.edge_px or 2 * self._settings.crop_px
        entropy = (*self._seed, SPECIMENS, index)
        return Specimens(source, entropy, edge_px=edge_px, share=source.weight / total_weight)

    def _open_pool(self, index: int) -> MaskPool:
        settings = self._settings
        return MaskPool(
            settings.patterns[index],
            settings.crop_px,
            (*self._seed, MASKS, index),
            self._store,
            linear=not NEED_LINEAR.isdisjoint(settings.channels),
            blurred=settings.noise == "published",
        )

    def _crop(self, picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return a random crop, perhaps of every second pixel, turned, inverted; contiguous."""
        settings, chance = self._settings, rng.random()
        halved = chance < settings.bin_by_2 + settings.decimate_by_2 and min(picture.shape) >= 2 * settings.crop_px
        edge = 2 * settings.crop_px if halved else settings.crop_px
        row, col = (int(rng.integers(n - edge + 1)) for n in picture.shape)
        crop = picture[row : row + edge, col : col + edge]
        if halved:
            crop = binned_by_2(crop) if chance < settings.bin_by_2 else crop[::2, ::2]
        symmetry = int(rng.integers(8)) if settings.symmetries else 0
        crop = turned(crop, symmetry)
        inverted = rng.random() < settings.invert
        return np.ascontiguousarray(np.float32(1) - crop if inverted else crop)


def batches(
    data: TrainingData, *, batch: int, first_step: int = 0, stop_step: int | None = None, workers: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of steps ``first_step <= k < stop_step``: examples ``k * batch`` to ``(k + 1) * batch - 1``.

    Parameters
    ----------
    data : TrainingData
        What to take them from.
    batch : int
        Examples in each.
    first_step, stop_step : int
        From where, and up to where; default: without end.
    workers : int
        Processes that make them ahead; 0 = none. The batches are the same.
    """
    loader = DataLoader(
        data,
        batch_sampler=_Steps(batch, first_step, stop_step),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_quiet_worker if workers else None,
        generator=torch.Generator(),  # else the loader draws a number from the global one
    )
    with _one_thread_each():
        return iter(loader)


class _Steps:
    """The indices of every step's batch, each time from the first step on."""

    def __init__(self, batch: int, first_step: int, stop_step: int | None) -> None:
        self._batch, self._first, self._stop = batch, first_step, stop_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in count(self._first) if self._stop is None else range(self._first, self._stop):
            yield list(range(step * self._batch, (step + 1) * self._batch))


def binned_by_2(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the means of 2 x 2 pixels of a picture with an even number of rows and columns."""
    rows = picture[::2] + picture[1::2]
    return np.asarray((rows[:, ::2] + rows[:, 1::2]) * np.float32(0.25))


def turned(picture: NDArray[np.float32], symmetry: int) -> NDArray[np.float32]:
    """Return a view of a square picture: 0 to 3 quarter turns, 4 to 7 the same of its mirror image."""
    return np.rot90(picture[:, ::-1] if symmetry >= 4 else picture, symmetry % 4)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Start processes whose matrix products take one thread: several that spin for each other take 4 times as long."""
    before = os.environ.get(BLAS_THREADS)
    os.environ[BLAS_THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[BLAS_THREADS]
        if before is not None:
            os.environ[BLAS_THREADS] = before


def _quiet_worker(_: int) -> None:
    """Leave Ctrl-C to the main process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cumulative(weights: Sequence[float]) -> NDArray[np.float64]:
    ends = np.cumsum(weights)
    return np.asarray(ends / ends[-1])


def _drawn(ends: NDArray[np.float64], rng: np.random.Generator) -> int:
    """Return an index drawn by weight."""
    return min(int(np.searchsorted(ends, rng.random(), side="right")), len(ends) - 1)
