"""ControlBar: beam badge, pattern, coverage, dwell time, contrast and the buttons (imports Qt)."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

from PySide6.QtCore import QSignalBlocker, Qt, QTimer, Signal
from PySide6.QtGui import QValidator
from PySide6.QtWidgets import QComboBox, QDoubleSpinBox, QFrame, QHBoxLayout, QLabel, QPushButton, QSpinBox, QWidget

from lowdose.acquisition.display.keys import KEYS
from lowdose.acquisition.display.levels import CONTRAST_MODES
from lowdose.acquisition.display.reports import GOING_ON
from lowdose.acquisition.display.theme import AMBER, BEAM_COLOURS, RECORDING_STYLE, UNKNOWN_COLOUR, badge_style
from lowdose.scan_patterns.pattern import PATTERNS, load_pattern_class

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PySide6.QtGui import QWheelEvent

DEBOUNCE_MS = 300
HOLD_S = 1.5
"""Reports on their way are older than a choice just made: they leave the fields alone for as long."""
MAX_ONE_IN = 400


class ControlBar(QFrame):
    """What the operator can choose. Only choices made by hand are signalled, never values shown."""

    pattern_chosen = Signal(dict)
    """Pattern as a mapping: name and parameters."""
    dwell_chosen = Signal(float)
    """Dwell time [µs]."""
    contrast_chosen = Signal(str)
    channel_chosen = Signal(int)
    """Index of the detector channel to show."""
    go_clicked = Signal()
    blank_clicked = Signal()
    area_clicked = Signal()
    snapshot_clicked = Signal()
    record_clicked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("bar")
        self.badge = QLabel("NO STATUS")
        self.badge.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.badge.setFixedWidth(112)
        self.warning = QLabel()
        self.warning.setStyleSheet(f"color: {AMBER}; font-weight: 600;")
        self.pattern, self.contrast, self.channel = _ComboBox(), _ComboBox(), _ComboBox()
        self.one_in, self.dwell_us = _one_in_box(), _dwell_box()
        self.go = _button("Start", "go", self.go_clicked)
        self.new_area = _button("New area", "new_area", self.area_clicked)
        self.snapshot = _button("Snapshot", "snapshot", self.snapshot_clicked)
        self.record = _button("Record", "record", self.record_clicked)
        self.record.setFixedWidth(94)
        self.blank = _button("BLANK", "blank", self.blank_clicked)
        self.blank.setObjectName("blank")
        self._parameters: dict[str, Any] = {}
        self._channels: tuple[str, ...] = ()
        self._held_until_s = 0.0
        self._pattern_timer = _single_shot(self, self._emit_pattern)
        self._dwell_timer = _single_shot(self, self._emit_dwell)
        self._lay_out()
        self._connect()
        self._show_beam("no status", UNKNOWN_COLOUR)

    def show_status(self, values: Mapping[str, Any], *, fresh: bool, read_only: str) -> None:
        """Show the microscope's state; nothing is signalled."""
        state = str(values.get("state", "")) if fresh else ""
        self._show_beam(state or "no status", BEAM_COLOURS.get(state, UNKNOWN_COLOUR))
        self._show_warning(no_dead_man=values.get("dead_man") is False, read_only=read_only)
        text = "Stop" if state in GOING_ON else "Start"
        if self.go.text() != text:
            self.go.setText(text)
        for widget in (self.pattern, self.dwell_us, self.go, self.new_area, self.record):
            widget.setEnabled(not read_only)
        self._show_recording(values)
        if time.monotonic() >= self._held_until_s:
            self._show_pattern(values)
            self._show_dwell(values.get("dwell_time_us"))
        self.one_in.setEnabled(not read_only and takes_coverage(self.pattern.currentText()))

    def show_contrast(self, mode: str) -> None:
        """Show the contrast mode in force."""
        if self.contrast.currentText() != mode:
            self.contrast.setCurrentText(mode)

    def show_channels(self, names: tuple[str, ...]) -> None:
        """Offer the channels of a frame; hidden while there is one."""
        if names != self._channels:
            self._channels = names
            self.channel.clear()
            self.channel.addItems(names)
            self.channel.setVisible(len(names) > 1)

    @property
    def chosen_pattern(self) -> dict[str, Any]:
        """The pattern as the fields say, other parameters of the same pattern kept."""
        name = self.pattern.currentText()
        kept = self._parameters if self._parameters.get("name") == name else {}
        coverage = {"coverage": 1 / self.one_in.value()} if takes_coverage(name) else {}
        return {**kept, "name": name, **coverage}

    def _lay_out(self) -> None:
        layout = QHBoxLayout(self)
        layout.setContentsMargins(10, 7, 10, 7)
        layout.setSpacing(7)
        layout.addWidget(self.badge)
        layout.addWidget(self.warning)
        for caption, widget in (
            ("Pattern", self.pattern),
            ("Coverage", self.one_in),
            ("Dwell", self.dwell_us),
            ("Contrast", self.contrast),
        ):
            layout.addSpacing(8)
            label = QLabel(caption)
            label.setObjectName("caption")
            layout.addWidget(label)
            layout.addWidget(widget)
        layout.addWidget(self.channel)
        self.channel.hide()
        layout.addStretch(1)
        for button in (self.go, self.new_area, self.record, self.snapshot):
            layout.addWidget(button)
        layout.addSpacing(12)
        layout.addWidget(self.blank)

    def _connect(self) -> None:
        self.pattern.setMinimumWidth(104)
        self.contrast.addItems(CONTRAST_MODES)
        self.pattern.activated.connect(self._pattern_touched)
        self.contrast.textActivated.connect(self.contrast_chosen)
        self.channel.activated.connect(self.channel_chosen)
        self.one_in.valueChanged.connect(self._coverage_touched)
        self.dwell_us.valueChanged.connect(self._dwell_touched)

    def _pattern_touched(self, *_: object) -> None:
        self._hold()
        self.one_in.setEnabled(takes_coverage(self.pattern.currentText()))
        self._pattern_timer.stop()
        self._emit_pattern()

    def _coverage_touched(self, *_: object) -> None:
        self._hold()
        self._pattern_timer.start()

    def _dwell_touched(self, *_: object) -> None:
        self._hold()
        self._dwell_timer.start()

    def _hold(self) -> None:
        self._held_until_s = time.monotonic() + HOLD_S

    def _emit_pattern(self) -> None:
        self._hold()
        self.pattern_chosen.emit(self.chosen_pattern)

    def _emit_dwell(self) -> None:
        self._hold()
        self.dwell_chosen.emit(self.dwell_us.value())

    def _show_beam(self, state: str, colour: str) -> None:
        if self.badge.text() != state.upper():
            self.badge.setText(state.upper())
            self.badge.setStyleSheet(badge_style(colour))

    def _show_recording(self, values: Mapping[str, Any]) -> None:
        wanted = "Asked for" if values.get("record_wanted") else "Record"
        text = "Recording" if values.get("recorder") else wanted
        if text != self.record.text():
            self.record.setText(text)
            self.record.setStyleSheet(RECORDING_STYLE if text == "Recording" else "")

    def _show_warning(self, *, no_dead_man: bool, read_only: str) -> None:
        text = ", ".join(["no dead man"] * no_dead_man + ["watching only"] * bool(read_only))
        if text != self.warning.text():
            self.warning.setText(text)
        self.warning.setToolTip(read_only)

    def _show_pattern(self, values: Mapping[str, Any]) -> None:
        name = str(values.get("pattern") or "")
        offered = values.get("patterns")
        names = [str(entry) for entry in offered] if isinstance(offered, list | tuple) and offered else list(PATTERNS)
        parameters = values.get("pattern_parameters")
        self._parameters = {**parameters, "name": name} if isinstance(parameters, dict) else {"name": name}
        with QSignalBlocker(self.pattern):
            if [self.pattern.itemText(i) for i in range(self.pattern.count())] != names:
                self.pattern.clear()
                self.pattern.addItems(names)
            if name and self.pattern.currentText() != name:
                self.pattern.setCurrentText(name)
        coverage = values.get("coverage_nominal")
        if isinstance(coverage, int | float) and 0 < coverage <= 1 and takes_coverage(name):
            _show_value(self.one_in, round(1 / coverage))

    def _show_dwell(self, dwell_time_us: object) -> None:
        if isinstance(dwell_time_us, int | float):
            _show_value(self.dwell_us, dwell_time_us)


