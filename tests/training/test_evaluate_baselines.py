"""Baselines: what OpenCV's resize makes of a nearest-downsampled picture, and the same without its shift."""

from __future__ import annotations

import numpy as np
import pytest

from lowdose.reconstruction.lattice_infill import lattice_maps
from lowdose.scan_patterns.grid import ScanGrid
from lowdose.scan_patterns.lattice import Lattice
from lowdose.training.baselines import Comb, LatticeResize, biharmonic, lattice_resize, reduced_precision
from lowdose.training.evaluate import BASELINES

SAMPLES = np.float32([0, 1, 4, 2, 3])
OPENCV = {
    "nearest": [0, 0, 1, 1, 4, 4, 2, 2, 3, 3],
    "area": [0, 0, 1, 1, 4, 4, 2, 2, 3, 3],
    "bilinear": [0, 0.25, 0.75, 1.75, 3.25, 3.5, 2.5, 2.25, 2.75, 3],
    "bicubic": [-0.10547, 0.12109, 0.45703, 1.85547, 3.56641, 3.82812, 2.45312, 2.01562, 2.70312, 3.10547],
    "lanczos": [0.03938, -0.03293, 0.34991, 1.92329, 3.67282, 3.79413, 2.49013, 1.88857, 2.57463, 3.23786],
}
"""cv2.resize(SAMPLES, (10, 1), interpolation=INTER_…) of OpenCV 5.0.0."""


def lattice_mask(coverage, edge=64, offset=None):
    pattern = Lattice(coverage, offset)
    path = pattern.paths(ScanGrid((edge, edge)), dwell_time_us=1.0, rng=np.random.default_rng(0))[0]
    return path.mask.copy()


def ramp(edge=64):
    row, col = np.indices((edge, edge), np.float32)
    return (0.3 * row + 0.7 * col) / edge


@pytest.mark.parametrize("method", OPENCV)
def test_published_enlargement_is_that_of_opencv(method):
    weights = Comb(first=0, spacing=2, n=5, length=10).weights(method, "published")
    assert weights @ SAMPLES == pytest.approx(OPENCV[method], abs=2e-5)


@pytest.mark.parametrize(("method", "alignment"), BASELINES)
@pytest.mark.parametrize("coverage", [1 / 16, 1 / 25, 1 / 100], ids=str)
def test_constant_picture_stays_constant(method, alignment, coverage):
    constant = np.full((64, 64), 0.4, np.float32)
    out = lattice_resize(lattice_mask(coverage)).apply(constant, method, alignment)
    assert out == pytest.approx(constant, abs=1e-6)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "lanczos"])
def test_aligned_enlargement_goes_through_the_measured_values(method):
    mask = lattice_mask(1 / 25)
    picture = np.random.default_rng(3).random((64, 64), np.float32)
    out = lattice_resize(mask).apply(picture, method, "aligned")
    assert out[mask] == pytest.approx(picture[mask], abs=1e-6)


@pytest.mark.parametrize("spacing", [4, 5])
def test_published_enlargement_draws_everything_half_a_block_too_far_and_the_aligned_one_does_not(spacing):
    resize = lattice_resize(lattice_mask(1 / spacing**2, offset=(0, 0)))
    inside = (slice(12, 48), slice(12, 48))
    shift = (spacing - 1) / 2 * (0.3 + 0.7) / 64
    published, aligned = (resize.apply(ramp(), "bilinear", a)[inside] for a in ("published", "aligned"))
    assert aligned == pytest.approx(ramp()[inside], abs=1e-6)
    assert published == pytest.approx(ramp()[inside] - shift, abs=1e-6)


def test_aligned_bilinear_is_the_linear_infill_between_the_samples(rng):
    mask = lattice_mask(1 / 25)
    picture = rng.random((64, 64), np.float32)
    maps = lattice_maps(mask)
    linear = maps.linear.apply(picture.reshape(1, -1)[:, maps.nearest.visited])[0]
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    hull = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
    assert lattice_resize(mask).apply(picture, "bilinear", "aligned")[hull] == pytest.approx(linear[hull], abs=1e-6)


def test_published_enlargement_covers_the_field_from_the_first_sample_on():
    resize = lattice_resize(lattice_mask(1 / 25))
    assert resize == LatticeResize(Comb(2, 5, 13, 64), Comb(2, 5, 13, 64))
    assert resize.window == (slice(2, 64), slice(2, 64))


def test_only_an_evenly_spaced_lattice_is_resized():
    assert lattice_resize(np.eye(8, dtype=bool)) is None
    uneven = lattice_mask(1 / 16)
    uneven[8] = False
    assert lattice_resize(uneven) is None


def test_biharmonic_infill_is_exact_on_a_plane_and_does_all_pictures_at_once():
    pytest.importorskip("skimage")
    mask = lattice_mask(1 / 16, edge=24)
    mask[:, [0, 1, -2, -1]] = mask[[0, 1, -2, -1]] = True
    pictures = np.stack([ramp(24), 1 - ramp(24)])
    assert biharmonic(pictures, mask) == pytest.approx(pictures, abs=1e-4)


def test_eight_bits_round_to_256_levels_and_do_not_overflow():
    measured = np.array([[True, True, True, False]])
    values = np.float32([[[5.0, 15.0, 10.01, 0.0]]])
    coarse = reduced_precision(values, measured, 8)
    assert coarse[0, 0, [0, 1, 3]] == pytest.approx([5, 15, 0], abs=1e-6)  # brightest and darkest stay what they are
    assert coarse[0, 0, 2] == pytest.approx(5 + 10 * 128 / 255, abs=1e-5)


def test_sixteen_bits_are_half_precision_and_32_change_nothing():
    measured = np.ones((1, 3), np.bool_)
    values = np.float32([[[0.0, 1.0, 1 / 3]]])
    assert reduced_precision(values, measured, 16)[0, 0, 2] == np.float32(np.float16(1 / 3))
    assert reduced_precision(values, measured, 32) is values


def test_equal_values_survive_fewer_bits():
    values = np.full((1, 2, 2), 7, np.float32)
    assert (reduced_precision(values, np.ones((2, 2), np.bool_), 8) == 7).all()
