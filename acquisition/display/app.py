"""run_window: the operator's window from start to end (imports Qt)."""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from PySide6.QtCore import QEventLoop, QTimer
from PySide6.QtWidgets import QApplication

from lowdose.acquisition.display.headless import scan_is_over
from lowdose.acquisition.display.operator import Operator, display_name
from lowdose.acquisition.display.receiver import Receiver
from lowdose.acquisition.display.view_model import ViewModel
from lowdose.acquisition.display.window import Window

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    from lowdose.acquisition.frames import DenseFrame

logger = logging.getLogger(__name__)

LOOK_MS = 50


def run_window(
    frames_endpoint: str,
    samples_endpoint: str,
    control_endpoint: str,
    *,
    frames: int | None,
    hold_lease: bool,
    start: bool,
    snapshot_folder: Path,
    on_painted: Callable[[DenseFrame, int, int], None] | None = None,
    stop: threading.Event | None = None,
) -> ViewModel:
    """Show the window until it is closed, `frames` were shown or `stop` is set; return the view model.

    Must be called in the main thread, after `qt_checks.require_window`.

    Parameters
    ----------
    frames_endpoint, samples_endpoint, control_endpoint : str
        Where the services are.
    frames : int or None
        How many to show: a run of so many ends with the scan, too, as without a window. None = no limit.
    hold_lease, start : bool
        Keep the scan's lease; start scanning.
    snapshot_folder : Path
        Where snapshots go.
    on_painted : callable or None
        Called with (frame, t_received_ns, t_painted_ns) after a new frame was drawn.
    stop : threading.Event or None
        Ends the run; looked at 20 times a second.
    """
    _application = application()
    model = ViewModel(limit=frames, on_shown=on_painted)
    with ExitStack() as stack:
        # closed in reverse: the threads that signal the window end before it does
        words = _Words()
        operator = Operator(
            control_endpoint, display_name(), report=words, on_status=model.accept_report, hold_lease=hold_lease
        )
        window = Window(model, operator, snapshot_folder=snapshot_folder)
        stack.callback(window.deleteLater)
        words.say = window.said.emit
        stack.enter_context(_slot_errors(model, window.said.emit))
        stack.enter_context(operator)
        receiver = stack.enter_context(Receiver(frames_endpoint, samples_endpoint, model=model, wake=window.wake))
        stack.enter_context(_interrupt_calls(window.close))
        if start:
            operator.start()
        loop = QEventLoop()  # not the application's: quitting that would end later windows of this process too
        window.closed.connect(loop.quit)
        window.show()
        timer = _looking(window, partial(_ended, model, frames, stop), receiver)
        loop.exec()
        timer.stop()
        window.close()
    return model


def _ended(model: ViewModel, frames: int | None, stop: threading.Event | None) -> bool:
    return model.finished or (stop is not None and stop.is_set()) or (frames is not None and scan_is_over(model))


def application() -> QApplication:
    """Return the process's QApplication, made if there is none, in the style the dark palette is made for."""
    found = QApplication.instance()
    app = found if isinstance(found, QApplication) else QApplication(sys.argv[:1])
    app.setQuitOnLastWindowClosed(False)
    QApplication.setStyle("Fusion")
    return app


class _Words:
    """Passes texts on once there is a window to show them."""

    def __init__(self) -> None:
        self.say: Callable[[str], object] = logger.info

    def __call__(self, text: str) -> None:
        self.say(text)


def _looking(window: Window, ended: Callable[[], bool], receiver: Receiver) -> QTimer:
    """Look for the end 20 times a second; running Python now and then also lets Ctrl-C through."""

    def look() -> None:
        if ended():
            window.close()
        receiver.maybe_raise()

    timer = QTimer(window)
    timer.timeout.connect(look)
    timer.start(LOOK_MS)
    return timer


@contextmanager
def _interrupt_calls(end: Callable[[], object]) -> Iterator[None]:
    """Let Ctrl-C end the window in order, unless the program handles it otherwise: raised in a slot it is lost."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: end())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _slot_errors(model: ViewModel, say: Callable[[str], object]) -> Iterator[None]:
    """Log, count and show what is raised in a slot; a fault of the window ends neither it nor the scan."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, Exception):
            before(kind, error, trace)
            return
        model.faults += 1
        if model.faults in (1, 10, 100) or model.faults % 1000 == 0:
            logger.error("the window had %d faults, last:", model.faults, exc_info=(kind, error, trace))
        say(f"fault in the window ({model.faults}): {kind.__name__}: {error}")

    sys.excepthook = hook
    try:
        yield
    finally:
        sys.excepthook = before
