from __future__ import annotations

import numpy as np
import pytest

from lowdose.scan_patterns import ScanGrid, ScanPath
from lowdose.scan_patterns.raster import Raster
from lowdose.simulator.detector import Detector
from lowdose.simulator.interpolation import bilinear
from lowdose.simulator.microscope import VirtualMicroscope
from lowdose.simulator.specimen import Procedural

GRID = ScanGrid((64, 64))


class Flat:
    """A specimen at one level everywhere."""

    def __init__(self, level):
        self._image = np.full(GRID.shape, level, np.float32)

    def frame(self, t_s):
        return self._image


def microscope_over(specimen, efficiency=0.1, current=25.0, channels=1):
    detectors = [Detector(efficiency)] * channels
    return VirtualMicroscope(specimen, detectors, beam_current_pa=current, rng=np.random.default_rng(3))


def raster(dwell_time_us=1.0):
    return Raster().paths(GRID, dwell_time_us=dwell_time_us, rng=np.random.default_rng(0))[0]


def test_full_scale_gives_sixteen_counts_with_the_default_settings():
    counts = microscope_over(Flat(1.0)).acquire(raster(), 0, GRID.n_pixels, 0.0)
    assert counts.mean() == pytest.approx(15.6, abs=0.2)


def test_noise_is_poisson_variance_equals_mean():
    counts = microscope_over(Flat(0.5), efficiency=1.0).acquire(raster(), 0, GRID.n_pixels, 0.0).astype(float)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.07)


def test_twice_the_dwell_time_gives_twice_the_counts():
    one, two = (microscope_over(Flat(1.0)).acquire(raster(t), 0, GRID.n_pixels, 0.0).mean() for t in (1.0, 2.0))
    assert two / one == pytest.approx(2, abs=0.03)


def test_counts_saturate_instead_of_wrapping():
    counts = microscope_over(Flat(1.0), efficiency=1.0, current=1e6).acquire(raster(), 0, 100, 0.0)
    assert (counts == 65_535).all()


def test_sub_pixel_positions_see_the_bilinear_mean():
    image = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    seen = bilinear(image, np.array([[0.5, 0.25], [10, 20], [62.75, 3]]))
    assert seen.tolist() == pytest.approx([0.5 * 64 + 0.25, 10 * 64 + 20, 62.75 * 64 + 3])


def test_positions_outside_the_field_see_its_mirror_image():
    image = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    assert bilinear(image, np.array([[-7, 5], [100.5, 5]])).tolist() == [6 * 64 + 5, 26.5 * 64 + 5]


def test_every_channel_has_noise_of_its_own():
    counts = microscope_over(Procedural(1).open(GRID), channels=2).acquire(raster(), 0, GRID.n_pixels, 0.0)
    assert counts.shape == (2, GRID.n_pixels)
    assert (counts[0] != counts[1]).any()
