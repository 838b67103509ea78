"""Random and PoissonDisc: scattered pixels, each visited once, in an order of little travel (numpy and scipy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lowdose.scan_patterns.order import visiting_order
from lowdose.scan_patterns.path import ScanPath, far_steps
from lowdose.scan_patterns.pattern import require_coverage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

MAX_DISTANCE_PX = 512.0
"""Longest distance kept between positions [pixel]: bounds the memory of discs where a field gets only a few."""

ROUND_SIZE = 2**22
"""Pixels looked at in one round of darts: 32 MB of indices."""


@dataclass(frozen=True, slots=True)
class Random:
    """Pixels drawn at random, each at most once, none preferred: the mask of compressed sensing.

    Large holes and clusters are part of it; `PoissonDisc` has neither at the same dose.

    Source: A. Stevens, H. Yang, L. Carin, I. Arslan and N. D. Browning, "The potential for Bayesian compressive
    sensing to significantly reduce electron dose in high-resolution STEM images", Microscopy 63, 41 (2014),
    doi:10.1093/jmicro/dft042.

    Parameters
    ----------
    coverage : float
        True coverage: exactly ``round(coverage * n_pixels)`` pixels are visited.
    """

    coverage: float = 1 / 20

    def __post_init__(self) -> None:
        require_coverage(self.coverage)

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return one path through the drawn pixels; the beam jumps to every pixel that is not a neighbour."""
        pixels = rng.choice(grid.n_pixels, visited_pixels(self.coverage, grid), replace=False)
        return (scattered_path(grid, pixels, dwell_time_us),)


@dataclass(frozen=True, slots=True)
class PoissonDisc:
    """Pixels drawn at random, but none close to another: blue noise, without large holes or clusters.

    Pixels are drawn at least `disc_distance_px` apart until no other fits, then, in the gaps, at the next shorter
    distance, and so on until there are enough. At 1/20 of 512 x 512 px the closest two are 3.2 px apart and the
    largest hole has a radius of 3.2 px; with `Random` that is 1 px and 9 px. The price is travel: evenly spread pixels
    have no close pairs, and the way through them is 1.3 times as long as through random ones, nearly that through a
    square lattice.

    Sources: R. L. Cook, "Stochastic sampling in computer graphics", ACM Trans. Graph. 5, 51 (1986),
    doi:10.1145/7529.8927; the shrinking distance is that of M. McCool and E. Fiume, "Hierarchical Poisson disk
    sampling distributions", Proc. Graphics Interface, 94 (1992).

    Parameters
    ----------
    coverage : float
        True coverage: exactly ``round(coverage * n_pixels)`` pixels are visited. At most 1/4: the distance is then
        sqrt(2) px, and beyond 0.36 nothing but direct neighbours could be drawn.
    """

    coverage: float = 1 / 20

    MAX_COVERAGE: ClassVar[float] = 1 / 4

    def __post_init__(self) -> None:
        require_coverage(self.coverage, at_most=self.MAX_COVERAGE)

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return one path through the drawn pixels; the beam jumps to every pixel that is not a neighbour."""
        pixels = spread_pixels(grid.shape, visited_pixels(self.coverage, grid), rng)
        return (scattered_path(grid, pixels, dwell_time_us),)


def visited_pixels(coverage: float, grid: ScanGrid) -> int:
    """Return how many pixels a coverage comes to.

    Raises
    ------
    ValueError
        If it is less than one.

    Examples
    --------
    >>> from lowdose.scan_patterns.grid import ScanGrid
    >>> visited_pixels(1 / 20, ScanGrid((512, 512)))
    13107
    """
    pixels = coverage * grid.n_pixels
    if pixels < 1 - 1e-9:  # n * (1 / n) may fall short of 1 by rounding
        raise ValueError(
            f"coverage {coverage:g} of {grid.rows} x {grid.cols} pixels is {pixels:.2g} pixels: "
            f"it must be >= 1/{grid.n_pixels}"
        )
    return round(pixels)


def scattered_path(grid: ScanGrid, flat_pixels: NDArray[np.int64], dwell_time_us: float) -> ScanPath:
    """Return the path through pixels of the flattened grid; the beam jumps to all that are no neighbours."""
    pixels = np.stack(np.divmod(np.sort(flat_pixels), grid.cols), axis=1)
    pixels = pixels[visiting_order(pixels)]
    return ScanPath(grid, pixels, dwell_time_us, far_steps(pixels))


def disc_distance_px(n: int, shape: tuple[int, int]) -> float:
    """Return the distance at which `PoissonDisc` starts to draw n pixels [pixel].

    The spacing d of the square lattice with as many points, (rows - 1 + d) (cols - 1 + d) = n d^2, rounded down to
    a distance two pixels can have: about sqrt(1 / coverage). Pixels drawn at random until none fits are too few,
    0.64 to 0.75 of n, so that no hole with this radius is left; the closest two end up 0.7 to 0.9 of it apart
    (from 5 rows on; half of it in a field of one row).

    Parameters
    ----------
    n : int
        Number of pixels to draw, >= 1.
    shape : (rows, cols)
        Of the field [pixel].

    Examples
    --------
    >>> disc_distance_px(256, (61, 61))
    4.0
    """
    if n == 1:
        return MAX_DISTANCE_PX
    rows, cols = shape[0] - 1, shape[1] - 1
    # (n - 1) d^2 - (rows + cols) d - rows cols = 0
    root = math.sqrt((rows + cols) ** 2 + 4 * (n - 1) * rows * cols)
    return lattice_distance(min((rows + cols + root) / (2 * (n - 1)), MAX_DISTANCE_PX))


def lattice_distance(distance_px: float) -> float:
    """Return the longest distance between two pixels that is not above the given one; 1 at least [pixel]."""
    limit = max(distance_px, 1.0) ** 2 * (1 + 1e-12)
    rows = np.arange(int(math.sqrt(limit)) + 1)
    return math.sqrt((rows**2 + np.floor(np.sqrt(limit - rows**2)) ** 2).max())


def spread_pixels(shape: tuple[int, int], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return n random pixels as far apart as random pixels get, indices into the flattened grid."""
    distance_px = disc_distance_px(n, shape)
    pixels = add_pixels(np.empty(0, np.int64), shape, distance_px, rng)
    while len(pixels) < n:
        distance_px = lattice_distance(0.99 * distance_px)
        pixels = add_pixels(pixels, shape, distance_px, rng)
    return pixels[:n]


