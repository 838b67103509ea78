"""Metrics: how far a picture is from the truth, where, and whether its uncertainty says so (imports numpy only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

INTERVAL50, INTERVAL90 = 0.674, 1.645
"""Standard deviations within which 50 and 90 % of normally distributed errors lie."""
ROUNDING = 1e-6
"""Errors this small, of a range of 1, are float32 rounding: a measured pixel has no uncertainty and is right."""


def squared_errors(image: NDArray[np.float32], truth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the squared error of every pixel, (rows, cols)."""
    return np.asarray(np.square(image - truth))


def root_mean(mse: Sequence[float] | NDArray[np.floating]) -> float:
    """Return the root of the mean of pictures' mean squared errors: the RMS error of all their pixels.

    Examples
    --------
    >>> root_mean([1.0, 7.0])
    2.0
    """
    return float(np.sqrt(np.mean(mse)))


def root_std(mse: Sequence[float] | NDArray[np.floating]) -> float:
    """Return the root of the standard deviation of pictures' mean squared errors.

    The spread that DLSS-STEM (Ede 2019, arXiv:1910.10467) prints beside the root mean; it has the same unit.

    Examples
    --------
    >>> root_std([1.0, 9.0])
    2.0
    """
    return float(np.sqrt(np.std(mse)))


def shares_within(
    image: NDArray[np.float32],
    truth: NDArray[np.float32],
    deviation: NDArray[np.float32],
    multiples: Sequence[float],
) -> NDArray[np.float64]:
    """Return which share of the pixels is no further from the truth than so many standard deviations.

    Parameters
    ----------
    image, truth, deviation : (rows, cols) float32 ndarray
        In units of a range of about 1.
    multiples : sequence of float
        Of `deviation`.

    Returns
    -------
    (multiples,) float64 ndarray
        Shares, 0 to 1.

    Examples
    --------
    >>> zero, one = np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)
    >>> shares_within(np.float32([[0, 0.5], [1, 2]]), zero, one, [0.674, 1.645]).tolist()
    [0.5, 0.75]
    """
    distance = np.abs(image - truth)
    return np.array([np.mean(distance <= np.float32(m) * deviation + np.float32(ROUNDING)) for m in multiples])


@dataclass(frozen=True, slots=True)
class Profile:
    """RMS error by distance from something.

    Parameters
    ----------
    distance_px : tuple of int
        Where there are pixels.
    rms : tuple of float
        Of the pixels so far away.
    pixels : tuple of int
        How many there are.
    """

    distance_px: tuple[int, ...]
    rms: tuple[float, ...]
    pixels: tuple[int, ...]


def error_profile(mean_squared: NDArray[np.floating], distance_px: NDArray[np.floating | np.integer]) -> Profile:
    """Return the RMS error of the pixels at each distance from something.

    Parameters
    ----------
    mean_squared : (rows, cols) ndarray
        Mean squared error of every pixel.
    distance_px : (rows, cols) ndarray
        Taken to the nearest whole pixel.

    Examples
    --------
    >>> error_profile(np.array([[1.0, 7.0, 9.0]]), np.array([[0.2, 0.0, 3.0]]))
    Profile(distance_px=(0, 3), rms=(2.0, 3.0), pixels=(2, 1))
    """
    whole = np.rint(distance_px).astype(np.intp).ravel()
    pixels = np.bincount(whole)
    sums = np.bincount(whole, mean_squared.ravel())
    there = np.flatnonzero(pixels)
    rms = np.sqrt(sums[there] / pixels[there])
    return Profile(tuple(there.tolist()), tuple(rms.tolist()), tuple(pixels[there].tolist()))


def edge_distance(shape: tuple[int, int]) -> NDArray[np.intp]:
    """Return how many pixels lie between each pixel and the nearest edge of the picture, (rows, cols).

    Examples
    --------
    >>> edge_distance((3, 4)).tolist()
    [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    rows, cols = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in shape)
    return np.minimum.outer(rows, cols)
