"""Raster: every pixel, line by line, what all else is compared with (imports numpy only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lowdose.scan_patterns.path import ScanPath

if TYPE_CHECKING:
    from lowdose.scan_patterns.grid import ScanGrid


@dataclass(frozen=True, slots=True)
class Raster:
    """The conventional full scan: all pixels along the fast axis, line after line.

    Parameters
    ----------
    lines : "flyback" or "serpentine"
        "flyback" scans every line in the same direction, the beam jumping back before each; "serpentine" turns round
        at the ends of the lines: no flyback to wait for, but every lag of the deflector shows as a comb, since odd
        lines are shifted against even ones.
    """

    lines: Literal["flyback", "serpentine"] = "flyback"

    def __post_init__(self) -> None:
        if self.lines not in ("flyback", "serpentine"):
            raise ValueError(f"lines must be 'flyback' or 'serpentine', got {self.lines!r}")

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return one path over all pixels."""
        positions = np.moveaxis(np.indices(grid.shape, dtype=np.float32), 0, -1)  # (rows, cols, 2)
        jumps = np.zeros(grid.shape, bool)
        if self.lines == "serpentine":
            positions[1::2] = positions[1::2, ::-1]
        else:
            jumps[:, 0] = True
        return (ScanPath(grid, positions.reshape(-1, 2), dwell_time_us, jumps.reshape(-1)),)
