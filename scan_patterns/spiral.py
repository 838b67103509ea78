"""Spiral: Archimedes spiral as published for partial STEM, or at constant speed (imports numpy and scipy)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.ndimage import convolve1d, gaussian_filter1d

from lowdose.scan_patterns.path import ScanPath, in_field, nearest_pixels
from lowdose.scan_patterns.pattern import require_coverage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

PUBLISHED_SAMPLES = 10_000
PUBLISHED_EDGE_PX = 512
TIMING_SMOOTHED_OVER = 3
"""Standard deviation of the smoothing of when the curve is passed [positions]: pixels come at uneven distances."""
INSIDE_PIXEL_PX = 0.49
"""Furthest a position may lie from the centre of its pixel along either axis [pixel]."""


@dataclass(frozen=True, slots=True)
class Spiral:
    """Archimedes spiral from the centre to the corners.

    Positions lie on the smooth curve, which real deflectors can follow, not on the staircase of its pixels; where the
    published line of pixels leaves the curve they stay in the published pixel, at the edge nearest to the curve.

    Sources: J. M. Ede and R. Beanland, "Partial scanning transmission electron microscopy with deep learning",
    Sci. Rep. 10, 8332 (2020), doi:10.1038/s41598-020-65261-0, and its public code; constant speed: X. Sang et al.,
    "Dynamic scan control in STEM: spiral scans", Adv. Struct. Chem. Imaging 2, 6 (2016),
    doi:10.1186/s40679-016-0020-3.

    Parameters
    ----------
    coverage : float
        Published nominal: neighbouring turns are 1 / coverage pixels apart. The share of pixels visited is about
        0.9 of it, since an 8-connected line takes 0.9 pixels per unit length.
    speed : "angular" or "linear"
        "angular": the published drawing at constant angular velocity, whose pixels are visited once each. "linear":
        one pixel of the curve's length per dwell time; some pixels are visited twice, some passed by.
    overscan : "clip" or "keep"
        A spiral that reaches the corners spends 37 % of its length outside the field. "clip" leaves that out,
        the beam jumping from where it leaves to where it comes back; "keep" scans and pays for it.
    """

    coverage: float = 1 / 20
    speed: Literal["angular", "linear"] = "angular"
    overscan: Literal["clip", "keep"] = "clip"

    def __post_init__(self) -> None:
        require_coverage(self.coverage)
        if self.speed not in ("angular", "linear"):
            raise ValueError(f"speed must be 'angular' or 'linear', got {self.speed!r}")
        if self.overscan not in ("clip", "keep"):
            raise ValueError(f"overscan must be 'clip' or 'keep', got {self.overscan!r}")

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return one path from the centre outwards."""
        along = pixel_positions if self.speed == "angular" else arc_positions
        positions = along(grid.shape, self.coverage)
        if self.overscan == "clip":
            positions = positions[in_field(positions, grid.shape)]
        # told from their pixels: positions of neighbouring pixels are up to 2 px apart
        apart = np.abs(np.diff(nearest_pixels(positions), axis=0)).max(axis=1)
        jumps = np.concatenate([[False], apart > 1])
        return (ScanPath(grid, positions, dwell_time_us, jumps),)


