"""Histogram: counts of the completed picture, its levels and its colours (imports Qt)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import Signal

from lowdose.acquisition.display.levels import subsampled
from lowdose.acquisition.display.theme import ACCENT, BACKGROUND, BORDER, QUIET

if TYPE_CHECKING:
    from numpy.typing import NDArray

BINS = 128
WIDTH_PX = 132
TOLERANCE = 0.08
"""The axis stays while the counts move by less than this share of its length: it would tremble otherwise."""


class Histogram(pg.GraphicsLayoutWidget):  # type: ignore[misc]
    """A histogram beside the panes, in a view of its own: refreshing it repaints no image."""

    levels_dragged = Signal(float, float)
    """Levels set with the mouse [counts]."""
    colours_chosen = Signal(object)
    """(256, 3) uint8 table chosen in the gradient's menu."""

    def __init__(self) -> None:
        super().__init__()
        self.setBackground(BACKGROUND)
        self.setFixedWidth(WIDTH_PX)
        self.ci.layout.setContentsMargins(0, 0, 0, 0)
        self._item: Any = pg.HistogramLUTItem(gradientPosition="right", orientation="vertical")
        self._item.plot.setPen(pg.mkPen(QUIET))
        self._item.fillHistogram(True, color=(110, 140, 175, 120))
        self._item.axis.setTextPen(QUIET)
        self._item.axis.setPen(BORDER)
        self._item.axis.setStyle(maxTickLevel=0, tickLength=-5)
        self._item.axis.setTickDensity(0.5)
        self._item.region.setBrush((90, 130, 180, 35))
        self._item.region.setHoverBrush((90, 130, 180, 60))
        for line in self._item.region.lines:
            line.setPen(pg.mkPen(ACCENT))
        self._item.vb.setMenuEnabled(False)
        self._item.gradient.showTicks(False)
        self.addItem(self._item)
        self._range: tuple[float, float] | None = None
        self._busy = False
        self._item.sigLevelsChanged.connect(self._levels_changed)
        self._item.sigLookupTableChanged.connect(self._colours_changed)

    def show_counts(self, image: NDArray[np.float32], low: float, high: float) -> None:
        """Show the counts of an image and the levels in force."""
        values = subsampled(image)
        if values.size == 0:
            return
        first, last = (float(edge) for edge in np.percentile(values, (0.05, 99.95)))
        last = max(last, first + 1e-6)
        counts, edges = np.histogram(values, bins=BINS, range=(first, last))
        # square root: the film's peak would hide the particles
        self._item.plot.setData((edges[:-1] + edges[1:]) / 2, np.sqrt(counts))
        self._fit_axis(min(first, low), max(last, high))
        self.show_levels(low, high)

    def show_levels(self, low: float, high: float) -> None:
        """Show levels set elsewhere, telling nobody."""
        self._busy = True
        try:
            self._item.setLevels(low, high)
        finally:
            self._busy = False

    def drag(self, low: float, high: float) -> None:
        """Set the levels as the mouse does."""
        self._item.setLevels(low, high)

    def _fit_axis(self, first: float, last: float) -> None:
        length = last - first
        if self._range is None or max(abs(first - self._range[0]), abs(last - self._range[1])) > TOLERANCE * length:
            self._range = (first, last)
            self._item.setHistogramRange(first, last, padding=0.06)

    def _levels_changed(self, *_: object) -> None:
        if not self._busy:
            low, high = self._item.getLevels()
            self.levels_dragged.emit(float(low), float(high))

    def _colours_changed(self, *_: object) -> None:
        self.colours_chosen.emit(self._item.gradient.getLookupTable(256, alpha=False))
