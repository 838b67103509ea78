from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdose.scan_patterns import PATTERNS, ScanGrid, parse_coverage
from lowdose.scan_patterns.jitter import Jittered, channel_width_px, crossing_walks, published_mask
from lowdose.scan_patterns.lattice import Lattice
from lowdose.scan_patterns.pattern import load_pattern_class, solve_true_coverage
from lowdose.scan_patterns.raster import Raster
from lowdose.scan_patterns.spiral import Spiral

FIELD = ScanGrid((512, 512))

# Golden numbers of the public code behind doi:10.1038/s41598-020-65261-0 and arXiv:1910.10467
SPIRAL_PIXELS = {16: 14_678, 25: 9_615, 36: 6_857, 49: 5_244, 64: 4_332, 81: 3_559, 100: 3_012}
SPIRAL_INVERSE_COVERAGE = {10: 11.25, 20: 22.08, 40: 41.88}
LATTICE = {3: (1, 171), 4: (0, 128), 5: (1, 103), 6: (1, 86), 7: (0, 74), 8: (0, 64), 9: (4, 57), 10: (1, 52)}
LATTICE |= {11: (3, 47), 12: (4, 43)}
# area fractions of the two sets -> 1 / dwell-sum coverage, 1 / non-zero coverage, and the spread of five draws
JITTERED = {
    (0.055, 0.055): (10.0, 5.9, 0.3),
    (0.03, 0.03): (18.2, 10.6, 0.6),
    (0.013, 0.013): (36.5, 20.9, 2.0),
    (0.005, 0.008): (98.0, 55.6, 4.0),
}


def path_of(pattern, grid=FIELD, seed=0, dwell_time_us=1.0):
    (path,) = pattern.paths(grid, dwell_time_us=dwell_time_us, rng=np.random.default_rng(seed))
    return path


@pytest.mark.parametrize(("inverse", "pixels"), SPIRAL_PIXELS.items())
def test_spiral_visits_exactly_the_published_number_of_pixels(inverse, pixels):
    path = path_of(Spiral(1 / inverse))
    assert len(path) == int(path.mask.sum()) == pixels


@pytest.mark.parametrize(("inverse", "expected"), SPIRAL_INVERSE_COVERAGE.items())
def test_spiral_has_the_published_true_coverage(inverse, expected):
    assert round(1 / path_of(Spiral(1 / inverse)).coverage, 2) == expected


def test_spiral_at_a_twentieth_takes_as_long_as_the_house_plan_says():
    path = path_of(Spiral(1 / 20))
    assert len(path) == 11_871
    assert path.duration_us == pytest.approx(11_871)


def test_neighbouring_spiral_turns_are_one_over_the_coverage_apart():
    row = np.flatnonzero(path_of(Spiral(1 / 25)).mask[256, 256:])
    gaps = np.diff(row)
    assert 24 <= np.median(gaps[gaps > 1]) <= 26


def test_kept_overscan_costs_the_published_share_outside_the_field():
    path = path_of(Spiral(1 / 20, overscan="keep"))
    assert 1 - path.inside.mean() == pytest.approx(0.37, abs=0.01)
    assert not path.jumps.any()


def test_clipped_spiral_jumps_exactly_where_it_comes_back():
    path = path_of(Spiral(1 / 20))
    steps = np.abs(np.diff(path.pixels, axis=0)).max(axis=1)
    np.testing.assert_array_equal(path.jumps[1:], steps > 1)


@pytest.mark.parametrize(("spacing", "expected"), LATTICE.items())
def test_lattice_has_the_published_offset_and_points(spacing, expected):
    offset, points = expected
    path = path_of(Lattice(1 / spacing**2))
    assert path.positions[0].tolist() == [offset, offset]
    assert len(path) == points**2
    assert path.coverage == pytest.approx((points / 512) ** 2)


def test_lattice_of_one_fortieth_has_the_spacing_of_one_thirtysixth():
    assert Lattice(1 / 40).spacing_px == Lattice(1 / 36).spacing_px == 6


