"""The microscope service as its clients see it, over the simulated controller and over one that fails on demand."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from lowdose.acquisition import microscope
from lowdose.acquisition.assembly import FrameAssembler, SequenceCounter
from lowdose.acquisition.controllers.base import (
    BlankNotConfirmedError,
    ControllerError,
    ControllerLimits,
)
from lowdose.acquisition.messages import SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.scans import MAX_SCANS_REMEMBERED
from lowdose.acquisition.settings import NetworkSettings
from lowdose.acquisition.sockets import ControlClient, ControlRefusedError, Publisher
from lowdose.acquisition.status import Event, StatusReport
from lowdose.acquisition.wire import MAX_HEADER_BYTES
from lowdose.scan_patterns.dose import frame_dose_e_per_a2
from tests.acquisition.consoles import (
    GRID,
    LATTICE,
    RASTER,
    SAFE,
    FakeController,
    assert_dark,
    assert_free,
    faulty,
    make_pattern,
    running,
    service_of,
    simulated,
    wait_until,
)

# --- a scan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tcp", "inproc"])
@pytest.mark.parametrize("pacing", ["real_time", "as_fast_as_possible"])
def test_every_position_of_every_frame_is_delivered_once_and_in_order(pacing, transport):
    names = ("control", "samples", "record")
    inproc = NetworkSettings(**{name: f"inproc://{name}-{pacing}" for name in names})
    with running(simulated(pacing), network=inproc if transport == "inproc" else None) as console:
        console["me"].start(frames=6)
        console.listen_to_the_end()
        (start,), blocks = console.of(ScanStart), console.of(SampleBlock)
        assert [block.seq for block in blocks] == list(range(len(blocks)))
        visited = [(b.frame_index, b.first + k) for b in blocks for k in range(b.counts.shape[1])]
        assert visited == [(frame, k) for frame in range(6) for k in range(1_024)]
        assert {block.path_digest for block in blocks} == {start.paths[0].digest}
        assert all(a.t_last_ns <= b.t_last_ns for a, b in pairwise(blocks))
        assert all(b.t_first_ns <= b.t_last_ns <= b.t_sent_ns for b in blocks)
        assert console["me"].status()["acquired"] == 6


def test_the_blocks_of_a_scan_make_its_frames():
    with running() as console:
        console["me"].start(frames=3)
        console.listen_to_the_end()
        assembler = FrameAssembler(console.of(ScanStart)[0])
        frames = [frame for block in console.of(SampleBlock) for frame in assembler.add(block, 0)]
    assert [(frame.frame_index, frame.samples_used) for frame in frames] == [(0, 1_024), (1, 1_024), (2, 1_024)]
    assert all(frame.mask.all() for frame in frames)
    # 0.5 of full scale * 25 pA * 10 us * 6.24 e/(pA us) * 0.1 counts/e
    assert np.mean([frame.values for frame in frames]) == pytest.approx(78.0, rel=0.02)


def test_a_scan_is_announced_before_its_blocks_and_ended_after_them():
    with running() as console:
        console["me"].start(frames=2)
        console.listen_to_the_end()
        stream = [m for m in console.heard if isinstance(m, ScanStart | SampleBlock | ScanEnd)]
        assert isinstance(stream[0], ScanStart)
        assert stream[-1] == ScanEnd(stream[0].scan_id, 1, "stopped")
        assert all(isinstance(message, SampleBlock) for message in stream[1:-1])


def test_a_scan_of_so_many_frames_ends_by_itself_with_the_beam_off():
    with running() as console:
        console["me"].start(frames=2)
        console.listen_to_the_end()
        assert_dark(console.controller)
        assert console.state == "parked"
        assert console.said() == [("scan_ended", "info")]


def test_a_second_scan_follows_the_first_and_numbers_go_on():
    with running() as console:
        for _ in range(2):
            console["me"].start(frames=2)
            console.listen_to_the_end()
        blocks = console.of(SampleBlock)
        assert [block.seq for block in blocks] == list(range(len(blocks)))
        assert [m.scan_id for m in console.of(ScanStart)] == [m.scan_id for m in console.of(ScanEnd)]
        assert console["me"].status()["acquired"] == 4


@pytest.mark.parametrize("verb", ["stop", "blank", "park"])
def test_the_beam_is_off_when_the_order_is_answered(verb):
    with running() as console:
        console["me"].start()
        console.listen(until=lambda: len(console.of(SampleBlock)) > 3)
        assert console.state == "scanning"
        getattr(console["me"], verb)()
        assert_dark(console.controller)
        assert console.state == "parked"
        console.listen_to_the_end()
        assert console.said() == [("blanked" if verb == "blank" else "stopped", "info")]


def test_a_scan_that_runs_is_not_started_again():
    with running() as console:
        console["me"].start()
        with pytest.raises(ControlRefusedError, match="a scan is running: stop it first"):
            console["me"].start()
        assert console.state == "scanning"


def test_closing_while_scanning_leaves_the_beam_blanked_and_parked():
    with running() as console:
        console["me"].start()
        console.listen(until=lambda: console.of(SampleBlock))
        assert not console.controller.beam.blanked
        console.service.close()
        assert_dark(console.controller)
        assert console.service.wait(0)
        console.service.close()
        console.service.maybe_raise()


def test_closing_closes_the_controller_and_frees_the_ports():
    controller = FakeController()
    with running(controller) as console:
        endpoints = console.service.endpoints
    assert controller.closed == 1
    assert_free(*endpoints.values())


def test_a_service_never_started_closes():
    controller = FakeController()
    service_of(controller).close()
    assert controller.closed == 1
    assert not controller.beam_on


# --- configure ------------------------------------------------------------------------------------------------------


def test_a_configuration_takes_effect_at_a_frame_edge_as_a_new_scan():
    with running() as console:
        console["me"].start()
        console.listen(until=lambda: len(console.of(SampleBlock)) > 3)
        answer = console["me"].configure(pattern=LATTICE, dwell_time_us=100.0)
        console.listen(until=lambda: any(b.scan_id == answer["scan_id"] for b in console.of(SampleBlock)))
        console["me"].stop()
        console.listen_to_the_end()
    stream = [m for m in console.heard if isinstance(m, ScanStart | SampleBlock | ScanEnd)]
    order = [(type(m), m.scan_id) for m in stream if not isinstance(m, SampleBlock)]
    old, new = console.of(ScanStart)
    assert order == [(ScanStart, old.scan_id), (ScanEnd, old.scan_id), (ScanStart, new.scan_id), (ScanEnd, new.scan_id)]
    assert new.scan_id == answer["scan_id"]
    last, first = stream[stream.index(new) - 2], stream[stream.index(new) + 1]
    assert last.first + last.counts.shape[1] == 1_024, "the old scan's last frame is whole"
    assert stream[stream.index(new) - 1].frame_index == last.frame_index
    assert (first.scan_id, first.frame_index, first.first) == (new.scan_id, 0, 0)
    assert first.seq == last.seq + 1


def test_the_answer_to_configure_tells_what_the_scan_will_cost():
    with running() as console:
        answer = console["me"].configure(pattern=LATTICE, dwell_time_us=20.0)
        path = console["me"].describe_scan(answer["scan_id"]).paths[0]
    assert len(path) == 64
    assert answer["coverage"] == 1 / 16
    assert answer["coverage_nominal"] == 1 / 16
    assert answer["frame_ms"] == pytest.approx(64 * 0.02)
    assert answer["dose_e_per_a2"] == pytest.approx(frame_dose_e_per_a2(path, 25.0))
    assert answer["pattern_parameters"] == {"coverage": 1 / 16}


def test_what_is_not_named_in_configure_stays():
    with running() as console:
        console["me"].configure(pattern=LATTICE)
        answer = console["me"].configure(dwell_time_us=5)
        assert (answer["pattern"], answer["dwell_time_us"]) == ("lattice", 5.0)
        answer = console["me"].configure()
        assert (answer["pattern"], answer["dwell_time_us"]) == ("lattice", 5.0)


WRONG = [
    ("configure", {"dwell_time_us": 0}, "dwell_time_us must be > 0"),
    ("configure", {"dwell_time_us": -1.0}, "dwell_time_us must be > 0"),
    ("configure", {"dwell_time_us": float("nan")}, "dwell_time_us must be > 0"),
    ("configure", {"dwell_time_us": float("inf")}, "dwell_time_us must be > 0"),
    ("configure", {"dwell_time_us": 2**64 - 1}, "dwell_time_us must be > 0"),
    ("configure", {"dwell_time_us": "1"}, "must be a number, got str"),
    ("configure", {"dwell_time_us": True}, "must be a number, got bool"),
    ("configure", {"dwell_time_us": None}, "must be a number, got NoneType"),
    ("configure", {"dwell_time_us": 0.1}, "must be >= 0.5 on this controller"),
    ("configure", {"dwell": 1.0}, "configure takes pattern and dwell_time_us, got dwell"),
    ("configure", {"pattern": "lattice"}, "pattern must be a map"),
    ("configure", {"pattern": {"name": "latice"}}, "did you mean 'lattice'"),
    ("configure", {"pattern": {"name": "x" * 9_000}}, "unknown pattern"),
    ("configure", {"pattern": {"name": "x" * 50_000}}, "pattern must fit 10000 characters"),
    ("configure", {"pattern": {}}, "unknown pattern"),
    ("configure", {"pattern": {"name": "os:system"}}, "unknown pattern"),
    ("configure", {"pattern": {"name": "lattice", "coverage": 0.0}}, "coverage must be > 0"),
    ("configure", {"pattern": {"name": "lattice", "size": 3}}, "size"),
    ("configure", {"pattern": {"name": ("raster",)}}, ""),
    ("start", {"frames": 0}, "frames must be an integer >= 1, got 0"),
    ("start", {"frames": -3}, "frames must be an integer >= 1"),
    ("start", {"frames": 1.0}, "frames must be an integer >= 1"),
    ("start", {"frames": True}, "frames must be an integer >= 1"),
    ("start", {"frames": "many"}, "frames must be an integer >= 1"),
    ("start", {"frame": 3}, "start takes frames, got frame"),
    ("describe_scan", {"scan_id": "nonsense"}, "no scan 'nonsense' is known here"),
    ("describe_scan", {"scan_id": {"a": 1}}, ""),
    ("describe_scan", {"scan": "x"}, "describe_scan takes scan_id, got scan"),
    ("fire", {}, "unknown verb 'fire': known are status, take_control, release_control, configure"),
    ("", {}, "unknown verb ''"),
    ("x" * 60_000, {}, "unknown verb 'xxx"),
    ("__init__", {}, "unknown verb"),
]


@pytest.mark.parametrize(("verb", "arguments", "complaint"), WRONG, ids=lambda value: repr(value)[:50])
def test_a_wrong_request_is_refused_and_nothing_changes(verb, arguments, complaint):
    with running(FakeController()) as console:
        before = console["me"].status()
        with pytest.raises(ControlRefusedError) as refusal:
            console.asks(verb, arguments)
        assert complaint in str(refusal.value)
        assert console["me"].status() == before
        assert "start" not in console.controller.calls
        assert console["me"].describe_scan().scan_id == before["scan_id"]


def test_a_path_too_long_for_the_controller_is_refused_before_the_beam_moves(monkeypatch):
    limits = ControllerLimits(min_dwell_us=0.5, max_positions=1_000, look_ahead_ms=5, dead_man=True)
    with running(FakeController(), pattern=LATTICE) as console:
        monkeypatch.setattr(FakeController, "limits", limits)
        with pytest.raises(ControlRefusedError, match="a path may have 1000 positions on this controller, got 1024"):
            console["me"].configure(pattern=RASTER)
        assert console["me"].status()["pattern"] == "lattice"


@pytest.mark.parametrize("verb", ["status", "blank"])
def test_a_name_or_an_answer_of_any_length_leaves_the_service_alive(verb):
    with running(FakeController()) as console:
        with ControlClient(console.service.endpoints["control"], "x" * 200) as client:
            client.request(verb, {}, 5)
            for size in (MAX_HEADER_BYTES // 2, MAX_HEADER_BYTES - 500):
                for wrong in ("configure", "start", "describe_scan"):
                    with pytest.raises(ControlRefusedError):
                        client.request(wrong, {"y" * size: 1}, 5)
        assert console.state == "parked"
        console.service.maybe_raise()


def test_the_scan_under_way_is_not_forgotten_however_often_it_is_configured_anew():
    controller = FakeController()
    with running(controller) as console:
        controller.may_go_on.clear()
        console["me"].start(frames=2)
        admitted = console["me"].status()["scan_id"]
        wait_until(lambda: console["me"].status()["dose_area_e_per_a2"] > 0)
        for k in range(2 * MAX_SCANS_REMEMBERED):
            answer = console["me"].configure(dwell_time_us=1.0 + k)
        controller.may_go_on.set()
        console.listen_to_the_end()
        assert [start.scan_id for start in console.of(ScanStart)] == [admitted, answer["scan_id"]]
        console.service.maybe_raise()
        assert console["me"].describe_scan().scan_id == answer["scan_id"]
        assert len(console.service._scans) <= MAX_SCANS_REMEMBERED + 1


def test_a_scan_is_described_by_its_id_and_by_default_the_current_one():
    with running() as console:
        first = console["me"].describe_scan()
        second = console["me"].configure(pattern=LATTICE)["scan_id"]
        assert console["me"].describe_scan().scan_id == second
        again = console["me"].describe_scan(first.scan_id)
    assert again.scan_id == first.scan_id
    assert again.paths == first.paths
    assert first.pattern == {"name": "raster", "lines": "flyback", "seed": 3}
    assert first.grid == GRID


# --- who may --------------------------------------------------------------------------------------------------------


def test_one_display_at_a_time_holds_control():
    with running() as console:
        console["lab 1"].take_control()
        assert console["me"].status()["control_holder"] == "lab 1"
        for forbidden in ("take_control", "start", "stop", "park", "new_area", "configure"):
            with pytest.raises(ControlRefusedError, match="control is held by lab 1: this display only watches"):
                getattr(console["lab 2"], forbidden)()
        console["lab 1"].take_control()
        console["lab 1"].start(frames=1)


def test_anybody_may_watch_and_blank():
    with running() as console:
        console["lab 1"].take_control()
        console["lab 1"].start()
        assert console["lab 2"].status()["state"] == "scanning"
        assert console["lab 2"].describe_scan().grid == GRID
        console["lab 2"].blank()
        assert_dark(console.controller)
        console.listen(until=lambda: console.said())
        assert console.of(Event)[0].text == "blanked by lab 2"


def test_control_that_is_not_taken_again_becomes_free(monkeypatch):
    monkeypatch.setattr(microscope, "CONTROL_HELD_S", 0.02)
    with running() as console:
        console["lab 1"].take_control()
        wait_until(lambda: console["me"].status()["control_holder"] == "")
        console["lab 2"].take_control()
        assert console["me"].status()["control_holder"] == "lab 2"


def test_the_lease_holder_commands_whoever_holds_control():
    with running() as console:
        console["lab 1"].take_control()
        console["supervisor"].renew_lease()
        console["supervisor"].start(frames=1)


def test_a_lease_that_has_run_out_gives_no_say_against_the_holder_of_control():
    with running(lease_s=0.01) as console:
        console["lab 1"].renew_lease()
        wait_until(lambda: not console.service.guard.holds_lease("lab 1"))
        console["lab 2"].take_control()
        with pytest.raises(ControlRefusedError, match="control is held by lab 2"):
            console["lab 1"].start()


# --- safety ---------------------------------------------------------------------------------------------------------


def test_a_lost_lease_blanks_and_is_told_on_the_status_topic():
    with running(lease_s=0.1) as console:
        console["me"].start()
        console.listen(until=lambda: ("lease_lost", "warning") in console.said())
        assert_dark(console.controller)
        assert console.of(Event)[0].text == "nobody renewed the lease of me for 0.1 s"


def test_a_renewed_lease_keeps_the_scan_going():
    with running(lease_s=0.5) as console:
        console["me"].start()
        began_s = time.monotonic()
        while time.monotonic() - began_s < 0.8:
            console["me"].renew_lease()
            console._ears.receive(0.05)
        assert console.state == "scanning"
        with pytest.raises(ControlRefusedError, match="the lease is held by me"):
            console["another"].renew_lease()


def test_the_dose_budget_ends_the_scan_before_the_frame_that_would_exceed_it():
    one_frame = frame_dose_e_per_a2(service_path(RASTER), 25.0)
    with running(budget=3.5 * one_frame) as console:
        console["me"].start()
        console.listen_to_the_end()
        assert console.of(ScanEnd)[0].frame_index == 2
        status = console["me"].status()
        assert status["dose_area_e_per_a2"] == pytest.approx(3 * one_frame)
        assert_dark(console.controller)
        assert ("budget_spent", "warning") in console.said()
        with pytest.raises(ControlRefusedError, match="the dose budget of area 0 is spent"):
            console["me"].start()
        assert console["me"].new_area() == 1
        console["me"].start(frames=1)
        console.listen_to_the_end()
        assert console["me"].status()["dose_area_e_per_a2"] == pytest.approx(one_frame)


def service_path(pattern):
    (path,) = make_pattern(pattern, GRID).paths(GRID, dwell_time_us=10.0, rng=np.random.default_rng(0))
    return path


@pytest.mark.parametrize("order", ["blank", "stop"])
def test_a_start_that_waits_behind_a_slow_configure_is_not_done_after_the_beam_was_ordered_off(order):
    controller = FakeController()
    with running(controller) as console, ControlClient(console.service.endpoints["control"], "hurried") as hurried:
        controller.slow_prepare.clear()
        with pytest.raises(TimeoutError):
            hurried.request("configure", {"dwell_time_us": 2.0}, 0.05)
        with pytest.raises(TimeoutError):
            hurried.request("start", {}, 0.05)
        getattr(console["me"], order)()
        controller.slow_prepare.set()
        assert console["me"].describe_scan().dwell_time_us == 2.0, "all that waited is done"
        assert console.state == "parked"
        assert "unblank" not in controller.calls
        console["me"].start(frames=1)


def test_quick_requests_are_answered_while_a_slow_one_is_at_work():
    controller = FakeController()
    with running(controller) as console, ControlClient(console.service.endpoints["control"], "slow") as slow:
        controller.slow_prepare.clear()
        with pytest.raises(TimeoutError):
            slow.request("configure", {"dwell_time_us": 2.0}, 0.02)
        assert console["me"].status()["state"] == "parked"
        console["me"].blank()
        assert controller.calls[-3:] == SAFE
        controller.slow_prepare.set()


def test_too_many_slow_requests_are_refused():
    controller = FakeController()
    with running(controller) as console, ControlClient(console.service.endpoints["control"], "slow") as slow:
        controller.slow_prepare.clear()
        for _ in range(33):
            with pytest.raises(TimeoutError):
                slow.request("configure", {}, 0.001)
        with pytest.raises(ControlRefusedError, match="busy: too many requests are waiting"):
            slow.request("configure", {}, 5)
        controller.slow_prepare.set()


@pytest.mark.parametrize("error", [OSError("cable pulled"), KeyError("x"), MemoryError()], ids=repr)
def test_an_exception_while_scanning_blanks_and_is_reported_and_raised(error, caplog):
    controller = FakeController()
    with running(controller) as console:
        controller.may_go_on.clear()
        console["me"].start()
        controller.fails["blocks"] = error
        controller.may_go_on.set()
        assert console.service.wait(5)
        assert not controller.beam_on
        assert [call for call in controller.calls if call in SAFE][:3] == SAFE
        console.listen(until=lambda: ("exception", "alarm") in console.said())
        assert type(error).__name__ in console.of(Event)[-1].text
        with pytest.raises(type(error)):
            console.service.maybe_raise()


def test_an_exception_with_a_message_of_any_length_still_blanks_and_ends_the_service(caplog):
    controller = FakeController()
    controller.fails["blocks"] = OSError("x" * 100_000)
    with running(controller) as console:
        console["me"].start()
        assert console.service.wait(5)
        assert not controller.beam_on
        console.listen(until=lambda: ("exception", "alarm") in console.said())


@pytest.mark.parametrize("verb", ["prepare", "start", "unblank"])
def test_an_exception_while_asked_is_answered_with_the_beam_off_and_the_service_goes_on(verb, caplog):
    controller = FakeController()
    with running(controller) as console:
        controller.fails[verb] = OSError("cable pulled")
        with pytest.raises(ControlRefusedError, match=r"failed: OSError: cable pulled"):
            console["me"].configure() if verb == "prepare" else console["me"].start()
        assert not controller.beam_on
        assert console.state == "parked"
        controller.fails.clear()
        console["me"].configure(pattern=LATTICE)
        console["me"].start(frames=1)
        console.listen_to_the_end()


def test_an_unblank_that_fails_half_way_is_blanked_again(caplog):
    controller = FakeController()
    with running(controller) as console:
        controller.fails["unblank"] = OSError("half way")
        controller.beam_on = True
        with pytest.raises(ControlRefusedError):
            console["me"].start()
        assert not controller.beam_on
        console.listen(until=lambda: ("unblank_failed", "alarm") in console.said())


def test_a_blank_that_is_not_confirmed_latches_an_alarm_until_it_is_cleared():
    controller = FakeController()
    with running(controller) as console:
        console["me"].start()
        controller.fails["blank"] = BlankNotConfirmedError("no echo")
        console["another"].blank()
        status = console["me"].status()
        assert (status["state"], status["alarm"]) == ("fault", "no echo")
        assert [call for call in controller.calls if call in SAFE][:3] == SAFE
        console.listen_to_the_end()
        assert ("blank_not_confirmed", "alarm") in console.said()
        with pytest.raises(ControlRefusedError, match="alarm: no echo"):
            console["me"].start()
        controller.fails.clear()
        console["me"].clear_alarm()
        assert console.state == "parked"
        console["me"].start(frames=1)
        console.listen_to_the_end()


@pytest.mark.parametrize(
    "change",
    [{"pattern": {"name": "latice"}}, {"dwell_time_us": 0.1}, {"pattern": {"name": "lattice", "coverage": 1e-9}}],
    ids=["unknown", "too fast", "too sparse"],
)
def test_a_service_that_cannot_be_made_lets_go_of_its_ports(change):
    network = NetworkSettings(**{name: f"inproc://unmade-{name}" for name in ("control", "samples", "record")})
    with pytest.raises(ValueError, match=r"pattern|dwell_time_us|lattice"):
        service_of(FakeController(), network=network, **change)
    assert_free(network.control, network.samples, network.record)


def test_a_service_without_a_dead_man_lets_go_of_its_ports(monkeypatch):
    network = NetworkSettings(**{name: f"inproc://unmade-{name}" for name in ("control", "samples", "record")})
    with monkeypatch.context() as patch:
        limits = ControllerLimits(min_dwell_us=0.5, max_positions=2_000, look_ahead_ms=5.0, dead_man=False)
        patch.setattr(FakeController, "limits", limits)
        with pytest.raises(ValueError, match="no dead man"):
            service_of(FakeController(), network=network)
    assert_free(network.control, network.samples, network.record)


@pytest.mark.parametrize("taken", ["control", "samples", "record"])
def test_a_port_in_use_is_named_and_the_other_one_let_go(taken):
    with Publisher("tcp://127.0.0.1:0", hwm=1) as other:
        free = {"control": "inproc://p-c", "samples": "inproc://p-s", "record": "inproc://p-r"}
        network = NetworkSettings(**{**free, taken: other.endpoint})
        with pytest.raises(ValueError, match=f"{other.endpoint} is in use by another program"):
            service_of(FakeController(), network=network)
    assert_free("inproc://p-c", "inproc://p-s", "inproc://p-r")


# --- status ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "lost", "refused", "holes"),
    [({"drop": 5}, 1, 0, 256), ({"duplicate": 5}, 0, 1, 0), ({"reorder": 5}, 0, 0, 0), ({"wrong_count": 5}, 1, 1, 256)],
    ids=str,
)
def test_a_fault_of_the_controller_is_counted_and_shown_and_never_a_wrong_picture(faults, lost, refused, holes):
    with running(faulty(**faults)) as console:
        console["me"].start(frames=3)
        console.listen_to_the_end()
        status = console["me"].status()
        assert (status["blocks_lost"], status["blocks_refused"]) == (lost, refused)
        assert ("blocks_wrong", "warning") in console.said()
        assembler, missed = FrameAssembler(console.of(ScanStart)[0]), SequenceCounter()
        blocks = console.of(SampleBlock)
        for block in blocks:
            missed.saw(block.seq)
        frames = [frame for block in blocks for frame in assembler.add(block, 0)] + assembler.finish()
    assert missed.dropped == lost
    assert [int((~frame.mask).sum()) for frame in frames] == [0, holes, 0]


def test_a_controller_that_delivers_nothing_any_more_is_blanked():
    with running(faulty(stall=6), deadline_ms=50.0) as console:
        console["me"].start()
        console.listen(until=lambda: ("block_deadline", "warning") in console.said())
        console.listen_to_the_end()
        assert_dark(console.controller)
        assert len(console.of(SampleBlock)) == 6


def test_a_controller_whose_blocks_are_all_refused_is_blanked():
    controller = FakeController()
    with running(controller, deadline_ms=50.0) as console:
        console.service._stream.order.number = lambda _samples: None
        console["me"].start()
        console.listen(until=lambda: ("block_deadline", "warning") in console.said())
        assert not controller.beam_on


def test_a_late_block_is_an_event_and_the_scan_goes_on():
    with running(faulty(late=3, late_ms=40), late_ms=5.0) as console:
        console["me"].start(frames=3)
        console.listen_to_the_end()
        assert [kind for kind, _ in console.said() if kind == "late"]
        status = console["me"].status()
        assert status["late"] >= 1
        assert status["late_ms"] > 5
        assert len(console.of(SampleBlock)) == 12


def test_a_driver_that_dies_blanks_and_ends_the_service(caplog):
    with running(faulty(die=3)) as console:
        console["me"].start()
        assert console.service.wait(5)
        assert_dark(console.controller)
        console.listen(until=lambda: ("exception", "alarm") in console.said())
        with pytest.raises(ControllerError, match="after 3 blocks"):
            console.service.maybe_raise()


def test_a_blanker_that_sticks_latches_an_alarm_and_no_scan_begins():
    with running(faulty(refuse_to_blank=3)) as console:
        console["me"].start()
        console.listen(until=lambda: len(console.of(SampleBlock)) > 4)
        console["me"].blank()
        console.listen(until=lambda: ("blank_not_confirmed", "alarm") in console.said())
        assert console["me"].status()["alarm"] == "the detectors still see the beam"
        console["me"].clear_alarm()
        assert console.state == "fault"
        with pytest.raises(ControlRefusedError, match="alarm"):
            console["me"].start()


def test_deadlines_are_kept_while_a_slow_request_waits_for_the_driver():
    controller = FakeController()
    with running(controller, lease_s=0.2) as console, ControlClient(console.service.endpoints["control"], "b") as other:
        console["me"].start()
        controller.slow_prepare.clear()
        with pytest.raises(TimeoutError):
            other.request("configure", {}, 0.02)
        console.listen(until=lambda: ("lease_lost", "warning") in console.said())
        assert not controller.beam_on
        controller.slow_prepare.set()


def test_a_service_ends_though_its_driver_hangs_with_requests_waiting():
    controller = FakeController()
    with running(controller) as console, ControlClient(console.service.endpoints["control"], "slow") as slow:
        controller.slow_prepare.clear()
        for _ in range(33):
            with pytest.raises(TimeoutError):
                slow.request("configure", {}, 0.001)
        closing = threading.Thread(target=console.service.close)
        closing.start()
        assert console.service.wait(5)
        controller.slow_prepare.set()
        closing.join(10)
        assert not closing.is_alive()


def test_reports_come_by_themselves_and_say_what_is_going_on():
    with running() as console:
        console.listen(until=lambda: len(console.of(StatusReport)) >= 2)
        values = console.of(StatusReport)[-1].values
        assert values["state"] == "parked"
        assert values["patterns"] == ("raster", "lattice")
        assert values["dead_man"]
        assert values["has_listener"]
        assert values == console["me"].status()


def test_garbage_on_control_is_counted_in_the_report_and_the_scan_goes_on():
    with running() as console:
        console["me"].start()
        for k in range(3):
            console["me"]._socket._socket.send_multipart([b"x" * k, b"y"])
        assert console["me"].status()["garbage"] == 3
        assert console.state == "scanning"