def add_pixels(
    pixels: NDArray[np.int64], shape: tuple[int, int], distance_px: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the pixels and, behind them, random others at least a distance from all, until no other fits.

    Darts are thrown at the free pixels, many at once; one that comes first among those within the distance stays
    and takes its disc away.

    Parameters
    ----------
    pixels : (n,) int64 array
        Indices into the flattened grid of those already drawn.
    shape : (rows, cols)
        Of the grid.
    distance_px : float
        Shortest distance of an added pixel to any other [pixel].
    rng : numpy.random.Generator
        Throws the darts.
    """
    margin = min(math.ceil(distance_px), max(shape)) - 1  # so that no disc leaves the array
    stride = shape[1] + 2 * margin
    square = np.arange(-margin, margin + 1)
    disc = (square[:, None] * stride + square)[square[:, None] ** 2 + square**2 < distance_px**2 - 1e-9]
    at_once = max(1, ROUND_SIZE // len(disc))

    rows, cols = np.divmod(pixels, shape[1])
    drawn = [(rows + margin) * stride + cols + margin]
    free = np.pad(np.ones(shape, bool), margin).ravel()
    for start in range(0, len(pixels), at_once):
        free[drawn[0][start : start + at_once, None] + disc] = False

    turn = np.zeros(free.size, np.int32)  # of each dart, counted down; 0 where none fell
    while len(left := np.flatnonzero(free)):
        darts = rng.choice(left, min(len(left), at_once), replace=False)
        turn[darts] = np.arange(len(darts), 0, -1)
        stay = darts[turn[darts[:, None] + disc].max(axis=1) == turn[darts]]
        turn[darts] = 0
        free[stay[:, None] + disc] = False
        drawn.append(stay)
    rows, cols = np.divmod(np.concatenate(drawn), stride)
    return (rows - margin) * shape[1] + cols - margin
