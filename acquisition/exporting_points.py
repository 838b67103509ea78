"""Measured points as CSV and NPY: every sample with its place, nothing inferred (imports numpy only)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy_format

from lowdose.acquisition.assembly import block_fits
from lowdose.acquisition.exporting import MeasuredFrame, told_apart

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from lowdose.acquisition.messages import SampleBlock, ScanStart

COLUMNS = (("frame", "<u8"), ("row", "<f4"), ("col", "<f4"), ("dwell_time_us", "<f4"))
"""Name and type; then one column of counts for each detector channel."""
MAX_ROWS = (1 << 63) - 1


def measured_frames(start: ScanStart, blocks: Iterable[SampleBlock]) -> Iterator[MeasuredFrame]:
    """Yield the samples of a scan by frame, each of them once: as `FrameAssembler` takes them for the pictures.

    A doubled sample is the last that came before its frame was whole; what comes for a frame after a later one has
    begun is refused.
    """
    index, counts, received = -1, np.zeros((0, 0), np.uint16), np.ones(0, bool)
    for block in blocks:
        if not block_fits(start, block) or block.frame_index < index:
            continue
        if block.frame_index > index:
            if index >= 0:
                yield MeasuredFrame(index, counts, received)
            index, n = block.frame_index, len(start.path_of(block.frame_index))
            counts, received = np.zeros((len(start.channels), n), np.uint16), np.zeros(n, bool)
        elif received.all():
            continue
        where = slice(block.first, block.first + block.counts.shape[1])
        counts[:, where], received[where] = block.counts, True
    if index >= 0:
        yield MeasuredFrame(index, counts, received)


def write_csv(path: Path, start: ScanStart, metadata: Mapping[str, Any], frames: Iterable[MeasuredFrame]) -> None:
    """Write samples as CSV: `#` comments, a header, one row for each sample."""
    columns = _columns(start)
    row = ",".join("%.9g" if columns[name].kind == "f" else "%d" for name in columns.names or ())  # 9 digits: a float32
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write("# measured samples, nothing inferred: counts at each probe position, row and col in pixels\n")
        file.writelines(f"# {key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in metadata.items())
        file.write(",".join(columns.names or ()) + "\n")
        for frame in frames:
            file.writelines(row % sample + "\n" for sample in _table(start, columns, frame).tolist())


def write_npy(path: Path, start: ScanStart, metadata: Mapping[str, Any], frames: Iterable[MeasuredFrame]) -> None:
    """Write samples as a one-dimensional structured array; of the metadata, only the names of its fields."""
    columns, n_written = _columns(start), 0
    with path.open("xb") as file:
        file.write(_header(columns, n_written))
        for frame in frames:
            table = _table(start, columns, frame)
            file.write(table.tobytes())
            n_written += len(table)
        file.seek(0)
        file.write(_header(columns, n_written))


def _header(columns: np.dtype[Any], n_rows: int) -> bytes:
    """Return what an NPY file begins with, as long for any number of rows.

    numpy writes no header of version 3.0 without its array, and names beyond ASCII need that version.
    """
    described = f"'descr': {npy_format.dtype_to_descr(columns)!r}, 'fortran_order': False"
    text = f"{{{described}, 'shape': ({n_rows},)}}".encode()
    begin = npy_format.magic(2 if text.isascii() else 3, 0)
    longest = len(begin) + 4 + len(text) - len(str(n_rows)) + len(str(MAX_ROWS)) + 1
    padded = text.ljust(longest + -longest % 64 - len(begin) - 5) + b"\n"
    return begin + len(padded).to_bytes(4, "little") + padded


def _columns(start: ScanStart) -> np.dtype[Any]:
    return np.dtype([*COLUMNS, *((name, "<u2") for name in told_apart(map(_column, start.channels)))])


def _column(channel: str) -> str:
    return "counts_" + "".join(c if c.isalnum() or c in "+-_." else "_" for c in channel)


def _table(start: ScanStart, columns: np.dtype[Any], frame: MeasuredFrame) -> NDArray[Any]:
    path, where = start.path_of(frame.frame_index), frame.received
    table = np.empty(np.count_nonzero(where), columns)
    table["frame"] = frame.frame_index
    table["row"], table["col"] = path.positions[where].T
    table["dwell_time_us"] = path.dwell_times_us[where]
    for name, counts in zip((columns.names or ())[len(COLUMNS) :], frame.counts, strict=True):
        table[name] = counts[where]
    return table
