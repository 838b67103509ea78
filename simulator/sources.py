"""Specimen sources: what the virtual beam looks at, and images as specimens (imports numpy and pillow)."""

from __future__ import annotations

import logging
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from PIL import Image

from lowdose.scan_patterns.checks import require_positive
from lowdose.simulator.image_files import EXPECTED, READERS, ImageFacts, SpecimenFileError, StoredImage
from lowdose.simulator.session_images import SESSION_SUFFIX, read_session
from lowdose.simulator.vendor_files import VENDOR_FORMATS, read_vendor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

logger = logging.getLogger(__name__)

SOURCES: dict[str, str] = {
    "procedural": "lowdose.simulator.specimen:Procedural",
    "nanoparticles": "lowdose.simulator.nanostructures:Nanoparticles",
    "lattice": "lowdose.simulator.lattices:Lattice",
    "interface": "lowdose.simulator.interfaces:Interface",
    "core_shell": "lowdose.simulator.nanostructures:CoreShell",
    "gold_islands": "lowdose.simulator.nanostructures:GoldIslands",
    "single_atoms": "lowdose.simulator.nanostructures:SingleAtoms",
    "holes": "lowdose.simulator.nanostructures:Holes",
    "biological": "lowdose.simulator.biological:Biological",
    "mixed": "lowdose.simulator.mixed:Mixed",
    "changing": "lowdose.simulator.changing:Changing",
    "images": "lowdose.simulator.sources:Images",
}
"""Every specimen source: name -> "module:Class", imported when it is chosen."""

PERCENTILES = (0.1, 99.9)
"""Of the fitted image; they become `LEVELS`, so that a few hot pixels do not darken everything else."""

LEVELS = (0.05, 1.0)
"""Share of the detector's full-scale rate."""

PIXEL_SIZE_TOLERANCE = 0.01
"""Larger differences between the pixel size of the image, as shown, and that of the grid are a warning."""

EXTENSIONS = (*READERS, *VENDOR_FORMATS, SESSION_SUFFIX)


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


@dataclass(frozen=True, slots=True)
class Images:
    """Images as specimen: one file, a stack, or a folder of files as a sequence.

    The centre of an image in the grid's aspect ratio is area-averaged to the grid when larger, interpolated
    linearly when smaller; then its 0.1 and 99.9 percentiles become 5 % and 100 % of full scale. The grid's
    rotation plays no part; its pixel size is compared with that of the file, where known, and a difference is logged.

    Parameters
    ----------
    path : str
        A TIFF, PNG, JPEG or NPY file, a session in which whole rasters were recorded (MCAP) or, with the extra
        `vendor-formats`, a DM3, DM4, EMD, HSPY, MRC or SER file, or a folder of them, taken in natural order (2 before
        10). A multi-page TIFF, a 3-D NPY (image, row, col), a session and a vendor's series of images are sequences;
        of a stack in a folder only the first image is taken.
    fit : "resample" or "crop"
        "crop" takes the centre in native pixels instead of the whole image; it must be as large as the grid.
    frame_period_s : float
        Specimen time after which a sequence advances [s], > 0; it loops.
    dataset : str, optional
        Which image of a vendor's file, by its title, such as HAADF, or which detector channel of a session; the
        first one without it.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    path: str
    fit: Literal["resample", "crop"] = "resample"
    frame_period_s: float = 1.0
    dataset: str | None = None

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
    facts : ImageFacts
        What the file tells about the current image.
    """

    def __init__(self, spec: Images, grid: ScanGrid) -> None:
        self._spec, self._grid = spec, grid
        self._reported: set[int] = set()
        self._index = 0
        files = list_files(spec.path)
        first = read_image(files[0], 0, spec.dataset)
        n_images = first.n_images
        self._images = [(path, 0) for path in files] if len(files) > 1 else [(files[0], i) for i in range(n_images)]
        self._show(first)
        report_facts(first, files[0], grid, spec.fit)

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
            self._show(read_image(*self._images[self._index], self._spec.dataset))
        except SpecimenFileError as error:
            self._warn_once("image skipped, the one before it stays: %s", error)

    def _show(self, image: StoredImage) -> None:
        """Make a raw image the current frame, or raise and leave everything as it was."""
        path = self._images[self._index][0]
        finite, replaced = finite_values(image.values, path)
        frame = scale_levels(fit_to_grid(finite, self._grid.shape, self._spec.fit, path))
        frame.setflags(write=False)
        self._frame, self.replaced_pixels, self.facts = frame, replaced, image.facts
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
    try:
        files = [p for p in found.iterdir() if p.suffix.lower() in EXTENSIONS and p.name[0] != "." and p.is_file()]
    except OSError as error:
        raise SpecimenFileError(f"folder {found} cannot be listed ({error.strerror}): check its permissions") from error
    if not files:
        raise SpecimenFileError(f"folder {found} holds no image: {EXPECTED}, put one there ({' '.join(EXTENSIONS)})")
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


def read_image(path: Path, index: int, dataset: str | None = None) -> StoredImage:
    """Return image `index` of a file, of the dataset of that title if a vendor's file holds several.

    Raises
    ------
    SpecimenFileError
        Whatever is wrong with the file.
    """
    suffix = path.suffix.lower()
    try:
        if path.stat().st_size == 0:
            raise SpecimenFileError(f"{path} is empty (0 bytes): {EXPECTED}, copy it again")
        if suffix in VENDOR_FORMATS:
            return read_vendor(path, index, dataset)
        if suffix == SESSION_SUFFIX:
            return read_session(path, index, dataset)
        if suffix not in READERS:
            raise SpecimenFileError(f"{path} is no image by its name: {EXPECTED} ({' '.join(EXTENSIONS)})")
        if dataset is not None:
            raise SpecimenFileError(
                f"{path} holds no dataset {dataset!r}: expected a vendor's file or a session, leave dataset out"
            )
        return READERS[suffix](path, index)
    except SpecimenFileError:
        raise
    except Exception as error:  # a damaged file makes the decoders raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SpecimenFileError(f"{path} cannot be read ({reason}): {EXPECTED}, save it again elsewhere") from error


def report_facts(image: StoredImage, path: Path, grid: ScanGrid, fit: Literal["resample", "crop"]) -> None:
    """Log what a file tells, and warn where its pixels, as shown, are not as large as the grid says."""
    if image.facts == ImageFacts():
        return
    logger.info("%s: %s", path, image.facts)
    if image.facts.pixel_size_nm is None:
        return
    shown_nm = image.facts.pixel_size_nm * pixels_per_pixel(image.values.shape, grid.shape, fit)
    if abs(shown_nm / grid.pixel_size_nm - 1) > PIXEL_SIZE_TOLERANCE:
        logger.warning(
            "%s: a pixel of this grid shows %.4g nm of the image, grid.pixel_size_nm is %.4g: "
            "set grid.pixel_size_nm: %.4g for the true scale and dose",
            *(path, shown_nm, grid.pixel_size_nm, shown_nm),
        )


def pixels_per_pixel(image: Sequence[int], grid: Sequence[int], fit: Literal["resample", "crop"]) -> float:
    """Return how many pixels of an image, along an edge, one of the grid shows; shapes are (rows, cols).

    Examples
    --------
    >>> pixels_per_pixel((2048, 2048), (256, 512), "resample")
    4.0
    """
    return min(n / wanted for n, wanted in zip(image, grid, strict=True)) if fit == "resample" else 1.0


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
