"""ViewModel: what the operator sees, as arrays and numbers; windows and headless runs share it (numpy only, no Qt)."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdose.acquisition.display.counters import FrameCounters
from lowdose.acquisition.display.levels import Levels, measured_to_uint8, percentile_levels, to_uint8
from lowdose.acquisition.display.reports import GOING_ON, MICROSCOPE, RECONSTRUCTION, Reports
from lowdose.acquisition.mailbox import LatestOnly

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from lowdose.acquisition.frames import DenseFrame
    from lowdose.acquisition.status import Event, StatusReport

KEPT_SCANS = 64
OVER_AFTER_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame ready to be drawn.

    Parameters
    ----------
    frame : DenseFrame
        What it was made of.
    measured, completed : (rows, cols) uint8 ndarray
        Measured: 0 = not visited, 1 to 255 visited. Completed: 0 to 255, or the uncertainty instead.
    low, high : float
        Levels of 0 (1 in `measured`) and 255 [counts].
    channel : str
        Detector channel shown.
    shows_uncertainty : bool
        `completed` holds the uncertainty.
    t_received_ns : int
        Monotonic time the frame came in [ns].
    """

    frame: DenseFrame
    measured: NDArray[np.uint8]
    completed: NDArray[np.uint8]
    low: float
    high: float
    channel: str
    shows_uncertainty: bool
    t_received_ns: int


