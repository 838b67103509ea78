import dataclasses
import gc
import sys

import numpy as np
import pytest
from PIL import Image
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication

from lowdose.acquisition.display.keys import KEYS
from lowdose.acquisition.display.view_model import ViewModel
from lowdose.acquisition.display.window import Window
from lowdose.acquisition.status import Event


@pytest.fixture
def model():
    return ViewModel()


@pytest.fixture
def window(qtbot, model, fake_operator, tmp_path):
    window = Window(model, fake_operator, snapshot_folder=tmp_path)
    with qtbot.waitExposed(window):
        window.show()
    yield window
    window.close()
    window.deleteLater()
    QApplication.sendPostedEvents(None, 52)  # DeferredDelete
    QApplication.processEvents()
    assert [w for w in QApplication.topLevelWidgets() if isinstance(w, Window)] == []


@pytest.fixture
def feed(qtbot, window, model):
    """Show a frame and wait until it is painted."""

    def show(frame):
        before = model.frames
        model.accept_frame(frame, 0)
        window.wake()
        qtbot.waitUntil(lambda: model.frames == before + 1)

    return show


@pytest.fixture
def report(qtbot, window, model, make_report):
    def send(**values):
        model.accept_report(make_report(**values))
        window.refresh()

    return send


def grey_at(window, pane, x_share, y_share):
    """Grey value of the grabbed window at a place of a pane, given as shares of the picture."""
    image = (window.panes.measured, window.panes.completed)[pane]
    rect = image.mapRectToScene(image.boundingRect())
    point = rect.topLeft()
    shot = window.panes.grab().toImage()
    return (
        shot.pixelColor(int(point.x() + x_share * rect.width()), int(point.y() + y_share * rect.height())).toRgb().red()
    )


def test_a_frame_shows_in_both_panes(window, feed, make_frame):
    feed(make_frame(0, left=0, right=100))
    assert grey_at(window, 1, 0.25, 0.25) < 5
    assert grey_at(window, 1, 0.75, 0.25) > 250
    measured_row, blank_row = 0.5 + 0.5 / 64, 0.5 + 2.5 / 64
    assert grey_at(window, 0, 0.75, measured_row) > 250
    assert grey_at(window, 0, 0.75, blank_row) == 0
    assert grey_at(window, 0, 0.25, blank_row) == 0


def test_the_picture_is_upright(window, feed, make_frame):
    frame = make_frame(0)
    image = np.zeros((1, 64, 64), np.float32)
    image[:, :32] = 100
    object.__setattr__(frame, "image", image)
    feed(frame)
    assert grey_at(window, 1, 0.5, 0.25) > 250
    assert grey_at(window, 1, 0.5, 0.75) < 5


def test_only_new_frames_count_as_painted(qtbot, window, model, feed, make_frame):
    feed(make_frame(0))
    for _ in range(3):
        window.panes.viewport().repaint()
    window.act("contrast_once")
    window.act("uncertainty")
    window.panes.viewport().repaint()
    QApplication.processEvents()
    assert model.frames == 1


def test_a_frame_out_of_sight_does_not_hold_up_the_next(qtbot, window, model, feed, make_frame):
    feed(make_frame(0))
    window.panes.views[0].setRange(xRange=(1000, 1001), yRange=(1000, 1001))
    for index in (1, 2):
        model.accept_frame(make_frame(index), 0)
        qtbot.waitUntil(lambda index=index: model.frame.frame_index == index)


def test_freeze_holds_the_picture(qtbot, window, model, feed, make_frame):
    feed(make_frame(0))
    qtbot.keyClick(window, Qt.Key.Key_Space)
    model.accept_frame(make_frame(1), 0)
    window.refresh()
    assert model.frame.frame_index == 0
    assert "FROZEN" in window.titles[1].text
    qtbot.keyClick(window, Qt.Key.Key_Space)
    qtbot.waitUntil(lambda: model.frames == 2)


