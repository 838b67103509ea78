"""The window's colours, palette and style sheet (imports Qt)."""

from __future__ import annotations

from PySide6.QtGui import QColor, QPalette

BACKGROUND = "#14171c"
PANEL = "#1b1f26"
FIELD = "#0d0f13"
BORDER = "#2c333d"
TEXT = "#d9dee6"
QUIET = "#8b95a5"
DISABLED = "#5b6472"
ACCENT = "#4c9be8"
AMBER = "#e0a13c"
RED = "#c8372d"
GREEN = "#2f9e68"

BEAM_COLOURS = {
    "scanning": GREEN,
    "blanked": "#46536a",
    "parked": "#39404b",
    "fault": RED,
    "replay": "#2b5c8a",
    "paused": "#46536a",
}
"""Beam state, or that of a recording, -> colour of its badge; everything else is shown as unknown."""
UNKNOWN_COLOUR = "#7a5a1e"
RECORDING_STYLE = f"background: #4a2320; border: 1px solid {RED}; color: #ff9a90; font-weight: 700;"

STYLE = f"""
QWidget {{ font-family: "Inter", "Segoe UI", "DejaVu Sans", sans-serif; font-size: 12px; }}
QLabel#title {{ font-size: 13px; font-weight: 600; }}
QLabel#caption {{ color: {QUIET}; font-size: 11px; }}
QLabel#value {{ font-size: 13px; }}
QLabel#message {{ color: {QUIET}; }}
QFrame#bar {{ background: {PANEL}; border: none; border-bottom: 1px solid {BORDER}; }}
QFrame#foot {{ background: {PANEL}; border: none; border-top: 1px solid {BORDER}; }}
QFrame#bar QPushButton {{ background: #2a313b; border: 1px solid #3a434f; border-radius: 4px; padding: 4px 12px;
    min-height: 18px; }}
QFrame#bar QPushButton:hover {{ background: #343d49; }}
QFrame#bar QPushButton:pressed {{ background: #222831; }}
QFrame#bar QPushButton:disabled {{ color: {DISABLED}; }}
QFrame#bar QPushButton#blank {{ background: {RED}; border: 1px solid #e0584e; color: white; font-size: 14px;
    font-weight: 700; padding: 4px 30px; }}
QFrame#bar QPushButton#blank:hover {{ background: #dd453a; }}
QFrame#bar QPushButton#blank:pressed {{ background: #9c271f; }}
QFrame#alarm {{ background: {RED}; border: none; }}
QFrame#alarm QLabel {{ color: white; font-size: 14px; font-weight: 600; }}
QFrame#alarm QPushButton {{ background: transparent; border: 1px solid white; border-radius: 4px; color: white;
    padding: 3px 12px; }}
QFrame#help {{ background: {PANEL}; border: 1px solid {BORDER}; border-radius: 6px; }}
QFrame#help QLabel {{ font-size: 13px; }}
QToolTip {{ background: {PANEL}; color: {TEXT}; border: 1px solid {BORDER}; padding: 3px; }}
"""


def badge_style(colour: str) -> str:
    """Return the style of a small coloured label."""
    return f"background: {colour}; color: white; border-radius: 4px; padding: 3px 10px; font-weight: 700;"


def dark_palette() -> QPalette:
    """Return the palette of all widgets; the style sheet only adds what a palette cannot say."""
    palette = QPalette()
    role = QPalette.ColorRole
    colours = {
        role.Window: BACKGROUND,
        role.WindowText: TEXT,
        role.Base: FIELD,
        role.AlternateBase: PANEL,
        role.Text: TEXT,
        role.Button: "#2a313b",
        role.ButtonText: TEXT,
        role.Highlight: ACCENT,
        role.HighlightedText: "#ffffff",
        role.ToolTipBase: PANEL,
        role.ToolTipText: TEXT,
        role.PlaceholderText: QUIET,
        role.Light: "#3a434f",
        role.Midlight: BORDER,
        role.Mid: BORDER,
        role.Dark: "#0a0c0f",
        role.Shadow: "#000000",
    }
    for name, colour in colours.items():
        palette.setColor(name, QColor(colour))
    for name in (role.Text, role.ButtonText, role.WindowText):
        palette.setColor(QPalette.ColorGroup.Disabled, name, QColor(DISABLED))
    return palette
