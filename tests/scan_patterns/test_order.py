from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowdose.scan_patterns.order import expected_travel_px, greedy_order, travel_px, visiting_order


def uniform_points(n, seed):
    return np.random.default_rng(seed).random((n, 2)) * 512


def random_pixels(n, seed):
    edge = int(np.sqrt(20 * n))
    flat = np.random.default_rng(seed).choice(edge**2, n, replace=False)
    return np.stack(np.divmod(flat, edge), axis=1), edge**2


def is_permutation(order, n):
    return order.shape == (n,) and np.array_equal(np.sort(order), np.arange(n))


# --- travel ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "bound"), [(1000, 1.10), (2000, 1.08), (4096, 1.07), (13_107, 1.06)])
@pytest.mark.parametrize("seed", range(3))
def test_travel_through_uniform_points_is_near_the_shortest(n, bound, seed):
    points = uniform_points(n, seed)
    assert travel_px(points[visiting_order(points)]) <= bound * expected_travel_px(n, 512**2)


@pytest.mark.parametrize(("n", "bound"), [(1000, 1.10), (4096, 1.09), (13_107, 1.08)])
@pytest.mark.parametrize("seed", range(3))
def test_travel_through_random_pixels_is_near_the_shortest(n, bound, seed):
    pixels, area = random_pixels(n, seed)
    assert travel_px(pixels[visiting_order(pixels)]) <= bound * expected_travel_px(n, area)


def test_travel_through_many_uniform_points_stays_near_the_shortest():
    points = uniform_points(65_536, 0)
    order = visiting_order(points)
    assert is_permutation(order, 65_536)
    assert travel_px(points[order]) <= 1.06 * expected_travel_px(65_536, 512**2)


@pytest.mark.slow
def test_840000_pixels_are_ordered_as_well_as_few():
    pixels, area = random_pixels(840_000, 0)
    assert travel_px(pixels[visiting_order(pixels)]) <= 1.08 * expected_travel_px(840_000, area)


def test_exchanges_shorten_the_greedy_path():
    points = uniform_points(2000, 0)
    assert travel_px(points[visiting_order(points)]) < 0.95 * travel_px(points[greedy_order(points)])


def test_a_few_points_are_visited_about_as_well_as_all_permutations_allow():
    found, best = 0.0, 0.0
    for seed in range(20):
        points = uniform_points(7, seed)
        found += travel_px(points[visiting_order(points)])
        best += min(
            travel_px(points[list(order)]) for order in itertools.permutations(range(7)) if order[0] < order[-1]
        )
    assert found <= 1.05 * best


def test_every_pixel_of_a_field_is_visited_in_steps_of_about_one_pixel():
    pixels = np.stack(np.divmod(np.arange(64 * 64), 64), axis=1)
    assert travel_px(pixels[visiting_order(pixels)]) <= 1.1 * 64 * 64


@given(st.permutations(range(30)))
@settings(max_examples=20, deadline=None)
def test_points_on_a_line_are_visited_from_one_end_to_the_other(along):
    points = np.outer(along, [3.0, 4.0])
    assert travel_px(points[visiting_order(points)]) == pytest.approx(29 * 5)


def test_expected_travel_is_the_published_constant_times_the_root_of_points_and_area():
    assert expected_travel_px(100, 400.0) == pytest.approx(0.7124 * 200)


# --- a permutation, whatever the points -----------------------------------------------------------------------------


@given(arrays(np.int64, st.tuples(st.integers(1, 60), st.just(2)), elements=st.integers(0, 6)))
@settings(deadline=None)
def test_order_of_crowded_pixels_is_a_permutation(pixels):
    assert is_permutation(visiting_order(pixels), len(pixels))


@given(
    arrays(np.float64, st.tuples(st.integers(1, 40), st.just(2)), elements=st.floats(-1, 1, width=32)),
    st.sampled_from([1e-12, 1.0, 1e12]),
)
@settings(deadline=None)
def test_order_of_points_of_any_scale_is_a_permutation(points, scale):
    assert is_permutation(visiting_order(points * scale), len(points))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 100])
def test_points_that_coincide_are_all_visited(n):
    assert is_permutation(visiting_order(np.ones((n, 2))), n)
    twins = np.repeat(uniform_points(n, 0), 2, axis=0)
    order = visiting_order(twins)
    assert is_permutation(order, 2 * n)


def test_order_does_not_depend_on_scale_or_place():
    points = uniform_points(300, 0).round()
    np.testing.assert_array_equal(visiting_order(points), visiting_order(4 * points + 64))


def test_same_points_however_listed_give_the_same_path():
    pixels, _ = random_pixels(500, 0)
    shuffled = np.random.default_rng(1).permutation(pixels)
    np.testing.assert_array_equal(pixels[visiting_order(pixels)], shuffled[visiting_order(shuffled)])


def test_points_that_coincide_are_visited_together():
    points = np.repeat([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]], 2000, axis=0)
    assert travel_px(points[visiting_order(points)]) == pytest.approx(2)


@pytest.mark.parametrize("points", [np.empty((0, 2)), np.zeros(4), np.zeros((4, 3)), [[0, 0], [np.nan, 1]]])
def test_points_that_are_none_are_refused(points):
    with pytest.raises(ValueError, match=r"points must be \(n, 2\)"):
        visiting_order(points)