@pytest.mark.parametrize("key", [Qt.Key.Key_B, Qt.Key.Key_Escape])
@pytest.mark.parametrize("field", ["one_in", "dwell_us", "pattern", None])
def test_b_and_esc_blank_from_any_focus(qtbot, window, report, fake_operator, key, field):
    report()
    focused = window if field is None else getattr(window.controls, field)
    focused.setFocus()
    qtbot.waitUntil(lambda: field is None or focused.hasFocus())
    qtbot.keyClick(focused, key)
    assert fake_operator.asked == [("blank",)]


def test_esc_blanks_while_a_list_is_open(qtbot, window, report, fake_operator):
    report()
    window.controls.pattern.showPopup()
    qtbot.keyClick(window.controls.pattern.view(), Qt.Key.Key_Escape)
    assert fake_operator.asked == [("blank",)]


@pytest.mark.parametrize(("typed", "one_in"), [("1/7", 7), ("7", 7), ("1/16", 16), ("100", 100)])
def test_coverage_is_taken_as_it_is_typed(window, qtbot, report, typed, one_in):
    report()
    box = window.controls.one_in
    box.setFocus()
    box.selectAll()
    qtbot.keyClicks(box, typed)
    qtbot.keyClick(box, Qt.Key.Key_Return)
    assert box.value() == one_in
    assert box.text() == f"1/{one_in}"


def test_letters_typed_into_a_field_do_nothing_else(qtbot, window, report, fake_operator):
    report()
    window.controls.one_in.setFocus()
    qtbot.keyClick(window.controls.one_in, Qt.Key.Key_N)
    qtbot.keyClick(window.controls.one_in, Qt.Key.Key_Q)
    assert fake_operator.asked == []
    assert window.isVisible()


def test_every_key_has_an_action(window):
    assert {row.action for row in KEYS} == set(window._actions)


@pytest.mark.parametrize(("at_rest", "going_on"), [("blanked", "scanning"), ("paused", "replay")])
def test_g_and_its_button_start_and_stop_a_scan_and_a_replay(at_rest, going_on, qtbot, window, report, fake_operator):
    report(state=at_rest)
    assert window.controls.go.text() == "Start"
    qtbot.keyClick(window, Qt.Key.Key_G)
    report(state=going_on)
    assert window.controls.go.text() == "Stop"
    qtbot.keyClick(window, Qt.Key.Key_G)
    assert fake_operator.asked == [("start",), ("stop",)]


@pytest.mark.parametrize(
    ("values", "shown", "asked"),
    [
        ({"recorder": ""}, "Record", "begin_recording"),
        ({"recorder": "", "record_wanted": True}, "Asked for", "end_recording"),
        ({"recorder": "recorder of a.mcap"}, "Recording", "end_recording"),
    ],
    ids=["off", "asked for", "on"],
)
def test_c_and_the_button_begin_and_end_a_recording(qtbot, window, report, fake_operator, values, shown, asked):
    report(**values)
    assert window.controls.record.text() == shown
    qtbot.keyClick(window, Qt.Key.Key_C)
    qtbot.mouseClick(window.controls.record, Qt.MouseButton.LeftButton)
    assert fake_operator.asked == [(asked,), (asked,)]


def test_m_marks_the_moment(qtbot, window, report, fake_operator):
    report()
    qtbot.keyClick(window, Qt.Key.Key_M)
    assert fake_operator.asked == [("mark",)]


def test_q_closes(qtbot, window):
    qtbot.keyClick(window, Qt.Key.Key_Q)
    assert not window.isVisible()


def test_choosing_a_pattern_configures_once(qtbot, window, report, fake_operator):
    report()
    combo = window.controls.pattern
    combo.setFocus()
    qtbot.keyClick(combo, Qt.Key.Key_Up)  # spiral -> lattice
    report()  # an older report on its way changes nothing
    assert fake_operator.asked == [("configure", {"name": "lattice", "coverage": 0.05}, None)]
    assert combo.currentText() == "lattice"


