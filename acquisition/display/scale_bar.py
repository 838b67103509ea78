"""ScaleBar: a bar of a round length in a corner of an image (imports Qt)."""

from __future__ import annotations

import math
from typing import Any

import pyqtgraph as pg
from PySide6.QtCore import QRectF, Qt
from PySide6.QtGui import QColor, QFont
from PySide6.QtWidgets import QGraphicsRectItem, QGraphicsSimpleTextItem

SHARE_OF_VIEW = 0.22
THICKNESS_PX, MARGIN_PX, PADDING_PX = 4, 12, 7


class ScaleBar:
    """A bar, its length and a dark plate behind both, at the lower left of a view whose unit is nm.

    Parameters
    ----------
    view : pyqtgraph.ViewBox
        Lives as long as the bar.
    """

    def __init__(self, view: Any) -> None:
        self._view = view
        self._plate = _filled(QGraphicsRectItem(view), QColor(0, 0, 0, 150))
        self._bar = _filled(QGraphicsRectItem(view), QColor("white"))
        self._text = QGraphicsSimpleTextItem(view)
        self._text.setBrush(pg.mkBrush("w"))
        font = QFont()
        font.setPixelSize(13)
        self._text.setFont(font)
        self._text.setCacheMode(QGraphicsSimpleTextItem.CacheMode.DeviceCoordinateCache)
        for item, z in ((self._plate, 1000), (self._bar, 1001), (self._text, 1001)):
            item.setZValue(z)
            item.setAcceptedMouseButtons(Qt.MouseButton.NoButton)
        view.sigRangeChanged.connect(self.refresh)
        view.sigResized.connect(self.refresh)
        self.refresh()

    @property
    def text(self) -> str:
        """What the bar says."""
        return self._text.text()

    def refresh(self, *_: object) -> None:
        """Fit the bar to what the view shows."""
        (left, right), _rows = self._view.viewRange()
        width_px, height_px = self._view.width(), self._view.height()
        if not right > left or width_px < 1:
            return
        length_nm = round_length(SHARE_OF_VIEW * (right - left))
        length_px = length_nm / (right - left) * width_px
        self._text.setText(length_text(length_nm))
        text = self._text.boundingRect()
        inner = max(length_px, text.width())
        top = height_px - MARGIN_PX - 2 * PADDING_PX - THICKNESS_PX - text.height()
        self._plate.setRect(MARGIN_PX, top, inner + 2 * PADDING_PX, height_px - MARGIN_PX - top)
        centre = MARGIN_PX + PADDING_PX + inner / 2
        self._text.setPos(centre - text.width() / 2, top + PADDING_PX - 3)
        self._bar.setRect(QRectF(centre - length_px / 2, top + PADDING_PX + text.height(), length_px, THICKNESS_PX))


def round_length(length: float) -> float:
    """Return the largest 1, 2 or 5 times a power of ten that is no longer.

    Examples
    --------
    >>> round_length(0.37), round_length(7.0), round_length(2.0)
    (0.2, 5.0, 2.0)
    """
    decade = 10.0 ** math.floor(math.log10(length))
    return float(f"{next(step for step in (5, 2, 1) if step * decade <= length * (1 + 1e-9)) * decade:.3g}")


def length_text(length_nm: float) -> str:
    """Return a length with the unit that suits it.

    Examples
    --------
    >>> length_text(0.2), length_text(5.0), length_text(2000.0)
    ('200 pm', '5 nm', '2 µm')
    """
    if length_nm >= 1000:
        return f"{length_nm / 1000:g} µm"
    return f"{length_nm:g} nm" if length_nm >= 1 else f"{1000 * length_nm:g} pm"


def _filled(item: QGraphicsRectItem, colour: QColor) -> QGraphicsRectItem:
    item.setBrush(pg.mkBrush(colour))
    item.setPen(pg.mkPen(None))
    return item
