"""What the tests of command line and processes share: a command in this process, commands as processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from lowdose.config import cli, launch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PATIENT = ("--set", "safety.block_deadline_ms=2000")
"""What these tests are about is not how busy the machine is."""
LIGHT = ("--set", "stages=[{complete: linear}]")
"""Nor is it the default engine, which takes both cores while it is compiled."""
SMALL = ("--set", "grid.rows=128", "--set", "grid.cols=128", *PATIENT, *LIGHT)
DEADLINE_S = 30.0


@pytest.fixture
def small() -> tuple[str, ...]:
    """Options of a small grid."""
    return SMALL


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working folder."""
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    return working


@pytest.fixture
def command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    """Return a function that runs `lowdose …` in this process and returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["lowdose", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(
    command: Callable[..., tuple[Any, str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Return a function that runs a command which must be refused as wrong input, and returns its complaint.

    Refused means: code 2, a complaint on stderr that is no traceback, no process started, no file written.
    """

    def start(child: launch.Child) -> None:
        raise AssertionError(f"{child.name} was started for input that is wrong")

    def run(*arguments: object) -> str:
        monkeypatch.setattr(launch.Child, "start", start)
        before = sorted(folder.rglob("*"))
        code, _, complaint = command(*arguments)
        assert code == 2, complaint
        assert "Traceback" not in complaint
        assert complaint.strip()
        assert sorted(folder.rglob("*")) == before
        return complaint

    return run


@dataclass
class Started:
    """A `lowdose` process of its own, with what it wrote."""

    process: subprocess.Popen[str]
    seen: dict[int, psutil.Process] = field(default_factory=dict)

    def child(self, name: str) -> psutil.Process:
        """Return the service process whose subcommand is `name`, once there is one."""
        return wait_for(lambda: self.children().get(name), f"a process named {name}")

    def children(self) -> dict[str, psutil.Process]:
        """Return the service processes that live, by subcommand."""
        found = {}
        for process in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error, ValueError):  # not yet itself, or gone
                line = process.cmdline()
                found[line[line.index("lowdose.config.cli") + 1]] = process
                self.seen[process.pid] = process
        return found

    def left(self) -> list[psutil.Process]:
        """Return the service processes that still run."""
        return [p for p in self.seen.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def signal(self, number: int) -> float:
        """Send a signal to this process only and return when."""
        self.process.send_signal(number)
        return time.monotonic()

    def end(self, timeout_s: float = DEADLINE_S) -> tuple[int, str, str]:
        """Wait for its end and return code, stdout and stderr."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.01)  # between two looks at the condition
    return found


@pytest.fixture
def until() -> Callable[..., Any]:
    """Return a function that waits for a condition, with a deadline."""
    return wait_for


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Started]]:
    """Return a function that starts `lowdose …` as a process; what is left at the end of the test is killed."""
    running: list[Started] = []

    def run(*arguments: object, environment: Mapping[str, str | None] | None = None) -> Started:
        changed = {**os.environ, **(environment or {})}
        process = subprocess.Popen(
            [Path(sys.executable).with_name("lowdose"), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={name: value for name, value in changed.items() if value is not None},
            start_new_session=True,
        )
        running.append(Started(process))
        return running[-1]

    yield run
    for started in running:
        with contextlib.suppress(psutil.Error):
            started.children()
        for process in [started.process, *started.left()]:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                process.send_signal(signal.SIGKILL)
        said = started.process.communicate(timeout=DEADLINE_S)
        print(*filter(None, said), file=sys.stderr)  # shown if the test has failed