def spiral_curve(theta: NDArray[np.float64], shape: tuple[int, int], coverage: float) -> NDArray[np.float64]:
    """Return r = theta / (2 pi coverage) around the published centre, half a pixel from the field's, (n, 2) [pixel]."""
    r = theta / (2 * math.pi * coverage)
    diagonal = _diagonal(shape)
    centre = [diagonal / 2 - 0.5 - (diagonal // 2 - n // 2) for n in shape]
    return np.stack([r * np.sin(theta), r * np.cos(theta)], axis=1) + centre


def pixel_positions(shape: tuple[int, int], coverage: float) -> NDArray[np.float64]:
    """Return a position for every pixel of the published spiral, each once, in order, overscan included, (n, 2)."""
    vertices, theta = spiral_vertices(shape, coverage)
    pixels, passed = polyline_pixels(vertices, theta)
    first = first_visits(pixels)
    pixels, passed = pixels[first], passed[first]
    # theta^2 grows in proportion to the length; its ends continue in a straight line
    width = min(4 * TIMING_SMOOTHED_OVER, len(passed) - 1)
    continued = np.pad(passed**2, width, mode="reflect", reflect_type="odd")
    smooth = gaussian_filter1d(continued, TIMING_SMOOTHED_OVER)[width : width + len(passed)]
    pixels -= [_diagonal(shape) // 2 - n // 2 for n in shape]
    off_centre = spiral_curve(np.sqrt(np.maximum(smooth, 0)), shape, coverage) - pixels
    return np.asarray(pixels + np.clip(off_centre, -INSIDE_PIXEL_PX, INSIDE_PIXEL_PX))


def arc_positions(shape: tuple[int, int], coverage: float) -> NDArray[np.float64]:
    """Return positions one pixel apart along the curve, overscan included, (n, 2)."""
    k = 1 / (2 * math.pi * coverage)
    theta_max = _diagonal(shape) / 2 / k
    length = np.arange(0, float(_arc_length(np.array(theta_max))) * k) / k
    theta = np.sqrt(2 * length)  # Newton's method from here: far too long near the centre, exact far out
    for _ in range(6):
        theta -= (_arc_length(theta) - length) / np.hypot(1, theta)
    return spiral_curve(theta, shape, coverage)


def spiral_vertices(shape: tuple[int, int], coverage: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the published polyline on a canvas as wide as the field's diagonal, (n, 2) int (row, col), and its angles.

    10,000 vertices equispaced in angle at 512 pixels; larger fields take more, so that chords stay as short.
    """
    radius = _diagonal(shape) / 2
    k = 1 / (2 * math.pi * coverage)
    theta_max = radius / k
    n = math.ceil(PUBLISHED_SAMPLES * max(1.0, max(shape) / PUBLISHED_EDGE_PX) ** 2)
    # in this order of operations: i * theta_max / n is one pixel off at 1/36
    theta = np.arange(n, dtype=np.float64) * (theta_max / n)
    r = k * theta
    x, y = r * np.cos(theta) + radius, r * np.sin(theta) + radius
    return np.stack([y, x], axis=1).astype(np.int64), theta


def polyline_pixels(
    vertices: NDArray[np.int64], passed: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the pixels of 1-px lines between consecutive vertices, in order, (m, 2) int, and when each is passed.

    Bresenham with initial error 2 minor - major, stepping the minor axis when the error is >= 0: the minor
    coordinate after j major steps is floor((2 j minor + major) / (2 major)), all segments at once.

    Parameters
    ----------
    vertices : (n, 2) int ndarray
        (row, col).
    passed : (n,) float ndarray
        A quantity known at the vertices, such as the angle; interpolated along the segments.
    """
    delta = np.diff(vertices, axis=0)
    size = np.abs(delta)
    major = size.max(axis=1)
    segment = np.repeat(np.arange(len(delta)), major)
    ends = np.cumsum(major)
    step = np.arange(len(segment)) - np.repeat(ends - major, major) + 1
    # the major axis moves one pixel every step: its own formula gives exactly j
    moved = (2 * step[:, None] * size[segment] + major[segment, None]) // (2 * major[segment, None])
    pixels = np.concatenate([vertices[:1], vertices[segment] + np.sign(delta[segment]) * moved])
    between = passed[segment] + np.diff(passed)[segment] * (step / major[segment])
    return pixels, np.concatenate([passed[:1], between])


def first_visits(pixels: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the indices of the pixels that were not visited before, in order."""
    flat = pixels[:, 0] * (int(pixels[:, 1].max()) + 1) + pixels[:, 1]
    index = np.arange(len(flat))
    first = np.empty(int(flat.max()) + 1, np.intp)
    first[flat[::-1]] = index[::-1]  # of several writes to one place the last one stays
    return np.flatnonzero(first[flat] == index)


def blurred_mask(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the published mask of short dwell times: [1/4, 1/2, 1/4] along both axes, (rows, cols) 0 to 1.

    The value is the share of the signal in the published, non-physical noise model of the partial-STEM paper.
    """
    kernel = [0.25, 0.5, 0.25]
    blurred: NDArray[np.float64] = convolve1d(
        convolve1d(mask.astype(float), kernel, 0, mode="mirror"), kernel, 1, mode="mirror"
    )
    return blurred


def _diagonal(shape: tuple[int, int]) -> int:
    return math.ceil(math.hypot(*shape))


def _arc_length(theta: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the length of the spiral r = theta from its centre."""
    return (theta * np.hypot(1, theta) + np.arcsinh(theta)) / 2
