"""RecordPath: what a microscope hands to its recorder, kept until it is known to be written (imports sockets).

One recorder at a time. It attaches by name over control, gets a token, and from that instant on every message has a
running number and stays in a ring until the recorder has acknowledged it as written. Whatever keeps that from going on
is a reason to blank, which the beam guard asks for (`trouble`); nothing here ever waits for the recorder. While nobody
is attached nothing is kept.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lowdose.acquisition.messages import ScanEnd, ScanStart
from lowdose.acquisition.sockets import PeerGoneError, RecordServer
from lowdose.acquisition.status import Event
from lowdose.acquisition.wire import MAX_COMPLAINT, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowdose.acquisition.messages import RecordAck
    from lowdose.acquisition.status import Severity
    from lowdose.acquisition.wire import Buffer, Message

    Reason = tuple[str, str, Severity]  # of an event: kind, text, severity

RING_S = 2.0
"""Samples older than this must have been acknowledged."""
RING_BYTES = 64 << 20
SLOWEST_BYTES_PER_S = 20e6
"""At which the start of a scan, with its whole path, is written: 52 MB of a full 2048 x 2048 raster took 1.3 s here."""
POLL_S, IDLE_POLL_S = 0.01, 0.05
"""Between two looks at what there is to send: a few blocks at once cost the scan less than one by one."""
BATCH = 64
"""Messages sent between two looks for acknowledgements."""
RECORDING_ENDED = "recording_ended"
"""Kind of the event that is the last message of every recording."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A message on its way: its running number, its bytes, when it was put in [ns], whether it begins a scan."""

    seq: int
    buffers: Sequence[Buffer]
    t_ns: int
    begins_scan: bool

    @property
    def n_bytes(self) -> int:
        """Size of it all."""
        return sum(len(buffer) for buffer in self.buffers)


class Ring:
    """Numbered messages until they are acknowledged, and when that is overdue; pure figures, no socket.

    Parameters
    ----------
    now_ns : int
        When the recorder was last heard of: now [ns].
    stall_ms, span_s, max_bytes : float, float, int
        Longest silence while something is outstanding [ms]; longest time a message may be outstanding [s]; most bytes.
        The start of a scan takes as long as it is large, and its path lies in memory anyway: it lengthens both times
        while it is outstanding, and does not count as bytes.
    """

    def __init__(self, now_ns: int, *, stall_ms: float, span_s: float, max_bytes: int) -> None:
        self._stall_ns, self._span_ns, self._max_bytes = round(1e6 * stall_ms), round(1e9 * span_s), max_bytes
        self._unsent: deque[Kept] = deque()
        self._sent: deque[Kept] = deque()
        self._bytes = self._start_bytes = 0
        self._heard_ns = now_ns
        self.last_seq = self.sent_seq = self.acknowledged_seq = 0

    @property
    def next_unsent(self) -> Kept | None:
        """The message to send next."""
        return self._unsent[0] if self._unsent else None

    @property
    def outstanding(self) -> int:
        """Messages put in and not acknowledged."""
        return self.last_seq - self.acknowledged_seq

    def oldest_ns(self) -> int | None:
        """Return when the oldest message outstanding was put in [ns]."""
        oldest = self._sent or self._unsent
        return oldest[0].t_ns if oldest else None

    def fits(self, buffers: Sequence[Buffer]) -> bool:
        """Tell whether a message still fits."""
        return self._bytes + sum(len(buffer) for buffer in buffers) <= self._max_bytes

    def put(self, buffers: Sequence[Buffer], now_ns: int, *, begins_scan: bool = False) -> None:
        """Take in a message, numbered, as a copy: whoever made it may use its memory again, but for a scan's path."""
        self.last_seq += 1
        data = buffers if begins_scan else tuple(bytes(buffer) for buffer in buffers)
        kept = Kept(self.last_seq, data, now_ns, begins_scan)
        self._unsent.append(kept)
        self._count(kept, 1)

    def note_sent(self) -> None:
        """Take note that the next message was handed to the socket."""
        kept = self._unsent.popleft()
        self._sent.append(kept)
        self.sent_seq = kept.seq

    def acknowledge(self, seq: int, now_ns: int) -> None:
        """Let go of everything up to `seq`: it is written. ValueError for a number that cannot be."""
        if not self.acknowledged_seq <= seq <= self.sent_seq:
            raise ValueError(
                f"acknowledged message {seq}, expected {self.acknowledged_seq} to {self.sent_seq}, which was sent last"
            )
        self._heard_ns = now_ns
        while self._sent and self._sent[0].seq <= seq:
            self._count(self._sent.popleft(), -1)
        self.acknowledged_seq = seq

    def _count(self, kept: Kept, sign: int) -> None:
        if kept.begins_scan:
            self._start_bytes += sign * kept.n_bytes
        else:
            self._bytes += sign * kept.n_bytes

    @property
    def _lengthened_ns(self) -> int:
        return round(1e9 * self._start_bytes / SLOWEST_BYTES_PER_S)

    def silent_ms(self, now_ns: int) -> float | None:
        """Return for how long the recorder has said nothing, if that is too long while something is outstanding."""
        silent_ns = now_ns - self._heard_ns
        return silent_ns / 1e6 if self.outstanding and silent_ns > self._stall_ns + self._lengthened_ns else None

    def too_old(self, now_ns: int) -> bool:
        """Tell whether a message has been outstanding for too long."""
        oldest_ns = self.oldest_ns()
        return oldest_ns is not None and now_ns - oldest_ns > self._span_ns + self._lengthened_ns


