"""Argument checks shared by every folder: one sentence naming the value, what it was and what it must be."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def require_positive(**values: float) -> None:
    """Raise ValueError unless every named value is a finite number above zero."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be > 0, got {value}")


def rounded_up(value: float, digits: int = 3) -> float:
    """Return a positive number with so many digits, not below the given one.

    Examples
    --------
    >>> rounded_up(2.1912), rounded_up(2.19)
    (2.2, 2.19)
    """
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.{digits}g}")


def rounded_down(value: float, digits: int = 4) -> float:
    """Return a positive number with so many digits, not above the given one.

    Examples
    --------
    >>> rounded_down(0.77089)
    0.7708
    """
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    return float(f"{math.floor(value / unit + 1e-9) * unit:.{digits}g}")


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return the known name most like the one given, ready for the end of an error message.

    Examples
    --------
    >>> nearest_name("spirall", ["spiral", "lattice"])
    "did you mean 'spiral'? Known: lattice, spiral"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(names)}"


def printable(text: str) -> str:
    """Return text that came from outside without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text)
