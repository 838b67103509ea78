"""Snapshots: a shown frame as calibrated TIFF, as PNG, and all that is known about it as JSON (imports Pillow)."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lowdose.acquisition.display.levels import measured_to_uint8, percentile_levels, to_uint8
from lowdose.acquisition.exporting import LAYERS, ExportError, ExportFrame, ExportPlan, dense_layers, export_frames
from lowdose.scan_patterns.grid import ScanGrid

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lowdose.acquisition.display.view_model import Picture
    from lowdose.acquisition.frames import DenseFrame

MAX_COPIES = 10_000
SEPARATOR_PX = 4


def write_snapshot(folder: Path, picture: Picture, counters: Mapping[str, Any]) -> str:
    """Write a picture and its description, and return what to tell the operator; never raises for a full disk."""
    try:
        path = save_snapshot(folder, picture, counters)
    except (OSError, ExportError) as error:
        return f"no snapshot: {getattr(error, 'strerror', None) or error} ({folder})"
    return f"snapshot saved: {path}"


def save_snapshot(folder: Path, picture: Picture, counters: Mapping[str, Any]) -> Path:
    """Write the folder lowdose-snapshot-<scan>-<frame>, never over an existing one, and return its path.

    It holds what `lowdose session export --format tiff` makes of the frame, a calibrated TIFF of every layer with
    ``metadata.json``, and ``picture.png``, the completed picture as it is shown, also while the uncertainty is.

    Raises
    ------
    OSError, ExportError
        If the folder cannot be written or is full; nothing is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frame = picture.frame
    scan = re.sub(r"[^A-Za-z0-9_-]", "_", frame.scan_id[:8]) or "scan"
    path = _free_path(folder, f"lowdose-snapshot-{scan}-{frame.frame_index}")
    image = Image.fromarray(to_uint8(frame.image[frame.channels.index(picture.channel)], picture.low, picture.high))
    plan = _plan(frame, describe(picture, counters))
    export_frames(path, "tiff", plan, [_exported(frame)], finish=lambda part: image.save(part / "picture.png"))
    return path


def _plan(frame: DenseFrame, description: dict[str, Any]) -> ExportPlan:
    grid, scale = frame.grid, frame.scale
    return ExportPlan(
        grid=ScanGrid((grid.rows // scale, grid.cols // scale), grid.pixel_size_nm * scale, grid.rotation_deg),
        scale=scale,
        channels=frame.channels,
        layers=LAYERS,
        n_frames=1,
        engines=frame.engine,
        uncertainty_kind=frame.uncertainty_kind,
        metadata=description,
    )


def _exported(frame: DenseFrame) -> ExportFrame:
    return ExportFrame(
        frame_index=frame.frame_index,
        samples_used=frame.samples_used,
        t_s=None,
        positions=None,
        engine=frame.engine,
        layers=dense_layers(frame),
    )


def describe(picture: Picture, counters: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything known about a picture, ready for JSON."""
    frame, grid = picture.frame, picture.frame.grid
    return {
        "inferred": True,
        "note": "pixels between the measured ones are inferred by the engines named here",
        "channel": picture.channel,
        "levels": {"low": picture.low, "high": picture.high},
        "grid": {
            "rows": grid.rows,
            "cols": grid.cols,
            "pixel_size_nm": grid.pixel_size_nm,
            "rotation_deg": grid.rotation_deg,
        },
        "scale": frame.scale,
        "scan_id": frame.scan_id,
        "path_digest": frame.path_digest,
        "frame_index": frame.frame_index,
        "complete": frame.complete,
        "samples_used": frame.samples_used,
        "coverage": float(np.count_nonzero(frame.hits)) / frame.hits.size,
        "uncertainty_kind": frame.uncertainty_kind,
        "engines": [{"name": e.name, "digest": e.digest, "precision": e.precision} for e in frame.engines],
        "times_ns": dict(frame.times_ns),
        "saved": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "counters": dict(counters),
    }


def write_picture(path: Path, frame: DenseFrame, levels: tuple[float, float] | None = None) -> None:
    """Write measured and completed picture side by side as PNG.

    Parameters
    ----------
    path : Path
        Replaced if it exists.
    frame : DenseFrame
        Its first channel is written.
    levels : (low, high) or None
        Counts of black and white; None = 0.5 and 99.5 percentile of the completed picture.

    It is written beside its place and moved there: nobody sees half a file.
    """
    low, high = levels or percentile_levels(frame.image[0])
    measured = measured_to_uint8(frame.measured[0], frame.hits, low, high).repeat(frame.scale, 0).repeat(frame.scale, 1)
    separator = np.full((frame.grid.rows, SEPARATOR_PX), 255, np.uint8)
    image = Image.fromarray(np.hstack([measured, separator, to_uint8(frame.image[0], low, high)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        image.save(part, format="PNG")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _free_path(folder: Path, stem: str) -> Path:
    for copy in range(1, MAX_COPIES):
        path = folder / (stem if copy == 1 else f"{stem}-{copy}")
        if not path.exists():
            return path
    raise FileExistsError(f"{MAX_COPIES} snapshots of this frame are there already")
