"""SessionReader: a session file read from its beginning, as far as it goes, every byte distrusted (imports mcap)."""

from __future__ import annotations

import os
import stat
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
from mcap.writer import MCAP0_MAGIC

from lowdose.acquisition.recording import FORMAT_VERSION, MAX_CHUNK_BYTES, MAX_MESSAGE_BYTES, PROFILE, unpacked
from lowdose.acquisition.wire import Message, WireError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path
    from typing import BinaryIO

MAX_RECORD_BYTES = MAX_MESSAGE_BYTES + 8 * MAX_CHUNK_BYTES
"""Largest chunk read, packed or not: the largest message, with what was in its chunk before it."""
MAX_CHUNK_RECORDS = 1 << 16
"""Most records in a chunk read: several times what the smallest messages come to in the largest one written."""
MAX_LOOKS = 4
"""So many times its size is looked at of a file in which every search for a chunk leads to another one."""
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
        Its size, and up to where its records could be followed in the end.
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

    A damaged chunk is left out and told of; where the file's records cannot be followed any more, the next whole chunk
    is searched for. The index at the end of the file is never asked. `report` tells what the last pass came to, as far
    as it went.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    SessionError
        If the file cannot be opened, is no regular file, no session, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device read for ever
                raise SessionError(f"{path} is no regular file: expected a session file (.mcap)")
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
_MESSAGE_HEAD = struct.Struct("<HIQQ")
_MAX_HEADER_RECORD = 1 << 16
_UNREADABLE = (McapError, ValueError, struct.error, OverflowError, zstandard.ZstdError)
_FIRST_PRIVATE = 0x80
_CHUNK_HEAD_BYTES = 40
_WINDOW_BYTES = 1 << 16
_MARK, _MARK_AT = struct.pack("<I", 4) + b"zstd", RECORD_HEAD.size + 28
"""The name of a chunk's compression, by which one is found again, and where it stands within the record."""


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
        self._at = self._sound_to = self._looked_at = 0  # sound up to the end of the last whole chunk
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
        at = self._sound_to = len(file.read(len(MCAP0_MAGIC)))
        while trouble := (yield from self._followed(file, at)):
            found = self._next_chunk(file)
            if found is None:
                self._tell(trouble)
                return
            skipped = f"{found - self._sound_to:,} bytes are skipped, up to the next whole chunk"
            self._tell(f"the records cannot be followed from byte {self._sound_to:,} on: {skipped}")
            at = found

    def _followed(self, file: BinaryIO, at: int) -> Generator[bytes, None, str]:
        """Yield the chunks' bodies from a byte on; return why no more can be had, "" at the end of a closed file."""
        while True:
            self._at = at
            file.seek(at)
            head = file.read(RECORD_HEAD.size)
            self._looked_at += len(head)
            if len(head) < RECORD_HEAD.size:
                return f"cut short at byte {self._size:,}: the file was not closed"
            opcode, length = RECORD_HEAD.unpack(head)
            at += RECORD_HEAD.size + length
            if not (0 < opcode <= max(Opcode) or opcode >= _FIRST_PRIVATE):
                return f"there is no record at byte {self._at:,}: nothing beyond can be read"
            if at > self._size:
                return f"cut short at byte {self._size:,}, within a record that began at byte {self._at:,}"
            if opcode == Opcode.FOOTER:
                return self._end(file, at)
            if opcode == Opcode.CHUNK and length > MAX_RECORD_BYTES:
                return f"the record at byte {self._at:,} has {length:,} bytes: nothing beyond can be read"
            if opcode == Opcode.CHUNK:
                self._looked_at += length
                yield file.read(length)

    def _end(self, file: BinaryIO, at: int) -> str:
        """Note that the file ends at a byte; return why it does not."""
        file.seek(at)
        magic = file.read(len(MCAP0_MAGIC) + 1)
        self._ended = magic == MCAP0_MAGIC
        if not self._ended:
            return f"cut short at byte {self._size:,}: the file was not closed"
        self._at = at + len(magic)
        return ""

    # --- finding a chunk again --------------------------------------------------------------------------------------

    def _next_chunk(self, file: BinaryIO) -> int | None:
        """Return where the next whole chunk after the last one begins, None if there is none."""
        for at in self._marked(file):
            if self._looked_at > MAX_LOOKS * self._size:
                return None
            if self._is_whole_chunk(file, at):
                return at
        return None

    def _marked(self, file: BinaryIO) -> Iterator[int]:
        """Yield where a chunk may begin after the last whole one."""
        at, overlap = self._sound_to, _MARK_AT + len(_MARK) - 1
        file.seek(at)
        while len(window := file.read(_WINDOW_BYTES)) > overlap:
            found = window.find(_MARK, _MARK_AT)
            while found >= 0:
                yield at + found - _MARK_AT
                found = window.find(_MARK, found + 1)
            self._looked_at += len(window)
            at += len(window) - overlap
            file.seek(at)

    def _is_whole_chunk(self, file: BinaryIO, at: int) -> bool:
        file.seek(at)
        try:
            opcode, length = RECORD_HEAD.unpack(file.read(RECORD_HEAD.size))
            if opcode != Opcode.CHUNK or length > min(MAX_RECORD_BYTES, self._size - at - RECORD_HEAD.size):
                return False
            self._looked_at += length
            _messages_of(file.read(length))
        except _UNREADABLE:
            return False
        return True

    # --- what is in a chunk -----------------------------------------------------------------------------------------

    def messages(self, chunk: bytes) -> list[mcap_records.Message]:
        """Return the messages of a chunk, none if it is damaged."""
        try:
            records = _messages_of(chunk)
        except _UNREADABLE as error:
            self._tell(f"the chunk at byte {self._at:,} is damaged and left out: {error}")
            return []
        self._n_chunks += 1
        self._sound_to = self._at + RECORD_HEAD.size + len(chunk)
        for record in records:
            ahead = (record.sequence - self._last - 1) & 0xFFFFFFFF
            self._lost += ahead if ahead < 1 << 31 else 0  # a number that does not grow tells nothing
            self._last = record.sequence
        return records

    def _tell(self, what: str) -> None:
        if len(self._damage) < MAX_DAMAGE_TOLD:
            self._damage.append(what)


