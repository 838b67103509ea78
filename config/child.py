"""What a service process does besides its service: ends on SIGTERM, on Ctrl-C and when its parent is gone."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Protocol

from lowdose.acquisition.realtime import prepare_process

if TYPE_CHECKING:
    from types import FrameType

logger = logging.getLogger(__name__)

LOOK_S = 0.005
"""Between two looks at whether a signal came: part of the time until the beam is off."""


class Service(Protocol):
    """What the microscope and the reconstruction service have in common."""

    def start(self) -> None:
        """Begin."""
        ...

    def close(self) -> None:
        """End; twice is fine."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; tell whether it has come."""
        ...

    def maybe_raise(self) -> None:
        """Raise what ended it, if anything did."""
        ...


def stop_event(*, child: bool) -> threading.Event:
    """Return an event that is set by SIGTERM, Ctrl-C, a closed terminal or, for a child, the end of its standard input.

    A supervised child leaves Ctrl-C, which the terminal sends to all, to its supervisor. The supervisor holds the other
    end of its standard input: that end closes however the supervisor dies.
    """
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    hang_up = getattr(signal, "SIGHUP", None)  # the terminal was closed; nohup has it ignored; not on Windows
    if hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN:
        signal.signal(hang_up, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN if child else on_signal)
    if child:
        threading.Thread(target=_wait_for_parent, args=(stop,), name="parent", daemon=True).start()
    return stop


def _wait_for_parent(stop: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop.set()


def run_service(service: Service, *, child: bool, may_be_late: bool = False) -> None:
    """Run a service until it fails or is told to end.

    One that may be late does not raise its priority: all cores in use for pictures must not hold up the beam's guard.
    """
    stop = stop_event(child=child)
    prepare_process(raised=not may_be_late)
    try:
        service.start()
        while not stop.is_set() and not service.wait(LOOK_S):
            pass
    finally:
        service.close()
    service.maybe_raise()
