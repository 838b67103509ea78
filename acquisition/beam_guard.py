"""BeamGuard: decides when the beam must be off, and turns it off (imports the controller protocol only).

Every trigger ends in `make_safe`: blank, stop, park, in this order, each tried even if the one before failed. What the
host cannot notice, because it is the host that stopped, is the controller's dead man.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from lowdose.acquisition.controllers.base import BlankNotConfirmedError
from lowdose.acquisition.status import Event
from lowdose.scan_patterns.dose import frame_dose_e_per_a2

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowdose.acquisition.controllers.base import ScanController
    from lowdose.acquisition.settings import DoseSettings, SafetySettings
    from lowdose.acquisition.status import BeamState, Severity
    from lowdose.scan_patterns.path import ScanPath

logger = logging.getLogger(__name__)

MAX_TEXT = 2_000
"""Longest text of an event [characters]: a driver's error may be of any length, a message's header may not."""


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
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not controller.limits.dead_man and not safety.allow_no_dead_man:
            raise ValueError(
                "this controller has no dead man: if this host stops, the beam stays on. Set safety.allow_no_dead_man: "
                "true to accept that"
            )
        self._controller, self._safety, self._dose = controller, safety, dose
        self._beam_current_pa = beam_current_pa
        self._emit, self._clock = emit, clock
        self._lock = threading.RLock()
        self._renewed_ns = 0
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

    def check(self) -> None:
        """Blank if the lease has run out while scanning; called every few milliseconds."""
        with self._lock:
            lost = self.state == "scanning" and self._lease_expired()
            holder = self.lease_holder
        if lost:
            self.make_safe(
                "lease_lost", f"nobody renewed the lease of {holder} for {self._safety.lease_s:g} s", "warning"
            )

    def _lease_expired(self) -> bool:
        return self._clock() - self._renewed_ns > self._safety.lease_s * 1e9

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
            self._report("budget_spent", str(refusal), "warning")
            return False
        with self._lock:
            self.area_dose_e_per_a2 += self._frame_dose_e_per_a2(path)
        return True

    def _frame_dose_e_per_a2(self, path: ScanPath) -> float:
        beam_time_us = self._controller.limits.beam_time_us(path)
        return frame_dose_e_per_a2(path, self._beam_current_pa, beam_time_us=beam_time_us)

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
        with self._lock:
            if self.alarm:
                raise PermissionError(f"alarm: {self.alarm}. Blank the beam by hand, then clear the alarm")
            if off_orders_seen not in (None, self.off_orders):
                raise PermissionError("the beam was ordered off after this start was asked for: start again")
            try:
                self._controller.unblank()
            except Exception as error:
                self.make_safe("unblank_failed", f"unblank failed: {type(error).__name__}: {error}", "alarm")
                raise
            self.state = "scanning"

    def order_off(self, kind: str, text: str) -> None:
        """Make safe because a person wants the beam off: a start that still waits is not done any more."""
        self.off_orders += 1
        self.make_safe(kind, text)

    def make_safe(self, kind: str, text: str, severity: Severity = "info") -> None:
        """Blank, stop and park whatever state the controller is in; a blank that is not confirmed latches an alarm."""
        with self._lock:
            was_scanning = self.state == "scanning"
            failures = [f for f in (self._try_blank(), self._try_stop(), self._try_park()) if f]
            if failures:
                self.state, self.alarm = "fault", failures[0]
            elif self.state != "fault":
                self.state = "parked"
        if was_scanning or severity != "info":
            self._report(kind, text, severity)
        if failures:
            self._report("blank_not_confirmed", f"BLANK THE BEAM BY HAND: {failures[0]}", "alarm")

    def clear_alarm(self) -> None:
        """Clear the latched alarm by hand and try to blank again; without an alarm nothing happens."""
        with self._lock:
            if not self.alarm:
                return
            self.alarm, self.state = "", "parked"
        self.make_safe("alarm_cleared", "the alarm was cleared by hand")

    def _try_blank(self) -> str:
        return self._attempt(lambda: self._controller.blank(self._safety.blank_timeout_s))

    def _try_stop(self) -> str:
        return self._attempt(self._controller.stop)

    def _try_park(self) -> str:
        return self._attempt(lambda: self._controller.park(self._safety.blank_timeout_s))

    @staticmethod
    def _attempt(action: Callable[[], None]) -> str:
        try:
            action()
        except BlankNotConfirmedError as error:
            return str(error)[:MAX_TEXT] or "the controller did not confirm the blank"
        except Exception as error:  # a driver may raise anything; the next step must still be tried
            logger.exception("a step of making the beam safe failed")
            return f"{type(error).__name__}: {error}"[:MAX_TEXT]
        return ""

    def _report(self, kind: str, text: str, severity: Severity) -> None:
        logger.log({"info": logging.INFO, "warning": logging.WARNING, "alarm": logging.ERROR}[severity], "%s", text)
        self._emit(Event("microscope", kind, text[:MAX_TEXT], severity, self._clock()))
