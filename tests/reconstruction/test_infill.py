from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import LinearNDInterpolator
from scipy.ndimage import distance_transform_edt

from lowdose.reconstruction.infill import linear_map, nearest_map


def random_mask(rng, shape=(40, 50), coverage=0.05):
    mask = rng.random(shape) < coverage
    mask[0, 0] = True
    return mask


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 40), cols=st.integers(1, 40), share=st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_nearest_takes_a_pixel_no_further_away_than_any_other(seed, rows, cols, share):
    mask = random_mask(np.random.default_rng(seed), (rows, cols), share)
    infill, distance = nearest_map(mask)
    taken = np.argwhere(mask)[infill.sources[0]].reshape(rows, cols, 2)
    own = np.moveaxis(np.indices((rows, cols)), 0, -1)
    np.testing.assert_allclose(np.hypot(*np.moveaxis(taken - own, -1, 0)), distance_transform_edt(~mask), atol=1e-5)
    np.testing.assert_allclose(distance, distance_transform_edt(~mask), atol=1e-5)


def test_linear_equals_scipy_inside_the_convex_hull(rng):
    mask = random_mask(rng)
    values = rng.random(mask.sum())
    ours = linear_map(mask, nearest_map(mask)[0]).apply(values[None].astype(np.float32))[0]
    theirs = LinearNDInterpolator(np.argwhere(mask), values)(np.argwhere(np.ones_like(mask))).reshape(mask.shape)
    inside = np.isfinite(theirs)
    # the Delaunay triangulation of lattice points is not unique; scipy's own is the one used here
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-6)


@given(seed=st.integers(0, 10_000), share=st.floats(0.005, 0.9))
@settings(max_examples=40, deadline=None)
def test_linear_weights_are_a_partition_of_one_and_reproduce_a_plane(seed, share):
    mask = random_mask(np.random.default_rng(seed), (30, 30), share)
    nearest, _ = nearest_map(mask)
    linear = linear_map(mask, nearest)
    constant = linear.apply(np.full((1, mask.sum()), 3.0, np.float32))
    np.testing.assert_allclose(constant, 3.0, atol=1e-5)
    if linear.weights is not None:
        rows, cols = np.indices(mask.shape)
        plane = (0.3 * rows - 0.7 * cols + 5).astype(np.float32)
        filled = linear.apply(plane[mask][None])[0]
        three = (linear.weights > 0).sum(axis=0).reshape(mask.shape) == 3
        np.testing.assert_allclose(filled[three], plane[three], atol=1e-4)


def test_measured_pixels_come_out_as_they_went_in(rng):
    mask = random_mask(rng)
    values = rng.random((2, mask.sum())).astype(np.float32)
    nearest, _ = nearest_map(mask)
    for infill in (nearest, linear_map(mask, nearest)):
        np.testing.assert_array_equal(infill.apply(values)[:, mask], values)


@pytest.mark.parametrize("points", [[(3, 3)], [(3, 3), (5, 9)], [(2, 2), (4, 4), (6, 6), (8, 8)]], ids=len)
def test_points_that_make_no_triangle_fall_back_on_nearest(points):
    mask = np.zeros((12, 12), bool)
    mask[tuple(np.transpose(points))] = True
    nearest, _ = nearest_map(mask)
    assert linear_map(mask, nearest) is nearest


def test_nothing_measured_is_refused():
    with pytest.raises(ValueError, match="nothing is measured"):
        nearest_map(np.zeros((4, 4), bool))


def test_linear_beats_nearest_on_a_smooth_picture(rng):
    rows, cols = np.indices((64, 64))
    picture = (np.sin(rows / 9) * np.cos(cols / 7)).astype(np.float32)
    mask = random_mask(rng, (64, 64), 0.06)
    nearest, _ = nearest_map(mask)
    errors = [
        np.square(infill.apply(picture[mask][None])[0] - picture).mean()
        for infill in (linear_map(mask, nearest), nearest)
    ]
    assert errors[0] < 0.5 * errors[1]
