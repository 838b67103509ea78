"""ReplayService: in the microscope service's place, a recorded session; whoever listens or asks notices no difference.

It is a service of its own because the microscope service guards a beam: its deadlines, lease, dose and alarms would
end a replay that is slow, paused, or waits for the reconstruction, and there is nothing to blank.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lowdose.acquisition.messages import Reply, SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.scans import scan_values
from lowdose.acquisition.sockets import SAMPLES_HWM, STATUS_HWM, ControlServer, Publisher, Subscriber
from lowdose.acquisition.status import Event, StatusReport
from lowdose.acquisition.worker import Service, Worker
from lowdose.simulator.credit import Credit

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowdose.acquisition.messages import Request
    from lowdose.acquisition.settings import NetworkSettings
    from lowdose.scan_patterns.path import ScanPath
    from lowdose.simulator.session_replay import ReplayedSamples, SessionReplay

logger = logging.getLogger(__name__)

TICK_S, REPORT_EVERY_S = 0.01, 0.2
LAST_LOOK_S = 0.5
"""What the display gets to show the last frame."""
NO_LIMIT = 0
"""Of the blocks kept for a listener: credit bounds them to two frames."""
DOSES = ("dose_e_per_a2", "dose_visited_e_per_a2")


class ReplayService(Service):
    """Publishes a replay's samples and answers requests; started, stopped and blanked it goes on or holds.

    Parameters
    ----------
    replay : SessionReplay
        What was recorded; closed with the service.
    network : NetworkSettings
        `control` and `samples` are bound, `frames` is listened to.
    name : str
        Of the session, for people.
    waits : bool
        Frames wait until the reconstruction takes them: nothing is lost, however fast the session is read.

    Attributes
    ----------
    over : bool
        The session has been replayed to its end.
    """

    def __init__(self, replay: SessionReplay, network: NetworkSettings, *, name: str, waits: bool) -> None:
        self._replay, self._network, self._name, self._waits = replay, network, name, waits
        with ExitStack() as opened:
            hwm = NO_LIMIT if waits else SAMPLES_HWM
            self._publisher = opened.enter_context(Publisher(network.samples, hwm=hwm))
            self._control = opened.enter_context(ControlServer(network.control))
            opened.pop_all()
        self._worker = Worker("replay")
        self._credit = Credit(self._worker.stopping)
        self._begun = self.over = False
        self._current: ScanStart | None = None
        self._told_end = True
        self._frame = ("", 0)
        self._firsts: set[int] = set()  # of the blocks of the frame under way
        self._positions = 0
        self._handed: tuple[str, int] | None = None
        self._acquired = 0

    @property
    def endpoints(self) -> dict[str, str]:
        """Where control and samples are bound."""
        return {"control": self._control.endpoint, "samples": self._publisher.endpoint}

    # --- lifetime ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to answer requests; nothing is replayed until somebody asks for it."""
        self._worker.start(control=self._answer, credit=self._listen)

    def close(self) -> None:
        """End all threads, close everything; twice is fine."""
        self._worker.stopping.set()
        self._replay.close()
        self._worker.join()
        self._control.close()
        self._publisher.close()

    # --- control ----------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        next_report_s = 0.0
        while not self._worker.stopping.is_set():
            received = self._control.receive(TICK_S)
            if received is not None:
                address, request = received
                self._control.reply(address, self._reply(request))
            if time.monotonic() >= next_report_s:
                self._publish_report()
                next_report_s = time.monotonic() + REPORT_EVERY_S

    def _listen(self) -> None:
        """Follow what the reconstruction says of itself."""
        with Subscriber(self._network.frames, ("status",), hwm=STATUS_HWM) as reports:
            while not self._worker.stopping.is_set():
                report = reports.receive(TICK_S)
                if isinstance(report, StatusReport) and report.source == "reconstruction":
                    self._credit.saw(report)

    def _reply(self, request: Request) -> Reply | ScanStart:
        verbs: dict[str, Callable[[Request], dict[str, Any] | ScanStart]] = {
            "status": lambda _: self._report_values(),
            "release_control": lambda _: self._report_values(),
            "take_control": lambda _: {},
            "clear_alarm": lambda _: {},
            "renew_lease": lambda _: {"recorder": "", "record_wanted": False, "record_trouble": ""},
            "start": lambda _: self._go_on(),
            "stop": lambda _: self._hold(),
            "blank": lambda _: self._hold(),
            "park": lambda _: self._hold(),
            "describe_scan": self._describe_scan,
        }
        if request.verb not in verbs:
            refusal = f"'{request.verb[:32]}' is not possible: this is a recording, nothing can be changed about it"
            return Reply(request.request_id, error=refusal)
        try:
            answer = verbs[request.verb](request)
        except ValueError as error:
            return Reply(request.request_id, error=str(error))
        return answer if isinstance(answer, ScanStart) else Reply(request.request_id, result=answer)

    def _go_on(self) -> dict[str, Any]:
        self._replay.unblank()
        if not self._begun:
            self._begun = True
            self._tell(f"replay of {self._name}: the beam is a recorded one, nothing moves")
            self._replay.start(self._admit)
            self._worker.start(replay=self._stream)
        return {}

    def _hold(self) -> dict[str, Any]:
        self._replay.blank(0.0)
        return {}

    def _describe_scan(self, request: Request) -> ScanStart:
        scan_id = str(request.arguments.get("scan_id") or "")
        if scan_id or self._current is None:
            return self._replay.scan(scan_id)
        return self._current

    # --- replaying --------------------------------------------------------------------------------------------------

    def _admit(self, scan_id: str, path: ScanPath) -> bool:
        """Announce a scan; let a frame begin once the reconstruction has taken the last one it was given whole."""
        if self._waits and self._handed is not None:
            self._credit.wait_taken(*self._handed)
        if self._current is None or scan_id != self._current.scan_id:
            self._announce_end("another scan follows")
            self._announce(self._replay.scan(scan_id))
        return not self._worker.stopping.is_set()

    def _stream(self) -> None:
        for samples in self._replay.blocks():
            self._publish_block(samples)
            self._note_sent(samples)
            if samples.end is not None:
                self._announce_end(samples.end)
        if self._worker.stopping.is_set():
            return
        self._announce_end("the recording ends here")
        self._credit.wait_done(self._handed)  # taken, completed and published
        self.over = True
        self._publish_report()
        self._worker.stopping.wait(LAST_LOOK_S)
        self._worker.stopping.set()

    def _publish_block(self, samples: ReplayedSamples) -> None:
        self._publisher.publish(
            SampleBlock(
                scan_id=samples.scan_id,
                path_digest=samples.path.digest,
                frame_index=samples.frame_index,
                first=samples.first,
                counts=samples.counts,
                seq=samples.seq,
                t_first_ns=samples.t_first_ns,
                t_last_ns=samples.t_last_ns,
                t_sent_ns=time.monotonic_ns(),
            )
        )

    def _note_sent(self, samples: ReplayedSamples) -> None:
        """Count samples, to know which frames the reconstruction has been given whole."""
        self._acquired += samples.ends_frame
        frame = (samples.scan_id, samples.frame_index)
        if frame != self._frame:
            before, self._frame, self._firsts, self._positions = self._frame, frame, set(), 0
            self._wait_for_holed(before)
        if samples.first not in self._firsts:
            self._firsts.add(samples.first)
            self._positions += int(samples.counts.shape[1])
        if self._positions == len(samples.path):
            self._handed = frame

    def _wait_for_holed(self, before: tuple[str, int]) -> None:
        """Wait for a frame with a hole: only now, with the first block of the next, it was known to have one."""
        follows = before[0] == self._frame[0] and before[1] < self._frame[1]
        if self._waits and follows and before != self._handed:
            self._credit.wait_taken(*before)

    def _announce(self, scan: ScanStart) -> None:
        """Announce a scan; the very first waits until it can be completed as well as all that follows."""
        first = self._current is None
        self._current, self._told_end, self._handed = scan, False, None
        self._publisher.publish(scan)
        self._publish_report()
        if self._waits or first:
            self._credit.wait_prepared(scan.scan_id)

    def _announce_end(self, reason: str) -> None:
        if self._current is not None and not self._told_end:
            self._told_end = True
            self._publisher.publish(ScanEnd(self._current.scan_id, self._frame[1], reason))

    # --- status -----------------------------------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        self._publisher.publish(Event("replay", "replay", text, "info", time.monotonic_ns()))

    def _publish_report(self) -> None:
        self._publisher.publish(StatusReport("microscope", time.monotonic_ns(), self._report_values()))

    @property
    def _state(self) -> str:
        if not self._begun or self.over:
            return "parked"
        return "paused" if self._replay.held else "replay"

    def _report_values(self) -> dict[str, Any]:
        return {
            "state": self._state,
            "replay": self._name,
            "replay_of": "" if self._current is None else self._current.replay_of,
            "alarm": "",
            "late": 0,
            "acquired": self._acquired,
            "control_holder": "",
            "dead_man": self._replay.limits.dead_man,
            "blocks_lost": self._replay.lost,
            "blocks_refused": self._replay.refused + self._replay.homeless,
            "has_listener": self._publisher.has_listener("samples") and self._credit.has_viewer,
            "garbage": self._control.garbage,
            **self._scan_values(),
        }

    def _scan_values(self) -> dict[str, Any]:
        """Return what is shown of the scan; a recording whose beam current is no number tells nothing of the dose."""
        scan = self._current
        if scan is None:
            return {}
        known = math.isfinite(scan.beam_current_pa) and scan.beam_current_pa > 0
        values = scan_values(scan if known else replace(scan, beam_current_pa=1.0), self._replay.limits)
        return {"patterns": (values["pattern"],), **values, **({} if known else dict.fromkeys(DOSES))}
