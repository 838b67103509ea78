from __future__ import annotations

import numpy as np
import pytest

from lowdose.acquisition.controllers.deflector import Deflector
from lowdose.scan_patterns import ScanGrid
from lowdose.scan_patterns.raster import Raster
from lowdose.scan_patterns.response import CoilResponse
from lowdose.scan_patterns.spiral import Spiral
from lowdose.simulator.detector import Detector
from lowdose.simulator.distortion import Distortion
from lowdose.simulator.microscope import VirtualMicroscope
from lowdose.simulator.specimen import Procedural

GRID = ScanGrid((128, 128))


def path_of(pattern, grid=GRID, dwell_time_us=1.0):
    return pattern.paths(grid, dwell_time_us=dwell_time_us, rng=np.random.default_rng(0))[0]


def image_of(path, distortion, deflector=None):
    """Return what a noiseless detector sees along a raster."""
    specimen = Procedural(1).open(path.grid)
    microscope = VirtualMicroscope(specimen, [Detector(1.0)], beam_current_pa=1000.0, rng=np.random.default_rng(0))
    counts = microscope.acquire(distortion.seen(path, deflector), 0, len(path), 0.0)[0]
    image = np.zeros(path.grid.shape)
    image[tuple(path.pixels.T)] = counts
    return image


def test_an_ideal_instrument_sees_the_path_itself():
    path = path_of(Spiral())
    assert Distortion().seen(path, None) is path


def test_a_slow_coil_drags_the_picture_behind_and_precompensation_brings_it_back():
    path = path_of(Raster())
    truth = image_of(path, Distortion())
    dragged = image_of(path, Distortion(), Deflector(precompensate=False))
    shaped = image_of(path, Distortion(), Deflector())
    error = [np.abs(image - truth)[:, 12:].mean() for image in (dragged, shaped)]
    assert error[1] < 0.4 * error[0]
    lag_px = round(CoilResponse().lag_us)
    shifted = np.abs(dragged[:, 20:] - truth[:, 20 - lag_px : -lag_px]).mean()
    assert shifted < 0.5 * error[0]


def test_a_coil_without_a_deflector_answers_the_bare_path():
    path = path_of(Spiral(), ScanGrid((512, 512)))
    seen = Distortion(coil=CoilResponse()).seen(path, None)
    behind = np.hypot(*(seen.positions - path.positions).T)
    assert np.median(behind) == pytest.approx(5.0 * 1.08, abs=0.2)  # lag of 5 µs at 1.08 px/µs


def test_the_settling_samples_cost_time_and_are_dropped():
    path = path_of(Raster())
    seen = Distortion().seen(path, Deflector())
    assert len(seen) == len(path)
    assert Deflector().drive(path).beam_time_us > 1.3 * path.duration_us


def test_scan_rotation_turns_the_specimen_under_the_scan():
    turned = ScanGrid((128, 128), rotation_deg=90.0)
    straight = Distortion().seen(path_of(Raster()), None)
    seen = Distortion().seen(path_of(Raster(), turned), None)
    np.testing.assert_allclose(seen.positions.reshape(128, 128, 2)[0, :, 1], 127)  # the first line runs down the last
    assert {tuple(p) for p in seen.positions.tolist()} == {tuple(p) for p in straight.positions.tolist()}


def test_a_late_detector_needs_a_beam_that_takes_time():
    with pytest.raises(ValueError, match="needs a coil or a deflector"):
        Distortion(detector_delay_us=1.0).seen(path_of(Spiral()), None)
    with pytest.raises(ValueError, match="detector_delay_us must be 0 to 1000"):
        Distortion(detector_delay_us=-1.0)


def test_field_distortion_moves_the_corners_by_what_it_says():
    path = path_of(Raster())
    corner = Distortion(barrel=0.1).seen(path, None).positions[0]
    assert corner == pytest.approx(63.5 - 63.5 * 1.1, abs=1e-3)
    middle = Distortion(barrel=0.1).seen(path, None).positions.reshape(128, 128, 2)[63:65, 63:65].mean(axis=(0, 1))
    assert middle == pytest.approx([63.5, 63.5], abs=1e-3)
    sheared = Distortion(shear=0.1, stretch=(1.0, 1.02)).seen(path, None).positions.reshape(128, 128, 2)
    assert sheared[-1, 0] - sheared[0, 0] == pytest.approx([127, 12.7], abs=1e-3)
    assert sheared[0, -1] - sheared[0, 0] == pytest.approx([0, 127 * 1.02], abs=1e-3)


@pytest.mark.parametrize("wrong", [{"barrel": 1.0}, {"shear": float("nan")}, {"stretch": (0.1, 1.0)}])
def test_a_distortion_out_of_bounds_is_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Distortion(**wrong)
