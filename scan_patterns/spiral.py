"""Spiral: Archimedes spiral as published for partial STEM (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lowdose.scan_patterns.path import ScanPath
from lowdose.scan_patterns.pattern import require_coverage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

PUBLISHED_SAMPLES = 10_000
PUBLISHED_EDGE_PX = 512


@dataclass(frozen=True, slots=True)
class Spiral:
    """Archimedes spiral from the centre to the corners, drawn at constant angular velocity.

    Source: J. M. Ede and R. Beanland, "Partial scanning transmission electron microscopy with deep learning",
    Sci. Rep. 10, 8332 (2020), doi:10.1038/s41598-020-65261-0, and its public code.

    Parameters
    ----------
    coverage : float
        Published nominal: neighbouring turns are 1 / coverage pixels apart. The share of pixels visited is about
        0.9 of it, since an 8-connected line takes 0.9 pixels per unit length.
    overscan : "clip" or "keep"
        A spiral that reaches the corners spends 37 % of its length outside the field. "clip" leaves that out,
        the beam jumping from where it leaves to where it comes back; "keep" scans and pays for it.
    """

    coverage: float = 1 / 20
    overscan: Literal["clip", "keep"] = "clip"

    def __post_init__(self) -> None:
        require_coverage(self.coverage)
        if self.overscan not in ("clip", "keep"):
            raise ValueError(f"overscan must be 'clip' or 'keep', got {self.overscan!r}")

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return one path over the spiral's pixels, each visited once, from the centre outwards."""
        pixels = first_visits(polyline_pixels(spiral_vertices(grid.shape, self.coverage)))
        diagonal = math.ceil(math.hypot(*grid.shape))
        pixels -= [diagonal // 2 - n // 2 for n in grid.shape]
        if self.overscan == "clip":
            pixels = pixels[((pixels >= 0) & (pixels < grid.shape)).all(axis=1)]
        steps = np.abs(np.diff(pixels, axis=0)).max(axis=1)
        return (ScanPath(grid, pixels, dwell_time_us, jumps=np.concatenate([[False], steps > 1])),)


def spiral_vertices(shape: tuple[int, int], coverage: float) -> NDArray[np.int64]:
    """Return the published polyline on a canvas as wide as the field's diagonal, (n, 2) int (row, col).

    10,000 vertices equispaced in angle at 512 pixels; larger fields take more, so that chords stay as short.
    """
    diagonal = math.ceil(math.hypot(*shape))
    radius = diagonal / 2
    k = 1 / (2 * math.pi * coverage)
    theta_max = radius / k
    n = math.ceil(PUBLISHED_SAMPLES * max(1.0, max(shape) / PUBLISHED_EDGE_PX) ** 2)
    theta = np.arange(n) * (theta_max / n)  # this order of operations: i * theta_max / n is one pixel off at 1/36
    r = k * theta
    x, y = r * np.cos(theta) + radius, r * np.sin(theta) + radius
    return np.stack([y, x], axis=1).astype(np.int64)


def polyline_pixels(vertices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pixels of 1-px lines between consecutive vertices, in order, (m, 2) int.

    Bresenham with initial error 2 minor - major, stepping the minor axis when the error is >= 0: the minor
    coordinate after j major steps is floor((2 j minor + major) / (2 major)), all segments at once.
    """
    delta = np.diff(vertices, axis=0)
    size = np.abs(delta)
    major = size.max(axis=1)
    segment = np.repeat(np.arange(len(delta)), major)
    ends = np.cumsum(major)
    step = np.arange(len(segment)) - np.repeat(ends - major, major) + 1
    # the major axis moves one pixel every step: its own formula gives exactly j
    moved = (2 * step[:, None] * size[segment] + major[segment, None]) // (2 * major[segment, None])
    return np.concatenate([vertices[:1], vertices[segment] + np.sign(delta[segment]) * moved])


def first_visits(pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pixels without later repeats, order kept."""
    flat = pixels[:, 0] * (pixels[:, 1].max() + 1) + pixels[:, 1]
    _, first = np.unique(flat, return_index=True)
    return pixels[np.sort(first)]
