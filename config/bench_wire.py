"""`lowdose bench wire`: what the real sockets and wire format carry on this machine, and how fast.

The sender is a process of its own, as the services are, over tcp and ipc, and a thread over inproc. Each message is
made, encoded, sent, received and decoded; two phases, every loss in either counted by the running number:

1. Throughput: as fast as it goes, but ahead of the receiver by no more than half of what the live pipeline's queues
   hold, and by two at least: a queue learns in lumps, and up to a millisecond late, what was taken out of it.
2. Latency: at the pace of a live scan, or half of what the throughput was if that is less, and without looking whether
   the receiver follows. From the stamp before encoding to the decoded message, by the monotonic clock.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdose.acquisition.frames import DenseFrame, EngineStamp
from lowdose.acquisition.messages import SampleBlock
from lowdose.acquisition.realtime import prepare_process
from lowdose.acquisition.sockets import FRAMES_HWM, SAMPLES_HWM, Publisher, Subscriber
from lowdose.acquisition.wire import encode
from lowdose.config.bench_processes import WAIT_S
from lowdose.config.bench_record import measure_recorded, print_recorded
from lowdose.config.figures import PERCENTILES, machine, percentiles, write_json
from lowdose.config.options import require_writable
from lowdose.scan_patterns.grid import ScanGrid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from lowdose.acquisition.wire import Message, Topic

TRANSPORTS = ("tcp", "ipc", "inproc") if os.name == "posix" else ("tcp", "inproc")
PHASE_S = 2.0
MOST_MESSAGES = 100_000
"""In a phase, however fast it goes."""
FEWEST_MESSAGES = 3
"""In a phase, and sent one by one before the first."""
MIN_SIZE, MAX_SIZE = 16, 4096
COVERAGE = 1 / 20
"""Of a frame's pixels, measured: those travel besides the picture."""
QUIET_S = 0.25
"""A receiver that hears nothing for so long hears no more of what was sent."""
LONGEST_TRIP_S = 2.0
PAUSE_S = 0.01
"""Between messages sent one by one: ZeroMQ looks only once in about a millisecond what was taken out of a queue."""
PATIENCE = 4
"""So many times the longest trip of those, and what has not come is lost."""
LOOK_S = 50e-6


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of message at its size in the live pipeline.

    Parameters
    ----------
    name : str
        In tables and figures.
    topic : "samples" or "frames"
        It travels under.
    hwm : int
        Messages the live pipeline's queue holds.
    live_hz : float
        How many a second a live scan sends.
    make : callable
        (running number, monotonic stamp [ns]) to the message.
    """

    name: str
    topic: Topic
    hwm: int
    live_hz: float
    make: Callable[[int, int], Message]


@dataclass(frozen=True, slots=True)
class Sent:
    """What a sender did.

    Parameters
    ----------
    at_full_speed : int
        Running number after the last of the first phase.
    in_all : int
        After the last of the second.
    pace_hz : float
        Messages per second of the second phase.
    """

    at_full_speed: int
    in_all: int
    pace_hz: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message's running number, when it was stamped by the sender and when it was there [ns]."""

    seq: int
    stamp_ns: int
    arrived_ns: int


def run_wire(*, size: int, json_file: Path | None, phase_s: float = PHASE_S, record_s: float = 0.0) -> int:
    """Measure every transport with every kind of message, and print a table.

    Parameters
    ----------
    size : int
        Edge of the frames [pixel].
    json_file : Path or None
        Where the figures go besides.
    phase_s : float
        Duration of each of the two phases of a row [s].
    record_s : float
        How long a fast scan is recorded over each transport besides; 0 = not at all [s].
    """
    require_writable(json_file)
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"size must be {MIN_SIZE} to {MAX_SIZE} pixels, got {size}")
    prepare_process()
    rows = [measure(transport, kind, size, phase_s) for transport in TRANSPORTS for kind in range(len(cases(size)))]
    figures: dict[str, Any] = {"rows": rows, "size": size, "machine": machine()}
    _print(figures)
    if record_s:
        figures["recorded"] = [measure_recorded(transport, record_s) for transport in TRANSPORTS]
        print_recorded(figures["recorded"])
    if json_file is not None:
        write_json(json_file, figures)
    return 0


