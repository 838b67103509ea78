"""LineHop: line by line with bounded random steps across the lines (imports numpy only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowdose.scan_patterns.path import ScanPath, far_steps
from lowdose.scan_patterns.pattern import require_coverage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

MAX_STEP_PX = 32


@dataclass(frozen=True, slots=True)
class LineHop:
    """The field in bands of equal height, one pixel of every column of a band, hopping at random within the band.

    Coils are inductive: a beam that hops a bounded distance between neighbouring columns can be followed where random
    jumps cannot. Every other band is scanned backwards, so that there is no flyback. Source: L. Kovarik, A. Stevens,
    A. Liyu and N. D. Browning, "Implementing an accurate and rapid sparse sampling approach for low-dose atomic
    resolution STEM imaging", Appl. Phys. Lett. 109, 164102 (2016), doi:10.1063/1.4965720.

    Parameters
    ----------
    coverage : float
        Visited pixels / all pixels, exactly bands / rows.
    max_step_px : int
        Longest hop across the lines between neighbouring columns; hops are uniform up to it [pixel].
    """

    coverage: float = 1 / 20
    max_step_px: int = 1

    def __post_init__(self) -> None:
        require_coverage(self.coverage)
        if not 1 <= self.max_step_px <= MAX_STEP_PX:
            raise ValueError(f"max_step_px must be 1 to {MAX_STEP_PX}, got {self.max_step_px}")

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return one path: a walk through each band, there and back."""
        bands = round(self.coverage * grid.rows)
        if bands < 1:
            raise ValueError(
                f"coverage {self.coverage:g} leaves no line of {grid.rows} rows: it must be >= 1/{grid.rows}"
            )
        edges = np.linspace(0, grid.rows, bands + 1).round().astype(np.intp)
        rows = edges[:-1, None] + _reflected_walks(np.diff(edges), grid.cols, self.max_step_px, rng)
        positions = np.stack(np.broadcast_arrays(rows, np.arange(grid.cols)), axis=-1)  # (bands, cols, 2)
        positions[1::2] = positions[1::2, ::-1]
        positions = positions.reshape(-1, 2)
        jumps = far_steps(positions)
        jumps &= np.arange(len(jumps)) % grid.cols == 0  # hops inside a band are what this pattern is made of
        return (ScanPath(grid, positions, dwell_time_us, jumps),)


def _reflected_walks(
    heights: NDArray[np.intp], columns: int, max_step_px: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Return (bands, columns) rows within each band: random walks from anywhere, reflected at both edges."""
    start = rng.integers(0, heights)[:, None]
    steps = rng.integers(-max_step_px, max_step_px + 1, (len(heights), columns))
    steps[:, 0] = 0
    unfolded = (start + np.cumsum(steps, axis=1)) % (2 * heights[:, None])
    return np.asarray(np.minimum(unfolded, 2 * heights[:, None] - 1 - unfolded))
