"""SessionWriter: everything measured, as it came, in an MCAP file readable up to its last chunk (imports mcap).

One MCAP message is one msgpack map: the header of the wire, and `data`, the arrays' bytes by name.
"""

from __future__ import annotations

import os
import platform
import time
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

import msgpack
import numpy as np
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter

from lowdose.acquisition.messages import ScanStart
from lowdose.acquisition.status import Event, StatusReport
from lowdose.acquisition.wire import MAX_HEADER_BYTES, PROTOCOL_VERSION, Message, WireError, decode_unpacked, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from lowdose.acquisition.wire import Topic

FORMAT_VERSION = 1
PROFILE = "lowdose-session-"
CHUNK_NS = 200_000_000
"""Time after which a chunk is closed: what a crash of this process can cost."""
MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 16 * 1024, 1024 * 1024
MAX_MESSAGE_BYTES = 1 << 30
"""Largest message written."""
MAX_COMPLAINT = 200

RECORDED: dict[str, Topic] = {
    "ScanStart": "samples",
    "SampleBlock": "samples",
    "ScanEnd": "samples",
    "DenseFrame": "frames",
    "StatusReport": "status",
    "Event": "status",
}
"""The message types a session holds, each a channel of its own, and the topic each has on the wire."""

Fsync = Literal["never", "chunk", "close"]
Facts = Literal["session", "settings", "calibration", "beam"]


class RecordingError(RuntimeError):
    """The session file cannot be made, or cannot be written any further; what was written stays readable."""


def note(text: str, t_ns: int) -> Event:
    """Return an operator's note, as a session keeps it."""
    return Event("operator", "note", text, "info", t_ns)


def facts(kind: Facts, values: Mapping[str, Any], t_ns: int) -> StatusReport:
    """Return settings, a calibration or beam parameters as a session keeps them, whole, each time they change."""
    return StatusReport(kind, t_ns, dict(values))


# --- a message as bytes ---------------------------------------------------------------------------------------------

_MAP_OF_4, _MAP_OF_5 = b"\x84", b"\x85"


def packed(message: Message) -> bytes:
    """Return the message as one msgpack map: the header as on the wire, with the arrays' bytes as a fifth entry."""
    _, header, *parts = encode(message)
    names = [name for name, _, _ in msgpack.unpackb(header)["parts"]]
    if bytes(header[:1]) != _MAP_OF_4:
        raise WireError("the wire's header is no map of four entries any more")
    data = msgpack.packb(dict(zip(names, parts, strict=True)))
    return b"".join((_MAP_OF_5, memoryview(header)[1:], msgpack.packb("data"), data))


def unpacked(content: bytes) -> Message:
    """Return the message; WireError whatever else the bytes are."""
    try:
        body = msgpack.unpackb(
            content,
            use_list=False,
            max_array_len=MAX_HEADER_BYTES,
            max_map_len=MAX_HEADER_BYTES,
            max_str_len=MAX_HEADER_BYTES,
            max_ext_len=0,
        )
        topic, data = RECORDED[body["type"]], body.pop("data")
        if tuple(data) != tuple(part[0] for part in body["parts"]):
            raise WireError("the arrays are not those of the header")
        return decode_unpacked(body, topic.encode(), [memoryview(part) for part in data.values()])
    except WireError:
        raise
    except Exception as error:  # msgpack raises half a dozen kinds for bad bytes
        raise WireError(f"no recorded message: {type(error).__name__}: {error}"[:MAX_COMPLAINT]) from None


# --- writing --------------------------------------------------------------------------------------------------------


