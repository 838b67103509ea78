"""Read-outs: the figures at the foot of the window, and the texts they are made of (imports Qt)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeGuard

from PySide6.QtWidgets import QFrame, QGridLayout, QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout

from lowdose.acquisition.display.keys import key_of

if TYPE_CHECKING:
    from lowdose.acquisition.display.view_model import ViewModel

CAPTIONS = (
    "Coverage",
    "Dose per frame",
    "In visited pixels",
    "Area, summed",
    "Shown / acquired",
    "Latency p50 / p99",
    "Dropped",
    "Gaps",
    "Skipped",
    "Engine",
)
STRETCH = (17, 12, 12, 15, 14, 12, 6, 5, 6, 16)
NONE_YET = "–"


class Readouts(QFrame):
    """One row of captioned figures and a line for messages."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("foot")
        self._values = [QLabel(NONE_YET) for _ in CAPTIONS]
        self.message = QLabel("")
        self.message.setObjectName("message")
        _let_shrink(self.message)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(12, 5, 12, 5)
        outer.setSpacing(3)
        grid = QGridLayout()
        grid.setHorizontalSpacing(10)
        grid.setVerticalSpacing(0)
        for column, (caption, value) in enumerate(zip(CAPTIONS, self._values, strict=True)):
            label = QLabel(caption)
            label.setObjectName("caption")
            value.setObjectName("value")
            _let_shrink(value)
            grid.addWidget(label, 0, column)
            grid.addWidget(value, 1, column)
            grid.setColumnStretch(column, STRETCH[column])
        outer.addLayout(grid)
        line = QHBoxLayout()
        hint = QLabel(f"[{key_of('help')}] keys")
        hint.setObjectName("caption")
        line.addWidget(self.message, 1)
        line.addWidget(hint)
        outer.addLayout(line)

    def refresh(self, model: ViewModel) -> None:
        """Show the figures of now."""
        for label, text in zip(self._values, readout_texts(model), strict=True):
            if label.text() != text:
                label.setText(text)

    def text_of(self, caption: str) -> str:
        """Return the figure under a caption."""
        return self._values[CAPTIONS.index(caption)].text()

    def say(self, text: str) -> None:
        """Show a message until the next one."""
        self.message.setText(text)
        self.message.setToolTip(text)


def _let_shrink(label: QLabel) -> None:
    """Keep a long text from widening the window."""
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)


def readout_texts(model: ViewModel) -> tuple[str, ...]:
    """Return the figures in the order of `CAPTIONS`."""
    values = model.microscope
    shown, acquired = model.rates_per_s()
    latency = model.latency_ms()
    return (
        coverage_text(values.get("coverage_nominal"), values.get("coverage")),
        _dose(values.get("dose_e_per_a2")),
        _dose(values.get("dose_visited_e_per_a2")),
        f"{_dose(values.get('dose_area_e_per_a2'))}{_area(values.get('area_id'))}",
        f"{shown:.1f} / {acquired:.1f} fps",
        NONE_YET if latency["p50"] is None else f"{latency['p50']:.1f} / {latency['p99']:.1f} ms",
        f"{model.dropped:,}",
        f"{model.gaps:,}",
        f"{model.skipped:,}",
        model.engine or NONE_YET,
    )


def coverage_text(nominal: object, true: object) -> str:
    """Return the nominal and the true coverage for people.

    Examples
    --------
    >>> coverage_text(0.05, 0.0453), coverage_text(None, 1.0), coverage_text(None, None)
    ('1/20 nominal, 4.53 % true', '100 %', '–')
    """
    if not _is_number(true):
        return NONE_YET
    percent = f"{100 * true:.3g} %"
    if not _is_number(nominal) or not 0 < nominal < 1:
        return percent
    one_in = round(1 / nominal)
    label = f"1/{one_in}" if abs(one_in * nominal - 1) < 0.005 else f"{100 * nominal:.3g} %"
    return f"{label} nominal, {percent} true"


def _dose(value: Any) -> str:
    if not _is_number(value):
        return NONE_YET
    return f"{value:,.3g} e⁻/Å²" if value < 1000 else f"{value:,.0f} e⁻/Å²"


def _is_number(value: object) -> TypeGuard[float]:
    """Tell whether a reported value can be shown as a number; reports come from a socket."""
    return isinstance(value, int | float) and math.isfinite(value)


def _area(area_id: Any) -> str:
    return f"  (area {area_id})" if isinstance(area_id, int) else ""
