"""`lowdose session export`: a recorded scan as files that other programs open."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdose.acquisition.assembly import FrameAssembler
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
from lowdose.acquisition.exporting_points import measured_frames
from lowdose.acquisition.frames import DenseFrame
from lowdose.acquisition.messages import SampleBlock
from lowdose.acquisition.recording import versions
from lowdose.acquisition.session_reader import SessionReader
from lowdose.acquisition.session_summary import ScanSummary, SessionSummary, summarise
from lowdose.config.build import require_memory
from lowdose.config.engines import build_engine, require_engine
from lowdose.config.errors import ConfigError
from lowdose.config.schema import StageSettings
from lowdose.config.session import scan_metadata
from lowdose.reconstruction.engines import AUTO
from lowdose.reconstruction.pipeline import UNCERTAINTY_ORDER, Reconstructor
from lowdose.scan_patterns.checks import nearest_name, printable
from lowdose.simulator.image_files import READERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lowdose.acquisition.frames import SparseFrame
    from lowdose.acquisition.messages import ScanStart
    from lowdose.reconstruction.engine import Engine

logger = logging.getLogger(__name__)

RECORDED = "recorded"
"""Stands for the completed frames of the session itself, where an engine is named."""
SUFFIXES = frozenset({*READERS, *(suffix for suffix, _ in (FORMATS | POINT_FORMATS).values() if suffix)})
"""Of files that a folder, or a file of another format, must not be named like."""
MAPS_WAIT_S = 120.0
MAX_DIGITS = 19
"""Of a frame's index, which is below 2^63."""
DWELL_TIMES_US = (1e-6, 1e12)
"""1 ps to 11 days: of what lies outside, float32 makes zeros or infinities."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of a session is exported, and how it is completed.

    Parameters
    ----------
    what : tuple of str
        Layers as asked for, none = measured and completed; the mask comes along.
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

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers to export."""
        return self.what or ("sparse", "completed")

    @property
    def completes(self) -> bool:
        """One of the layers is inferred."""
        return not {"completed", "uncertainty"}.isdisjoint(self.layers)

    def chooses(self, frame_index: int) -> bool:
        """Tell whether a frame is among those exported."""
        return self.frames[0] <= frame_index < self.frames[1]


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
    return Selection(tuple(layer for layer in LAYERS if layer in what), scan, _frame_range(frames), engine)


def _frame_range(text: str | None) -> tuple[int, int]:
    """Return first and one after the last of ``A:B``, ``A:``, ``:B`` or ``A``."""
    first, colon, stop = (text or ":").partition(":")
    for number in (first, stop):
        if number and not (number.isdecimal() and len(number) <= MAX_DIGITS):
            raise ConfigError(f"--frames takes A:B, the first frame and the one after the last, got {text!r:.60}")
    begin = int(first or 0)
    end = int(stop) if stop else begin + 1 if not colon else 1 << 63
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
    require_name(path)
    out = out or default_out(path, form, selection.scan)
    require_place(out, form)
    _require_engine(form, selection)
    summary = summarise(path)
    if not summary.report.whole:
        logger.warning(
            "%s is not whole, what can be read is exported: see 'lowdose session verify'", printable(str(path))
        )
    scan = _chosen_scan(summary, selection.scan)
    require_memory(scan.start.grid, len(scan.start.channels))
    metadata = _export_metadata(path, scan)
    reader = SessionReader(path)
    if form in POINT_FORMATS:
        _export_points(reader, scan, selection, metadata, form, out)
    else:
        _export_pictures(reader, scan, selection, metadata, form, out)
    print(f"wrote {printable(str(out))}")
    return 0


def require_name(path: Path) -> None:
    """Raise ConfigError unless a path could be that of a file, as "", "." and "/" could not."""
    if not path.name:
        raise ConfigError(f"expected the name of a file, got '{path}'")


def require_place(out: Path, form: str) -> None:
    """Raise ConfigError unless there is a folder for what is to be written, and nothing of that name in it.

    Neither may its name be that of a file of another format.
    """
    require_name(out)
    suffix = (FORMATS | POINT_FORMATS)[form][0]
    if out.suffix != suffix and out.suffix.lower() in SUFFIXES:
        made = f"NAME{suffix}" if suffix else "a folder of TIFF files"
        raise ConfigError(f"--format {form} writes {made}, got --out {printable(str(out))}: name it so")
    folder = out.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"cannot write {printable(str(out))}: there is no folder {printable(str(folder))}")
    if os.path.lexists(out):
        raise ConfigError(f"{printable(str(out))} exists already, nothing is overwritten: name another with --out")


