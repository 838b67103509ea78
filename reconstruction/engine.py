"""Engine: an exchangeable method that completes, denoises or refines a picture, and what it wants (numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lowdose.acquisition.frames import UncertaintyKind  # noqa: TC001 pydantic reads it

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Task = Literal["complete", "super_resolve", "denoise"]
Channel = Literal["nearest", "linear", "cubic", "sparse", "mask", "distance", "dwell"]
Target = Literal["blurred_5x5", "blurred_3x3", "sharp"]
Rule = Literal["mean_std", "min_max"]
Precision = Literal["FP32", "BF16", "FP16"]
SCALES = (1, 2, 4)
MAX_NAME, MAX_PX = 64, 2048
PRECISIONS: tuple[Precision, ...] = ("FP32", "BF16", "FP16")
CHANNELS: tuple[Channel, ...] = ("nearest", "linear", "cubic", "sparse", "mask", "distance", "dwell")


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is and what it wants.

    Parameters
    ----------
    name, version, digest, precision : str
        Of the engine; the digest is that of its file, "" for a built-in one.
    task : "complete", "super_resolve" or "denoise"
        What it does.
    scale : 1, 2 or 4
        Pixels out per pixel in, along each axis.
    channels : tuple of str
        Input channels in order: the picture by `nearest`, `linear` or `cubic` infill (a spline on evenly spaced
        lattices, else linear) or `sparse` (0 where not measured), `mask` (0 or 1), `distance` to the nearest measured
        pixel [pixel], `dwell` (visits; 1 on a later stage).
    normalisation : "mean_std" or "min_max"
        Measured values get mean 0 and standard deviation 1, or reach from -1 to 1.
    target : "blurred_5x5", "blurred_3x3" or "sharp"
        What the output estimates.
    size_multiple : int
        Rows and columns must be multiples of this.
    halo_px : int
        Pixels at a tile's edge that are not to be trusted.
    keeps_measured : bool
        Measured pixels come out as they went in: they are put back after the engine has run.
    uncertainty_kind : "none", "placeholder" or "calibrated"
        What the second output is worth.
    most_coverage : float
        Nominal coverage up to which it was trained to complete; what is measured denser is filled linearly.
    """

    name: str
    version: str
    digest: str
    precision: str
    task: Task
    scale: int
    channels: tuple[Channel, ...]
    normalisation: Rule
    target: Target
    size_multiple: int
    halo_px: int
    keeps_measured: bool
    uncertainty_kind: UncertaintyKind
    most_coverage: float = 1.0

    def __post_init__(self) -> None:
        for name, text in (("name", self.name), ("version", self.version)):
            if not (0 < len(text) <= MAX_NAME and text.isprintable()):
                raise ValueError(f"{name} must be 1 to {MAX_NAME} printable characters, got {text[:MAX_NAME]!r}")
        if self.precision not in ("", *PRECISIONS):
            raise ValueError(f"precision must be {', '.join(PRECISIONS)}, got {self.precision[:MAX_NAME]!r}")
        if self.scale not in SCALES:
            raise ValueError(f"scale must be 1, 2 or 4, got {self.scale}")
        if not self.channels or not set(self.channels) <= set(CHANNELS):
            raise ValueError(f"channels must be some of {', '.join(CHANNELS)}, got {self.channels}")
        if not 0 < self.most_coverage <= 1:
            raise ValueError(f"most_coverage must be > 0 and <= 1, got {self.most_coverage}")
        for name, number, least in (("size_multiple", self.size_multiple, 1), ("halo_px", self.halo_px, 0)):
            if not least <= number <= MAX_PX:
                raise ValueError(f"{name} must be {least} to {MAX_PX} px, got {number}")


class Engine(Protocol):
    """Runs, and does nothing else: the Reconstructor builds the channels and undoes the normalisation."""

    @property
    def info(self) -> EngineInfo:
        """What it is and wants."""
        ...

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return mean and standard deviation of pictures.

        Parameters
        ----------
        inputs : (batch, channels, rows, cols) float32 ndarray
            As `info.channels` says, normalised.

        Returns
        -------
        (batch, 2, scale * rows, scale * cols) float32 ndarray
            Mean and standard deviation, normalised; a fresh array the caller may change. The same inputs give the same
            output, and a batch gives what its pictures give one by one.
        """
        ...


def require_picture(output: Any, inputs: Any, info: EngineInfo) -> None:
    """Raise unless an engine returned what the contract says, with numbers in it.

    Parameters
    ----------
    output, inputs : numpy.ndarray or cupy.ndarray
        Of one run.
    info : EngineInfo
        Of the engine.

    Raises
    ------
    ValueError
        If the shape is another.
    ArithmeticError
        If not all values are finite, or a standard deviation is negative.
    """
    batch, _, rows, cols = inputs.shape
    expected = (batch, 2, info.scale * rows, info.scale * cols)
    if output.shape != expected:
        raise ValueError(f"it returned shape {output.shape}, expected {expected}")
    if not math.isfinite(float(output.sum())):  # a sum is not finite if one of its terms is not; 0.1 ms at 512 x 512
        raise ArithmeticError("it returned values that are not finite")
    if float(output[:, 1].min()) < 0:
        raise ArithmeticError("it returned negative standard deviations")