def takes_coverage(name: str) -> bool:
    """Tell whether a pattern has a coverage to choose; patterns not in the table are taken to have one.

    Examples
    --------
    >>> takes_coverage("raster"), takes_coverage("spiral")
    (False, True)
    """
    if name not in PATTERNS:
        return True
    return any(entry.name == "coverage" for entry in dataclasses.fields(load_pattern_class(name)))


class _ComboBox(QComboBox):
    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802 Qt's name
        event.ignore()  # a scroll over the bar must not change the scan


class _OneInBox(QSpinBox):
    """Holds N of a coverage 1/N, typed as 1/20 or as 20. A prefix would turn a typed 1/7 into 1/17."""

    def textFromValue(self, value: int) -> str:  # noqa: N802 Qt's name
        return f"1/{value}"

    def valueFromText(self, text: str) -> int:  # noqa: N802 Qt's name
        digits = text.rpartition("/")[2]
        return int(digits) if digits else self.value()

    def validate(self, text: str, position: int) -> tuple[QValidator.State, str, int]:
        one, slash, digits = text.rpartition("/")
        if (slash and one != "1") or not (digits == "" or (digits.isascii() and digits.isdecimal())):
            return QValidator.State.Invalid, text, position
        fits = digits != "" and self.minimum() <= int(digits) <= self.maximum()
        unfinished = text == "1" or not fits  # 1 alone may become 1/20
        state = QValidator.State.Intermediate if unfinished else QValidator.State.Acceptable
        return state, text, position

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802 Qt's name
        event.ignore()