def _require_engine(form: str, selection: Selection) -> None:
    """Raise ConfigError for an engine that does not exist, and for options of pictures where samples are exported."""
    if form in POINT_FORMATS and (selection.what or selection.engine != AUTO):
        raise ConfigError(f"--what and --engine are for pictures, {form} holds the measured samples: leave them out")
    if selection.engine != RECORDED:
        require_engine(StageSettings(complete=selection.engine))


def _chosen_scan(summary: SessionSummary, number: int | None) -> ScanSummary:
    scans = summary.scans
    if not scans:
        raise ConfigError(f"there is no scan in {printable(str(summary.report.path))}")
    if number is None and len(scans) > 1:
        listed = "; ".join(
            f"{k}: {scan.frames} frames, {scan.start.pattern.get('name')}" for k, scan in enumerate(scans, 1)
        )
        raise ConfigError(f"the session has {len(scans)} scans, choose one with --scan ({printable(listed)})")
    if number is not None and not 1 <= number <= len(scans):
        raise ConfigError(f"--scan must be 1 to {len(scans)}, got {number}")
    return scans[(number or 1) - 1]


def _export_metadata(path: Path, scan: ScanSummary) -> dict[str, Any]:
    return {
        "program": f"lowdose {versions()['lowdose']}",
        "session": printable(path.name),
        **scan_metadata(scan.start),
        "samples_missing": scan.samples_missing,
        "blocks_lost": scan.blocks_lost,
    }


def _chosen_frames(scan: ScanSummary, selection: Selection) -> list[int]:
    """Return the indices of the measured frames to export; ConfigError if there is none."""
    chosen = [index for index in scan.frame_indices if selection.chooses(index)]
    _require_frames(len(chosen), scan)
    return chosen


def _require_frames(n_frames: int, scan: ScanSummary) -> None:
    if n_frames == 0:
        raise ConfigError(f"scan and --frames hold no frame to export: the scan has {scan.frames} frames")


def _export_points(
    reader: SessionReader, scan: ScanSummary, selection: Selection, metadata: dict[str, Any], form: str, out: Path
) -> None:
    _chosen_frames(scan, selection)
    frames = measured_frames(scan.start, _blocks(reader))
    chosen = (frame for frame in frames if selection.chooses(frame.frame_index))
    export_points(out, form, scan.start, metadata, chosen)


def _blocks(reader: SessionReader) -> Iterator[SampleBlock]:
    return (message for message in reader if isinstance(message, SampleBlock))


def _export_pictures(
    reader: SessionReader, scan: ScanSummary, selection: Selection, metadata: dict[str, Any], form: str, out: Path
) -> None:
    from rich.console import Console
    from rich.progress import track

    series = (_recorded_series if selection.engine == RECORDED else _made_series)(reader, scan, selection)
    if "uncertainty" in selection.layers and series.uncertainty_kind == "none":
        raise ConfigError("--what uncertainty: the engine tells none of every frame, choose another --engine")
    plan = ExportPlan(
        grid=scan.start.grid,
        scale=series.scale,
        channels=scan.start.channels,
        layers=selection.layers,
        n_frames=series.n_frames,
        frame_time_s=series.frame_time_s,
        engines=series.engines,
        uncertainty_kind=series.uncertainty_kind,
        metadata=metadata,
    )
    frames = (found.exported(scan.start, plan) for found in series.frames)
    console, total = Console(stderr=True), series.n_frames
    shown = track(frames, "exporting", total=total, console=console, transient=True, disable=not console.is_terminal)
    export_frames(out, form, plan, shown)


@dataclass(frozen=True, slots=True)
class _Series:
    """The frames of an export, and what is known of all of them before the first.

    Parameters
    ----------
    frames : iterator of _Found
        The frames.
    n_frames : int
        How many.
    frame_time_s : float
        From one to the next, in the mean; 1 if it is not known.
    scale : int
        Of the first.
    engines, uncertainty_kind : str
        What completes them, and what the least of their uncertainties is worth.
    """

    frames: Iterator[_Found]
    n_frames: int
    frame_time_s: float
    scale: int = 1
    engines: str = ""
    uncertainty_kind: str = "none"


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


def _recorded_series(reader: SessionReader, scan: ScanSummary, selection: Selection) -> _Series:
    """Return the completed frames that the session holds."""
    if not scan.dense_frames:
        raise ConfigError("the session holds no completed frames: choose an --engine to make them of the samples")
    facts = [
        (dense.engine, dense.uncertainty_kind, dense.scale, dense.times_ns.get("first_sample"))
        for dense in _wanted_dense(reader, scan.start, selection)
    ]
    _require_frames(len(facts), scan)
    engines, kinds, scales, times_ns = zip(*facts, strict=True)
    return _Series(
        frames=(_Found(None, dense) for dense in _wanted_dense(reader, scan.start, selection)),
        n_frames=len(facts),
        frame_time_s=_frame_time_s(times_ns[0], times_ns[-1], len(facts)),
        scale=scales[0],
        engines=_counted(engines),
        uncertainty_kind=min(kinds, key=UNCERTAINTY_ORDER.index),
    )


