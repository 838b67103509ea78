"""Jittered: two crossed sets of random walks along the axes, as published (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lowdose.scan_patterns.path import ScanPath, in_field
from lowdose.scan_patterns.pattern import require_coverage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

CANVAS_MARGIN = 1.2
MOMENTUM = 0.5
SUB_STEPS_PER_PIXEL = 5


@dataclass(frozen=True, slots=True)
class Jittered:
    """Jittered gridlike scan: channels of equal width, a random walk with momentum in each, crossed with its transpose.

    Every column's lateral move is walked in sub-steps with float positions; their dwell times add up to the nominal
    one times the length of the move. Source: J. M. Ede and R. Beanland, Sci. Rep. 10, 8332 (2020),
    doi:10.1038/s41598-020-65261-0, and its public code, kept with its quirk: half of the steps are an absolute reset
    near -amplitude instead of an increment.

    Parameters
    ----------
    coverage : float
        Published nominal, at most 1/2: each of the two sets has area fraction coverage / 2.
    amplitude_px : float
        Scale of the lateral steps [pixel].
    """

    MAX_COVERAGE: ClassVar[float] = 0.5

    coverage: float = 1 / 20
    amplitude_px: float = 1.0

    def __post_init__(self) -> None:
        require_coverage(self.coverage, at_most=self.MAX_COVERAGE)
        if not 0 < self.amplitude_px <= 32:
            raise ValueError(f"amplitude_px must be > 0 and <= 32, got {self.amplitude_px}")

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return one path: the walks along the rows, then the same walks along the columns."""
        edge = max(grid.shape)
        walk, dwell = crossing_walks(edge, self.coverage / 2, self.amplitude_px, rng)
        both = [_inside(p, dwell, grid.shape) for p in (walk, walk[..., ::-1])]
        if sum(len(p) for p, _, _ in both) == 0:
            raise ValueError(
                f"coverage {self.coverage:g} leaves no walk inside a field of {grid.shape}: use a larger one"
            )
        positions, weights, jumps = (np.concatenate(parts) for parts in zip(*both, strict=True))
        return (ScanPath(grid, positions, weights * dwell_time_us, jumps),)


def channel_width_px(area_fraction: float) -> float:
    """Return the channel width of one set, the positive root of f w^2 - 2 w + 4 = 0.

    Examples
    --------
    >>> [round(channel_width_px(f), 1) for f in (0.055, 0.03, 0.013, 0.005)]
    [34.2, 64.6, 151.8, 398.0]
    """
    return (2 + math.sqrt(4 - 16 * area_fraction)) / (2 * area_fraction)


def crossing_walks(
    edge_px: int, area_fraction: float, amplitude_px: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return one set of walks on a canvas 1.2 fields wide, in the field's coordinates.

    Returns
    -------
    positions : (channels, columns * sub_steps, 2) float ndarray
        (row, col) [pixel].
    dwell : (channels, columns * sub_steps) float ndarray
        Dwell time over the nominal one.
    """
    canvas = int(CANVAS_MARGIN * edge_px)
    width = channel_width_px(area_fraction)
    channels = max(1, int(canvas / width))  # a field narrower than one channel still gets one walk
    lateral = _lateral_walk(channels, canvas, (width - 1) / 2, amplitude_px, rng)
    previous = np.concatenate([np.zeros((channels, 1)), lateral[:, :-1]], axis=1)
    n_sub = math.ceil(SUB_STEPS_PER_PIXEL * amplitude_px)
    part = np.arange(1, n_sub + 1) / n_sub
    centre = np.arange(channels) * width + (width - 1) / 2
    row = centre[:, None, None] + previous[..., None] + (lateral - previous)[..., None] * part
    # evenly along the column's width, so that the beam moves one pixel per nominal dwell time
    col = np.broadcast_to(np.arange(canvas)[:, None] + part - (n_sub + 1) / (2 * n_sub), row.shape)
    dwell = np.broadcast_to(np.hypot(1, lateral - previous)[..., None] / n_sub, row.shape)
    offset = (canvas - edge_px) // 2
    positions = np.stack([row, col], axis=-1).reshape(channels, -1, 2) - offset
    return positions, dwell.reshape(channels, -1)


def published_mask(positions: NDArray[np.float64], dwell: NDArray[np.float64], edge_px: int) -> NDArray[np.float64]:
    """Return the published dwell mask of one set: every sub-step's dwell shared by the two nearest rows.

    Parameters
    ----------
    positions, dwell
        As `crossing_walks` returns them; each is deposited in its nearest column.
    edge_px : int
        Edge of the square mask.

    Returns
    -------
    (edge_px, edge_px) float ndarray
        Dwell time over the nominal one, clipped to [0, 1]. The published figure is this plus its transpose.
    """
    row, col = positions.reshape(-1, 2).T
    low, col = np.floor(row), np.rint(col)
    share = row - low
    mask = np.zeros((edge_px, edge_px))
    for target, weight in ((low, 1 - share), (low + 1, share)):
        keep = (target >= 0) & (target < edge_px) & (col >= 0) & (col < edge_px)
        np.add.at(mask, (target[keep].astype(int), col[keep].astype(int)), (weight * dwell.reshape(-1))[keep])
    return np.clip(mask, 0, 1)


def _lateral_walk(
    channels: int, columns: int, limit: float, amplitude: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return (channels, columns) lateral positions; all channels walk at once, one column at a time."""
    y, momentum = np.zeros(channels), np.zeros(channels)
    walk = np.empty((channels, columns))
    moves, noise = rng.random((columns, channels)) < 0.5, rng.standard_normal((columns, channels))
    for column in range(columns):
        with_momentum = MOMENTUM * momentum + (1 - MOMENTUM) * amplitude * (1 + noise[column])
        momentum = np.where(moves[column], with_momentum, momentum)
        y = np.where(moves[column], y + momentum, amplitude * (-1 + noise[column]))
        outside = np.abs(y) > limit
        y = np.clip(y, -limit, limit)
        momentum = np.where(outside, -momentum, momentum)
        walk[:, column] = y
    return walk


def _inside(
    positions: NDArray[np.float64], dwell: NDArray[np.float64], shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return the positions that round into the field, their dwell, and where the beam jumps to get there."""
    edge = max(shape)
    positions = positions - [(edge - n) // 2 for n in shape]
    keep = in_field(positions, shape)
    kept_before = np.concatenate([np.zeros((len(keep), 1), np.bool_), keep[:, :-1]], axis=1)
    return positions[keep], dwell[keep], (keep & ~kept_before)[keep]
