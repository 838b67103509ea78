"""Window: the operator's window over a view model (imports Qt)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import Qt, QTimer, Signal
from PySide6.QtWidgets import QApplication, QGridLayout, QHBoxLayout, QVBoxLayout, QWidget

from lowdose.acquisition.display.controls import ControlBar
from lowdose.acquisition.display.histogram import Histogram
from lowdose.acquisition.display.key_filter import KeyFilter
from lowdose.acquisition.display.notices import AlarmBanner, HelpPanel, PaneTitle
from lowdose.acquisition.display.panes import GAP_PX, Panes
from lowdose.acquisition.display.readouts import Readouts
from lowdose.acquisition.display.reports import GOING_ON, MICROSCOPE
from lowdose.acquisition.display.snapshot import write_snapshot
from lowdose.acquisition.display.theme import ACCENT, AMBER, QUIET, STYLE, dark_palette

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from PySide6.QtGui import QCloseEvent, QResizeEvent

    from lowdose.acquisition.display.operator import Commands
    from lowdose.acquisition.display.view_model import Picture, ViewModel

SIZE_PX = (1366, 768)
READOUT_MS = 200
STALE_S = 1.0
REPORT_STALE_S = 2.0
UNPAINTED_NS = 50_000_000
"""A picture not drawn after this long (window covered, image panned away) gives way to the next."""
TITLES = ("measured", "completed (inferred between the measured points)")


class Window(QWidget):
    """Measured and completed picture, the controls and the figures.

    Parameters
    ----------
    model : ViewModel
        Fed by a receiver; `wake` tells the window that something came in.
    operator : Commands
        Carries out what the operator asks for.
    snapshot_folder : Path
        Where snapshots go.
    """

    arrived = Signal()
    said = Signal(str)
    closed = Signal()

    def __init__(
        self,
        model: ViewModel,
        operator: Commands,
        *,
        snapshot_folder: Path,
    ) -> None:
        super().__init__()
        self._model, self._operator = model, operator
        self._snapshot_folder = snapshot_folder
        self._picture: Picture | None = None
        self._set_ns = 0
        self._wake_pending = False
        self._state_seen: tuple[Any, ...] = ()
        self.panes, self.histogram = Panes(), Histogram()
        self.controls, self.readouts = ControlBar(), Readouts()
        self.alarm, self.help = AlarmBanner(), HelpPanel(self)
        self.titles = tuple(PaneTitle(title) for title in TITLES)
        self._lay_out()
        self._connect()
        self._timer = QTimer(self)
        self._timer.setInterval(READOUT_MS)
        self._timer.timeout.connect(self.refresh)
        self._timer.start()
        self.refresh()

    def wake(self) -> None:
        """Tell the window that something came in; from any thread, never waits, at most one signal on its way."""
        if not self._wake_pending:
            self._wake_pending = True
            self.arrived.emit()

    def act(self, action: str) -> None:
        """Do what a key of the table does."""
        self._actions[action]()

    def refresh(self) -> None:
        """Refresh the read-outs and the histogram; five times a second."""
        self._show_next()
        self._show_state()
        self.readouts.refresh(self._model)
        self._show_titles()
        if self._picture is not None:
            image = self._picture.frame.image[self._picture.frame.channels.index(self._picture.channel)]
            self.histogram.show_counts(image, self._picture.low, self._picture.high)

    def _lay_out(self) -> None:
        self.setWindowTitle("lowdose")
        QApplication.setPalette(dark_palette())
        self.setStyleSheet(STYLE)
        self.resize(*SIZE_PX)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.setSpacing(0)
        outer.addWidget(self.controls)
        outer.addWidget(self.alarm)
        outer.addLayout(self._middle(), 1)
        outer.addWidget(self.readouts)
        self.help.raise_()

    def _middle(self) -> QGridLayout:
        titles = QHBoxLayout()
        titles.setSpacing(GAP_PX)
        for title in self.titles:
            titles.addWidget(title, 1)
        middle = QGridLayout()
        middle.setContentsMargins(8, 5, 4, 6)
        middle.setSpacing(4)
        middle.addLayout(titles, 0, 0)
        middle.addWidget(PaneTitle("counts"), 0, 1)
        middle.addWidget(self.panes, 1, 0)
        middle.addWidget(self.histogram, 1, 1)
        middle.setColumnStretch(0, 1)
        return middle

    def _connect(self) -> None:
        self._actions: dict[str, Callable[[], None]] = {
            "blank": self._operator.blank,
            "go": self._go,
            "freeze": self._freeze,
            "snapshot": self._snapshot,
            "new_area": self._operator.new_area,
            "record": self._record,
            "mark": self._operator.mark,
            "contrast_once": lambda: self._choose_contrast("once"),
            "contrast_mode": lambda: self._choose_contrast(None),
            "uncertainty": self._toggle_uncertainty,
            "reset_view": self.panes.reset_view,
            "help": self.help.toggle,
            "quit": self._quit,
        }
        self.arrived.connect(self._came, Qt.ConnectionType.QueuedConnection)
        self.said.connect(self.readouts.say, Qt.ConnectionType.QueuedConnection)
        self.panes.painted.connect(self._painted)
        self.histogram.levels_dragged.connect(self._set_levels)
        self.histogram.colours_chosen.connect(self.panes.set_colours)
        self.alarm.cleared.connect(self._clear_alarm)
        controls = self.controls
        controls.pattern_chosen.connect(lambda pattern: self._operator.configure(pattern=pattern))
        controls.dwell_chosen.connect(lambda dwell: self._operator.configure(dwell_time_us=dwell))
        controls.contrast_chosen.connect(self._choose_contrast)
        controls.channel_chosen.connect(self._choose_channel)
        controls.go_clicked.connect(self._go)
        controls.blank_clicked.connect(self._operator.blank)
        controls.area_clicked.connect(self._operator.new_area)
        controls.snapshot_clicked.connect(self._snapshot)
        controls.record_clicked.connect(self._record)
        self._filter = KeyFilter(self, self._actions)
        QApplication.instance().installEventFilter(self._filter)  # type: ignore[union-attr]

    def _came(self) -> None:
        self._wake_pending = False  # before taking: what comes in from now on wakes anew
        self._show_next()
        if self._model.reports.seen != self._state_seen:
            self._show_state()

    def _show_next(self) -> None:
        if self.panes.awaits_paint and time.monotonic_ns() - self._set_ns < UNPAINTED_NS:
            return  # its turn comes when the picture before it is drawn
        picture = None if self._model.finished else self._model.take()
        if picture is not None:
            self._set_ns = time.monotonic_ns()
            self._picture = picture
            self.panes.show_picture(picture, new=True)
            self.controls.show_channels(picture.frame.channels)

    def _painted(self, t_ns: int) -> None:
        self._model.painted(t_ns)
        self.wake()

    def _redraw(self) -> None:
        picture = self._model.redrawn()
        if picture is not None:
            self._picture = picture
            self.panes.show_picture(picture, new=False)

    def _show_state(self) -> None:
        model, age_s = self._model, self._model.reports.age_s(MICROSCOPE)
        fresh = age_s is not None and age_s < REPORT_STALE_S
        self.controls.show_status(model.microscope, fresh=fresh, read_only=self._operator.read_only)
        self.controls.show_contrast(model.levels.mode)
        self.alarm.show_text(model.reports.alarm)
        for event in model.reports.take_events():
            self.readouts.say(event.text)
        self._state_seen = model.reports.seen

    def _show_titles(self) -> None:
        measured, completed = self.titles
        completed.show_badge("FROZEN" if self._model.frozen else "", ACCENT)
        measured.show_note(*self._frame_note())
        if self._picture is None or not self._picture.shows_uncertainty:
            completed.show_title(TITLES[1])
        else:
            completed.show_title(f"uncertainty of the completed picture ({self._picture.frame.uncertainty_kind})")

    def _frame_note(self) -> tuple[str, str]:
        """Return what to say about the frame shown, and in which colour."""
        age_s = self._model.seconds_without_frame()
        if age_s is None or self._picture is None:
            return "waiting for frames", QUIET
        if age_s > STALE_S:
            return f"no frames for {age_s:.0f} s", AMBER
        frame = self._picture.frame
        progress = "" if frame.complete else "  (still being scanned)"
        return f"{self._picture.channel}   frame {frame.frame_index}{progress}", QUIET

    def _go(self) -> None:
        if self._model.microscope.get("state") in GOING_ON:
            self._operator.stop()
        else:
            self._operator.start()

    def _record(self) -> None:
        microscope = self._model.microscope
        if microscope.get("recorder") or microscope.get("record_wanted"):
            self._operator.end_recording()
        else:
            self._operator.begin_recording()

    def _freeze(self) -> None:
        self._model.frozen = not self._model.frozen
        self._show_titles()
        self._show_next()

    def _toggle_uncertainty(self) -> None:
        self._model.shows_uncertainty = not self._model.shows_uncertainty
        self._redraw()
        self._show_titles()

    def _choose_channel(self, index: int) -> None:
        self._model.channel = index
        self._redraw()

    def _choose_contrast(self, mode: Any) -> None:
        if mode is None:
            mode = self._model.levels.cycle()
        else:
            self._model.levels.choose(mode)
        self.controls.show_contrast(mode)
        self._redraw()
        if self._picture is not None:
            self.histogram.show_levels(self._picture.low, self._picture.high)

    def _set_levels(self, low: float, high: float) -> None:
        self._model.levels.set_manual(low, high)
        self.controls.show_contrast("manual")
        self._redraw()

    def _snapshot(self) -> None:
        if self._picture is None:
            self.readouts.say("no snapshot: no frame was shown yet")
            return
        self.readouts.say(write_snapshot(self._snapshot_folder, self._picture, self._model.summary()))

    def _clear_alarm(self) -> None:
        self._model.reports.clear_alarm()
        self._operator.clear_alarm()
        self._show_state()

    def _quit(self) -> None:
        self.close()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802 Qt's name
        """Keep the help panel in the middle."""
        super().resizeEvent(event)
        self.help.centre()

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802 Qt's name
        """Let go of timers and keys."""
        self._timer.stop()
        QApplication.instance().removeEventFilter(self._filter)  # type: ignore[union-attr]
        super().closeEvent(event)
        self.closed.emit()
