"""Invertible normalisation of one frame, from its measured values alone and without memory (imports numpy only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import Rule

MIN_SCALE = 1e-6
"""Values that differ by less count as equal [counts]."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """normalised = (counts - offset) / scale, channel by channel.

    Parameters
    ----------
    offset, scale : (channels,) float32 ndarray
        [counts]; scale > 0.
    """

    offset: NDArray[np.float32]
    scale: NDArray[np.float32]

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (channels, …) counts normalised."""
        return (values - self._as(self.offset, values)) / self._as(self.scale, values)

    def undo(self, normalised: NDArray[np.float32], *, out: NDArray[np.float32]) -> None:
        """Write (channels, …) normalised values back in counts into `out`, which may be the same array."""
        np.multiply(normalised, self._as(self.scale, normalised), out=out)
        np.add(out, self._as(self.offset, normalised), out=out)

    def undo_deviation(self, normalised: NDArray[np.float32], *, out: NDArray[np.float32]) -> None:
        """Write (channels, …) standard deviations back in counts into `out`."""
        np.multiply(normalised, self._as(self.scale, normalised), out=out)

    @staticmethod
    def _as(numbers: NDArray[np.float32], like: NDArray[np.float32]) -> NDArray[np.float32]:
        return numbers.reshape(-1, *(1,) * (like.ndim - 1))


def normalisation_of(measured: NDArray[np.float32], rule: Rule) -> Normalisation:
    """Return the normalisation of measured values, (channels, v), by the rule an engine was trained with."""
    return (mean_and_deviation if rule == "mean_std" else min_max)(measured)


def mean_and_deviation(measured: NDArray[np.float32]) -> Normalisation:
    """Return the normalisation that gives the measured values mean 0 and standard deviation 1.

    Parameters
    ----------
    measured : (channels, v) float32 ndarray
        The measured values alone. Equal ones (or none) get scale 1.

    Examples
    --------
    >>> import numpy as np
    >>> n = mean_and_deviation(np.float32([[1, 3], [5, 5]]))
    >>> n.offset.tolist(), n.scale.tolist()
    ([2.0, 5.0], [1.0, 1.0])
    """
    if measured.shape[1] == 0:
        return _unchanged(len(measured))
    return Normalisation(measured.mean(axis=1, dtype=np.float32), _usable(measured.std(axis=1, dtype=np.float32)))


def min_max(measured: NDArray[np.float32]) -> Normalisation:
    """Return the normalisation that makes the smallest measured value -1 and the largest 1.

    Parameters
    ----------
    measured : (channels, v) float32 ndarray
        The measured values alone. Equal ones (or none) get scale 1.

    References
    ----------
    The rule of the one-stage network of J. M. Ede, arXiv:1910.10467, which needs nothing that was not measured.

    Examples
    --------
    >>> import numpy as np
    >>> n = min_max(np.float32([[1, 2, 5], [5, 5, 5]]))
    >>> n.offset.tolist(), n.scale.tolist()
    ([3.0, 5.0], [2.0, 1.0])
    """
    if measured.shape[1] == 0:
        return _unchanged(len(measured))
    low, high = measured.min(axis=1), measured.max(axis=1)
    return Normalisation((high + low) / 2, _usable((high - low) / 2))


def _unchanged(n_channels: int) -> Normalisation:
    return Normalisation(np.zeros(n_channels, np.float32), np.ones(n_channels, np.float32))


def _usable(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(scale > MIN_SCALE, scale, np.float32(1)).astype(np.float32)
