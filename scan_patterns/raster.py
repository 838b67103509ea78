"""Raster: every pixel, line by line, what all else is compared with (imports numpy only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowdose.scan_patterns.path import ScanPath

if TYPE_CHECKING:
    from lowdose.scan_patterns.grid import ScanGrid


@dataclass(frozen=True, slots=True)
class Raster:
    """The conventional full scan: all pixels along the fast axis, flyback, next line."""

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return one path over all pixels; the beam jumps before each line."""
        positions = np.indices(grid.shape, dtype=np.float32).reshape(2, -1).T
        return (ScanPath(grid, positions, dwell_time_us, jumps=positions[:, 1] == 0),)
