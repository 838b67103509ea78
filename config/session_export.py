"""`lowdose session export`: a recorded scan as files that other programs open."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from lowdose.acquisition.assembly import FrameAssembler, block_fits
from lowdose.acquisition.exporting import (
    FORMATS,
    LAYERS,
    POINT_FORMATS,
    ExportFrame,
    ExportPlan,
    Layer,
    dense_layers,
    export_frames,
    export_points,
    sparse_layers,
)
from lowdose.acquisition.frames import DenseFrame
from lowdose.acquisition.messages import SampleBlock
from lowdose.acquisition.recording import versions
from lowdose.acquisition.session_reader import SessionReader
from lowdose.acquisition.session_summary import ScanSummary, SessionSummary, summarise
from lowdose.config.build import require_memory
from lowdose.config.engines import build_engine
from lowdose.config.errors import ConfigError
from lowdose.config.schema import StageSettings
from lowdose.config.session import printable, scan_metadata
from lowdose.reconstruction.pipeline import Reconstructor
from lowdose.scan_patterns.checks import nearest_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lowdose.acquisition.frames import SparseFrame
    from lowdose.acquisition.messages import ScanStart

logger = logging.getLogger(__name__)

RECORDED = "recorded"
"""Stands for the completed frames of the session itself, where an engine is named."""
MAPS_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of a session is exported, and how it is completed.

    Parameters
    ----------
    what : tuple of str
        Layers; the mask comes along.
    scan : int or None
        Number of the scan from 1, as `info` lists them; None = the only one.
    frames : tuple of (int, int)
        First frame of the scan and the one after the last.
    engine : str
        Completes the samples; "recorded" takes the completed frames of the session.
    """

    what: tuple[Layer, ...]
    scan: int | None
    frames: tuple[int, int]
    engine: str


def make_selection(what: Sequence[str], scan: int | None, frames: str | None, engine: str) -> Selection:
    """Return a selection of options as they come from the command line.

    Raises
    ------
    ConfigError
        If one is wrong.
    """
    for layer in what:
        if layer not in LAYERS:
            raise ConfigError(f"unknown --what '{layer}': {nearest_name(layer, LAYERS)}")
    layers = tuple(layer for layer in LAYERS if layer in what) or ("sparse", "completed")
    return Selection(layers, scan, _frame_range(frames), engine)


def _frame_range(text: str | None) -> tuple[int, int]:
    """Return first and one after the last of ``A:B``, ``A:``, ``:B`` or ``A``."""
    first, colon, stop = (text or ":").partition(":")
    if not all(part == "" or part.isdecimal() for part in (first, stop)) or not (first or colon):
        raise ConfigError(f"--frames takes A:B, the first frame and the one after the last, got {text!r}")
    begin = int(first or 0)
    end = int(stop) if stop else begin + 1 if not colon else 1 << 62
    if end <= begin:
        raise ConfigError(f"--frames {text} holds no frame: the second number is the one after the last")
    return begin, end


def default_out(path: Path, form: str, scan: int | None) -> Path:
    """Return the name of an export that was given none: beside the session, with the number of a chosen scan."""
    suffix = {**FORMATS, **POINT_FORMATS}[form][0] or f"-{form}"
    return path.with_name(f"{path.stem}{'' if scan is None else f'-scan{scan}'}{suffix}")


def run_export(path: Path, form: str, selection: Selection, out: Path | None) -> int:
    """Convert a scan of a session; return the exit code.

    Raises
    ------
    ConfigError, SessionError
        If an option is wrong, or the session cannot be read.
    ExportError
        If the export cannot be written.
    """
    if form not in FORMATS and form not in POINT_FORMATS:
        raise ConfigError(f"unknown --format '{form}': {nearest_name(form, [*FORMATS, *POINT_FORMATS])}")
    out = out or default_out(path, form, selection.scan)
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"cannot write {out}: there is no folder {out.absolute().parent}")
    summary = summarise(path)
    if not summary.report.whole:
        logger.warning("%s is not whole, what can be read is exported: see 'lowdose session verify'", path)
    scan = _chosen_scan(summary, selection.scan)
    require_memory(scan.start.grid, len(scan.start.channels))
    metadata = _export_metadata(path, scan)
    reader = SessionReader(path)
    if form in POINT_FORMATS:
        export_points(out, form, scan.start, metadata, _wanted_blocks(reader, scan.start, selection.frames))
    else:
        _export_pictures(reader, scan, selection, metadata, form, out)
    print(f"wrote {out}")
    return 0


def _chosen_scan(summary: SessionSummary, number: int | None) -> ScanSummary:
    scans = summary.scans
    if not scans:
        raise ConfigError(f"there is no scan in {summary.report.path}")
    if number is None and len(scans) > 1:
        listed = "; ".join(
            f"{k}: {scan.frames} frames, {scan.start.pattern.get('name')}" for k, scan in enumerate(scans, 1)
        )
        raise ConfigError(f"the session has {len(scans)} scans, choose one with --scan ({printable(listed)})")
    if number is not None and not 1 <= number <= len(scans):
        raise ConfigError(f"--scan must be 1 to {len(scans)}, got {number}")
    return scans[(number or 1) - 1]


def _export_metadata(path: Path, scan: ScanSummary) -> dict[str, Any]:
    metadata = {"program": f"lowdose {versions()['lowdose']}", "session": path.name, **scan_metadata(scan.start)}
    missing = {"samples_missing": scan.samples_missing, "blocks_lost": scan.blocks_lost}
    plain: dict[str, Any] = json.loads(json.dumps({**metadata, **missing}, default=str))
    return plain


