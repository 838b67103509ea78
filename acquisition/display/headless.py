"""run_headless: receive and count frames without a window (no Qt)."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lowdose.acquisition.display.operator import Operator, display_name
from lowdose.acquisition.display.receiver import Receiver
from lowdose.acquisition.display.view_model import ViewModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowdose.acquisition.frames import DenseFrame

logger = logging.getLogger(__name__)

LOOK_S = 0.05


def run_headless(
    frames_endpoint: str,
    samples_endpoint: str,
    control_endpoint: str,
    *,
    frames: int | None,
    hold_lease: bool,
    start: bool,
    on_shown: Callable[[DenseFrame, int, int], None] | None = None,
    report: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> ViewModel:
    """Receive frames until `frames` came or `stop` is set, and return the view model with the figures.

    Parameters
    ----------
    frames_endpoint, samples_endpoint, control_endpoint : str
        Where the services are.
    frames : int or None
        How many to wait for; None = until `stop` is set.
    hold_lease, start : bool
        Keep the scan's lease; start scanning.
    on_shown : callable or None
        Called with (frame, t_received_ns, t_received_ns) for every frame, from the receiver's thread.
    report : callable or None
        Called with what the operator's commands came to.
    stop : threading.Event or None
        Ends the run.
    """
    model = ViewModel(headless=True, limit=frames, on_shown=on_shown)
    done, stop = threading.Event(), stop or threading.Event()

    def wake() -> None:
        if model.finished:
            done.set()

    with ExitStack() as stack:
        operator = stack.enter_context(
            Operator(
                control_endpoint,
                display_name(),
                report=report or (lambda _: None),
                on_status=model.accept_report,
                hold_lease=hold_lease,
            )
        )
        receiver = stack.enter_context(Receiver(frames_endpoint, samples_endpoint, model=model, wake=wake))
        if start:
            operator.start()
        while not (stop.is_set() or done.wait(LOOK_S) or scan_is_over(model)):
            receiver.maybe_raise()
            operator.maybe_raise()
    return model


def scan_is_over(model: ViewModel) -> bool:
    """Tell whether no frame is to be expected any more; say so, too."""
    if over := model.scan_is_over():
        logger.warning(
            "the scan is over before all frames were shown: %s",
            model.reports.alarm or "stopped, blanked or out of budget",
        )
    return over
