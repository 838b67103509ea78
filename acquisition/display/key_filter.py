"""KeyFilter: sees every key of the application first and calls the action the table names (imports Qt)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from PySide6.QtCore import QEvent, QObject, Qt
from PySide6.QtGui import QKeyEvent, QKeySequence
from PySide6.QtWidgets import QAbstractSpinBox, QApplication, QLineEdit, QWidget

from lowdose.acquisition.display.keys import KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MODIFIERS = Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.AltModifier | Qt.KeyboardModifier.MetaModifier
_KEY_EVENTS = (QEvent.Type.KeyPress, QEvent.Type.ShortcutOverride)


class KeyFilter(QObject):
    """Turns keys into actions, whatever has the focus; letters typed into a field stay there, except `everywhere` ones.

    Parameters
    ----------
    window : QWidget
        Must be active for all keys but those that work everywhere.
    actions : mapping of str to callable
        One for every action of the table.
    """

    def __init__(self, window: QWidget, actions: Mapping[str, Callable[[], None]]) -> None:
        super().__init__(window)
        self._window = window
        self._rows = {_qt_key(key): (actions[row.action], row.everywhere) for row in KEYS for key in row.keys}

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802 Qt's name
        """Consume a key of the table and call its action; let everything else pass."""
        if event.type() not in _KEY_EVENTS or not isinstance(event, QKeyEvent) or event.modifiers() & _MODIFIERS:
            return False
        action, everywhere = self._rows.get(Qt.Key(event.key()), (None, False))
        if action is None or not (everywhere or self._is_free()):
            return False
        if event.type() == QEvent.Type.ShortcutOverride:
            event.accept()  # the key press that follows is ours
            return True
        popup = QApplication.activePopupWidget()
        if popup is not None:
            popup.close()
        if not event.isAutoRepeat():
            action()
        return True

    def _is_free(self) -> bool:
        return self._window.isActiveWindow() and not _takes_text(QApplication.focusWidget())


def _qt_key(name: str) -> Qt.Key:
    sequence: Any = QKeySequence(name)  # its type hints leave indexing out
    return cast("Qt.Key", sequence[0].key())


def _takes_text(widget: QWidget | None) -> bool:
    return isinstance(widget, QLineEdit | QAbstractSpinBox)
