"""HDF5 in two layouts, HyperSpy's and EMD 1.0 with the names of NeXus (imports h5py)."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from lowdose.acquisition.exporting import ExportFrame, told_apart

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

    from lowdose.acquisition.exporting import ExportPlan, Layer

COMPRESSION = {"compression": "gzip", "compression_opts": 1, "shuffle": True}


class _Shielded:
    """A new file whose first error waits outside HDF5, which does not survive one: it ends in a segmentation fault.

    After an error writes go nowhere and reads are zeros.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("x+b", buffering=0)
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        rest = memoryview(data).cast("B")
        with self._kept():
            while rest and self.error is None:
                rest = rest[self._file.write(rest) :]
        return len(data)

    def read(self, size: int) -> bytes:
        """Return so many bytes; by this h5py knows a file."""
        data = bytearray(size)
        return bytes(data[: self.readinto(memoryview(data))])

    def readinto(self, buffer: memoryview) -> int:
        n_read = 0
        with self._kept():
            n_read = self._file.readinto(buffer)
        return n_read if self.error is None else len(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int) -> int:
        with self._kept():
            self._file.truncate(size)
        return size

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        self._file.close()

    def maybe_raise(self) -> None:
        if self.error is not None:
            raise self.error

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error


class _Hdf5File:
    """One dataset for each layer, (frames, channels, rows, cols), a chunk for each picture."""

    def __init__(self, path: Path, plan: ExportPlan) -> None:
        self._plan = plan
        self._disk = _Shielded(path)
        self._file = h5py.File(self._disk, "w")
        self._facts: list[tuple[Any, ...]] = []
        self._datasets: dict[Layer, Any] = {}

    def _laid_out(self) -> dict[Layer, Any]:
        """Write all there is to tell and return the dataset of each layer, empty."""
        raise NotImplementedError

    def _finish(self, facts: Mapping[str, Any]) -> None:
        """Write what is known of each frame, lists by name."""
        raise NotImplementedError

    def add(self, frame: ExportFrame) -> None:
        """Write a frame."""
        for layer, dataset in self._datasets.items():
            dataset[len(self._facts)] = frame.layers[layer]
        self._disk.maybe_raise()
        self._facts.append(tuple(getattr(frame, name) for name in ExportFrame.FACTS))

    def __enter__(self) -> Self:
        try:
            self._datasets = self._laid_out()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if error is None and self._facts:
                self._finish(dict(zip(ExportFrame.FACTS, map(list, zip(*self._facts, strict=True)), strict=True)))
        finally:
            self._close()

    def _close(self) -> None:
        try:
            self._file.close()
        finally:
            self._disk.close()
            self._disk.maybe_raise()  # the cause of whatever HDF5 made of it

    def _dataset(self, group: Any, layer: Layer) -> Any:
        shape = self._plan.shape_of(layer)
        dataset = group.create_dataset(
            "data", shape, np.dtype(self._plan.dtype(layer)), chunks=(1, 1, *shape[2:]), **COMPRESSION
        )
        dataset.attrs.update(
            units=self._plan.unit(layer), long_name=self._plan.label(layer), inferred=self._plan.inferred(layer)
        )
        return dataset

    def _axes(self, layer: Layer) -> tuple[tuple[str, float, str, int], ...]:
        """Return name, step, unit and length of each axis."""
        n_frames, n_channels, rows, cols = self._plan.shape_of(layer)
        step, unit = self._plan.pixel_of(layer)
        return (
            ("frame", self._plan.frame_time_s, "s", n_frames),
            ("channel", 1.0, "", n_channels),
            ("y", step, unit, rows),
            ("x", step, unit, cols),
        )

    def _known(self, *scaled: tuple[str, str, float]) -> dict[str, float]:
        """Return those values of the metadata that are known by other names and in other units: name, key, factor."""
        known = ((name, self._plan.metadata.get(key), factor) for name, key, factor in scaled)
        return {name: value * factor for name, value, factor in known if value is not None}


class HspyFile(_Hdf5File):
    """A HyperSpy file with one signal for each layer: frames and channels to navigate, y and x as the picture.

    The layout is the one HyperSpy's documentation describes, version 3.3 of the format.

    Parameters
    ----------
    path : Path
        The file to make.
    plan : ExportPlan
        What comes.
    """

    def _laid_out(self) -> dict[Layer, Any]:
        self._file.attrs.update(file_format="HyperSpy", file_format_version="3.3")
        experiments = self._file.create_group("Experiments")
        return {layer: self._signal(experiments.create_group(layer), layer) for layer in self._plan.layers}

    def _signal(self, group: Any, layer: Layer) -> Any:
        for k, (name, step, unit, size) in enumerate(self._axes(layer)):
            group.create_group(f"axis-{k}").attrs.update(
                _type="UniformDataAxis",
                name=name,
                units=unit,
                scale=step,
                offset=0.0,
                size=size,
                navigate=name in ("frame", "channel"),
                is_binned=False,
            )
        metadata = self._plan.metadata
        beam = self._known(("beam_energy", "energy_kev", 1), ("beam_current", "beam_current_pa", 1e-3))  # keV, nA
        _put(
            group.create_group("metadata"),
            {
                "General": {"title": layer, **_date_and_time(metadata.get("started"))},
                "Signal": {"signal_type": "", "quantity": self._plan.unit(layer)},
                **({"Acquisition_instrument": {"TEM": {"acquisition_mode": "STEM", **beam}}} if beam else {}),
                "lowdose": {
                    "inferred": self._plan.inferred(layer),
                    "label": self._plan.label(layer),
                    "channels": ", ".join(self._plan.channels_of(layer)),
                },
            },
        )
        _put(group.create_group("original_metadata"), {"lowdose": self._plan.described()})
        return self._dataset(group, layer)

    def _finish(self, facts: Mapping[str, Any]) -> None:
        for layer in self._plan.layers:
            _put(self._file[f"Experiments/{layer}/original_metadata"].create_group("frames"), facts)


