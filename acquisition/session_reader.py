"""SessionReader: a session file read from its beginning, as far as it goes, every byte distrusted (imports mcap)."""

from __future__ import annotations

import dataclasses
import os
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import mcap.records as mcap_records
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.stream_reader import breakup_chunk
from mcap.writer import MCAP0_MAGIC

from lowdose.acquisition.recording import FORMAT_VERSION, MAX_CHUNK_BYTES, MAX_MESSAGE_BYTES, PROFILE, unpacked
from lowdose.acquisition.wire import Message, WireError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

MAX_RECORD_BYTES = MAX_MESSAGE_BYTES + 8 * MAX_CHUNK_BYTES
"""Largest chunk read, packed or not: the largest message, with what was in its chunk before it."""
MAX_DAMAGE_TOLD = 100


class SessionError(ValueError):
    """The file is no session that can be read here."""


@dataclass(frozen=True, slots=True)
class SessionReport:
    """What reading a session file came to.

    Parameters
    ----------
    path : Path
        The file.
    size_bytes, readable_bytes : int
        Its size, and up to where its records could be followed.
    chunks, messages : int
        Read, with their CRC right.
    lost : int
        Messages that are missing before the last one read, by their running numbers.
    refused : int
        Messages that are whole, but none of this protocol.
    damage : tuple of str
        What is wrong, in file order; the first 100.
    ended : bool
        The file was closed properly.
    """

    path: Path
    size_bytes: int
    readable_bytes: int
    chunks: int
    messages: int
    lost: int
    refused: int
    damage: tuple[str, ...]
    ended: bool

    @property
    def whole(self) -> bool:
        """Everything that was written is there."""
        return self.ended and not (self.lost or self.refused or self.damage)


