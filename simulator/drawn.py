"""Drawn: what all procedural specimens share, parameters drawn from seeded ranges (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from lowdose.scan_patterns.checks import nearest_name

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.simulator.canvas import Canvas

VACUUM = 0.05
"""Share of full scale that the detector gives in vacuum: its dark offset."""

FILM = 0.09
"""Share of full scale that a film of mean thickness adds to it."""

GRAIN_NM = 0.5
"""Mean wavelength of an amorphous film's grain [nm]."""


class Span(NamedTuple):
    """What a parameter may be: drawn between `low` and `high`, accepted from `least` to `most`."""

    low: float
    high: float
    least: float = 0.0
    most: float = math.inf


@dataclass(frozen=True, slots=True)
class Drawn:
    """A specimen drawn from a seed; parameters left out (None) are drawn, too, from the ranges given with them.

    The same seed and field of view give the same specimen, whatever the number of pixels: periods below three
    pixels are left out. To give one parameter changes no other.

    Parameters
    ----------
    seed : int
        Of everything random in it, >= 0.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    SPANS: ClassVar[Mapping[str, Span]] = {}
    CHOICES: ClassVar[Mapping[str, Collection[str]]] = {}

    seed: int = 1

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        for name, span in self.SPANS.items():
            value = getattr(self, name)
            if value is not None and not (span.least <= value <= span.most and math.isfinite(value)):
                raise ValueError(f"{name} must be {span.least:g} to {span.most:g}, got {value}")
        for name, known in self.CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ValueError(f"unknown {name} {value!r}: {nearest_name(value, known)}")

    def open(self, grid: ScanGrid) -> Still:
        """Draw the specimen on the grid; it does not change with time."""
        return Still(self.draw(grid, np.random.default_rng(self.seed)))

    def draw(self, grid: ScanGrid, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the specimen as share of full scale, (rows, cols) float32 in [0, 1].

        The generator takes the place of the seed: called again and again with the same one, every image is another.
        """
        raise NotImplementedError

    def value(self, name: str, rng: np.random.Generator) -> float:
        """Return a parameter, given or drawn; the generator advances by one number either way."""
        span = self.SPANS[name]
        drawn = float(rng.uniform(span.low, span.high))
        given = getattr(self, name)
        return drawn if given is None else float(given)

    def count(self, name: str, rng: np.random.Generator) -> int:
        """Return a parameter that is a number of things, given or drawn."""
        span = self.SPANS[name]
        drawn = int(rng.integers(int(span.low), int(span.high) + 1))
        given = getattr(self, name)
        return drawn if given is None else int(given)

    def choice(self, name: str, rng: np.random.Generator) -> str:
        """Return one of the names a parameter may be, given or drawn."""
        known = list(self.CHOICES[name])
        drawn = known[int(rng.integers(len(known)))]
        given: str | None = getattr(self, name)
        return drawn if given is None else given


class Still:
    """A specimen source that shows one image for ever."""

    def __init__(self, image: NDArray[np.float32]) -> None:
        image.setflags(write=False)
        self._image = image

    def frame(self, t_s: float) -> NDArray[np.float32]:
        """Return the image, always the same object, (rows, cols) in [0, 1] of full scale."""
        return self._image


def branches(rng: np.random.Generator, n: int) -> list[np.random.Generator]:
    """Return n generators of their own: one part may draw more numbers without changing the others."""
    return [np.random.default_rng(int(seed)) for seed in rng.integers(0, 2**63, n)]


def film_thickness(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the thickness of an amorphous film, 1 on average: slow variations and, where resolved, grain."""
    slow = canvas.waves(rng.uniform(0.4, 1.2, 12) * canvas.edge_nm, rng)
    slow *= np.float32(0.15)
    slow += 1
    grain = canvas.resolved(GRAIN_NM)
    if grain > 0:
        slow += np.float32(0.12 * grain) * canvas.waves(GRAIN_NM * rng.uniform(0.7, 1.6, 80), rng)
    return slow


def share_of_full_scale(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the image within [0, 1], in place."""
    return np.clip(image, 0, 1, out=image)
