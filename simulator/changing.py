"""Changing: a procedural specimen one of whose parameters changes with time (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdose.scan_patterns.checks import nearest_name, require_positive
from lowdose.simulator.mixed import KINDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.simulator.drawn import Drawn

MAX_STEPS = 500


@dataclass(frozen=True, slots=True)
class Changing:
    """A process to watch, such as gold islands that grow together; everything else stays as the seed has it.

    Parameters
    ----------
    kind : str
        Of the procedural specimens.
    parameter : str
        Of that kind, a number.
    start, stop : float
        Its value at first and at last.
    duration_s : float
        Time from the one to the other; then nothing changes any more [s].
    steps : int
        In which it changes; all are drawn before the scan, at about 20 ms and 1 MB each for 512 x 512 pixels.
    seed : int
        Of everything random in it, >= 0.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 read by pydantic

    kind: str = "gold_islands"
    parameter: str = "coverage"
    start: float = 0.2
    stop: float = 0.8
    duration_s: float = 30.0
    steps: int = 60
    seed: int = 1

    def __post_init__(self) -> None:
        require_positive(duration_s=self.duration_s)
        if not 2 <= self.steps <= MAX_STEPS:
            raise ValueError(f"steps must be 2 to {MAX_STEPS}, got {self.steps}")
        if self.kind not in KINDS:
            raise ValueError(f"unknown specimen {self.kind!r}: {nearest_name(self.kind, KINDS)}")
        spans = KINDS[self.kind].SPANS
        if self.parameter not in spans:
            raise ValueError(
                f"{self.kind} has no number {self.parameter!r} to change: {nearest_name(self.parameter, spans)}"
            )
        for value in (self.start, self.stop):
            self._at(value)  # refuses what is out of its range

    def open(self, grid: ScanGrid) -> Sequence:
        """Draw all steps on the grid."""
        values = np.linspace(self.start, self.stop, self.steps).tolist()
        images = [self._at(value).draw(grid, np.random.default_rng(self.seed)) for value in values]
        return Sequence(images, self.duration_s / (self.steps - 1))

    def _at(self, value: float) -> Drawn:
        parameters: dict[str, Any] = {self.parameter: value}
        return KINDS[self.kind](self.seed, **parameters)


class Sequence:
    """A specimen source that shows images one after another, then the last for ever."""

    def __init__(self, images: list[NDArray[np.float32]], period_s: float) -> None:
        for image in images:
            image.setflags(write=False)
        self._images, self._period_s = images, period_s

    def frame(self, t_s: float) -> NDArray[np.float32]:
        """Return the image of a time [s], (rows, cols) in [0, 1] of full scale."""
        step = math.floor(max(t_s, 0) / self._period_s)
        return self._images[min(step, len(self._images) - 1)]