class SessionReader:
    """Reads a session file from its beginning, as far as it goes; it may be cut short, damaged or still being written.

    A damaged chunk is left out and told of; where the file's records cannot be followed any more, reading ends. The
    index at the end of the file is never asked. `report` tells what the last pass came to, as far as it went.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    SessionError
        If the file cannot be opened, is no session, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                _require_session(path, file)
        except OSError as error:
            raise SessionError(f"cannot read {path}: {error.strerror or error}") from None
        self._pass = _Pass(path, 0)

    @property
    def report(self) -> SessionReport:
        """What the last pass came to."""
        return self._pass.report()

    def __iter__(self) -> Iterator[Message]:
        for message, _ in self.records():
            yield message

    def records(self) -> Iterator[tuple[Message, mcap_records.Message]]:
        """Yield every message with the record it came in, in file order."""
        with self.path.open("rb") as file:
            this = self._pass = _Pass(self.path, os.fstat(file.fileno()).st_size)
            for body in this.chunks(file):
                for record in this.messages(body):
                    try:
                        message = unpacked(record.data)
                    except WireError as error:
                        this.refuse(record.sequence, str(error))
                    else:
                        this.count += 1
                        yield message, record


def read_session(path: Path) -> SessionReader:
    """Open a session file; see `SessionReader`."""
    return SessionReader(path)


RECORD_HEAD = struct.Struct("<BQ")
_MAX_HEADER_RECORD = 1 << 16
_UNREADABLE = (McapError, ValueError, struct.error, OverflowError, zstandard.ZstdError)
_FOLLOWED = (Opcode.CHUNK, Opcode.FOOTER)
_FIRST_PRIVATE = 0x80


def _require_session(path: Path, file: BinaryIO) -> None:
    """Raise SessionError unless the file begins as a session does; one cut short before it can tell may be one."""
    magic = file.read(len(MCAP0_MAGIC))
    if not magic or not MCAP0_MAGIC.startswith(magic):
        raise SessionError(f"{path} is no session: expected an MCAP file written by lowdose")
    head = file.read(RECORD_HEAD.size)
    if len(head) < RECORD_HEAD.size:
        return
    opcode, length = RECORD_HEAD.unpack(head)
    body = file.read(min(length, _MAX_HEADER_RECORD))
    if opcode == Opcode.HEADER and len(body) < length <= _MAX_HEADER_RECORD:
        return
    try:
        profile = mcap_records.Header.read(ReadDataStream(BytesIO(body))).profile if opcode == Opcode.HEADER else ""
    except _UNREADABLE:
        profile = ""
    if not profile.startswith(PROFILE):
        raise SessionError(f"{path} is an MCAP file, but no session of lowdose")
    if profile != f"{PROFILE}{FORMAT_VERSION}":
        raise SessionError(
            f"{path} is a session of format {profile.removeprefix(PROFILE)[:20]!r}, this version reads "
            f"'{FORMAT_VERSION}': use the version of lowdose that wrote it, or a newer one"
        )


class _Pass:
    """One way through a file, and what it has come to so far."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._at = 0
        self._n_chunks = self._refused = self._last = 0
        self._lost = 0
        self._damage: list[str] = []
        self._ended = False
        self.count = 0

    def report(self) -> SessionReport:
        return SessionReport(
            path=self._path,
            size_bytes=self._size,
            readable_bytes=self._at,
            chunks=self._n_chunks,
            messages=self.count,
            lost=self._lost,
            refused=self._refused,
            damage=tuple(self._damage),
            ended=self._ended,
        )

    def refuse(self, number: int, why: str) -> None:
        self._refused += 1
        self._tell(f"message {number} is refused: {why}")

    def chunks(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield the chunks' bodies; every size is checked against what is left of the file before anything is read.

        The library's own reader takes sizes as they stand and ends with a damaged chunk.
        """
        try:
            yield from self._chunks(file)
        except OSError as error:
            self._tell(f"the file cannot be read beyond byte {self._at:,}: {error.strerror or error}")

    def _chunks(self, file: BinaryIO) -> Iterator[bytes]:
        at = len(file.read(len(MCAP0_MAGIC)))
        while True:
            self._at = at
            head = file.read(RECORD_HEAD.size)
            if len(head) < RECORD_HEAD.size:
                self._tell(f"cut short at byte {self._size:,}: the file was not closed")
                return
            opcode, length = RECORD_HEAD.unpack(head)
            at += RECORD_HEAD.size + length
            if not (0 < opcode <= max(Opcode) or opcode >= _FIRST_PRIVATE):
                self._tell(f"there is no record at byte {self._at:,}: nothing beyond can be read")
                return
            if at > self._size:
                self._tell(f"cut short at byte {self._size:,}, within a record that began at byte {self._at:,}")
                return
            if opcode not in _FOLLOWED:
                file.seek(length, os.SEEK_CUR)
            elif length > MAX_RECORD_BYTES:
                self._tell(f"the record at byte {self._at:,} has {length:,} bytes: nothing beyond can be read")
                return
            elif opcode == Opcode.CHUNK:
                yield file.read(length)
            else:
                file.seek(length, os.SEEK_CUR)
                self._end(at, file.read(len(MCAP0_MAGIC) + 1))
                return

    def messages(self, chunk: bytes) -> list[mcap_records.Message]:
        """Return the messages of a chunk, none if it is damaged."""
        try:
            records = _messages_of(chunk)
        except _UNREADABLE as error:
            self._tell(f"the chunk at byte {self._at:,} is damaged and left out: {error}")
            return []
        self._n_chunks += 1
        for record in records:
            ahead = (record.sequence - self._last - 1) & 0xFFFFFFFF
            self._lost += ahead if ahead < 1 << 31 else 0  # a number that does not grow tells nothing
            self._last = record.sequence
        return records

    def _end(self, at: int, magic: bytes) -> None:
        self._ended = magic == MCAP0_MAGIC
        if self._ended:
            self._at = at + len(magic)
        else:
            self._tell(f"cut short at byte {self._size:,}: the file was not closed")

    def _tell(self, what: str) -> None:
        if len(self._damage) < MAX_DAMAGE_TOLD:
            self._damage.append(what)


def _messages_of(body: bytes) -> list[mcap_records.Message]:
    """Return the messages of a chunk record; one of `_UNREADABLE` if anything about it is wrong."""
    chunk = mcap_records.Chunk.read(ReadDataStream(BytesIO(body)))
    size = chunk.uncompressed_size
    if size > MAX_RECORD_BYTES:
        raise ValueError(f"its content is said to have {size:,} bytes")
    if chunk.compression == "zstd":
        if zstandard.frame_content_size(chunk.data) != size:
            raise ValueError("its sizes differ")
        content = zstandard.decompress(chunk.data, size)
    elif chunk.compression == "":
        content = chunk.data
    else:
        raise ValueError(f"it is compressed by {chunk.compression[:20]!r}, expected zstd")
    if len(content) != size or zlib.crc32(content) != chunk.uncompressed_crc:
        raise ValueError("its CRC is wrong")
    records = breakup_chunk(dataclasses.replace(chunk, compression="", data=content))
    return [record for record in records if isinstance(record, mcap_records.Message)]
