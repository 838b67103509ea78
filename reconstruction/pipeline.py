"""Reconstructor: a sparse frame through a list of engines to a dense one."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowdose.acquisition.frames import DenseFrame, EngineStamp
from lowdose.reconstruction.assembly_gpu import AssemblyOnDevice, device_engine
from lowdose.reconstruction.engine import require_picture
from lowdose.reconstruction.engines.classical_engine import LinearEngine, NearestEngine
from lowdose.reconstruction.infill import NEED_LINEAR
from lowdose.reconstruction.lattice_infill import everywhere_measured
from lowdose.reconstruction.maps import MapCache, maps_at_once
from lowdose.reconstruction.normalise import normalisation_of
from lowdose.scan_patterns.grid import ScanGrid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lowdose.acquisition.frames import SparseFrame
    from lowdose.acquisition.messages import ScanStart
    from lowdose.reconstruction.engine import Channel, Engine, EngineInfo
    from lowdose.reconstruction.infill import PathMaps
    from lowdose.reconstruction.normalise import Normalisation
    from lowdose.scan_patterns.path import ScanPath

logger = logging.getLogger(__name__)

MAX_ERROR = 200
"""Characters of an engine's error that are shown."""

DENSER = 2
"""Times an engine's most coverage: so much denser it may still be used; denser pictures are shown as measured."""

WARM_UP_S = 10.0
"""Waited at most for the first path's linear map."""

WARM_UP_PIXELS = 1 << 22
"""Larger pictures take longer than a start may: they begin with nearest infill."""

WARM_UP_STEP_PX = 12
"""Of the lattice on which engines are run first: 1/144, as sparse as any learned."""

UNCERTAINTY_ORDER = ("none", "placeholder", "calibrated")


@dataclass(frozen=True, slots=True)
class _Picture:
    """What a stage works on: measured values on a grid, and how the rest is filled."""

    measured: NDArray[np.float32]  # (channels, v), in the order of maps.nearest.visited
    hits: NDArray[np.uint16]  # (rows, cols)
    maps: PathMaps
    digest: str  # of the path whose maps these are; "" = of no path

    @property
    def coverage(self) -> float:
        """Share of the pixels that were measured."""
        share: float = self.measured.shape[1] / self.hits.size
        return share


@dataclass(frozen=True, slots=True)
class _StageOutput:
    """A stage's picture and standard deviation in counts, (channels, rows, cols), and the engine that made it."""

    image: NDArray[np.float32]
    deviation: NDArray[np.float32]
    info: EngineInfo
    engine_ns: int


