"""Hand-overs between threads (imports nothing)."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestOnly(Generic[T]):
    """Holds one item: a newer one takes the place of one nobody took, and that is counted.

    Examples
    --------
    >>> box = LatestOnly()
    >>> box.put("old"); box.put("new")
    >>> box.take(), box.take(), box.overwritten
    ('new', None, 1)
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._item: T | None = None
        self.overwritten = 0

    def put(self, item: T) -> None:
        """Leave an item, never waiting."""
        with self._condition:
            self.overwritten += self._item is not None
            self._item = item
            self._condition.notify()

    def take(self, timeout_s: float = 0.0) -> T | None:
        """Return the newest item and empty the box; None if none came within `timeout_s`."""
        with self._condition:
            if self._item is None and timeout_s > 0:
                self._condition.wait(timeout_s)
            item, self._item = self._item, None
            return item
