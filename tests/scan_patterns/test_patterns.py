from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdose.scan_patterns import PATTERNS, ScanGrid, parse_coverage
from lowdose.scan_patterns.curves import Fermat, Lissajous, coprime_frequencies
from lowdose.scan_patterns.jitter import Jittered, channel_width_px, crossing_walks, published_mask
from lowdose.scan_patterns.lattice import Interlaced, Lattice
from lowdose.scan_patterns.line_hop import LineHop
from lowdose.scan_patterns.pattern import READ_FILES, load_pattern_class, solve_true_coverage
from lowdose.scan_patterns.placement import Placement, place, spec
from lowdose.scan_patterns.raster import Raster
from lowdose.scan_patterns.sparse import Random
from lowdose.scan_patterns.spiral import Spiral, blurred_mask, spiral_curve

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


MADE = [name for name in PATTERNS if name not in READ_FILES]
"""Patterns that are made of numbers alone."""
STORED = Path(__file__).with_name("positions.npz")
"""Positions of the first path of every pattern, 64 x 80 px, seed 7: they must not change from machine to machine."""


def path_of(pattern, grid=FIELD, seed=0, dwell_time_us=1.0):
    (path,) = pattern.paths(grid, dwell_time_us=dwell_time_us, rng=np.random.default_rng(seed))
    return path


def path_of_first(pattern, grid=FIELD, seed=0):
    return pattern.paths(grid, dwell_time_us=1.0, rng=np.random.default_rng(seed))[0]


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


def test_spiral_positions_follow_the_smooth_curve_and_not_the_staircase():
    path = path_of(Spiral(1 / 20))
    centre = spiral_curve(np.zeros(1), FIELD.shape, 1 / 20)[0]
    row, col = (path.positions - centre).T
    r, angle = np.hypot(row, col), np.arctan2(row, col)
    turns = (r * 2 * np.pi / 20 - angle) / (2 * np.pi)  # a whole number on r = theta / (2 pi coverage)
    off_px = np.abs(turns - np.round(turns)) * 20
    assert np.median(off_px) < 0.02
    assert (off_px < 0.75).all()  # what the published line of pixels leaves it by, within the pixel


def test_spiral_at_constant_speed_moves_one_pixel_per_position():
    path = path_of(Spiral(1 / 20, speed="linear"))
    steps = np.hypot(*np.diff(path.positions, axis=0).T)[~path.jumps[1:]]
    assert steps[100:] == pytest.approx(1, abs=2e-3)
    assert path.coverage == pytest.approx(0.047, abs=0.001)


def test_blurred_mask_of_a_twentieth_has_the_published_grey_values():
    blurred = blurred_mask(path_of(Spiral(1 / 20)).mask)
    assert (np.unique(blurred) * 16).tolist() == list(range(11))
    assert blurred.max() == 0.625
    assert round(1 / blurred.mean(), 2) == 22.07
    assert round(1 / (blurred > 0).mean(), 2) == 5.73


@pytest.mark.parametrize(("spacing", "expected"), LATTICE.items())
def test_lattice_has_the_published_offset_and_points(spacing, expected):
    offset, points = expected
    path = path_of(Lattice(1 / spacing**2))
    assert path.positions[0].tolist() == [offset, offset]
    assert len(path) == points**2
    assert path.coverage == pytest.approx((points / 512) ** 2)


def test_lattice_of_one_fortieth_has_the_spacing_of_one_thirtysixth():
    assert Lattice(1 / 40).spacing_px == Lattice(1 / 36).spacing_px == 6


def test_lattice_begins_at_its_offset():
    path = path_of(Lattice(1 / 25, offset=(4, 0)))
    assert path.positions[0].tolist() == [4, 0]


@given(
    rows=st.integers(16, 60), cols=st.integers(16, 60), spacing=st.integers(1, 16), dwell_time_us=st.floats(0.125, 10)
)
@settings(max_examples=25, deadline=None)
def test_after_all_frames_of_an_interlaced_lattice_every_pixel_was_measured_exactly_once(
    rows, cols, spacing, dwell_time_us
):
    grid = ScanGrid((rows, cols))
    paths = Interlaced(1 / spacing**2).paths(grid, dwell_time_us=dwell_time_us, rng=np.random.default_rng(0))
    assert len(paths) == spacing**2
    np.testing.assert_array_equal(sum(path.hits.astype(int) for path in paths), np.ones(grid.shape))


