"""Processes of `lowdose bench safety`: a service, its parent, its recorder, its lease holder, what keeps cores busy."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.messages import SampleBlock
from lowdose.acquisition.recorder import RecorderService
from lowdose.acquisition.recording import RecordingError, SessionWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from lowdose.acquisition.settings import NetworkSettings
    from lowdose.acquisition.wire import Message

WAIT_S = 20.0
RENEW_EVERY_S = 0.05
BUSY = "import os, numpy; p = os.getppid(); a = numpy.random.rand(512, 512)\nwhile os.getppid() == p: a @ a"
"""What an engine does to a core, until its parent is gone."""


def start_service(config: str) -> subprocess.Popen[bytes]:
    """Start a microscope service as a supervisor does."""
    command = [sys.executable, "-m", "lowdose.config.cli", "microscope", "--config", config, "--child"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)  # noqa: S603


def end_service(service: subprocess.Popen[bytes]) -> None:
    """Let go of a service, which ends it, and wait for that."""
    if service.stdin is not None:
        service.stdin.close()
    try:
        service.wait(WAIT_S)
    except subprocess.TimeoutExpired:
        service.kill()
        service.wait()


@contextmanager
def spawned(target: Callable[..., None], argument: Any) -> Iterator[tuple[BaseProcess, Connection]]:
    """Run a function in a process; yield it and what it sends. Killed at the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(argument, send), daemon=True)
    process.start()
    send.close()
    try:
        if not receive.poll(WAIT_S):
            raise RuntimeError(f"{target.__name__} did not begin")
        yield process, receive
    finally:
        process.kill()
        process.join()


def be_parent(config: str, send: Connection) -> None:
    """Start a microscope service and live until killed."""
    service = start_service(config)
    send.send(service.pid)
    signal.pause()


def hold_lease(endpoint: str, send: Connection) -> None:
    """Renew the lease until killed."""
    parent = os.getppid()
    with MicroscopeClient(endpoint, "holder", timeout_s=1.0) as client:
        client.renew_lease()
        send.send("renewed")
        while os.getppid() == parent:
            time.sleep(RENEW_EVERY_S)
            client.renew_lease()


@dataclass(frozen=True)
class RecorderOrder:
    """What a recorder process does: to which file, of which service, on how large a disk, how slowly.

    Parameters
    ----------
    path : Path
        Session file.
    network : NetworkSettings
        Of the microscope service.
    disk_bytes : int or None
        The file can grow no further.
    pause_s : float
        Waited before each block is written [s].
    """

    path: Path
    network: NetworkSettings
    disk_bytes: int | None = None
    pause_s: float = 0.0


class FaultyWriter(SessionWriter):
    """Writes slowly, and tells when that begins and when the disk is full [ns]."""

    def __init__(self, order: RecorderOrder, send: Connection) -> None:
        super().__init__(order.path)
        self._pause_s, self._send = order.pause_s, send
        self._told = False

    def write(self, message: Message) -> int:
        """Write a message."""
        if isinstance(message, SampleBlock) and self._pause_s:
            self._tell()
            time.sleep(self._pause_s)
        with self._telling():
            return super().write(message)

    def tick(self, now_ns: int) -> None:
        """Write a chunk that is old enough."""
        with self._telling():
            super().tick(now_ns)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except RecordingError:
            self._tell()
            raise

    def _tell(self) -> None:
        if hasattr(self, "_send") and not self._told:
            self._told = True
            self._send.send(time.monotonic_ns())


def be_recorder(order: RecorderOrder, send: Connection) -> None:
    """Record until the end."""
    if order.disk_bytes is not None:
        import resource  # POSIX, as this bench

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order.disk_bytes, order.disk_bytes))
    writer = FaultyWriter(order, send)
    send.send("begun")
    with RecorderService(order.path, order.network, writer=writer) as service:
        while not service.wait(WAIT_S):
            pass


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core busy with matrix products."""
    one_thread = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BUSY]
    working = [subprocess.Popen(command, env=one_thread) for _ in range(os.cpu_count() or 1)]  # noqa: S603
    try:
        yield
    finally:
        for process in working:
            process.kill()
            process.wait()
