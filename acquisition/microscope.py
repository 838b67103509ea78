"""MicroscopeService: owns the controller, streams its samples, answers the operator, keeps the beam safe."""

from __future__ import annotations

import logging
import queue
import threading
import time
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from lowdose.acquisition.beam_guard import MAX_TEXT, BeamGuard
from lowdose.acquisition.continuity import BlockOrder, block_plan
from lowdose.acquisition.messages import Reply, SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.realtime import collect, frozen_garbage_collector
from lowdose.acquisition.scans import ScanBook, scan_values, spec_of
from lowdose.acquisition.sockets import SAMPLES_HWM, ControlServer, Publisher
from lowdose.acquisition.status import StatusReport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from lowdose.acquisition.controllers.base import Samples, ScanController
    from lowdose.acquisition.messages import Request
    from lowdose.acquisition.settings import (
        BeamSettings,
        DoseSettings,
        NetworkSettings,
        SafetySettings,
        ScanSettings,
    )
    from lowdose.acquisition.sockets import Address
    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.scan_patterns.pattern import Pattern

logger = logging.getLogger(__name__)

TICK_S, REPORT_EVERY_S, COLLECT_EVERY_S, COMPLAIN_EVERY_S = 0.01, 0.2, 1.0, 1.0
CONTROL_HELD_S = 3.0


