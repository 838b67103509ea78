"""Processes of `lowdose bench safety`: a service, its parent, who holds its lease, and what keeps the cores busy."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lowdose.acquisition.client import MicroscopeClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

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
def spawned(target: Callable[..., None], argument: str) -> Iterator[tuple[SpawnProcess, Connection]]:
    """Run a function in a process; yield it and what it sends. Killed at the end."""
    context = multiprocessing.get_context("spawn")
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
