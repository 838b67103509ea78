"""Image files: TIFF, PNG, JPEG and NPY as grey images, and what they tell about themselves (no heavy imports)."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MIN_EDGE_PX = 32
MAX_PIXELS = 1_000_000_000
"""Larger images are refused by their header, before anything is allocated."""

EXPECTED = "expected a TIFF, PNG, JPEG, NPY or DM3, DM4, EMD, HSPY, MRC, SER file of one grey channel"

NM_PER_UNIT = {
    **dict.fromkeys(("m", "meter", "meters"), 1e9),
    "mm": 1e6,
    **dict.fromkeys(("μm", "um", "micron", "microns", "\\u00b5m"), 1e3),
    "nm": 1.0,
    **dict.fromkeys(("å", "angstrom", "angstroms"), 0.1),
    "pm": 1e-3,
}
"""By the unit's name in NFKC form and lower case; the one with a backslash is how ImageJ writes µm."""

PLAUSIBLE_NM = (1e-4, 1e6)
"""Other pixel sizes are placeholders, or reciprocal ones whose unit the file does not tell."""

SQUARE_TOLERANCE = 0.01


class SpecimenFileError(ValueError):
    """A file that cannot be a specimen: what was got, what was expected, what to do."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a file tells about an image; None is what it does not tell, never a guess.

    Parameters
    ----------
    pixel_size_nm : float or None
        Edge of a stored pixel [nm]; None also where rows and columns differ by more than 1 %.
    dwell_time_us : float or None
        Per probe position [µs].
    detector : str or None
        Name of the detector, such as HAADF.
    """

    pixel_size_nm: float | None = None
    dwell_time_us: float | None = None
    detector: str | None = None

    def __str__(self) -> str:
        known = (
            "" if self.pixel_size_nm is None else f"pixel size {self.pixel_size_nm:.4g} nm",
            "" if self.dwell_time_us is None else f"dwell time {self.dwell_time_us:.4g} µs",
            "" if self.detector is None else f"detector {self.detector}",
        )
        return ", ".join(filter(None, known)) or "nothing known"


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image of a file.

    Parameters
    ----------
    values : (rows, cols) ndarray
        Of any real dtype, both edges at least `MIN_EDGE_PX`.
    n_images : int
        Images the file holds.
    facts : ImageFacts
        What the file tells about them.
    """

    values: NDArray[Any]
    n_images: int = 1
    facts: ImageFacts = ImageFacts()


def in_nm(scale: Any, unit: Any) -> float | None:
    """Return a length in nm, or None if it is no plausible pixel size of a known unit.

    Examples
    --------
    >>> in_nm(0.25, "Å"), in_nm(0.25, "1/nm")
    (0.025, None)
    """
    factor = NM_PER_UNIT.get(unicodedata.normalize("NFKC", str(unit)).strip().lower())
    try:
        length = float(scale) * (factor or math.nan)
    except (TypeError, ValueError):
        return None
    return length if PLAUSIBLE_NM[0] <= length <= PLAUSIBLE_NM[1] else None


def square_pixel_nm(rows: float | None, cols: float | None) -> float | None:
    """Return the edge of a pixel [nm] from its extent along rows and columns, None if it is no square."""
    if rows is None or cols is None or abs(rows - cols) > SQUARE_TOLERANCE * cols:
        return None
    return cols


def read_tiff(path: Path, index: int) -> StoredImage:
    """Return page `index` of a TIFF and the number of pages; a stack behind one page counts as its images."""
    with tifffile.TiffFile(path) as tif:
        page: Any = tif.pages[index if len(tif.pages) > 1 else 0]
        kind = getattr(page.photometric, "name", str(page.photometric))
        grey = page.samplesperpixel == 1 and kind in ("MINISBLACK", "MINISWHITE")
        _require_one_channel(path, f"{kind}, {page.samplesperpixel} samples per pixel", grey=grey)
        if len(tif.pages) == 1 and tif.series[0].ndim > 2:
            series = tif.series[0]
            image, n_images = _stack_image(path, lambda: _load_series(series, path), series.shape, series.dtype, index)
        else:
            require_image(path, page.shape, page.dtype)
            image, n_images = page.asarray(), len(tif.pages)
        facts = _tiff_facts(tif)
    return StoredImage(_inverted(image) if kind == "MINISWHITE" else image, n_images, facts)


def _tiff_facts(tif: tifffile.TiffFile) -> ImageFacts:
    """Return the pixel size ImageJ or OME wrote; a plain resolution tag is that of a printer."""
    try:
        if tif.is_imagej:
            unit = (tif.imagej_metadata or {}).get("unit")
            cols, rows = (in_nm(1 / per_unit, unit) for per_unit in tif.pages[0].resolution)
        elif tif.is_ome:
            cols, rows = (_ome_pixel_nm(tif.ome_metadata or "", axis) for axis in "XY")
        else:
            return ImageFacts()
    except Exception:  # whatever is wrong with the metadata, the image may be right
        return ImageFacts()
    return ImageFacts(square_pixel_nm(rows, cols))


def _ome_pixel_nm(xml: str, axis: str) -> float | None:
    size = re.search(rf'PhysicalSize{axis}="([^"]*)"', xml)
    unit = re.search(rf'PhysicalSize{axis}Unit="([^"]*)"', xml)
    return in_nm(size[1], unit[1] if unit else "µm") if size else None  # µm is the schema's default


def read_npy(path: Path, index: int) -> StoredImage:
    """Return a 2-D array, or image `index` of a 3-D one (image, row, col) and how many there are."""
    shape, dtype = _npy_header(path)
    if len(shape) == 3 and shape[-1] in (3, 4):
        _require_one_channel(path, f"array of shape {shape}", grey=False)
    require_image(path, shape[-2:] if len(shape) == 3 else shape, dtype)
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    return StoredImage(*_stack_image(path, lambda: stored, shape, dtype, index))


def _npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype; version 3 of the format exists for records only, so that 1 and 2 are enough."""
    with path.open("rb") as file:
        form = np.lib.format
        version = form.read_magic(file)
        shape, _, dtype = (form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0)(file)
    return shape, dtype


