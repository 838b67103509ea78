"""Sessions made for tests: scans of a few frames, recorded at a pace of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowdose.acquisition.messages import SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.recording import SessionWriter
from lowdose.scan_patterns import ScanGrid
from lowdose.scan_patterns.raster import Raster
from lowdose.scan_patterns.spiral import Spiral

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from lowdose.acquisition.wire import Message

GRID = ScanGrid((48, 40))
BLOCK = 64
MS = 1_000_000


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * MS
        self.slept_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now_ns += round(seconds * 1e9)
        self.slept_ns += round(seconds * 1e9)


def new_scan(
    scan_id: str = "scan", scanned_along: object = None, grid: ScanGrid = GRID, **changes: object
) -> ScanStart:
    spec = scanned_along or Spiral(1 / 6)
    paths = spec.paths(grid, dwell_time_us=2.0, rng=np.random.default_rng(0))  # type: ignore[attr-defined]
    facts = {
        "scan_id": scan_id,
        "paths": paths,
        "pattern": {"name": "spiral", "coverage": 1 / 6, "seed": 0},
        "channels": ("HAADF", "BF"),
        "dwell_time_us": 2.0,
        "beam_current_pa": 25.0,
        "energy_kev": 200.0,
        "area_id": 3,
        "replay_of": None,
        "wall_clock_ns": 1_700 * 10**15,
        "t_ns": 0,
    }
    return ScanStart(**{**facts, **changes})  # type: ignore[arg-type]


def new_raster(scan_id: str = "scan", **changes: object) -> ScanStart:
    return new_scan(scan_id, Raster(), **changes)


def blocks_of(start: ScanStart, n_frames: int, *, first_seq: int = 0, t_ns: int = 0) -> list[SampleBlock]:
    """Return the blocks of a scan as a microscope that never waits would have measured them, noise and all."""
    rng, blocks = np.random.default_rng(7), []
    for frame in range(n_frames):
        path = start.path_of(frame)
        ends_ns = np.concatenate([[0.0], 1e3 * path.dwell_times_us.cumsum()]).astype(int)
        for first in range(0, len(path), BLOCK):
            stop = min(first + BLOCK, len(path))
            counts = rng.poisson(9.0, (len(start.channels), stop - first)).astype(np.uint16)
            begin, end = t_ns + int(ends_ns[first]), t_ns + int(ends_ns[stop])
            seq = first_seq + len(blocks)
            blocks.append(SampleBlock(start.scan_id, path.digest, frame, first, counts, seq, begin, end, end))
        t_ns += int(ends_ns[-1])
    return blocks


def scanned(start: ScanStart, n_frames: int, *, first_seq: int = 0, t_ns: int = 0) -> list[Message]:
    """Return a whole scan: its start, its blocks, its end."""
    blocks = blocks_of(start, n_frames, first_seq=first_seq, t_ns=t_ns)
    return [start, *blocks, ScanEnd(start.scan_id, n_frames - 1, "as asked")]


def write_session(
    path: Path, messages: Iterable[Message], *, chunk_of: Callable[[int], bool] = lambda _k: False
) -> Path:
    """Write a session file; `chunk_of` tells after which messages a chunk ends."""
    with SessionWriter(path) as writer:
        for k, message in enumerate(messages):
            writer.write(message)
            if chunk_of(k):
                writer.tick(1 << 62)
    return path
