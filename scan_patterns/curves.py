"""Smooth curves that no coil has to jump for: Fermat spiral and Lissajous figure (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lowdose.scan_patterns.path import ScanPath, in_field
from lowdose.scan_patterns.pattern import COVERAGE_TOLERANCE, require_coverage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

MAX_TRIES = 8
MAX_MISS = 1.5
"""A coverage that is missed by more than this factor is refused instead of met badly."""
MAX_ASPECT = 2.0
"""Of the cells of a Lissajous figure: the ratio of its line spacings along both axes."""


@dataclass(frozen=True, slots=True)
class Fermat:
    """Fermat spiral at constant angular velocity: r grows with the root of time, so that the dose density is uniform.

    The curve leaves and enters the field in the corners; what lies outside is left out. Its steps grow with the radius:
    the outer turns need the fastest deflector of all patterns. Source: X. Sang et al., "Dynamic scan control in STEM:
    spiral scans", Adv. Struct. Chem. Imaging 2, 6 (2016), doi:10.1186/s40679-016-0020-3.

    Parameters
    ----------
    coverage : float
        Visited pixels / all pixels, at most 1/4.
    """

    MAX_COVERAGE: ClassVar[float] = 0.25

    coverage: float = 1 / 20

    def __post_init__(self) -> None:
        require_coverage(self.coverage, at_most=self.MAX_COVERAGE)

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return one path from the centre outwards."""
        guess = self.coverage * (1 + 0.27 * self.coverage)  # positions per pixel: near the centre some share one
        return (_covering(lambda density: _fermat_path(grid, density, dwell_time_us), self.coverage, guess),)


