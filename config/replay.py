"""`lowdose replay`: a recorded session in the microscope's place, everything behind it as in `lowdose live`."""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.display.qt_checks import DisplayError, has_screen, require_window
from lowdose.acquisition.session_reader import SessionReader, read_session
from lowdose.acquisition.settings import GridSettings
from lowdose.acquisition.sockets import ControlRefusedError
from lowdose.config.build import require_memory
from lowdose.config.child import run_service, stop_event
from lowdose.config.engines import require_engine
from lowdose.config.errors import ConfigError
from lowdose.config.launch import Supervisor, with_free_ports
from lowdose.config.options import require_writable
from lowdose.scan_patterns.checks import printable
from lowdose.simulator.replay_service import ReplayService
from lowdose.simulator.replay_timing import require_pace
from lowdose.simulator.replayed_scan import label
from lowdose.simulator.session_replay import SessionReplay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lowdose.acquisition.messages import ScanStart
    from lowdose.config.schema import LowdoseSettings

logger = logging.getLogger(__name__)

LOOK_S = 0.02
LAST_LOOK_S = 0.5
"""What the last of a number of steps gets to be shown in."""


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How a session is replayed.

    Parameters
    ----------
    speed : float
        So many times faster than recorded, at least 0.001; 0 = as fast as the reconstruction takes it, nothing dropped.
    start_s : float
        Frames that began earlier after the first sample are left out [s].
    loop, step : bool
        Begin again at the end; hold after every frame.
    """

    speed: float = 1.0
    start_s: float = 0.0
    loop: bool = False
    step: bool = False

    def __post_init__(self) -> None:
        require_pace(speed=self.speed, start_s=self.start_s)

    @property
    def arguments(self) -> tuple[str, ...]:
        """These options as they stand on a command line."""
        flags = ["--loop"] * self.loop + ["--step"] * self.step
        return f"--speed={self.speed!r}", f"--start={self.start_s!r}", *flags


def run_replay(
    session: Path,
    settings: LowdoseSettings,
    options: ReplayOptions,
    *,
    headless: bool,
    frames: int | None,
    picture: Path | None,
    json_file: Path | None,
    named: Callable[[str], bool],
) -> int:
    """Check everything, then start and supervise the services until the session ends; return the exit code.

    Raises
    ------
    SessionError
        If there is nothing that can be replayed.
    ConfigError
        If an option or a setting is wrong.
    """
    if settings.record.path:
        raise ConfigError(f"record.path is {settings.record.path!r}, but a replay is not recorded: leave it out")
    if not headless and not has_screen():
        print("no screen: running without a window")
        headless = True
    if not headless:
        _require_window()
    require_writable(picture, json_file)
    for stage in settings.stages:
        require_engine(stage)
    settings = with_grid_of(first_scan(session, options), settings)
    settings = with_free_ports(settings, named)
    display_options = [
        *(["--headless"] if headless else []),
        *(["--frames", str(frames)] if frames else []),
        *(["--picture", str(picture.absolute())] if picture else []),
        *(["--json", str(json_file.absolute())] if json_file else []),
    ]
    stop = stop_event(child=False)
    replay = ("replay", str(session.absolute()), *options.arguments)
    with Supervisor(settings, display_options, replay=replay) as supervisor:
        if options.step:
            at_end = supervisor.display.ask_to_end if headless else None
            steps = (settings.network.control, stop, at_end)
            threading.Thread(target=_step_on_enter, args=steps, name="steps", daemon=True).start()
        return supervisor.run(stop)


def first_scan(session: Path, options: ReplayOptions) -> ScanStart:
    """Return the scan a replay begins with; SessionError or ConfigError if it could not begin."""
    replay = _replay(read_session(session), ReplayOptions(speed=0.0, start_s=options.start_s), require=_any_scan)
    replay.start(lambda _scan_id, _path: True)
    replay.unblank()
    start = replay.scan(next(replay.blocks()).scan_id)
    _require_memory(start)
    return start


def with_grid_of(start: ScanStart, settings: LowdoseSettings) -> LowdoseSettings:
    """Return settings with the grid that was recorded, for what is made ready before a scan begins."""
    grid = start.grid
    recorded = GridSettings(
        rows=grid.rows, cols=grid.cols, pixel_size_nm=grid.pixel_size_nm, rotation_deg=grid.rotation_deg
    )
    return settings.model_copy(update={"grid": recorded})


def run_replay_service(session: Path, settings: LowdoseSettings, options: ReplayOptions) -> None:
    """Replay a session in the microscope service's place, as a child, and tell what was missing of it."""
    reader = read_session(session)
    replay = _replay(reader, options, require=_require_memory)
    service = ReplayService(replay, settings.network, name=label(session.name), waits=options.speed == 0)
    run_service(service, child=True)
    if service.over:
        tell_what_is_missing(reader, replay)


def tell_what_is_missing(reader: SessionReader, replay: SessionReplay) -> None:
    """Log what of a session could not be replayed."""
    name = printable(str(reader.path))
    if not reader.report.whole:
        logger.warning("%s is not whole, what can be read was replayed: see 'lowdose session verify'", name)
    if replay.homeless or replay.refused:
        logger.warning(
            "%s: %d blocks left out because their scan's start is missing, %d because they are not on its path",
            *(name, replay.homeless, replay.refused),
        )


def _replay(reader: SessionReader, options: ReplayOptions, *, require: Callable[[ScanStart], None]) -> SessionReplay:
    return SessionReplay(
        reader,
        speed=options.speed,
        start_s=options.start_s,
        loop=options.loop,
        step=options.step,
        require=require,
    )


def _require_memory(start: ScanStart) -> None:
    require_memory(start.grid, len(start.channels))


def _any_scan(_start: ScanStart) -> None:
    pass


def _require_window() -> None:
    try:
        require_window()
    except DisplayError as error:
        raise ConfigError(str(error)) from None


# --- single steps ---------------------------------------------------------------------------------------------------


def _step_on_enter(endpoint: str, stop: threading.Event, at_end: Callable[[], None] | None) -> None:
    """Let a frame come for every line of the standard input; `at_end` is called when no more lines can come."""
    if sys.stdin.isatty():
        print("Enter: next frame, Ctrl-C: end")
    with MicroscopeClient(endpoint, "steps", timeout_s=0.5) as client:
        while lines := os.read(sys.stdin.fileno(), 1024).count(b"\n"):
            for _ in range(lines):
                _step(client, stop)
        if at_end is not None and _wait_until_held(client, stop):
            stop.wait(LAST_LOOK_S)
            at_end()


def _step(client: MicroscopeClient, stop: threading.Event) -> None:
    if _wait_until_held(client, stop):
        with suppress(TimeoutError, ControlRefusedError):
            client.start()


def _wait_until_held(client: MicroscopeClient, stop: threading.Event) -> bool:
    """Wait until the frame before has come; tell False if everything ends."""
    while not stop.wait(LOOK_S):
        with suppress(TimeoutError, ControlRefusedError):
            if client.status()["state"] == "paused":
                return True
    return False
