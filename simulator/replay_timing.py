"""When the blocks of a recording are due again, and by which running numbers (imports nothing heavy)."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowdose.acquisition.messages import SampleBlock

logger = logging.getLogger(__name__)

MAX_PAUSE_NS = 60_000_000_000
"""Longer silences of a session are shortened to this."""
MIN_SPEED = 1e-3
"""Slower, and a silence of a minute would last longer than a day."""
MAX_START_S = 1e9
"""Later than any session lasts: 30 years."""
MAX_AHEAD = 1 << 32
"""Blocks that may be missing at once; a running number further ahead is none."""


class Pace:
    """Tells when each block of a recording is due.

    Parameters
    ----------
    speed : float
        So many times faster than recorded; 0 = at once.
    clock : callable
        Monotonic time [ns].

    Attributes
    ----------
    span_ns : int
        From the first recorded sample to the last seen [ns].
    """

    def __init__(self, speed: float, clock: Callable[[], int]) -> None:
        self._speed, self._clock = speed, clock
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what came: the recording is replayed from its beginning."""
        self._first_ns: int | None = None
        self._due_ns = self.span_ns = 0
        self.forget()

    def forget(self) -> None:
        """Let the next block be due as if it began when it comes."""
        self._scan_id, self._came_ns = "", 0

    def since_first_ns(self, block: SampleBlock) -> int:
        """Return when a block began, since the first of the session did."""
        if self._first_ns is None:
            self._first_ns = block.t_first_ns
        self.span_ns = max(self.span_ns, block.t_last_ns - self._first_ns)
        return block.t_first_ns - self._first_ns

    def come(self, block: SampleBlock) -> None:
        """Take the next block: it is due as long after the one before as it was recorded."""
        if not self._scan_id:
            self._due_ns = self._clock() + self._scaled(block.t_last_ns - block.t_first_ns)
        elif block.scan_id != self._scan_id or block.t_last_ns > self._came_ns:
            self._due_ns += self._scaled(block.t_last_ns - self._came_ns)
        else:
            return  # a late one: the time of those after it counts
        self._scan_id, self._came_ns = block.scan_id, block.t_last_ns

    def seconds_left(self) -> float:
        """Return how long to wait until the block is due [s]."""
        return (self._due_ns - self._clock()) / 1e9 if self._speed else 0.0

    def stamps(self, block: SampleBlock) -> tuple[int, int]:
        """Return the first and the last sample's times, as if they were taken now [ns]."""
        t_last_ns = self._due_ns if self._speed else self._clock()
        return t_last_ns - self._scaled(block.t_last_ns - block.t_first_ns), t_last_ns

    def _scaled(self, recorded_ns: int) -> int:
        if recorded_ns > MAX_PAUSE_NS:
            logger.info("a silence of %.0f s is shortened to %.0f s", recorded_ns / 1e9, MAX_PAUSE_NS / 1e9)
        return round(min(max(recorded_ns, 0), MAX_PAUSE_NS) / self._speed) if self._speed else 0


class Numbers:
    """Numbers the blocks of all scans and passes on end; what the recording left out stays left out."""

    def __init__(self) -> None:
        self._next = 0
        self._ahead: int | None = None
        self._scan_id = ""
        self.lost = 0

    def begin_anew(self) -> None:
        """Go on with the next number, whatever the recording's is."""
        self._ahead = None

    def number(self, block: SampleBlock) -> int:
        """Return a block's number of the replay for its number of the recording."""
        restarted = self._ahead is not None and block.scan_id != self._scan_id and block.seq + self._ahead < self._next
        if self._ahead is None or restarted:  # a microscope that was restarted counts from 0
            self._ahead = self._next - block.seq
        self._scan_id = block.scan_id
        number = max(block.seq + self._ahead, 0)
        if number > self._next + MAX_AHEAD:
            number = self._next + MAX_AHEAD
            self._ahead = number - block.seq
        self.lost += max(number - self._next, 0)
        self._next = max(self._next, number + 1)
        return number


def require_pace(*, speed: float, start_s: float) -> None:
    """Raise ValueError, naming it, if a speed or the time of a beginning cannot be waited for."""
    if not (speed == 0 or MIN_SPEED <= speed < math.inf):
        raise ValueError(f"speed must be 0, as fast as it goes, or a finite number >= {MIN_SPEED:g}, got {speed:g}")
    if not 0 <= start_s <= MAX_START_S:
        raise ValueError(f"start_s must be 0 to {MAX_START_S:g} s, got {start_s:g}")
