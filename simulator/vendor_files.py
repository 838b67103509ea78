"""Files of microscope vendors as grey images, read by RosettaSciIO (GPL-3: an optional extra, imported when needed)."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdose.simulator.image_files import (
    ImageFacts,
    SpecimenFileError,
    StoredImage,
    in_nm,
    require_image,
    square_pixel_nm,
    zero_sized,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

# one chunk: what the header promises cannot multiply into chunks, and the file is mapped, not read
MAPPED = {"chunks": -1}

VENDOR_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".dm3": ("rsciio.digitalmicrograph", MAPPED),
    ".dm4": ("rsciio.digitalmicrograph", MAPPED),
    ".emd": ("rsciio.emd", {"select_type": "images", "stack_group": False}),
    ".hspy": ("rsciio.hspy", {}),
    ".mrc": ("rsciio.mrc", {**MAPPED, "metadata_file": None}),
    ".ser": ("rsciio.tia", {}),
}
"""File name extension in lower case -> module that reads it, arguments; an EMD file is Velox's or Berkeley's."""

HDF5 = (".emd", ".hspy")

MAX_VALUES = 2**44
MAX_CHUNKS = 2**24
"""Of an HDF5 dataset, values and chunks along an axis: a file of some bytes may promise any number of them."""

DM_TAGS = ("original_metadata", "ImageList", "TagGroup0", "ImageTags")
DM_STACK_TAGS = (*DM_TAGS, "source", "Tags at creation")
"""Where DigitalMicrograph's plug-in for stacks keeps the tags of the images."""

DWELL_TIMES_US: dict[tuple[str, ...], float] = {
    ("metadata", "Acquisition_instrument", "TEM", "dwell_time"): 1e6,
    ("metadata", "Acquisition_instrument", "SEM", "dwell_time"): 1e6,
    (*DM_TAGS, "DigiScan", "Sample Time"): 1.0,
    (*DM_STACK_TAGS, "DigiScan", "Sample Time"): 1.0,
    ("original_metadata", "Scan", "DwellTime"): 1e6,
}
"""Where a dwell time may be -> µs of its unit; HSPY keeps the places of the format it was made of."""

DETECTORS: tuple[tuple[str, ...], ...] = (
    ("original_metadata", "BinaryResult", "Detector"),
    (*DM_TAGS, "DataBar", "Signal Name"),
    (*DM_STACK_TAGS, "DataBar", "Signal Name"),
)


def read_vendor(path: Path, index: int, dataset: str | None) -> StoredImage:
    """Return image `index` of the dataset of that title, by default of the first one that holds images.

    Raises
    ------
    SpecimenFileError
        If the library is missing, or no dataset is an image or a series of images.
    """
    try:
        with _opened(path) as signals:
            return _stored_image(_choose(signals, dataset, path), index, path)
    except ModuleNotFoundError as error:
        raise SpecimenFileError(
            f'{path} needs the library RosettaSciIO ({error}): pip install "lowdose[vendor-formats]"'
        ) from None
    except ValueError as error:
        if "RGB" in str(error):  # of DigitalMicrograph's colour images, which the library does not read lazily
            raise SpecimenFileError(
                f"{path} is a colour image: expected one grey channel, convert it to grey first"
            ) from error
        raise


