"""Assembly on the GPU: measured values go up once, the picture comes down once (imports CuPy late).

What is written here is written once for CuPy and NumPy: `xp` is either module. With NumPy it is tested against the
pipeline's own way. With CuPy it was never run on hardware.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from scipy.ndimage import spline_filter1d

from lowdose.reconstruction.engine import require_picture
from lowdose.reconstruction.infill import InfillMap
from lowdose.reconstruction.lattice_infill import LinearOnLattice, NearestOnLattice, SplineOnLattice
from lowdose.reconstruction.normalise import normalisation_of
from lowdose.reconstruction.tiling import Tiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import Channel, Engine, EngineInfo
    from lowdose.reconstruction.infill import Infill, PathMaps
    from lowdose.reconstruction.lattice_infill import LatticeAxis

MAX_BYTES_KEPT = 256 << 20
"""Of maps on the GPU: some thirty paths of 512 x 512 that are no lattices."""

Array = Any
"""numpy.ndarray or cupy.ndarray."""


@runtime_checkable
class DeviceEngine(Protocol):
    """An engine that also takes and returns arrays on the device."""

    @property
    def info(self) -> EngineInfo:
        """What it is and wants."""
        ...

    def run_on_device(self, inputs: Array) -> Array:
        """Do as `Engine.run` does, on the device and in the order of the current stream."""
        ...


def device_engine(engine: Engine, shape: tuple[int, ...]) -> DeviceEngine | None:
    """Return the engine that takes pictures of a shape on the device, without tiles or padding; None if none does."""
    whole = engine.whole(shape) if isinstance(engine, Tiled) else engine
    return whole if isinstance(whole, DeviceEngine) else None


def on_device(xp: Any, array: NDArray[Any]) -> Array:
    """Return an array on the device; CuPy copies through page-locked memory."""
    return xp.asarray(np.ascontiguousarray(array))


def on_host(xp: Any, array: Array) -> NDArray[np.float32]:
    """Return a float32 array on the host, when it is finished; with CuPy in page-locked memory that is used again."""
    if xp is np:
        return np.asarray(array, np.float32)
    memory = xp.cuda.alloc_pinned_memory(array.nbytes)
    out: NDArray[np.float32] = np.ndarray(array.shape, np.float32, memory)
    array.get(out=out)
    return out


@dataclass(frozen=True, slots=True)
class _WeightedFill:
    """An `InfillMap` on the device."""

    visited: Array  # (v,) int32
    sources: Array  # (k, pixels) int32
    weights: Array  # (k, pixels) float32, or None
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        weights = 0 if self.weights is None else self.weights.nbytes
        return int(self.visited.nbytes + self.sources.nbytes + weights)

    def apply(self, measured: Array) -> Array:
        """Return (channels, rows, cols) made of (channels, v) measured values."""
        out = measured.take(self.sources[0], axis=1)
        if self.weights is not None:
            out *= self.weights[0]
            for k in range(1, len(self.sources)):
                out += measured.take(self.sources[k], axis=1) * self.weights[k]
        return out.reshape(len(measured), *self.shape)


@dataclass(frozen=True, slots=True)
class _AxisOnDevice:
    """A `LatticeAxis` on the device; pixels inside lie between two measured ones, `share` belongs to the left."""

    measured: Array  # (m,) int32
    nearest: Array  # (pixels,) int32
    left: Array  # (pixels inside,) int32
    right: Array
    share: Array  # (pixels inside,) float32
    inside: slice

    @classmethod
    def of(cls, xp: Any, axis: LatticeAxis) -> _AxisOnDevice:
        weights = axis.weights  # two entries a row: left, right
        integers = (axis.measured, axis.nearest, weights.indices[0::2], weights.indices[1::2])
        measured, nearest, left, right = (on_device(xp, each.astype(np.int32)) for each in integers)
        return cls(measured, nearest, left, right, on_device(xp, weights.data[0::2]), axis.inside)

    @property
    def nbytes(self) -> int:
        return sum(int(array.nbytes) for array in (self.measured, self.nearest, self.left, self.right, self.share))

    def between(self, values: Array) -> Array:
        """Interpolate (…, m) values along their last axis: (…, pixels inside)."""
        return values.take(self.left, axis=-1) * self.share + values.take(self.right, axis=-1) * (1 - self.share)


@dataclass(frozen=True, slots=True)
class _LatticeFill:
    """`NearestOnLattice` or `LinearOnLattice` on the device."""

    rows: _AxisOnDevice
    cols: _AxisOnDevice
    linear: bool

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.cols.nbytes

    @property
    def visited(self) -> Array:
        """(v,) flat indices of the measured pixels, ascending."""
        return (self.rows.measured[:, None] * len(self.cols.nearest) + self.cols.measured).ravel()

    def apply(self, measured: Array) -> Array:
        """Return (channels, rows, cols) made of (channels, v) measured values."""
        crossings = measured.reshape(-1, len(self.rows.measured), len(self.cols.measured))
        out = crossings.take(self.cols.nearest, axis=2).take(self.rows.nearest, axis=1)
        if self.linear:
            between_cols = self.cols.between(crossings).swapaxes(1, 2)
            out[:, self.rows.inside, self.cols.inside] = self.rows.between(between_cols).swapaxes(1, 2)
        return out


@dataclass(frozen=True, slots=True)
class _SplineFill:
    """`SplineOnLattice` on the device: the spline as two matrices."""

    nearest: _LatticeFill
    rows: Array  # (pixel rows inside, measured rows) float32
    cols: Array

    @property
    def nbytes(self) -> int:
        return self.nearest.nbytes + int(self.rows.nbytes + self.cols.nbytes)

    @property
    def visited(self) -> Array:
        """(v,) flat indices of the measured pixels, ascending."""
        return self.nearest.visited

    def apply(self, measured: Array) -> Array:
        """Return (channels, rows, cols) made of (channels, v) measured values."""
        out = self.nearest.apply(measured)
        crossings = measured.reshape(-1, self.rows.shape[1], self.cols.shape[1])
        out[:, self.nearest.rows.inside, self.nearest.cols.inside] = self.rows @ crossings @ self.cols.T
        return out


def spline_matrix(axis: LatticeAxis) -> NDArray[np.float32]:
    """Return (pixels inside, m) weights of the measured values in a cubic spline through them."""
    coefficients = spline_filter1d(np.eye(len(axis.measured)), order=3, axis=0, mode="mirror")
    return np.asarray(axis.spline_weights @ coefficients, np.float32)


def fill_on_device(xp: Any, infill: Infill) -> _WeightedFill | _LatticeFill | _SplineFill:
    """Return an infill map on the device."""
    if isinstance(infill, InfillMap):
        weights = None if infill.weights is None else on_device(xp, infill.weights)
        visited, sources = (on_device(xp, each.astype(np.int32)) for each in (infill.visited, infill.sources))
        return _WeightedFill(visited, sources, weights, infill.shape)
    nearest = infill.nearest if isinstance(infill, LinearOnLattice | SplineOnLattice) else infill
    if not isinstance(nearest, NearestOnLattice):
        raise TypeError(f"no way to put a {type(infill).__name__} on the GPU: expected an InfillMap or a lattice")
    rows, cols = (_AxisOnDevice.of(xp, axis) for axis in (nearest.rows, nearest.cols))
    fill = _LatticeFill(rows, cols, linear=isinstance(infill, LinearOnLattice))
    if not isinstance(infill, SplineOnLattice):
        return fill
    return _SplineFill(fill, *(on_device(xp, spline_matrix(axis)) for axis in (nearest.rows, nearest.cols)))


class AssemblyOnDevice:
    """Does on the device what the Reconstructor does for a stage: normalises, builds channels, runs, undoes.

    Parameters
    ----------
    xp : module or None
        None = cupy.
    clock : callable
        Monotonic time [ns].
    """

    def __init__(self, xp: Any = None, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._xp = _cupy() if xp is None else xp
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()  # the least recently used first

    def complete(
        self,
        engine: DeviceEngine,
        measured: NDArray[np.float32],
        hits: NDArray[np.uint16],
        maps: PathMaps,
        digest: str,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
        """Return a stage's picture, its standard deviation and the time the engine took.

        Parameters
        ----------
        engine : DeviceEngine
            Of the stage.
        measured : (channels, v) float32 ndarray
            Measured values in the order of `maps.nearest.visited` [counts].
        hits : (rows, cols) uint16 ndarray
            Samples in each pixel.
        maps : PathMaps
            How the rest is filled.
        digest : str
            Of the path whose maps these are, under which they are kept on the device; "" = they are not kept.

        Returns
        -------
        image, deviation : (channels, scale * rows, scale * cols) float32 ndarray
            [counts], fresh.
        engine_ns : int
            From the inputs being ready to the output being ready [ns].
        """
        uploaded = on_device(self._xp, measured)
        normalisation = normalisation_of(uploaded, engine.info.normalisation)
        inputs = self._inputs(engine.info.channels, normalisation.apply(uploaded), hits, maps, digest)
        self._wait()
        begin_ns = self._clock()
        output = engine.run_on_device(inputs)
        self._wait()
        engine_ns = self._clock() - begin_ns
        require_picture(output, inputs, engine.info)
        output = self._xp.ascontiguousarray(output.swapaxes(0, 1))  # (2, channels, rows, cols)
        normalisation.undo(output[0], out=output[0])
        normalisation.undo_deviation(output[1], out=output[1])
        image, deviation = on_host(self._xp, output)
        return image, deviation, engine_ns

    def _inputs(
        self, channels: tuple[Channel, ...], normalised: Array, hits: NDArray[np.uint16], maps: PathMaps, digest: str
    ) -> Array:
        """Return (detector channels, engine channels, rows, cols)."""
        inputs = self._xp.empty((len(normalised), len(channels), *hits.shape), np.float32)
        for k, name in enumerate(channels):
            inputs[:, k] = self._channel(name, normalised, hits, maps, digest)
        return inputs

    def _channel(
        self, name: Channel, normalised: Array, hits: NDArray[np.uint16], maps: PathMaps, digest: str
    ) -> Array:
        nearest = self._on_device(digest, "nearest", lambda: fill_on_device(self._xp, maps.nearest))
        if (infill := maps.infill(name)) is maps.nearest:
            return nearest.apply(normalised)
        if infill is not None:
            kind = "linear" if infill is maps.linear else name
            return self._on_device(digest, kind, lambda: fill_on_device(self._xp, infill)).apply(normalised)
        if name == "distance":
            return self._on_device(digest, "distance", lambda: on_device(self._xp, maps.distance))
        values = normalised
        if name == "mask":
            values = self._xp.ones((1, normalised.shape[1]), np.float32)
        elif name == "dwell":
            values = on_device(self._xp, hits.ravel()[maps.nearest.visited].astype(np.float32)[None])
        scattered = self._xp.zeros((len(values), hits.size), np.float32)
        scattered[:, nearest.visited] = values
        return scattered.reshape(-1, *hits.shape)

    def _on_device(self, digest: str, kind: str, upload: Callable[[], Any]) -> Any:
        """Return what was uploaded for a path before, or upload it."""
        if not digest:
            return upload()
        if (digest, kind) not in self._kept:
            self._kept[digest, kind] = upload()
            while len(self._kept) > 1 and sum(entry.nbytes for entry in self._kept.values()) > MAX_BYTES_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end((digest, kind))
        return self._kept[digest, kind]

    def _wait(self) -> None:
        if self._xp is not np:
            self._xp.cuda.get_current_stream().synchronize()


def _cupy() -> Any:
    import cupy

    return cupy
