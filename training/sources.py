"""Sources of pictures to be scanned: folders of images, split by where they come from, and procedural specimens."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowdose.scan_patterns.checks import nearest_name
from lowdose.scan_patterns.grid import ScanGrid
from lowdose.simulator.image_files import SpecimenFileError
from lowdose.simulator.mixed import draw
from lowdose.simulator.sources import EXTENSIONS, finite_values, natural_key, read_image, scale_levels, unit_range
from lowdose.training.data_settings import AtMost
from lowdose.training.data_store import DataError, entry_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from numpy.typing import NDArray

    from lowdose.training.data_settings import ImageSource, ProceduralSource
    from lowdose.training.data_store import Store

logger = logging.getLogger(__name__)

Split = Literal["train", "validation"]
MANIFEST = "manifest.csv"
LANES = 32
"""Specimens in use at a time: examples next to each other are of different ones."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file to be read, and where it comes from."""

    path: Path
    source: str
    licence: str = "unknown"


@dataclass(frozen=True, slots=True)
class _Stored:
    file: ImageFile
    entry: str  # of the store, for the file
    name: str  # of the image in it


class ImageFolder:
    """The images of a folder that are large enough, of one split.

    Parameters
    ----------
    settings : ImageSource
        Which folder, and what of it.
    split : "train" or "validation"
        No source is in both.
    store : Store
        Keeps the decoded images.
    min_edge_px : int
        Smaller images are left out [pixel].
    levels : bool
        True: scaled as the simulator scales an image to a specimen, 0.1 and 99.9 percentiles to 5 % and 100 % of full
        scale. False: the extremes to 0 and 1.

    Attributes
    ----------
    skipped : dict of str to int
        Images left out: "smaller", and files that could not be read, "unreadable".

    Raises
    ------
    DataError
        If there is no such folder, its manifest cannot be used, or no image is left to train on.
    """

    def __init__(self, settings: ImageSource, split: Split, store: Store, *, min_edge_px: int, levels: bool) -> None:
        self._store, self._levels = store, levels
        folder = Path(os.path.expandvars(os.path.expanduser(settings.images)))
        listed = list_images(folder, settings)
        _require_sources(settings.validation_sources or (), {file.source for file in listed}, folder)
        files = [file for file in listed if split_of(file.source, settings) == split]
        self.skipped: Counter[str] = Counter()
        self._stored = [stored for file in files for stored in self._large_enough(file, min_edge_px)]
        if any(self.skipped.values()):
            logger.warning(
                "%s: left out of %s: %d images smaller than %d px, %d files unreadable",
                *(folder, split, self.skipped["smaller"], min_edge_px, self.skipped["unreadable"]),
            )
        if split == "train" and not self._stored:
            raise DataError(
                f"no image of {folder} is left to train on: {self.skipped['smaller']} are smaller than {min_edge_px} "
                f"px, {self.skipped['unreadable']} files unreadable, {len(listed) - len(files)} kept for validation; "
                "use other images or a smaller crop"
            )
        by_source: dict[str, list[_Stored]] = {}
        for stored in self._stored:
            by_source.setdefault(stored.file.source, []).append(stored)
        self._groups = list(by_source.values()) if settings.balance == "source" else [self._stored]

    def __len__(self) -> int:
        return len(self._stored)

    def picture(self, index: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return an image drawn at random, whatever the index."""
        group = self._groups[int(rng.integers(len(self._groups)))]
        stored = group[int(rng.integers(len(group)))]
        return self._decoded(stored.file.path, stored.entry)[stored.name]

    @property
    def provenance(self) -> list[dict[str, str]]:
        """Source, licence and number of images, for every source."""
        counts = Counter((stored.file.source, stored.file.licence) for stored in self._stored)
        return [{"source": s, "licence": licence, "images": str(n)} for (s, licence), n in sorted(counts.items())]

    def _large_enough(self, file: ImageFile, min_edge_px: int) -> Iterator[_Stored]:
        try:
            stat = file.path.stat()
            entry = entry_name("image", str(file.path.resolve()), stat.st_size, stat.st_mtime_ns, self._levels)
            decoded = self._decoded(file.path, entry)
        except (SpecimenFileError, OSError) as error:
            self.skipped["unreadable"] += 1
            logger.info("left out: %s", error)
            return
        for name, image in decoded.items():
            if min(image.shape) >= min_edge_px:
                yield _Stored(file, entry, name)
            else:
                self.skipped["smaller"] += 1

    def _decoded(self, path: Path, entry: str) -> dict[str, NDArray[Any]]:
        return self._store.get(entry, lambda: _decode(path, levels=self._levels))


def _decode(path: Path, *, levels: bool) -> Iterator[tuple[str, NDArray[np.float32]]]:
    n_images, index = 1, 0
    while index < n_images:
        stored = read_image(path, index)
        n_images = stored.n_images
        image = unit_range(finite_values(stored.values, path)[0])
        yield f"{index:06d}", scale_levels(image) if levels else image
        index += 1


def list_images(folder: Path, settings: ImageSource) -> list[ImageFile]:
    """Return the files of a folder, of its manifest's rows if there is one, in a fixed order.

    Raises
    ------
    DataError
        If there are none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: expected one with images, check the path of images: {settings.images}")
    manifest = folder / MANIFEST
    if manifest.is_file():
        files = _listed(manifest, settings)
    elif settings.where:
        raise DataError(f"{folder} has no {MANIFEST}: where needs one, leave it out to take all images")
    else:
        files = _found(folder)
    if not files:
        raise DataError(f"no image of {folder} is asked for: expected files {' '.join(EXTENSIONS)}, check where")
    return files


def _found(folder: Path) -> list[ImageFile]:
    parts = [p.relative_to(folder).parts for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file()]
    shown = [part for part in parts if not any(name.startswith(".") for name in part)]
    return [
        ImageFile(folder.joinpath(*part), part[0])
        for part in sorted(shown, key=lambda part: natural_key("/".join(part)))
    ]


def _listed(manifest: Path, settings: ImageSource) -> list[ImageFile]:
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines, restval="")
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{manifest} cannot be read ({error}): expected a CSV file in UTF-8") from None
    for column in ("file", "repo", *settings.where):
        if column not in columns:
            raise DataError(f"{manifest} has no column {column!r}: {nearest_name(column, columns)}")
    wanted = [row for row in rows if all(_fits(row[column], test) for column, test in settings.where.items())]
    return [ImageFile(manifest.parent / row["file"], row["repo"], row.get("licence") or "unknown") for row in wanted]


