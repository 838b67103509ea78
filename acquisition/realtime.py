"""Scheduling hygiene for a service process: priority and garbage collection (imports nothing)."""

from __future__ import annotations

import contextlib
import gc
import logging
import sys
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)


SWITCH_INTERVAL_S = 0.0005
"""Longest time a thread keeps another waiting for the interpreter; Python's own is ten times that."""


def prepare_process(*, raised: bool = True) -> None:
    """Make a service process quick to react: threads that let each other in, higher priority where allowed."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if raised:
        raise_priority()


def raise_priority() -> bool:
    """Raise this process's scheduling priority where the system allows it; tell whether it did."""
    process = psutil.Process()
    try:
        process.nice(-10 if psutil.POSIX else getattr(psutil, "HIGH_PRIORITY_CLASS"))  # noqa: B009 Windows only
    except (psutil.AccessDenied, PermissionError, OSError):
        logger.debug("no right to raise the scheduling priority")
        return False
    return True


@contextlib.contextmanager
def frozen_garbage_collector() -> Iterator[None]:
    """Keep the garbage collector from pausing a scan: what lives now is never looked at, the rest by `collect`.

    Call `collect` before, while the beam is still off: it can take a tenth of a second in a large process.
    """
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def collect() -> None:
    """Collect garbage; well under a millisecond when all that is old is frozen."""
    gc.collect()
