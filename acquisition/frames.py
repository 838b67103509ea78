"""Frames: what was measured, and the completed picture made of it (imports numpy only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

UncertaintyKind = Literal["none", "placeholder", "calibrated"]


@dataclass(frozen=True, slots=True)
class SparseFrame:
    """One frame as measured.

    Parameters
    ----------
    grid : ScanGrid
        The scan's grid.
    values : (channels, rows, cols) float32 ndarray
        Counts per nominal dwell time, 0 where nothing was measured.
    hits : (rows, cols) uint16 ndarray
        Samples in each pixel; 0 = not measured.
    scan_id, path_digest : str
        Where it came from.
    frame_index : int
        Which frame of the scan.
    complete : bool
        The frame has ended; False while it is still being scanned (samples of the frame before fill the rest).
    samples_used : int
        Samples of this very frame; fewer than the path has on a complete frame = a gap.
    times_ns : mapping of str to int
        Monotonic stamps: first_sample, last_sample, sent, received, assembled [ns].
    """

    grid: ScanGrid
    values: NDArray[np.float32]
    hits: NDArray[np.uint16]
    scan_id: str
    path_digest: str
    frame_index: int
    complete: bool
    samples_used: int
    times_ns: Mapping[str, int]

    def __post_init__(self) -> None:
        _require(self.values.ndim == 3, f"values must be (channels, rows, cols), got {self.values.shape}")
        _require(self.values.shape[1:] == self.grid.shape, f"values {self.values.shape} do not fit {self.grid.shape}")
        _require(self.hits.shape == self.grid.shape, f"hits {self.hits.shape} do not fit {self.grid.shape}")
        self.values.setflags(write=False)
        self.hits.setflags(write=False)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(rows, cols) True = measured."""
        return self.hits > 0


@dataclass(frozen=True, slots=True)
class EngineStamp:
    """Which engine made a picture: name, digest of its file ("" for built-in ones), precision."""

    name: str
    digest: str
    precision: str


@dataclass(frozen=True, slots=True)
class DenseFrame:
    """One completed frame, with what was measured kept beside what was inferred.

    Parameters
    ----------
    grid : ScanGrid
        Grid of the picture; `scale` times finer than the scan's.
    image, uncertainty : (channels, rows, cols) float32 ndarray
        The picture and its standard-deviation equivalent [counts per nominal dwell time].
    uncertainty_kind : "none", "placeholder" or "calibrated"
        What `uncertainty` is worth.
    measured, hits : (channels, rows / scale, cols / scale) float32 and (rows / scale, cols / scale) uint16 ndarray
        The measured values and visits on the scan's grid.
    scale : 1, 2 or 4
        Pixels of the picture per pixel of the scan, along each axis.
    scan_id, path_digest, frame_index, complete, samples_used
        As in `SparseFrame`.
    channels : tuple of str
        Detector channels.
    engines : tuple of EngineStamp
        The stages that made it, in order.
    dropped, gaps : int
        Blocks lost and frames completed with a hole, so far, as the reconstruction counted them.
    times_ns : mapping of str to int
        Monotonic stamps of every step [ns].
    """

    grid: ScanGrid
    image: NDArray[np.float32]
    uncertainty: NDArray[np.float32]
    uncertainty_kind: UncertaintyKind
    measured: NDArray[np.float32]
    hits: NDArray[np.uint16]
    scale: int
    scan_id: str
    path_digest: str
    frame_index: int
    complete: bool
    samples_used: int
    channels: tuple[str, ...]
    engines: tuple[EngineStamp, ...]
    dropped: int
    gaps: int
    times_ns: Mapping[str, int]

    def __post_init__(self) -> None:
        n, rows, cols = len(self.channels), *self.grid.shape
        scan_shape = (rows // self.scale, cols // self.scale) if self.scale in (1, 2, 4) else None
        _require(scan_shape is not None, f"scale must be 1, 2 or 4, got {self.scale}")
        for name in ("image", "uncertainty"):
            shape = getattr(self, name).shape
            _require(shape == (n, rows, cols), f"{name} must be {(n, rows, cols)}, got {shape}")
        _require(self.hits.shape == scan_shape, f"hits must be {scan_shape}, got {self.hits.shape}")
        _require(self.measured.shape[1:] == scan_shape, f"measured must be on {scan_shape}, got {self.measured.shape}")
        for array in (self.image, self.uncertainty, self.measured, self.hits):
            array.setflags(write=False)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """True = measured, on the scan's grid."""
        return self.hits > 0

    @property
    def engine(self) -> str:
        """Names of the stages, as shown to people."""
        return " + ".join(stamp.name for stamp in self.engines)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
