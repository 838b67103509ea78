"""BeamGuard: decides when the beam must be off, and turns it off (imports the controller protocol only).

Every trigger ends in `make_safe`: blank, stop, park, in this order, each tried even if the one before failed or hangs.
Deadlines are checked by `watch`, in a thread of its own; a further one belongs into `_overdue`. What the host cannot
notice, because it is the host that stopped, is the controller's dead man.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from lowdose.acquisition.continuity import block_plan
from lowdose.acquisition.controllers.base import BlankNotConfirmedError
from lowdose.acquisition.status import Event
from lowdose.scan_patterns.dose import dose_rate_e_per_a2_s, frame_dose_e_per_a2

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowdose.acquisition.controllers.base import Samples, ScanController
    from lowdose.acquisition.settings import DoseSettings, SafetySettings
    from lowdose.acquisition.status import BeamState, Severity
    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.scan_patterns.path import ScanPath

    Reason = tuple[str, str, Severity]  # of an event: kind, text, severity
    Order = tuple[Callable[[], None], queue.SimpleQueue[BaseException | None]] | None

logger = logging.getLogger(__name__)

MAX_TEXT = 2_000
"""Longest text of an event [characters]: a driver's error may be of any length, a message's header may not."""
GRACE_S = 0.05
"""A controller that raises what it must gets so much longer than its timeout before it counts as hung."""


class BeamGuard:
    """The beam's state, its lease, its dose; any thread may call anything.

    Parameters
    ----------
    controller : ScanController
        Whose beam it guards.
    safety, dose : SafetySettings, DoseSettings
        The bounds.
    beam_current_pa : float
        For the dose [pA].
    emit : callable
        Takes every `Event`; must not block.
    lost_recording : callable
        Tells, once, why what is measured is not being recorded any more; must not block.
    clock : callable
        Monotonic time [ns].
    """

    def __init__(
        self,
        controller: ScanController,
        safety: SafetySettings,
        dose: DoseSettings,
        *,
        beam_current_pa: float,
        emit: Callable[[Event], None],
        lost_recording: Callable[[], Reason | None] = lambda: None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not controller.limits.dead_man and not safety.allow_no_dead_man:
            raise ValueError(
                "this controller has no dead man: if this host stops, the beam stays on. Set safety.allow_no_dead_man: "
                "true to accept that"
            )
        self._controller, self._safety, self._dose = controller, safety, dose
        self._beam_current_pa = beam_current_pa
        self._emit, self._lost_recording, self._clock = emit, lost_recording, clock
        self._lock = threading.RLock()  # of the figures; never held while the controller does something
        self._acting = threading.Lock()  # one order to the beam at a time; held no longer than the steps may take
        self._orders = self._new_hands()
        self._renewed_ns = 0
        self._block_came_ns = self._block_due_ns = self._scanned_until_ns = 0
        self._frame_longest_ns = 0
        self._grid: ScanGrid | None = None
        self._was_late = False
        self.late, self.late_ms = 0, 0.0
        self.lease_holder = ""
        self.state: BeamState = "parked"
        self.alarm = ""
        self.off_orders = 0
        self.area_id = 0
        self.area_dose_e_per_a2 = 0.0

    # --- lease ------------------------------------------------------------------------------------------------------

    def renew_lease(self, client: str) -> None:
        """Keep the scan alive. Raises PermissionError while somebody else holds a live lease."""
        with self._lock:
            if self.lease_holder not in ("", client) and not self._lease_expired():
                raise PermissionError(f"the lease is held by {self.lease_holder}")
            self.lease_holder = client
            self._renewed_ns = self._clock()

    def ensure_lease(self, client: str) -> None:
        """Make the client that starts a scan the lease holder, unless a live one keeps it."""
        with self._lock:
            if self.lease_holder in ("", client) or self._lease_expired():
                self.lease_holder = client
                self._renewed_ns = self._clock()

    def holds_lease(self, client: str) -> bool:
        """Tell whether the client holds a lease that has not run out."""
        with self._lock:
            return self.lease_holder == client and not self._lease_expired()

    @property
    def lease_until_ns(self) -> int:
        """When the lease runs out, or ran out [ns]."""
        return self._renewed_ns + round(self._safety.lease_s * 1e9)

    def _lease_expired(self) -> bool:
        return self._clock() > self.lease_until_ns

    # --- deadlines --------------------------------------------------------------------------------------------------

    def watch(self, end: threading.Event) -> None:
        """Check all deadlines every few milliseconds until `end` is set; runs in a thread that does nothing else."""
        while not end.wait(self._safety.check_every_ms / 1e3):
            self.check()

    def check(self) -> None:
        """Make safe if a deadline has passed while scanning, or a recording was lost, whatever the beam does."""
        self._make_safe(self._overdue)

    def _overdue(self) -> Reason | None:
        lost = self._lost_recording()
        if lost is not None:
            self.off_orders += 1  # a start that still waits was asked for by somebody who trusted the recording
            return lost
        if self.state != "scanning":
            return None
        if self._lease_expired():
            text = f"nobody renewed the lease of {self.lease_holder} for {self._safety.lease_s:g} s"
            return "lease_lost", text, "warning"
        now = self._clock()
        if now > self._block_due_ns:
            waited_ms = (now - self._block_came_ns) / 1e6
            return "block_deadline", f"the controller delivered nothing for {waited_ms:.0f} ms", "warning"
        return None

    def block_came(self, samples: Samples) -> None:
        """Take note of a good block: the next one has a new deadline; one that came late is an event.

        A controller without a dead man holds the beam where it is while the host is late: that counts as dose.
        """
        now, plan = self._clock(), block_plan(samples.path, self._controller.limits)
        with self._lock:
            longest_ns = max(plan.longest_ns, self._frame_longest_ns)
            self._block_came_ns, self._block_due_ns = now, now + self._block_patience_ns(longest_ns)
            self._charge_held(samples.t_last_ns, plan.beam_ns[samples.first])
            late_ms = (now - samples.t_last_ns) / 1e6
            begins, self._was_late = not self._was_late, late_ms > self._safety.late_ms
            begins &= self._was_late
            if begins:
                self.late, self.late_ms = self.late + 1, late_ms
        if begins:
            self.report("late", f"a block came late, late_ms={late_ms:.1f}: the schedule moves on", "info")

    def _block_patience_ns(self, longest_ns: int) -> int:
        return round(max(self._safety.block_deadline_ms * 1e6, self._safety.block_deadline_blocks * longest_ns))

    # --- dose -------------------------------------------------------------------------------------------------------

    def require_budget(self, path: ScanPath) -> None:
        """Raise PermissionError if one more frame along a path would exceed the area's dose budget."""
        after = self.area_dose_e_per_a2 + self._frame_dose_e_per_a2(path)
        budget = self._dose.budget_e_per_a2
        if budget is not None and after > budget:
            raise PermissionError(
                f"the dose budget of area {self.area_id} is spent: {self.area_dose_e_per_a2:.4g} of {budget:g} e-/Å², "
                f"and a frame more makes {after:.4g}. Move to a new area"
            )

    def admit(self, path: ScanPath) -> bool:
        """Charge a frame to the area's dose and let it begin; or blank and refuse, when the budget forbids it.

        A frame that is broken off counts whole.
        """
        try:
            self.require_budget(path)
        except PermissionError as refusal:
            self.report("budget_spent", str(refusal), "warning")
            return False
        longest_ns = block_plan(path, self._controller.limits).longest_ns
        with self._lock:
            self.area_dose_e_per_a2 += self._frame_dose_e_per_a2(path)
            self._frame_longest_ns, self._grid = longest_ns, path.grid
            self._block_due_ns = max(self._block_due_ns, self._block_came_ns + self._block_patience_ns(longest_ns))
        return True

    def _frame_dose_e_per_a2(self, path: ScanPath) -> float:
        beam_time_us = self._controller.limits.beam_time_us(path)
        return frame_dose_e_per_a2(path, self._beam_current_pa, beam_time_us=beam_time_us)

    def _charge_held(self, until_ns: int, scanned_ns: int) -> None:
        """Charge what passed since the last block beyond its beam time, where nothing blanks meanwhile."""
        held_s = (until_ns - self._scanned_until_ns - scanned_ns) / 1e9
        self._scanned_until_ns = until_ns
        if held_s > 0 and self._grid is not None and not self._controller.limits.dead_man:
            self.area_dose_e_per_a2 += held_s * dose_rate_e_per_a2_s(self._grid, self._beam_current_pa)

    def new_area(self) -> int:
        """Sum the dose from zero: the stage has moved."""
        with self._lock:
            self.area_id += 1
            self.area_dose_e_per_a2 = 0.0
            return self.area_id

    # --- beam -------------------------------------------------------------------------------------------------------

    def begin_scanning(self, *, off_orders_seen: int | None = None) -> None:
        """Unblank.

        Raises PermissionError while an alarm is latched, or when the beam was ordered off since `off_orders_seen`.
        """
        with self._acting:
            if self.alarm:
                raise PermissionError(f"alarm: {self.alarm}. Blank the beam by hand, then clear the alarm")
            if off_orders_seen not in (None, self.off_orders):
                raise PermissionError("the beam was ordered off after this start was asked for: start again")
            failure = self._attempt("unblank", self._controller.unblank)
            if failure is None:
                self._begin()
                return
        self.make_safe("unblank_failed", f"unblank failed: {_told(failure)}", "alarm")
        if isinstance(failure, BlankNotConfirmedError):  # who knows when it takes effect
            self._raise_alarm(failure, self._clock())
        raise failure

    def _begin(self) -> None:
        with self._lock:
            now = self._clock()
            self._scanned_until_ns, self._was_late, self._frame_longest_ns = now, False, 0
            self._block_came_ns, self._block_due_ns = now, now + self._block_patience_ns(0)
            self.state = "scanning"

    def order_off(self, kind: str, text: str) -> None:
        """Make safe because a person wants the beam off: a start that still waits is not done any more."""
        self.off_orders += 1
        self.make_safe(kind, text)

    def make_safe(self, kind: str, text: str, severity: Severity = "info") -> None:
        """Blank, stop and park whatever state the controller is in; a blank that is not confirmed latches an alarm."""
        self._make_safe(lambda: (kind, text, severity))

    def _make_safe(self, why: Callable[[], Reason | None]) -> None:
        """Make safe if there is a reason; it is told afterwards, because the log or its terminal may be slow."""
        with self._acting:
            reason = why()
            if reason is None:
                return
            noticed_ns = self._clock()
            was_scanning = self.state == "scanning"
            failure, failed_ns = self._turn_off()
            if was_scanning:
                with self._lock:
                    self._charge_held(self._clock(), 0)
        kind, text, severity = reason
        if was_scanning or severity != "info":
            self.report(kind, text, severity, noticed_ns)
        if failure is not None:
            self._raise_alarm(failure, failed_ns)

    def _turn_off(self) -> tuple[BaseException | None, int]:
        """Blank, stop, park, each tried even if the one before failed; return the first failure and when [ns]."""
        timeout_s, failure, failed_ns = self._safety.blank_timeout_s, None, 0
        steps: list[tuple[str, BeamState, Callable[[], None]]] = [
            ("blank", "blanked", lambda: self._controller.blank(timeout_s)),
            ("stop", "blanked", self._controller.stop),
            ("park", "parked", lambda: self._controller.park(timeout_s)),
        ]
        for verb, state_after, action in steps:
            failed = self._attempt(verb, action)
            if failed is None and self.state not in ("fault", "parked"):
                self.state = state_after
            elif failed is not None and failure is None:
                failure, failed_ns = failed, self._clock()
                self.state, self.alarm = "fault", _told(failed)
        return failure, failed_ns

    def _raise_alarm(self, failure: BaseException, failed_ns: int) -> None:
        self.state, self.alarm = "fault", _told(failure)
        self.report("blank_not_confirmed", f"BLANK THE BEAM BY HAND: {self.alarm}", "alarm", failed_ns)

    def clear_alarm(self) -> None:
        """Clear the latched alarm by hand and try to blank again; without an alarm nothing happens."""
        with self._acting:
            if not self.alarm:
                return
            self.alarm, self.state = "", "parked"
        self.make_safe("alarm_cleared", "the alarm was cleared by hand")

    def _attempt(self, verb: str, action: Callable[[], None]) -> BaseException | None:
        """Let the controller do something; return what it raised, or that it did not return in time.

        In another thread: a driver that hangs must not keep the next step from being tried.
        """
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._orders.put((action, done))
        try:
            return done.get(timeout=self._safety.blank_timeout_s + GRACE_S)
        except queue.Empty:
            self._orders = self._new_hands()  # the old ones are left to whatever they hang in
            return BlankNotConfirmedError(f"'{verb}' did not return within {self._safety.blank_timeout_s:g} s")

    def _new_hands(self) -> queue.SimpleQueue[Order]:
        """Start a thread that does what is put into the queue; made now, for a new one starts late on busy cores."""
        orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        threading.Thread(target=_obey, args=(orders,), name="beam", daemon=True).start()
        weakref.finalize(self, orders.put, None)
        return orders

    def values(self) -> dict[str, Any]:
        """Return what people want to know, by the names of the status reports."""
        return {
            "state": self.state,
            "alarm": self.alarm,
            "area_id": self.area_id,
            "dose_area_e_per_a2": self.area_dose_e_per_a2,
            "lease_holder": self.lease_holder,
            "lease_until_ns": self.lease_until_ns,
            "late": self.late,
            "late_ms": self.late_ms,
        }

    def report(self, kind: str, text: str, severity: Severity, t_ns: int | None = None) -> None:
        """Tell everybody on the status channel, then the log."""
        self._emit(Event("microscope", kind, text[:MAX_TEXT], severity, self._clock() if t_ns is None else t_ns))
        logger.log({"info": logging.INFO, "warning": logging.WARNING, "alarm": logging.ERROR}[severity], "%s", text)


def _told(failure: BaseException) -> str:
    """Return a failure as people read it."""
    if isinstance(failure, BlankNotConfirmedError):
        return str(failure)[:MAX_TEXT] or "the controller did not confirm the blank"
    return f"{type(failure).__name__}: {failure}"[:MAX_TEXT]


def _obey(orders: queue.SimpleQueue[Order]) -> None:
    while (order := orders.get()) is not None:
        _carry_out(*order)
        del order  # it knows the guard, whose end ends this thread


def _carry_out(action: Callable[[], None], done: queue.SimpleQueue[BaseException | None]) -> None:
    try:
        action()
        done.put(None)
    except BaseException as error:  # a driver may raise anything; the next step must still be tried
        done.put(error)