def _wanted_blocks(reader: SessionReader, start: ScanStart, frames: tuple[int, int]) -> Iterator[SampleBlock]:
    for message in reader:
        if isinstance(message, SampleBlock) and block_fits(start, message) and message.frame_index in range(*frames):
            yield message


def _export_pictures(
    reader: SessionReader, scan: ScanSummary, selection: Selection, metadata: dict[str, Any], form: str, out: Path
) -> None:
    from rich.console import Console
    from rich.progress import track

    made = _recorded_frames if selection.engine == RECORDED else _completed_frames
    wanted, n_frames = made(reader, scan, selection)
    if n_frames == 0:
        raise ConfigError(f"scan and --frames hold no frame to export: the scan has {scan.frames} frames")
    first = next(wanted)
    if "uncertainty" in selection.what and (first.dense is None or first.dense.uncertainty_kind == "none"):
        raise ConfigError("--what uncertainty: the engine tells none, choose another --engine")
    plan = _plan(scan, selection, metadata, n_frames, first.dense)
    frames = (found.exported(scan.start, plan) for found in chain([first], wanted))
    console = Console(stderr=True)
    shown = track(frames, "exporting", total=n_frames, console=console, transient=True, disable=not console.is_terminal)
    export_frames(out, form, plan, shown)


def _plan(
    scan: ScanSummary, selection: Selection, metadata: dict[str, Any], n_frames: int, dense: DenseFrame | None
) -> ExportPlan:
    return ExportPlan(
        grid=scan.start.grid,
        scale=dense.scale if dense else 1,
        channels=scan.start.channels,
        layers=selection.what,
        n_frames=n_frames,
        frame_time_s=scan.duration_s / scan.frames if scan.frames and scan.duration_s > 0 else 1.0,
        engines=dense.engine if dense else "",
        uncertainty_kind=dense.uncertainty_kind if dense else "none",
        metadata=metadata,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """A frame on its way into an export: as measured, as completed, or both."""

    sparse: SparseFrame | None
    dense: DenseFrame | None

    def exported(self, start: ScanStart, plan: ExportPlan) -> ExportFrame:
        frame = self.sparse or self.dense
        if frame is None:
            raise ValueError("a frame is measured, completed or both")
        layers: dict[Layer, NDArray[Any]] = {}
        if self.dense is not None:
            layers |= dense_layers(self.dense)
        if self.sparse is not None:
            layers |= sparse_layers(self.sparse)
        return ExportFrame(
            frame_index=frame.frame_index,
            samples_used=frame.samples_used,
            positions=len(start.path_of(frame.frame_index)),
            t_s=(frame.times_ns.get("first_sample", start.t_ns) - start.t_ns) / 1e9,
            engine=self.dense.engine if self.dense is not None else "",
            layers={layer: layers[layer] for layer in plan.layers},
        )


def _recorded_frames(reader: SessionReader, scan: ScanSummary, selection: Selection) -> tuple[Iterator[_Found], int]:
    """Return the completed frames that the session holds, and how many."""
    if not scan.dense_frames:
        raise ConfigError("the session holds no completed frames: choose an --engine to make them of the samples")
    n_frames = sum(1 for _ in _wanted_dense(reader, scan.start, selection.frames))
    return (_Found(None, dense) for dense in _wanted_dense(reader, scan.start, selection.frames)), n_frames


def _wanted_dense(reader: SessionReader, start: ScanStart, frames: tuple[int, int]) -> Iterator[DenseFrame]:
    for message in reader:
        if not isinstance(message, DenseFrame) or message.scan_id != start.scan_id:
            continue
        if message.complete and message.frame_index in range(*frames):
            yield message


def _completed_frames(reader: SessionReader, scan: ScanSummary, selection: Selection) -> tuple[Iterator[_Found], int]:
    """Return the frames made of the recorded samples, and how many; completed if that is wanted."""
    start, (first, stop) = scan.start, selection.frames
    n_frames = sum(first <= index < stop for index in scan.frame_indices)
    wanted = (frame for frame in _sparse_frames(reader, start) if first <= frame.frame_index < stop)
    if not {"completed", "uncertainty"} & {*selection.what}:
        return (_Found(sparse, None) for sparse in wanted), n_frames
    return _completed(wanted, start, selection.engine), n_frames


def _sparse_frames(reader: SessionReader, start: ScanStart) -> Iterator[SparseFrame]:
    """Yield every frame with its own samples alone, also one that was broken off."""
    assembler = FrameAssembler(start)
    for message in reader:
        if isinstance(message, SampleBlock):
            yield from assembler.add(message, 0)
    yield from assembler.finish()


def _completed(wanted: Iterable[SparseFrame], start: ScanStart, engine: str) -> Iterator[_Found]:
    reconstructor = Reconstructor([build_engine(StageSettings(complete=engine))])
    try:
        _wait_for_maps(reconstructor, start)
        for sparse in wanted:
            dense = reconstructor.complete(sparse, start)
            if dense is None:
                raise ConfigError(f"frame {sparse.frame_index} measured nothing: leave it out by --frames")
            yield _Found(sparse, dense)
    finally:
        reconstructor.close()


def _wait_for_maps(reconstructor: Reconstructor, start: ScanStart) -> None:
    """Wait for the infill maps of the scan, without which its first frames would be filled by their nearest pixels."""
    reconstructor.prepare(start)
    deadline_s = time.monotonic() + MAPS_WAIT_S
    while not reconstructor.ready(start) and time.monotonic() < deadline_s:
        time.sleep(0.01)  # between two looks
