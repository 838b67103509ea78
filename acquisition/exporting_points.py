"""Measured points as CSV and NPY: every sample with its place, nothing inferred (imports numpy only)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy_format

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

    from lowdose.acquisition.messages import SampleBlock, ScanStart

COLUMNS = ("frame", "row", "col", "dwell_time_us")
"""Then one column of counts for each detector channel."""


def write_csv(path: Path, start: ScanStart, metadata: Mapping[str, Any], blocks: Iterable[SampleBlock]) -> None:
    """Write samples as CSV: `#` comments, a header, one row for each sample."""
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write("# measured samples, nothing inferred: counts at each probe position, row and col in pixels\n")
        file.writelines(f"# {key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in metadata.items())
        file.write(",".join((*COLUMNS, *map(_column, start.channels))) + "\n")
        formats = ("%d", "%.9g", "%.9g", "%.9g", *("%d" for _ in start.channels))  # 9 digits keep a float32
        for block in blocks:
            np.savetxt(file, np.array(_table(start, block).tolist()), fmt=formats, delimiter=",")


def write_npy(path: Path, start: ScanStart, metadata: Mapping[str, Any], blocks: Iterable[SampleBlock]) -> None:
    """Write samples as a one-dimensional structured array; of the metadata, only the names of its fields."""
    n_written = 0
    with path.open("xb") as file:
        _write_header(file, start, n_written)
        for block in blocks:
            table = _table(start, block)
            file.write(table.tobytes())
            n_written += len(table)
        file.seek(0)
        _write_header(file, start, n_written)  # numpy leaves room for the number to grow


def _write_header(file: BinaryIO, start: ScanStart, n_rows: int) -> None:
    described = {"descr": npy_format.dtype_to_descr(_dtype(start)), "fortran_order": False, "shape": (n_rows,)}
    npy_format.write_array_header_2_0(file, described)


def _dtype(start: ScanStart) -> np.dtype[Any]:
    fields = [("frame", "<u4"), ("row", "<f4"), ("col", "<f4"), ("dwell_time_us", "<f4")]
    return np.dtype(fields + [(_column(channel), "<u2") for channel in start.channels])


def _column(channel: str) -> str:
    return "counts_" + "".join(c if c.isalnum() or c in "+-_." else "_" for c in channel)


def _table(start: ScanStart, block: SampleBlock) -> NDArray[Any]:
    path = start.path_of(block.frame_index)
    where = slice(block.first, block.first + block.counts.shape[1])
    table = np.empty(block.counts.shape[1], _dtype(start))
    table["frame"] = block.frame_index
    table["row"], table["col"] = path.positions[where].T
    table["dwell_time_us"] = path.dwell_times_us[where]
    for channel, counts in zip(start.channels, block.counts, strict=True):
        table[_column(channel)] = counts
    return table