@dataclass
class _Recording:
    """One recorder's attachment."""

    recorder: str
    ring: Ring
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    identity: bytes | None = None
    closing: bool = False


class RecordPath:
    """The microscope's side of a recording; any thread may call anything but `run`, which has one of its own.

    Parameters
    ----------
    endpoint : str
        Bound.
    stall_ms, span_s, max_bytes : float, float, int
        Bounds of the ring, see `Ring`.
    clock : callable
        Monotonic time [ns].
    """

    def __init__(
        self,
        endpoint: str,
        *,
        stall_ms: float,
        span_s: float = RING_S,
        max_bytes: int = RING_BYTES,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._stall_ms, self._span_s, self._max_bytes, self._clock = stall_ms, span_s, max_bytes, clock
        self._lock = threading.Lock()  # held for moments only: never while anything is sent or written
        self._over = threading.Condition(self._lock)
        self._recording: _Recording | None = None
        self._scan: ScanStart | None = None
        self._reason: Reason | None = None
        self.last_trouble = ""
        self.garbage = 0
        self._socket = RecordServer(endpoint)
        self.endpoint = self._socket.endpoint

    @property
    def recorder(self) -> str:
        """Who records, "" if nobody does."""
        recording = self._recording
        return "" if recording is None else recording.recorder

    def waiting_ms(self) -> float:
        """Return for how long the oldest message has been outstanding [ms]."""
        with self._lock:
            oldest_ns = None if self._recording is None else self._recording.ring.oldest_ns()
            return 0.0 if oldest_ns is None else (self._clock() - oldest_ns) / 1e6

    def attach(self, recorder: str, opening: Sequence[Message]) -> str:
        """Begin to keep messages for a recorder, an opening and the scan that runs first; return its token.

        Raises
        ------
        PermissionError
            If somebody records already.
        """
        begun = [encode(message) for message in opening]
        while True:
            scan = self._scan
            start = None if scan is None else encode(scan)  # not under the lock: it may be large
            with self._lock:
                if self._recording is not None:
                    raise PermissionError(f"{self._recording.recorder} records already: end that recording first")
                if scan is not self._scan:
                    continue
                self._recording, self.last_trouble = self._begun(recorder, begun, start), ""
                return self._recording.token

    def _begun(self, recorder: str, opening: Sequence[list[Buffer]], start: list[Buffer] | None) -> _Recording:
        now = self._clock()
        ring = Ring(now, stall_ms=self._stall_ms, span_s=self._span_s, max_bytes=self._max_bytes)
        for buffers in opening:
            ring.put(buffers, now)
        if start is not None:
            ring.put(start, now, begins_scan=True)
        return _Recording(recorder, ring)

    def keep(self, message: Message, buffers: list[Buffer]) -> None:
        """Take a message for the recorder, if there is one; never waits."""
        with self._lock:
            begins_scan = isinstance(message, ScanStart)
            if isinstance(message, ScanStart | ScanEnd):
                self._scan = message if isinstance(message, ScanStart) else None
            recording = self._recording
            if recording is None or recording.closing:
                return
            if begins_scan or recording.ring.fits(buffers):
                recording.ring.put(buffers, self._clock(), begins_scan=begins_scan)
            else:
                self._overflow(recording)

    def end(self, text: str, token: str | None = None) -> None:
        """Make what was kept up to now the whole recording: it is over once the recorder has written that.

        Raises
        ------
        PermissionError
            If a token is given that is not the recorder's.
        """
        with self._lock:
            recording = self._recording
            if recording is None:
                return
            if token is not None and not secrets.compare_digest(token, recording.token):
                raise PermissionError("that token is not the recorder's")
            self._close(recording, text, "info")

    def wait_over(self, timeout_s: float) -> bool:
        """Wait until nothing is being recorded; tell whether that is so."""
        with self._over:
            return self._over.wait_for(lambda: self._recording is None, timeout_s)

    def trouble(self) -> Reason | None:
        """Return, once, why the beam must go off: what is measured is not being recorded any more."""
        with self._lock:
            recording, now = self._recording, self._clock()
            if recording is not None:
                silent_ms = recording.ring.silent_ms(now)
                if silent_ms is not None:
                    self._fail(recording, "record_stalled", f"was silent for {silent_ms:.0f} ms")
                elif not recording.closing and recording.ring.too_old(now):
                    self._overflow(recording)
            reason, self._reason = self._reason, None
            return reason

    # --- under the lock ---------------------------------------------------------------------------------------------

    def _overflow(self, recording: _Recording) -> None:
        """Give up on a recorder that is too slow; what was kept up to now it may still write."""
        text = f"{recording.recorder} is too slow: more than {self._span_s:g} s or {self._max_bytes >> 20} MiB wait"
        self._close(recording, f"{text}; what followed was not recorded", "warning")
        self._set_reason("record_too_slow", f"{text}; what follows is not recorded")

    def _close(self, recording: _Recording, text: str, severity: Severity) -> None:
        if not recording.closing:
            now = self._clock()
            recording.closing = True
            recording.ring.put(encode(Event("microscope", RECORDING_ENDED, text, severity, now)), now)

    def _fail(self, recording: _Recording, kind: str, what: str) -> None:
        unknown = f"{recording.ring.outstanding} messages are not known to be written"
        self._set_reason(kind, f"{recording.recorder} {what}: nothing more is recorded, {unknown}")
        self._recording = None
        self._over.notify_all()

    def _set_reason(self, kind: str, text: str) -> None:
        self._reason = self._reason or (kind, text, "warning")
        self.last_trouble = text

    # --- the thread of the socket -----------------------------------------------------------------------------------

    def run(self, stopping: threading.Event) -> None:
        """Send what is kept and take acknowledgements until `stopping` is set."""
        while not stopping.is_set():
            self._hear(IDLE_POLL_S if self._recording is None else POLL_S)
            self._send()

    def _hear(self, timeout_s: float) -> None:
        received = self._socket.receive(timeout_s)
        while received is not None:
            self._acknowledged(*received)
            received = self._socket.receive(0.0)

    def _send(self) -> None:
        for _ in range(BATCH):
            with self._lock:
                recording = self._recording
                kept = None if recording is None else recording.ring.next_unsent
            if recording is None or kept is None or recording.identity is None:
                return
            try:
                if not self._socket.send(recording.identity, kept.seq, kept.buffers):
                    return  # the queue is full: the ring is the patience, not the queue
            except PeerGoneError:
                self._hear(0.0)  # its last word, if there was one, says why
                with self._lock:
                    if self._recording is recording:
                        self._fail(recording, "recorder_lost", "is gone")
                return
            with self._lock:
                recording.ring.note_sent()

    def _acknowledged(self, identity: bytes, ack: RecordAck) -> None:
        with self._lock:
            recording = self._recording
            if recording is None or not secrets.compare_digest(ack.token, recording.token):
                self.garbage += 1
                return
            if recording.identity not in (None, identity):
                self._fail(recording, "recorder_lost", "lost its connection and came back on another")
                return
            recording.identity = identity
            if ack.error:
                self._fail(recording, "record_failed", f"has failed ({ack.error[:MAX_COMPLAINT]})")
                return
            try:
                recording.ring.acknowledge(ack.seq, self._clock())
            except ValueError as error:
                self._fail(recording, "record_wrong_seq", str(error))
                return
            if recording.closing and not recording.ring.outstanding:
                self._recording = None
                self._over.notify_all()

    def close(self) -> None:
        """Close the socket, after `run` has ended; twice is fine."""
        self._socket.close()