def read_pillow(path: Path, index: int) -> StoredImage:
    """Return the image of a PNG or JPEG file."""
    with Image.open(path, formats=("PNG", "JPEG")) as image:
        largest = min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
        if image.width * image.height > largest:
            raise _too_large(path, (image.height, image.width), largest)
        _require_one_channel(path, f"mode {image.mode}", grey=image.mode in ("1", "L", "F") or image.mode[0] == "I")
        require_image(path, (image.height, image.width), np.dtype(np.uint8))
        return StoredImage(np.array(image))


READERS: dict[str, Callable[[Path, int], StoredImage]] = {
    ".tif": read_tiff,
    ".tiff": read_tiff,
    ".png": read_pillow,
    ".jpg": read_pillow,
    ".jpeg": read_pillow,
    ".npy": read_npy,
}
"""File name extension in lower case -> what reads it."""


def _inverted(image: NDArray[Any]) -> NDArray[Any]:
    return np.invert(image) if image.dtype.kind in "bui" else -image


def _load_series(series: Any, path: Path) -> NDArray[Any]:
    """Return a TIFF series, as a view of the file where its bytes lie in one piece."""
    contiguous = series.dataoffset is not None
    return np.asarray(tifffile.memmap(path, mode="r") if contiguous else series.asarray())


def _stack_image(
    path: Path, load: Callable[[], NDArray[Any]], shape: Sequence[int], dtype: np.dtype[Any] | None, index: int
) -> tuple[NDArray[Any], int]:
    """Return image `index` of a stack, its leading axes in a row, and the number of images."""
    require_image(path, shape[-2:], dtype)
    n_images = math.prod(shape[:-2])
    if n_images <= 0:
        raise zero_sized(path, shape)
    # a copy: the file may be cut short while it is shown
    return np.array(load().reshape(n_images, *shape[-2:])[index]), n_images


def _require_one_channel(path: Path, kind: str, *, grey: bool) -> None:
    if not grey:
        raise SpecimenFileError(
            f"{path} is a colour image ({kind}): expected one grey channel, convert it to grey first"
        )


def require_image(path: Path, shape: Sequence[int], dtype: np.dtype[Any] | None) -> None:
    """Raise unless what the header promises can be a specimen."""
    if dtype is None or dtype.kind not in "buif":
        raise SpecimenFileError(f"{path} holds values of type {dtype}: expected real numbers, convert it first")
    if math.prod(shape) == 0:
        raise zero_sized(path, shape)
    if len(shape) != 2:
        raise SpecimenFileError(f"{path} has shape {tuple(shape)}: {EXPECTED}, (rows, cols) or (images, rows, cols)")
    if math.prod(shape) > MAX_PIXELS:
        raise _too_large(path, shape, MAX_PIXELS)
    if min(shape) < MIN_EDGE_PX:
        raise SpecimenFileError(
            f"{path} has {shape[0]} x {shape[1]} pixels: expected at least {MIN_EDGE_PX} x {MIN_EDGE_PX}, "
            "use a larger image"
        )


def zero_sized(path: Path, shape: Sequence[int]) -> SpecimenFileError:
    """Return the refusal of an array without pixels."""
    return SpecimenFileError(f"{path} holds an array without pixels, shape {tuple(shape)}: {EXPECTED}, export it again")


def _too_large(path: Path, shape: Sequence[int], largest: int) -> SpecimenFileError:
    return SpecimenFileError(
        f"{path} promises {shape[0]} x {shape[1]} pixels: expected at most {largest}, crop or bin it first"
    )