def cases(size: int) -> tuple[Case, ...]:
    """Return the kinds of messages measured: blocks of two sizes, and a frame of `size` x `size` pixels."""
    blocks = [
        Case(f"SampleBlock {n}", "samples", SAMPLES_HWM, 500.0, _block_maker(n))  # blocks of 2 ms, at least 256 samples
        for n in (256, 2000)
    ]
    return (*blocks, Case(f"DenseFrame {size}x{size}", "frames", FRAMES_HWM, 80.0, _frame_maker(size)))


def _block_maker(n_samples: int) -> Callable[[int, int], Message]:
    counts = np.random.default_rng(0).poisson(16, (1, n_samples)).astype(np.uint16)
    digest = "0" * 32
    return lambda seq, now: SampleBlock(digest, digest, seq, 0, counts, seq, now, now, now)


def _frame_maker(size: int) -> Callable[[int, int], Message]:
    rng = np.random.default_rng(0)
    hits = (rng.random((size, size)) < COVERAGE).astype(np.uint16)
    image = rng.random((1, size, size), np.float32)
    names = ("first_sample", "last_sample", "sent", "received", "assembled", "prepared", "engine_ns", "finished")
    template = DenseFrame(
        grid=ScanGrid((size, size)),
        image=image,
        uncertainty=image.copy(),
        uncertainty_kind="placeholder",
        measured=image * hits,
        hits=hits,
        scale=1,
        scan_id="0" * 32,
        path_digest="0" * 32,
        frame_index=0,
        complete=True,
        samples_used=int(hits.sum()),
        channels=("HAADF",),
        engines=(EngineStamp("linear", "", "FP32"),),
        dropped=0,
        gaps=0,
        times_ns={},
    )
    return lambda seq, now: replace(template, frame_index=seq, times_ns=dict.fromkeys(names, now))


# --- the sender -----------------------------------------------------------------------------------------------------


class Heard:
    """How far the receiver has come, told to the sender through shared memory."""

    def __init__(self) -> None:
        self._next_seq = multiprocessing.get_context("spawn").RawValue(ctypes.c_longlong, 0)

    def tell(self, seq: int) -> None:
        """Take note of a message that came."""
        self._next_seq.value = seq + 1

    def wait_for(self, next_seq: int, timeout_s: float) -> None:
        """Wait until everything before `next_seq` came; what does not come is waited for no longer than that."""
        deadline_s = time.monotonic() + timeout_s
        while self._next_seq.value < next_seq and time.monotonic() < deadline_s:
            time.sleep(LOOK_S)


def send_both_phases(endpoint: str, kind: int, size: int, phase_s: float, words: Connection, heard: Heard) -> None:
    """Bind, say where, send both phases as soon as somebody listens, and say what was sent.

    Parameters
    ----------
    endpoint : str
        To bind.
    kind, size : int
        Which of `cases(size)` is sent.
    phase_s : float
        Duration of each phase [s].
    words : Connection
        The endpoint bound and, at the end, a `Sent` go here; closed at the end.
    heard : Heard
        How far the receiver is.
    """
    case = cases(size)[kind]
    with words, Publisher(endpoint, hwm=case.hwm) as publisher:
        words.send(publisher.endpoint)
        deadline_s = time.monotonic() + WAIT_S
        while not publisher.has_listener(case.topic):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"nobody listened at {publisher.endpoint} within {WAIT_S:g} s")
            time.sleep(0.001)
        patience_s = PATIENCE * _longest_trip_s(publisher, case, heard)
        begin_s = time.monotonic()
        at_full_speed = _send_at_full_speed(publisher, case, phase_s, patience_s, heard)
        pace_hz = min(case.live_hz, 0.5 * (at_full_speed - FEWEST_MESSAGES) / (time.monotonic() - begin_s))
        heard.wait_for(at_full_speed, max(QUIET_S, patience_s))
        in_all = _send_paced(publisher, case, at_full_speed, phase_s, pace_hz)
        heard.wait_for(in_all, max(QUIET_S, patience_s))
        words.send(Sent(at_full_speed, in_all, pace_hz))


