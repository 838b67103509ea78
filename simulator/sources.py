"""Specimen sources: what the virtual beam looks at, and images as specimens (imports numpy, tifffile and pillow)."""

from __future__ import annotations

import logging
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import tifffile
from PIL import Image

from lowdose.scan_patterns.checks import require_positive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

logger = logging.getLogger(__name__)

SOURCES: dict[str, str] = {
    "procedural": "lowdose.simulator.specimen:Procedural",
    "images": "lowdose.simulator.sources:Images",
}
"""Every specimen source: name -> "module:Class", imported when it is chosen."""

MIN_EDGE_PX = 32
MAX_PIXELS = 1_000_000_000
"""Larger images are refused by their header, before anything is allocated."""

PERCENTILES = (0.1, 99.9)
"""Of the fitted image; they become `LEVELS`, so that a few hot pixels do not darken everything else."""

LEVELS = (0.05, 1.0)
"""Share of the detector's full-scale rate."""

EXPECTED = "expected a TIFF, PNG, JPEG or NPY file of one grey channel"
REMEDY = "open it in another program and save it again"


class SpecimenSource(Protocol):
    """A specimen laid out on a grid."""

    def frame(self, t_s: float) -> NDArray[np.float32]:
        """Return the specimen at specimen time `t_s` [s], (rows, cols) of the grid.

        Called for every frame, in the thread of the controller. Values are finite and in [0, 1], the share of the
        detector's full-scale rate; the array is read-only. The same object comes back while nothing has changed:
        callers compare by identity to leave out work.
        """
        ...


class SourceSpec(Protocol):
    """What to look at: a frozen dataclass whose fields are its YAML keys."""

    def open(self, grid: ScanGrid) -> SpecimenSource:
        """Return the specimen on the grid; called once for every scan, off the hot path.

        Raises
        ------
        ValueError
            If there is nothing to look at; the message says what to do.
        """
        ...


class SpecimenFileError(ValueError):
    """A file that cannot be a specimen: what was got, what was expected, what to do."""


