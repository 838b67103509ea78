"""Infill maps: for every pixel, which measured pixels it is made of and with what weights (imports scipy).

A map depends on the mask alone, so it is computed once for a path, off the hot path; a frame then costs a few `take`s.
On a lattice it is simpler: see `lattice_infill`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import Delaunay, QhullError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MAX_BOX_BATCH = 1 << 21
"""Pixels of bounding boxes looked at in one go: bounds the memory of building a map."""

NEED_LINEAR = frozenset({"linear", "cubic"})
"""Channels that linear infill makes, or stands in for."""


class Infill(Protocol):
    """Fills a picture from its measured pixels."""

    @property
    def visited(self) -> NDArray[np.intp]:
        """(v,) flat indices of the measured pixels, ascending."""
        ...

    def apply(self, measured: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (channels, rows, cols) made of (channels, v) measured values."""
        ...


@dataclass(frozen=True, slots=True)
class PathMaps:
    """What the infill of one mask needs.

    Parameters
    ----------
    nearest : Infill
        Every pixel takes the nearest measured value.
    distance : (rows, cols) float32 ndarray
        To that pixel [pixel].
    linear : Infill or None
        None while it is being computed, or if it could not be.
    spline : Infill or None
        Cubic, on evenly spaced lattices alone.
    """

    nearest: Infill
    distance: NDArray[np.float32]
    linear: Infill | None
    spline: Infill | None = None

    def infill(self, name: str) -> Infill | None:
        """Return the infill of a channel's name, the next best where there is none; None if it is no infill's."""
        if name in NEED_LINEAR:
            return (self.spline if name == "cubic" else None) or self.linear or self.nearest
        return self.nearest if name == "nearest" else None


@dataclass(frozen=True, slots=True)
class InfillMap:
    """A weighted sum of measured pixels for every pixel.

    Parameters
    ----------
    visited : (v,) intp ndarray
        Flat indices of the measured pixels.
    sources : (k, rows * cols) intp ndarray
        Positions in `visited`.
    weights : (k, rows * cols) float32 ndarray or None
        Sum to 1 for every pixel; None = one source of weight 1.
    shape : (rows, cols)
        Of the picture.
    """

    visited: NDArray[np.intp]
    sources: NDArray[np.intp]
    weights: NDArray[np.float32] | None
    shape: tuple[int, int]

    def apply(self, measured: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (channels, rows, cols) made of (channels, v) measured values."""
        out = np.empty((len(measured), self.sources.shape[1]), np.float32)
        part = np.empty(self.sources.shape[1], np.float32)
        for values, image in zip(measured, out, strict=True):
            np.take(values, self.sources[0], out=image, mode="clip")
            if self.weights is not None:
                image *= self.weights[0]
                for source, weight in zip(self.sources[1:], self.weights[1:], strict=True):
                    np.take(values, source, out=part, mode="clip")
                    part *= weight
                    image += part
        return out.reshape(len(measured), *self.shape)


def nearest_map(mask: NDArray[np.bool_]) -> tuple[InfillMap, NDArray[np.float32]]:
    """Return the map of each pixel to its nearest measured one, and that distance [pixel].

    Exact Euclidean distance transform.

    Raises
    ------
    ValueError
        If nothing is measured.
    """
    if not mask.any():
        raise ValueError("nothing is measured: expected at least one True in the mask")
    distance, nearest = distance_transform_edt(~mask, return_indices=True)
    visited = np.flatnonzero(mask)
    rank = np.zeros(mask.size, np.intp)
    rank[visited] = np.arange(len(visited))
    flat = nearest[0].astype(np.intp) * mask.shape[1] + nearest[1]
    sources = rank[flat.reshape(1, -1)]
    return InfillMap(visited, sources, None, (mask.shape[0], mask.shape[1])), distance.astype(np.float32)


def linear_map(mask: NDArray[np.bool_], nearest: InfillMap) -> InfillMap:
    """Return the piecewise linear map over the Delaunay triangles of the measured pixels.

    Every triangle writes the pixels of its own bounding box that lie in it, all boxes of a kind at once. Pixels
    outside the convex hull take the nearest measured value; where the measured pixels make no triangle all do. Where
    everything is measured there is nothing to fill.

    Parameters
    ----------
    mask : (rows, cols) bool ndarray
        True = measured.
    nearest : InfillMap
        Of the same mask.

    References
    ----------
    Barycentric interpolation as in scipy.interpolate.LinearNDInterpolator, with which it agrees.
    """
    if mask.all():
        return nearest
    points = np.argwhere(mask)
    sources = np.repeat(nearest.sources, 3, axis=0)
    weights = np.zeros((3, mask.size), np.float32)
    weights[0] = 1
    try:
        triangles = Delaunay(points).simplices.astype(np.intp)
    except (QhullError, ValueError):  # fewer than three points, or all on one line
        return nearest
    for triangle, flat, barycentric in _pixels_of_triangles(points, triangles, mask.shape[1]):
        sources[:, flat] = triangles[triangle].T
        weights[:, flat] = barycentric
    visited = nearest.visited
    sources[:, visited] = np.arange(len(visited))
    weights[:, visited] = np.array([[1], [0], [0]], np.float32)
    return InfillMap(visited, sources, weights, nearest.shape)


def _pixels_of_triangles(
    points: NDArray[np.intp], triangles: NDArray[np.intp], n_cols: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]]:
    """Yield (triangle, flat pixel, barycentric weights (3, m)) for batches of triangles of the same box size."""
    corners = points[triangles]  # (t, 3, 2)
    low = corners.min(axis=1)
    size = corners.max(axis=1) - low + 1
    # boxes are rounded up to a few sizes, so that a few hundred batches cover all triangles
    bucket = _rounded_up(size)
    for box in np.unique(bucket, axis=0):
        members = np.flatnonzero((bucket == box).all(axis=1))
        offsets = np.indices(box).reshape(2, -1).T
        step = max(1, MAX_BOX_BATCH // len(offsets))
        for i in range(0, len(members), step):
            yield _pixels_inside(members[i : i + step], corners, low, offsets, n_cols)


def _pixels_inside(
    members: NDArray[np.intp],
    corners: NDArray[np.intp],
    low: NDArray[np.intp],
    offsets: NDArray[np.intp],
    n_cols: int,
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    origin = corners[members, 2].astype(np.float64)
    (a, b), (c, d) = ((corners[members, i] - origin).T for i in (0, 1))
    area = a * d - b * c
    row, col = (low[members][:, None] + offsets - origin[:, None]).transpose(2, 0, 1)  # (m, pixels of the box)
    with np.errstate(divide="ignore", invalid="ignore"):
        first = (row * d[:, None] - col * c[:, None]) / area[:, None]
        second = (col * a[:, None] - row * b[:, None]) / area[:, None]
    third = 1 - first - second
    tolerance = -1e-9
    inside = (first >= tolerance) & (second >= tolerance) & (third >= tolerance)
    which, pixel = np.nonzero(inside)
    at = low[members[which]] + offsets[pixel]
    barycentric = np.stack([first[inside], second[inside], third[inside]]).astype(np.float32)
    return members[which], at[:, 0] * n_cols + at[:, 1], barycentric


def _rounded_up(size: NDArray[np.intp]) -> NDArray[np.intp]:
    """Round box edges up: exact to 8, then to steps of an eighth of their power of two."""
    step = 2 ** np.maximum(0, np.ceil(np.log2(size)).astype(np.intp) - 3)
    return np.asarray(-(-size // step) * step)
