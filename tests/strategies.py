"""Hypothesis strategies: one for each thing that crosses a floor, small enough to shrink to something readable."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowdose.acquisition.frames import DenseFrame, EngineStamp
from lowdose.acquisition.messages import RecordAck, Reply, Request, SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.status import Event, StatusReport
from lowdose.scan_patterns import ScanGrid, ScanPath

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowdose.acquisition.wire import Message

quick = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
thorough = settings(quick, max_examples=200)

texts = st.text(max_size=20)
times_ns = st.integers(0, 2**62)
indices = st.integers(0, 2**40)
positive = st.floats(1e-3, 1e6)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)
value_maps = st.dictionaries(texts, values, max_size=4)
channel_names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3, unique=True).map(tuple)


def grids(max_edge: int = 12) -> st.SearchStrategy[ScanGrid]:
    """Return grids of at most `max_edge` pixels along each axis."""
    edges = st.integers(1, max_edge)
    return st.builds(ScanGrid, st.tuples(edges, edges), st.floats(1e-3, 10), st.floats(-360, 360))


@st.composite
def paths(draw: st.DrawFn, grid: ScanGrid | None = None, max_positions: int = 40, overscan: bool = True) -> ScanPath:
    """Return a path over a grid, sub-pixel, some positions visited again, some outside when `overscan`."""
    grid = draw(grids()) if grid is None else grid
    n = draw(st.integers(1, max_positions))
    margin = 3 if overscan else 0
    low, high = np.float32(-0.5 - margin), np.array(grid.shape, np.float32) + margin - 0.5
    unit = draw(hnp.arrays(np.float32, (n, 2), elements=st.floats(0, 1, exclude_max=True, width=16)))
    dwell_times_us = hnp.arrays(np.float32, n, elements=st.floats(0.125, 64, width=16))
    dwell = draw(st.floats(0.125, 64, width=16) | dwell_times_us)
    jumps = draw(st.none() | hnp.arrays(bool, n))
    return ScanPath(grid, low + unit * (high - low), dwell, jumps)


@st.composite
def scan_starts(draw: st.DrawFn, *, overscan: bool = True) -> ScanStart:
    """Return the start of a scan with a cycle of one to three paths."""
    grid = draw(grids())
    return ScanStart(
        scan_id=draw(texts),
        paths=tuple(draw(st.lists(paths(grid, overscan=overscan), min_size=1, max_size=3))),
        pattern=draw(value_maps),
        channels=draw(channel_names),
        dwell_time_us=draw(positive),
        beam_current_pa=draw(positive),
        energy_kev=draw(positive),
        area_id=draw(indices),
        replay_of=draw(st.none() | texts),
        wall_clock_ns=draw(times_ns),
        t_ns=draw(times_ns),
    )


def counts(n_channels: int, n_samples: int) -> st.SearchStrategy[np.ndarray]:
    """Return detector counts, (n_channels, n_samples) uint16."""
    return hnp.arrays(np.uint16, (n_channels, n_samples))


@st.composite
def sample_blocks(draw: st.DrawFn) -> SampleBlock:
    """Return a block on its own, of no scan in particular."""
    return SampleBlock(
        scan_id=draw(texts),
        path_digest=draw(texts),
        frame_index=draw(indices),
        first=draw(indices),
        counts=draw(counts(draw(st.integers(1, 3)), draw(st.integers(0, 30)))),
        seq=draw(indices),
        t_first_ns=draw(times_ns),
        t_last_ns=draw(times_ns),
        t_sent_ns=draw(times_ns),
    )


def frame_blocks(
    start: ScanStart, frame: np.ndarray, frame_index: int, edges: list[int], seq: int = 0
) -> list[SampleBlock]:
    """Cut the counts of a frame, (channels, n), into the blocks between consecutive edges."""
    digest = start.path_of(frame_index).digest
    return [
        SampleBlock(start.scan_id, digest, frame_index, a, np.ascontiguousarray(frame[:, a:b]), seq + k, a, b - 1, b)
        for k, (a, b) in enumerate(pairwise(edges))
    ]


@st.composite
def cut_frames(draw: st.DrawFn) -> tuple[ScanStart, np.ndarray, list[SampleBlock]]:
    """Return a scan, the counts of its frame 0 and the same as blocks in order."""
    start = draw(scan_starts())
    n = len(start.paths[0])
    frame = draw(counts(len(start.channels), n))
    inner = draw(st.lists(st.integers(1, n - 1), unique=True, max_size=6)) if n > 1 else []
    return start, frame, frame_blocks(start, frame, 0, [0, *sorted(inner), n])


@st.composite
def dense_frames(draw: st.DrawFn) -> DenseFrame:
    """Return a completed frame; what is measured is zero where there are no hits, as everywhere in the pipeline."""
    scale = draw(st.sampled_from([1, 2, 4]))
    rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    channels = draw(channel_names)
    images = hnp.arrays(np.float32, (len(channels), scale * rows, scale * cols), elements=st.floats(0, 1e6, width=32))
    hits = draw(hnp.arrays(np.uint16, (rows, cols), elements=st.integers(0, 3)))
    measured = draw(hnp.arrays(np.float32, (len(channels), rows, cols), elements=st.floats(0, 1e6, width=32)))
    return DenseFrame(
        grid=ScanGrid((scale * rows, scale * cols)),
        image=draw(images),
        uncertainty=draw(images),
        uncertainty_kind=draw(st.sampled_from(["none", "placeholder", "calibrated"])),
        measured=measured * (hits > 0),
        hits=hits,
        scale=scale,
        scan_id=draw(texts),
        path_digest=draw(texts),
        frame_index=draw(indices),
        complete=draw(st.booleans()),
        samples_used=draw(indices),
        channels=channels,
        engines=tuple(draw(st.lists(st.builds(EngineStamp, texts, texts, texts), max_size=2))),
        dropped=draw(indices),
        gaps=draw(indices),
        times_ns=draw(st.dictionaries(texts, times_ns, max_size=4)),
    )


events = st.builds(Event, texts, texts, texts, st.sampled_from(["info", "warning", "alarm"]), times_ns)
MESSAGES: dict[str, Callable[[], st.SearchStrategy[Message]]] = {
    "ScanStart": scan_starts,
    "SampleBlock": sample_blocks,
    "ScanEnd": lambda: st.builds(ScanEnd, texts, indices, texts),
    "DenseFrame": dense_frames,
    "StatusReport": lambda: st.builds(StatusReport, texts, times_ns, value_maps),
    "Event": lambda: events,
    "Request": lambda: st.builds(Request, texts, indices, texts, value_maps),
    "Reply": lambda: st.builds(Reply, indices, texts, value_maps),
    "RecordAck": lambda: st.builds(RecordAck, st.text("0123456789abcdef", max_size=32), indices, texts),
}
"""A strategy for every message type of the wire."""
messages = st.one_of(*(make() for make in MESSAGES.values()))
