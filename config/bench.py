"""`lowdose bench latency`: the real pipeline with an offscreen window, timed stage by stage."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdose.config.build import require_usable
from lowdose.config.child import stop_event
from lowdose.config.figures import PERCENTILES, machine, percentiles, write_json
from lowdose.config.launch import Supervisor, with_free_ports
from lowdose.config.options import require_writable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.config.schema import LowdoseSettings

WARM_UP = 50
"""Frames shown before counting begins, besides those before the linear map is ready."""

STAGES = (
    ("send", "last_sample", "sent"),
    ("samples on the wire", "sent", "received"),
    ("assemble", "received", "assembled"),
    ("look up maps", "assembled", "prepared"),
    ("frame on the wire", "finished", "arrived"),
    ("paint", "arrived", "painted"),
)


def run_latency(settings: LowdoseSettings, *, frames: int, json_file: Path | None, record: bool = False) -> int:
    """Run the pipeline as `live` does, an offscreen window included, and print a table of what was measured."""
    require_writable(json_file)
    paths = require_usable(settings)
    with tempfile.TemporaryDirectory(prefix="lowdose-bench-") as folder:
        trace = Path(folder) / "trace.json"
        options = ["--frames", str(3 * WARM_UP + frames), "--trace", str(trace)]
        offscreen = {"QT_QPA_PLATFORM": "offscreen", "QT_LOGGING_RULES": "default.warning=false"}
        with Supervisor(
            with_free_ports(settings, lambda _: False),
            options,
            display_environment=offscreen,
            record=Path(folder) / "session.mcap" if record else None,
        ) as supervisor:
            code = supervisor.run(stop_event(child=False))
        if code != 0 or not trace.exists():
            return code or 1
        traced = json.loads(trace.read_text(encoding="utf-8"))
    figures = latency_figures(traced, frames=frames, size=settings.grid.rows, floor_ms=paths[0].duration_us / 1e3)
    figures["recorded"] = record
    _print(figures)
    if json_file is not None:
        write_json(json_file, figures)
    return 0


def latency_figures(traced: dict[str, Any], *, frames: int, size: int, floor_ms: float) -> dict[str, Any]:
    """Return the figures of traced frames, the warm-up left out.

    Parameters
    ----------
    traced : dict
        `stamps` of every painted frame [ns], and the `summary` of the display.
    frames : int
        How many are counted, the last ones.
    size : int
        Edge of the field [pixel].
    floor_ms : float
        Duration of one frame's scan: no picture can be newer than its first sample by less [ms].

    Raises
    ------
    RuntimeError
        If no frame is left after the warm-up.
    """
    final = traced["stamps"][-1]["engine"] if traced["stamps"] else ""
    ready = next((i for i, frame in enumerate(traced["stamps"]) if frame["engine"] == final), 0)
    warm_up = max(ready + WARM_UP, len(traced["stamps"]) - frames)
    kept = traced["stamps"][warm_up:]
    if not kept:
        raise RuntimeError(
            f"nothing to measure: {len(traced['stamps'])} frames came, engine '{final}' began with frame {ready} and "
            f"{WARM_UP} more are warm-up; let it run to its end, with more --frames"
        )
    stamps = {key: np.array([f[key] for f in kept]) for key in kept[0] if key not in ("scan_id", "engine")}
    engine_ns = stamps["engine_ns"]
    end_to_end = _ms(stamps, "last_sample", "painted")
    worst = kept[int(np.argmax(end_to_end))]
    stages = {name: percentiles(_ms(stamps, begin, end)) for name, begin, end in STAGES}
    stages["fill, normalise"] = percentiles(_ms(stamps, "prepared", "finished") - engine_ns / 1e6)
    stages["engine"] = percentiles(engine_ns / 1e6)
    return {
        "frames": len(kept),
        "warm_up": warm_up,
        "dropped": traced["summary"]["dropped"],
        "gaps": traced["summary"]["gaps"],
        "skipped": traced["summary"]["skipped"],
        "fps": traced["summary"]["fps"],
        "size": size,
        "pattern": traced["summary"]["pattern"],
        "coverage": traced["summary"]["coverage"],
        "engine": final,
        "floor_ms": floor_ms,
        "end_to_end_ms": {**percentiles(end_to_end), "worst_frame": f"{worst['scan_id'][:8]}/{worst['frame_index']}"},
        "pipeline_ms": percentiles(_ms(stamps, "last_sample", "arrived") - engine_ns / 1e6),
        "paint_ms": percentiles(_ms(stamps, "arrived", "painted")),
        "stages": stages,
        "machine": machine(),
    }


def _ms(stamps: dict[str, NDArray[np.int64]], begin: str, end: str) -> NDArray[np.float64]:
    return np.asarray((stamps[end] - stamps[begin]) / 1e6)


def _print(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = (
        f"{figures['size']}x{figures['size']} {figures['pattern']}, coverage {figures['coverage']:.4f}, engine "
        f"{figures['engine']}: {figures['frames']} frames after {figures['warm_up']} of warm-up, "
        f"{figures['fps']:.1f} shown/s"
    )
    table = Table("ms", *PERCENTILES, title=title)
    rows = {
        "end to end (last sample to painted)": figures["end_to_end_ms"],
        "pipeline (last sample to received, less engine)": figures["pipeline_ms"],
        "paint (received to drawn)": figures["paint_ms"],
        **{f"  {name}": values for name, values in figures["stages"].items()},
    }
    for name, values in rows.items():
        table.add_row(name, *(f"{values[p]:.2f}" for p in PERCENTILES))
    console = Console(width=110)
    console.print(table)
    console.print(
        f"dropped {figures['dropped']}, gaps {figures['gaps']}, skipped {figures['skipped']}; worst frame "
        f"{figures['end_to_end_ms']['worst_frame']}; floor: scanning one frame takes {figures['floor_ms']:.2f} ms"
    )
    console.print("everything was recorded meanwhile" if figures["recorded"] else "nothing was recorded meanwhile")
    console.print(figures["machine"])
