"""Infill on a lattice: where every crossing of some rows and columns is measured, one axis at a time (imports scipy).

Needs no distance transform, no triangles and no map as large as the picture: a few numbers for every row and column,
which the paths of an interlaced cycle share but for their offset. They are made anew for every frame and not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import spline_filter
from scipy.sparse import csr_array

from lowdose.reconstruction.infill import PathMaps

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_GAPS = 3
"""Between the measured rows (or columns) that a cubic spline goes through."""


@dataclass(frozen=True)
class LatticeAxis:
    """The rows (or columns) of a picture, of which some are measured.

    Parameters
    ----------
    measured : (m,) intp ndarray
        Those measured, ascending, at least one.
    n_pixels : int
        All there are.
    """

    measured: NDArray[np.intp]
    n_pixels: int

    @cached_property
    def nearest(self) -> NDArray[np.intp]:
        """(n_pixels,) position in `measured` of the nearest one; of two equally near the first."""
        middles = (self.measured[1:] + self.measured[:-1]) / 2
        return np.searchsorted(middles, np.arange(self.n_pixels))

    @cached_property
    def squared_distance(self) -> NDArray[np.float32]:
        """(n_pixels,) to the nearest one [pixel^2]."""
        away = (np.arange(self.n_pixels) - self.measured[self.nearest]).astype(np.float32)
        return away * away

    @cached_property
    def inside(self) -> slice:
        """From the first measured to the last."""
        return slice(int(self.measured[0]), int(self.measured[-1]) + 1)

    @cached_property
    def weights(self) -> csr_array:
        """(pixels inside, m) float32 matrix of linear interpolation, two entries a row that sum to 1."""
        pixels = np.arange(self.inside.start, self.inside.stop)
        right = np.searchsorted(self.measured, pixels)  # the measured one itself, or the next
        left = np.maximum(right - 1, 0)
        gap = np.maximum(self.measured[right] - self.measured[left], 1)
        share = ((self.measured[right] - pixels) / gap).astype(np.float32)  # of the left one
        data, columns = np.stack([share, 1 - share], axis=1), np.stack([left, right], axis=1)
        starts = np.arange(0, data.size + 1, 2)
        return csr_array((data.ravel(), columns.ravel(), starts), shape=(len(pixels), len(self.measured)))

    @cached_property
    def is_even(self) -> bool:
        """Whether there are enough measured ones for a cubic spline, all equally far from each other."""
        gaps = np.diff(self.measured)
        return len(gaps) >= LEAST_GAPS and bool((gaps == gaps[0]).all())

    @cached_property
    def spline_weights(self) -> csr_array:
        """(pixels inside, m) float32 matrix of cubic B-splines, four entries a row that sum to 1; if `is_even`."""
        n, gap = len(self.measured), int(self.measured[1] - self.measured[0])
        left, t = np.divmod(np.arange(self.inside.stop - self.inside.start), gap)
        left, t = np.minimum(left, n - 2), np.where(left > n - 2, 1.0, t / gap)
        taps = np.stack([(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3], axis=1) / 6
        columns = np.abs(left[:, None] + np.arange(-1, 3))
        columns = np.minimum(columns, 2 * (n - 1) - columns)  # mirrored at the ends
        starts = np.arange(0, columns.size + 1, 4)
        return csr_array((taps.ravel().astype(np.float32), columns.ravel(), starts), shape=(len(left), n))


@dataclass(frozen=True)
class NearestOnLattice:
    """Every pixel takes the nearest measured value: where the nearest row and the nearest column cross."""

    rows: LatticeAxis
    cols: LatticeAxis

    @cached_property
    def visited(self) -> NDArray[np.intp]:
        """(v,) flat indices of the measured pixels, ascending."""
        return (self.rows.measured[:, None] * self.cols.n_pixels + self.cols.measured).ravel()

    def crossings(self, measured: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (channels, v) measured values as (channels, measured rows, measured columns)."""
        return measured.reshape(-1, len(self.rows.measured), len(self.cols.measured))

    def apply(self, measured: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (channels, rows, cols) made of (channels, v) measured values."""
        return self.crossings(measured).take(self.cols.nearest, axis=2).take(self.rows.nearest, axis=1)

    def distance(self) -> NDArray[np.float32]:
        """Return (rows, cols) distances to the nearest measured pixel [pixel]."""
        squared = np.add.outer(self.rows.squared_distance, self.cols.squared_distance)
        return np.sqrt(squared, out=squared)


@dataclass(frozen=True)
class _BetweenOnLattice:
    """Something between the measured pixels around, one axis at a time; outside their convex hull the nearest value.

    Parameters
    ----------
    nearest : NearestOnLattice
        Of the same lattice.
    """

    nearest: NearestOnLattice

    @property
    def visited(self) -> NDArray[np.intp]:
        """(v,) flat indices of the measured pixels, ascending."""
        return self.nearest.visited

    def apply(self, measured: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (channels, rows, cols) made of (channels, v) measured values."""
        rows, cols = self.nearest.rows, self.nearest.cols
        out = self.nearest.apply(measured)
        for values, image in zip(self.nearest.crossings(measured), out, strict=True):
            image[rows.inside, cols.inside] = self._between(values)
        return out

    def _between(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the pixels inside made of (measured rows, measured columns)."""
        raise NotImplementedError


class LinearOnLattice(_BetweenOnLattice):
    """Bilinear between the four measured pixels around.

    The corners of a lattice cell lie on one circle, so that Delaunay's triangles are not unique: either diagonal would
    do. Bilinear prefers neither, agrees with both on the lattice's lines and on planes, and is two sparse products.
    """

    def _between(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.nearest.rows.weights @ (self.nearest.cols.weights @ values.T).T)


class SplineOnLattice(_BetweenOnLattice):
    """A bicubic spline through the measured values of an evenly spaced lattice.

    It follows lattices of atoms up to the sampling limit, which linear interpolation flattens, and makes noise larger.
    """

    def _between(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        coefficients = spline_filter(values, order=3, output=np.float32, mode="mirror")
        return np.asarray(self.nearest.rows.spline_weights @ (self.nearest.cols.spline_weights @ coefficients.T).T)


def lattice_maps(mask: NDArray[np.bool_]) -> PathMaps | None:
    """Return the maps of a mask that is True at every crossing of some rows and columns, else None.

    The rows need not be equally spaced, nor the columns: a lattice that lost whole lines is one still.

    Examples
    --------
    >>> maps = lattice_maps(np.array([[True, False, True]]))
    >>> maps.linear.apply(np.array([[2, 4]], np.float32)).tolist()
    [[[2.0, 3.0, 4.0]]]
    """
    rows, cols = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    crossings = len(rows) * len(cols)
    if crossings == 0 or np.count_nonzero(mask) < crossings:
        return None
    n_rows, n_cols = mask.shape
    if crossings == n_rows * n_cols:
        return everywhere_measured((n_rows, n_cols))
    nearest = NearestOnLattice(LatticeAxis(rows, n_rows), LatticeAxis(cols, n_cols))
    spline = SplineOnLattice(nearest) if nearest.rows.is_even and nearest.cols.is_even else None
    return PathMaps(nearest, nearest.distance(), LinearOnLattice(nearest), spline)


@lru_cache(maxsize=4)  # every raster frame and every further stage asks for the same one
def everywhere_measured(shape: tuple[int, int]) -> PathMaps:
    """Return the maps of a picture in which there is nothing to fill."""
    identity = NearestOnLattice(*(LatticeAxis(np.arange(n), n) for n in shape))
    return PathMaps(identity, np.zeros(shape, np.float32), identity)
