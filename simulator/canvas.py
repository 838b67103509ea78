"""Canvas: the pixels of a grid in nanometres and what is painted on all of them at once (imports numpy only)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

RESOLVED_PX = 3.0
"""Periods below this many pixels are left out, those up to half as long again are faded in."""

FWHM = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian, in standard deviations."""

DEPOSIT_VARIANCE = 0.25
"""Of a peak spread over 3 x 3 pixels by the quadratic B-spline, wherever in its pixel it lies [pixel^2]."""

WIDE_PX = 3.0
"""Peaks of a larger standard deviation are few: they are drawn as outer products instead of being deposited."""

CHUNK = 512
"""Peaks drawn by one matrix product."""


class Canvas:
    """The pixels of a grid in nanometres.

    Parameters
    ----------
    grid : ScanGrid
        What is painted on.

    Attributes
    ----------
    row_nm, col_nm : (rows, 1) and (1, cols) float32 ndarray
        Centres of the pixels from the corner of the field [nm].
    edge_nm : float
        Edge of the square as large as the field [nm].

    Examples
    --------
    >>> from lowdose.scan_patterns import ScanGrid
    >>> Canvas(ScanGrid((2, 3), pixel_size_nm=0.5)).col_nm
    array([[0.25, 0.75, 1.25]], dtype=float32)
    """

    def __init__(self, grid: ScanGrid) -> None:
        self.shape, self.pixel_nm, self.fov_nm = grid.shape, grid.pixel_size_nm, grid.fov_nm
        row, col = (((np.arange(n) + 0.5) * self.pixel_nm).astype(np.float32) for n in grid.shape)
        self.row_nm, self.col_nm = row[:, None], col[None, :]
        self.edge_nm = math.sqrt(math.prod(self.fov_nm))

    def resolved(self, period_nm: float) -> float:
        """Return how much of a periodic detail to draw: 0 below RESOLVED_PX, 1 from half as much again."""
        return min(1.0, max(0.0, 2 * (period_nm / self.pixel_nm / RESOLVED_PX - 1)))

    def waves(self, wavelengths_nm: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
        """Return a smooth random field of about unit variance: plane waves of random direction and phase.

        A plane wave is made of outer products, so that all of them are one matrix product.
        """
        n = len(wavelengths_nm)
        angle, phase = rng.uniform(0, 2 * math.pi, (2, n))
        k = 2 * math.pi / wavelengths_nm
        by_row = (self.row_nm * (k * np.sin(angle)) + phase).astype(np.float32)
        by_col = (self.col_nm.T * (k * np.cos(angle))).astype(np.float32)
        along_rows = np.concatenate([np.cos(by_row), -np.sin(by_row)], axis=1)
        along_cols = np.concatenate([np.cos(by_col), np.sin(by_col)], axis=1)
        along_rows *= np.float32(math.sqrt(2 / n))
        return np.asarray(along_rows @ along_cols.T)

    def ramp(self, distance_nm: NDArray[np.float32], width_nm: float) -> NDArray[np.float32]:
        """Return a step from 0 to 1 where a distance becomes positive, at least two pixels wide."""
        width = np.float32(max(width_nm, 2 * self.pixel_nm))
        return np.asarray(np.clip(distance_nm / width + np.float32(0.5), 0, 1))

    def patch(
        self, centre_nm: tuple[float, float], reach_nm: float
    ) -> tuple[tuple[slice, slice], NDArray[np.float32], NDArray[np.float32]]:
        """Return where a square is on the canvas, and its pixels' coordinates from its centre.

        Parameters
        ----------
        centre_nm : (row, col)
            Centre of the square [nm].
        reach_nm : float
            Half its edge [nm].

        Returns
        -------
        index : pair of slice
            Empty where the square is off the field.
        row, col : (n, 1) and (1, m) float32 ndarray
            [nm].
        """
        rows = _within(self.row_nm[:, 0], centre_nm[0], reach_nm)
        cols = _within(self.col_nm[0], centre_nm[1], reach_nm)
        row = self.row_nm[rows] - np.float32(centre_nm[0])
        return (rows, cols), row, self.col_nm[:, cols] - np.float32(centre_nm[1])

    def sample(self, image: NDArray[np.float32], positions_nm: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the pixels of an image nearest to positions (n, 2) [nm], those outside the field at its rim."""
        last = np.array(self.shape) - 1
        row, col = np.clip(np.rint(positions_nm / self.pixel_nm - 0.5), 0, last).astype(np.intp).T
        return np.asarray(image[row, col])

    def peaks(
        self, positions_nm: NDArray[np.float64], heights: NDArray[np.float64], sigma_nm: float
    ) -> NDArray[np.float32]:
        """Return the sum of Gaussian peaks.

        Every peak is widened by half a pixel and keeps its integral, so that none aliases.

        Parameters
        ----------
        positions_nm : (n, 2) float ndarray
            (row, col) from the corner of the field [nm].
        heights : (n,) float ndarray
            Of a peak much wider than a pixel.
        sigma_nm : float
            Standard deviation [nm], > 0.

        Returns
        -------
        (rows, cols) float32 ndarray
        """
        sigma = sigma_nm / self.pixel_nm
        pixels = positions_nm / self.pixel_nm - 0.5
        if sigma > WIDE_PX:
            lowered = heights * sigma**2 / (sigma**2 + DEPOSIT_VARIANCE)
            return _outer_products(self.shape, pixels, lowered, math.sqrt(sigma**2 + DEPOSIT_VARIANCE))
        deposited = _deposit(self.shape, pixels, heights * (2 * math.pi * sigma**2))
        return blur(deposited, sigma)


def blur(image: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Return the image under a Gaussian, mirrored at its edges; sums of shifted images are faster than a filter."""
    reach = math.ceil(3.5 * sigma_px)
    kernel = np.exp(-0.5 * (np.arange(reach + 1) / max(sigma_px, 1e-9)) ** 2)
    kernel = (kernel / (2 * kernel.sum() - 1)).astype(np.float32)
    return _blur_cols(_blur_rows(image, kernel), kernel)


def _blur_rows(image: NDArray[np.float32], kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    n, reach = len(image), len(kernel) - 1
    padded = np.pad(image, ((reach, reach), (0, 0)), mode="symmetric")
    blurred: NDArray[np.float32] = kernel[0] * padded[reach : reach + n]
    pair = np.empty_like(blurred)
    for i in range(1, reach + 1):
        np.add(padded[reach - i : reach - i + n], padded[reach + i : reach + i + n], out=pair)
        pair *= kernel[i]
        blurred += pair
    return blurred


def _blur_cols(image: NDArray[np.float32], kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    n, reach = image.shape[1], len(kernel) - 1
    padded = np.pad(image, ((0, 0), (reach, reach)), mode="symmetric")
    blurred: NDArray[np.float32] = kernel[0] * padded[:, reach : reach + n]
    pair = np.empty_like(blurred)
    for i in range(1, reach + 1):
        np.add(padded[:, reach - i : reach - i + n], padded[:, reach + i : reach + i + n], out=pair)
        pair *= kernel[i]
        blurred += pair
    return blurred


def _outer_products(
    shape: tuple[int, int], pixels: NDArray[np.float64], heights: NDArray[np.float64], sigma: float
) -> NDArray[np.float32]:
    image = np.zeros(shape, np.float32)
    for first in range(0, len(pixels), CHUNK):
        at, height = pixels[first : first + CHUNK], heights[first : first + CHUNK]
        by_row, by_col = (
            ((np.arange(n)[:, None] - x) / (sigma * math.sqrt(2))).astype(np.float32)
            for n, x in zip(shape, at.T, strict=True)
        )
        image += (np.exp(-(by_row**2)) * height.astype(np.float32)) @ np.exp(-(by_col**2)).T
    return image


def _deposit(shape: tuple[int, int], pixels: NDArray[np.float64], amounts: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return every amount spread over the 3 x 3 pixels around it by the quadratic B-spline."""
    inside = ((pixels > -1.5) & (pixels < np.array(shape) + 0.5)).all(axis=1)
    row, col = np.ascontiguousarray(pixels[inside].T)
    near_row, near_col = np.rint(row), np.rint(col)
    by_row, by_col = _spline(row - near_row) * amounts[inside], _spline(col - near_col)
    padded_cols = shape[1] + 4
    corner = ((near_row + 1) * padded_cols + near_col + 1).astype(np.intp)
    deposited = np.zeros((shape[0] + 4) * padded_cols)
    for i in range(3):
        at = corner + (i * padded_cols + np.arange(3)[:, None])
        deposited += np.bincount(at.ravel(), (by_row[i] * by_col).ravel(), minlength=len(deposited))
    return deposited.reshape(-1, padded_cols)[2:-2, 2:-2].astype(np.float32)


def _spline(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of the pixels before, at and after a point near the middle one, (3, n)."""
    return np.stack([(0.5 - offset) ** 2 / 2, 0.75 - offset**2, (0.5 + offset) ** 2 / 2])


def _within(x_nm: NDArray[np.float32], centre: float, reach: float) -> slice:
    first, end = np.searchsorted(x_nm, [centre - reach, centre + reach])
    return slice(int(first), int(end))
