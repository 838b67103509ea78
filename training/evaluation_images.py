"""Images for an evaluation: which can be used, and the truth that each of them holds (imports numpy and pillow)."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

import numpy as np

from lowdose.simulator.image_files import SpecimenFileError
from lowdose.simulator.sources import centre_crop, finite_values, read_image, unit_range
from lowdose.training.data_store import DataError
from lowdose.training.examples import MIN_RANGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from lowdose.training.sources import ImageFile

logger = logging.getLogger(__name__)

Skip = Literal["smaller", "unreadable", "blank"]
SKIPS: tuple[Skip, ...] = ("smaller", "unreadable", "blank")


@dataclass(frozen=True, slots=True)
class ImageSet:
    """The images that can be evaluated, how many cannot, and the edge of the square taken from each [pixel]."""

    files: tuple[ImageFile, ...]
    skipped: dict[Skip, int]
    crop_px: int


def usable_images(
    listed: Iterable[ImageFile],
    crop_px: int,
    *,
    limit: int | None = None,
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
    advance : callable
        Called after each file.

    Raises
    ------
    DataError
        If none is left.
    """
    skipped: Counter[Skip] = Counter()
    files: list[ImageFile] = []
    for file in by_turns(listed) if limit else listed:
        truth = read_truth(file.path, crop_px)
        if isinstance(truth, str):
            skipped[truth] += 1
        else:
            files.append(file)
        advance()
        if limit and len(files) == limit:
            break
    if not files:
        raise DataError(
            f"no image is left to evaluate: {skipped['smaller']} are smaller than {crop_px} px, "
            f"{skipped['unreadable']} unreadable, {skipped['blank']} blank; use other images or a smaller crop"
        )
    return ImageSet(tuple(files), {reason: skipped[reason] for reason in SKIPS}, crop_px)


def by_turns(files: Iterable[ImageFile]) -> Iterator[ImageFile]:
    """Yield one file of every source, then the next of every source."""
    by_source: dict[str, list[ImageFile]] = {}
    for file in files:
        by_source.setdefault(file.source, []).append(file)
    for some in zip_longest(*by_source.values()):
        yield from (file for file in some if file is not None)


def read_truth(path: Path, crop_px: int) -> NDArray[np.float32] | Skip:
    """Return the middle of an image with its extremes at 0 and 1, (crop, crop), or why there is none.

    Of a stack the first image is taken; pixels that are not finite get its smallest value.
    """
    try:
        values = read_image(path, 0).values
        if min(values.shape) < crop_px:
            return "smaller"
        truth = unit_range(finite_values(centre_crop(values, (crop_px, crop_px)), path)[0])
    except SpecimenFileError as error:
        logger.info("left out: %s", error)
        return "unreadable"
    return truth if float(np.ptp(truth)) > MIN_RANGE else "blank"


def read_truth_again(file: ImageFile, crop_px: int) -> NDArray[np.float32]:
    """Return the truth of an image that has one."""
    truth = read_truth(file.path, crop_px)
    if isinstance(truth, str):
        raise DataError(f"{file.path} could be read before and is {truth} now: leave the images alone meanwhile")
    return truth
