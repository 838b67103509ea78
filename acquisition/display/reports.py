"""Reports: what the services last said about themselves, and the alarms not yet cleared (no Qt)."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from lowdose.acquisition.display.counters import RATE_WINDOW_NS, rate_per_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowdose.acquisition.status import Event, StatusReport

MICROSCOPE, RECONSTRUCTION = "microscope", "reconstruction"
KEPT_EVENTS = 200
GOING_ON = ("scanning", "replay")
"""States of a microscope, or of the recording of one, in which frames come."""


class Reports:
    """Keeps the newest report of each service and the events; from any thread.

    Parameters
    ----------
    clock : callable
        Monotonic time [ns].
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._newest: dict[str, tuple[StatusReport, int]] = {}
        self._acquired: deque[tuple[int, int]] = deque(maxlen=1000)
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._alarm = ""

    def accept(self, report: StatusReport) -> None:
        """Keep the newest report of a service."""
        with self._lock:
            self._newest[report.source] = (report, self._clock())
            acquired = report.values.get("acquired")
            if report.source == MICROSCOPE and isinstance(acquired, int):
                self._note_acquired(report.t_ns, acquired)

    def accept_event(self, event: Event) -> None:
        """Keep an event; an alarm stays until `clear_alarm`."""
        with self._lock:
            self._events.append(event)
            if event.severity == "alarm":
                self._alarm = event.text

    def take_events(self) -> list[Event]:
        """Return the events since the last call, oldest first."""
        with self._lock:
            fresh = list(self._events)
            self._events.clear()
        return fresh

    def clear_alarm(self) -> None:
        """Forget the alarms of past events; one the microscope still reports stays."""
        with self._lock:
            self._alarm = ""

    def values(self, source: str) -> dict[str, Any]:
        """Return the values of a service's last report; empty before the first."""
        with self._lock:
            entry = self._newest.get(source)
        return {} if entry is None else entry[0].values

    def age_s(self, source: str) -> float | None:
        """Return how long ago a service last reported [s]; None before its first report."""
        with self._lock:
            entry = self._newest.get(source)
        return None if entry is None else (self._clock() - entry[1]) / 1e9

    @property
    def alarm(self) -> str:
        """The alarm not yet cleared, "" if there is none."""
        return str(self.values(MICROSCOPE).get("alarm") or "") or self._alarm

    @property
    def seen(self) -> tuple[object, ...]:
        """Changes whenever something came in that the operator must see at once."""
        return self.values(MICROSCOPE).get("state"), self.alarm, len(self._events)

    @property
    def acquired_per_s(self) -> float:
        """Frames acquired per second over the last two seconds of the microscope's own clock."""
        with self._lock:
            newest = self._acquired[-1][0] if self._acquired else 0
            return rate_per_s([entry for entry in self._acquired if newest - entry[0] <= RATE_WINDOW_NS])

    def _note_acquired(self, t_ns: int, acquired: int) -> None:
        if self._acquired and (t_ns < self._acquired[-1][0] or acquired < self._acquired[-1][1]):
            self._acquired.clear()  # a restarted microscope counts anew
        self._acquired.append((t_ns, acquired))
