"""Exports: arrays and metadata become files that other programs open, whole or not at all (imports numpy only).

Every export holds the mask, and every layer says of itself which of its pixels are inferred.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from lowdose.scan_patterns.grid import ScanGrid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

    from lowdose.acquisition.frames import DenseFrame, SparseFrame
    from lowdose.acquisition.messages import ScanStart

Layer = Literal["sparse", "mask", "completed", "uncertainty"]
LAYERS: tuple[Layer, ...] = get_args(Layer)
FORMATS: dict[str, tuple[str, str]] = {
    "tiff": ("", "lowdose.acquisition.exporting_tiff:TiffFolder"),
    "hspy": (".hspy", "lowdose.acquisition.exporting_hdf5:HspyFile"),
    "emd": (".emd", "lowdose.acquisition.exporting_hdf5:EmdFile"),
    "zarr": (".zarr", "lowdose.acquisition.exporting_zarr:ZarrStore"),
}
"""Formats of pictures: name -> (suffix, "" for a folder of files; "module:Class")."""
POINT_FORMATS: dict[str, tuple[str, str]] = {
    "csv": (".csv", "lowdose.acquisition.exporting_points:write_csv"),
    "npy": (".npy", "lowdose.acquisition.exporting_points:write_npy"),
}
"""Formats of the measured points: name -> (suffix, "module:function")."""


MAX_DEPTH = 32
"""Of what is nested in metadata: deeper, nothing is written."""


class ExportError(RuntimeError):
    """The export could not be written; nothing of it is left."""


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What an export will hold, known before its first frame.

    Parameters
    ----------
    grid : ScanGrid
        Of the scan: `sparse` and `mask` lie on it.
    scale : int
        Pixels of `completed` and `uncertainty` per pixel of the scan, along each axis.
    channels : tuple of str
        Detector channels.
    layers : tuple of str
        Which arrays; the mask is always one of them.
    n_frames : int
        How many frames there will be.
    frame_time_s : float
        From one frame to the next [s]; 1 if it is not known.
    engines : str
        What completes, for people.
    uncertainty_kind : str
        What `uncertainty` is worth.
    values_unit : str
        Unit of the measured and completed values; "" if it is not known.
    metadata : dict
        All else that is known; kept as JSON has it.
    calibrated : bool
        The grid's pixel size is that of the specimen; False = nobody knows it, lengths are in pixels of the scan.
    """

    grid: ScanGrid
    scale: int
    channels: tuple[str, ...]
    layers: tuple[Layer, ...]
    n_frames: int
    frame_time_s: float = 1.0
    engines: str = ""
    uncertainty_kind: str = "none"
    values_unit: str = "counts"
    metadata: dict[str, Any] = field(default_factory=dict)
    calibrated: bool = True

    def __post_init__(self) -> None:
        ordered = tuple(layer for layer in LAYERS if layer in {*self.layers, "mask"})
        object.__setattr__(self, "layers", ordered)
        object.__setattr__(self, "metadata", as_json(self.metadata))
        if self.n_frames < 1:
            raise ValueError("there is no frame to export")

    def grid_of(self, layer: Layer) -> ScanGrid:
        """Return the grid a layer lies on."""
        if self.scale == 1 or layer in ("sparse", "mask"):
            return self.grid
        rows, cols = self.grid.shape
        fine_nm = self.grid.pixel_size_nm / self.scale
        return ScanGrid((rows * self.scale, cols * self.scale), fine_nm, self.grid.rotation_deg)

    def pixel_of(self, layer: Layer) -> tuple[float, str]:
        """Return the edge of a layer's pixels and its unit, nm or pixels of the scan."""
        step_nm = self.grid_of(layer).pixel_size_nm
        return (step_nm, "nm") if self.calibrated else (step_nm / self.grid.pixel_size_nm, "pixel")

    def shape_of(self, layer: Layer) -> tuple[int, ...]:
        """Return (frames, channels, rows, cols); the mask, the same for all channels, has but one."""
        return (self.n_frames, 1 if layer == "mask" else len(self.channels), *self.grid_of(layer).shape)

    def channels_of(self, layer: Layer) -> tuple[str, ...]:
        """Return the names along a layer's channel axis."""
        return ("mask",) if layer == "mask" else self.channels

    def inferred(self, layer: Layer) -> str:
        """Return which pixels of a layer are inferred: none, all, or those where the mask is 0."""
        if layer in ("sparse", "mask"):
            return "none"
        return "where mask is 0" if layer == "completed" and self.scale == 1 else "all"

    def label(self, layer: Layer) -> str:
        """Return in a sentence what a layer is."""
        finer = f", on a grid {self.scale} times finer than the mask's" if self.scale > 1 else ""
        per = "counts per nominal dwell time" if self.values_unit == "counts" else "as given"
        return {
            "sparse": f"measured: {per}; 0, and not measured, where mask is 0",
            "mask": "1 = measured, 0 = not measured",
            "completed": f"completed by {self.engines or 'an engine'}{finer}: inferred where mask is 0; elsewhere the "
            "engine saw the measurement, which itself is in the layer sparse",
            "uncertainty": f"inferred: standard deviation of completed ({self.uncertainty_kind}){finer}",
        }[layer]

    def unit(self, layer: Layer) -> str:
        """Return the unit of a layer's values."""
        return "" if layer == "mask" else self.values_unit

    def dtype(self, layer: Layer) -> str:
        """Return the type of a layer's values."""
        return "|u1" if layer == "mask" else "<f4"

    def described(self) -> dict[str, Any]:
        """Return the metadata with a description of every layer, ready for JSON."""
        return {**self.metadata, "layers": {layer: self.described_layer(layer) for layer in self.layers}}

    def described_layer(self, layer: Layer) -> dict[str, Any]:
        """Return what a layer is, ready for JSON; its pixel size only if that is known."""
        described = {"inferred": self.inferred(layer), "label": self.label(layer), "unit": self.unit(layer)}
        return described | ({"pixel_size_nm": self.grid_of(layer).pixel_size_nm} if self.calibrated else {})


