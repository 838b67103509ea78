"""Processes and supervision: `live` as one parent and a child for each service."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.settings import NetworkSettings
from lowdose.acquisition.sockets import ControlRefusedError, EndpointError, free_endpoint, require_loopback
from lowdose.config.loading import dump_settings

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Self

    from lowdose.config.schema import LowdoseSettings

logger = logging.getLogger(__name__)

POLL_S = 0.05
RENEW_EVERY_S = 0.25
RECORDING_NAME = "lowdose-%Y%m%d-%H%M%S.mcap"
"""Of a recording that the operator begins from the window, in the folder `live` was started in."""
READY_WITHIN_S = 30.0
END_WITHIN_S = 1.5
LEAVE_WITHIN_S = 10.0
"""What a display gets, once a replay is over, to write its picture."""
RESTARTS_ALLOWED = 3
RESTARTS_WITHIN_S = 60.0
ENDED_BY_USER, FAILED, WRONG_INPUT = 0, 1, 2
CUT_SHORT = 3
"""Of a display whose frames did not all come, because the beam was made safe, or while an alarm is latched."""


@dataclass
class Child:
    """One service process, started as its own subcommand."""

    name: str
    arguments: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started_s: deque[float] = field(default_factory=deque)

    def start(self) -> None:
        """Start it; its standard input is what tells it that this process lives."""
        command = [sys.executable, "-m", "lowdose.config.cli", *self.arguments, "--child"]
        # it imports from where this process does: `-m` alone would prefer a queue.py in the working folder
        imports = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            env={**os.environ, **imports, **self.environment},
            start_new_session=True,  # Ctrl-C, which a terminal sends to all, is for the supervisor only
        )
        self.started_s.append(time.monotonic())
        logger.info("%s is process %d", self.name, self.process.pid)

    def ended(self) -> int | None:
        """Return its exit code, None while it runs."""
        return None if self.process is None else self.process.poll()

    def may_restart(self) -> bool:
        """Tell whether it was started at most 3 times again within the last minute."""
        while self.started_s and time.monotonic() - self.started_s[0] > RESTARTS_WITHIN_S:
            self.started_s.popleft()
        return len(self.started_s) <= RESTARTS_ALLOWED

    def ask_to_end(self) -> None:
        """Close its standard input, which it takes as the word to end."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    def end(self, deadline_s: float) -> None:
        """Wait for its end until the deadline, then kill it."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("%s did not end in time: killed", self.name)
            self.process.kill()
            self.process.wait()


class Supervisor:
    """Starts the services, begins the scan, keeps its lease, and ends everything when one of the reasons comes.

    The microscope service dead, or a recording lost: everything ends with code 1. Reconstruction or display dead:
    logged, counted, started again, at most 3 times in 60 s, while the scan goes on. The display ended by its operator,
    or a signal: code 0. A recorder is started when the operator asks for a recording, and ends with it.

    Parameters
    ----------
    settings : LowdoseSettings
        Resolved, endpoints included.
    display_arguments : sequence of str
        Of the display subcommand, after its --config.
    display_environment : dict
        Added to its environment.
    record : Path or None
        Session file; the scan begins once everything is recorded there.
    replay : sequence of str
        Subcommand that takes the microscope's place and may end by itself; empty = the microscope service.
    """

    def __init__(
        self,
        settings: LowdoseSettings,
        display_arguments: Sequence[str],
        *,
        display_environment: dict[str, str] | None = None,
        record: Path | None = None,
        replay: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._folder = tempfile.TemporaryDirectory(prefix="lowdose-")
        path = Path(self._folder.name) / "resolved.yaml"
        path.write_text(dump_settings(settings), encoding="utf-8")
        config = ("--config", str(path))
        self.microscope = Child("replay" if replay else "microscope", (*(replay or ("microscope",)), *config))
        self.reconstruction = Child("reconstruction", ("reconstruct", *config))
        self.display = Child("display", ("display", *config, *display_arguments), display_environment or {})
        self._config, self._folder_of_recordings = config, Path.cwd()
        self.recorder = None if record is None else self._make_recorder(record)
        self._recording = record is not None  # one that must not be lost; what is only asked for may fail to begin
        self._lost_recording = ""
        self.restarts = 0
        self._client = MicroscopeClient(settings.network.control, "supervisor", timeout_s=0.5)
        self._begun = False
        self._renew_at_s = 0.0

    @property
    def children(self) -> tuple[Child, ...]:
        """All services."""
        recorder = () if self.recorder is None else (self.recorder,)
        return self.microscope, *recorder, self.reconstruction, self.display

    def _make_recorder(self, path: Path) -> Child:
        return Child("recorder", ("record", str(self._folder_of_recordings / path), *self._config))

    def run(self, stop: threading.Event) -> int:
        """Run until the display ends, a service cannot go on, or `stop` is set; return the exit code."""
        for child in self.children:
            child.start()
        give_up_s = time.monotonic() + READY_WITHIN_S
        while not stop.wait(POLL_S):
            code = self._check_children()
            if code is not None:
                return code
            if not self._begun and time.monotonic() > give_up_s:
                logger.error("the services did not get ready within %g s", READY_WITHIN_S)
                return FAILED
            if time.monotonic() >= self._renew_at_s:
                self._renew_at_s = time.monotonic() + RENEW_EVERY_S * self._begun
                self._renew_or_begin()
        return ENDED_BY_USER

    def _check_children(self) -> int | None:
        code = self.microscope.ended()
        if code is not None and self.microscope.name == "replay":
            return self._after_replay(code)
        if code is not None:
            logger.error("the microscope service ended with code %d: the beam is off, everything ends", code)
            return WRONG_INPUT if code == WRONG_INPUT else FAILED
        if self._recording_is_lost():
            logger.error("a recording was lost (%s): the beam is off, everything ends", self._lost_recording)
            return FAILED
        if self.display.ended() in (ENDED_BY_USER, CUT_SHORT):
            return ENDED_BY_USER if self.display.ended() == ENDED_BY_USER else FAILED
        for child in (self.reconstruction, self.display):
            code = child.ended()
            if code is not None and not self._restarted(child, code):
                return WRONG_INPUT if code == WRONG_INPUT else FAILED
        return None

    def _after_replay(self, code: int) -> int:
        """Let the display leave behind what was asked for, now that the recording is over; return the exit code."""
        if code != ENDED_BY_USER:
            logger.error("the replay ended with code %d: everything ends", code)
            return WRONG_INPUT if code == WRONG_INPUT else FAILED
        self.display.ask_to_end()
        self.display.end(time.monotonic() + LEAVE_WITHIN_S)
        return ENDED_BY_USER if self.display.ended() == ENDED_BY_USER else FAILED

    def _recording_is_lost(self) -> bool:
        """Tell whether a recording has failed; a recorder that has ended as it should, or never began, is let go."""
        code = None if self.recorder is None else self.recorder.ended()
        if code is None:
            return bool(self._lost_recording)
        if self._recording and (code != ENDED_BY_USER or not self._begun):
            self._lost_recording = self._lost_recording or f"the recorder ended with code {code}"
            self._blank()
            return True
        if code != ENDED_BY_USER:
            logger.error("the recorder ended with code %d before anything was recorded", code)
            with suppress(TimeoutError, ControlRefusedError):
                self._client.end_recording()  # nobody is to begin it again
        self.recorder, self._recording = None, False
        return False

    def _restarted(self, child: Child, code: int) -> bool:
        if code == WRONG_INPUT or not child.may_restart():
            logger.error("the %s ended with code %d: not started again", child.name, code)
            return False
        self.restarts += 1
        logger.warning("the %s died with code %d: started again, the scan goes on", child.name, code)
        child.start()
        return True

    def _renew_or_begin(self) -> None:
        """Renew the lease; begin the scan once somebody listens to its samples."""
        try:
            if self._begun:
                self._look_after_recording(self._client.renew_lease())
            elif self._all_there(self._client.status()):
                self._client.renew_lease()
                self._client.start()
                self._begun = True
        except TimeoutError:
            logger.debug("the microscope service does not answer")
        except ControlRefusedError as refusal:
            logger.warning("the microscope service refused: %s", refusal)
            self._begun = True  # the operator decides what to do about it

    def _all_there(self, status: dict[str, Any]) -> bool:
        """Tell whether somebody listens, and records, if that was asked for."""
        return bool(status["has_listener"]) and (self.recorder is None or bool(status["recorder"]))

    def _look_after_recording(self, told: dict[str, Any]) -> None:
        """Start a recorder when the operator wants one, and take note of what became of it."""
        if told["record_wanted"] and self.recorder is None:
            self.recorder = self._make_recorder(Path(time.strftime(RECORDING_NAME)))
            self.recorder.start()
        if self.recorder is not None and told["recorder"]:
            self._recording = True
        elif self._recording:
            self._lost_recording = str(told["record_trouble"])

    def close(self) -> None:
        """End everything within 2 s, the beam first; twice is fine."""
        self._blank()
        for child in self.children:
            if child is not self.recorder:
                child.ask_to_end()
        deadline_s = time.monotonic() + END_WITHIN_S
        for child in self.children:  # the microscope first: what it measured to the end goes to the recorder, too
            child.ask_to_end()
            child.end(deadline_s)
        self._client.close()
        self._folder.cleanup()

    def _blank(self) -> None:
        if self.microscope.process is None or self.microscope.ended() is not None:
            return
        try:
            self._client.blank()
        except (TimeoutError, ControlRefusedError):
            logger.warning("the microscope service did not confirm the blank; it blanks as it ends")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def with_free_ports(settings: LowdoseSettings, named: Callable[[str], bool]) -> LowdoseSettings:
    """Return settings whose endpoints the user did not name, or named with port 0, are free ones.

    Raises
    ------
    EndpointError
        If a named endpoint cannot be bound, before anything is started.
    """
    endpoints: dict[str, str] = {name: endpoint for name, endpoint in settings.network if named(name)}
    kept = {name: endpoint for name, endpoint in endpoints.items() if not endpoint.endswith(":0")}
    with ExitStack() as bound:
        for name, endpoint in endpoints.items():
            bound.enter_context(_bound(f"network.{name}", endpoint))
    network = {name: kept.get(name) or free_endpoint() for name in NetworkSettings.model_fields}
    return settings.model_copy(update={"network": NetworkSettings(**network)})


def _bound(key: str, endpoint: str) -> AbstractContextManager[object]:
    """Bind an endpoint for a moment; another one that is equal cannot be bound meanwhile."""
    require_loopback(endpoint)
    if endpoint.startswith("inproc://"):
        raise EndpointError(f"{key}: {endpoint} joins threads of one process, live needs tcp:// or ipc://")
    if endpoint.startswith("ipc://"):
        return nullcontext()
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), int(port)), family=family)
    except OSError as error:
        remedy = "end the program that uses it, or set another port in the configuration"
        raise EndpointError(f"{key}: {endpoint} cannot be bound, {error.strerror}: {remedy}") from None