@pytest.mark.parametrize(("fractions", "expected"), JITTERED.items(), ids=str)
def test_jittered_mask_has_the_published_statistics(fractions, expected):
    dwell_inverse, visited_inverse, spread = expected
    measured = []
    for seed in range(5):
        draw = np.random.default_rng(seed)
        first, second = (published_mask(*crossing_walks(512, f, 1.0, draw), 512) for f in fractions)
        mask = first + (first if fractions[0] == fractions[1] else second).T
        measured.append((1 / mask.mean(), 1 / (mask > 0).mean()))
    assert np.mean(measured, axis=0) == pytest.approx((dwell_inverse, visited_inverse), abs=spread)


def test_jittered_channels_have_the_published_widths():
    assert [round(channel_width_px(f), 1) for f in (0.055, 0.03, 0.013, 0.005, 0.008)] == [
        34.2,
        64.6,
        151.8,
        398.0,
        248.0,
    ]


def test_jittered_dwell_is_the_nominal_one_times_the_length_of_the_walk():
    path = path_of(Jittered(1 / 20), dwell_time_us=2.0)
    columns = path.dwell_times_us.reshape(-1, 5).sum(axis=1)
    assert (columns >= 2.0 - 1e-4).all()


def test_raster_visits_every_pixel_once_and_jumps_at_every_line():
    path = path_of(Raster(), ScanGrid((3, 4)))
    np.testing.assert_array_equal(path.hits, np.ones((3, 4)))
    assert path.jumps.reshape(3, 4).tolist() == [[True, False, False, False]] * 3


# --- the contract of every row of the table -------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATTERNS)
@given(rows=st.integers(40, 130), cols=st.integers(40, 130), seed=st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_every_probe_position_lies_in_the_grid_and_coverage_is_the_mask_s(name, rows, cols, seed):
    grid = ScanGrid((rows, cols))
    for path in load_pattern_class(name)().paths(grid, dwell_time_us=1.0, rng=np.random.default_rng(seed)):
        assert path.inside.all()
        assert path.coverage == path.mask.sum() / (rows * cols)
        assert path.hits.sum() == len(path)


@pytest.mark.parametrize("name", PATTERNS)
def test_same_seed_gives_the_same_path(name):
    pattern = load_pattern_class(name)()
    assert path_of(pattern, seed=5) == path_of(pattern, seed=5)
    assert path_of(pattern, seed=5).digest == path_of(pattern, seed=5).digest


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_its_few_numbers(name):
    pattern = load_pattern_class(name)()
    assert type(pattern)(**dataclasses.asdict(pattern)) == pattern


@pytest.mark.parametrize(
    ("name", "wanted"), [("spiral", 0.02), ("spiral", 0.05), ("spiral", 0.3), ("jittered", 0.05), ("jittered", 0.11)]
)
def test_true_coverage_is_met_within_two_percent(name, wanted):
    solved = solve_true_coverage(load_pattern_class(name)(), FIELD, wanted)
    assert path_of(solved).coverage == pytest.approx(wanted, rel=0.02)


def test_true_coverage_of_a_lattice_is_the_nearest_its_counts_allow():
    solved = solve_true_coverage(Lattice(), FIELD, 0.05)
    assert solved.spacing_px in (4, 5)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [0, -0.1, 1.5, float("nan"), float("inf"), "abc", "1/0", "", None, "1e400", "1e99999999", "1/2/3"]
)
def test_coverage_outside_zero_to_one_is_refused(value):
    with pytest.raises(ValueError, match="coverage must be"):
        parse_coverage(value)


def test_unknown_pattern_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'spiral'"):
        load_pattern_class("spirall")


def test_raster_has_no_coverage_to_choose():
    with pytest.raises(ValueError, match="no coverage to choose"):
        solve_true_coverage(Raster(), FIELD, 0.1)


def test_lattice_wider_than_the_field_is_refused_with_what_would_fit():
    with pytest.raises(ValueError, match="does not fit 16 px"):
        path_of(Lattice(1 / 400), ScanGrid((16, 16)))


def test_jittered_above_one_half_is_refused():
    with pytest.raises(ValueError, match=r"<= 0\.5"):
        Jittered(0.6)
