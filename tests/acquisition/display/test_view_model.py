import dataclasses
import subprocess
import sys

import pytest

from lowdose.acquisition.display.view_model import ViewModel
from lowdose.acquisition.status import Event


def show(model, frame, t_ns=1_010_000_000):
    model.accept_frame(frame, t_ns)
    picture = model.take()
    model.painted(t_ns)
    return picture


def test_it_needs_no_qt():
    code = "import sys, lowdose.acquisition.display.headless; assert not any('PySide' in n for n in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "late",
    [
        {"index": 4},
        {"index": 5, "complete": False, "samples": 40},
        {"index": 5},
        {"index": 9, "scan_id": "scan-before"},
    ],
    ids=["lower index", "fewer samples", "the same again", "superseded scan"],
)
def test_older_frames_are_refused(make_frame, late):
    model = ViewModel()
    model.accept_frame(make_frame(0, scan_id="scan-before"), 0)
    model.accept_frame(make_frame(5), 0)
    assert not model.accept_frame(make_frame(**late), 0)
    assert model.take().frame.frame_index == 5


def test_a_frame_without_channels_is_refused(make_frame):
    frame = make_frame(0)
    empty = {name: getattr(frame, name)[:0] for name in ("image", "uncertainty", "measured")}
    assert not ViewModel().accept_frame(dataclasses.replace(frame, channels=(), **empty), 0)


def test_a_partial_frame_grows(make_frame):
    model = ViewModel()
    assert model.accept_frame(make_frame(0, complete=False, samples=10), 0)
    assert model.accept_frame(make_frame(0, complete=False, samples=20), 0)
    assert model.accept_frame(make_frame(0, complete=True, samples=20), 0)


def test_a_new_scan_takes_over(make_frame):
    model = ViewModel()
    show(model, make_frame(50))
    assert show(model, make_frame(0, scan_id="scan-b")).frame.scan_id == "scan-b"


def test_frames_counts_what_was_painted_once(make_frame):
    model = ViewModel()
    model.accept_frame(make_frame(0), 0)
    assert model.frames == 0
    model.take()
    assert model.painted(1)
    assert not model.painted(2)
    assert model.frames == 1


def test_a_skipped_frame_counts_once_whether_overwritten_or_never_seen(make_frame):
    model = ViewModel()
    show(model, make_frame(10))
    model.accept_frame(make_frame(11), 0)  # overwritten by the next
    model.accept_frame(make_frame(15), 0)  # 12 to 14 never came
    assert model.skipped == 4
    model.take()
    assert model.skipped == 4
    model.painted(1)
    assert model.skipped == 4


def test_frames_before_the_first_one_seen_are_not_skipped(make_frame):
    model = ViewModel()
    show(model, make_frame(100))
    show(model, make_frame(3, scan_id="scan-b"))
    assert model.skipped == 0


def test_partial_frames_are_never_skipped(make_frame):
    model = ViewModel()
    for samples in (10, 20, 30):
        model.accept_frame(make_frame(0, complete=False, samples=samples), 0)
    assert model.skipped == 0


def test_a_complete_frame_overwritten_by_a_partial_one_is_skipped(make_frame):
    model = ViewModel()
    model.accept_frame(make_frame(0), 0)
    model.accept_frame(make_frame(1, complete=False, samples=10), 0)
    assert model.skipped == 1


def test_frozen_holds_the_picture_and_counts_on(make_frame):
    model = ViewModel()
    show(model, make_frame(0))
    model.frozen = True
    for index in (1, 2, 3):
        model.accept_frame(make_frame(index), 0)
    assert model.take() is None
    assert model.frame.frame_index == 0
    assert model.skipped == 2
    model.frozen = False
    assert model.take().frame.frame_index == 3


def test_latency_counts_from_the_last_sample(make_frame):
    model = ViewModel()
    for index, t_ns in enumerate((1_010_000_000, 1_020_000_000, 1_030_000_000)):
        show(model, make_frame(index), t_ns)
    assert model.latency_ms() == {"p50": 20.0, "p90": 28.0, "p99": 29.8, "max": 30.0}


