"""Levels: which counts are black and which are white, and images as uint8 by them (imports numpy only)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ContrastMode = Literal["always", "once", "manual"]
CONTRAST_MODES: tuple[ContrastMode, ...] = get_args(ContrastMode)
LOW_PERCENT, HIGH_PERCENT = 0.5, 99.5
SAMPLES = 16_384
"""Pixels looked at for percentiles: the 0.5 % tails still hold 80 of them; 0.2 ms instead of 4 ms at 512 x 512."""


class Levels:
    """Black and white level of what is shown, always explicit.

    Parameters
    ----------
    mode : "always", "once" or "manual"
        Percentiles of every frame, of the next frame only, or as set by hand.
    """

    def __init__(self, mode: ContrastMode = "always") -> None:
        self.low, self.high = 0.0, 1.0
        self._mode: ContrastMode = mode
        self._wanted = True

    @property
    def mode(self) -> ContrastMode:
        """The mode in force."""
        return self._mode

    def choose(self, mode: ContrastMode) -> None:
        """Change the mode; "once" takes its levels from the next image shown."""
        if mode not in CONTRAST_MODES:
            raise ValueError(f"contrast mode must be one of {', '.join(CONTRAST_MODES)}, got {mode!r}")
        self._mode = mode
        self._wanted = mode != "manual"

    def cycle(self) -> ContrastMode:
        """Go on to the next mode and return it."""
        self.choose(CONTRAST_MODES[(CONTRAST_MODES.index(self._mode) + 1) % len(CONTRAST_MODES)])
        return self._mode

    def set_manual(self, low: float, high: float) -> None:
        """Set the levels by hand; they stay until another mode is chosen."""
        self._mode, self._wanted = "manual", False
        self.low, self.high = float(low), max(float(high), np.nextafter(float(low), np.inf))

    def follow(self, image: NDArray[np.float32]) -> None:
        """Take the levels of an image about to be shown, if the mode asks for it."""
        if self._wanted:
            self.low, self.high = percentile_levels(image)
            self._wanted = self._mode == "always"


def percentile_levels(image: NDArray[np.float32]) -> tuple[float, float]:
    """Return the 0.5 and 99.5 percentile of an image, looking at every n-th pixel of a large one.

    Examples
    --------
    >>> percentile_levels(np.full((4, 4), 3.0, np.float32))
    (3.0, 4.0)
    """
    values = subsampled(image)
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(level) for level in np.percentile(values, (LOW_PERCENT, HIGH_PERCENT)))
    return (low, high) if high > low else (low, low + 1.0)


def subsampled(image: NDArray[np.float32], n_samples: int = SAMPLES) -> NDArray[np.float32]:
    """Return about `n_samples` finite pixels spread over an image, flat."""
    step = max(1, image.size // n_samples)
    step += step > 1 and step % 2 == 0  # odd: never in step with an even row length
    values = image.reshape(-1)[::step]
    return values[np.isfinite(values)]


def to_uint8(image: NDArray[np.float32], low: float, high: float, *, darkest: int = 0) -> NDArray[np.uint8]:
    """Return an image as uint8: `low` becomes `darkest`, `high` becomes 255, beyond is clipped.

    Parameters
    ----------
    image : (rows, cols) float32 ndarray
        Counts; NaN becomes 0.
    low, high : float
        Levels [counts], low < high.
    darkest : int
        Smallest value given to a finite pixel.
    """
    scale = (255 - darkest) / (high - low)
    scaled = np.multiply(image, np.float32(scale))
    scaled += np.float32(darkest + 0.5 - low * scale)
    np.clip(scaled, darkest, 255, out=scaled)
    with np.errstate(invalid="ignore"):
        return scaled.astype(np.uint8)


def measured_to_uint8(
    measured: NDArray[np.float32], hits: NDArray[np.uint16], low: float, high: float
) -> NDArray[np.uint8]:
    """Return measured values as uint8: 0 where nothing was measured, 1 to 255 where something was."""
    shown = to_uint8(measured, low, high, darkest=1)
    shown *= hits > 0
    return shown
