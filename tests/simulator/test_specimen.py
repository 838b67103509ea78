"""The procedural specimen: deterministic, in range, on any grid, and still there after a sparse scan."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import griddata

from lowdose.scan_patterns import ScanGrid
from lowdose.scan_patterns.spiral import Spiral
from lowdose.simulator.canvas import Canvas
from lowdose.simulator.specimen import Procedural, make_particles, projected_thickness

GRID = ScanGrid((512, 512), pixel_size_nm=0.05)


def image_of(grid, seed=1):
    return Procedural(seed).open(grid).frame(0.0)


@pytest.fixture(scope="module")
def specimen():
    return image_of(GRID)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 700), (700, 1), (33, 7), (128, 512)], ids=str)
@pytest.mark.parametrize("pixel_size_nm", [1e-4, 0.05, 100.0])
def test_any_grid_gives_a_finite_image_in_range(shape, pixel_size_nm):
    image = image_of(ScanGrid(shape, pixel_size_nm))
    assert image.shape == shape
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1


def test_same_seed_gives_the_same_specimen(specimen):
    np.testing.assert_array_equal(image_of(GRID), specimen)


def test_another_seed_gives_another_specimen(specimen):
    assert np.corrcoef(image_of(GRID, seed=2).ravel(), specimen.ravel())[0, 1] < 0.5


def test_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        Procedural(seed=-1)


def test_specimen_does_not_change_with_time():
    source = Procedural().open(ScanGrid((16, 16)))
    assert source.frame(0.0) is source.frame(1e6)


def test_frame_is_read_only(specimen):
    with pytest.raises(ValueError, match="read-only"):
        specimen[0, 0] = 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_vacuum_and_film_are_dark_and_the_brightest_particle_is_near_full_scale(seed):
    image = image_of(GRID, seed)
    assert image.min() == pytest.approx(0.05, abs=0.01)
    assert 0.05 < np.median(image) < 0.25
    assert image.max() > 0.9


@pytest.mark.parametrize("shape", [(512, 512), (256, 1024)], ids=str)
def test_median_diameter_follows_the_field_of_view(shape):
    grid = ScanGrid(shape, pixel_size_nm=0.02)
    particles = make_particles(Canvas(grid), (0.0, 0.0, 1.0), np.random.default_rng(1))
    diameter_nm = np.median([2 * p.radius for p in particles])
    assert 0.08 < diameter_nm / (512 * 0.02) < 0.16


def test_more_pixels_on_the_same_field_show_the_same_particles(specimen):
    coarse = image_of(ScanGrid((128, 128), pixel_size_nm=0.2))
    binned = specimen.reshape(128, 4, 128, 4).mean(axis=(1, 3))
    assert np.corrcoef(coarse.ravel(), binned.ravel())[0, 1] > 0.98


def lattice_power(image, pixel_size_nm):
    """Return the share of the image's variance around the {111} frequencies of gold and platinum."""
    power = np.abs(np.fft.fft2(image - image.mean())) ** 2
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, pixel_size_nm) for n in image.shape), indexing="ij"))
    band = (frequency > 1 / 0.245) & (frequency < 1 / 0.215)
    return power[band].sum() / power.sum()


def test_lattice_has_the_spacing_of_the_metal_and_is_left_out_when_not_resolved(specimen):
    pixel_size_nm = 0.08  # 2.9 pixels per plane: below what is drawn
    unresolved = image_of(ScanGrid((512, 512), pixel_size_nm))
    assert lattice_power(specimen, 0.05) > 0.01
    assert lattice_power(unresolved, pixel_size_nm) < 0.001


def test_no_beam_path_is_longer_than_the_particle_is_wide():
    particle = make_particles(Canvas(GRID), (0.0, 0.0, 1.0), np.random.default_rng(1))[0]
    x = np.linspace(-2 * particle.radius, 2 * particle.radius, 101, dtype=np.float32)
    thickness = projected_thickness(x[:, None], x[None, :], particle)
    assert particle.radius < thickness.max() <= 2 * particle.radius * (1 + 1e-6)
    assert thickness[0].max() == 0


def test_sparse_spiral_still_shows_the_particles(specimen):
    path = Spiral(coverage=1 / 20).paths(GRID, dwell_time_us=1.0, rng=np.random.default_rng(0))[0]
    measured = np.argwhere(path.mask)
    completed = griddata(measured, specimen[path.mask], tuple(np.mgrid[:512:4, :512:4]), "linear")
    known = np.isfinite(completed)
    assert np.corrcoef(completed[known], specimen[::4, ::4][known])[0, 1] > 0.9