def test_a_few_interlaced_frames_together_already_cover_the_field_evenly():
    paths = Interlaced(1 / 64).paths(FIELD, dwell_time_us=1.0, rng=np.random.default_rng(0))
    first = np.array([path.positions[0] for path in paths])
    assert first[:4].tolist() == [[0, 0], [4, 4], [0, 4], [4, 0]]


def test_an_interlaced_cycle_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match=r"at most 16 px of spacing.*1/256"):
        Interlaced(1 / 400)


@pytest.mark.parametrize("pattern", [Fermat, Lissajous, LineHop, Random])
@pytest.mark.parametrize("coverage", [0.02, 0.05, 0.1, 0.2])
def test_coverage_of_what_was_never_published_is_the_true_one(pattern, coverage):
    allowed = 0.07 if pattern is Lissajous and coverage < 0.05 else 0.025  # few coprime frequencies are that small
    assert path_of(pattern(coverage)).coverage == pytest.approx(coverage, rel=allowed)


def test_fermat_spiral_has_the_same_density_everywhere():
    path = path_of(Fermat(1 / 20))
    r2 = ((path.positions - 255.5) ** 2).sum(axis=1)
    rings = np.histogram(r2, bins=np.linspace(0, 255**2, 9))[0]
    assert rings == pytest.approx(rings.mean(), rel=0.01)


def test_lissajous_figure_is_closed_and_never_jumps():
    path = path_of(Lissajous(1 / 20))
    assert not path.jumps.any()
    ring = np.concatenate([path.positions, path.positions[:1]])
    assert np.hypot(*np.diff(ring, axis=0).T).max() <= 1 + 1e-3


@given(share=st.floats(0.01, 0.5), rows=st.integers(2, 300), cols=st.integers(2, 300))
@settings(max_examples=50, deadline=None)
def test_lissajous_frequencies_are_coprime(share, rows, cols):
    p, q = coprime_frequencies((rows, cols), share * rows * cols / 6)
    assert np.gcd(p, q) == 1


@given(
    rows=st.integers(20, 90),
    cols=st.integers(2, 60),
    coverage=st.floats(0.05, 1),
    step=st.integers(1, 4),
    seed=st.integers(0, 9),
)
@settings(max_examples=50, deadline=None)
def test_line_hop_visits_every_column_of_every_band_once_with_bounded_hops(rows, cols, coverage, step, seed):
    path = path_of(LineHop(coverage, step), ScanGrid((rows, cols)), seed)
    walks = path.pixels.reshape(-1, cols, 2)
    np.testing.assert_array_equal(walks[0::2, :, 1], np.broadcast_to(np.arange(cols), walks[0::2].shape[:2]))
    np.testing.assert_array_equal(walks[1::2, :, 1], np.broadcast_to(np.arange(cols)[::-1], walks[1::2].shape[:2]))
    assert np.abs(np.diff(walks[..., 0], axis=1)).max(initial=0) <= step
    assert path.hits.max() == 1
    assert len(walks) == round(coverage * rows)


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


def test_serpentine_raster_visits_every_pixel_once_and_never_jumps():
    path = path_of(Raster("serpentine"), ScanGrid((3, 4)))
    np.testing.assert_array_equal(path.hits, np.ones((3, 4)))
    assert np.abs(np.diff(path.positions, axis=0)).sum(axis=1).max() == 1
    assert not path.jumps.any()


# --- placement ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("rotation_deg", [0.0, 30.0])
def test_a_placed_pattern_stays_in_its_region(name, rotation_deg):
    grid = ScanGrid((160, 200))
    placement = Placement((30, 20, 100, 120), rotation_deg)
    placed = place(load_pattern_class(name)(), placement)
    for path in placed.paths(grid, dwell_time_us=1.0, rng=np.random.default_rng(0))[:3]:
        row, col = path.pixels.T
        assert row.min() >= 30
        assert row.max() < 130
        assert col.min() >= 20
        assert col.max() < 140
        alone = path_of_first(placed.pattern, ScanGrid((100, 120)))
        assert path.mask.sum() == pytest.approx(alone.mask.sum(), rel=0.5 if rotation_deg else 0)


def test_a_region_moves_the_pattern_and_nothing_else():
    placed = path_of(place(Lattice(1 / 16), Placement((10, 20, 64, 64))), ScanGrid((128, 128)))
    alone = path_of(Lattice(1 / 16), ScanGrid((64, 64)))
    np.testing.assert_array_equal(placed.positions - [10, 20], alone.positions)


