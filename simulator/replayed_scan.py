"""A recorded scan as it is replayed: under a new id, with labels that can be shown, refused if it is unsound."""

from __future__ import annotations

import math
import time
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lowdose.acquisition.controllers.base import ControllerLimits
from lowdose.acquisition.scans import MAX_DWELL_US, MIN_DWELL_US
from lowdose.acquisition.wire import encode
from lowdose.scan_patterns.checks import printable

if TYPE_CHECKING:
    from lowdose.acquisition.messages import ScanStart

LIMITS = ControllerLimits(min_dwell_us=MIN_DWELL_US, max_positions=1 << 31, look_ahead_ms=5.0, dead_man=True)
"""Of a replay: whatever can have been recorded. Without a beam nothing has to be blanked."""
MAX_LABEL, MAX_PARAMETERS = 200, 32


def replayed(start: ScanStart, *, t_ns: int) -> ScanStart:
    """Return a recorded scan as a new one, with labels that fit into a status report.

    Parameters
    ----------
    start : ScanStart
        As recorded.
    t_ns : int
        Monotonic time now [ns].
    """
    return replace(
        start,
        scan_id=uuid.uuid4().hex,
        replay_of=label(start.scan_id),
        pattern=_pattern_label(start.pattern),
        channels=tuple(label(name) for name in start.channels),
        wall_clock_ns=time.time_ns(),
        t_ns=t_ns,
    )


def require_sound(scan: ScanStart) -> None:
    """Raise ValueError unless a scan can be announced, and its counts make finite pictures."""
    if not scan.dwell_time_us <= MAX_DWELL_US:
        raise ValueError(f"dwell_time_us must be at most {MAX_DWELL_US:g}, got {scan.dwell_time_us:g}")
    for path in scan.paths:
        LIMITS.require(path)
    encode(scan)


def _pattern_label(pattern: dict[str, Any]) -> dict[str, Any]:
    """Return a pattern's name and parameters; they are shown, never expanded."""
    kept = {label(key): _plain(value) for key, value in list(pattern.items())[:MAX_PARAMETERS]}
    if not _is_number(kept.get("coverage", 1.0)):
        del kept["coverage"]
    return {**kept, "name": label(str(kept.get("name", "unknown")))}


def _plain(value: object) -> object:
    """Return a number or short text; a list, however deep, becomes a sign that there was one."""
    if isinstance(value, str):
        return label(value)
    return value if value is None or isinstance(value, bool | int | float) else "…"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def label(text: str) -> str:
    """Return text of a file as it may be shown: nothing that a terminal would obey, and not too much.

    Examples
    --------
    >>> label("spiral" + chr(27) + "[2J")
    'spiral?[2J'
    """
    return printable(text[:MAX_LABEL])
