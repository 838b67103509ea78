"""Notices: the titles over the panes, the alarm banner and the list of keys (imports Qt)."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QFrame, QGridLayout, QHBoxLayout, QLabel, QPushButton, QWidget

from lowdose.acquisition.display.keys import KEYS
from lowdose.acquisition.display.theme import badge_style


class PaneTitle(QWidget):
    """Title of a pane, a quiet note and a badge beside it."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title, self._note, self._badge = QLabel(title), QLabel(), QLabel()
        self._title.setObjectName("title")
        self._colour = ""
        self._badge.hide()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(2, 0, 2, 0)
        layout.addWidget(self._title)
        layout.addStretch(1)
        layout.addWidget(self._note)
        layout.addWidget(self._badge)
        self.setFixedHeight(24)

    @property
    def text(self) -> str:
        """Title, note and badge as one text."""
        badge = self._badge.text()
        return " ".join(part for part in (self._title.text(), self._note.text(), badge) if part)

    def show_title(self, text: str) -> None:
        """Change the title."""
        if self._title.text() != text:
            self._title.setText(text)

    def show_note(self, text: str, colour: str) -> None:
        """Show a note, "" = none."""
        if self._note.text() != text:
            self._note.setText(text)
        if self._colour != colour:
            self._colour = colour
            self._note.setStyleSheet(f"color: {colour}; font-size: 12px;")

    def show_badge(self, text: str, colour: str) -> None:
        """Show a badge, "" = none."""
        if self._badge.text() != text:
            self._badge.setText(text)
            self._badge.setStyleSheet(badge_style(colour) + "padding: 1px 10px;")
            self._badge.setVisible(bool(text))


class AlarmBanner(QFrame):
    """An alarm across the window, until it is cleared by hand."""

    cleared = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("alarm")
        self._text = QLabel()
        self._text.setWordWrap(True)
        self.button = QPushButton("Clear alarm")
        self.button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.button.clicked.connect(lambda: self.cleared.emit())
        layout = QHBoxLayout(self)
        layout.setContentsMargins(12, 6, 12, 6)
        layout.addWidget(self._text, 1)
        layout.addWidget(self.button)
        self.hide()

    @property
    def text(self) -> str:
        """The alarm shown, "" if there is none."""
        return self._text.text()

    def show_text(self, text: str) -> None:
        """Show an alarm, "" = none."""
        if text != self._text.text():
            self._text.setText(text)
            self.setVisible(bool(text))


class HelpPanel(QFrame):
    """The table of keys over the middle of the window."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self._window = parent
        self.setObjectName("help")
        layout = QGridLayout(self)
        layout.setContentsMargins(24, 18, 24, 18)
        layout.setHorizontalSpacing(22)
        for row, entry in enumerate(KEYS):
            keys = QLabel("  or  ".join(entry.keys))
            keys.setStyleSheet("font-weight: 700;")
            layout.addWidget(keys, row, 0)
            layout.addWidget(QLabel(entry.help), row, 1)
        self.hide()

    def toggle(self) -> None:
        """Show or hide the list."""
        self.setVisible(not self.isVisible())
        self.centre()
        self.raise_()

    def centre(self) -> None:
        """Move to the middle of the window."""
        self.adjustSize()
        self.move(self._window.rect().center() - self.rect().center())
