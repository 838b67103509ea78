"""MicroscopeService: owns the controller, streams its samples, answers the operator, keeps the beam safe."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from lowdose.acquisition.beam_guard import MAX_TEXT, BeamGuard
from lowdose.acquisition.continuity import block_plan
from lowdose.acquisition.messages import Reply, ScanStart
from lowdose.acquisition.realtime import collect, frozen_garbage_collector
from lowdose.acquisition.record_path import RecordPath
from lowdose.acquisition.recording import facts, note
from lowdose.acquisition.sample_stream import SampleStream
from lowdose.acquisition.scans import ScanBook, scan_values, spec_of
from lowdose.acquisition.sockets import SAMPLES_HWM, ControlServer, Publisher
from lowdose.acquisition.status import StatusReport
from lowdose.acquisition.wire import encode
from lowdose.acquisition.worker import Service, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lowdose.acquisition.controllers.base import ScanController
    from lowdose.acquisition.messages import Request
    from lowdose.acquisition.settings import (
        BeamSettings,
        DoseSettings,
        NetworkSettings,
        SafetySettings,
        ScanSettings,
    )
    from lowdose.acquisition.sockets import Address
    from lowdose.acquisition.wire import Message
    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.scan_patterns.pattern import Pattern

logger = logging.getLogger(__name__)

TICK_S, REPORT_EVERY_S = 0.01, 0.2
CONTROL_HELD_S = 3.0
LAST_WORDS_S = 0.7
"""How long a service that ends waits for its recorder; the beam is off by then."""


class MicroscopeService(Service):
    """Runs one controller, one thread each for requests, slow ones, deadlines, the record path and the scan.

    Parameters
    ----------
    controller : ScanController
        Moves the beam; closed with the service.
    grid : ScanGrid
        Field of view.
    scan, beam, dose, safety, network : settings
        As configured.
    make_pattern : callable
        Makes a pattern of a mapping with `name` and parameters; ValueError says what is wrong.
    pattern_names : tuple of str
        What a display may offer.
    settings_facts : mapping or None
        Everything that was configured, as a recording tells it.
    """

    def __init__(
        self,
        controller: ScanController,
        grid: ScanGrid,
        scan: ScanSettings,
        beam: BeamSettings,
        dose: DoseSettings,
        safety: SafetySettings,
        network: NetworkSettings,
        *,
        make_pattern: Callable[[Mapping[str, Any], ScanGrid], Pattern],
        pattern_names: tuple[str, ...],
        settings_facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._controller, self._pattern_names = controller, pattern_names
        self._grid, self._beam, self._settings_facts = grid, beam, dict(settings_facts or {})
        self._scans = ScanBook(controller, grid, scan, beam, make_pattern)
        self._lock = threading.Lock()
        with ExitStack() as opened:
            self._publisher = opened.enter_context(Publisher(network.samples, hwm=SAMPLES_HWM))
            self._control = opened.enter_context(ControlServer(network.control))
            self._record = RecordPath(network.record, stall_ms=safety.record_stall_ms)
            opened.callback(self._record.close)
            self.guard = BeamGuard(
                controller,
                safety,
                dose,
                beam_current_pa=beam.current_pa,
                emit=self._emit,
                lost_recording=self._record.trouble,
            )
            self._next = self._scans.new(scan.pattern, scan.dwell_time_us, area_id=0)
            self._prepare(self._next)
            for message in self._opening():
                encode(message)  # settings too large to be told are refused now, not when somebody records
            opened.pop_all()
        self._admitted = ""
        self._stream = SampleStream(controller.limits, self._scans.find, self.guard, self._emit)
        self._stream.current = self._next
        self._frames_left: int | None = None
        self._record_wanted = False
        self._worker = Worker("microscope service", on_failure=self._failed)
        self._record_over = threading.Event()  # of its own: a service that has failed still tells its recorder the rest
        self._control_holder, self._control_seen_s = "", 0.0
        self._work: queue.Queue[tuple[Address, Request, int] | None] = queue.Queue(maxsize=32)
        self._done: queue.Queue[tuple[Address, Reply | ScanStart]] = queue.Queue()
        self._scan_thread: threading.Thread | None = None

    @property
    def endpoints(self) -> dict[str, str]:
        """Where control, samples and the record path are bound."""
        return {
            "control": self._control.endpoint,
            "samples": self._publisher.endpoint,
            "record": self._record.endpoint,
        }

    # --- lifetime ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to answer requests; the beam stays parked until somebody asks for a scan."""
        self._worker.start(
            control=self._answer,
            work=self._run_work,
            watch=partial(self.guard.watch, self._worker.stopping),
            record=partial(self._record.run, self._record_over),
        )

    def close(self, reason: str = "the microscope service ended") -> None:
        """Make the beam safe, end recording and threads, close everything; twice is fine."""
        self.guard.make_safe("service_ended", reason)
        self._end_recording(reason)
        self._worker.stopping.set()
        self._record_over.set()
        with suppress(queue.Full):  # of requests that wait for a driver that hangs
            self._work.put_nowait(None)
        self._worker.join()
        self._join_scan(5.0)
        self._controller.close()
        self._control.close()
        self._record.close()
        self._publisher.close()

    def _end_recording(self, reason: str) -> None:
        """Give a recorder what was measured to the end, now that the beam is off."""
        if self._record.recorder:
            self._join_scan(LAST_WORDS_S)
            self._record.end(reason)
            self._record.wait_over(LAST_WORDS_S)

    def _join_scan(self, timeout_s: float) -> None:
        if self._scan_thread is not None:
            self._scan_thread.join(timeout_s)

    def _failed(self, error: BaseException) -> None:
        self.guard.make_safe("exception", f"{type(error).__name__}: {error}", "alarm")

    def _emit(self, message: Message) -> None:
        """Tell everybody who listens, and the recorder; from any thread, never waiting for either."""
        buffers = encode(message)
        self._publisher.send(buffers)
        self._record.keep(message, buffers)

    # --- control ----------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        """Answer quick requests at once, hand slow ones to the work thread."""
        next_report_s = 0.0
        while not self._worker.stopping.is_set():
            received = self._control.receive(TICK_S)
            if received is not None:
                self._dispatch(*received)
            while not self._done.empty():
                self._control.reply(*self._done.get())
            if time.monotonic() >= next_report_s:
                self._publish_report()
                next_report_s = time.monotonic() + REPORT_EVERY_S

    def _dispatch(self, address: Address, request: Request) -> None:
        if request.verb in ("configure", "describe_scan", "start", "attach_recorder"):
            try:
                self._work.put_nowait((address, request, self.guard.off_orders))
            except queue.Full:
                self._control.reply(address, Reply(request.request_id, error="busy: too many requests are waiting"))
        else:
            self._control.reply(address, self._reply(request))

    def _run_work(self) -> None:
        while (item := self._work.get()) is not None and not self._worker.stopping.is_set():
            address, request, off_orders = item
            self._done.put((address, self._reply(request, off_orders)))

    def _reply(self, request: Request, off_orders: int = 0) -> Reply | ScanStart:
        verbs: dict[str, Callable[[Request], dict[str, Any] | ScanStart]] = {
            "status": self._do_status,
            "take_control": self._do_take_control,
            "release_control": self._do_release_control,
            "configure": self._do_configure,
            "start": lambda request: self._do_start(request, off_orders),
            "stop": self._do_stop,
            "blank": self._do_blank,
            "park": self._do_stop,
            "new_area": self._do_new_area,
            "clear_alarm": self._do_clear_alarm,
            "renew_lease": self._do_renew_lease,
            "describe_scan": self._do_describe_scan,
            "attach_recorder": self._do_attach_recorder,
            "begin_recording": self._do_begin_recording,
            "end_recording": self._do_end_recording,
            "note": self._do_note,
        }
        if request.verb not in verbs:
            return Reply(request.request_id, error=f"unknown verb {request.verb[:32]!r}: known are {', '.join(verbs)}")
        try:
            answer = verbs[request.verb](request)
        except (ValueError, PermissionError, TypeError, MemoryError) as error:
            return Reply(request.request_id, error=str(error)[:MAX_TEXT] or type(error).__name__)
        except Exception as error:  # a driver may raise anything; the service goes on answering
            logger.exception("'%s' failed", request.verb)
            complaint = f"'{request.verb}' failed: {type(error).__name__}: {error}"
            return Reply(request.request_id, error=complaint[:MAX_TEXT])
        return answer if isinstance(answer, ScanStart) else Reply(request.request_id, result=answer)

    def _require_control(self, request: Request) -> None:
        held = time.monotonic() - self._control_seen_s < CONTROL_HELD_S
        if held and self._control_holder != request.client and not self.guard.holds_lease(request.client):
            raise PermissionError(f"control is held by {self._control_holder}: this display only watches")

    def _do_take_control(self, request: Request) -> dict[str, Any]:
        self._require_control(request)
        self._control_holder, self._control_seen_s = request.client, time.monotonic()
        return {}

    def _do_release_control(self, request: Request) -> dict[str, Any]:
        if self._control_holder == request.client:
            self._control_holder, self._control_seen_s = "", 0.0
        return self._report_values()

    def _do_status(self, request: Request) -> dict[str, Any]:
        return self._report_values()

    def _do_configure(self, request: Request) -> dict[str, Any]:
        self._require_control(request)
        _require_known(request, "pattern", "dwell_time_us")
        pattern = request.arguments.get("pattern", spec_of(self._next))
        if not isinstance(pattern, dict) or not all(isinstance(key, str) for key in pattern):
            raise TypeError(f"pattern must be a map of name and parameters, got {type(pattern).__name__}")
        dwell_time_us = request.arguments.get("dwell_time_us", self._next.dwell_time_us)
        if isinstance(dwell_time_us, bool) or not isinstance(dwell_time_us, int | float):
            raise TypeError(f"dwell_time_us must be a number, got {type(dwell_time_us).__name__}")
        in_use = {self._admitted, self._stream.current.scan_id, self._next.scan_id}
        scan = self._scans.new(pattern, float(dwell_time_us), area_id=self.guard.area_id, keep=in_use)
        self._prepare(scan)
        self._next = scan
        self._emit(self._facts_of_settings())
        if self.guard.state != "scanning":
            self._stream.current = scan
        return scan_values(scan, self._controller.limits)

    def _prepare(self, scan: ScanStart) -> None:
        """Hand a scan to the controller; what takes long is worked out now and kept, not while blocks are due."""
        for path in scan.paths:
            block_plan(path, self._controller.limits)
        self._controller.prepare(scan.scan_id, scan.paths)

    def _do_start(self, request: Request, off_orders: int) -> dict[str, Any]:
        self._require_control(request)
        _require_known(request, "frames")
        frames = request.arguments.get("frames")
        if frames is not None and (type(frames) is not int or frames < 1):
            raise ValueError(f"frames must be an integer >= 1, got {frames!r}")
        with self._lock:
            if self.guard.state == "scanning":
                raise PermissionError("a scan is running: stop it first")
            if self._scan_thread is not None:
                self._scan_thread.join(timeout=5)
                if self._scan_thread.is_alive():
                    raise PermissionError("the scan before has not ended: the controller does not let go of it")
            self.guard.require_budget(self._next.path_of(0))
            self._frames_left = frames
            if self._admitted:
                self._next = self._scans.again(self._next, area_id=self.guard.area_id)
                self._prepare(self._next)
            collect()  # now, while the beam is off
            self._controller.start(self._admit)
            self.guard.ensure_lease(request.client)
            self.guard.begin_scanning(off_orders_seen=off_orders)
            self._scan_thread = threading.Thread(target=self._scan_loop, name="scan", daemon=True)
            self._scan_thread.start()
        return scan_values(self._next, self._controller.limits)

    def _do_stop(self, request: Request) -> dict[str, Any]:
        self._require_control(request)
        self.guard.order_off("stopped", f"stopped by {request.client}")
        return {}

    def _do_blank(self, request: Request) -> dict[str, Any]:
        self.guard.order_off("blanked", f"blanked by {request.client}")
        return {}

    def _do_new_area(self, request: Request) -> dict[str, Any]:
        self._require_control(request)
        self._controller.new_area()
        area_id = self.guard.new_area()
        self.guard.report("new_area", f"new area {area_id}: the stage has moved, the dose is summed from zero", "info")
        return {"area_id": area_id}

    def _do_clear_alarm(self, request: Request) -> dict[str, Any]:
        self._require_control(request)
        self.guard.clear_alarm()
        return {}

    def _do_renew_lease(self, request: Request) -> dict[str, Any]:
        self.guard.renew_lease(request.client)
        return {**self._recording_values(), "record_trouble": self._record.last_trouble}

    def _do_describe_scan(self, request: Request) -> ScanStart:
        _require_known(request, "scan_id")
        return self._scans.find(request.arguments.get("scan_id") or self._stream.current.scan_id)

    # --- recording --------------------------------------------------------------------------------------------------

    def _do_attach_recorder(self, request: Request) -> dict[str, Any]:
        token = self._record.attach(request.client, self._opening())
        self._record_wanted = False
        self.guard.report("recording_begun", f"everything is recorded by {request.client}", "info")
        return {"token": token}

    def _do_begin_recording(self, request: Request) -> dict[str, Any]:
        self._require_control(request)
        if self._record.recorder:
            raise PermissionError(f"{self._record.recorder} records already")
        self._record_wanted = True
        return {}

    def _do_end_recording(self, request: Request) -> dict[str, Any]:
        _require_known(request, "token")
        token = request.arguments.get("token")
        if token is None:
            self._require_control(request)
        elif not (isinstance(token, str) and token.isascii()):
            raise TypeError("token must be the text that attach_recorder gave")
        self._record_wanted = False
        self._record.end(f"ended by {request.client}", token)
        return {}

    def _do_note(self, request: Request) -> dict[str, Any]:
        self._require_control(request)
        _require_known(request, "text")
        text = request.arguments.get("text")
        if not isinstance(text, str) or not 0 < len(text) <= MAX_TEXT:
            raise ValueError(f"a note is a text of 1 to {MAX_TEXT} characters")
        self._emit(note(text, time.monotonic_ns()))
        return {}

    def _opening(self) -> list[Message]:
        """Return what a recording begins with: how everything is set."""
        now = time.monotonic_ns()
        calibration = {"grid": dataclasses.asdict(self._grid), "limits": dataclasses.asdict(self._controller.limits)}
        return [
            self._facts_of_settings(),
            facts("calibration", calibration, now),
            facts("beam", self._beam.model_dump(mode="json"), now),
        ]

    def _facts_of_settings(self) -> StatusReport:
        scan = {**self._settings_facts.get("scan", {}), "pattern": spec_of(self._next)}
        scan["dwell_time_us"] = self._next.dwell_time_us
        return facts("settings", {**self._settings_facts, "scan": scan}, time.monotonic_ns())

    def _recording_values(self) -> dict[str, Any]:
        return {"recorder": self._record.recorder, "record_wanted": self._record_wanted}

    # --- scanning ---------------------------------------------------------------------------------------------------

    def _admit(self, scan_id: str, path: Any) -> bool:
        if self._frames_left == 0 or not self.guard.admit(path):
            return False
        if self._frames_left is not None:
            self._frames_left -= 1
        self._admitted = scan_id
        return True

    def _scan_loop(self) -> None:
        """Stream the controller's samples; whatever ends the loop, the beam is off after it."""
        with frozen_garbage_collector():
            self._worker.guarded(lambda: self._stream.run(self._controller.blocks(), begun=self._publish_report))
            self.guard.make_safe("scan_ended", "the scan ended")
        self._stream.end("stopped")

    # --- status -----------------------------------------------------------------------------------------------------

    def _publish_report(self) -> None:
        self._emit(StatusReport("microscope", time.monotonic_ns(), self._report_values()))

    def _report_values(self) -> dict[str, Any]:
        held = time.monotonic() - self._control_seen_s < CONTROL_HELD_S
        return {
            **self.guard.values(),
            "acquired": self._stream.acquired,
            "control_holder": self._control_holder if held else "",
            "dead_man": self._controller.limits.dead_man,
            "patterns": self._pattern_names,
            "blocks_lost": self._stream.order.lost,
            "blocks_refused": self._stream.order.refused,
            "has_listener": self._publisher.has_listener("samples"),
            "garbage": self._control.garbage + self._record.garbage,
            **self._recording_values(),
            "record_waiting_ms": round(self._record.waiting_ms(), 1),
            **scan_values(self._stream.current, self._controller.limits),
        }


def _require_known(request: Request, *names: str) -> None:
    unknown = sorted(str(name) for name in request.arguments if name not in names)
    if unknown:
        raise ValueError(f"{request.verb} takes {' and '.join(names)}, got {', '.join(unknown)}")