def test_reports_configure_nothing(qtbot, window, report, fake_operator):
    for values in ({}, {"pattern": "raster", "coverage_nominal": 1.0}, {"dwell_time_us": 5.0, "coverage_nominal": 0.1}):
        report(**values)
        assert not window.controls._pattern_timer.isActive()
        assert not window.controls._dwell_timer.isActive()
    assert fake_operator.asked == []
    assert window.controls.dwell_us.value() == 5.0
    assert window.controls.one_in.value() == 10


def test_coverage_keeps_the_other_parameters(qtbot, window, report, fake_operator):
    report()
    window.controls.one_in.setFocus()
    window.controls.one_in.setValue(40)
    qtbot.waitUntil(lambda: bool(fake_operator.asked))
    pattern = {"name": "spiral", "coverage": 1 / 40, "overscan": "keep"}
    assert fake_operator.asked == [("configure", pattern, None)]


def test_dwell_time_is_applied(qtbot, window, report, fake_operator):
    report()
    window.controls.dwell_us.setValue(2.5)
    qtbot.waitUntil(lambda: bool(fake_operator.asked))
    assert fake_operator.asked == [("configure", None, 2.5)]


def test_raster_takes_no_coverage(window, report):
    report(pattern="raster", pattern_parameters={}, coverage=1.0, coverage_nominal=1.0)
    assert not window.controls.one_in.isEnabled()
    assert window.controls.chosen_pattern == {"name": "raster"}


def test_a_watching_display_cannot_configure_but_blank(qtbot, window, report, fake_operator):
    fake_operator.read_only = "control is held by lab 2"
    report()
    assert not window.controls.pattern.isEnabled()
    assert "watching only" in window.controls.warning.text()
    qtbot.mouseClick(window.controls.blank, Qt.MouseButton.LeftButton)
    assert fake_operator.asked == [("blank",)]


def test_the_badge_never_shows_an_old_state(window, model, report, monkeypatch):
    report(state="blanked")
    assert window.controls.badge.text() == "BLANKED"
    monkeypatch.setattr(model.reports, "age_s", lambda _: 5.0)
    window.refresh()
    assert window.controls.badge.text() == "NO STATUS"


def test_a_controller_without_dead_man_is_a_permanent_warning(window, report):
    report(dead_man=False)
    assert "no dead man" in window.controls.warning.text()


def test_an_alarm_stays_until_cleared(qtbot, window, model, report, fake_operator):
    report()
    model.accept_event(Event("microscope", "lease_lost", "lease lost: beam blanked", "alarm", 0))
    window.wake()
    qtbot.waitUntil(lambda: window.alarm.isVisible())
    report()
    assert window.alarm.text == "lease lost: beam blanked"
    qtbot.mouseClick(window.alarm.button, Qt.MouseButton.LeftButton)
    assert not window.alarm.isVisible()
    assert fake_operator.asked == [("clear_alarm",)]


def test_missing_frames_are_told(window, model, feed, make_frame, monkeypatch):
    feed(make_frame(0))
    monkeypatch.setattr(model, "seconds_without_frame", lambda: 3.2)
    window.refresh()
    assert window.titles[0].text == "measured no frames for 3 s"


def test_dragging_the_histogram_makes_levels_manual(window, model, feed, make_frame):
    feed(make_frame(0, left=0, right=100))
    window.histogram.drag(0, 200)
    assert model.levels.mode == "manual"
    assert window.controls.contrast.currentText() == "manual"
    window.panes.viewport().repaint()
    assert grey_at(window, 1, 0.75, 0.25) == pytest.approx(128, abs=2)


def test_refreshing_the_histogram_leaves_the_mode(window, model, feed, make_frame):
    feed(make_frame(0))
    window.refresh()
    assert model.levels.mode == "always"


