"""Placement: any pattern in a region of the field, turned by an angle (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from lowdose.scan_patterns.grid import ScanGrid
from lowdose.scan_patterns.path import ScanPath, in_field

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.pattern import Pattern


class Region(NamedTuple):
    """A rectangle of pixels: its first row and column, and how many of each."""

    row: int
    col: int
    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where in the field a pattern is laid out.

    Parameters
    ----------
    region : (row, col, rows, cols) int, optional
        Sub-region to scan [pixel]; default: the whole field.
    rotation_deg : float
        Turns the pattern about the middle of the region, from the fast axis towards the slow one; it is laid out larger
        and cut to the region, so that the corners are covered too [degree].
    """

    region: tuple[int, int, int, int] | None = None
    rotation_deg: float = 0.0

    def __post_init__(self) -> None:
        if self.region is not None and (min(self.region[:2]) < 0 or min(self.region[2:]) < 1):
            raise ValueError(f"region must be (row, col, rows, cols) with rows, cols >= 1, got {tuple(self.region)}")
        if not math.isfinite(self.rotation_deg):
            raise ValueError(f"rotation_deg must be finite, got {self.rotation_deg}")

    def region_of(self, grid: ScanGrid) -> Region:
        """Return the region in a grid. Raises ValueError where it does not lie in the field."""
        region = Region(0, 0, *grid.shape) if self.region is None else Region(*self.region)
        if region.row + region.rows > grid.rows or region.col + region.cols > grid.cols:
            raise ValueError(
                f"region {tuple(region)} ends at ({region.row + region.rows}, {region.col + region.cols}), beyond the "
                f"field of {grid.rows} x {grid.cols} px"
            )
        return region

    def layout_grid(self, grid: ScanGrid) -> ScanGrid:
        """Return the grid the pattern is made on: the region, or what covers it when turned."""
        _, _, rows, cols = self.region_of(grid)
        cos, sin = abs(_cos_sin(self.rotation_deg)[0]), abs(_cos_sin(self.rotation_deg)[1])
        shape = math.ceil(rows * cos + cols * sin - 1e-9), math.ceil(cols * cos + rows * sin - 1e-9)
        return ScanGrid(shape, grid.pixel_size_nm, grid.rotation_deg)


@dataclass(frozen=True, slots=True)
class Placed:
    """A pattern with its placement: a pattern again."""

    pattern: Pattern
    placement: Placement

    @property
    def coverage(self) -> float:
        """Coverage asked of the pattern, of the region. Raises AttributeError if it has none to choose."""
        return self.pattern.coverage  # type: ignore[attr-defined, no-any-return]

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return the pattern's paths in the region; what was laid out beyond it is left out, the beam jumps there."""
        region, layout = self.placement.region_of(grid), self.placement.layout_grid(grid)
        laid_out = self.pattern.paths(layout, dwell_time_us=dwell_time_us, rng=rng)
        return tuple(self._moved(path, grid, region) for path in laid_out)

    def _moved(self, path: ScanPath, grid: ScanGrid, region: Region) -> ScanPath:
        in_region = turned(path.positions, path.grid.shape, region[2:], self.placement.rotation_deg)
        # what the pattern itself scans beyond its field stays
        keep = in_field(in_region, region[2:]) | ~path.inside
        if not keep.any():
            raise ValueError(f"no position of the pattern lies in region {tuple(region)}: use a larger one")
        jumps = path.jumps | np.concatenate([[False], ~keep[:-1]])
        dwell = path.dwell_time_us if np.isscalar(path.dwell_time_us) else path.dwell_times_us[keep]
        return ScanPath(grid, in_region[keep] + region[:2], dwell, jumps[keep])


def place(pattern: Pattern, placement: Placement) -> Pattern:
    """Return the pattern where it is wanted."""
    return pattern if placement == Placement() else Placed(pattern, placement)


def spec(pattern: Any) -> dict[str, Any]:
    """Return a pattern's parameters, and those of its placement where it has one, as they stand in YAML."""
    own, placement = (pattern.pattern, pattern.placement) if isinstance(pattern, Placed) else (pattern, Placement())
    region = None if placement.region is None else list(placement.region)
    values = {**asdict(cast("Any", own)), "region": region, "rotation_deg": placement.rotation_deg or None}
    return {key: value for key, value in values.items() if value is not None}


def turned(
    positions: NDArray[np.float32], shape: tuple[int, int], region_shape: tuple[int, int], rotation_deg: float
) -> NDArray[np.float32]:
    """Return positions turned about the middle of one field and moved into the middle of another."""
    if rotation_deg == 0:
        return positions
    cos, sin = _cos_sin(rotation_deg)
    middle, region_middle = ((np.array(s) - 1) / 2 for s in (shape, region_shape))
    row, col = (positions.astype(np.float64) - middle).T
    return (np.stack([row * cos + col * sin, col * cos - row * sin], axis=1) + region_middle).astype(np.float32)


def _cos_sin(degrees: float) -> tuple[float, float]:
    """Return cosine and sine, exact for quarter turns."""
    exact = {0.0: (1.0, 0.0), 90.0: (0.0, 1.0), 180.0: (-1.0, 0.0), 270.0: (0.0, -1.0)}
    angle = math.radians(degrees)
    return exact.get(degrees % 360, (math.cos(angle), math.sin(angle)))