def test_four_quarter_turns_of_a_square_field_are_exact():
    grid = ScanGrid((64, 64))
    turned = path_of(place(Lattice(1 / 16, offset=(1, 2)), Placement(rotation_deg=90.0)), grid)
    mask = path_of(Lattice(1 / 16, offset=(1, 2)), grid).mask
    np.testing.assert_array_equal(turned.mask, np.rot90(mask, -1))


def test_a_turned_pattern_covers_the_corners_of_its_region():
    path = path_of(place(Raster(), Placement(rotation_deg=45.0)), ScanGrid((50, 70)))
    assert path.mask[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3
    assert path.coverage > 0.7


def test_the_beam_jumps_over_what_a_region_leaves_out():
    path = path_of(place(Raster("serpentine"), Placement(rotation_deg=45.0)), ScanGrid((50, 70)))
    steps = np.hypot(*np.diff(path.positions, axis=0).T)
    assert (path.jumps[1:] | (steps <= 1.001)).all()


def test_a_placed_pattern_says_where_in_its_spec():
    placed = place(Lattice(1 / 16), Placement((1, 2, 30, 40), 15.0))
    assert spec(placed) == {"coverage": 1 / 16, "region": [1, 2, 30, 40], "rotation_deg": 15.0}
    assert spec(Lattice(1 / 16)) == {"coverage": 1 / 16}


@pytest.mark.parametrize("region", [(0, 0, 65, 10), (60, 0, 10, 10), (-1, 0, 5, 5), (0, 0, 0, 5)])
def test_a_region_outside_the_field_is_refused(region):
    with pytest.raises(ValueError, match="region"):
        path_of(place(Raster(), Placement(region)), ScanGrid((64, 64)))


# --- the contract of every row of the table -------------------------------------------------------------------------


@pytest.mark.parametrize("name", MADE)
@given(rows=st.integers(60, 130), cols=st.integers(60, 130), seed=st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_every_probe_position_lies_in_the_grid_and_coverage_is_the_mask_s(name, rows, cols, seed):
    grid = ScanGrid((rows, cols))
    for path in load_pattern_class(name)().paths(grid, dwell_time_us=1.0, rng=np.random.default_rng(seed)):
        assert path.inside.all()
        assert path.coverage == path.mask.sum() / (rows * cols)
        assert path.hits.sum() == len(path)


@pytest.mark.parametrize("name", MADE)
def test_same_seed_gives_the_same_path(name):
    pattern, grid = load_pattern_class(name)(), ScanGrid((96, 128))
    first, second = (pattern.paths(grid, dwell_time_us=1.0, rng=np.random.default_rng(5)) for _ in range(2))
    assert first == second
    assert [path.digest for path in first] == [path.digest for path in second]


@pytest.mark.parametrize("name", MADE)
def test_positions_are_those_that_were_stored(name):
    stored = np.load(STORED)[name]
    assert path_of_first(load_pattern_class(name)(), ScanGrid((64, 80)), seed=7).positions == pytest.approx(
        stored, abs=1e-3
    )


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_its_few_numbers(name):
    pattern = load_pattern_class(name)(*(["some.csv"] if name in READ_FILES else []))
    assert type(pattern)(**dataclasses.asdict(pattern)) == pattern
    assert (type(pattern).__doc__ or "").count("\n") > 3


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


@pytest.mark.parametrize(
    ("pattern", "coverage", "grid", "message"),
    [
        (LineHop, 0.01, (40, 60), r"must be >= 1/40"),
        (Lissajous, 0.01, (40, 130), r"cannot be met.*nearest.* is 0\.05769"),
        (Fermat, 0.001, (7, 7), "use a higher coverage"),
        (Jittered, 1e-9, (64, 64), "use a larger one|no walk"),
    ],
)
def test_unreachable_coverage_is_refused_with_what_would_do(pattern, coverage, grid, message):
    with pytest.raises(ValueError, match=message):
        path_of(pattern(coverage), ScanGrid(grid))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Raster("zigzag"), "lines must be"),
        (lambda: Spiral(speed="warp"), "speed must be"),
        (lambda: Spiral(overscan="drop"), "overscan must be"),
        (lambda: Lattice(1 / 25, offset=(5, 0)), "offset must be 0 to 4"),
        (lambda: LineHop(max_step_px=0), "max_step_px must be 1"),
        (lambda: Fermat(0.3), r"<= 0\.25"),
        (lambda: Placement(rotation_deg=float("nan")), "rotation_deg must be finite"),
    ],
)
def test_parameters_out_of_bounds_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_jittered_above_one_half_is_refused():
    with pytest.raises(ValueError, match=r"<= 0\.5"):
        Jittered(0.6)