def test_the_title_names_the_uncertainty(qtbot, window, feed, make_frame):
    feed(make_frame(0))
    qtbot.keyClick(window, Qt.Key.Key_U)
    assert window.titles[1].text == "uncertainty of the completed picture (placeholder)"
    qtbot.keyClick(window, Qt.Key.Key_U)
    assert window.titles[1].text == "completed (inferred between the measured points)"


def test_the_read_outs_say_what_was_measured(window, feed, report, make_frame):
    feed(make_frame(0, dropped=2))
    report()
    assert window.readouts.text_of("Coverage") == "1/20 nominal, 4.5 % true"
    assert window.readouts.text_of("Dose per frame") == "28.3 e⁻/Å²"
    assert window.readouts.text_of("Dropped") == "2"
    assert window.readouts.text_of("Engine") == "nearest"


def test_the_scale_bar_has_a_round_length(window, feed, make_frame):
    feed(make_frame(0))  # 6.4 nm wide
    assert window.panes.scale_bar.text == "1 nm"


def test_a_snapshot_is_saved_or_the_reason_told(qtbot, window, feed, make_frame, tmp_path):
    qtbot.keyClick(window, Qt.Key.Key_S)
    assert window.readouts.message.text() == "no snapshot: no frame was shown yet"
    feed(make_frame(4))
    qtbot.keyClick(window, Qt.Key.Key_S)
    assert (tmp_path / "lowdose-snapshot-scan-a-4" / "picture.png").exists()


def test_the_snapshot_holds_the_picture_while_the_uncertainty_is_shown(qtbot, window, feed, make_frame, tmp_path):
    feed(make_frame(4, left=0, right=100))
    qtbot.keyClick(window, Qt.Key.Key_U)
    qtbot.keyClick(window, Qt.Key.Key_S)
    saved = np.asarray(Image.open(tmp_path / "lowdose-snapshot-scan-a-4" / "picture.png"))
    assert saved[0, 0] == 0
    assert saved[0, -1] == 255


def test_nonsense_in_a_report_is_no_fault(window, report):
    report(coverage="x", coverage_nominal=float("nan"), patterns=5, pattern_parameters=3, dose_e_per_a2=[], area_id="")
    assert window.readouts.text_of("Coverage") == "–"


def test_channels_can_be_chosen_when_there_are_several(qtbot, window, model, feed, make_frame):
    frame = make_frame(0, left=0, right=100)
    both = dataclasses.replace(
        frame,
        image=np.concatenate([frame.image, frame.image[..., ::-1]]),
        uncertainty=np.concatenate([frame.uncertainty] * 2),
        measured=np.concatenate([frame.measured] * 2),
        channels=("HAADF", "BF"),
    )
    feed(both)
    assert window.controls.channel.isVisible()
    window.controls.channel.setFocus()
    qtbot.keyClick(window.controls.channel, Qt.Key.Key_Down)
    assert model.channel == 1
    assert grey_at(window, 1, 0.25, 0.25) > 250


def test_help_lists_every_key(qtbot, window):
    qtbot.keyClick(window, Qt.Key.Key_F1)
    assert window.help.isVisible()
    qtbot.keyClick(window, Qt.Key.Key_Question)
    assert not window.help.isVisible()


def test_two_thousand_repaints_lose_no_reference_to_none(window, model, make_frame):
    def repaint(indices):
        for index in indices:
            model.accept_frame(make_frame(index), 0)
            window._show_next()
            window.panes.viewport().repaint()
            if index % 50 == 0:
                window.refresh()
                window.histogram.viewport().repaint()
                QApplication.processEvents()

    repaint(range(100))
    gc.collect()
    before = sys.getrefcount(None)
    repaint(range(100, 2100))
    gc.collect()
    assert sys.getrefcount(None) > before - 100
    assert model.frames > 2000
