"""KEYS: the one table of what the keys do (imports nothing)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One row: keys as Qt names them, the action they start, a word for people.

    Parameters
    ----------
    keys : tuple of str
        Key names, such as "B", "Esc", "Space".
    action : str
        Name of the action, unique in the table.
    help : str
        What the operator reads.
    everywhere : bool
        Works from any focus, also while a number is being typed.
    """

    keys: tuple[str, ...]
    action: str
    help: str
    everywhere: bool = False


KEYS: tuple[KeyRow, ...] = (
    KeyRow(("B", "Esc"), "blank", "blank the beam at once, stop and park", everywhere=True),
    KeyRow(("G",), "go", "start or stop the scan"),
    KeyRow(("Space",), "freeze", "hold the picture; the scan goes on"),
    KeyRow(("S",), "snapshot", "save picture and figures"),
    KeyRow(("N",), "new_area", "stage has moved: sum the dose from zero"),
    KeyRow(("C",), "record", "record everything, or end the recording"),
    KeyRow(("M",), "mark", "mark this moment in the recording"),
    KeyRow(("A",), "contrast_once", "set the contrast from this frame"),
    KeyRow(("L",), "contrast_mode", "contrast: always, once, manual"),
    KeyRow(("U",), "uncertainty", "show the uncertainty instead of the picture"),
    KeyRow(("R",), "reset_view", "show the whole field"),
    KeyRow(("F1", "?"), "help", "show or hide this list", everywhere=True),
    KeyRow(("Q",), "quit", "close the window"),
)


def key_of(action: str) -> str:
    """Return the first key of an action, for labels.

    Examples
    --------
    >>> key_of("blank")
    'B'
    """
    return next(row.keys[0] for row in KEYS if row.action == action)
