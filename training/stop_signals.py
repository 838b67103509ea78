"""StopSignals: SIGTERM and SIGINT as a wish that a loop can look at."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import FrameType


class StopSignals:
    """While entered, the first SIGTERM or SIGINT only sets `requested`; a second one does what it always does."""

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _request(self, number: int, _: FrameType | None) -> None:
        self.requested = signal.Signals(number)
        # processes that make examples may die of the same signal: torch must not raise that amid a step
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for caught, handler in self._before.items():
            signal.signal(caught, handler)
