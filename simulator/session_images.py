"""Recorded full rasters as images: the frames of a session that measured every pixel (imports numpy only)."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING

from lowdose.acquisition.assembly import FrameAssembler
from lowdose.acquisition.messages import SampleBlock, ScanStart
from lowdose.acquisition.session_reader import SessionError, SessionReader
from lowdose.simulator.image_files import ImageFacts, SpecimenFileError, StoredImage, require_image
from lowdose.simulator.replayed_scan import label, require_sound

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowdose.acquisition.frames import SparseFrame

SESSION_SUFFIX = ".mcap"

Raster = tuple[ScanStart, "SparseFrame"]


def read_session(path: Path, index: int, channel: str | None) -> StoredImage:
    """Return a full raster of a session in counts per dwell time, and how many of them it holds.

    Parameters
    ----------
    path : Path
        Session file.
    index : int
        Which of its full rasters, from 0.
    channel : str or None
        Detector channel; the first one without it.

    Raises
    ------
    SpecimenFileError
        If it is no session, or holds no such image.
    """
    stat = path.stat()
    try:
        rasters = _opened(path, channel, stat.st_size, stat.st_mtime_ns)
        start, frame = rasters.get(index)
    except SessionError as error:
        raise SpecimenFileError(str(error)) from None
    k = 0 if channel is None else start.channels.index(channel)
    values = frame.values[k]
    require_image(path, values.shape, values.dtype)
    facts = ImageFacts(start.grid.pixel_size_nm, start.dwell_time_us, label(start.channels[k]))
    return StoredImage(values, len(rasters), facts)


@lru_cache(maxsize=1)
def _opened(path: Path, channel: str | None, _size: int, _mtime_ns: int) -> _Rasters:
    return _Rasters(path, channel)


class _Rasters:
    """The full rasters of a session, one after the other: a step forward reads one frame, one back begins anew."""

    def __init__(self, path: Path, channel: str | None) -> None:
        self._path, self._channel = path, channel
        self._lock = threading.Lock()
        self._following, self._next = _rasters(path, channel), 0
        self._n = sum(1 for _ in _rasters(path, channel))
        if self._n == 0:
            of_channel = "" if channel is None else f" of channel {channel!r}"
            raise SpecimenFileError(
                f"{path} holds no full raster{of_channel}: expected a session with a whole frame that visits every "
                "pixel, record one with pattern raster"
            )

    def __len__(self) -> int:
        return self._n

    def get(self, index: int) -> Raster:
        """Return the raster of an index; SpecimenFileError if the session does not hold so many."""
        with self._lock:
            if index < self._next:
                self._following, self._next = _rasters(self._path, self._channel), 0
            for raster in self._following:
                self._next += 1
                if self._next > index:
                    return raster
        raise SpecimenFileError(f"{self._path} holds {self._n} full rasters, number {index + 1} was asked for")


def _rasters(path: Path, channel: str | None) -> Iterator[Raster]:
    """Yield the whole frames of the scans that visit every pixel."""
    assembler: FrameAssembler | None = None
    for message in SessionReader(path):
        if isinstance(message, ScanStart):
            suits = channel in (None, *message.channels) and _is_full(message)
            assembler = FrameAssembler(message) if suits else None
        elif isinstance(message, SampleBlock) and assembler is not None:
            for frame in assembler.add(message, 0):
                if frame.samples_used == len(assembler.start.path_of(frame.frame_index)):
                    yield assembler.start, frame


def _is_full(start: ScanStart) -> bool:
    """Tell whether every frame of a scan visits every pixel; the lengths first, for a grid costs nothing to claim."""
    try:
        require_sound(start)
    except ValueError:
        return False
    return all(len(path) >= path.grid.n_pixels and bool(path.mask.all()) for path in start.paths)
