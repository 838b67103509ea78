"""Microscope and recorder together: what is measured is in the file, or the beam is off and it was said why."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from lowdose.acquisition import microscope, recording
from lowdose.acquisition import recorder as recorder_module
from lowdose.acquisition.messages import RecordAck, SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.record_path import RECORDING_ENDED
from lowdose.acquisition.recorder import FrameCount, RecorderService
from lowdose.acquisition.recording import RecordingError, SessionWriter
from lowdose.acquisition.session_check import verify
from lowdose.acquisition.session_reader import read_session
from lowdose.acquisition.settings import NetworkSettings
from lowdose.acquisition.sockets import ControlRefusedError, Publisher, RecordClient, free_endpoint
from lowdose.acquisition.status import Event, StatusReport
from tests.acquisition.consoles import LATTICE, FakeController, assert_dark, running, simulated, wait_until
from tests.acquisition.display.conftest import build_frame
from tests.acquisition.recorders import recorder_process

TRANSPORTS = ("inproc", "tcp", "ipc")
LOSS_MS = 250.0
"""What a recorder that is killed may cost, of what was measured before."""
ROUNDS = 10
MANY_ROUNDS = 200
SOAK_S = float(os.environ.get("LOWDOSE_SOAK_S", "600"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.mcap"


def network_of(transport, folder):
    if transport == "tcp":
        return NetworkSettings(**dict.fromkeys(NetworkSettings.model_fields, "tcp://127.0.0.1:0"))
    begin = {"inproc": f"inproc://{folder}/", "ipc": f"ipc://{folder}/"}[transport]
    return NetworkSettings(**{name: begin + name for name in NetworkSettings.model_fields})


def network_from(console):
    """Return where a service is, for its clients."""
    return NetworkSettings(**console.service.endpoints, frames="inproc://nobody")


@contextmanager
def recording_of(console, path, **options):
    """Record in a thread of this process; ended properly, but what ended it before is not raised."""
    service = RecorderService(path, network_from(console), **options)
    service.start()
    try:
        wait_until(lambda: console["me"].status()["recorder"] or service.wait(0))
        yield service
    finally:
        service.close()


def read(path):
    return list(read_session(path))


def blocks_in(path):
    return [message for message in read(path) if isinstance(message, SampleBlock)]


def assert_on_end(numbers):
    first = numbers[0] if numbers else 0
    assert numbers == list(range(first, first + len(numbers)))


def same_block(a, b):
    return (a.scan_id, a.frame_index, a.first, a.seq, a.t_last_ns) == (
        b.scan_id,
        b.frame_index,
        b.first,
        b.seq,
        b.t_last_ns,
    ) and np.array_equal(a.counts, b.counts)


# --- what is recorded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_whole_scan_is_in_the_file_as_it_was_published(transport, path, tmp_path):
    with running(network=network_of(transport, tmp_path)) as console:
        with recording_of(console, path) as service:
            console["me"].start(frames=6)
            console.listen_to_the_end()
            wait_until(lambda: console["me"].status()["record_waiting_ms"] < 1_000)
        service.maybe_raise()
        assert console.state == "parked"
    session = read(path)
    assert verify(path).whole
    recorded = [m for m in session if isinstance(m, ScanStart | SampleBlock | ScanEnd)]
    published = [m for m in console.heard if isinstance(m, ScanStart | SampleBlock | ScanEnd)]
    assert len(recorded) == len(published)
    assert all(
        same_block(a, b) if isinstance(a, SampleBlock) else a == b for a, b in zip(recorded, published, strict=True)
    )


def test_a_recording_tells_how_everything_was_set_and_what_was_done(path):
    with running() as console, recording_of(console, path):
        console["me"].note("the specimen drifts")
        console["me"].start(frames=2)
        console.listen_to_the_end()
        console["me"].configure(pattern=LATTICE)
        console["me"].new_area()
    session = read(path)
    reports = [m for m in session if isinstance(m, StatusReport)]
    events = [m for m in session if isinstance(m, Event)]
    sources = [report.source for report in reports]
    assert sources[0] == "session"
    assert {"lowdose", "python", "wall_clock_ns", "protocol"} <= set(reports[0].values)
    assert sources[1:4] == ["settings", "calibration", "beam"]
    assert reports[2].values["grid"]["shape"] == (32, 32)
    assert reports[3].values == {"current_pa": 25.0, "energy_kev": 200.0}
    settings = [report.values["scan"]["pattern"]["name"] for report in reports if report.source == "settings"]
    assert settings == ["raster", "lattice"]
    assert "microscope" in sources
    kinds = [event.kind for event in events]
    assert kinds == ["recording_begun", "note", "scan_ended", "new_area", RECORDING_ENDED]
    assert events[1].text == "the specimen drifts"


def test_recording_begins_and_ends_while_live_without_a_gap(path):
    with running() as console:
        console["me"].start()
        console.listen(until=lambda: len(console.of(SampleBlock)) > 20)
        with recording_of(console, path) as service:
            begun = console["me"].status()["acquired"]
            wait_until(lambda: console["me"].status()["acquired"] > begun + 10)
        service.maybe_raise()
        ended = console["me"].status()["acquired"]
        console.listen(until=lambda: console.of(SampleBlock)[-1].frame_index > ended + 5)
        assert console.state == "scanning"
        console["me"].stop()
        console.listen_to_the_end()
        assert console.said() == [("recording_begun", "info"), ("stopped", "info")]
    recorded, published = blocks_in(path), console.of(SampleBlock)
    assert_on_end([block.seq for block in recorded])
    assert_on_end([block.seq for block in published])
    assert recorded[0].seq > 0
    assert recorded[-1].seq < published[-1].seq
    assert all(same_block(a, published[a.seq]) for a in recorded)
    assert isinstance(next(m for m in read(path) if isinstance(m, ScanStart | SampleBlock)), ScanStart)
    assert verify(path).whole


def test_one_recording_follows_another_in_the_same_scan(tmp_path):
    with running() as console:
        console["me"].start()
        for name in ("a.mcap", "b.mcap"):
            with recording_of(console, tmp_path / name) as service:
                begun = console["me"].status()["acquired"]
                wait_until(lambda begun=begun: console["me"].status()["acquired"] > begun + 3)
            service.maybe_raise()
    first, second = blocks_in(tmp_path / "a.mcap"), blocks_in(tmp_path / "b.mcap")
    for blocks in (first, second):
        assert_on_end([block.seq for block in blocks])
    assert first[-1].seq < second[0].seq


def test_the_operator_ends_a_recording_and_the_recorder_goes_home(path):
    with running() as console, recording_of(console, path) as service:
        console["me"].take_control()
        with pytest.raises(ControlRefusedError, match="control is held by me"):
            console["another"].end_recording()
        console["me"].end_recording()
        assert service.wait(10)
        service.maybe_raise()
        wait_until(lambda: not console["me"].status()["recorder"])
    assert verify(path).whole


def test_a_recording_asked_for_is_told_to_whoever_holds_the_lease(path):
    with running() as console:
        assert console["me"].renew_lease() == {"recorder": "", "record_wanted": False, "record_trouble": ""}
        console["me"].begin_recording()
        assert console["me"].renew_lease()["record_wanted"]
        with recording_of(console, path, name="mine"):
            told = console["me"].renew_lease()
            assert (told["recorder"], told["record_wanted"]) == ("mine", False)
            with pytest.raises(ControlRefusedError, match="mine records already"):
                console["me"].begin_recording()


@pytest.mark.parametrize("arguments", [{}, {"text": ""}, {"text": "x" * 2_001}, {"text": 5}, {"words": "a"}], ids=str)
def test_a_note_that_is_none_is_refused(arguments):
    with running() as console, pytest.raises(ControlRefusedError, match="note"):
        console.asks("note", arguments)


@pytest.mark.parametrize("token", [5, "é", "0" * 32])
def test_a_wrong_token_ends_nothing(path, token):
    with running() as console, recording_of(console, path) as service:
        with pytest.raises(ControlRefusedError, match="token"):
            console.asks("end_recording", {"token": token})
        assert console["me"].status()["recorder"]
        assert not service.wait(0)


def test_a_service_that_ends_gives_its_recorder_everything_to_the_last_word(path):
    with running() as console:
        service = RecorderService(path, network_from(console))
        service.start()
        console["me"].start()
        console.listen(until=lambda: len(console.of(SampleBlock)) > 10)
        console.service.close()
        assert service.wait(5)
        service.close()
        service.maybe_raise()
        console.listen_to_the_end()
    session = read(path)
    assert verify(path).whole
    assert [type(m) for m in session if isinstance(m, ScanEnd)] == [ScanEnd]
    assert blocks_in(path)[-1].seq == console.of(SampleBlock)[-1].seq
    assert [m.kind for m in session if isinstance(m, Event)][-2:] == ["service_ended", RECORDING_ENDED]


def test_what_was_measured_last_is_written_though_nothing_follows(path, monkeypatch):
    monkeypatch.setattr(microscope, "REPORT_EVERY_S", 60.0)
    with running() as console, recording_of(console, path):
        ring = console.service._record._recording.ring
        console["me"].start(frames=2)
        console.listen_to_the_end()
        wait_until(lambda: not ring.outstanding)
        assert console["me"].renew_lease()["record_trouble"] == ""
        assert len(blocks_in(path)) == len(console.of(SampleBlock))


def test_completed_frames_are_recorded_as_they_come_and_those_dropped_are_counted(path, tmp_path):
    network = network_of("inproc", tmp_path)
    with running(network=network) as console, Publisher(network.frames, hwm=1_000) as reconstruction:
        service = RecorderService(path, network, frames=True)
        service.start()
        wait_until(lambda: console["me"].status()["recorder"] and reconstruction.has_listener("frames"))
        frames = [build_frame(k) for k in range(3)]
        reconstruction.publish(StatusReport("reconstruction", 0, {"frames": 10}))
        for frame in frames:
            reconstruction.publish(frame)
        reconstruction.publish(StatusReport("reconstruction", 0, {"frames": 15}))
        wait_until(lambda: service._frames.dropped)
        service.close()
        service.maybe_raise()
    session = read(path)
    recorded = [m for m in session if type(m) is type(frames[0])]
    assert [frame.frame_index for frame in recorded] == [0, 1, 2]
    np.testing.assert_array_equal(recorded[1].image, frames[1].image)
    figures = [m.values for m in session if isinstance(m, StatusReport) and m.source == "recorder"]
    assert figures[-1] == {"frames": 3, "frames_dropped": 2}
    assert "reconstruction" in {m.source for m in session if isinstance(m, StatusReport)}


def test_a_reconstruction_that_starts_anew_is_no_loss():
    count = FrameCount()
    for published in (100, 3, 4):
        count.told(StatusReport("reconstruction", 0, {"frames": published}))
    assert count.dropped == 1


# --- what ends it ---------------------------------------------------------------------------------------------------


def test_a_second_recorder_is_refused_leaves_no_file_and_the_first_goes_on(path, tmp_path):
    other = tmp_path / "other.mcap"
    with running() as console, recording_of(console, path, name="mine") as first:
        second = RecorderService(other, network_from(console), name="yours")
        second.start()
        assert second.wait(10)
        second.close()
        with pytest.raises(RecordingError, match="refused: mine records already"):
            second.maybe_raise()
        assert not other.exists()
        console["me"].start(frames=3)
        console.listen_to_the_end()
        assert not first.wait(0)
    assert len(blocks_in(path)) == len(console.of(SampleBlock))


def test_a_recorder_told_to_end_before_there_was_a_microscope_leaves_no_file(path):
    network = NetworkSettings(**{name: free_endpoint() for name in NetworkSettings.model_fields})
    with RecorderService(path, network) as service:
        assert path.exists()
    service.maybe_raise()
    assert not path.exists()


def test_without_a_microscope_there_is_nothing_to_record(path, monkeypatch):
    monkeypatch.setattr(recorder_module, "ATTACH_WITHIN_S", 0.0)
    network = NetworkSettings(**{name: free_endpoint() for name in NetworkSettings.model_fields})
    with RecorderService(path, network) as service:
        assert service.wait(10)
    with pytest.raises(RecordingError, match="is the microscope service up"):
        service.maybe_raise()
    assert not path.exists()


def test_a_microscope_that_falls_silent_ends_the_recording_and_the_file_is_whole(path, monkeypatch):
    monkeypatch.setattr(recorder_module, "SILENCE_S", 2.0)
    with running() as console, recording_of(console, path) as service:
        console["me"].start(frames=2)
        console.listen_to_the_end()
        console.service._record_over.set()
        assert service.wait(10)
        with pytest.raises(RecordingError, match="fell silent"):
            service.maybe_raise()
    assert verify(path).whole
    assert len(blocks_in(path)) == len(console.of(SampleBlock))


def test_a_recording_that_ends_does_not_hold_up_the_scan_until_the_disk_has_it_all(path, monkeypatch):
    syncing, synced = threading.Event(), threading.Event()
    with running(stall_ms=2000.0) as console:
        service = RecorderService(path, network_from(console))
        service.start()
        wait_until(lambda: console["me"].status()["recorder"])
        console["me"].start()
        wait_until(lambda: console["me"].status()["acquired"] > 5)
        monkeypatch.setattr(recording.os, "fsync", lambda _file: syncing.set() or synced.wait(10))
        console["me"].end_recording()
        assert syncing.wait(10)
        wait_until(lambda: not console["me"].status()["recorder"])
        acquired = console["me"].status()["acquired"]
        wait_until(lambda: console["me"].status()["acquired"] > acquired + 50)
        assert console.state == "scanning"
        synced.set()
        service.close()
        service.maybe_raise()
    assert verify(path).whole


class Disk(SessionWriter):
    """A writer that does before every message what a test wants."""

    def __init__(self, path, before):
        super().__init__(path)
        self.before = before

    def write(self, message):
        if self.size_bytes:
            getattr(self, "before", lambda _: None)(message)
        return super().write(message)


@contextmanager
def recorded_scan(path, before, **settings):
    """Scan, with a recorder whose disk does `before` every message."""
    with running(**settings) as console:
        service = RecorderService(path, network_from(console), writer=Disk(path, before))
        service.start()
        wait_until(lambda: console["me"].status()["recorder"])
        console["me"].start()
        try:
            yield console, service
        finally:
            service.close()


def heard_of(console, kind):
    console.listen(until=lambda: any(event.kind == kind for event in console.of(Event)))
    return next(event for event in console.of(Event) if event.kind == kind)


def test_a_disk_that_does_not_answer_blanks_the_beam_and_blanking_does_not_wait_for_it(path):
    answers = threading.Event()

    def hang(message):
        if isinstance(message, SampleBlock) and message.seq == 5:
            answers.wait(20)

    try:
        with recorded_scan(path, hang, stall_ms=1500.0) as (console, service):
            assert "silent" in heard_of(console, "record_stalled").text
            assert_dark(console.controller)
            assert console.state == "parked"
            assert not answers.is_set()
            answers.set()
            assert service.wait(10)
            with pytest.raises(RecordingError, match=r"fell silent|too slow"):
                service.maybe_raise()
    finally:
        answers.set()
    assert_on_end([block.seq for block in blocks_in(path)])


def test_a_disk_that_is_too_slow_blanks_the_beam_and_everything_before_is_in_the_file(path, monkeypatch):
    pace, writing = threading.Event(), []

    def dawdle(message):
        if isinstance(message, SampleBlock):
            writing.append(message.seq)
            pace.wait(0.05)

    with recorded_scan(path, dawdle) as (console, service):
        wait_until(lambda: len(writing) > 1)  # the first is written
        monkeypatch.setattr(console.service._record._recording.ring, "_span_ns", 300_000_000)
        assert "too slow" in heard_of(console, "record_too_slow").text
        assert_dark(console.controller)
        pace.set()
        assert service.wait(20)
        with pytest.raises(RecordingError, match="too slow"):
            service.maybe_raise()
        assert not any(event.kind == "record_failed" for event in console.of(Event))
    numbers = [block.seq for block in blocks_in(path)]
    assert_on_end(numbers)
    assert numbers[0] == 0
    assert verify(path).whole


def test_a_message_that_is_missing_ends_the_recording_and_blanks(path):
    def nothing(_message):
        pass

    with recorded_scan(path, nothing) as (console, service):
        with console.service._record._lock:
            console.service._record._recording.ring.last_seq += 1
        event = heard_of(console, "record_failed")
        assert "something was lost" in event.text
        assert_dark(console.controller)
        assert service.wait(10)
        with pytest.raises(RecordingError, match="something was lost"):
            service.maybe_raise()


def test_an_error_of_the_disk_blanks_the_beam_and_is_told_in_its_words(path):
    def fail(message):
        if isinstance(message, SampleBlock) and message.seq == 7:
            raise RecordingError("cannot record: Input/output error")

    with recorded_scan(path, fail) as (console, service):
        assert "Input/output error" in heard_of(console, "record_failed").text
        assert_dark(console.controller)
        assert service.wait(10)
        with pytest.raises(RecordingError, match="Input/output error"):
            service.maybe_raise()
    assert [block.seq for block in blocks_in(path)] == list(range(7))


def test_a_recorder_that_says_it_wrote_what_it_never_got_blanks_the_beam():
    with running() as console, RecordClient(console.service.endpoints["record"]) as liar:
        token = console["liar"].attach_recorder()
        liar.acknowledge(RecordAck(token, 0))
        console["me"].start()
        wait_until(lambda: console.state == "scanning")
        liar.acknowledge(RecordAck(token, 10**6))
        assert "acknowledged message 1000000" in heard_of(console, "record_wrong_seq").text
        assert_dark(console.controller)


def test_without_a_recording_a_scan_needs_no_recorder():
    with running(stall_ms=100.0) as console:
        console["me"].start(frames=5)
        console.listen_to_the_end()
        assert console.said() == [("scan_ended", "info")]


def test_a_blank_is_carried_out_while_the_record_path_is_stuck():
    controller = FakeController()
    with running(controller) as console:
        console["dead"].attach_recorder()
        console["me"].start()
        wait_until(lambda: controller.beam_on)
        with console.service._record._lock:  # nobody may need it for blanking
            console.service.guard._turn_off()
        assert not controller.beam_on
        console["me"].blank()


# --- killed, frozen, full -------------------------------------------------------------------------------------------

needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


def kinds_of(console):
    return [event.kind for event in console.of(Event)]


def kill_at_random_moments(rounds, tmp_path):
    """Kill a recorder again and again; return how much it lost each time, of what was measured before [ms]."""
    rng, lost_ms = np.random.default_rng(5), []
    with running(network=network_of("ipc", tmp_path), stall_ms=1500.0) as console:
        for k in range(rounds):
            path = tmp_path / f"{k}.mcap"
            with recorder_process(path, network_from(console)) as process:
                wait_until(lambda: console["me"].status()["recorder"])
                console["me"].start()
                wait_until(lambda: console["me"].status()["acquired"] > 5)
                ring = console.service._record._recording.ring
                threading.Event().wait(rng.uniform(0, 0.5))
                os.kill(process.pid, signal.SIGKILL)
                killed_ns = time.monotonic_ns()
                console.heard.clear()
                console.listen(
                    until=lambda: console.of(ScanEnd) and {"recorder_lost", "record_stalled"} & set(kinds_of(console))
                )
                assert_dark(console.controller)
            recorded, published = blocks_in(path), console.of(SampleBlock)
            assert [block.seq for block in recorded] == [block.seq for block in published][: len(recorded)]
            written = len(read(path)) - len(["what opens the file"])
            assert ring.acknowledged_seq <= written, "what is acknowledged is written"
            written_ns = recorded[-1].t_last_ns if recorded else published[0].t_first_ns
            measured_ns = max((b.t_last_ns for b in published if b.t_last_ns < killed_ns), default=killed_ns)
            lost_ms.append((measured_ns - written_ns) / 1e6)
            path.unlink()
    return lost_ms


@needs_posix
def test_a_recorder_killed_at_any_moment_costs_a_quarter_second_and_the_beam_goes_off(tmp_path):
    assert max(kill_at_random_moments(ROUNDS, tmp_path)) <= LOSS_MS


@needs_posix
@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_a_recorder_killed_two_hundred_times_never_costs_more(tmp_path):
    assert max(kill_at_random_moments(MANY_ROUNDS, tmp_path)) <= LOSS_MS


@needs_posix
def test_a_recorder_that_is_frozen_blanks_the_beam(path, tmp_path):
    with (
        running(network=network_of("ipc", tmp_path), stall_ms=1500.0) as console,
        recorder_process(path, network_from(console)) as process,
    ):
        wait_until(lambda: console["me"].status()["recorder"])
        console["me"].start()
        wait_until(lambda: console["me"].status()["acquired"] > 5)
        os.kill(process.pid, signal.SIGSTOP)
        heard_of(console, "record_stalled")
        assert_dark(console.controller)
    assert_on_end([block.seq for block in blocks_in(path)])


@needs_posix
def test_a_disk_that_is_full_blanks_the_beam_and_what_was_written_is_read(path, tmp_path):
    with (
        running(network=network_of("ipc", tmp_path)) as console,
        recorder_process(path, network_from(console), limit_bytes=200_000) as process,
    ):
        wait_until(lambda: console["me"].status()["recorder"])
        console["me"].start()
        assert "cannot record to" in heard_of(console, "record_failed").text
        assert_dark(console.controller)
        process.join(10)
        assert process.exitcode == 1
    recorded = [block.seq for block in blocks_in(path)]
    assert recorded == list(range(len(recorded)))
    assert len(recorded) > 10


@pytest.mark.slow
@pytest.mark.timeout(SOAK_S + 300)
def test_ten_minutes_are_recorded_whole(path, tmp_path):
    with running(simulated(), network=network_of("ipc", tmp_path), dwell_time_us=1.0) as console:
        with recording_of(console, path, fsync="chunk") as service:
            console["me"].start()
            ends_s, longest_ms = time.monotonic() + SOAK_S, 0.0
            while time.monotonic() < ends_s:
                console.heard.clear()
                console.listen(until=lambda: len(console.heard) >= 1_000)
                console["me"].renew_lease()
                longest_ms = max(longest_ms, console["me"].status()["record_waiting_ms"])
                assert console.state == "scanning"
            console["me"].stop()
            console.listen_to_the_end()
        service.maybe_raise()
        last = [block.seq for block in console.of(SampleBlock)][-1]
    before = -1
    for message in read_session(path):
        if isinstance(message, SampleBlock):
            assert message.seq == before + 1
            before = message.seq
    assert before == last
    assert verify(path).whole
    assert longest_ms < 2_000
