"""Worker: threads that end together, and the error that ended them; Service: what runs them (imports nothing)."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

logger = logging.getLogger(__name__)

JOIN_S = 5.0


class Worker:
    """Runs loops in threads until one fails or `stopping` is set.

    Parameters
    ----------
    name : str
        Of the service, for the log.
    on_failure : callable or None
        Called first of all with the error that ended a loop, in its thread.
    explained : type of exceptions
        Those that say all there is to say: no traceback goes to the log.
    """

    def __init__(
        self,
        name: str,
        on_failure: Callable[[BaseException], None] | None = None,
        *,
        explained: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> None:
        self._name, self._on_failure, self._explained = name, on_failure, explained
        self._threads: list[threading.Thread] = []
        self.error: BaseException | None = None
        self.stopping = threading.Event()

    def start(self, **loops: Callable[[], None]) -> None:
        """Run each loop in a thread of its name; all of them are to end once `stopping` is set."""
        for name, loop in loops.items():
            thread = threading.Thread(target=self.guarded, args=(loop,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def guarded(self, loop: Callable[[], None]) -> None:
        """Run a loop in this thread; what it raises is kept, and ends the others."""
        try:
            loop()
        except BaseException as error:
            if self._on_failure is not None:
                self._on_failure(error)
            self.error = error
            self.stopping.set()
            if not isinstance(error, self._explained):
                logger.exception("the %s failed", self._name)

    def join(self, timeout_s: float = JOIN_S) -> bool:
        """Wait for the end of every thread, so long for each; tell whether all have ended."""
        for thread in self._threads:
            thread.join(timeout_s)
        return not any(thread.is_alive() for thread in self._threads)

    def wait(self, timeout_s: float) -> bool:
        """Wait until a loop has failed or all were told to end; tell whether it is over."""
        return self.stopping.wait(timeout_s)

    def maybe_raise(self) -> None:
        """Raise what ended a loop, if anything did."""
        if self.error is not None:
            raise self.error


class Service(ABC):
    """What runs a worker's loops from `start` to `close`; a context manager."""

    _worker: Worker

    @abstractmethod
    def start(self) -> None:
        """Begin."""

    @abstractmethod
    def close(self) -> None:
        """End all threads and close everything; twice is fine."""

    def wait(self, timeout_s: float) -> bool:
        """Wait until the work is done, has failed or was told to end; tell whether it is over."""
        return self._worker.wait(timeout_s)

    def maybe_raise(self) -> None:
        """Raise what ended the work, if that was no proper end."""
        self._worker.maybe_raise()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
