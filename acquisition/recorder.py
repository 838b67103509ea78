"""RecorderService: writes everything a microscope service hands over, and says so, or says why not.

One thread. What it acknowledges is written, see `SessionWriter.written`; what it cannot write it does not swallow: the
microscope is told, and blanks. Completed frames and what the reconstruction says come by the view path and never hold
up anything: frames that did not come are counted.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.frames import DenseFrame
from lowdose.acquisition.messages import RecordAck
from lowdose.acquisition.record_path import RECORDING_ENDED
from lowdose.acquisition.recording import CHUNK_NS, RecordingError, SessionWriter
from lowdose.acquisition.sockets import FRAMES_HWM, STATUS_HWM, ControlRefusedError, RecordClient, Subscriber
from lowdose.acquisition.status import Event, StatusReport
from lowdose.acquisition.worker import Service, Worker

if TYPE_CHECKING:
    from pathlib import Path

    from lowdose.acquisition.recording import Fsync
    from lowdose.acquisition.settings import NetworkSettings
    from lowdose.acquisition.wire import Message, Topic

logger = logging.getLogger(__name__)

POLL_S = 0.01
ACKNOWLEDGE_S = 0.02
"""Between two acknowledgements, and longest time spent writing before: the microscope must hear one every 50 ms."""
ANSWER_S = 0.2
"""How long the microscope may take to answer: meanwhile nothing is acknowledged."""
ATTACH_WITHIN_S = 30.0
SILENCE_S = 2.0
"""A microscope reports five times a second: one that is silent for so long is not there any more."""
LAST_WORDS_S = 1.0
"""How long a recorder told to end waits for the end of what is on its way."""
REPORT_EVERY_S = 1.0


class RecorderService(Service):
    """Records one session to one file.

    Parameters
    ----------
    path : Path
        Must not exist yet; made at once, and removed again if no recording comes of it.
    network : NetworkSettings
        `control`, `record` and `frames` are connected to.
    fsync : "never", "chunk" or "close"
        When to wait until the disk itself has it.
    frames : bool
        Record completed frames, too, as far as they come.
    name : str
        Who records, as shown to people.
    writer : SessionWriter or None
        Writes instead of a new one.

    Raises
    ------
    RecordingError
        If the file cannot be made.
    """

    def __init__(
        self,
        path: Path,
        network: NetworkSettings,
        *,
        fsync: Fsync = "close",
        frames: bool = False,
        name: str = "recorder",
        writer: SessionWriter | None = None,
    ) -> None:
        self._path, self._network, self._name, self._frames_wanted = path, network, name, frames
        self._writer = writer or SessionWriter(path, fsync=fsync)
        self._worker = Worker("recorder", explained=RecordingError)
        self._token = ""
        self._seq = self._written_seq = 0
        self._numbers: deque[tuple[int, int]] = deque()  # (of the file, of the record path) not known to be written
        self._last: Event | None = None
        self._frames = FrameCount()
        self._acknowledged_s = self._report_at_s = 0.0

    # --- lifetime ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to record as soon as the microscope answers."""
        self._worker.start(record=self._run)

    def close(self) -> None:
        """End the recording properly; twice is fine."""
        self._worker.stopping.set()
        if self._worker.join():
            self._close_file()

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with ExitStack() as stack:
            stack.callback(self._close_file)
            client = stack.enter_context(MicroscopeClient(self._network.control, self._name, timeout_s=ANSWER_S))
            record = stack.enter_context(RecordClient(self._network.record))
            status = stack.enter_context(Subscriber(self._network.frames, ("status",), hwm=STATUS_HWM))
            topics: tuple[Topic, ...] = ("frames", "status") if self._frames_wanted else ()
            frames = stack.enter_context(Subscriber(self._network.frames, topics, hwm=FRAMES_HWM))
            if not self._attach(client):
                return
            try:
                self._acknowledge(record)
                self._record(client, record, status, frames)
            except (RecordingError, ValueError) as error:  # cannot be written, or is too large or no message
                record.acknowledge(RecordAck(self._token, self._written_seq, str(error)))
                raise RecordingError(str(error)) from None
        self._worker.stopping.set()
        self._tell_end()

    def _attach(self, client: MicroscopeClient) -> bool:
        """Attach to the microscope once it answers; False if this service was told to end before."""
        give_up_s = time.monotonic() + ATTACH_WITHIN_S
        while not self._worker.stopping.is_set():
            try:
                client.status()
                self._token = client.attach_recorder(ATTACH_WITHIN_S)
            except ControlRefusedError as refusal:
                raise RecordingError(f"the microscope service refused: {refusal}") from None
            except TimeoutError as error:
                if time.monotonic() >= give_up_s:
                    raise RecordingError(f"nothing to record: {error}") from None
            else:
                logger.info("recording to %s", self._path)
                return True
        return False

    def _close_file(self) -> None:
        self._writer.close()
        if not self._token:
            self._path.unlink(missing_ok=True)

    def _record(self, client: MicroscopeClient, record: RecordClient, status: Subscriber, frames: Subscriber) -> None:
        heard_s, give_up_s = time.monotonic(), float("inf")
        while self._last is None:
            heard = self._take_messages(record)
            self._take_status(status)
            self._take_frame(frames)
            self._tell_figures()
            self._writer.tick(time.monotonic_ns())
            now = time.monotonic()
            if now >= self._acknowledged_s + ACKNOWLEDGE_S:
                self._acknowledge(record)
            heard_s = now if heard else heard_s
            if now - heard_s > SILENCE_S or now > give_up_s:
                raise RecordingError(f"the microscope service fell silent: {self._path} holds what came until then")
            if self._worker.stopping.is_set() and give_up_s == float("inf"):
                give_up_s = now + LAST_WORDS_S
                self._ask_for_the_end(client)
        self._writer.write(self._figures())
        self._writer.tick(time.monotonic_ns() + CHUNK_NS)  # the last chunk, now
        self._acknowledge(record)  # before closing, which waits for the disk: the microscope need not

    def _ask_for_the_end(self, client: MicroscopeClient) -> None:
        try:
            client.end_recording(self._token)
        except (TimeoutError, ControlRefusedError) as error:
            logger.debug("the microscope service ends, too: %s", error)

    def _take_messages(self, record: RecordClient) -> bool:
        """Write what came by the record path, for a while; tell whether anything did."""
        until_s, received = time.monotonic() + ACKNOWLEDGE_S, record.receive(POLL_S)
        came = received is not None
        while received is not None and self._last is None:
            self._take(*received)
            received = record.receive(0.0) if time.monotonic() < until_s else None
        return came

    def _take(self, seq: int, message: Message) -> None:
        if seq != self._seq + 1:
            raise RecordingError(f"message {seq} of the record path came after {self._seq}: something was lost")
        self._seq = seq
        self._numbers.append((self._writer.write(message), seq))
        if isinstance(message, Event) and message.kind == RECORDING_ENDED:
            self._last = message

    def _tell_end(self) -> None:
        if self._last is not None:
            logger.info("recording %s: %s", self._path, self._last.text)
            if self._last.severity != "info":
                raise RecordingError(self._last.text)

    def _acknowledge(self, record: RecordClient) -> None:
        while self._numbers and self._numbers[0][0] <= self._writer.written:
            self._written_seq = self._numbers.popleft()[1]
        record.acknowledge(RecordAck(self._token, self._written_seq))
        self._acknowledged_s = time.monotonic()

    # --- what comes by the view path --------------------------------------------------------------------------------

    def _take_status(self, status: Subscriber) -> None:
        while (message := status.receive()) is not None:
            if isinstance(message, StatusReport | Event):
                self._writer.write(message)

    def _take_frame(self, frames: Subscriber) -> None:
        """Write one frame at most: samples come first, and a frame nobody has time for is dropped."""
        message = frames.receive()
        while isinstance(message, StatusReport | Event):
            self._frames.told(message)
            message = frames.receive()
        if isinstance(message, DenseFrame):
            self._frames.came += 1
            self._writer.write(message)

    def _tell_figures(self) -> None:
        now = time.monotonic()
        if self._frames_wanted and now >= self._report_at_s:
            self._report_at_s = now + REPORT_EVERY_S
            self._writer.write(self._figures())

    def _figures(self) -> StatusReport:
        values = {"frames": self._frames.came, "frames_dropped": self._frames.dropped}
        return StatusReport("recorder", time.monotonic_ns(), values)


class FrameCount:
    """Counts frames that came, and by the reconstruction's own count of those published how many did not.

    Examples
    --------
    >>> count = FrameCount()
    >>> count.told(StatusReport("reconstruction", 0, {"frames": 10}))
    >>> count.came += 2
    >>> count.told(StatusReport("reconstruction", 1, {"frames": 15}))
    >>> count.dropped
    3
    """

    def __init__(self) -> None:
        self.came = self.dropped = 0
        self._published = self._came_before = 0
        self._told = False

    def told(self, message: StatusReport | Event) -> None:
        """Take note of what a reconstruction says of itself, in the order in which it says it and publishes frames."""
        published = message.values.get("frames") if isinstance(message, StatusReport) else None
        if not isinstance(published, int):
            return
        if self._told and published >= self._published:
            self.dropped += max(0, published - self._published - (self.came - self._came_before))
        self._published, self._came_before, self._told = published, self.came, True