class Reconstructor:
    """Completes frames: builds the channels an engine wants, normalises, runs the stages, undoes the normalisation.

    Works on one frame at a time, without memory of those before. An engine that fails is replaced by linear infill for
    that frame, and counted; so is, without being counted, one that was not trained for frames measured so densely.

    Parameters
    ----------
    stages : sequence of Engine
        The first completes the sparse frame; each further one refines the picture of the one before.
    clock : callable
        Monotonic time [ns].
    """

    def __init__(self, stages: Sequence[Engine], *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        if not stages:
            raise ValueError("at least one stage is needed, got none: use stages: [{complete: auto}]")
        if stages[0].info.task != "complete":
            raise ValueError(f"the first stage must complete, '{stages[0].info.name}' does {stages[0].info.task}")
        self._stages = tuple(stages)
        self._clock = clock
        self._maps = MapCache()
        self._nearest, self._linear = NearestEngine(), LinearEngine()
        self._device: AssemblyOnDevice | None = None
        self._told_too_dense = False
        self.engine_failures = 0
        self.engine_error = ""

    @property
    def name(self) -> str:
        """Names of the stages, for people."""
        return " + ".join(stage.info.name for stage in self._stages)

    def warm_up(self, shape: tuple[int, int], n_channels: int, path: ScanPath | None) -> None:
        """Make everything ready that the first frame would wait for, as far as that takes seconds.

        Parameters
        ----------
        shape : (int, int)
            Of the pictures to come.
        n_channels : int
            Detector channels.
        path : ScanPath or None
            The first that will be scanned, if it is known.
        """
        if math.prod(shape) > WARM_UP_PIXELS:
            return
        if path is not None:
            self._maps.wait(path.digest, path.mask, WARM_UP_S)
        mask = np.zeros(shape, bool)
        mask[::WARM_UP_STEP_PX, ::WARM_UP_STEP_PX] = True
        maps = maps_at_once(mask)
        picture = _Picture(
            np.zeros((n_channels, len(maps.nearest.visited)), np.float32), mask.astype(np.uint16), maps, ""
        )
        for stage in self._stages:
            try:
                picture = _everywhere_measured(self._run_engine(stage, picture).image)
            except Exception as error:  # it will be told and counted on the first frame
                logger.debug("engine '%s' failed before the first frame: %s", stage.info.name, error)
                return

    def prepare(self, start: ScanStart) -> None:
        """Compute the maps of a scan's first path before its first frame comes; linear may follow in the background."""
        self._maps.get(start.paths[0].digest, start.paths[0].mask)

    def ready(self, start: ScanStart, frame_index: int = 0) -> bool:
        """Tell whether a frame's path has its linear map, which is begun if it has not."""
        path = start.path_of(frame_index)
        return self._maps.get(path.digest, path.mask).linear is not None

    def complete(self, sparse: SparseFrame, start: ScanStart, *, dropped: int = 0, gaps: int = 0) -> DenseFrame | None:
        """Return the completed frame, or None if nothing of it was measured.

        Parameters
        ----------
        sparse : SparseFrame
            What was measured.
        start : ScanStart
            Its scan.
        dropped, gaps : int
            Losses so far, carried along.
        """
        picture = self._picture_of(sparse, start)
        if picture is None:
            return None
        times = {**sparse.times_ns, "prepared": self._clock()}
        outputs = self._run_stages(picture)
        infos = [output.info for output in outputs]
        times |= {"engine_ns": sum(output.engine_ns for output in outputs), "finished": self._clock()}
        grid, scale = sparse.grid, math.prod(info.scale for info in infos)
        return DenseFrame(
            grid=ScanGrid((grid.rows * scale, grid.cols * scale), grid.pixel_size_nm / scale, grid.rotation_deg),
            image=outputs[-1].image,
            uncertainty=_combined([output.deviation for output in outputs]),
            uncertainty_kind=min((info.uncertainty_kind for info in infos), key=UNCERTAINTY_ORDER.index),
            measured=sparse.values,
            hits=sparse.hits,
            scale=scale,
            scan_id=sparse.scan_id,
            path_digest=sparse.path_digest,
            frame_index=sparse.frame_index,
            complete=sparse.complete,
            samples_used=sparse.samples_used,
            channels=start.channels,
            engines=tuple(EngineStamp(info.name, info.digest, info.precision) for info in infos),
            dropped=dropped,
            gaps=gaps,
            times_ns=times,
        )

    def complete_values(
        self, values: NDArray[np.float32], hits: NDArray[np.uint16], maps: PathMaps
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], EngineInfo]:
        """Return the completed pictures of measured values, how far off they may be, and what the last stage was.

        Parameters
        ----------
        values : (channels, rows, cols) float32 ndarray
            In any linear unit; only those at the pixels of the maps are looked at.
        hits : (rows, cols) uint16 ndarray
            Visits of each pixel.
        maps : PathMaps
            How the rest is filled.
        """
        measured = np.ascontiguousarray(values.reshape(len(values), -1)[:, maps.nearest.visited])
        outputs = self._run_stages(_Picture(measured, hits, maps, ""))
        return outputs[-1].image, _combined([output.deviation for output in outputs]), outputs[-1].info

    def _picture_of(self, sparse: SparseFrame, start: ScanStart) -> _Picture | None:
        """Look up the path's maps; where samples are missing, fill from those that are there by exact distance."""
        n_measured = np.count_nonzero(sparse.hits)
        if n_measured == 0:
            return None
        path = start.path_of(sparse.frame_index)
        # without a pixel visited twice there is no need of the path's hits, which each path of a cycle would keep
        whole = n_measured == len(path) or n_measured == np.count_nonzero(path.hits)
        maps = self._maps.get(sparse.path_digest, sparse.mask) if whole else maps_at_once(sparse.mask)
        values = sparse.values.reshape(len(sparse.values), -1)
        digest = sparse.path_digest if whole else ""
        return _Picture(np.ascontiguousarray(values[:, maps.nearest.visited]), sparse.hits, maps, digest)

    def _run_stages(self, picture: _Picture) -> list[_StageOutput]:
        outputs: list[_StageOutput] = []
        for stage in self._stages:
            outputs.append(self._run_stage(stage, picture))
            picture = _everywhere_measured(outputs[-1].image)
        return outputs

    def _run_stage(self, stage: Engine, picture: _Picture) -> _StageOutput:
        """Run one engine on a picture; fall back on infill when it cannot be run on it, not yet, or when it fails."""
        if picture.coverage > DENSER * stage.info.most_coverage:
            self._tell_too_dense(stage.info, picture.coverage)
            stage = self._linear
        if not NEED_LINEAR.isdisjoint(stage.info.channels) and picture.maps.linear is None:
            stage = self._nearest
        try:
            return self._run_engine(stage, picture)
        except Exception as error:
            self._count_failure(stage, error)
            return self._run_engine(self._nearest if picture.maps.linear is None else self._linear, picture)

    def _run_engine(self, stage: Engine, picture: _Picture) -> _StageOutput:
        if (engine := device_engine(stage, picture.hits.shape)) is not None:
            self._device = self._device or AssemblyOnDevice(clock=self._clock)
            done = self._device.complete(engine, picture.measured, picture.hits, picture.maps, picture.digest)
            image, deviation, engine_ns = done
        else:
            normalisation = normalisation_of(picture.measured, stage.info.normalisation)
            output, engine_ns = self._timed_run(stage, picture, normalisation)
            image, deviation = np.ascontiguousarray(output[:, 0]), np.ascontiguousarray(output[:, 1])
            normalisation.undo(image, out=image)
            normalisation.undo_deviation(deviation, out=deviation)
        if stage.info.keeps_measured and stage.info.scale == 1:
            image.reshape(len(image), -1)[:, picture.maps.nearest.visited] = picture.measured
        return _StageOutput(image, deviation, stage.info, engine_ns)

    def _tell_too_dense(self, info: EngineInfo, coverage: float) -> None:
        if not self._told_too_dense:
            logger.warning(
                "engine '%s' was trained for coverages up to %.3g, this scan has %.3g: linear infill instead",
                *(info.name, info.most_coverage, coverage),
            )
        self._told_too_dense = True

    def _count_failure(self, stage: Engine, error: Exception) -> None:
        """Count a failure; what fails on every frame is told once."""
        self.engine_failures += 1
        text = f"{type(error).__name__}: {error}".splitlines()[0][:MAX_ERROR]
        if text != self.engine_error:
            logger.error("engine '%s' failed on a frame: classical infill instead", stage.info.name, exc_info=error)
        self.engine_error = text

    def _timed_run(
        self, stage: Engine, picture: _Picture, normalisation: Normalisation
    ) -> tuple[NDArray[np.float32], int]:
        inputs = self._inputs(stage, picture, normalisation.apply(picture.measured))
        begin_ns = self._clock()
        output = stage.run(inputs)
        engine_ns = self._clock() - begin_ns
        require_picture(output, inputs, stage.info)
        return output, engine_ns

    def _inputs(self, stage: Engine, picture: _Picture, normalised: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (detector channels, engine channels, rows, cols): every detector channel is one picture of a batch."""
        shape = picture.hits.shape
        inputs = np.empty((len(normalised), len(stage.info.channels), *shape), np.float32)
        for k, channel in enumerate(stage.info.channels):
            inputs[:, k] = _channel(channel, picture, normalised)
        return inputs

    def close(self) -> None:
        """Stop the background work; twice is fine."""
        self._maps.close()


def _channel(name: Channel, picture: _Picture, normalised: NDArray[np.float32]) -> NDArray[np.float32]:
    if (infill := picture.maps.infill(name)) is not None:
        return infill.apply(normalised)
    if name == "sparse":
        sparse = np.zeros((len(normalised), picture.hits.size), np.float32)
        sparse[:, picture.maps.nearest.visited] = normalised
        return sparse.reshape(-1, *picture.hits.shape)
    if name == "mask":
        return (picture.hits > 0).astype(np.float32)
    return picture.maps.distance if name == "distance" else picture.hits.astype(np.float32)


def _everywhere_measured(image: NDArray[np.float32]) -> _Picture:
    """Return a stage's output as the next one's input: every pixel counts as measured."""
    shape = (image.shape[1], image.shape[2])
    measured, hits = image.reshape(len(image), -1), np.ones(shape, np.uint16)
    return _Picture(measured, hits, everywhere_measured(shape), f"everywhere {shape}")


def _combined(deviations: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the stages' standard deviations added in quadrature, on the last one's grid."""
    total = deviations[0]
    for deviation in deviations[1:]:
        factor = deviation.shape[1] // total.shape[1]
        total = np.hypot(total.repeat(factor, axis=1).repeat(factor, axis=2), deviation)
    return total
