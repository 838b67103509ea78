"""Operator: carries out the operator's commands in threads of its own; blanking waits for nothing (imports client)."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.sockets import ControlRefusedError
from lowdose.acquisition.status import StatusReport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

logger = logging.getLogger(__name__)

CONTROL_RENEWAL_S = 1.0
LEASE_RENEWAL_S = 0.25
BLANK_TRIES = 5
IDLE_S = 0.1
ANSWER_S = 1.0


class Commands(Protocol):
    """What a window or a headless run asks of the microscope; every call returns at once."""

    @property
    def read_only(self) -> str:
        """Why this display may only look, "" if it may command."""
        ...

    def configure(self, *, pattern: Mapping[str, Any] | None = None, dwell_time_us: float | None = None) -> None:
        """Change pattern or dwell time."""
        ...

    def start(self) -> None:
        """Start scanning."""
        ...

    def stop(self) -> None:
        """Stop scanning."""
        ...

    def blank(self) -> None:
        """Blank the beam before everything else."""
        ...

    def new_area(self) -> None:
        """Sum the dose from zero."""
        ...

    def begin_recording(self) -> None:
        """Ask for a recording."""
        ...

    def end_recording(self) -> None:
        """End the recording."""
        ...

    def mark(self) -> None:
        """Mark this moment in the recording."""
        ...

    def clear_alarm(self) -> None:
        """Clear a latched alarm."""
        ...


class Operator:
    """One thread with a queue for commands, one for blanking, one that renews the lease.

    Parameters
    ----------
    endpoint, name : str
        Control endpoint; who asks, as shown to people.
    report : callable
        Called with a text from the operator's threads: what was done, or why not.
    on_status : callable or None
        Called with the microscope's state, asked for at the beginning and at the end.
    hold_lease : bool
        Renew the lease of a scan started here; without it somebody else has to.
    """

    def __init__(
        self,
        endpoint: str,
        name: str,
        *,
        report: Callable[[str], None],
        on_status: Callable[[StatusReport], None] | None = None,
        hold_lease: bool = False,
    ) -> None:
        self.read_only = ""
        self.error: Exception | None = None
        self._closed = False
        self._endpoint, self._name, self._report, self._on_status = endpoint, name, report, on_status
        self._commands: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self._stop, self._blank_asked, self._scanning = threading.Event(), threading.Event(), threading.Event()
        self._last_trouble = ""
        loops = [self._command_loop, self._blank_loop] + [self._lease_loop] * hold_lease
        self._threads = [threading.Thread(target=self._guarded, args=(loop,), daemon=True) for loop in loops]

    def configure(self, *, pattern: Mapping[str, Any] | None = None, dwell_time_us: float | None = None) -> None:
        """Change pattern or dwell time at the next frame edge."""
        self._commands.put(("configure", {"pattern": pattern, "dwell_time_us": dwell_time_us}))

    def start(self) -> None:
        """Start scanning."""
        self._commands.put(("start", {}))

    def stop(self) -> None:
        """Stop scanning."""
        self._commands.put(("stop", {}))

    def new_area(self) -> None:
        """Sum the dose from zero."""
        self._commands.put(("new_area", {}))

    def begin_recording(self) -> None:
        """Ask for a recording."""
        self._commands.put(("begin_recording", {}))

    def end_recording(self) -> None:
        """End the recording."""
        self._commands.put(("end_recording", {}))

    def mark(self) -> None:
        """Mark this moment in the recording, by the wall clock, too."""
        self._commands.put(("note", {"text": f"marked by {self._name} at {time.strftime('%H:%M:%S')}"}))

    def clear_alarm(self) -> None:
        """Clear a latched alarm."""
        self._commands.put(("clear_alarm", {}))

    def blank(self) -> None:
        """Blank the beam at once; commands still waiting are forgotten, so that no start follows."""
        self._blank_asked.set()
        while True:
            try:
                self._commands.get_nowait()
            except queue.Empty:
                return

    def open(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self, timeout_s: float = 1.5) -> None:
        """Carry out a blank still asked for, stop the threads and wait a moment for them. Twice is fine."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout_s)
        self._closed = True

    def maybe_raise(self) -> None:
        """Raise the error that ended a thread, if one did; once."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def _guarded(self, loop: Callable[[MicroscopeClient], None]) -> None:
        try:
            with MicroscopeClient(self._endpoint, self._name, timeout_s=ANSWER_S) as client:
                loop(client)
        except Exception as error:
            logger.exception("a thread of the operator has ended")
            self.error = error
            self._say(f"commands can no longer be given: {error}")

    def _say(self, text: str) -> None:
        if self._closed:  # whoever listened may be gone
            logger.info("%s", text)
        else:
            self._report(text)

    def _command_loop(self, client: MicroscopeClient) -> None:
        renewal_s = 0.0
        self._ask_status(client)
        while not self._stop.is_set():
            if time.monotonic() >= renewal_s:
                self._take_control(client)
                renewal_s = time.monotonic() + CONTROL_RENEWAL_S
            try:
                verb, arguments = self._commands.get(timeout=IDLE_S)
            except queue.Empty:
                continue
            self._carry_out(client, verb, arguments)
        if not self._last_trouble:
            self._take_leave(client)

    def _carry_out(self, client: MicroscopeClient, verb: str, arguments: dict[str, Any]) -> None:
        try:
            result = getattr(client, verb)(**arguments)
        except (ControlRefusedError, TimeoutError) as error:
            logger.warning("%s: %s", verb, error)
            self._say(f"{verb.replace('_', ' ')}: {error}")
            return
        except Exception as error:
            logger.exception("command %s failed", verb)
            self._say(f"{verb.replace('_', ' ')} failed: {error}")
            return
        if verb in ("start", "stop"):
            (self._scanning.set if verb == "start" else self._scanning.clear)()
        self._say(_done(verb, result))

    def _take_control(self, client: MicroscopeClient) -> None:
        try:
            client.take_control()
        except ControlRefusedError as error:
            self.read_only = str(error)
            self._say_once(f"read-only: {error}")
        except TimeoutError as error:
            self._say_once(str(error))
        else:
            if self._last_trouble:
                self._say("in control")
            self.read_only = self._last_trouble = ""

    def _say_once(self, trouble: str) -> None:
        if trouble != self._last_trouble:
            self._last_trouble = trouble
            self._say(trouble)

    def _ask_status(self, client: MicroscopeClient) -> None:
        self._pass_on(client.status)

    def _take_leave(self, client: MicroscopeClient) -> None:
        """Release control, and pass on the last status that comes with it."""
        self._pass_on(client.release_control)

    def _pass_on(self, ask: Callable[[], dict[str, Any]]) -> None:
        try:
            values = ask()
        except (ControlRefusedError, TimeoutError) as error:
            self._say_once(str(error))
            return
        if self._on_status is not None:
            self._on_status(StatusReport("microscope", time.monotonic_ns(), values))

    def _blank_loop(self, client: MicroscopeClient) -> None:
        while not self._stop.is_set() or self._blank_asked.is_set():
            if self._blank_asked.wait(IDLE_S):
                self._blank_asked.clear()
                self._blank_now(client)

    def _blank_now(self, client: MicroscopeClient) -> None:
        for _ in range(BLANK_TRIES):
            try:
                client.blank()
            except (ControlRefusedError, TimeoutError) as error:
                self._say(f"BLANK NOT CONFIRMED: {error}")
                if self._stop.is_set():
                    return
            else:
                self._scanning.clear()
                self._say("blanked")
                return

    def _lease_loop(self, client: MicroscopeClient) -> None:
        while not self._stop.wait(LEASE_RENEWAL_S):
            if not self._scanning.is_set():
                continue
            try:
                client.renew_lease()
            except (ControlRefusedError, TimeoutError) as error:
                self._say(f"lease not renewed: {error}")

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def display_name() -> str:
    """Return the name this display goes by: machine and process."""
    return f"display {socket.gethostname()} {os.getpid()}"


def _done(verb: str, result: Any) -> str:
    if verb == "configure" and isinstance(result, dict) and result.get("coverage") is not None:
        return f"configured: {100 * float(result['coverage']):.2f} % of the pixels visited"
    texts = {
        "configure": "configured",
        "start": "scan started",
        "stop": "scan stopped",
        "clear_alarm": "alarm cleared",
        "begin_recording": "recording asked for",
        "end_recording": "recording ended",
        "note": "marked",
    }
    return texts.get(verb, f"new area {result}: dose summed from zero")
