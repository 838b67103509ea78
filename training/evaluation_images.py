"""Images for an evaluation: which can be used, and the truth that each of them holds (imports numpy and pillow)."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from lowdose.simulator.image_files import MIN_EDGE_PX, SpecimenFileError
from lowdose.simulator.sources import centre_crop, finite_values, read_image, unit_range
from lowdose.training.data_store import DataError
from lowdose.training.examples import MIN_RANGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from lowdose.training.sources import ImageFile

Skip = Literal["smaller", "unreadable", "blank"]
SKIPS: tuple[Skip, ...] = ("smaller", "unreadable", "blank")
REFUSED_AS_SMALL = f"expected at least {MIN_EDGE_PX} x {MIN_EDGE_PX}"
"""What the readers say of an image that is too small whatever the crop."""
TOLD = 5
"""Images left out that people are told one by one."""


class UnusableImageError(DataError):
    """An image that cannot be evaluated: why, in a word and in a sentence that names the file."""

    def __init__(self, reason: Skip, why: str) -> None:
        super().__init__(why)
        self.reason: Skip = reason


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An image that cannot be evaluated, and why: in a word and in a sentence that names the file."""

    file: ImageFile
    reason: Skip
    why: str


@dataclass(frozen=True, slots=True)
class ImageSet:
    """The images that can be evaluated.

    Parameters
    ----------
    files : tuple of ImageFile
        Those.
    left_out : tuple of LeftOut
        Those that cannot.
    crop_px : int
        Edge of the square taken from each [pixel].
    folder : Path
        Where names of files begin, absolute.
    """

    files: tuple[ImageFile, ...]
    left_out: tuple[LeftOut, ...]
    crop_px: int
    folder: Path

    @property
    def skipped(self) -> dict[Skip, int]:
        """How many were left out for which reason."""
        counts = Counter(left.reason for left in self.left_out)
        return {reason: counts[reason] for reason in SKIPS}

    def name_of(self, file: ImageFile) -> str:
        """Return the path of a file from the folder on, the whole path of one elsewhere."""
        path = file.path.absolute()
        return (path.relative_to(self.folder) if path.is_relative_to(self.folder) else path).as_posix()


def usable_images(
    listed: Iterable[ImageFile],
    crop_px: int,
    *,
    limit: int | None = None,
    folder: Path | None = None,
    advance: Callable[[], None] = lambda: None,
) -> ImageSet:
    """Return the images that are large enough, can be read and are not blank.

    Parameters
    ----------
    listed : iterable of ImageFile
        All of them.
    crop_px : int
        Edge of the square taken from the middle of each [pixel].
    limit : int, optional
        End with so many, taken from the sources by turns.
    folder : Path, optional
        Where names of files begin; without it in the innermost folder that holds them all.
    advance : callable
        Called after each file.

    Raises
    ------
    DataError
        If none is left.
    """
    listed = list(listed)
    files: list[ImageFile] = []
    left_out: list[LeftOut] = []
    for file in by_turns(listed) if limit else listed:
        try:
            read_truth(file.path, crop_px)
            files.append(file)
        except UnusableImageError as error:
            left_out.append(LeftOut(file, error.reason, str(error)))
        advance()
        if limit and len(files) == limit:
            break
    folder = common_folder([folder] if folder else [file.path.parent for file in listed])
    images = ImageSet(tuple(files), tuple(left_out), crop_px, folder)
    if not files:
        raise DataError(_nothing_left(images))
    return images


def common_folder(folders: Sequence[Path]) -> Path:
    """Return the innermost folder that holds them all, absolute."""
    return Path(os.path.commonpath([folder.absolute() for folder in folders] or [Path.cwd()]))


def _nothing_left(images: ImageSet) -> str:
    n = images.skipped
    remedy = "use other images or a smaller crop" if n["smaller"] else "use other images"
    return "\n".join(
        [
            f"no image is left to evaluate: {n['smaller']} are smaller than {images.crop_px} px, "
            f"{n['unreadable']} unreadable, {n['blank']} blank; {remedy}",
            *why_left_out(images),
        ]
    )


def why_left_out(images: ImageSet) -> list[str]:
    """Return a sentence for each of the first images left out, and how many more there are, for people."""
    told = [left.why.encode(errors="replace").decode() for left in images.left_out[:TOLD]]  # a name may be no text
    more = len(images.left_out) - len(told)
    return [*told, f"and {more} more"] if more else told


def by_turns(files: Iterable[ImageFile]) -> Iterator[ImageFile]:
    """Yield one file of every source, then the next of every source."""
    by_source: dict[str, list[ImageFile]] = {}
    for file in files:
        by_source.setdefault(file.source, []).append(file)
    for some in zip_longest(*by_source.values()):
        yield from (file for file in some if file is not None)


def read_truth(path: Path, crop_px: int) -> NDArray[np.float32]:
    """Return the middle of an image with its extremes at 0 and 1, (crop, crop).

    Of a stack the first image is taken; pixels that are not finite get its smallest value.

    Raises
    ------
    UnusableImageError
        If there is none.
    """
    try:
        values = read_image(path, 0).values
        rows, cols = values.shape
        if min(rows, cols) < crop_px:
            raise UnusableImageError("smaller", f"{path} has {rows} x {cols} pixels, fewer than the crop of {crop_px}")
        truth = unit_range(finite_values(centre_crop(values, (crop_px, crop_px)), path)[0])
    except SpecimenFileError as error:
        raise UnusableImageError("smaller" if REFUSED_AS_SMALL in str(error) else "unreadable", str(error)) from None
    if float(np.ptp(truth)) <= MIN_RANGE:
        raise UnusableImageError("blank", f"{path} is blank: all pixels of its middle have the same value")
    return truth


def read_truth_again(file: ImageFile, crop_px: int) -> NDArray[np.float32]:
    """Return the truth of an image that has one."""
    try:
        return read_truth(file.path, crop_px)
    except UnusableImageError as error:
        raise DataError(f"could be read before, leave the images alone meanwhile: {error}") from None
