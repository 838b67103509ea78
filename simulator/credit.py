"""Credit: how far the reconstruction has come, so that a replay without a pace of its own never runs ahead of it."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lowdose.acquisition.status import StatusReport

logger = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""Without any change that long, a frame was lost on the way: longer than an engine takes to be compiled."""
LOOK_S = 0.05
IDLE, IDLE_WITHOUT_IT = 2, 10
"""Reports of having nothing to do, one after another, until it is believed; and if the frame waited for never came."""


class Credit:
    """Keeps what the reconstruction last said of itself and lets others wait for it; for any thread.

    Parameters
    ----------
    stopping : threading.Event
        Ends every wait.
    patience_s : float
        How long to wait while nothing changes [s].
    """

    def __init__(self, stopping: threading.Event, *, patience_s: float = PATIENCE_S) -> None:
        self._stopping, self._patience_s = stopping, patience_s
        self._changed = threading.Condition()
        self._values: Mapping[str, Any] = {}
        self._restarts = self._idle = 0
        self._idle_since_ns = 0

    def saw(self, report: StatusReport) -> None:
        """Take note of a report of the reconstruction; a smaller number of frames is a new process."""
        with self._changed:
            self._restarts += _count(report.values) < _count(self._values)
            self._values = report.values
            idle = report.t_ns > self._idle_since_ns and report.values.get("busy") is False
            self._idle = self._idle + 1 if idle else 0
            self._changed.notify_all()

    @property
    def has_viewer(self) -> bool:
        """Somebody looks at the frames."""
        return self._values.get("has_listener") is True

    def wait_prepared(self, scan_id: str) -> None:
        """Wait until the frames of a scan can be made as well as all later ones."""
        self._wait(lambda: self._values.get("prepared") == scan_id)

    def wait_taken(self, scan_id: str, frame_index: int) -> None:
        """Wait until a frame, or one after it, is being completed: then there is room for the next."""
        self._wait(lambda: _is_after(self._values.get("taken"), scan_id, frame_index))

    def wait_done(self, frame: tuple[str, int] | None) -> None:
        """Wait until a frame was taken, and the reconstruction says from now on that it has nothing more to do.

        A frame that is lost on the way is not waited for longer than it says so many times; None = there is none.
        """
        with self._changed:
            self._idle, self._idle_since_ns = 0, time.monotonic_ns()

        def done() -> bool:
            taken = frame is None or _is_after(self._values.get("taken"), *frame)
            return self._idle >= (IDLE if taken else IDLE_WITHOUT_IT)

        self._wait(done)

    def _wait(self, done: Callable[[], bool]) -> None:
        """Wait for something, but not for a reconstruction that has been started again: it knows nothing of it."""
        with self._changed:
            restarts, seen, give_up_s = self._restarts, self._values, time.monotonic() + self._patience_s
            while not (done() or self._restarts != restarts or self._stopping.is_set()):
                self._changed.wait(LOOK_S)
                if self._values != seen:
                    seen, give_up_s = self._values, time.monotonic() + self._patience_s
                elif time.monotonic() > give_up_s:
                    logger.warning("the reconstruction did not take a frame for %g s: going on", self._patience_s)
                    return


def _count(values: Mapping[str, Any]) -> int:
    frames = values.get("frames", 0)
    return frames if isinstance(frames, int) else 0


def _is_after(taken: object, scan_id: str, frame_index: int) -> bool:
    match taken:
        case (str(scan), int(index)):
            return scan == scan_id and index >= frame_index
        case _:
            return False