def _messages_of(body: bytes) -> list[mcap_records.Message]:
    """Return the messages of a chunk record; one of `_UNREADABLE` if anything about it is wrong."""
    content, at = _content_of(body), 0
    messages: list[mcap_records.Message] = []
    for _ in range(MAX_CHUNK_RECORDS):
        if at == len(content):
            return messages
        opcode, length = RECORD_HEAD.unpack_from(content, at)
        begin, at = at + RECORD_HEAD.size, at + RECORD_HEAD.size + length
        if at > len(content):
            raise ValueError("a record reaches beyond its end")
        if opcode == Opcode.MESSAGE:
            messages.append(_message(content[begin:at]))
    raise ValueError(f"it holds more than {MAX_CHUNK_RECORDS:,} records")


def _message(body: bytes) -> mcap_records.Message:
    """Return a message record: read here, as there are 100,000 of them in a minute's session."""
    channel_id, sequence, log_time, publish_time = _MESSAGE_HEAD.unpack_from(body)
    return mcap_records.Message(
        channel_id=channel_id,
        sequence=sequence,
        log_time=log_time,
        publish_time=publish_time,
        data=body[_MESSAGE_HEAD.size :],
    )


def _content_of(body: bytes) -> bytes:
    """Return what a chunk record holds, unpacked; one of `_UNREADABLE` if that is not what was written."""
    chunk = mcap_records.Chunk.read(ReadDataStream(BytesIO(body)))
    size = chunk.uncompressed_size
    if size > MAX_RECORD_BYTES:
        raise ValueError(f"its content is said to have {size:,} bytes")
    if chunk.compression not in ("", "zstd"):
        raise ValueError(f"it is compressed by {chunk.compression[:20]!r}, expected zstd")
    content_size = zstandard.frame_content_size(chunk.data) if chunk.compression else len(chunk.data)
    if content_size != size or len(body) != _CHUNK_HEAD_BYTES + len(chunk.compression) + len(chunk.data):
        raise ValueError("its sizes differ")
    content = zstandard.decompress(chunk.data, size) if chunk.compression else chunk.data
    if len(content) != size or zlib.crc32(content) != chunk.uncompressed_crc:
        raise ValueError("its CRC is wrong")
    return content
