"""Lattice: a sparse square grid of points, as published for DLSS-STEM, and a cycle of them (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowdose.scan_patterns.path import ScanPath, far_steps
from lowdose.scan_patterns.pattern import require_coverage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

MAX_INTERLACED_SPACING_PX = 16
"""A cycle has spacing^2 paths, and every receiver keeps all of them."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """Every d-th pixel of every d-th line, centred in the field or at an offset.

    Source: J. M. Ede, "Deep learning supersampled scanning transmission electron microscopy" (2019),
    arXiv:1910.10467, and its public code.

    Parameters
    ----------
    coverage : float
        Published nominal: the spacing is d = int(sqrt(1 / coverage)) pixels.
    offset : (row, col) int, optional
        First point, 0 <= offset < d along either axis [pixel]. Default: centred as published, (n mod d) // 2.
    """

    coverage: float = 1 / 25
    offset: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        require_coverage(self.coverage)
        if self.offset is not None and not all(0 <= o < self.spacing_px for o in self.offset):
            raise ValueError(
                f"offset must be 0 to {self.spacing_px - 1} px for a spacing of {self.spacing_px} px, "
                f"got {list(self.offset)}"
            )

    @property
    def spacing_px(self) -> int:
        """Distance d of neighbouring points along either axis [pixel]."""
        return spacing_px(self.coverage)

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return one path line by line; the beam jumps to every point that is no neighbour of the one before."""
        return (_lattice_path(grid, self.spacing_px, self.offset or (None, None), dwell_time_us),)


@dataclass(frozen=True, slots=True)
class Interlaced:
    """A cycle of d x d lattices, each at another offset: after d^2 frames every pixel was measured exactly once.

    Every frame is a lattice of its own, completed as such; the dose goes to other pixels each time. The offsets
    follow each other so that every few frames together already cover the field evenly.

    Parameters
    ----------
    coverage : float
        Nominal, as of the lattice: the spacing is d = int(sqrt(1 / coverage)) pixels, at most 16.
    """

    coverage: float = 1 / 25

    def __post_init__(self) -> None:
        require_coverage(self.coverage)
        if spacing_px(self.coverage) > MAX_INTERLACED_SPACING_PX:
            raise ValueError(
                f"an interlaced lattice has at most {MAX_INTERLACED_SPACING_PX} px of spacing, coverage "
                f"{self.coverage:g} makes {spacing_px(self.coverage)}: coverage must be >= "
                f"1/{MAX_INTERLACED_SPACING_PX**2}"
            )

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return d^2 paths, one for each offset."""
        d = spacing_px(self.coverage)
        return tuple(_lattice_path(grid, d, (int(a), int(b)), dwell_time_us) for a, b in _spread_offsets(d))


def spacing_px(coverage: float) -> int:
    """Return the published spacing of a lattice of a nominal coverage.

    Examples
    --------
    >>> [spacing_px(c) for c in (1 / 25, 1 / 40, 1 / 49)]
    [5, 6, 7]
    """
    return int(math.sqrt(1 / coverage) + 1e-9)  # 1 / (1/49) is a little less than 49 in floating point


def lattice_coordinates(n_pixels: int, spacing_px: int, offset: int | None = None) -> NDArray[np.int64]:
    """Return the lattice points along one axis: start at the offset, else (n mod d) // 2, step d.

    Raises
    ------
    ValueError
        If no point fits.

    Examples
    --------
    >>> len(lattice_coordinates(512, 5)), lattice_coordinates(512, 5)[0]
    (103, np.int64(1))
    """
    if spacing_px > n_pixels:
        raise ValueError(
            f"a lattice of spacing {spacing_px} px does not fit {n_pixels} px: coverage must be >= 1/{n_pixels**2}"
        )
    return np.arange((n_pixels % spacing_px) // 2 if offset is None else offset, n_pixels, spacing_px)


def _lattice_path(
    grid: ScanGrid, spacing: int, offset: tuple[int | None, int | None], dwell_time_us: float
) -> ScanPath:
    rows, cols = (lattice_coordinates(n, spacing, o) for n, o in zip(grid.shape, offset, strict=True))
    positions = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    return ScanPath(grid, positions, dwell_time_us, far_steps(positions))


def _spread_offsets(d: int) -> NDArray[np.intp]:
    """Return all (row, col) offsets of a d x d cell, each as far as possible from all before, (d * d, 2) int."""
    cells = np.indices((d, d)).reshape(2, -1).T
    order, nearest = [0], np.full(len(cells), np.inf)
    for _ in range(len(cells) - 1):
        apart = np.abs(cells - cells[order[-1]])
        apart = np.minimum(apart, d - apart)  # the lattice repeats
        nearest = np.minimum(nearest, (apart**2).sum(axis=1))
        order.append(int(nearest.argmax()))
        # a visited cell has distance 0 and is never the farthest while another is left
    return cells[order]