class EmdFile(_Hdf5File):
    """An EMD 1.0 file, as py4DSTEM and HyperSpy read it, whose groups are NeXus groups as well.

    The instrument's names are those of NXem.

    Parameters
    ----------
    path : Path
        The file to make.
    plan : ExportPlan
        What comes.
    """

    def _laid_out(self) -> dict[Layer, Any]:
        program = str(self._plan.metadata.get("program", "lowdose"))
        self._file.attrs.update(emd_group_type="file", version_major=1, version_minor=0, authoring_program=program)
        self._file.attrs.update(NX_class="NXroot", default="lowdose")
        root = self._file.create_group("lowdose")
        root.attrs.update(emd_group_type="root", python_class="Root")
        root.attrs.update(NX_class="NXentry", default=self._plan.layers[0])
        datasets = {layer: self._array(root.create_group(layer), layer) for layer in self._plan.layers}
        self._instrument()
        _put(self._file.create_group("comments"), self._plan.described())
        return datasets

    def _array(self, group: Any, layer: Layer) -> Any:
        axes = self._axes(layer)
        group.attrs.update(emd_group_type="array", python_class="Array", NX_class="NXdata", signal="data")
        group.attrs["axes"] = [name for name, *_ in axes]
        for k, (name, step, unit, size) in enumerate(axes):
            group.create_dataset(f"dim{k}", data=np.array([0.0, step])).attrs.update(name=name, units=unit)
            group.create_dataset(name, data=np.arange(size) * step).attrs.update(units=unit, long_name=name)
        return self._dataset(group, layer)

    def _instrument(self) -> None:
        """Write what is known of the beam; nothing if nothing is."""
        beam = self._known(("voltage", "energy_kev", 1e3), ("current", "beam_current_pa", 1e-12))
        if not beam:
            return
        group = self._file.create_group("measurement")
        group.attrs["NX_class"] = "NXcollection"
        instrument = group.create_group("instrument")
        instrument.attrs["NX_class"] = "NXinstrument"
        column = instrument.create_group("ebeam_column")
        column.attrs["NX_class"] = "NXebeam_column"
        source = column.create_group("electron_source")
        source.attrs["NX_class"] = "NXsource"
        for name, value in beam.items():
            source.create_dataset(name, data=value).attrs["units"] = {"voltage": "V", "current": "A"}[name]
        source.create_dataset("probe", data="electron")

    def _finish(self, facts: Mapping[str, Any]) -> None:
        _put(self._file["comments"].create_group("frames"), facts)


def _put(group: Any, mapping: Mapping[str, Any]) -> None:
    """Write nested values: maps as groups, lists of numbers as datasets, the rest as attributes, odd things as JSON."""
    for name, value in zip(told_apart(map(_name, mapping)), mapping.values(), strict=True):
        if isinstance(value, dict):
            _put(group.create_group(name), value)
        elif value is None:
            group.attrs[name] = "_None_"
        elif (numbers := _numbers(value)) is not None:
            group.create_dataset(name, data=numbers)
        elif isinstance(value, bool | int | float) or (isinstance(value, str) and "\0" not in value):
            group.attrs[name] = value
        else:
            group.attrs[name] = json.dumps(value, ensure_ascii=False)


def _name(key: str) -> str:
    """Return a key as a name for HDF5, to which "/" divides, NUL ends and "." is the group itself."""
    name = key.replace("/", "_").replace("\0", "_")
    return name if name.strip(".") else "_"


def _numbers(value: Any) -> NDArray[Any] | None:
    """Return a list of numbers as an array, None if it is none or an array would not hold them as they are."""
    if not (isinstance(value, list) and value and all(isinstance(x, int | float) for x in value)):
        return None
    numbers = np.array(value)
    return numbers if numbers.dtype.kind in "biuf" and numbers.tolist() == value else None


def _date_and_time(started: str | None) -> dict[str, str]:
    if started is None:
        return {}
    moment = datetime.fromisoformat(started).astimezone(UTC)
    return {"date": moment.date().isoformat(), "time": moment.time().isoformat(), "time_zone": "UTC"}