@contextmanager
def _opened(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the signals of a file as the library returns them, their data as dask arrays that nothing has read yet."""
    module, arguments = VENDOR_FORMATS[path.suffix.lower()]
    reader = import_module(module).file_reader
    if path.suffix.lower() in HDF5:
        _require_sane_hdf5(path)
    signals = [signal for signal in reader(str(path), lazy=True, **arguments) if "data" in signal]
    try:
        yield signals
    finally:
        for signal in signals:
            _close(signal["data"])


def _close(data: Any) -> None:
    """Close the HDF5 file behind a dask array; the library leaves it open."""
    handle = import_module("rsciio.utils.file").get_file_handle(data, warn=False)
    if handle is not None:
        handle.close()


def _require_sane_hdf5(path: Path) -> None:
    """Raise if the chunks of a dataset are so many that their list alone would fill the memory."""
    h5py = import_module("h5py")

    def check(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or not item.shape:
            return
        per_axis = zip(item.shape, item.chunks or item.shape, strict=True)
        n_chunks = max(n // max(chunk, 1) for n, chunk in per_axis)
        if item.size > MAX_VALUES or n_chunks > MAX_CHUNKS:
            raise SpecimenFileError(
                f"{path} promises an array of shape {item.shape} in {name}: expected an image, export it again"
            )

    with h5py.File(path, "r") as file:
        file.visititems(check)


def _choose(signals: Sequence[dict[str, Any]], dataset: str | None, path: Path) -> dict[str, Any]:
    """Return the first signal of that title that is an image or a series of images."""
    titles = ", ".join(sorted({_title(signal) for signal in signals}))
    named = [signal for signal in signals if dataset in (None, _title(signal))]
    if not named:
        raise SpecimenFileError(f"{path} holds no dataset {dataset!r}: expected one of {titles or 'none'}")
    objections = [_objection(signal) for signal in named]
    if "" not in objections:
        found = "; ".join(f"{_title(signal)}: {why}" for signal, why in zip(named, objections, strict=True))
        raise SpecimenFileError(
            f"{path} holds no image ({found}): expected a grey image or a series of them, export one first"
        )
    return named[objections.index("")]


def _title(signal: Mapping[str, Any]) -> str:
    return str(_look_up(signal, ("metadata", "General", "title")) or "unnamed")


def _objection(signal: Mapping[str, Any]) -> str:
    """Return why a signal is no image and no series of images, or nothing."""
    data, axes = signal["data"], signal["axes"]
    if data.dtype.kind not in "buif":
        return f"values of type {data.dtype}"
    if data.ndim not in (2, 3):
        return f"{data.ndim}-D data"
    if axes[-1].get("navigate") != axes[-2].get("navigate") or (data.ndim == 3 and _has_spectra(signal)):
        return "spectra"
    if any(_is_reciprocal(axis.get("units")) for axis in axes[-2:]):
        return f"reciprocal, in {axes[-1].get('units')}"
    return ""


def _has_spectra(signal: Mapping[str, Any]) -> bool:
    units = {str(axis.get("units")) for axis in signal["axes"]}
    return bool(units & {"eV", "keV"} or _look_up(signal, ("metadata", "Signal", "signal_type")))


def _is_reciprocal(unit: Any) -> bool:
    text = str(unit).replace(" ", "")
    return text.startswith("1/") or "-1" in text or text.endswith("rad")


def _stored_image(signal: Mapping[str, Any], index: int, path: Path) -> StoredImage:
    data = signal["data"]
    require_image(path, data.shape[-2:], data.dtype)
    n_images = data.shape[0] if data.ndim == 3 else 1
    if n_images == 0:
        raise zero_sized(path, data.shape)
    if path.suffix.lower() not in HDF5 and data.nbytes > path.stat().st_size:  # the others store plain values
        raise SpecimenFileError(f"{path} is cut short: expected {data.nbytes} bytes of values, copy it again")
    image = data[index] if data.ndim == 3 else data
    # a copy: the file may be cut short while it is shown
    return StoredImage(np.array(image.compute(scheduler="synchronous")), n_images, _facts(signal))


def _facts(signal: Mapping[str, Any]) -> ImageFacts:
    rows, cols = _mrc_cell_nm(signal) or (in_nm(axis.get("scale"), axis.get("units")) for axis in signal["axes"][-2:])
    dwell_times = (_positive(_look_up(signal, place), factor) for place, factor in DWELL_TIMES_US.items())
    detectors = (_look_up(signal, place) for place in DETECTORS)
    return ImageFacts(
        square_pixel_nm(rows, cols),
        next((time for time in dwell_times if time is not None), None),
        next((name for name in detectors if isinstance(name, str) and name), None),
    )


def _mrc_cell_nm(signal: Mapping[str, Any]) -> tuple[float | None, float | None] | None:
    """Return (rows, cols) of a pixel of an MRC file that tells the cell and not its sampling; the library puts 1 nm."""
    header = _look_up(signal, ("original_metadata", "std_header"))
    if not header or header["MX"] or _look_up(signal, ("original_metadata", "fei_header")):
        return None
    return in_nm(header["Ylen"] / header["NY"], "Å"), in_nm(header["Xlen"] / header["NX"], "Å")


def _positive(value: Any, factor: float) -> float | None:
    try:
        number = float(value) * factor
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None


def _look_up(tree: Any, place: Sequence[str]) -> Any:
    """Return what stands at a place of nested mappings, None if nothing does."""
    for key in place:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return None
    return tree