@dataclass(frozen=True, slots=True)
class Images:
    """Images as specimen: one file, a stack, or a folder of files as a sequence.

    The centre of an image in the grid's aspect ratio is area-averaged to the grid when larger, interpolated
    linearly when smaller; then its 0.1 and 99.9 percentiles become 5 % and 100 % of full scale. The grid's
    pixel size and rotation play no part.

    Parameters
    ----------
    path : str
        A TIFF, PNG, JPEG or NPY file, or a folder of them, taken in natural order (2 before 10). A multi-page TIFF
        and a 3-D NPY (image, row, col) are sequences; of a stack in a folder only the first image is taken.
    fit : "resample" or "crop"
        "crop" takes the centre in native pixels instead of the whole image; it must be as large as the grid.
    frame_period_s : float
        Specimen time after which a sequence advances [s], > 0; it loops.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    path: str
    fit: Literal["resample", "crop"] = "resample"
    frame_period_s: float = 1.0

    def __post_init__(self) -> None:
        if self.fit not in ("resample", "crop"):
            raise ValueError(f"fit must be 'resample' or 'crop', got {self.fit!r}")
        require_positive(frame_period_s=self.frame_period_s)

    def open(self, grid: ScanGrid) -> ImageSequence:
        """Return the sequence with its first image read; raises `SpecimenFileError` if that is not possible."""
        return ImageSequence(self, grid)


class ImageSequence:
    """The images of an `Images` on a grid, read when their time comes; the current one is kept.

    An image that cannot be read later on is logged once and the one before it stays.

    Attributes
    ----------
    replaced_pixels : int
        Non-finite pixels of the current image that were replaced by its smallest finite value.
    """

    def __init__(self, spec: Images, grid: ScanGrid) -> None:
        self._spec, self._grid = spec, grid
        self._reported: set[int] = set()
        self._index = 0
        files = list_files(spec.path)
        image, n_images = read_image(files[0], 0)
        self._images = [(path, 0) for path in files] if len(files) > 1 else [(files[0], i) for i in range(n_images)]
        self._show(image)

    def __len__(self) -> int:
        return len(self._images)

    def frame(self, t_s: float) -> NDArray[np.float32]:
        """Return the image of specimen time `t_s`, (rows, cols) in [0, 1] of full scale, read-only."""
        # 0.3 / 0.1 is a little less than 3 in floating point
        index = math.floor(t_s / self._spec.frame_period_s + 1e-9) % len(self)
        if index != self._index:
            self._index = index
            self._advance()
        return self._frame

    def _advance(self) -> None:
        try:
            self._show(read_image(*self._images[self._index])[0])
        except SpecimenFileError as error:
            self._warn_once("image skipped, the one before it stays: %s", error)

    def _show(self, image: NDArray[Any]) -> None:
        """Make a raw image the current frame, or raise and leave everything as it was."""
        path = self._images[self._index][0]
        finite, replaced = finite_values(image, path)
        frame = scale_levels(fit_to_grid(finite, self._grid.shape, self._spec.fit, path))
        frame.setflags(write=False)
        self._frame, self.replaced_pixels = frame, replaced
        if replaced:
            self._warn_once("%s: %d non-finite pixels set to the smallest finite value", path, replaced)

    def _warn_once(self, message: str, *args: object) -> None:
        if self._index not in self._reported:
            self._reported.add(self._index)
            logger.warning(message, *args)


def list_files(path: str) -> list[Path]:
    """Return the file, or the image files of the folder in natural order; hidden files are left out."""
    found = Path(os.path.expanduser(path))
    if found.is_file():
        return [found]
    if not found.is_dir():
        raise SpecimenFileError(f"{found} is no file or folder: {EXPECTED} or a folder of them, check the path")
    files = [p for p in found.iterdir() if p.suffix.lower() in READERS and p.name[0] != "." and p.is_file()]
    if not files:
        raise SpecimenFileError(f"folder {found} holds no image: {EXPECTED}, put one there ({' '.join(READERS)})")
    return sorted(files, key=lambda p: natural_key(p.name))


def natural_key(name: str) -> tuple[list[tuple[float, str]], str]:
    """Return a sort key that takes digits as numbers, before letters of either case.

    Examples
    --------
    >>> sorted(["a10.tif", "a2.tif", "A1.tif"], key=natural_key)
    ['A1.tif', 'a2.tif', 'a10.tif']
    """
    parts = re.findall(r"([0-9]+)|([^0-9]+)", name.lower())
    return [(int(digits) if digits else math.inf, text) for digits, text in parts], name


def read_image(path: Path, index: int) -> tuple[NDArray[Any], int]:
    """Return an image of a file and the number of images the file holds.

    Returns
    -------
    image : (rows, cols) ndarray
        Of any real dtype, both edges at least `MIN_EDGE_PX`.
    n_images : int

    Raises
    ------
    SpecimenFileError
        Whatever is wrong with the file.
    """
    try:
        if path.stat().st_size == 0:
            raise SpecimenFileError(f"{path} is empty (0 bytes): {EXPECTED}, copy it again")
        if path.suffix.lower() not in READERS:
            raise SpecimenFileError(f"{path} is no image by its name: {EXPECTED} ({' '.join(READERS)})")
        return READERS[path.suffix.lower()](path, index)
    except SpecimenFileError:
        raise
    except Exception as error:  # a damaged file makes the decoders raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SpecimenFileError(f"{path} cannot be read ({reason}): {EXPECTED}, {REMEDY}") from error


def read_tiff(path: Path, index: int) -> tuple[NDArray[Any], int]:
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
            _require_image(path, page.shape, page.dtype)
            image, n_images = page.asarray(), len(tif.pages)
    return (_inverted(image) if kind == "MINISWHITE" else image), n_images


def read_npy(path: Path, index: int) -> tuple[NDArray[Any], int]:
    """Return a 2-D array, or image `index` of a 3-D one (image, row, col) and how many there are."""
    shape, dtype = _npy_header(path)
    if len(shape) == 3 and shape[-1] in (3, 4):
        _require_one_channel(path, f"array of shape {shape}", grey=False)
    _require_image(path, shape[-2:] if len(shape) == 3 else shape, dtype)
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    return _stack_image(path, lambda: stored, shape, dtype, index)


def _npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype; version 3 of the format exists for records only, so that 1 and 2 are enough."""
    with path.open("rb") as file:
        form = np.lib.format
        version = form.read_magic(file)
        shape, _, dtype = (form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0)(file)
    return shape, dtype


def read_pillow(path: Path, index: int) -> tuple[NDArray[Any], int]:
    """Return the image of a PNG or JPEG file."""
    with Image.open(path, formats=("PNG", "JPEG")) as image:
        largest = min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
        if image.width * image.height > largest:
            raise _too_large(path, (image.height, image.width), largest)
        _require_one_channel(path, f"mode {image.mode}", grey=image.mode in ("1", "L", "F") or image.mode[0] == "I")
        _require_image(path, (image.height, image.width), np.dtype(np.uint8))
        return np.array(image), 1


READERS: dict[str, Callable[[Path, int], tuple[NDArray[Any], int]]] = {
    ".tif": read_tiff,
    ".tiff": read_tiff,
    ".png": read_pillow,
    ".jpg": read_pillow,
    ".jpeg": read_pillow,
    ".npy": read_npy,
}
"""File name extension in lower case -> what reads it."""


def finite_values(image: NDArray[Any], path: Path) -> tuple[NDArray[Any], int]:
    """Return the image with non-finite pixels at its smallest finite value, and how many there were."""
    finite = np.isfinite(image)
    replaced = image.size - int(np.count_nonzero(finite))
    if replaced == image.size:
        raise SpecimenFileError(f"{path} holds no finite pixel: {EXPECTED} with numbers in it, export it again")
    return (np.where(finite, image, image[finite].min()) if replaced else image), replaced