def chunk_bytes(start: ScanStart) -> int:
    """Return the size at which a chunk is closed: what 200 ms of a scan's samples fill, 16 KiB to 1 MiB."""
    positions = sum(len(path) for path in start.paths)
    duration_us = sum(path.duration_us for path in start.paths)
    filled = CHUNK_NS / 1e3 * positions / duration_us * 2 * len(start.channels)
    return int(min(max(filled, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES))


def close_chunk(writer: McapWriter) -> None:
    """Compress and write the chunk under way, if it holds anything: the one place that asks it of the library."""
    writer.flush()  # type: ignore[no-untyped-call]


class SessionWriter:
    """Writes one session file; only one thread may.

    Messages gather in a chunk, which is written when it is full or 200 ms old. A crash of this process costs the chunk
    under way; one of the machine, what the operating system had not yet put on the disk.

    Parameters
    ----------
    path : Path
        Must not exist yet: nothing recorded is overwritten, and no second recorder can take the same file.
    fsync : "never", "chunk" or "close"
        When to wait until the disk itself has it.
    clock, wall_clock : callable
        Monotonic and wall-clock time [ns].

    Raises
    ------
    RecordingError
        If the file exists or cannot be made; from every method, once it cannot be written any further.
    """

    def __init__(
        self,
        path: Path,
        *,
        fsync: Fsync = "close",
        clock: Callable[[], int] = time.monotonic_ns,
        wall_clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._clock = clock
        t_ns, wall_clock_ns = clock(), wall_clock()
        self._wall_offset_ns = wall_clock_ns - t_ns
        self._file = ChunkedFile(path, fsync)
        self._chunk_bytes, self._chunk_ends_ns = MIN_CHUNK_BYTES, 0
        self._count = 0
        self._written = 0
        try:
            self.write(facts("session", {**versions(), "wall_clock_ns": wall_clock_ns, "t_ns": t_ns}, t_ns))
            self._close_chunk()
        except RecordingError:
            self._file.discard()
            raise

    @property
    def written(self) -> int:
        """Running number of the last message handed to the operating system (with fsync "chunk": to the disk)."""
        return self._written

    @property
    def size_bytes(self) -> int:
        """Size of the file so far."""
        return self._file.size_bytes

    def write(self, message: Message) -> int:
        """Add a message to the chunk under way and return its running number; it is safe when `written` reaches it.

        Raises
        ------
        ValueError
            If a session holds no such message, or it is too large; the file can still be written.
        RecordingError
            If the file cannot.
        """
        kind = type(message).__name__
        if kind not in RECORDED:
            raise ValueError(f"a session holds {', '.join(RECORDED)}, got {kind}")
        content = packed(message)
        if len(content) > MAX_MESSAGE_BYTES:
            raise ValueError(f"{kind} has {len(content):,} bytes, at most {MAX_MESSAGE_BYTES:,} are recorded")
        now_ns = self._clock()
        if self._written == self._count:
            self._chunk_ends_ns = now_ns + CHUNK_NS
        if isinstance(message, ScanStart):
            self._chunk_bytes = chunk_bytes(message)
        self._file.add(kind, content, now_ns + self._wall_offset_ns, self._count + 1)
        self._count += 1
        if self._file.pending_bytes >= self._chunk_bytes:
            self._close_chunk()
        else:
            self.tick(now_ns)
        return self._count

    def tick(self, now_ns: int) -> None:
        """Write the chunk under way if it is old enough; to be called at least every 50 ms.

        Parameters
        ----------
        now_ns : int
            Monotonic time [ns].
        """
        if self._written < self._count and now_ns >= self._chunk_ends_ns:
            self._close_chunk()

    def close(self) -> None:
        """Write what is left and the summary, and close the file; twice is fine."""
        if self._file.finish():
            self._written = self._count

    def _close_chunk(self) -> None:
        self._file.close_chunk()
        self._written = self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def versions() -> dict[str, Any]:
    """Return what a session tells of the software that wrote it."""
    return {
        "format": FORMAT_VERSION,
        "protocol": PROTOCOL_VERSION,
        "lowdose": _version_of("lowdose"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "mcap": _version_of("mcap"),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


class ChunkedFile:
    """A new MCAP file, chunk by chunk; after the first error it takes nothing more."""

    def __init__(self, path: Path, fsync: Fsync) -> None:
        self._path, self._fsync = path, fsync
        self._error: RecordingError | None = None
        self._finished = False
        self.pending_bytes = 0
        with self._writing():
            self._output = _Output(path)
        try:
            self._begin()
        except RecordingError:
            self.discard()
            raise

    def _begin(self) -> None:
        with self._writing():
            # The library closes a chunk by its size alone: here it never does, `close_chunk` is called instead.
            self._mcap = McapWriter(
                self._output,  # type: ignore[arg-type]
                chunk_size=1 << 62,
                compression=CompressionType.ZSTD,
                enable_crcs=True,
                enable_data_crcs=True,
            )
            self._mcap.start(f"{PROFILE}{FORMAT_VERSION}", f"lowdose {_version_of('lowdose')}")
            self._channels = {kind: self._mcap.register_channel(kind, "msgpack", 0) for kind in RECORDED}
            if self._fsync != "never":
                _sync_folder(self._path)

    @property
    def size_bytes(self) -> int:
        """Size of the file so far."""
        return self._output.tell()

    def add(self, kind: str, content: bytes, log_time_ns: int, number: int) -> None:
        """Add a packed message to the chunk under way."""
        if self._finished:
            raise RecordingError(f"{self._path} is closed: nothing more is recorded there")
        with self._writing():
            self._mcap.add_message(
                self._channels[kind], log_time_ns, content, publish_time=log_time_ns, sequence=number & 0xFFFFFFFF
            )
        self.pending_bytes += len(content)

    def close_chunk(self) -> None:
        """Write the chunk under way, if it holds anything."""
        with self._writing():
            close_chunk(self._mcap)
            if self._fsync == "chunk":
                self._output.sync()
        self.pending_bytes = 0

    def finish(self) -> bool:
        """Write chunk and summary and close, after an error just close; tell whether everything was written."""
        if self._finished:
            return self._error is None
        self._finished = True
        try:
            if self._error is None:
                with self._writing():
                    self._mcap.finish()  # type: ignore[no-untyped-call]
                    if self._fsync != "never":
                        self._output.sync()
        finally:
            self._output.close()
        return self._error is None

    def discard(self) -> None:
        """Close and delete the file: it has come to nothing."""
        self._finished = True
        self._output.close()
        self._path.unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._error is not None:
            raise self._error
        try:
            yield
        except FileExistsError:
            raise RecordingError(
                f"{self._path} exists already, nothing recorded is overwritten: name another"
            ) from None
        except OSError as error:
            self._error = RecordingError(f"cannot record to {self._path}: {error.strerror or error}")
            raise self._error from None


class _Output:
    """A new file that takes whole writes and keeps nothing back in this process, where a crash would lose it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._at = 0

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        while rest:  # a disk that fills up takes a part, and only then complains
            taken = self._file.write(rest)
            self._at += taken
            rest = rest[taken:]
        return len(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        """Nothing waits here."""

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _sync_folder(path: Path) -> None:
    """Put the file's name on the disk, too, where the system can."""
    with suppress(OSError):
        folder = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
