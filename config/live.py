"""`lowdose live` and `lowdose display`: what they check, start and leave behind."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowdose.acquisition.display.qt_checks import DisplayError, has_screen, require_window
from lowdose.acquisition.realtime import SWITCH_INTERVAL_S
from lowdose.config.build import require_usable
from lowdose.config.child import stop_event
from lowdose.config.errors import ConfigError
from lowdose.config.figures import write_json
from lowdose.config.launch import CUT_SHORT, FAILED, Supervisor, with_free_ports
from lowdose.config.options import require_recordable, require_writable

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from lowdose.acquisition.display.view_model import ViewModel
    from lowdose.acquisition.frames import DenseFrame
    from lowdose.config.schema import LowdoseSettings

HEADLESS_FRAMES = 200
DEFAULT_PICTURE = Path("lowdose-live.png")


def run_live(
    settings: LowdoseSettings,
    *,
    headless: bool,
    frames: int | None,
    record: Path | None,
    picture: Path | None,
    json_file: Path | None,
    named: Callable[[str], bool],
) -> int:
    """Check everything, then start and supervise the services; return the exit code.

    Without a screen there is no window: 200 frames unless `frames` says otherwise, and a picture is left behind.
    """
    if not headless and not has_screen():
        print("no screen: running without a window")
        headless = True
    if headless:
        frames, picture = frames or HEADLESS_FRAMES, picture or DEFAULT_PICTURE
    else:
        _require_window()
    require_usable(settings)
    record = record or (Path(settings.record.path) if settings.record.path else None)
    require_writable(picture, json_file, record)
    if record is not None:
        require_recordable(record)
    options = [
        *(["--headless"] if headless else []),
        *(["--frames", str(frames)] if frames else []),
        *(["--picture", str(picture.absolute())] if picture else []),
        *(["--json", str(json_file.absolute())] if json_file else []),
    ]
    stop = stop_event(child=False)
    with Supervisor(with_free_ports(settings, named), options, record=record) as supervisor:
        return supervisor.run(stop)


def run_display(
    settings: LowdoseSettings,
    *,
    headless: bool,
    frames: int | None,
    picture: Path | None,
    json_file: Path | None,
    trace: Path | None,
    child: bool,
) -> None:
    """Show frames until the window is closed or enough were shown, then write what was asked for.

    Started alone it is the client that starts the scan and holds its lease; as a child its supervisor is.
    """
    if not headless:
        _require_window()
    require_writable(picture, json_file, trace)
    stop = stop_event(child=child)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    traced: list[dict[str, Any]] = []
    on_shown = (lambda frame, received, painted: traced.append(_traced(frame, received, painted))) if trace else None
    model = _shown(settings, stop, headless=headless, frames=frames, child=child, on_shown=on_shown)
    if trace is not None:
        trace.write_text(json.dumps({"stamps": traced, "summary": model.summary()}), encoding="utf-8")
    try:
        _leave_behind(model, picture, json_file, tell=headless)
    except (OSError, RuntimeError) as error:  # a display that is started again would only scan once more for nothing
        print(f"error: {error}", file=sys.stderr)
        sys.exit(CUT_SHORT if child else FAILED)
    gc.freeze()  # the interpreter's last collection, of a whole window, takes longer than the supervisor waits
    counted = headless or (frames is not None and model.scan_is_over())  # else a person has closed the window
    if counted and _cut_short(model, frames, stop):
        sys.exit(CUT_SHORT if child else FAILED)


def _cut_short(model: ViewModel, frames: int | None, stop: threading.Event) -> bool:
    """Tell whether a run that nobody ended must not count as a success, and say why."""
    alarm = model.microscope.get("alarm")
    if alarm:
        print(f"alarm: {alarm}. Blank the beam by hand", file=sys.stderr)
    elif frames is not None and model.frames < frames and not stop.is_set():
        print(f"the beam was made safe after {model.frames} of {frames} frames", file=sys.stderr)
    else:
        return False
    return True


def _shown(
    settings: LowdoseSettings,
    stop: threading.Event,
    *,
    headless: bool,
    frames: int | None,
    child: bool,
    on_shown: Callable[[DenseFrame, int, int], None] | None,
) -> ViewModel:
    endpoints = (settings.network.frames, settings.network.samples, settings.network.control)
    alone = not child
    if headless:
        from lowdose.acquisition.display.headless import run_headless

        return run_headless(
            *endpoints,
            frames=frames,
            hold_lease=alone,
            start=alone,
            on_shown=on_shown,
            stop=stop,
        )
    from lowdose.acquisition.display.app import run_window

    return run_window(
        *endpoints,
        frames=frames,
        hold_lease=alone,
        start=alone,
        snapshot_folder=Path.cwd(),
        on_painted=on_shown,
        stop=stop,
    )


def _leave_behind(model: ViewModel, picture: Path | None, json_file: Path | None, *, tell: bool) -> None:
    summary = model.summary()
    if not summary["frames"]:
        print("no frame came")
        return
    if json_file is not None:
        write_json(json_file, summary)
    if picture is not None and model.frame is not None:
        from lowdose.acquisition.display.snapshot import write_picture

        write_picture(picture, model.frame)
        print(f"wrote {picture}")
    if tell:
        latency, failed = summary["latency_ms"], summary["engine_failures"]
        failures = f" ({failed} frames without it: it failed)" if failed else ""
        others = {name: n for name, n in summary["frames_by_engine"].items() if name != summary["engine"]}
        failures += "".join(f" ({n} by {name})" for name, n in others.items())
        print(
            f"{summary['frames']} frames shown, {summary['acquired']} acquired, {summary['skipped']} skipped, "
            f"{summary['dropped']} blocks dropped, {summary['gaps']} gaps; {summary['pattern']} coverage "
            f"{_number(summary['coverage'], 4)}; engine {summary['engine']}{failures}; "
            f"{_number(summary['fps'])} frames/s; "
            f"latency p50 {_number(latency['p50'])} ms, p99 {_number(latency['p99'])} ms"
        )


def _number(value: float | None, digits: int = 1) -> str:
    """Return a figure, or a dash where a run was too short to have it."""
    return "–" if value is None else f"{value:.{digits}f}"


def _traced(frame: DenseFrame, t_received_ns: int, t_painted_ns: int) -> dict[str, Any]:
    stamps = {**frame.times_ns, "arrived": t_received_ns, "painted": t_painted_ns}
    return {"scan_id": frame.scan_id, "frame_index": frame.frame_index, "engine": frame.engine, **stamps}


def _require_window() -> None:
    try:
        require_window()
    except DisplayError as error:
        raise ConfigError(str(error)) from None
