"""ReconstructionService: samples in, completed frames out; falls behind by skipping frames, never by stopping a scan.

Two threads: one receives and assembles, one completes the newest frame there is and publishes it.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowdose.acquisition.assembly import FrameAssembler, SequenceCounter
from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.mailbox import LatestOnly
from lowdose.acquisition.messages import SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.sockets import FRAMES_HWM, SAMPLES_HWM, ControlRefusedError, Publisher, Subscriber
from lowdose.acquisition.status import Event, StatusReport
from lowdose.acquisition.worker import Service, Worker

if TYPE_CHECKING:
    from lowdose.acquisition.frames import SparseFrame
    from lowdose.acquisition.settings import NetworkSettings
    from lowdose.reconstruction.pipeline import Reconstructor

logger = logging.getLogger(__name__)

PARTIAL_FROM_MS = 100.0
PARTIAL_EVERY_MS = 50.0
REPORT_EVERY_S = 0.2
ASK_AGAIN_S = 0.5
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class _Job:
    frame: SparseFrame
    start: ScanStart


class ReconstructionService(Service):
    """Listens to a microscope service and publishes completed frames.

    Parameters
    ----------
    reconstructor : Reconstructor
        Does the work; closed with the service.
    network : NetworkSettings
        `samples` and `control` are connected to, `frames` is bound.
    """

    def __init__(self, reconstructor: Reconstructor, network: NetworkSettings) -> None:
        self._reconstructor = reconstructor
        self._network = network
        self._publisher = Publisher(network.frames, hwm=FRAMES_HWM)
        self._sequence = SequenceCounter()
        self._jobs: LatestOnly[_Job] = LatestOnly()
        self._assembler: FrameAssembler | None = None
        self._ended: set[str] = set()
        self._ask_again_s = 0.0
        self._partial_due_ns = 0
        self._gaps = self._frames = self._unknown = self._garbage = 0
        self._failures_told = 0
        self._taken: tuple[str, int] | None = None  # the last complete frame that was begun
        self._busy, self._prepared = False, ""
        self._counting = threading.Lock()  # a report never tells of a frame that was not published before it
        self._worker = Worker("reconstruction service")

    @property
    def endpoint(self) -> str:
        """Where frames are published."""
        return self._publisher.endpoint

    @property
    def dropped(self) -> int:
        """Blocks that should have come and did not, or came for a scan not known here."""
        return self._sequence.dropped + self._unknown

    def start(self) -> None:
        """Begin to listen."""
        self._worker.start(assemble=self._receive, complete=self._complete)

    def close(self) -> None:
        """End both threads and close everything; twice is fine."""
        self._worker.stopping.set()
        self._worker.join()
        self._reconstructor.close()
        self._publisher.close()

    # --- receiving and assembling -----------------------------------------------------------------------------------

    def _receive(self) -> None:
        next_report_s = 0.0
        with (
            Subscriber(self._network.samples, ("samples",), hwm=SAMPLES_HWM) as samples,
            MicroscopeClient(self._network.control, "reconstruction") as client,
        ):
            while not self._worker.stopping.is_set():
                message = samples.receive(POLL_S)
                t_received_ns = time.monotonic_ns()
                if isinstance(message, ScanStart):
                    self._begin(message)
                elif isinstance(message, SampleBlock):
                    self._sequence.saw(message.seq)
                    self._place(message, t_received_ns, client)
                elif isinstance(message, ScanEnd):
                    self._end(message)
                self._garbage = samples.garbage
                if time.monotonic() >= next_report_s:
                    self._publish_report()
                    next_report_s = time.monotonic() + REPORT_EVERY_S

    def _begin(self, start: ScanStart) -> None:
        self._finish_frame()
        self._assembler = FrameAssembler(start)
        self._reconstructor.prepare(start)
        logger.info("scan %s: %s, coverage %.4f", start.scan_id[:8], start.pattern.get("name"), start.paths[0].coverage)

    def _end(self, end: ScanEnd) -> None:
        self._ended.add(end.scan_id)
        if self._assembler is not None and self._assembler.start.scan_id == end.scan_id:
            for frame in self._assembler.break_off():
                self._hand_over(frame)

    def _finish_frame(self) -> None:
        for frame in self._assembler.finish() if self._assembler is not None else ():
            self._hand_over(frame)

    def _place(self, block: SampleBlock, t_received_ns: int, client: MicroscopeClient) -> None:
        known = self._assembler is not None and self._assembler.start.scan_id == block.scan_id
        if not known and (block.scan_id in self._ended or not self._learn(block.scan_id, client)):
            self._unknown += 1
            return
        assert self._assembler is not None  # noqa: S101 for the type checker
        for frame in self._assembler.add(block, t_received_ns):
            self._hand_over(frame)
        if self._assembler.under_way and self._partial_due(t_received_ns):
            self._hand_over(self._assembler.frame(complete=False))

    def _learn(self, scan_id: str, client: MicroscopeClient) -> bool:
        """Ask the microscope what a scan is that was not announced here, at most twice a second."""
        if time.monotonic() < self._ask_again_s:
            return False
        try:
            start = client.describe_scan(scan_id)
        except (TimeoutError, ControlRefusedError) as error:
            self._ask_again_s = time.monotonic() + ASK_AGAIN_S
            logger.warning("blocks of an unknown scan are dropped: %s", error)
            return False
        self._begin(start)
        return True

    def _partial_due(self, now_ns: int) -> bool:
        assert self._assembler is not None  # noqa: S101 for the type checker
        frame_ms = self._assembler.start.path_of(self._assembler.frame_index).duration_us / 1e3
        if frame_ms <= PARTIAL_FROM_MS or now_ns < self._partial_due_ns:
            return False
        self._partial_due_ns = now_ns + round(1e6 * max(PARTIAL_EVERY_MS, frame_ms / 10))
        return True

    def _hand_over(self, frame: SparseFrame) -> None:
        assert self._assembler is not None  # noqa: S101 for the type checker
        start = self._assembler.start
        if frame.complete and frame.samples_used < len(start.path_of(frame.frame_index)):
            self._gaps += 1
        self._jobs.put(_Job(frame, start))

    # --- completing and publishing ----------------------------------------------------------------------------------

    def _complete(self) -> None:
        while not self._worker.stopping.is_set():
            job = self._jobs.take(POLL_S)
            if job is None:
                self._busy = False
                continue
            self._begin_job(job)
            frame = self._reconstructor.complete(job.frame, job.start, dropped=self.dropped, gaps=self._gaps)
            if frame is not None:
                with self._counting:
                    self._publisher.publish(frame)
                    self._frames += 1
            self._tell_failures()

    def _begin_job(self, job: _Job) -> None:
        """Note what is being completed; a replay that reads as fast as it may is told at once that there is room."""
        self._busy = True
        if job.frame.complete:
            self._taken = (job.frame.scan_id, job.frame.frame_index)
        if job.start.replay_of is not None:
            self._publish_report()

    def _prepared_scan(self) -> str:
        """Return the scan whose frames can be made as well now as all later ones, "" if there is none."""
        start = None if self._assembler is None else self._assembler.start
        if start is not None and self._prepared != start.scan_id and self._reconstructor.ready(start):
            self._prepared = start.scan_id
        return self._prepared

    def _tell_failures(self) -> None:
        failures = self._reconstructor.engine_failures
        if failures == self._failures_told:
            return
        if not self._failures_told:
            error = self._reconstructor.engine_error
            text = f"engine '{self._reconstructor.name}' failed: classical infill is shown instead ({error})"
            self._publisher.publish(Event("reconstruction", "engine_failed", text, "warning", time.monotonic_ns()))
        self._failures_told = failures
        self._publish_report()

    def _publish_report(self) -> None:
        values: dict[str, Any] = {
            "engine": self._reconstructor.name,
            "dropped": self.dropped,
            "gaps": self._gaps,
            "engine_failures": self._reconstructor.engine_failures,
            "garbage": self._garbage,
            "has_listener": self._publisher.has_listener("frames"),
            "prepared": self._prepared_scan(),
            "taken": self._taken,
            "busy": self._busy,
        }
        with self._counting:
            values["frames"] = self._frames
            self._publisher.publish(StatusReport("reconstruction", time.monotonic_ns(), values))