@dataclass(frozen=True, slots=True)
class ExportFrame:
    """One frame of an export.

    Parameters
    ----------
    frame_index, samples_used : int
        Which frame of the scan, and its samples.
    positions : int or None
        How many samples there should be, where it is known.
    t_s : float or None
        Its first sample, from the start of the scan [s], where it is known.
    engine : str
        What completed it; "" if nothing did.
    layers : mapping of str to (channels, rows, cols) ndarray
        Its arrays.
    """

    frame_index: int
    samples_used: int
    positions: int | None
    t_s: float | None
    engine: str
    layers: Mapping[Layer, NDArray[Any]]

    FACTS = ("frame_index", "samples_used", "positions", "t_s", "engine")


@dataclass(frozen=True, slots=True)
class MeasuredFrame:
    """The samples of one frame, in the order of its path.

    Parameters
    ----------
    frame_index : int
        Which frame of the scan.
    counts : (channels, n) uint16 ndarray
        Of every position of the path.
    received : (n,) bool ndarray
        True where there is a count.
    """

    frame_index: int
    counts: NDArray[np.uint16]
    received: NDArray[np.bool_]


class Sink(Protocol):
    """Takes the frames of an export, one after the other."""

    def add(self, frame: ExportFrame) -> None:
        """Write a frame."""


def sparse_layers(sparse: SparseFrame) -> dict[Layer, NDArray[Any]]:
    """Return what was measured."""
    return {"sparse": sparse.values, "mask": sparse.mask.astype(np.uint8)[None]}


def dense_layers(dense: DenseFrame) -> dict[Layer, NDArray[Any]]:
    """Return what was measured and what was made of it."""
    mask = dense.mask.astype(np.uint8)[None]
    return {"sparse": dense.measured, "mask": mask, "completed": dense.image, "uncertainty": dense.uncertainty}