def _counted(engines: Sequence[str]) -> str:
    """Return who completed frames, with the number of them where that were several."""
    counted = [(printable(name), n) for name, n in Counter(engines).most_common()]
    if len(counted) == 1:
        return counted[0][0]
    return ", ".join(f"{name} ({n} of {len(engines)} frames)" for name, n in counted)


def _frame_time_s(first_ns: int | None, last_ns: int | None, n_frames: int) -> float:
    """Return the mean time from frame to frame, of when the first and the last began; 1 if it is not known."""
    if first_ns is None or last_ns is None or last_ns <= first_ns or n_frames < 2:
        return 1.0
    return (last_ns - first_ns) / 1e9 / (n_frames - 1)


def _wanted_dense(reader: SessionReader, start: ScanStart, selection: Selection) -> Iterator[DenseFrame]:
    for message in reader:
        if not isinstance(message, DenseFrame) or message.scan_id != start.scan_id:
            continue
        if message.complete and selection.chooses(message.frame_index):
            yield message


def _made_series(reader: SessionReader, scan: ScanSummary, selection: Selection) -> _Series:
    """Return the frames made of the recorded samples, completed if that is wanted."""
    chosen = _chosen_frames(scan, selection)
    _require_dwell_times(scan.start)
    times_ns = dict(zip(scan.frame_indices, scan.frame_times_ns, strict=True))
    frame_time_s = _frame_time_s(times_ns[chosen[0]], times_ns[chosen[-1]], len(chosen))
    frames = (frame for frame in _sparse_frames(reader, scan.start) if selection.chooses(frame.frame_index))
    if not selection.completes:
        return _Series((_Found(sparse, None) for sparse in frames), len(chosen), frame_time_s)
    engine = build_engine(StageSettings(complete=selection.engine))
    kind = engine.info.uncertainty_kind
    return _Series(
        frames=_completed(frames, scan.start, engine),
        n_frames=len(chosen),
        frame_time_s=frame_time_s,
        scale=engine.info.scale,
        engines=f"{engine.info.name}, or by infill in the frames that say so",  # it may fail, or a frame have holes
        uncertainty_kind=f"{kind}; of infill a placeholder" if kind == "calibrated" else kind,
    )


def _require_dwell_times(start: ScanStart) -> None:
    """Raise ConfigError unless counts can be told per dwell time."""
    least, most = DWELL_TIMES_US
    for dwell_us in (np.asarray(start.dwell_time_us), *(path.dwell_times_us for path in start.paths)):
        low, high = dwell_us.min(), dwell_us.max()
        if not least <= low <= high <= most:
            raise ConfigError(
                f"scan '{printable(start.scan_id)}' has dwell times of {low:g} to {high:g} µs, expected {least:g} to "
                f"{most:g}: no picture can be made of it, --format csv gives its samples"
            )


def _sparse_frames(reader: SessionReader, start: ScanStart) -> Iterator[SparseFrame]:
    """Yield every frame with its own samples alone, also one that was broken off."""
    assembler = FrameAssembler(start)
    for block in _blocks(reader):
        yield from assembler.add(block, 0)
    yield from assembler.finish()


def _completed(wanted: Iterable[SparseFrame], start: ScanStart, engine: Engine) -> Iterator[_Found]:
    reconstructor = Reconstructor([engine])
    try:
        for sparse in wanted:
            _wait_for_maps(reconstructor, start, sparse.frame_index)
            dense = reconstructor.complete(sparse, start)
            if dense is None:
                raise ConfigError(f"frame {sparse.frame_index} measured nothing: leave it out by --frames")
            yield _Found(sparse, dense)
    except ArithmeticError as error:
        raise ConfigError(f"scan '{printable(start.scan_id)}' cannot be completed: {error}") from None
    finally:
        reconstructor.close()


def _wait_for_maps(reconstructor: Reconstructor, start: ScanStart, frame_index: int) -> None:
    """Wait for the infill maps of a frame's path, without which it would be filled by its nearest pixels."""
    deadline_s = time.monotonic() + MAPS_WAIT_S
    while not reconstructor.ready(start, frame_index) and time.monotonic() < deadline_s:
        time.sleep(0.01)  # between two looks