def _fits(value: str, test: AtMost | tuple[str, ...] | str) -> bool:
    if isinstance(test, AtMost):
        try:
            return float(value) <= test.at_most
        except ValueError:  # empty: not known
            return False
    return value in test if isinstance(test, tuple) else value == test


def _require_sources(named: Iterable[str], known: Collection[str], folder: Path) -> None:
    """Raise DataError if a source that is to be kept for validation is not there: its images would be trained on."""
    for name in named:
        if name not in known:
            raise DataError(
                f"no image that is asked for of {folder} is of the validation source {name!r}: "
                f"{nearest_name(name, sorted(known))}"
            )


def split_of(source: str, settings: ImageSource) -> Split:
    """Return the split a source belongs to, the same whatever else there is."""
    if settings.validation_sources is not None:
        return "validation" if source in settings.validation_sources else "train"
    digest = hashlib.blake2b(source.encode(), digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "big") / 2**64 < settings.validation_share else "train"


class Specimens:
    """Procedural specimens, each shared by `reuse` examples.

    Examples lie on lanes by turns, ``index % LANES``, and every lane has its own specimen, which is followed by another
    after so many examples. So batches see different ones, and worker processes that take batches by turns draw
    different ones.

    Parameters
    ----------
    settings : ProceduralSource
        Of which kind.
    entropy : tuple of int
        Seeds all of them.
    edge_px : int
        Of a picture [pixel].
    share : float
        Of all examples that come from here.
    """

    def __init__(self, settings: ProceduralSource, entropy: tuple[int, ...], *, edge_px: int, share: float) -> None:
        self._settings, self._entropy, self._edge_px = settings, entropy, edge_px
        self._turn = LANES * max(1, round(settings.reuse / share))
        self._kept: dict[int, tuple[int, NDArray[np.float32]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the pictures, which can be drawn again."""
        return {**self.__dict__, "_kept": {}}

    def picture(self, index: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the specimen of an example, whatever the generator."""
        lane = index % LANES
        generation = (index + lane * self._turn // LANES) // self._turn  # they do not all change at once
        if self._kept.get(lane, (-1,))[0] != generation:
            self._kept[lane] = (generation, self._draw(generation, lane))
        return self._kept[lane][1]

    @property
    def provenance(self) -> list[dict[str, str]]:
        """What they are, as one source."""
        source = f"lowdose simulator, {self._settings.procedural}"
        return [{"source": source, "licence": "BSD-3-Clause", "images": "without end"}]

    def _draw(self, generation: int, lane: int) -> NDArray[np.float32]:
        rng = np.random.default_rng([*self._entropy, generation, lane])
        grid = ScanGrid((self._edge_px, self._edge_px), self._settings.pixel_size_nm.draw(rng))
        picture = draw(self._settings.procedural, grid, rng)
        picture.setflags(write=False)
        return picture