class ViewModel:
    """Keeps the newest frame, the last reports and the counters.

    `accept_frame`, `accept_report` and `accept_event` may be called from a receiver thread, all else from the thread
    that draws.

    Parameters
    ----------
    headless : bool
        Nothing is drawn: a frame counts as shown when it is received.
    limit : int or None
        Frames to show; later ones are refused.
    on_shown : callable or None
        Called with (frame, t_received_ns, t_shown_ns) for every frame counted as shown, in the thread that did it.
    clock : callable
        Monotonic time [ns].
    """

    def __init__(
        self,
        *,
        headless: bool = False,
        limit: int | None = None,
        on_shown: Callable[[DenseFrame, int, int], None] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.levels = Levels()
        self.reports = Reports(clock)
        self.frozen = False
        self.shows_uncertainty = False
        self.channel = 0
        self.refused = self.faults = 0
        self._headless, self._limit, self._on_shown, self._clock = headless, limit, on_shown, clock
        self._lock = threading.Lock()
        self._counters = FrameCounters()
        self._box: LatestOnly[tuple[DenseFrame, int]] = LatestOnly()
        self._waiting_complete = False
        self._taken: tuple[DenseFrame, int] | None = None
        self._painted = True
        self._newest: DenseFrame | None = None
        self._arrived_ns: int | None = None
        self._going_on_ns: int | None = None
        self._past_scans: deque[str] = deque(maxlen=KEPT_SCANS)

    def accept_frame(self, frame: DenseFrame, t_received_ns: int) -> bool:
        """Take a frame in and return True, unless it is no newer than one seen before or enough were shown."""
        with self._lock:
            if self._enough or not _can_be_shown(frame) or not self._is_newer(frame):
                self.refused += 1
                return False
            self._note_newest(frame, t_received_ns)
            self._box.put((frame, t_received_ns))
            self._waiting_complete = frame.complete
        if self._headless:
            self.shown(self._clock())
        return True

    def take(self) -> Picture | None:
        """Return the newest frame that has not been taken, as a picture; None if there is none or while frozen."""
        with self._lock:
            item = None if self.frozen else self._box.take()
            if item is None:
                return None
            self._taken, self._painted, self._waiting_complete = item, False, False
        return self._picture(*item)

    def redrawn(self) -> Picture | None:
        """Return the frame last taken as a picture by the levels and choices of now; None before the first."""
        return None if self._taken is None else self._picture(*self._taken)

    def painted(self, t_ns: int) -> bool:
        """Count the frame last taken as shown; False if it was counted already."""
        with self._lock:
            if self._painted or self._taken is None:
                return False
            self._painted = True
            self._counters.count_shown(self._taken[0], t_ns)
        self._tell_shown(t_ns)
        return True

    def shown(self, t_ns: int) -> bool:
        """Count the newest frame as shown without drawing it."""
        with self._lock:
            item = self._box.take()
            if item is None:
                return False
            self._taken, self._painted, self._waiting_complete = item, True, False
            self._counters.count_shown(item[0], t_ns)
        self._tell_shown(t_ns)
        return True

    def accept_report(self, report: StatusReport) -> None:
        """Keep the newest report of a service."""
        self.reports.accept(report)
        if report.source == MICROSCOPE and report.values.get("state") in GOING_ON:
            self._going_on_ns = self._clock()

    def accept_event(self, event: Event) -> None:
        """Keep an event; an alarm stays until it is cleared."""
        self.reports.accept_event(event)

    @property
    def microscope(self) -> dict[str, Any]:
        """Values of the microscope's last report; empty before the first."""
        return self.reports.values(MICROSCOPE)

    @property
    def reconstruction(self) -> dict[str, Any]:
        """Values of the reconstruction's last report; empty before the first."""
        return self.reports.values(RECONSTRUCTION)

    @property
    def frame(self) -> DenseFrame | None:
        """The frame last shown or about to be painted."""
        return None if self._taken is None else self._taken[0]

    @property
    def frames(self) -> int:
        """Frames shown."""
        return self._counters.shown

    @property
    def finished(self) -> bool:
        """As many frames were shown as were asked for."""
        return self._limit is not None and self._counters.shown >= self._limit

    @property
    def skipped(self) -> int:
        """Complete frames never shown because a newer one was there."""
        with self._lock:
            unpainted = self._taken is not None and not self._painted and self._taken[0].complete
            return self._counters.skipped(self._waiting_complete + unpainted)

    @property
    def dropped(self) -> int:
        """Blocks lost, as the reconstruction counts them."""
        return self._lost("dropped")

    @property
    def gaps(self) -> int:
        """Frames completed with a hole, as the reconstruction counts them."""
        return self._lost("gaps")

    @property
    def engine(self) -> str:
        """Names of the engines that made the frame last shown."""
        return self.frame.engine if self.frame is not None else str(self.reconstruction.get("engine") or "")

    def seconds_without_frame(self) -> float | None:
        """Return how long ago the last frame came in [s]; None before the first."""
        return None if self._arrived_ns is None else (self._clock() - self._arrived_ns) / 1e9

    def scan_is_over(self) -> bool:
        """Tell whether the microscope did scan, does not any more, and no frame comes either, for two seconds."""
        last_ns = max(self._arrived_ns or 0, self._going_on_ns or 0)
        silent_ns = self._clock() - last_ns
        return last_ns > 0 and silent_ns > OVER_AFTER_NS and self.microscope.get("state") in ("parked", "fault")

    def rates_per_s(self) -> tuple[float, float]:
        """Return (shown, acquired) frames per second over the last two seconds."""
        with self._lock:
            shown = self._counters.recent_fps(self._clock())
        return shown, self.reports.acquired_per_s

    def latency_ms(self) -> dict[str, float | None]:
        """Return p50, p90, p99 and max from the last sample acquired to the frame painted [ms]."""
        with self._lock:
            return self._counters.latency_ms

    def summary(self) -> dict[str, Any]:
        """Return the figures of the run under their stable names."""
        microscope, latency = self.microscope, self.latency_ms()
        names = ("pattern", "coverage", "coverage_nominal", "dwell_time_us", "dose_e_per_a2", "dose_visited_e_per_a2")
        return {
            "frames": self.frames,
            "acquired": microscope.get("acquired", 0),
            "skipped": self.skipped,
            "dropped": self.dropped,
            "gaps": self.gaps,
            **{name: microscope.get(name) for name in names},
            "engine": self.engine,
            "frames_by_engine": dict(self._counters.by_engine),
            "engine_failures": self.reconstruction.get("engine_failures", 0),
            "fps": round(self._counters.fps, 2),
            "latency_ms": latency,
            **{name: microscope.get(name) for name in ("state", "alarm", "late", "blocks_lost", "blocks_refused")},
        }

    @property
    def _enough(self) -> bool:
        return self.finished and self._painted

    def _tell_shown(self, t_ns: int) -> None:
        if self._on_shown is not None and self._taken is not None:
            self._on_shown(*self._taken, t_ns)

    def _is_newer(self, frame: DenseFrame) -> bool:
        newest = self._newest
        if newest is None or frame.scan_id != newest.scan_id:
            return frame.scan_id not in self._past_scans
        return _progress(frame) > _progress(newest)

    def _note_newest(self, frame: DenseFrame, t_received_ns: int) -> None:
        if self._newest is not None and self._newest.scan_id != frame.scan_id:
            self._past_scans.append(self._newest.scan_id)
        self._newest, self._arrived_ns = frame, t_received_ns
        self._counters.count_received(frame)

    def _picture(self, frame: DenseFrame, t_received_ns: int) -> Picture:
        channel = min(self.channel, len(frame.channels) - 1)
        image, measured = frame.image[channel], frame.measured[min(channel, len(frame.measured) - 1)]
        self.levels.follow(image)
        low, high = self.levels.low, self.levels.high
        if self.shows_uncertainty:
            uncertainty = frame.uncertainty[channel]
            completed = to_uint8(uncertainty, 0.0, max(percentile_levels(uncertainty)[1], 1e-6))
        else:
            completed = to_uint8(image, low, high)
        shown = measured_to_uint8(measured, frame.hits, low, high)
        name = frame.channels[channel]
        return Picture(frame, shown, completed, low, high, name, self.shows_uncertainty, t_received_ns)

    def _lost(self, name: str) -> int:
        frame, reported = self._newest, self.reconstruction.get(name)
        in_frame = 0 if frame is None else int(getattr(frame, name))
        return max(in_frame, reported) if isinstance(reported, int) else in_frame


def _can_be_shown(frame: DenseFrame) -> bool:
    return frame.image.size > 0 and frame.measured.size > 0


def _progress(frame: DenseFrame) -> tuple[int, bool, int]:
    return frame.frame_index, frame.complete, frame.samples_used
