from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt, map_coordinates

from lowdose.reconstruction.infill import linear_map, nearest_map
from lowdose.reconstruction.lattice_infill import everywhere_measured, lattice_maps
from lowdose.scan_patterns import ScanGrid
from lowdose.simulator.specimen import Procedural
from tests.reconstruction.lattices import lattice_mask

quick = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def lattices(draw):
    """Return a lattice at any offset: one point to all of them."""
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    spacing = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    offset = tuple(draw(st.integers(0, min(d, n) - 1)) for d, n in zip(spacing, shape, strict=True))
    return lattice_mask(shape, spacing, offset)


def random_values(mask):
    return np.random.default_rng(mask.sum()).random((2, mask.sum()), dtype=np.float32)


def hull_of(mask):
    """Return the mask of the rectangle from the first measured pixel to the last."""
    (top, left), (bottom, right) = np.argwhere(mask)[[0, -1]]
    hull = np.zeros_like(mask)
    hull[top : bottom + 1, left : right + 1] = True
    return hull


@given(mask=lattices())
@quick
def test_nearest_on_a_lattice_takes_a_pixel_no_further_away_than_any_other(mask):
    maps = lattice_maps(mask)
    exact = distance_transform_edt(~mask)
    own = np.indices(mask.shape)
    taken = maps.nearest.apply(own[:, mask].astype(np.float32))
    np.testing.assert_allclose(np.hypot(*(taken - own)), exact, atol=1e-5)
    np.testing.assert_allclose(maps.distance, exact, atol=1e-5)
    np.testing.assert_array_equal(maps.nearest.visited, np.flatnonzero(mask))


@given(mask=lattices())
@quick
def test_linear_on_a_lattice_reproduces_a_constant_everywhere_and_a_plane_inside_the_hull(mask):
    linear, hull = lattice_maps(mask).linear, hull_of(mask)
    rows, cols = np.indices(mask.shape)
    plane = (0.3 * rows - 0.7 * cols + 5).astype(np.float32)
    np.testing.assert_allclose(linear.apply(np.full((1, mask.sum()), 3, np.float32)), 3, atol=1e-6)
    np.testing.assert_allclose(linear.apply(plane[mask][None])[0][hull], plane[hull], atol=1e-4)


@given(mask=lattices())
@quick
def test_linear_on_a_lattice_keeps_measured_pixels_and_is_nearest_outside_the_hull(mask):
    maps, hull, values = lattice_maps(mask), hull_of(mask), random_values(mask)
    filled = maps.linear.apply(values)
    np.testing.assert_array_equal(filled[:, mask], values)
    np.testing.assert_array_equal(filled[:, ~hull], maps.nearest.apply(values)[:, ~hull])


@pytest.mark.parametrize("offset", [(0, 0), (3, 1), (3, 4)])
def test_linear_on_a_lattice_is_linear_along_its_lines_and_stays_between_the_corners_of_a_cell(offset, rng):
    mask = lattice_mask((30, 37), (4, 5), offset)
    values = rng.random((1, mask.sum()), dtype=np.float32)
    filled = lattice_maps(mask).linear.apply(values)[0, offset[0] :, offset[1] :]
    corners = filled[::4, ::5]
    for k in range(4):
        between = (1 - k / 4) * corners[:-1] + k / 4 * corners[1:]
        np.testing.assert_allclose(filled[k::4, ::5][: len(between)], between, atol=1e-6)
    for i, j in np.ndindex(len(corners) - 1, corners.shape[1] - 1):
        cell = filled[4 * i : 4 * i + 5, 5 * j : 5 * j + 5]
        assert cell.min() >= corners[i : i + 2, j : j + 2].min() - 1e-6
        assert cell.max() <= corners[i : i + 2, j : j + 2].max() + 1e-6


def test_offsets_shift_one_interior(rng):
    picture = rng.random((40, 40), dtype=np.float32)
    shifted = np.roll(picture, (2, 3), (0, 1))
    filled = [
        lattice_maps(mask).linear.apply(image[mask][None])[0]
        for image, mask in (
            (picture, lattice_mask((40, 40), (5, 5), (0, 0))),
            (shifted, lattice_mask((40, 40), (5, 5), (2, 3))),
        )
    ]
    np.testing.assert_array_equal(filled[1][2:38, 3:39], filled[0][:36, :36])


