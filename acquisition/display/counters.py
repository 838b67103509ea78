"""FrameCounters: how many frames were shown and skipped, how fast and how late (imports numpy only)."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lowdose.acquisition.frames import DenseFrame

KEPT_LATENCIES = 10_000
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
RATE_WINDOW_NS = 2_000_000_000


class FrameCounters:
    """Counts frames; for one thread or under one lock.

    A complete frame that was never shown counts as skipped once, whether it was overwritten on its way or never came:
    the span of frame indices received less the complete frames shown.
    """

    def __init__(self) -> None:
        self.shown = 0
        self.by_engine: Counter[str] = Counter()
        self._spanned = 0
        self._complete_shown = 0
        self._newest_complete: tuple[str, int] | None = None
        self._latencies_ms: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self._shown_ns: deque[int] = deque(maxlen=1000)
        self._first_shown_ns = 0

    def count_received(self, frame: DenseFrame) -> None:
        """Note a frame that came in, newer than all before."""
        if not frame.complete:
            return
        scan_id, index = self._newest_complete or ("", 0)
        self._spanned += frame.frame_index - index if scan_id == frame.scan_id else 1
        self._newest_complete = (frame.scan_id, frame.frame_index)

    def count_shown(self, frame: DenseFrame, t_ns: int) -> None:
        """Note a frame as shown at `t_ns`; its latency counts from the last sample in it."""
        self.shown += 1
        self.by_engine[frame.engine] += 1
        self._complete_shown += frame.complete
        self._first_shown_ns = self._first_shown_ns or t_ns
        self._shown_ns.append(t_ns)
        acquired_ns = frame.times_ns.get("last_sample")
        if acquired_ns is not None:
            self._latencies_ms.append((t_ns - acquired_ns) / 1e6)

    def skipped(self, waiting: int) -> int:
        """Return the complete frames never shown; `waiting` is how many still may be."""
        return self._spanned - self._complete_shown - waiting

    def recent_fps(self, now_ns: int) -> float:
        """Return frames shown per second, over the last two seconds."""
        return rate_per_s([(t, i) for i, t in enumerate(self._shown_ns) if now_ns - t <= RATE_WINDOW_NS])

    @property
    def fps(self) -> float:
        """Frames shown per second since the first one."""
        if self.shown < 2:
            return 0.0
        return (self.shown - 1) * 1e9 / max(1, self._shown_ns[-1] - self._first_shown_ns)

    @property
    def latency_ms(self) -> dict[str, float | None]:
        """p50, p90, p99 and max of the last 10,000 latencies [ms]; None before the first."""
        if not self._latencies_ms:
            return dict.fromkeys(PERCENTILES)
        values = np.percentile(np.array(self._latencies_ms), list(PERCENTILES.values()))
        return {name: round(float(value), 3) for name, value in zip(PERCENTILES, values, strict=True)}


def rate_per_s(history: list[tuple[int, int]]) -> float:
    """Return the steps per second of a counter seen as (t_ns, count), oldest first.

    Examples
    --------
    >>> rate_per_s([(0, 10), (500_000_000, 20)])
    20.0
    """
    if len(history) < 2 or history[-1][0] <= history[0][0]:
        return 0.0
    (t_first, first), (t_last, last) = history[0], history[-1]
    return max(0.0, (last - first) * 1e9 / (t_last - t_first))