def as_json(value: Any, depth: int = 0) -> Any:
    """Return nested values as JSON has them: keys are text, no number is null, what JSON does not know is text."""
    if isinstance(value, dict | list | tuple) and depth == MAX_DEPTH:
        return "…"
    if isinstance(value, dict):
        return {str(key): as_json(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry, depth + 1) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def told_apart(names: Iterable[str]) -> list[str]:
    """Return names of which none is there twice: a number is put behind those that were.

    Examples
    --------
    >>> told_apart(["a", "b", "a"])
    ['a', 'b', 'a_2']
    """
    seen: Counter[str] = Counter()
    apart: dict[str, None] = {}
    for name in names:
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}_{seen[name]}"
        while unique in apart:
            seen[name] += 1
            unique = f"{name}_{seen[name]}"
        apart[unique] = None
    return list(apart)


def export_frames(
    path: Path,
    form: str,
    plan: ExportPlan,
    frames: Iterable[ExportFrame],
    *,
    finish: Callable[[Path], None] = lambda _: None,
) -> None:
    """Write frames to a new file or folder; it appears when it is whole.

    Parameters
    ----------
    path : Path
        Must not exist yet.
    form : str
        A row of `FORMATS`.
    plan : ExportPlan
        What comes.
    frames : iterable of ExportFrame
        As many as the plan says.
    finish : callable
        Called with what was written before it appears under its name: puts more into a folder.

    Raises
    ------
    ExportError
        If it cannot be written, a library is missing or `path` exists. Whatever goes wrong, nothing is left behind.
    """
    opened: Callable[[Path, ExportPlan], AbstractContextManager[Sink]] = _load(FORMATS[form][1])
    with _new_output(path) as part:
        n_written = 0
        with opened(part, plan) as sink:
            for frame in frames:
                _require_as_planned(frame, plan)
                sink.add(frame)
                n_written += 1
        if n_written != plan.n_frames:
            raise ExportError(f"{n_written} frames came, {plan.n_frames} were expected: the session was changed")
        finish(part)


def _require_as_planned(frame: ExportFrame, plan: ExportPlan) -> None:
    for layer in plan.layers:
        shape, expected = frame.layers[layer].shape, plan.shape_of(layer)[1:]
        if shape != expected:
            raise ExportError(
                f"{layer} of frame {frame.frame_index} is {shape}, those before are {expected}: "
                f"export it and those after it apart, with --frames"
            )


def export_points(
    path: Path, form: str, start: ScanStart, metadata: Mapping[str, Any], frames: Iterable[MeasuredFrame]
) -> None:
    """Write every measured sample, one row each, to a new file.

    Parameters
    ----------
    path : Path
        Must not exist yet.
    form : str
        A row of `POINT_FORMATS`.
    start : ScanStart
        The scan.
    metadata : mapping
        What is known about it.
    frames : iterable of MeasuredFrame
        Its samples.

    Raises
    ------
    ExportError
        If it cannot be written, or `path` exists. Whatever goes wrong, nothing is left behind.
    """
    write: Callable[[Path, ScanStart, Mapping[str, Any], Iterable[MeasuredFrame]], None] = _load(POINT_FORMATS[form][1])
    with _new_output(path) as part:
        write(part, start, as_json(dict(metadata)), frames)


def _load(target: str) -> Any:
    """Return a class or function by name, imported only now; ExportError if its library is missing."""
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ExportError(f'this format needs {error.name}: pip install "lowdose[export]"') from None


@contextmanager
def _new_output(path: Path) -> Iterator[Path]:
    """Give a name beside the path to write to, and move it there if all went well."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    _require_absent(path)
    try:
        yield part
        _require_absent(path)
        part.rename(path)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _require_absent(path: Path) -> None:
    if os.path.lexists(path):
        raise ExportError(f"{path} exists already, nothing is overwritten: name another with --out")
