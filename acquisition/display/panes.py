"""Panes: measured and completed side by side, drawn fast and told apart from mere repaints (imports Qt)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyqtgraph as pg
from PySide6.QtCore import QRectF, Signal
from PySide6.QtGui import QImage

from lowdose.acquisition.display.scale_bar import ScaleBar
from lowdose.acquisition.display.theme import BACKGROUND

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PySide6.QtGui import QPaintEvent

    from lowdose.acquisition.display.view_model import Picture

GAP_PX = 8


class Panes(pg.GraphicsView):  # type: ignore[misc]
    """Two linked views in one scene; nothing else is in it, so that a new frame repaints two images only.

    Images are uint8 with 256 colours: pyqtgraph hands them to Qt as they are (Indexed8), without a pass in Python.
    """

    painted = Signal(object)
    """Monotonic time a new picture was drawn at [ns]; repaints of the same picture are silent."""

    def __init__(self) -> None:
        super().__init__(background=BACKGROUND)
        layout = pg.GraphicsLayout()
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(GAP_PX)
        self.setCentralItem(layout)
        self.measured, self.completed = _Image(), _Image()
        self.views = [_add_view(layout, image, column) for column, image in enumerate((self.measured, self.completed))]
        self.views[0].setXLink(self.views[1])
        self.views[0].setYLink(self.views[1])
        self.scale_bar = ScaleBar(self.views[1])
        self._field: tuple[float, float] | None = None
        self._awaits_paint = False
        self.set_colours(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1))

    @property
    def awaits_paint(self) -> bool:
        """A new picture was set and is not drawn yet."""
        return self._awaits_paint

    def show_picture(self, picture: Picture, *, new: bool) -> None:
        """Draw a picture soon; `new` ones are reported by `painted`, others change levels or colours only."""
        self.measured.setImage(picture.measured, autoLevels=False)
        self.completed.setImage(picture.completed, autoLevels=False)
        rows_nm, cols_nm = picture.frame.grid.fov_nm
        for image in (self.measured, self.completed):
            image.fit(cols_nm, rows_nm)
        if (rows_nm, cols_nm) != self._field:
            self._field = (rows_nm, cols_nm)
            self.reset_view()
        if new:
            self._awaits_paint, self.completed.drawn = True, False

    def reset_view(self) -> None:
        """Show the whole field."""
        rows_nm, cols_nm = self._field or (1.0, 1.0)
        for view in self.views:
            view.setRange(QRectF(0, 0, cols_nm, rows_nm), padding=0)

    def set_colours(self, table: NDArray[np.uint8]) -> None:
        """Use a table of 256 colours, (256, 3) uint8; unvisited pixels of the measured picture stay black."""
        with_black = table.copy()
        with_black[0] = 0
        self.completed.setLookupTable(table)
        self.measured.setLookupTable(with_black)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802 Qt's name
        """Draw, and tell if a new picture is now drawn."""
        super().paintEvent(event)
        if self._awaits_paint and self.completed.drawn:
            self._awaits_paint = False
            self.painted.emit(time.monotonic_ns())


class _Image(pg.ImageItem):  # type: ignore[misc]
    """An image whose edges lie where its view wants them and which knows when it was drawn."""

    def __init__(self) -> None:
        self.qimage: QImage | None = None
        super().__init__(axisOrder="row-major", levels=(0, 255))
        self.drawn = False
        self._fitted: tuple[float, ...] = ()

    def fit(self, width: float, height: float) -> None:
        """Span the rectangle from the origin."""
        fitted = (width, height, *self.image.shape)
        if fitted != self._fitted:
            self._fitted = fitted
            self.setRect(QRectF(0, 0, width, height))

    def render(self) -> None:
        """Make the image Qt draws: as RGB32, which it scales in 0.3 ms; straight from Indexed8 it takes 1.2 ms."""
        super().render()
        if self.qimage is not None:
            self.qimage = self.qimage.convertToFormat(QImage.Format.Format_RGB32)

    def paint(self, *arguments: Any) -> None:
        """Draw."""
        super().paint(*arguments)
        self.drawn = True


def _add_view(layout: Any, image: _Image, column: int) -> Any:
    view = layout.addViewBox(row=0, col=column, lockAspect=True, invertY=True, enableMenu=False)
    view.setDefaultPadding(0)
    view.disableAutoRange()
    view.setBackgroundColor("k")
    view.addItem(image)
    return view
