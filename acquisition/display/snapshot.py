"""Snapshots: the completed picture as PNG with everything known about it as JSON beside it (imports Pillow)."""

from __future__ import annotations

import json
import os
import re
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lowdose.acquisition.display.levels import measured_to_uint8, percentile_levels, to_uint8

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lowdose.acquisition.display.view_model import Picture
    from lowdose.acquisition.frames import DenseFrame

MAX_COPIES = 10_000
SEPARATOR_PX = 4


def write_snapshot(folder: Path, picture: Picture, counters: Mapping[str, Any]) -> str:
    """Write a picture and its description, and return what to tell the operator; never raises for a full disk."""
    try:
        path = save_snapshot(folder, picture, counters)
    except OSError as error:
        return f"no snapshot: {error.strerror or error} ({folder})"
    return f"snapshot saved: {path}"


def save_snapshot(folder: Path, picture: Picture, counters: Mapping[str, Any]) -> Path:
    """Write lowdose-snapshot-<scan>-<frame>.png and .json, never over existing ones; return the picture's path.

    The completed picture is written, also while the uncertainty is shown.

    Both are written beside their place and moved there, the description first: a picture always has one.

    Raises
    ------
    OSError
        If the folder cannot be written or is full; nothing is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scan = re.sub(r"[^A-Za-z0-9_-]", "_", picture.frame.scan_id[:8]) or "scan"
    path = _free_path(folder, f"lowdose-snapshot-{scan}-{picture.frame.frame_index}")
    description = json.dumps(describe(picture, counters), indent=2, default=str)
    channel = picture.frame.channels.index(picture.channel)
    image = Image.fromarray(to_uint8(picture.frame.image[channel], picture.low, picture.high))
    _write_beside(path.with_suffix(".json"), lambda part: part.write_text(description + "\n", encoding="utf-8"))
    try:
        _write_beside(path, lambda part: image.save(part, format="PNG"))
    except OSError:
        path.with_suffix(".json").unlink(missing_ok=True)
        raise
    return path


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
    """
    low, high = levels or percentile_levels(frame.image[0])
    measured = measured_to_uint8(frame.measured[0], frame.hits, low, high).repeat(frame.scale, 0).repeat(frame.scale, 1)
    separator = np.full((frame.grid.rows, SEPARATOR_PX), 255, np.uint8)
    image = Image.fromarray(np.hstack([measured, separator, to_uint8(frame.image[0], low, high)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_beside(path, lambda part: image.save(part, format="PNG"))


def _free_path(folder: Path, stem: str) -> Path:
    for copy in range(1, MAX_COPIES):
        path = folder / (f"{stem}.png" if copy == 1 else f"{stem}-{copy}.png")
        if not path.exists() and not path.with_suffix(".json").exists():
            return path
    raise FileExistsError(f"{MAX_COPIES} snapshots of this frame are there already")


def _write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a hidden name in the same folder, then move: nobody sees half a file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
