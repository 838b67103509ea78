from __future__ import annotations

import numpy as np
import pytest

from lowdose.scan_patterns import ScanGrid
from lowdose.scan_patterns.raster import Raster
from lowdose.simulator.detector import USUAL_DETECTORS, Detector
from lowdose.simulator.drift import Motion
from lowdose.simulator.interpolation import bilinear
from lowdose.simulator.microscope import VirtualMicroscope
from lowdose.simulator.probe import Emitter, Probe
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


# --- instruments that are not ideal ---------------------------------------------------------------------------------


def image_of(specimen, *, detector=None, t_s=0.0, **instrument):
    """Return what one raster of a microscope shows."""
    microscope = VirtualMicroscope(
        specimen,
        [detector or Detector(poisson=False)],
        beam_current_pa=1000.0,
        rng=np.random.default_rng(0),
        **instrument,
    )
    return microscope.acquire(raster(), 0, GRID.n_pixels, t_s)[0].reshape(GRID.shape).astype(float)


def shift_between(first, second):
    """Return by how many pixels (row, col) the second image is shifted against the first, to 1/100 px."""
    spectrum = np.fft.fft2(second - second.mean()) * np.conj(np.fft.fft2(first - first.mean()))
    freq = np.meshgrid(*(np.fft.fftfreq(n) for n in first.shape), indexing="ij")
    low = np.hypot(*freq) < 0.12
    weight, phase = np.abs(spectrum)[low], np.angle(spectrum)[low]
    design = -2 * np.pi * np.stack([f[low] for f in freq], axis=1)
    return np.linalg.lstsq(design * weight[:, None], phase * weight, rcond=None)[0]


def test_drift_is_recovered_from_the_images():
    specimen = Procedural(2).open(GRID)
    still = image_of(specimen)
    drifted = image_of(specimen, motion=Motion(drift_nm_per_s=(0.02, -0.05)), t_s=1.0)
    assert shift_between(still, drifted) == pytest.approx([0.4, -1.0], abs=0.08)  # pixels of 0.05 nm


def test_a_vibration_shears_the_lines_as_it_goes():
    specimen = Procedural(2).open(GRID)
    motion = Motion(vibration_nm=(0.0, 0.1), vibration_hz=1e6 / GRID.n_pixels)
    swinging = image_of(specimen, motion=motion)
    still = image_of(specimen)
    upper, lower = (shift_between(still[part], swinging[part])[1] for part in (slice(8, 24), slice(40, 56)))
    assert upper == pytest.approx(2.0, abs=0.5)
    assert lower == pytest.approx(-2.0, abs=0.5)


def test_a_wide_probe_blurs():
    specimen = Procedural(2).open(GRID)
    sharp, blurred = image_of(specimen), image_of(specimen, probe=Probe(blur_nm=0.15))
    assert np.diff(blurred, axis=1).std() < 0.6 * np.diff(sharp, axis=1).std()
    assert blurred.mean() == pytest.approx(sharp.mean(), rel=0.02)


def test_the_current_jumps_from_time_to_time():
    emitter = Emitter(Probe(current_step=0.2, steps_per_s=100.0, seed=1))
    factors = np.array([emitter.factor(t) for t in np.linspace(0, 10, 20_001)])
    assert np.count_nonzero(np.diff(factors)) == pytest.approx(1000, rel=0.1)
    assert np.log(np.unique(factors)).std() == pytest.approx(0.2, rel=0.1)
    assert Emitter(Probe(current_step=0.2, steps_per_s=100.0, seed=1)).factor(5.0) == emitter.factor(5.0)


def test_channels_of_different_detectors_see_the_same_place():
    specimen = Procedural(2).open(GRID)
    haadf, bf = (image_of(specimen, detector=USUAL_DETECTORS[name]) for name in ("HAADF", "BF"))
    assert np.corrcoef(haadf.ravel(), bf.ravel())[0, 1] < -0.95
