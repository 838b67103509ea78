"""Baselines: what the papers compare networks with and the live pipeline does not offer (numpy; scikit-image late)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Method = Literal["nearest", "area", "bilinear", "bicubic", "lanczos"]
Alignment = Literal["published", "aligned"]
Bits = Literal[8, 16, 32]

REACH: dict[Method, int] = {"bilinear": 1, "bicubic": 2, "lanczos": 4}
"""Samples taken on either side."""
CUBIC_A = -0.75
"""Slope of the published bicubic kernel, that of OpenCV."""


@dataclass(frozen=True)
class Comb:
    """The measured rows (or columns) of a lattice: every `spacing`-th from the first.

    Parameters
    ----------
    first, spacing, n : int
        First measured row, distance to the next one, number of them.
    length : int
        All rows there are.
    """

    first: int
    spacing: int
    n: int
    length: int

    @property
    def covered(self) -> slice:
        """Rows that an n times `spacing` enlargement of the samples has, laid on the field at the first sample."""
        return slice(self.first, min(self.first + self.n * self.spacing, self.length))

    def coordinates(self, alignment: Alignment) -> NDArray[np.float64]:
        """Return where among the samples each row lies, (rows,).

        Sample k was measured at row first + k spacing, so "aligned" is (row - first) / spacing. An image resize takes
        a sample for the mean of a block of rows that begins there: "published" is (j + 1/2) / spacing - 1/2 of row
        first + j, which draws everything (spacing - 1) / 2 rows too far down.
        """
        rows = np.arange(self.length) - self.first
        return rows / self.spacing if alignment == "aligned" else (rows + 0.5) / self.spacing - 0.5

    def weights(self, method: Method, alignment: Alignment) -> NDArray[np.float32]:
        """Return what each row is made of, (rows, n); the samples at either end are repeated beyond it."""
        x = self.coordinates(alignment)
        if method in ("nearest", "area"):  # enlarging by a whole number, OpenCV's area repeats samples, too
            taps = np.floor(x + 0.5).astype(np.intp)[:, None]
            shares = np.ones(taps.shape)
        else:
            reach = REACH[method]
            taps = np.floor(x).astype(np.intp)[:, None] + np.arange(1 - reach, reach + 1)
            shares = KERNELS[method](x[:, None] - taps)
            shares /= shares.sum(axis=1, keepdims=True)
        weights = np.zeros((self.length, self.n))
        np.add.at(weights, (np.arange(self.length)[:, None], np.clip(taps, 0, self.n - 1)), shares)
        return weights.astype(np.float32)


@dataclass(frozen=True)
class LatticeResize:
    """Enlarges the samples of a lattice to the whole field as image libraries do.

    "published" is what the comparison of DLSS-STEM (Ede 2019, arXiv:1910.10467, Table 2) did: a picture
    reduced by taking the first pixel of every block, enlarged by OpenCV's resize, which puts samples in the middle
    of their blocks. "aligned" puts them where they were measured.

    Parameters
    ----------
    rows, cols : Comb
        The lattice.
    """

    rows: Comb
    cols: Comb

    @cached_property
    def window(self) -> tuple[slice, slice]:
        """The part of the field that the published enlargement covers."""
        return self.rows.covered, self.cols.covered

    def apply(self, picture: NDArray[np.float32], method: Method, alignment: Alignment) -> NDArray[np.float32]:
        """Return (rows, cols) made of the measured pixels of a picture of that shape."""
        samples = picture[self.rows.first :: self.rows.spacing, self.cols.first :: self.cols.spacing]
        down, across = (comb.weights(method, alignment) for comb in (self.rows, self.cols))
        return np.asarray(down @ samples @ across.T)


def lattice_resize(mask: NDArray[np.bool_]) -> LatticeResize | None:
    """Return the resize of an evenly spaced lattice, None for any other mask."""
    combs = [_comb(np.asarray(mask.any(axis=axis))) for axis in (1, 0)]
    if combs[0] is None or combs[1] is None or np.count_nonzero(mask) != combs[0].n * combs[1].n:
        return None
    return LatticeResize(combs[0], combs[1])


def _comb(measured: NDArray[np.bool_]) -> Comb | None:
    at = np.flatnonzero(measured)
    gaps = np.unique(np.diff(at))
    return Comb(int(at[0]), int(gaps[0]), len(at), len(measured)) if len(gaps) == 1 else None


def _triangle(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.maximum(0, 1 - np.abs(t)))


def _cubic(t: NDArray[np.float64]) -> NDArray[np.float64]:
    t, a = np.abs(t), CUBIC_A
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = a * (((t - 5) * t + 8) * t - 4)
    return np.where(t < 1, near, np.where(t < 2, far, 0.0))


def _lanczos(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(t) < 4, np.sinc(t) * np.sinc(t / 4), 0.0)


KERNELS: dict[Method, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "bilinear": _triangle,
    "bicubic": _cubic,
    "lanczos": _lanczos,
}


def biharmonic(pictures: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return pictures, (n, rows, cols), whose unmeasured pixels solve the biharmonic equation between the others.

    One system of equations serves them all. It takes seconds for 256 x 256 pixels and grows faster than their number.
    """
    from skimage.restoration import inpaint_biharmonic

    sampled = np.moveaxis(pictures * mask, 0, -1)
    return np.ascontiguousarray(np.moveaxis(inpaint_biharmonic(sampled, ~mask, channel_axis=-1), -1, 0), np.float32)


def reduced_precision(values: NDArray[np.float32], measured: NDArray[np.bool_], bits: Bits) -> NDArray[np.float32]:
    """Return values as an input of fewer bits would have them; 8: whole numbers, 16: half precision.

    The measured range is spread over 0 to 255. (The published test of DLSS-STEM spread it over 0 to 256 and let the
    brightest value overflow to the darkest, so that its loss at 8 bits is too large.)

    Parameters
    ----------
    values : (channels, rows, cols) float32 ndarray
        0 where not measured.
    measured : (rows, cols) bool ndarray
        True = measured.
    bits : 8, 16 or 32
        Of each value.
    """
    if bits == 32:
        return values
    inside = values[:, measured]
    low, high = inside.min(), inside.max()
    scale = max(float(high - low), np.finfo(np.float32).tiny)
    unit = (inside - low) / scale
    coded = np.rint(255 * unit).astype(np.uint8) / np.float32(255) if bits == 8 else unit.astype(np.float16)
    out = np.zeros_like(values)
    out[:, measured] = coded.astype(np.float32) * scale + low
    return out