def fit_to_grid(
    image: NDArray[Any], shape: tuple[int, int], fit: Literal["resample", "crop"], path: Path
) -> NDArray[np.float32]:
    """Return the centre of a finite image on (rows, cols) pixels, scaled to [0, 1] by its extremes."""
    rows, cols = image.shape
    if fit == "resample":
        image = centre_crop(image, (round(cols * shape[0] / shape[1]), round(rows * shape[1] / shape[0])))
        return resample(unit_range(image), shape)
    if rows < shape[0] or cols < shape[1]:
        raise SpecimenFileError(
            f"{path} has {rows} x {cols} pixels: fit 'crop' needs at least those of the grid, "
            f"{shape[0]} x {shape[1]}, use fit: resample or a smaller grid"
        )
    return unit_range(centre_crop(image, shape))


def centre_crop(image: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Return a view of at most `shape` and at least one pixel around the centre."""
    (row, rows), (col, cols) = (
        ((n - keep) // 2, keep)
        for n, keep in ((n, max(1, min(n, wanted))) for n, wanted in zip(image.shape, shape, strict=True))
    )
    return image[row : row + rows, col : col + cols]


def unit_range(image: NDArray[Any]) -> NDArray[np.float32]:
    """Return a finite image as float32 with its extremes at 0 and 1; a constant one becomes 0.5.

    Halves are subtracted, since the difference of two floats may overflow.
    """
    halves = image.astype(np.result_type(image.dtype, np.float32)) * 0.5
    low, high = halves.min(), halves.max()
    if high <= low:
        return np.full(image.shape, 0.5, np.float32)
    halves -= low
    halves /= high - low
    return halves.astype(np.float32)


def resample(image: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return the image area-averaged to `shape` when it is larger, interpolated linearly when smaller."""
    larger = all(n >= wanted for n, wanted in zip(image.shape, shape, strict=True))
    method = Image.Resampling.BOX if larger else Image.Resampling.BILINEAR
    resized = Image.fromarray(np.ascontiguousarray(image)).resize((shape[1], shape[0]), method)
    return np.array(resized, np.float32)


def scale_levels(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the image with its 0.1 and 99.9 percentiles at 5 % and 100 %, clipped to [0, 1]; a constant one is 0.5.

    Where both percentiles agree (a bright dot on nothing) the extremes take their place.
    """
    low, high = np.percentile(image, PERCENTILES).tolist()
    if high <= low:
        low, high = float(image.min()), float(image.max())
    if high <= low:
        return np.full(image.shape, 0.5, np.float32)
    share = (image.astype(np.float64) - low) / (high - low)
    return np.asarray(np.clip(LEVELS[0] + (LEVELS[1] - LEVELS[0]) * share, 0, 1), np.float32)


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
    _require_image(path, shape[-2:], dtype)
    n_images = math.prod(shape[:-2])
    if n_images <= 0:
        raise _zero_sized(path, shape)
    # a copy: the file may be cut short while it is shown
    return np.array(load().reshape(n_images, *shape[-2:])[index]), n_images


def _require_one_channel(path: Path, kind: str, *, grey: bool) -> None:
    if not grey:
        raise SpecimenFileError(
            f"{path} is a colour image ({kind}): expected one grey channel, convert it to grey first"
        )


def _require_image(path: Path, shape: Sequence[int], dtype: np.dtype[Any] | None) -> None:
    """Raise unless what the header promises can be a specimen."""
    if dtype is None or dtype.kind not in "buif":
        raise SpecimenFileError(f"{path} holds values of type {dtype}: expected real numbers, convert it first")
    if math.prod(shape) == 0:
        raise _zero_sized(path, shape)
    if len(shape) != 2:
        raise SpecimenFileError(f"{path} has shape {tuple(shape)}: {EXPECTED}, (rows, cols) or (images, rows, cols)")
    if math.prod(shape) > MAX_PIXELS:
        raise _too_large(path, shape, MAX_PIXELS)
    if min(shape) < MIN_EDGE_PX:
        raise SpecimenFileError(
            f"{path} has {shape[0]} x {shape[1]} pixels: expected at least {MIN_EDGE_PX} x {MIN_EDGE_PX}, "
            "use a larger image"
        )


def _zero_sized(path: Path, shape: Sequence[int]) -> SpecimenFileError:
    return SpecimenFileError(f"{path} holds an array without pixels, shape {tuple(shape)}: {EXPECTED}, export it again")


def _too_large(path: Path, shape: Sequence[int], largest: int) -> SpecimenFileError:
    return SpecimenFileError(
        f"{path} promises {shape[0]} x {shape[1]} pixels: expected at most {largest}, crop or bin it first"
    )
