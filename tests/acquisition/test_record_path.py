"""The microscope's side of a recording: what is kept, for how long, and when the beam must go off."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from lowdose.acquisition.messages import RecordAck, SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.record_path import RECORDING_ENDED, RecordPath, Ring
from lowdose.acquisition.sockets import RECORD_HWM, PeerGoneError, RecordClient, RecordServer
from lowdose.acquisition.status import Event
from lowdose.acquisition.wire import WireError, encode
from lowdose.scan_patterns import ScanGrid, ScanPath
from tests.acquisition.consoles import wait_until

MS = 1_000_000
PATHS = (ScanPath(ScanGrid((4, 4)), [[0, 0], [1, 1]], 1.0),)
START = ScanStart("scan", PATHS, {"name": "own"}, ("HAADF",), 1.0, 25.0, 200.0, 0, None, 0, 0)
TRANSPORTS = ("inproc", "tcp", "ipc")


def event(text="word"):
    return Event("microscope", "word", text, "info", 0)


def block(seq, samples=2):
    return SampleBlock("scan", PATHS[0].digest, seq, 0, np.full((1, samples), seq, np.uint16), seq, 0, 0, 0)


# --- the ring -------------------------------------------------------------------------------------------------------


def ring_of(n=0, *, sent=0, **bounds):
    ring = Ring(0, **{"stall_ms": 500.0, "span_s": 2.0, "max_bytes": 100, **bounds})
    for k in range(n):
        ring.put([b"0123456789"], k * MS)
    for _ in range(sent):
        ring.note_sent()
    return ring


def test_messages_are_numbered_from_one_and_sent_in_order():
    ring = ring_of(3)
    sent = []
    while ring.next_unsent is not None:
        sent.append(ring.next_unsent.seq)
        ring.note_sent()
    assert sent == [1, 2, 3]
    assert (ring.sent_seq, ring.last_seq, ring.outstanding) == (3, 3, 3)


def test_a_message_is_kept_as_a_copy():
    data = bytearray(b"before")
    ring = ring_of()
    ring.put([memoryview(data)], 0)
    data[:] = b"after "
    assert ring.next_unsent.buffers == (b"before",)


def test_what_is_acknowledged_makes_room():
    ring = ring_of(10, sent=10)
    assert not ring.fits([b"0"])
    ring.acknowledge(4, 0)
    assert ring.fits([b"0" * 40])
    assert not ring.fits([b"0" * 41])
    assert ring.outstanding == 6


@pytest.mark.parametrize("seq", [3, 100, 0], ids=["not sent yet", "never made", "backwards"])
def test_an_acknowledgement_that_cannot_be_is_refused(seq):
    ring = ring_of(3, sent=2)
    ring.acknowledge(1, 0)
    with pytest.raises(ValueError, match=f"acknowledged message {seq}, expected 1 to 2"):
        ring.acknowledge(seq, 0)


def test_silence_counts_only_while_something_is_outstanding():
    ring = ring_of(1, sent=1)
    assert ring.silent_ms(500 * MS) is None
    assert ring.silent_ms(501 * MS) == 501
    ring.acknowledge(1, 501 * MS)
    assert ring.silent_ms(10_000 * MS) is None
    ring.put([b"0"], 10_000 * MS)
    assert ring.silent_ms(10_000 * MS) == 9_499, "a recorder that has nothing to write is to say that it lives, too"


def test_a_heartbeat_is_no_progress():
    ring = ring_of(2, sent=2)
    for k in range(1, 22):
        ring.acknowledge(0, 100 * k * MS)
    assert ring.silent_ms(2_100 * MS) is None
    assert not ring.too_old(2_000 * MS)
    assert ring.too_old(2_001 * MS)
    ring.acknowledge(1, 2_001 * MS)
    assert not ring.too_old(2_001 * MS)


def test_the_start_of_a_scan_takes_as_long_as_it_is_large_and_is_not_copied():
    path_bytes = memoryview(bytes(20_000_000))
    ring = ring_of()
    ring.put([path_bytes], 0, begins_scan=True)
    ring.put([b"0"], 0)
    assert ring.next_unsent.buffers[0] is path_bytes
    assert ring.fits([b"0" * 99])
    for _ in range(2):
        ring.note_sent()
    assert ring.silent_ms(1_500 * MS) is None
    assert ring.silent_ms(1_501 * MS) == 1_501
    assert not ring.too_old(3_000 * MS)
    assert ring.too_old(3_001 * MS)
    ring.acknowledge(1, 0)
    assert ring.silent_ms(501 * MS) == 501
    assert ring.too_old(2_001 * MS)


# --- the path -------------------------------------------------------------------------------------------------------


class Bench:
    """A record path with its thread, on a clock of its own, and recorders that say what they are told."""

    def __init__(self, endpoint, **bounds):
        self.now_ms = 1_000.0
        self.path = RecordPath(endpoint, **{"stall_ms": 500.0, "clock": lambda: round(self.now_ms * MS), **bounds})
        self._over = threading.Event()
        self._thread = threading.Thread(target=self.path.run, args=(self._over,))
        self._thread.start()
        self._clients = []

    def keep(self, *messages):
        for message in messages:
            self.path.keep(message, encode(message))

    def recorder(self):
        client = RecordClient(self.path.endpoint)
        self._clients.append(client)
        return client

    def attached(self, *, opening=()):
        """Return a recorder that has attached and said hello, and its token."""
        client, token = self.recorder(), self.path.attach("mine", opening)
        client.acknowledge(RecordAck(token, 0))
        return client, token

    def troubles(self):
        """Wait for trouble; return its kind."""
        found = []
        wait_until(lambda: found.append(self.path.trouble()) or found[-1] is not None)
        return found[-1][0]

    def close(self):
        for client in self._clients:
            client.close()
        self._over.set()
        self._thread.join(5)
        self.path.close()


@pytest.fixture(params=TRANSPORTS)
def endpoint(request, tmp_path):
    return {"inproc": f"inproc://{tmp_path}", "tcp": "tcp://127.0.0.1:0", "ipc": f"ipc://{tmp_path}/record"}[
        request.param
    ]


@pytest.fixture
def bench(endpoint):
    bench = Bench(endpoint)
    yield bench
    bench.close()


@pytest.fixture
def make_bench(tmp_path):
    made = []

    def make(**bounds):
        made.append(Bench(f"inproc://{tmp_path}", **bounds))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


def taken(client, n):
    """Return the next n messages and their numbers."""
    got = [client.receive(5) for _ in range(n)]
    assert None not in got
    return got


def test_everything_since_the_attachment_comes_numbered_and_in_order(bench):
    bench.keep(event("too early"))
    client, token = bench.attached(opening=[event("opening")])
    bench.keep(*(block(k) for k in range(300)))
    got = taken(client, 301)
    assert [seq for seq, _ in got] == list(range(1, 302))
    assert got[0][1].text == "opening"
    assert [message.seq for _, message in got[1:]] == list(range(300))
    client.acknowledge(RecordAck(token, 301))
    wait_until(lambda: bench.path.waiting_ms() == 0)
    assert bench.path.trouble() is None


def test_a_recording_begun_within_a_scan_begins_with_that_scan(make_bench):
    bench = make_bench()
    bench.keep(START, block(0))
    client, _ = bench.attached(opening=[event()])
    bench.keep(block(1))
    assert [type(message) for _, message in taken(client, 3)] == [Event, ScanStart, SampleBlock]


def test_a_scan_that_has_ended_is_not_told_to_a_later_recording(make_bench):
    bench = make_bench()
    bench.keep(START, block(0), ScanEnd("scan", 0, "stopped"))
    client, _ = bench.attached()
    bench.keep(event())
    assert taken(client, 1)[0][1] == event()


def test_a_scan_that_is_larger_than_the_ring_is_recorded(make_bench):
    bench = make_bench(max_bytes=1_000)
    grid = ScanGrid((64, 64))
    large = ScanPath(grid, np.argwhere(np.ones(grid.shape)), 1.0)
    start = ScanStart("large", (large,), {"name": "own"}, ("HAADF",), 1.0, 25.0, 200.0, 0, None, 0, 0)
    client, _ = bench.attached()
    bench.keep(start)
    assert taken(client, 1)[0][1].paths == (large,)
    assert bench.path.trouble() is None


def test_while_nothing_is_recorded_nothing_is_kept_and_nothing_is_wrong(make_bench):
    bench = make_bench(max_bytes=10)
    bench.keep(*(block(k) for k in range(1_000)))
    bench.now_ms += 1e6
    assert bench.path.trouble() is None
    assert (bench.path.recorder, bench.path.waiting_ms()) == ("", 0)


def test_a_second_recorder_is_refused_naming_the_first(bench):
    client, token = bench.attached()
    with pytest.raises(PermissionError, match="mine records already"):
        bench.path.attach("another", [])
    bench.keep(event())
    taken(client, 1)
    client.acknowledge(RecordAck(token, 1))
    assert bench.path.recorder == "mine"


def test_after_the_end_comes_nothing_more_and_another_may_record(bench):
    client, token = bench.attached()
    bench.keep(event("last"))
    bench.path.end("enough", token)
    bench.keep(event("too late"))
    (_, last), (seq, closing) = taken(client, 2)
    assert (last.text, closing.kind, closing.text) == ("last", RECORDING_ENDED, "enough")
    assert not bench.path.wait_over(0)
    client.acknowledge(RecordAck(token, seq))
    assert bench.path.wait_over(5)
    assert bench.path.trouble() is None
    other = bench.path.attach("another", [])
    assert other != token


def test_only_the_recorders_own_token_ends_its_recording(make_bench):
    bench = make_bench()
    bench.attached()
    with pytest.raises(PermissionError, match="token is not the recorder's"):
        bench.path.end("enough", "0" * 32)
    assert bench.path.recorder == "mine"
    bench.path.end("enough")
    bench.path.end("twice")


def test_a_recorder_that_never_says_a_word_is_a_reason_to_blank(make_bench):
    bench = make_bench()
    bench.path.attach("mine", [event()])
    bench.now_ms += 500
    assert bench.path.trouble() is None
    bench.now_ms += 1
    kind, text, severity = bench.path.trouble()
    assert (kind, severity) == ("record_stalled", "warning")
    assert text == "mine was silent for 501 ms: nothing more is recorded, 1 messages are not known to be written"
    assert bench.path.trouble() is None, "told once"
    assert (bench.path.recorder, bench.path.last_trouble) == ("", text)


def test_a_recorder_that_falls_silent_is_a_reason_to_blank(bench):
    client, token = bench.attached()
    bench.keep(event())
    taken(client, 1)
    client.acknowledge(RecordAck(token, 1))
    wait_until(lambda: bench.path.waiting_ms() == 0)
    bench.keep(block(0))
    bench.now_ms += 501
    assert bench.troubles() == "record_stalled"


def test_a_recorder_that_is_silent_while_it_is_to_end_is_one_too(make_bench):
    bench = make_bench()
    bench.attached()
    bench.path.end("enough")
    bench.now_ms += 501
    assert bench.troubles() == "record_stalled"
    assert bench.path.wait_over(0)


@pytest.mark.parametrize("bound", ["time", "bytes"])
def test_a_recorder_that_is_too_slow_gets_what_was_kept_and_then_the_end(make_bench, bound):
    bench = make_bench(max_bytes=40_000)
    client, token = bench.attached()
    bench.keep(*(block(k, 1_000) for k in range(10)))
    assert bench.path.trouble() is None
    if bound == "bytes":
        bench.keep(*(block(10 + k, 1_000) for k in range(10)))
    else:
        for _ in range(5):
            bench.now_ms += 401
            client.acknowledge(RecordAck(token, 0))
            heard = bench.now_ms * MS
            wait_until(lambda heard=heard: bench.path._recording.ring._heard_ns == heard)
    assert bench.troubles() == "record_too_slow"
    got = []
    while not got or not isinstance(got[-1], Event):
        got.append(taken(client, 1)[0][1])
    numbers = [message.seq for message in got[:-1]]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 10
    assert (got[-1].kind, got[-1].severity) == (RECORDING_ENDED, "warning")
    assert "mine is too slow" in got[-1].text
    assert bench.path.trouble() is None, "told once"


@pytest.mark.parametrize("seq", [5, 10**9])
def test_an_acknowledgement_of_what_was_never_sent_is_a_reason_to_blank(bench, seq):
    client, token = bench.attached()
    bench.keep(event())
    taken(client, 1)
    client.acknowledge(RecordAck(token, seq))
    assert bench.troubles() == "record_wrong_seq"


def test_what_a_recorder_cannot_do_is_told_in_its_words(bench):
    client, token = bench.attached()
    client.acknowledge(RecordAck(token, 0, "the disk is full"))
    found = []
    wait_until(lambda: found.append(bench.path.trouble()) or found[-1])
    kind, text, severity = found[-1]
    assert (kind, severity) == ("record_failed", "warning")
    assert text.startswith("mine has failed (the disk is full): nothing more is recorded")


def test_a_recorder_that_is_gone_is_noticed_before_its_silence_is(bench):
    client, _ = bench.attached()
    bench.keep(event())
    taken(client, 1)
    client.close()
    deadline_s, found = time.monotonic() + 10, None
    while found is None:
        assert time.monotonic() < deadline_s
        bench.keep(event())
        found = bench.path.trouble()
        threading.Event().wait(0.001)
    assert found[0] == "recorder_lost"
    assert found[1].startswith("mine is gone: nothing more is recorded")


def test_a_recorder_that_comes_back_on_another_connection_has_lost_the_first(bench):
    client, token = bench.attached()
    bench.keep(event())
    taken(client, 1)
    bench.recorder().acknowledge(RecordAck(token, 0))
    assert bench.troubles() == "recorder_lost"


def test_whoever_has_not_the_token_is_counted_and_changes_nothing(bench):
    client, token = bench.attached()
    stranger = bench.recorder()
    for forged in ("", "0" * 32, token[:-1]):
        stranger.acknowledge(RecordAck(forged, 0, "all is lost"))
    wait_until(lambda: bench.path.garbage == 3)
    bench.keep(event())
    assert taken(client, 1)[0][1] == event()
    assert bench.path.trouble() is None


def test_keeping_never_waits_for_a_recorder_that_reads_nothing_and_memory_is_bounded(bench):
    bench.attached()
    message = block(0, 10_000)
    size = sum(len(buffer) for buffer in encode(message))
    for _ in range(200 + (64 << 20) // size):
        bench.keep(message)
    assert bench.path._recording.ring._bytes <= (64 << 20) + 1_000
    assert bench.path.trouble()[0] == "record_too_slow"


# --- sockets --------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_one_that_is_gone_is_told(tmp_path):
    with RecordServer(f"inproc://{tmp_path}") as server:
        with RecordClient(f"inproc://{tmp_path}") as client:
            client.acknowledge(RecordAck("t", 0))
            identity, ack = server.receive(5)
            assert ack == RecordAck("t", 0)
            sent = 0
            while server.send(identity, sent + 1, encode(event())):
                sent += 1
            assert RECORD_HWM <= sent <= 3 * RECORD_HWM
            assert [client.receive(5)[0] for _ in range(sent)] == list(range(1, sent + 1))

        def gone():
            try:
                server.send(identity, 1, encode(event()))
            except PeerGoneError:
                return True
            return False

        wait_until(gone)


@pytest.mark.parametrize("buffers", [[b"short"], [b"12345678"], [b"12345678", b"samples", b"junk"]], ids=repr)
def test_what_is_no_message_of_the_path_is_an_error_and_never_passed_over(tmp_path, buffers):
    with RecordServer(f"inproc://{tmp_path}") as server, RecordClient(f"inproc://{tmp_path}") as client:
        client.acknowledge(RecordAck("t", 0))
        identity, _ = server.receive(5)
        server._socket.send_multipart([identity, *buffers])
        with pytest.raises(WireError):
            client.receive(5)


def test_what_is_no_acknowledgement_is_passed_over(tmp_path):
    with RecordServer(f"inproc://{tmp_path}") as server, RecordClient(f"inproc://{tmp_path}") as client:
        for buffers in ([b""], [b"record", b"junk"], encode(event())):
            client._socket.send_multipart(buffers)
        client.acknowledge(RecordAck("t", 3))
        got = [server.receive(5) for _ in range(4)]
        assert got[:3] == [None] * 3
        assert got[3][1] == RecordAck("t", 3)