@dataclass(frozen=True, slots=True)
class Lissajous:
    """Lissajous figure: each axis follows a sine, which a resonant deflector does without any lag to correct.

    Closed, without flyback, revisiting the whole field within a part of the frame; slow at the edges, so that the dose
    is higher there. Frequencies are coprime and nearly equal in pixels per time; the phase is the one that leaves the
    smallest holes. Source: T. Tuma et al., "High-speed multiresolution scanning probe microscopy based on Lissajous
    scan trajectories", Nanotechnology 23, 185501 (2012), doi:10.1088/0957-4484/23/18/185501.

    Parameters
    ----------
    coverage : float
        Visited pixels / all pixels, at most 1/4, as near as coprime frequencies allow.
    """

    MAX_COVERAGE: ClassVar[float] = 0.25

    coverage: float = 1 / 20

    def __post_init__(self) -> None:
        require_coverage(self.coverage, at_most=self.MAX_COVERAGE)

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return one path, at most one pixel from position to position."""
        tried: set[tuple[int, int]] = set()

        def make(n_positions: float) -> ScanPath:
            p, q = coprime_frequencies(grid.shape, n_positions / (2 * math.pi), besides=tried)
            tried.add((p, q))
            return ScanPath(grid, lissajous_positions(grid.shape, p, q), dwell_time_us)

        # fitted: positions for each pixel visited, more where the lines cross more often
        guess = self.coverage * grid.n_pixels * (1.44 + 0.6 * self.coverage)
        return (_covering(make, self.coverage, guess),)


def fermat_positions(shape: tuple[int, int], density: float) -> NDArray[np.float64]:
    """Return positions of the Fermat spiral with a mean number of positions per pixel, overscan included, (n, 2).

    Position i has r^2 = (i + 1/2) / (pi density) and theta = i alpha. alpha makes the step along the curve equal to the
    distance of the turns at 1 / sqrt(2) of the largest radius: half of the positions lie inside of it.
    """
    radius = math.hypot(*shape) / 2
    alpha = min(1.0, math.sqrt(2 / density) / radius)
    index = np.arange(math.ceil(math.pi * density * radius**2))
    r = np.sqrt((index + 0.5) / (math.pi * density))
    centre = [(n - 1) / 2 for n in shape]
    return np.stack([r * np.sin(alpha * index), r * np.cos(alpha * index)], axis=1) + centre


def lissajous_positions(shape: tuple[int, int], p: int, q: int) -> NDArray[np.float64]:
    """Return positions along row = sin(p t + phase), col = sin(q t) over the whole field, once round, (n, 2)."""
    amplitude = [(n - 1) / 2 for n in shape]
    n = max(1, math.ceil(2 * math.pi * math.hypot(p * amplitude[0], q * amplitude[1])))
    t = np.arange(n) * (2 * math.pi / n)
    # half-way between the phases at which the figure runs back on itself
    phase = 0.0 if (p + q) % 2 else math.pi / (2 * q)
    return np.stack([np.sin(p * t + phase), np.sin(q * t)], axis=1) * amplitude + amplitude


def coprime_frequencies(
    shape: tuple[int, int], size_px: float, *, besides: Iterable[tuple[int, int]] = ()
) -> tuple[int, int]:
    """Return coprime (p, q), not of `besides`, whose hypot in pixels is nearest to a size.

    In pixels: times the amplitudes, half the edges of the field. p and q differ by less than a factor of 2 there,
    so that the cells of the figure are not too long.

    Examples
    --------
    >>> coprime_frequencies((512, 512), 4000)
    (9, 13)
    """
    amplitude = np.maximum([(n - 1) / 2 for n in shape], 0.5)
    middle = size_px / math.sqrt(2) / amplitude
    low = np.maximum(1, np.floor(middle / MAX_ASPECT))
    high = np.maximum(3, np.ceil(middle * MAX_ASPECT))
    p, q = np.meshgrid(*(np.arange(a, b + 1, dtype=np.intp) for a, b in zip(low, high, strict=True)), indexing="ij")
    uneven = np.abs(np.log(p * amplitude[0] / (q * amplitude[1])))
    off = np.abs(np.hypot(p * amplitude[0], q * amplitude[1]) / size_px - 1) + 1e-2 * uneven
    off[(np.gcd(p, q) > 1) | (uneven > math.log(MAX_ASPECT) + 1e-9)] += 1e6  # only if nothing else is left
    for pair in besides:
        off[(p == pair[0]) & (q == pair[1])] = np.inf
    best = off.argmin()
    return int(p.flat[best]), int(q.flat[best])


def _fermat_path(grid: ScanGrid, density: float, dwell_time_us: float) -> ScanPath:
    positions = fermat_positions(grid.shape, density)
    inside = np.flatnonzero(in_field(positions, grid.shape))
    if len(inside) == 0:
        raise ValueError(f"no position of the spiral lies in a field of {grid.shape}: use a higher coverage")
    jumps = np.concatenate([[False], np.diff(inside) > 1])
    return ScanPath(grid, positions[inside], dwell_time_us, jumps)


def _covering(make: Callable[[float], ScanPath], coverage: float, guess: float) -> ScanPath:
    """Return the path whose coverage is the wanted one, or as near as the counts of the pattern allow.

    Raises
    ------
    ValueError
        If the nearest is far off.
    """
    size, best = guess, make(guess)
    best_size = size
    for _ in range(MAX_TRIES):
        if abs(best.coverage / coverage - 1) <= COVERAGE_TOLERANCE / 4:
            break
        # as if positions fell on pixels at random: the share visited is 1 - exp(-size)
        size = best_size * math.log1p(-coverage) / math.log1p(-min(best.coverage, 0.99))
        tried = make(size)
        if abs(tried.coverage - coverage) < abs(best.coverage - coverage):
            best, best_size = tried, size
    if not 1 / MAX_MISS <= best.coverage / coverage <= MAX_MISS:
        raise ValueError(
            f"coverage {coverage:.4g} cannot be met in a field of {best.grid.rows} x {best.grid.cols} px: the nearest "
            f"this pattern can do is {best.coverage:.4g}"
        )
    return best
