"""What a service says about itself: reports a few times a second, events at once (imports nothing)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["info", "warning", "alarm"]
BeamState = Literal["parked", "blanked", "scanning", "fault"]


@dataclass(frozen=True, slots=True)
class StatusReport:
    """Counters and states of one service, numbers and short texts by name.

    Parameters
    ----------
    source : str
        Which service: "microscope" or "reconstruction".
    t_ns : int
        Monotonic time [ns].
    values : dict
        Name -> number, text, bool or None.
    """

    source: str
    t_ns: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened once.

    Parameters
    ----------
    source, kind, text : str
        Which service, a stable name ("blanked", "lease_lost", …), a sentence for people.
    severity : "info", "warning" or "alarm"
        An alarm stays on the display until it is cleared by hand.
    t_ns : int
        Monotonic time [ns].
    """

    source: str
    kind: str
    text: str
    severity: Severity
    t_ns: int
