"""Lattice: a sparse square grid of points, as published for DLSS-STEM (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowdose.scan_patterns.path import ScanPath
from lowdose.scan_patterns.pattern import require_coverage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid


@dataclass(frozen=True, slots=True)
class Lattice:
    """Every d-th pixel of every d-th line, centred in the field.

    Source: J. M. Ede, "Deep learning supersampled scanning transmission electron microscopy" (2019),
    arXiv:1910.10467, and its public code.

    Parameters
    ----------
    coverage : float
        Published nominal: the spacing is d = int(sqrt(1 / coverage)) pixels.
    """

    coverage: float = 1 / 25

    def __post_init__(self) -> None:
        require_coverage(self.coverage)

    @property
    def spacing_px(self) -> int:
        """Distance d of neighbouring points along either axis [pixel]."""
        return int(math.sqrt(1 / self.coverage) + 1e-9)  # 1 / (1/49) is a little less than 49 in floating point

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return one path line by line; the beam jumps before each line."""
        rows, cols = (lattice_coordinates(n, self.spacing_px) for n in grid.shape)
        positions = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
        return (ScanPath(grid, positions, dwell_time_us, jumps=positions[:, 1] == cols[0]),)


def lattice_coordinates(n_pixels: int, spacing_px: int) -> NDArray[np.int64]:
    """Return the lattice points along one axis: start (n mod d) // 2, step d.

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
    return np.arange((n_pixels % spacing_px) // 2, n_pixels, spacing_px)
