"""Values between pixels (imports numpy only)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def bilinear(image: NDArray[np.float32], positions: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return an image between its pixels; outside, its mirror image.

    Parameters
    ----------
    image : (rows, cols) float32 ndarray
        Pixel (0, 0) has its centre at (0, 0).
    positions : (m, 2) floating ndarray
        (row, col) [pixel].

    Returns
    -------
    (m,) float32 ndarray
    """
    low = np.floor(positions).astype(np.intp)
    row_share, col_share = (positions - low).astype(np.float32).T
    n_rows, n_cols = image.shape
    rows = [mirrored(low[:, 0] + i, n_rows) * n_cols for i in (0, 1)]
    cols = [mirrored(low[:, 1] + i, n_cols) for i in (0, 1)]
    flat = image.reshape(-1)
    upper, lower = (_mix(flat.take(row + cols[0]), flat.take(row + cols[1]), col_share) for row in rows)
    return _mix(upper, lower, row_share)


def mirrored(index: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Return indices in range(n): what lies outside is mirrored at the edges."""
    if index.size and index.min() >= 0 and index.max() < n:
        return index
    index = index % (2 * n)
    return np.minimum(index, 2 * n - 1 - index)


def _mix(first: NDArray[np.float32], second: NDArray[np.float32], share: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(first + (second - first) * share)