class _DwellBox(QDoubleSpinBox):
    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802 Qt's name
        event.ignore()


def _one_in_box() -> QSpinBox:
    box = _OneInBox()
    box.setRange(1, MAX_ONE_IN)
    box.setValue(20)
    box.setKeyboardTracking(False)
    box.setFixedWidth(74)
    box.setToolTip("share of the pixels the beam visits (published nominal)")
    return box


def _dwell_box() -> QDoubleSpinBox:
    box = _DwellBox()
    box.setDecimals(3)
    box.setRange(0.025, 100_000)
    box.setValue(1.0)
    box.setSuffix(" µs")
    box.setStepType(QDoubleSpinBox.StepType.AdaptiveDecimalStepType)
    box.setKeyboardTracking(False)
    box.setFixedWidth(104)
    box.setToolTip("time at each probe position")
    return box


def _show_value(box: QSpinBox | QDoubleSpinBox, value: float) -> None:
    if box.hasFocus() or abs(box.value() - value) < 1e-9:
        return
    with QSignalBlocker(box):
        box.setValue(value)  # type: ignore[arg-type]


def _button(text: str, action: str, signal: Any) -> QPushButton:
    row = next(row for row in KEYS if row.action == action)
    button = QPushButton(text)
    button.setToolTip(f"{row.help}  [{' or '.join(row.keys)}]")
    button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    button.clicked.connect(lambda: signal.emit())
    return button


def _single_shot(parent: QWidget, slot: Any) -> QTimer:
    timer = QTimer(parent)
    timer.setSingleShot(True)
    timer.setInterval(DEBOUNCE_MS)
    timer.timeout.connect(slot)
    return timer
