from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from lowdose.scan_patterns import ScanGrid, ScanPath
from lowdose.scan_patterns.dose import fluence_e_per_a2, frame_dose_e_per_a2, visited_dose_e_per_a2

GRID = ScanGrid((2, 3), pixel_size_nm=0.1)


def test_pixels_are_the_nearest_with_halves_going_up():
    path = ScanPath(GRID, [[0.49, 0.5], [1.2, 1.7]], 1.0)
    assert path.pixels.tolist() == [[0, 1], [1, 2]]


def test_positions_outside_are_overscan_and_never_hits():
    path = ScanPath(GRID, [[0, 0], [-0.6, 0], [0, 2.6]], 1.0)
    assert path.inside.tolist() == [True, False, False]
    assert path.hits.sum() == 1
    assert path.flat_pixels.tolist() == [0, -1, -1]


def test_coverage_is_the_visited_share_whatever_lies_outside_or_is_visited_twice():
    assert ScanPath(GRID, [[1, 2], [0, 0], [-1, 0], [1, 1.6], [0, 9]], 1.0).coverage == 2 / 6
    assert ScanPath(GRID, [[-1, 0]], 1.0).coverage == 0


def test_coverage_of_few_positions_needs_no_memory_for_a_large_grid():
    path = ScanPath(ScanGrid((16_384, 16_384)), [[0, 0], [16_383, 16_383]], 1.0)
    tracemalloc.start()
    assert path.coverage == 2 / 16_384**2
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_duration_adds_every_dwell_time():
    assert ScanPath(GRID, [[0, 0], [0, 1]], [1.5, 2.0]).duration_us == 3.5


def test_digest_tells_paths_apart_by_position_dwell_jump_and_grid():
    base = ScanPath(GRID, [[0, 0], [0, 1]], 1.0)
    others = [
        ScanPath(GRID, [[0, 0], [0, 1.1]], 1.0),
        ScanPath(GRID, [[0, 0], [0, 1]], 2.0),
        ScanPath(GRID, [[0, 0], [0, 1]], 1.0, [False, True]),
        ScanPath(ScanGrid((3, 3), pixel_size_nm=0.1), [[0, 0], [0, 1]], 1.0),
    ]
    assert len({base, *others}) == 5
    assert base == ScanPath(GRID, [[0, 0], [0, 1]], [1.0, 1.0])


def test_arrays_of_a_path_are_read_only():
    path = ScanPath(GRID, [[0, 0]], 1.0)
    with pytest.raises(ValueError, match="read-only"):
        path.positions[0, 0] = 1


@pytest.mark.parametrize(
    ("positions", "dwell", "jumps", "complaint"),
    [
        ([], 1.0, None, "positions must be"),
        ([[0, 0, 0]], 1.0, None, "positions must be"),
        ([[np.nan, 0]], 1.0, None, "finite"),
        ([[1e9, 0]], 1.0, None, "finite and within"),
        ([[0, 0]], 0.0, None, "dwell_time_us must be > 0, got 0"),
        ([[0, 0]], -1.0, None, "dwell_time_us must be > 0, got -1"),
        ([[0, 0]], np.inf, None, "dwell_time_us"),
        ([[0, 0]], [1.0, 1.0], None, "one number or one for each of 1"),
        ([[0, 0]], 1.0, [True, False], "jumps must have one entry"),
    ],
)
def test_a_path_that_cannot_be_followed_is_refused(positions, dwell, jumps, complaint):
    with pytest.raises(ValueError, match=complaint):
        ScanPath(GRID, positions, dwell, jumps)


@pytest.mark.parametrize("shape", [(0, 5), (5, -1), (20_000, 5), (5,), (5.0, 5)])
def test_a_degenerate_grid_is_refused(shape):
    with pytest.raises(ValueError, match="grid shape must be"):
        ScanGrid(shape)


def test_doses_of_the_default_scan_are_the_house_plan_s():
    from lowdose.scan_patterns.spiral import Spiral

    (path,) = Spiral(1 / 20).paths(ScanGrid((512, 512)), dwell_time_us=1.0, rng=np.random.default_rng(0))
    assert round(frame_dose_e_per_a2(path, 25)) == 28
    assert round(visited_dose_e_per_a2(path, 25)) == 624
    assert round(fluence_e_per_a2(25, 1.0, 0.05)) == 624