def _longest_trip_s(publisher: Publisher, case: Case, heard: Heard) -> float:
    """Send the first messages one by one; return the longest time until one was there [s]."""
    longest_s = 0.0
    for seq in range(FEWEST_MESSAGES):
        time.sleep(PAUSE_S)
        begin_s = time.monotonic()
        publisher.publish(case.make(seq, time.monotonic_ns()))
        heard.wait_for(seq + 1, LONGEST_TRIP_S)
        longest_s = max(longest_s, time.monotonic() - begin_s)
    return longest_s


def _send_at_full_speed(publisher: Publisher, case: Case, phase_s: float, patience_s: float, heard: Heard) -> int:
    """Send for a while, a bounded number ahead of the receiver; return the running number after the last."""
    first, most_ahead = FEWEST_MESSAGES, max(2, case.hwm // 2)
    seq, end_s = first, time.monotonic() + phase_s
    while seq < 2 * first or (seq < MOST_MESSAGES and time.monotonic() < end_s):
        heard.wait_for(seq - most_ahead + 1, patience_s)
        publisher.publish(case.make(seq, time.monotonic_ns()))
        seq += 1
    return seq


def _send_paced(publisher: Publisher, case: Case, seq: int, phase_s: float, pace_hz: float) -> int:
    """Send at a pace for a while, from running number `seq` on; return the one after the last."""
    begin_s, n = time.monotonic(), max(FEWEST_MESSAGES, min(MOST_MESSAGES, round(phase_s * pace_hz)))
    for i in range(n):
        time.sleep(max(0.0, begin_s + i / pace_hz - time.monotonic()))
        publisher.publish(case.make(seq + i, time.monotonic_ns()))
    return seq + n


def _be_sender(*arguments: Any) -> None:
    """Send in a process of its own, quick to react as a service is; its parent alone answers Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prepare_process()
    send_both_phases(*arguments)


# --- the receiver ---------------------------------------------------------------------------------------------------


def measure(transport: str, kind: int, size: int, phase_s: float) -> dict[str, Any]:
    """Return the figures of one transport and one kind of message, see `row_of`.

    Parameters
    ----------
    transport : "tcp", "ipc" or "inproc"
        Over it.
    kind, size : int
        Which of `cases(size)`.
    phase_s : float
        Duration of each phase [s].
    """
    case = cases(size)[kind]
    with _sender(transport, kind, size, phase_s) as (words, heard):
        endpoint = _word(words, WAIT_S)
        with Subscriber(endpoint, (case.topic,), hwm=case.hwm) as subscriber:
            sent, arrivals = _receive(subscriber, words, heard)
    n_bytes = sum(len(buffer) for buffer in encode(case.make(0, 0)))
    return row_of(transport, case.name, n_bytes, sent, arrivals)


@contextmanager
def _sender(transport: str, kind: int, size: int, phase_s: float) -> Iterator[tuple[Connection, Heard]]:
    """Start a sender; yield what it says and what tells it how far the receiver is. It is gone at the end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    heard = Heard()
    with tempfile.TemporaryDirectory(prefix="lowdose-bench-") as folder, ours:
        endpoint = {"tcp": "tcp://127.0.0.1:0", "ipc": f"ipc://{folder}/wire", "inproc": f"inproc://{folder}"}[
            transport
        ]
        arguments = (endpoint, kind, size, phase_s, theirs, heard)
        if transport == "inproc":
            thread = threading.Thread(target=send_both_phases, args=arguments, name="sender", daemon=True)
            thread.start()
            yield ours, heard
            thread.join(WAIT_S)
            return
        process = context.Process(target=_be_sender, args=arguments, daemon=True)
        process.start()
        theirs.close()
        try:
            yield ours, heard
        finally:
            process.kill()
            process.join()


def _word(words: Connection, timeout_s: float) -> Any:
    try:
        if words.poll(timeout_s):
            return words.recv()
    except EOFError:
        raise RuntimeError("the sender ended before it was done") from None
    raise RuntimeError(f"the sender said nothing within {timeout_s:g} s")


def _receive(subscriber: Subscriber, words: Connection, heard: Heard) -> tuple[Sent, list[Arrival]]:
    """Receive until the sender has sent all and nothing comes any more."""
    arrivals: list[Arrival] = []
    while True:
        message = subscriber.receive(QUIET_S)
        now = time.monotonic_ns()
        if isinstance(message, SampleBlock):
            arrivals.append(Arrival(message.seq, message.t_sent_ns, now))
        elif isinstance(message, DenseFrame):
            arrivals.append(Arrival(message.frame_index, message.times_ns["finished"], now))
        elif words.poll():
            return _word(words, 0), arrivals
        else:
            continue
        heard.tell(arrivals[-1].seq)


def row_of(transport: str, message: str, n_bytes: int, sent: Sent, arrivals: Sequence[Arrival]) -> dict[str, Any]:
    """Return a row of figures: throughput of the first phase, latency of the second, losses of both.

    Parameters
    ----------
    transport, message : str
        What was measured.
    n_bytes : int
        Of one message, header included.
    sent : Sent
        What the sender did.
    arrivals : sequence of Arrival
        What came of it.

    Returns
    -------
    dict
        ``lost`` of ``n`` messages sent, ``lost_at_pace`` of those in the second phase, whose pace is ``pace_per_s``.

    Raises
    ------
    RuntimeError
        If too little came to measure anything.
    """
    full_speed = range(FEWEST_MESSAGES, sent.at_full_speed)
    arrived_ns = [arrival.arrived_ns for arrival in arrivals if arrival.seq in full_speed]
    late_ns = [arrival.arrived_ns - arrival.stamp_ns for arrival in arrivals if arrival.seq >= sent.at_full_speed]
    if len(arrived_ns) < 2 or not late_ns:
        raise RuntimeError(f"nothing to measure: of {sent.in_all} {message} by {transport}, {len(arrivals)} came")
    per_s = 1e9 * (len(arrived_ns) - 1) / (arrived_ns[-1] - arrived_ns[0])
    return {
        "transport": transport,
        "message": message,
        "bytes": n_bytes,
        "messages_per_s": round(per_s, 1),
        "gb_per_s": round(per_s * n_bytes / 1e9, 4),
        "latency_ms": percentiles(np.array(late_ns) / 1e6),
        "pace_per_s": round(sent.pace_hz, 1),
        "lost_at_pace": sent.in_all - sent.at_full_speed - len(late_ns),
        "lost": sent.in_all - len(arrivals),
        "n": sent.in_all,
    }


def _print(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = (
        "bytes",
        "messages/s",
        "GB/s",
        *(f"{name} [ms]" for name in PERCENTILES),
        "at a pace of",
        "lost then",
        "lost in all",
        "of",
    )
    table = Table(
        "transport", "message", *columns, title="throughput with bounded queues; latency at a live scan's pace"
    )
    for row in figures["rows"]:
        latency = (f"{row['latency_ms'][name]:.3f}" for name in PERCENTILES)
        rates = (f"{row['messages_per_s']:,.0f}", f"{row['gb_per_s']:.3f}")
        ends = (f"{row['pace_per_s']:g}/s", *(str(row[name]) for name in ("lost_at_pace", "lost", "n")))
        table.add_row(row["transport"], row["message"], f"{row['bytes']:,}", *rates, *latency, *ends)
    console = Console(width=150)
    console.print(table)
    console.print(
        "one way, making, encoding and decoding the message included; the sender is a process of its own over tcp and "
        "ipc, a thread over inproc"
    )
    console.print(figures["machine"])
