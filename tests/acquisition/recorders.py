"""Recorder processes that can be killed, forked from one that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def record(path: str, network: dict[str, str], limit_bytes: int | None) -> None:
    """Record until the end; with a limit, the file can grow no further, as on a disk that is full."""
    from lowdose.acquisition.recorder import RecorderService
    from lowdose.acquisition.settings import NetworkSettings

    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 what it tells is in the events
    if limit_bytes is not None:
        import resource  # POSIX

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    service = RecorderService(Path(path), NetworkSettings(**network), name="other process")
    service.start()
    while not service.wait(1.0):
        pass
    service.close()
    sys.exit(0 if service._worker.error is None else 1)


@contextmanager
def recorder_process(path: Path, network: Any, *, limit_bytes: int | None = None) -> Iterator[Any]:
    """Run a recorder in a process of its own, killed at the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lowdose.acquisition.recorder"])
    process = context.Process(target=record, args=(str(path), network.model_dump(), limit_bytes), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
