"""ScanGrid: the pixels a scan is laid out on (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowdose.scan_patterns.checks import require_positive

MAX_EDGE = 16_384
"""Largest edge accepted [pixel]: the address range of a 14-bit scan controller."""

MIN_PIXEL_NM, MAX_PIXEL_NM = 1e-6, 1e6


@dataclass(frozen=True, slots=True)
class ScanGrid:
    """The field of view as a grid of pixels; row is the slow axis, column the fast one.

    Parameters
    ----------
    shape : (rows, cols)
        Number of pixels along each axis, 1 to 16,384.
    pixel_size_nm : float
        Edge of a pixel [nm].
    rotation_deg : float
        Rotation of the fast axis against the specimen's x axis [degree].

    Examples
    --------
    >>> ScanGrid((512, 512), pixel_size_nm=0.05).fov_nm
    (25.6, 25.6)
    """

    shape: tuple[int, int]
    pixel_size_nm: float = 0.05
    rotation_deg: float = 0.0

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or not all(isinstance(n, int) and 1 <= n <= MAX_EDGE for n in self.shape):
            raise ValueError(f"grid shape must be (rows, cols), each 1 to {MAX_EDGE}, got {self.shape}")
        require_positive(pixel_size_nm=self.pixel_size_nm)
        if not MIN_PIXEL_NM <= self.pixel_size_nm <= MAX_PIXEL_NM:
            raise ValueError(f"pixel_size_nm must be {MIN_PIXEL_NM:g} to {MAX_PIXEL_NM:g}, got {self.pixel_size_nm:g}")
        if not math.isfinite(self.rotation_deg):
            raise ValueError(f"rotation_deg must be finite, got {self.rotation_deg}")

    @property
    def rows(self) -> int:
        """Pixels along the slow axis."""
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Pixels along the fast axis."""
        return self.shape[1]

    @property
    def n_pixels(self) -> int:
        """All pixels of the field."""
        return self.shape[0] * self.shape[1]

    @property
    def fov_nm(self) -> tuple[float, float]:
        """Field of view (slow, fast) [nm]."""
        return self.rows * self.pixel_size_nm, self.cols * self.pixel_size_nm

    @property
    def pixel_area_a2(self) -> float:
        """Area of one pixel [Å^2]."""
        return (10 * self.pixel_size_nm) ** 2

    @property
    def area_a2(self) -> float:
        """Area of the whole field [Å^2]."""
        return self.n_pixels * self.pixel_area_a2
