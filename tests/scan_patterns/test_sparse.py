from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from lowdose.scan_patterns.grid import ScanGrid
from lowdose.scan_patterns.order import expected_travel_px, travel_px
from lowdose.scan_patterns.sparse import PoissonDisc, Random, disc_distance_px, lattice_distance, spread_pixels

FIELD = ScanGrid((128, 128))
PATTERNS = [Random, PoissonDisc]


def path_of(pattern, grid=FIELD, seed=0):
    (path,) = pattern.paths(grid, dwell_time_us=1.0, rng=np.random.default_rng(seed))
    return path


def closest_px(path):
    return cKDTree(path.positions).query(path.positions, 2)[0][:, 1].min()


def largest_hole_px(path):
    return distance_transform_edt(~path.mask).max()


# --- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
@given(rows=st.integers(1, 60), cols=st.integers(1, 60), percent=st.integers(1, 25), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_true_coverage_is_exact(pattern, rows, cols, percent, seed):
    grid, coverage = ScanGrid((rows, cols)), percent / 100
    if coverage * grid.n_pixels < 1:
        with pytest.raises(ValueError, match="it must be >="):
            path_of(pattern(coverage), grid, seed)
    else:
        path = path_of(pattern(coverage), grid, seed)
        assert len(path) == path.mask.sum() == round(coverage * grid.n_pixels)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_default_visits_a_twentieth_of_the_published_field(pattern):
    path = path_of(pattern(), ScanGrid((512, 512)))
    assert len(path) == path.mask.sum() == 13_107


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(1, 50), (50, 1), (5, 5), (17, 300), (300, 17), (2, 1000)])
def test_narrow_and_tiny_fields_are_visited(pattern, shape):
    path = path_of(pattern(), ScanGrid(shape))
    assert path.inside.all()
    assert len(path) == path.mask.sum() == round(math.prod(shape) / 20)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_pixel_can_be_all_there_is_to_visit(pattern):
    assert len(path_of(pattern(1 / 9), ScanGrid((3, 3)))) == 1


def test_every_pixel_can_be_visited_at_random():
    assert path_of(Random(1.0), ScanGrid((9, 7))).mask.all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_positions_are_pixel_centres(pattern):
    path = path_of(pattern())
    np.testing.assert_array_equal(path.positions, path.pixels)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_beam_jumps_exactly_to_pixels_that_are_no_neighbours(pattern):
    path = path_of(pattern(1 / 4))
    steps = np.abs(np.diff(path.pixels, axis=0)).max(axis=1)
    assert not path.jumps[0]
    np.testing.assert_array_equal(path.jumps[1:], steps > 1)
    assert 0 < path.jumps.sum() < len(path)


def test_probe_travels_little_through_random_pixels():
    path = path_of(Random())
    assert travel_px(path.positions) <= 1.12 * expected_travel_px(len(path), FIELD.n_pixels)


def test_probe_travels_through_poisson_discs_no_further_than_through_a_square_lattice():
    path = path_of(PoissonDisc())
    assert travel_px(path.positions) <= math.sqrt(len(path) * FIELD.n_pixels)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_same_seed_gives_the_same_path_and_another_seed_another(pattern):
    assert path_of(pattern(), seed=5) == path_of(pattern(), seed=5)
    assert path_of(pattern(), seed=5) != path_of(pattern(), seed=6)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_coverage_of_less_than_a_pixel_is_refused_with_the_least_that_works(pattern):
    with pytest.raises(ValueError, match=r"coverage 0\.05 of 3 x 3 pixels is 0\.45 pixels: it must be >= 1/9"):
        path_of(pattern(), ScanGrid((3, 3)))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("coverage", [0, -0.1, 1.1, math.nan])
def test_coverage_out_of_bounds_is_refused(pattern, coverage):
    with pytest.raises(ValueError, match="coverage must be > 0"):
        pattern(coverage)


# --- random ---------------------------------------------------------------------------------------------------------


def test_random_prefers_no_pixel():
    hits = np.zeros((8, 8))
    for seed in range(400):
        hits += path_of(Random(1 / 8), ScanGrid((8, 8)), seed).mask
    assert abs(hits / 400 - 1 / 8).max() < 5 * math.sqrt(1 / 8 * 7 / 8 / 400)


# --- Poisson disc ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inverse", [4, 5, 7, 10, 16, 20, 25, 40, 64, 100])
def test_poisson_disc_positions_keep_their_distance(inverse):
    path = path_of(PoissonDisc(1 / inverse))
    start_px = disc_distance_px(len(path), FIELD.shape)
    assert 0.62 * start_px < closest_px(path) <= start_px


@pytest.mark.parametrize("inverse", [4, 5, 7, 10, 16, 20, 25, 40, 64, 100])
def test_poisson_disc_leaves_no_large_hole(inverse):
    path = path_of(PoissonDisc(1 / inverse))
    assert largest_hole_px(path) < disc_distance_px(len(path), FIELD.shape)
    assert largest_hole_px(path) < 0.7 * largest_hole_px(path_of(Random(1 / inverse)))


def test_poisson_disc_at_a_twentieth_has_the_documented_distances():
    path = path_of(PoissonDisc(), ScanGrid((512, 512)))
    assert closest_px(path) == pytest.approx(math.sqrt(10))
    assert largest_hole_px(path) <= math.sqrt(13)
    assert closest_px(path_of(Random(), ScanGrid((512, 512)))) == 1


def test_poisson_disc_prefers_no_pixel_away_from_the_border():
    hits = sum(
        np.bincount(spread_pixels((24, 24), 29, np.random.default_rng(seed)), minlength=576) for seed in range(600)
    )
    inner = hits.reshape(24, 24)[6:-6, 6:-6] / 600
    assert inner.std() < 1.5 * math.sqrt(inner.mean() / 600)


def test_poisson_disc_of_more_than_a_quarter_is_refused():
    with pytest.raises(ValueError, match=r"<= 0\.25 .* got 0\.3"):
        PoissonDisc(0.3)


def test_distance_starts_at_the_spacing_of_a_square_lattice():
    assert disc_distance_px(256, (61, 61)) == 4
    assert disc_distance_px(11, (1, 101)) == 10


@pytest.mark.parametrize(
    ("limit", "squared"), [(0.2, 1), (1.4, 1), (1.42, 2), (2.1, 4), (3.5, 10), (5.0, 25), (5.01, 25)]
)
def test_lattice_distance_is_the_longest_two_pixels_can_have(limit, squared):
    assert lattice_distance(limit) ** 2 == pytest.approx(squared)