class MicroscopeService:
    """Runs one controller. Its threads: requests are answered, slow ones worked on, deadlines watched; one more scans.

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
    ) -> None:
        self._controller, self._pattern_names = controller, pattern_names
        self._scans = ScanBook(controller, grid, scan, beam, make_pattern)
        self._lock = threading.Lock()
        with ExitStack() as opened:
            self._publisher = opened.enter_context(Publisher(network.samples, hwm=SAMPLES_HWM))
            self._control = opened.enter_context(ControlServer(network.control))
            self.guard = BeamGuard(
                controller, safety, dose, beam_current_pa=beam.current_pa, emit=self._publisher.publish
            )
            self._next = self._current = self._scans.new(scan.pattern, scan.dwell_time_us, area_id=0)
            self._prepare(self._next)
            opened.pop_all()
        self._admitted = ""
        self._order = BlockOrder(controller.limits, self._scans.find)
        self._streaming: tuple[str, int] | None = None  # scan and frame of the last block published
        self._complained, self._complained_s = (0, 0), 0.0
        self._frames_left: int | None = None
        self._acquired = 0
        self._error: BaseException | None = None
        self._control_holder, self._control_seen_s = "", 0.0
        self._stopping = threading.Event()
        self._work: queue.Queue[tuple[Address, Request, int] | None] = queue.Queue(maxsize=32)
        self._done: queue.Queue[tuple[Address, Reply | ScanStart]] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._scan_thread: threading.Thread | None = None

    @property
    def endpoints(self) -> dict[str, str]:
        """Where control and samples are bound."""
        return {"control": self._control.endpoint, "samples": self._publisher.endpoint}

    # --- lifetime ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to answer requests; the beam stays parked until somebody asks for a scan."""
        watch = partial(self.guard.watch, self._stopping)
        self._threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=name, daemon=True)
            for name, loop in (("control", self._answer), ("work", self._run_work), ("watch", watch))
        ]
        for thread in self._threads:
            thread.start()

    def close(self, reason: str = "the microscope service ended") -> None:
        """Make the beam safe, end all threads, close everything; twice is fine."""
        self.guard.make_safe("service_ended", reason)
        self._stopping.set()
        with suppress(queue.Full):  # of requests that wait for a driver that hangs
            self._work.put_nowait(None)
        for thread in (*self._threads, self._scan_thread):
            if thread is not None:
                thread.join(timeout=5)
        self._controller.close()
        self._control.close()
        self._publisher.close()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the service has failed or was closed; tell whether it is over."""
        return self._stopping.wait(timeout_s)

    def maybe_raise(self) -> None:
        """Raise what ended a thread, if anything did."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:
            self.guard.make_safe("exception", f"{type(error).__name__}: {error}", "alarm")
            self._error = error
            self._stopping.set()
            logger.exception("the microscope service failed")

    # --- control ----------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        """Answer quick requests at once, hand slow ones to the work thread."""
        next_report_s = 0.0
        while not self._stopping.is_set():
            received = self._control.receive(TICK_S)
            if received is not None:
                self._dispatch(*received)
            while not self._done.empty():
                self._control.reply(*self._done.get())
            if time.monotonic() >= next_report_s:
                self._publish_report()
                next_report_s = time.monotonic() + REPORT_EVERY_S

    def _dispatch(self, address: Address, request: Request) -> None:
        if request.verb in ("configure", "describe_scan", "start"):
            try:
                self._work.put_nowait((address, request, self.guard.off_orders))
            except queue.Full:
                self._control.reply(address, Reply(request.request_id, error="busy: too many requests are waiting"))
        else:
            self._control.reply(address, self._reply(request))

    def _run_work(self) -> None:
        while (item := self._work.get()) is not None and not self._stopping.is_set():
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
        in_use = {self._admitted, self._current.scan_id, self._next.scan_id}
        scan = self._scans.new(pattern, float(dwell_time_us), area_id=self.guard.area_id, keep=in_use)
        self._prepare(scan)
        self._next = scan
        if self.guard.state != "scanning":
            self._current = scan
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
        return {"area_id": self.guard.new_area()}

    def _do_clear_alarm(self, request: Request) -> dict[str, Any]:
        self._require_control(request)
        self.guard.clear_alarm()
        return {}

    def _do_renew_lease(self, request: Request) -> dict[str, Any]:
        self.guard.renew_lease(request.client)
        return {}

    def _do_describe_scan(self, request: Request) -> ScanStart:
        _require_known(request, "scan_id")
        return self._scans.find(request.arguments.get("scan_id") or self._current.scan_id)

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
        self._streaming = None
        with frozen_garbage_collector():
            self._guarded(self._stream)
            self.guard.make_safe("scan_ended", "the scan ended")
        self._announce_end("stopped")

    def _stream(self) -> None:
        collected_s = time.monotonic()
        for samples in self._controller.blocks():
            seq = self._order.number(samples)
            self._complain()
            if seq is None:
                continue
            self.guard.block_came(samples)
            if self._streaming is None or samples.scan_id != self._streaming[0]:
                self._announce_end("another scan follows")
                self._announce(samples.scan_id)
            self._publish_block(samples, seq)
            self._streaming = samples.scan_id, samples.frame_index
            if samples.ends_frame:
                self._acquired += 1
                if time.monotonic() - collected_s > COLLECT_EVERY_S:
                    collect()
                    collected_s = time.monotonic()

    def _announce(self, scan_id: str) -> None:
        self._current = self._scans.find(scan_id)
        self._publisher.publish(self._current)
        self._publish_report()

    def _announce_end(self, reason: str) -> None:
        if self._streaming is not None:
            self._publisher.publish(ScanEnd(*self._streaming, reason))

    def _complain(self) -> None:
        """Tell, at most once a second, how many blocks the controller has lost or delivered wrong."""
        counted, now = (self._order.lost, self._order.refused), time.monotonic()
        if counted > self._complained and now - self._complained_s > COMPLAIN_EVERY_S:
            self._complained, self._complained_s = counted, now
            text = f"{counted[0]} blocks of the controller are missing; {counted[1]} were not whole or doubled: refused"
            self.guard.report("blocks_wrong", text, "warning")

    def _publish_block(self, samples: Samples, seq: int) -> None:
        self._publisher.publish(
            SampleBlock(
                scan_id=samples.scan_id,
                path_digest=samples.path.digest,
                frame_index=samples.frame_index,
                first=samples.first,
                counts=samples.counts,
                seq=seq,
                t_first_ns=samples.t_first_ns,
                t_last_ns=samples.t_last_ns,
                t_sent_ns=time.monotonic_ns(),
            )
        )

    # --- status -----------------------------------------------------------------------------------------------------

    def _publish_report(self) -> None:
        self._publisher.publish(StatusReport("microscope", time.monotonic_ns(), self._report_values()))

    def _report_values(self) -> dict[str, Any]:
        held = time.monotonic() - self._control_seen_s < CONTROL_HELD_S
        return {
            **self.guard.values(),
            "acquired": self._acquired,
            "control_holder": self._control_holder if held else "",
            "dead_man": self._controller.limits.dead_man,
            "patterns": self._pattern_names,
            "blocks_lost": self._order.lost,
            "blocks_refused": self._order.refused,
            "has_listener": self._publisher.has_listener("samples"),
            "garbage": self._control.garbage,
            **scan_values(self._current, self._controller.limits),
        }


def _require_known(request: Request, *names: str) -> None:
    unknown = sorted(str(name) for name in request.arguments if name not in names)
    if unknown:
        raise ValueError(f"{request.verb} takes {' and '.join(names)}, got {', '.join(unknown)}")
