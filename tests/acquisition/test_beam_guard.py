"""The beam guard on a clock of its own, over a controller that only notes what it is told."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace

import numpy as np
import pytest

from lowdose.acquisition import beam_guard
from lowdose.acquisition.beam_guard import BeamGuard
from lowdose.acquisition.continuity import block_plan
from lowdose.acquisition.controllers.base import BlankNotConfirmedError, ControllerLimits, Samples
from lowdose.acquisition.controllers.deflector import Deflector
from lowdose.acquisition.settings import DoseSettings, SafetySettings
from lowdose.scan_patterns import ScanGrid, ScanPath
from lowdose.scan_patterns.dose import dose_rate_e_per_a2_s, frame_dose_e_per_a2

PATH = ScanPath(ScanGrid((4, 4)), [[0, 0], [1, 1]], 1.0)
FRAME_DOSE = frame_dose_e_per_a2(PATH, 25.0)
SAFE = ["blank", "stop", "park"]
PATIENT = SafetySettings(block_deadline_ms=60_000)
"""For tests of anything but the block deadline: no block ever comes in them."""


class NotingController:
    """Notes every call; what is in `fails` is raised instead of done, what is in `hangs` waits for `let_go`."""

    limits = ControllerLimits(min_dwell_us=0.01, max_positions=1_000, look_ahead_ms=5.0, dead_man=True)

    def __init__(self):
        self.calls, self.fails, self.timeouts_s = [], {}, []
        self.beam_on = False
        self.hangs, self.let_go = set(), threading.Event()
        self.on_call = lambda _name: None

    def _called(self, name, beam_on):
        self.calls.append(name)
        self.on_call(name)
        if name in self.hangs:
            self.let_go.wait(5)
        if name in self.fails:
            raise self.fails[name]
        self.beam_on = self.beam_on if beam_on is None else beam_on

    def unblank(self):
        self._called("unblank", True)

    def blank(self, timeout_s):
        self.timeouts_s.append(timeout_s)
        self._called("blank", False)

    def stop(self):
        self._called("stop", None)

    def park(self, timeout_s):
        self.timeouts_s.append(timeout_s)
        self._called("park", False)


class Bench:
    """A guard with all it needs; `now_s` is the time."""

    def __init__(self, budget=None, safety=None):
        self.now_s = 1_000.0
        self.events = []
        self.controller = NotingController()
        self.guard = BeamGuard(
            self.controller,
            safety or PATIENT,
            DoseSettings(budget_e_per_a2=budget),
            beam_current_pa=25.0,
            emit=self.events.append,
            clock=lambda: round(self.now_s * 1e9),
        )

    def scanning(self, client="me"):
        self.guard.ensure_lease(client)
        self.guard.begin_scanning()
        self.controller.calls.clear()
        return self

    @property
    def said(self):
        return [(event.kind, event.severity) for event in self.events]


@pytest.fixture
def bench():
    return Bench()


# --- making safe ----------------------------------------------------------------------------------------------------


def test_the_beam_is_parked_until_a_scan_begins(bench):
    assert bench.guard.state == "parked"
    assert bench.controller.calls == []
    bench.guard.begin_scanning()
    assert bench.guard.state == "scanning"
    assert bench.controller.calls == ["unblank"]


def test_making_safe_blanks_then_stops_then_parks(bench):
    bench.scanning().guard.make_safe("stopped", "stopped by me")
    assert bench.controller.calls == SAFE
    assert bench.guard.state == "parked"
    assert bench.said == [("stopped", "info")]
    assert bench.controller.timeouts_s == [0.1, 0.1]


@pytest.mark.parametrize("error", [BlankNotConfirmedError("no echo"), OSError("cable"), TypeError()], ids=repr)
@pytest.mark.parametrize("failing", [["blank"], ["stop"], ["park"], ["blank", "stop"], SAFE], ids=" ".join)
def test_every_step_is_tried_even_if_the_one_before_fails(bench, failing, error):
    bench.scanning().controller.fails = dict.fromkeys(failing, error)
    bench.guard.make_safe("stopped", "stopped by me")
    assert bench.controller.calls == SAFE
    assert bench.guard.state == "fault"
    assert bench.guard.alarm
    assert bench.said == [("stopped", "info"), ("blank_not_confirmed", "alarm")]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BlankNotConfirmedError("no echo within 100 ms"), "no echo within 100 ms"),
        (BlankNotConfirmedError(), "the controller did not confirm the blank"),
        (OSError("cable"), "OSError: cable"),
    ],
    ids=["reason", "no reason", "driver"],
)
def test_a_blank_that_is_not_confirmed_tells_a_person_to_blank_by_hand_and_why(bench, error, told):
    bench.scanning().controller.fails = {"blank": error}
    bench.guard.make_safe("stopped", "stopped by me")
    assert bench.guard.alarm == told
    assert bench.events[-1].text == f"BLANK THE BEAM BY HAND: {told}"
    assert bench.events[-1].source == "microscope"
    assert bench.events[-1].t_ns == 1_000_000_000_000


def test_making_safe_again_says_nothing_new_but_blanks_again(bench):
    bench.scanning().guard.make_safe("stopped", "stopped by me")
    bench.guard.make_safe("scan_ended", "the scan ended")
    assert bench.controller.calls == 2 * SAFE
    assert bench.said == [("stopped", "info")]


def test_a_warning_is_said_even_when_nothing_was_scanning(bench):
    bench.guard.make_safe("exception", "it failed", "alarm")
    assert bench.said == [("exception", "alarm")]


def test_an_unblank_that_fails_leaves_the_beam_blanked(bench):
    bench.controller.fails = {"unblank": OSError("half way")}
    with pytest.raises(OSError, match="half way"):
        bench.guard.begin_scanning()
    assert bench.controller.calls == ["unblank", *SAFE]
    assert bench.guard.state == "parked"
    assert bench.said == [("unblank_failed", "alarm")]


# --- alarm ----------------------------------------------------------------------------------------------------------


def alarmed(bench):
    bench.scanning().controller.fails = {"blank": BlankNotConfirmedError("no echo")}
    bench.guard.make_safe("stopped", "stopped by me")
    bench.controller.calls.clear()
    return bench


def test_no_scan_begins_while_an_alarm_is_latched(bench):
    alarmed(bench)
    with pytest.raises(PermissionError, match=r"alarm: no echo\. Blank the beam by hand, then clear the alarm"):
        bench.guard.begin_scanning()
    assert bench.controller.calls == []


def test_an_alarm_outlives_a_later_blank_that_is_confirmed(bench):
    alarmed(bench).controller.fails = {}
    bench.guard.make_safe("blanked", "blanked by me")
    assert bench.guard.alarm == "no echo"
    assert bench.guard.state == "fault"
    with pytest.raises(PermissionError):
        bench.guard.begin_scanning()


def test_clearing_the_alarm_blanks_again_and_lets_a_scan_begin(bench):
    alarmed(bench).controller.fails = {}
    bench.guard.clear_alarm()
    assert bench.controller.calls == SAFE
    assert (bench.guard.alarm, bench.guard.state) == ("", "parked")
    bench.guard.begin_scanning()
    assert bench.guard.state == "scanning"


def test_an_alarm_comes_back_when_the_blank_still_fails(bench):
    alarmed(bench)
    bench.guard.clear_alarm()
    assert (bench.guard.alarm, bench.guard.state) == ("no echo", "fault")
    assert bench.said.count(("blank_not_confirmed", "alarm")) == 2


# --- ordered off ----------------------------------------------------------------------------------------------------


def test_a_start_asked_for_before_the_beam_was_ordered_off_is_refused(bench):
    seen = bench.guard.off_orders
    bench.guard.order_off("blanked", "blanked by me")
    bench.controller.calls.clear()
    with pytest.raises(PermissionError, match="ordered off after this start was asked for"):
        bench.guard.begin_scanning(off_orders_seen=seen)
    assert bench.controller.calls == []
    bench.guard.begin_scanning(off_orders_seen=bench.guard.off_orders)
    assert bench.guard.state == "scanning"


def test_the_end_of_the_scan_before_does_not_refuse_a_start(bench):
    seen = bench.scanning().guard.off_orders
    bench.guard.make_safe("scan_ended", "the scan ended")
    bench.guard.begin_scanning(off_orders_seen=seen)
    assert bench.guard.state == "scanning"


# --- lease ----------------------------------------------------------------------------------------------------------


def test_a_lease_that_runs_out_blanks_and_says_whose_it_was(bench):
    bench.scanning("lab 1")
    bench.now_s += 0.999
    bench.guard.check()
    assert bench.controller.calls == []
    bench.now_s += 0.002
    bench.guard.check()
    assert bench.controller.calls == SAFE
    assert bench.said == [("lease_lost", "warning")]
    assert bench.events[0].text == "nobody renewed the lease of lab 1 for 1 s"


def test_a_lost_lease_is_told_once(bench):
    bench.scanning()
    bench.now_s += 2
    for _ in range(3):
        bench.guard.check()
    assert bench.said == [("lease_lost", "warning")]


def test_a_renewed_lease_keeps_the_scan_alive(bench):
    bench.scanning("lab 1")
    for _ in range(20):
        bench.now_s += 0.5
        bench.guard.renew_lease("lab 1")
        bench.guard.check()
    assert bench.guard.state == "scanning"
    assert bench.events == []


def test_without_a_scan_nobody_needs_a_lease(bench):
    bench.now_s += 100
    bench.guard.check()
    assert bench.controller.calls == []


def test_nobody_else_renews_a_lease_that_is_alive(bench):
    bench.scanning("lab 1")
    with pytest.raises(PermissionError, match="the lease is held by lab 1"):
        bench.guard.renew_lease("lab 2")
    bench.now_s += 1.001
    bench.guard.check()
    assert bench.guard.state == "parked"


def test_a_lease_that_has_run_out_is_free_to_take(bench):
    bench.guard.renew_lease("lab 1")
    bench.now_s += 1.001
    assert not bench.guard.holds_lease("lab 1")
    bench.guard.renew_lease("lab 2")
    assert bench.guard.holds_lease("lab 2")


def test_a_start_by_somebody_else_leaves_a_live_lease_where_it_is(bench):
    bench.guard.renew_lease("supervisor")
    bench.guard.ensure_lease("display")
    assert bench.guard.lease_holder == "supervisor"


def test_starting_a_scan_renews_the_starters_own_lease(bench):
    bench.guard.renew_lease("me")
    bench.now_s += 0.9
    bench.scanning("me")
    bench.now_s += 0.9
    bench.guard.check()
    assert bench.guard.state == "scanning"


# --- dose -----------------------------------------------------------------------------------------------------------


def test_frames_are_admitted_up_to_the_budget_and_not_one_beyond():
    bench = Bench(budget=2.5 * FRAME_DOSE)
    assert [bench.guard.admit(PATH) for _ in range(4)] == [True, True, False, False]
    assert bench.guard.area_dose_e_per_a2 == pytest.approx(2 * FRAME_DOSE)
    assert bench.said == [("budget_spent", "warning")] * 2


def test_a_frame_that_just_meets_the_budget_is_admitted():
    bench = Bench(budget=FRAME_DOSE)
    assert bench.guard.admit(PATH)
    assert not bench.guard.admit(PATH)


def test_a_refusal_for_dose_says_how_much_of_what_and_what_to_do():
    bench = Bench(budget=1.0)
    with pytest.raises(PermissionError, match=r"area 0 is spent: 0 of 1 e-/Å², .* makes 78\.02\. Move to a new area"):
        bench.guard.require_budget(PATH)
    assert bench.guard.area_dose_e_per_a2 == 0


def test_without_a_budget_dose_is_summed_and_never_refused(bench):
    assert all(bench.guard.admit(PATH) for _ in range(100))
    assert bench.guard.area_dose_e_per_a2 == pytest.approx(100 * FRAME_DOSE)


def test_a_new_area_starts_from_zero():
    bench = Bench(budget=FRAME_DOSE)
    bench.guard.admit(PATH)
    assert bench.guard.new_area() == 1
    assert bench.guard.area_dose_e_per_a2 == 0
    assert bench.guard.admit(PATH)


# --- dead man -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [False, True])
def test_a_controller_without_a_dead_man_is_refused_unless_allowed(allowed, monkeypatch):
    limits = replace(NotingController.limits, dead_man=False)
    monkeypatch.setattr(NotingController, "limits", limits)
    if allowed:
        assert Bench(safety=SafetySettings(allow_no_dead_man=True)).guard.state == "parked"
    else:
        with pytest.raises(ValueError, match=r"has no dead man.*Set safety\.allow_no_dead_man: true"):
            Bench()


# --- what the deflector adds ----------------------------------------------------------------------------------------


def test_settling_and_flyback_are_paid_for(monkeypatch):
    limits = replace(NotingController.limits, deflector=Deflector())
    monkeypatch.setattr(NotingController, "limits", limits)
    bench = Bench()
    path = ScanPath(ScanGrid((64, 64)), [[0, 0], [0, 60]], 1.0, [False, True])
    assert bench.guard.admit(path)
    assert bench.guard.area_dose_e_per_a2 > 10 * frame_dose_e_per_a2(path, 25.0)


def test_a_frame_whose_settling_alone_breaks_the_budget_is_not_begun(monkeypatch):
    path = ScanPath(ScanGrid((64, 64)), [[0, 0], [0, 60]], 1.0, [False, True])
    monkeypatch.setattr(NotingController, "limits", replace(NotingController.limits, deflector=Deflector()))
    bench = Bench(budget=2 * frame_dose_e_per_a2(path, 25.0))
    assert not bench.guard.admit(path)
    assert bench.guard.area_dose_e_per_a2 == 0


# --- block deadline -------------------------------------------------------------------------------------------------

SLOW = ScanPath(ScanGrid((4, 4)), [[0, 0], [1, 1]], 1e6)
"""Blocks of a second."""


def block(bench, path=PATH, *, late_ms=0.0, taken_ms=0.0):
    """Return a block whose last sample was so long ago, and whose first that much earlier."""
    plan = block_plan(path, NotingController.limits)
    last_ns = round(bench.now_s * 1e9 - late_ms * 1e6)
    counts = np.ones((1, plan.stops[0]), np.uint16)
    return Samples("scan", path, 0, 0, counts, last_ns - round(taken_ms * 1e6), last_ns)


@pytest.fixture
def strict():
    return Bench(safety=SafetySettings(lease_s=60)).scanning()


def test_a_scan_without_a_block_for_50_ms_is_blanked_and_says_so(strict):
    strict.now_s += 0.0499
    strict.guard.check()
    assert strict.controller.calls == []
    strict.now_s += 0.0002
    strict.guard.check()
    assert strict.controller.calls == SAFE
    assert strict.guard.state == "parked"
    assert strict.said == [("block_deadline", "warning")]
    assert strict.events[0].text == "the controller delivered nothing for 50 ms"


def test_every_block_sets_a_new_deadline(strict):
    for _ in range(10):
        strict.now_s += 0.04
        strict.guard.block_came(block(strict))
        strict.guard.check()
    assert strict.guard.state == "scanning"
    strict.now_s += 0.0501
    strict.guard.check()
    assert strict.said == [("block_deadline", "warning")]


def test_long_blocks_have_three_times_their_own_time(strict):
    strict.guard.admit(SLOW)
    for wait_s in (2.9, 0.2):
        assert strict.guard.state == "scanning"
        strict.now_s += wait_s
        strict.guard.check()
    assert strict.said == [("block_deadline", "warning")]


def test_frames_that_are_admitted_do_not_replace_blocks(strict):
    for _ in range(6):
        strict.guard.admit(PATH)
        strict.now_s += 0.0101
        strict.guard.check()
    assert strict.said == [("block_deadline", "warning")]


def test_the_last_long_block_may_still_come_when_a_scan_of_short_ones_is_admitted(strict):
    strict.guard.admit(SLOW)
    strict.guard.block_came(block(strict, SLOW))
    strict.guard.admit(PATH)
    strict.now_s += 1.0
    strict.guard.check()
    assert strict.guard.state == "scanning"


def test_settling_within_a_block_is_part_of_its_time(monkeypatch):
    limits = replace(NotingController.limits, deflector=Deflector(settle_us=1000, precompensate=False))
    monkeypatch.setattr(NotingController, "limits", limits)
    path = ScanPath(ScanGrid((64, 64)), np.tile([[0, 0], [0, 60]], (128, 1)), 1.0, np.ones(256, bool))
    bench = Bench(safety=SafetySettings(lease_s=60, block_deadline_ms=5)).scanning()
    bench.guard.admit(path)
    bench.now_s += 0.027  # 256 samples of 1 us alone would have 5 ms
    bench.guard.check()
    assert bench.guard.state == "scanning"
    bench.now_s += 0.004  # a block with settling lasts at most 10 ms
    bench.guard.check()
    assert bench.guard.state == "parked"


def test_all_bounds_are_settings():
    bench = Bench(safety=SafetySettings(lease_s=60, block_deadline_ms=200, block_deadline_blocks=1)).scanning()
    bench.guard.admit(SLOW)
    bench.now_s += 0.9
    bench.guard.check()
    assert bench.guard.state == "scanning"
    bench.now_s += 0.2
    bench.guard.check()
    assert bench.guard.state == "parked"


def test_without_a_scan_no_block_is_missed(bench):
    bench.now_s += 1_000
    bench.guard.check()
    assert bench.events == []


# --- late -----------------------------------------------------------------------------------------------------------


def test_a_block_that_comes_more_than_5_ms_late_is_an_event_with_how_much(strict):
    strict.guard.block_came(block(strict, late_ms=4.9))
    assert strict.said == []
    strict.guard.block_came(block(strict, late_ms=12.34))
    assert strict.said == [("late", "info")]
    assert "late_ms=12.3" in strict.events[0].text
    assert (strict.guard.late, strict.guard.late_ms) == (1, pytest.approx(12.34))


def test_one_stall_is_told_once_and_the_next_one_again(strict):
    for late_ms in (12, 10, 8, 0, 20, 18):
        strict.guard.block_came(block(strict, late_ms=late_ms))
    assert strict.said == [("late", "info")] * 2
    assert strict.guard.late == 2


@pytest.mark.parametrize("dead_man", [True, False])
def test_a_beam_that_is_held_while_the_host_stalls_is_paid_for(dead_man, monkeypatch):
    monkeypatch.setattr(NotingController, "limits", replace(NotingController.limits, dead_man=dead_man))
    bench = Bench(safety=SafetySettings(lease_s=60, allow_no_dead_man=True)).scanning()
    rate = dose_rate_e_per_a2_s(PATH.grid, 25.0)
    bench.guard.admit(PATH)
    bench.now_s += 0.020  # of which the block itself takes 2 us
    bench.guard.block_came(block(bench))
    held_s = 0.020 - 2e-6
    assert bench.guard.area_dose_e_per_a2 - FRAME_DOSE == pytest.approx(0 if dead_man else rate * held_s)
    bench.now_s += 0.030  # a stall that ends in a blank
    bench.guard.make_safe("stopped", "stopped by me")
    held_s += 0.030
    assert bench.guard.area_dose_e_per_a2 - FRAME_DOSE == pytest.approx(0 if dead_man else rate * held_s)


# --- a driver that hangs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hanging", ["blank", "stop", "park"])
def test_a_step_that_never_returns_is_an_alarm_and_the_others_are_tried(hanging, monkeypatch):
    monkeypatch.setattr(beam_guard, "GRACE_S", 0.0)
    bench = Bench(safety=SafetySettings(blank_timeout_s=0.01, block_deadline_ms=60_000)).scanning()
    bench.controller.hangs = {hanging}
    bench.guard.make_safe("stopped", "stopped by me")
    assert bench.controller.calls == SAFE
    assert bench.guard.state == "fault"
    assert bench.guard.alarm == f"'{hanging}' did not return within 0.01 s"
    assert bench.said == [("stopped", "info"), ("blank_not_confirmed", "alarm")]
    bench.controller.let_go.set()


def test_an_unblank_that_never_returns_blanks_and_latches_an_alarm(monkeypatch):
    monkeypatch.setattr(beam_guard, "GRACE_S", 0.0)
    bench = Bench(safety=SafetySettings(blank_timeout_s=0.01))
    bench.controller.hangs = {"unblank"}
    with pytest.raises(BlankNotConfirmedError, match="'unblank' did not return"):
        bench.guard.begin_scanning()
    assert bench.controller.calls == ["unblank", *SAFE]
    assert bench.guard.state == "fault"
    bench.controller.let_go.set()


def test_deadlines_are_checked_in_a_thread_of_their_own():
    bench = Bench(safety=SafetySettings(lease_s=60, check_every_ms=1)).scanning()
    end, blanked = threading.Event(), threading.Event()
    bench.controller.on_call = lambda name: name == "park" and blanked.set()
    watching = threading.Thread(target=bench.guard.watch, args=(end,))
    watching.start()
    bench.now_s += 1
    assert blanked.wait(5)
    end.set()
    watching.join(5)
    assert not watching.is_alive()
    assert bench.said == [("block_deadline", "warning")]


def test_the_beam_is_blanked_before_anything_is_told(bench):
    told = []
    bench.guard._emit = lambda event: told.append((event.kind, list(bench.controller.calls)))
    bench.scanning().guard.make_safe("stopped", "stopped by me")
    assert told == [("stopped", SAFE)]


def test_an_event_is_stamped_with_when_it_was_noticed(bench):
    bench.scanning()
    bench.controller.on_call = lambda _name: setattr(bench, "now_s", bench.now_s + 1)
    bench.guard.make_safe("stopped", "stopped by me")
    assert bench.events[0].t_ns == 1_000_000_000_000


def test_blanked_comes_before_parked(bench):
    states = []
    bench.scanning().controller.on_call = lambda _name: states.append(bench.guard.state)
    bench.guard.make_safe("stopped", "stopped by me")
    assert [*states, bench.guard.state] == ["scanning", "blanked", "blanked", "parked"]


def test_the_thread_that_orders_the_beam_ends_with_its_guard():
    def beam_threads():
        return {thread for thread in threading.enumerate() if thread.name == "beam"}

    before = beam_threads()
    bench = Bench().scanning()
    (mine,) = beam_threads() - before
    bench.guard.make_safe("stopped", "stopped by me")
    del bench
    gc.collect()
    mine.join(5)
    assert not mine.is_alive()


# --- recording ------------------------------------------------------------------------------------------------------

LOST = ("record_stalled", "the recorder was silent", "warning")


def losing(*reasons, **settings):
    """Return a bench whose recording is lost for these reasons, one at each check."""
    bench, waiting = Bench(**settings), list(reasons)
    bench.guard._lost_recording = lambda: waiting.pop(0) if waiting else None
    return bench


def test_a_lost_recording_blanks_stops_and_parks_and_is_told():
    bench = losing(None, LOST).scanning()
    bench.guard.check()
    assert (bench.controller.calls, bench.said) == ([], [])
    bench.guard.check()
    assert bench.controller.calls == SAFE
    assert bench.guard.state == "parked"
    assert bench.said == [("record_stalled", "warning")]


def test_a_lost_recording_is_told_while_the_beam_is_off_too():
    bench = losing(LOST)
    bench.guard.check()
    assert bench.said == [("record_stalled", "warning")]
    assert bench.controller.calls == SAFE


def test_a_start_asked_for_while_all_was_recorded_is_not_done_once_that_is_lost():
    bench = losing(LOST)
    seen = bench.guard.off_orders
    bench.guard.check()
    with pytest.raises(PermissionError, match="ordered off"):
        bench.guard.begin_scanning(off_orders_seen=seen)
    assert "unblank" not in bench.controller.calls
    bench.guard.begin_scanning(off_orders_seen=bench.guard.off_orders)
    assert bench.guard.state == "scanning"


def test_a_lost_recording_comes_before_every_other_deadline():
    bench = losing(LOST).scanning()
    bench.now_s += 3_600
    bench.guard.check()
    assert bench.said == [("record_stalled", "warning")]
    assert bench.guard.state == "parked"
