"""MicroscopeClient: the operator's side of control (imports sockets)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowdose.acquisition.messages import Reply, ScanStart
from lowdose.acquisition.sockets import ControlClient

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self


class MicroscopeClient:
    """Asks the microscope service to do things; for one thread.

    Every verb raises `TimeoutError` when no answer comes in time and `ControlRefusedError`, saying why, when the
    service refuses.

    Parameters
    ----------
    endpoint : str
        Control endpoint of the service.
    name : str
        Who asks: shown to people, and the holder of lease and control.
    timeout_s : float
        How long to wait for an answer [s].
    """

    def __init__(self, endpoint: str, name: str, *, timeout_s: float = 1.0) -> None:
        self._socket = ControlClient(endpoint, name)
        self._timeout_s = timeout_s

    def status(self) -> dict[str, Any]:
        """Return the microscope's counters and states, by name."""
        return self._ask("status")

    def take_control(self) -> None:
        """Become the one display that may configure and start; refused while another one holds control."""
        self._ask("take_control")

    def release_control(self) -> dict[str, Any]:
        """Let another display take control; return the status, as `status` does."""
        return self._ask("release_control")

    def configure(
        self, *, pattern: Mapping[str, Any] | None = None, dwell_time_us: float | None = None
    ) -> dict[str, Any]:
        """Change pattern or dwell time; takes effect at the next frame edge.

        Returns
        -------
        dict
            scan_id, coverage, coverage_nominal, frame_ms, dose_e_per_a2 of the scan to come.
        """
        changes: dict[str, Any] = {}
        if pattern is not None:
            changes["pattern"] = dict(pattern)
        if dwell_time_us is not None:
            changes["dwell_time_us"] = float(dwell_time_us)
        return self._ask("configure", changes, timeout_s=10 * self._timeout_s)

    def start(self, frames: int | None = None) -> None:
        """Unblank and scan, for a number of frames or until stopped."""
        self._ask("start", {} if frames is None else {"frames": frames})

    def stop(self) -> None:
        """Stop scanning; the beam is blanked and parked."""
        self._ask("stop")

    def blank(self) -> None:
        """Blank the beam at once, stop and park. Anybody may."""
        self._ask("blank")

    def park(self) -> None:
        """Blank and move the beam off the field."""
        self._ask("park")

    def new_area(self) -> int:
        """Tell that the stage has moved: the dose is summed from zero again. Return the new area's id."""
        return int(self._ask("new_area")["area_id"])

    def clear_alarm(self) -> None:
        """Clear a latched alarm by hand."""
        self._ask("clear_alarm")

    def renew_lease(self) -> dict[str, Any]:
        """Keep the scan alive for another lease; refused while somebody else holds the lease.

        Returns
        -------
        dict
            recorder, record_wanted and record_trouble: who records, whether the operator asks for a recording that
            has not begun, why the last one was lost.
        """
        return self._ask("renew_lease")

    def attach_recorder(self, timeout_s: float | None = None) -> str:
        """Become the recorder: everything from now on is kept for it. Return the token of its acknowledgements."""
        return str(self._ask("attach_recorder", timeout_s=timeout_s)["token"])

    def begin_recording(self) -> None:
        """Ask for a recording: whoever supervises the services starts a recorder."""
        self._ask("begin_recording")

    def end_recording(self, token: str | None = None) -> None:
        """End the recording, as its recorder with its token, or as the operator; the scan goes on."""
        self._ask("end_recording", {} if token is None else {"token": token})

    def note(self, text: str) -> None:
        """Tell everybody, a recording too, what the operator wants to be remembered."""
        self._ask("note", {"text": text})

    def describe_scan(self, scan_id: str = "") -> ScanStart:
        """Return the start of a scan, by default of the current one."""
        answer = self._socket.request("describe_scan", {"scan_id": scan_id}, 10 * self._timeout_s)
        if not isinstance(answer, ScanStart):
            raise TypeError(f"describe_scan must be answered by a ScanStart, got {type(answer).__name__}")
        return answer

    def _ask(
        self, verb: str, arguments: dict[str, Any] | None = None, timeout_s: float | None = None
    ) -> dict[str, Any]:
        reply = self._socket.request(verb, arguments or {}, timeout_s or self._timeout_s)
        return reply.result if isinstance(reply, Reply) else {}

    def close(self) -> None:
        """Close the socket; twice is fine."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
