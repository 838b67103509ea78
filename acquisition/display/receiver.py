"""Receiver: a thread that hands frames, reports and events to the view model (imports sockets)."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lowdose.acquisition.frames import DenseFrame
from lowdose.acquisition.sockets import FRAMES_HWM, STATUS_HWM, Subscriber, wait_any
from lowdose.acquisition.status import Event, StatusReport

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from lowdose.acquisition.display.view_model import ViewModel

logger = logging.getLogger(__name__)

WAIT_S = 0.1
"""How soon a stop is seen [s]; frames wake the thread at once."""
STATUS_BATCH = 100
"""Reports read between two looks at the frames, so that a flood of them cannot hold the picture up."""


class Receiver:
    """Feeds a view model from the frames and samples endpoints, draining to the newest frame.

    Parameters
    ----------
    frames_endpoint, samples_endpoint : str
        Where the reconstruction and the microscope publish.
    model : ViewModel
        Fed from the receiver's thread.
    wake : callable
        Called from the receiver's thread after something came in.
    """

    def __init__(
        self, frames_endpoint: str, samples_endpoint: str, *, model: ViewModel, wake: Callable[[], None]
    ) -> None:
        self._endpoints = (frames_endpoint, samples_endpoint)
        self._model, self._wake = model, wake
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="display receiver", daemon=True)
        self.error: BaseException | None = None
        self.garbage = 0

    def start(self) -> None:
        """Start receiving."""
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop and wait for the thread; raise what ended it. Twice is fine."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self.maybe_raise()

    def maybe_raise(self) -> None:
        """Raise the error that ended the thread, if one did; once."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        try:
            self._receive()
        except Exception as error:
            logger.exception("the receiver has ended")
            self.error = error

    def _receive(self) -> None:
        frames_endpoint, samples_endpoint = self._endpoints
        with ExitStack() as stack:
            frames = stack.enter_context(Subscriber(frames_endpoint, ["frames"], hwm=FRAMES_HWM))
            status = [
                stack.enter_context(Subscriber(endpoint, ["status"], hwm=STATUS_HWM))
                for endpoint in (samples_endpoint, frames_endpoint)
            ]
            while not self._stop.is_set():
                wait_any([frames, *status], WAIT_S)
                came = self._drain_frames(frames)
                came += sum(self._drain_status(subscriber) for subscriber in status)
                self.garbage = sum(subscriber.garbage for subscriber in (frames, *status))
                if came:
                    self._wake()

    def _drain_frames(self, subscriber: Subscriber) -> int:
        came = 0
        while (message := subscriber.receive()) is not None and came < STATUS_BATCH:
            t_received_ns = time.monotonic_ns()
            if isinstance(message, DenseFrame):
                came += self._model.accept_frame(message, t_received_ns)
        return came

    def _drain_status(self, subscriber: Subscriber) -> int:
        for came in range(STATUS_BATCH):
            message = subscriber.receive()
            if message is None:
                return came
            if isinstance(message, StatusReport):
                self._model.accept_report(message)
            elif isinstance(message, Event):
                self._model.accept_event(message)
        return STATUS_BATCH

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