def test_latency_memory_is_bounded(make_frame):
    model = ViewModel(headless=True, clock=lambda: 1_001_000_000)
    frame = make_frame(0)
    for _ in range(10_100):
        model._counters.count_shown(frame, 1_001_000_000)
    assert len(model._counters._latencies_ms) == 10_000


def test_headless_counts_a_frame_when_it_comes(make_frame):
    seen = []
    model = ViewModel(headless=True, limit=2, clock=lambda: 5, on_shown=lambda *a: seen.append(a))
    frames = [make_frame(index) for index in range(3)]
    assert [model.accept_frame(frame, 4) for frame in frames] == [True, True, False]
    assert model.finished
    assert seen == [(frames[0], 4, 5), (frames[1], 4, 5)]


def test_the_larger_of_what_frame_and_report_say_was_lost_counts(make_frame, make_report):
    model = ViewModel()
    show(model, make_frame(0, dropped=3, gaps=1))
    model.accept_report(make_report(source="reconstruction", dropped=5, gaps=0))
    assert (model.dropped, model.gaps) == (5, 1)


def test_summary_has_the_stable_names(make_frame, make_report):
    model = ViewModel()
    model.accept_report(make_report())
    show(model, make_frame(0))
    summary = model.summary()
    names = "frames acquired skipped dropped gaps pattern coverage coverage_nominal dwell_time_us dose_e_per_a2"
    names += " dose_visited_e_per_a2 engine frames_by_engine engine_failures fps latency_ms state alarm late"
    names += " blocks_lost blocks_refused"
    assert list(summary) == names.split()
    assert (summary["acquired"], summary["pattern"], summary["engine"]) == (7, "spiral", "nearest")
    assert list(summary["latency_ms"]) == ["p50", "p90", "p99", "max"]


def test_summary_before_anything_came():
    summary = ViewModel().summary()
    assert summary["frames"] == summary["acquired"] == 0
    assert summary["pattern"] is None


def test_rates_come_from_the_microscopes_clock(make_report):
    model = ViewModel()
    for tick in range(5):
        model.accept_report(make_report(t_ns=tick * 200_000_000, acquired=tick * 10))
    assert model.rates_per_s()[1] == pytest.approx(50)


def test_an_alarm_event_stays_until_cleared(make_report):
    model = ViewModel()
    model.accept_event(Event("microscope", "lease_lost", "lease lost: beam blanked", "alarm", 0))
    model.accept_report(make_report(alarm=""))
    assert model.reports.alarm == "lease lost: beam blanked"
    model.reports.clear_alarm()
    assert model.reports.alarm == ""


def test_a_reported_alarm_stays_while_it_is_reported(make_report):
    model = ViewModel()
    model.accept_report(make_report(alarm="blank not confirmed"))
    model.reports.clear_alarm()
    assert model.reports.alarm == "blank not confirmed"
    model.accept_report(make_report(alarm=""))
    assert model.reports.alarm == ""


def test_uncertainty_takes_the_place_of_the_completed_picture(make_frame):
    model = ViewModel()
    model.shows_uncertainty = True
    picture = show(model, make_frame(0))
    assert picture.shows_uncertainty
    assert (picture.completed > 0).all()


def test_redrawn_uses_the_levels_of_now(make_frame):
    model = ViewModel()
    show(model, make_frame(0, left=0, right=100))
    model.levels.set_manual(0, 200)
    assert model.redrawn().completed[0, -1] == 128


@pytest.mark.parametrize("sign", ["frame", "report"])
def test_a_scan_is_over_when_nothing_comes_for_two_seconds_and_the_beam_is_parked(sign, make_frame, make_report):
    now_ns = [1]
    model = ViewModel(clock=lambda: now_ns[0])
    model.accept_report(make_report(state="parked"))
    now_ns[0] = 10**10
    assert not model.scan_is_over()  # it has not begun
    if sign == "frame":
        model.accept_frame(make_frame(0), now_ns[0])
    else:
        model.accept_report(make_report(state="scanning"))
        model.accept_report(make_report(state="parked"))
    assert not model.scan_is_over()
    now_ns[0] += 2_000_000_001
    assert model.scan_is_over()
    model.accept_report(make_report(state="scanning"))
    assert not model.scan_is_over()