def test_lines_need_not_be_equally_spaced_so_that_a_lattice_that_lost_some_is_filled_over_the_gap():
    mask = lattice_mask((20, 20), (3, 3), (1, 1))
    mask[[4, 7]] = False
    rows = np.indices(mask.shape)[0].astype(np.float32)
    filled = lattice_maps(mask).linear.apply(rows[mask][None])[0]
    np.testing.assert_allclose(filled[hull_of(mask)], rows[hull_of(mask)], atol=1e-5)


def test_a_mask_with_a_hole_is_no_lattice():
    mask = lattice_mask((20, 20), (3, 3), (1, 1))
    assert lattice_maps(mask) is not None
    mask[4, 4] = False
    assert lattice_maps(mask) is None
    assert lattice_maps(np.zeros((4, 4), bool)) is None


def test_where_everything_is_measured_there_is_nothing_to_fill(rng):
    values = rng.random((2, 6 * 9), dtype=np.float32)
    for maps in (lattice_maps(np.ones((6, 9), bool)), everywhere_measured((6, 9))):
        np.testing.assert_array_equal(maps.linear.apply(values).reshape(2, -1), values)
        assert not maps.distance.any()


@pytest.mark.parametrize("d", [3, 5, 10])
def test_bilinear_is_no_worse_than_triangles_on_the_procedural_specimen(d):
    truth = Procedural(seed=3).open(ScanGrid((256, 256), pixel_size_nm=0.05)).frame(0.0)
    mask = lattice_mask(truth.shape, (d, d), (1, 2))
    values = truth[mask][None].astype(np.float32)
    triangles = linear_map(mask, nearest_map(mask)[0])
    ours, theirs = (
        np.square(infill.apply(values)[0] - truth).mean() for infill in (lattice_maps(mask).linear, triangles)
    )
    assert ours < theirs


@given(mask=lattices())
@quick
def test_cubic_infill_goes_through_every_measured_value_and_keeps_a_constant(mask):
    infill = lattice_maps(mask).infill("cubic")
    values = random_values(mask)
    np.testing.assert_allclose(infill.apply(values)[:, mask], values, atol=1e-5)
    np.testing.assert_allclose(infill.apply(np.full((1, mask.sum()), 3, np.float32)), 3, atol=1e-5)


@given(mask=lattices())
@quick
def test_on_evenly_spaced_lattices_cubic_infill_is_the_spline_of_scipy_inside_the_hull(mask):
    maps, hull = lattice_maps(mask), hull_of(mask)
    (rows, cols), values = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)), random_values(mask)
    if maps.spline is None:
        assert min(len(rows), len(cols)) < 4 or mask.all()
        return
    places = [(np.arange(n) - own[0]) / (own[1] - own[0]) for n, own in zip(mask.shape, (rows, cols), strict=True)]
    for image, own in zip(maps.spline.apply(values), values, strict=True):
        samples = own.reshape(len(rows), len(cols)).astype(np.float64)
        spline = map_coordinates(samples, np.meshgrid(*places, indexing="ij"), order=3, mode="mirror")
        np.testing.assert_allclose(image[hull], spline[hull], atol=1e-5)


def test_a_fine_crystal_is_followed_closer_by_cubic_infill_than_by_linear():
    crystal = np.sin(np.arange(128) * 2 * np.pi / 17)[:, None] * np.sin(np.arange(128) * 2 * np.pi / 15)
    maps = lattice_maps(lattice_mask(crystal.shape, (5, 5), (2, 2)))
    measured = crystal.ravel()[maps.nearest.visited].astype(np.float32)[None]
    cubic, linear = (
        np.sqrt(np.mean((maps.infill(name).apply(measured)[0] - crystal)[8:-8, 8:-8] ** 2))
        for name in ("cubic", "linear")
    )
    assert cubic < 0.4 * linear


def test_a_lattice_that_lost_a_line_and_scattered_pixels_have_no_spline_and_are_infilled_linearly():
    mask = lattice_mask((40, 40), (4, 4), (0, 0))
    mask[8] = False
    maps = lattice_maps(mask)
    assert maps.spline is None
    assert maps.infill("cubic") is maps.linear
    assert maps.infill("mask") is None
    values = random_values(mask)
    np.testing.assert_array_equal(maps.infill("cubic").apply(values), maps.linear.apply(values))
