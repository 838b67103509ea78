from __future__ import annotations

import numpy as np
import pytest

from lowdose.scan_patterns import ScanGrid
from lowdose.scan_patterns.dose import frame_dose_e_per_a2
from lowdose.scan_patterns.raster import Raster
from lowdose.scan_patterns.spiral import Spiral
from lowdose.simulator.damage import Damage, Exposure
from lowdose.simulator.detector import Detector
from lowdose.simulator.microscope import VirtualMicroscope

GRID = ScanGrid((128, 128))
DAMAGE = Damage(critical_dose_e_per_a2=600.0, spread_nm=1.0, detail_nm=0.5)


class Lattice:
    """Atomic columns 0.4 nm apart."""

    def __init__(self):
        row, col = np.indices(GRID.shape) * GRID.pixel_size_nm
        image = 0.5 + 0.2 * (np.cos(2 * np.pi * row / 0.4) + np.cos(2 * np.pi * col / 0.4))
        self.image = image.astype(np.float32)

    def frame(self, t_s):
        return self.image


def path_of(pattern):
    return pattern.paths(GRID, dwell_time_us=1.0, rng=np.random.default_rng(0))[0]


def contrast_after(pattern, frames, damage=DAMAGE):
    """Return what is left of the lattice's contrast after some frames, 1 = all."""
    specimen, path = Lattice(), path_of(pattern)
    microscope = VirtualMicroscope(
        specimen, [Detector(poisson=False)], beam_current_pa=25.0, rng=np.random.default_rng(0), damage=damage
    )
    for _ in range(frames):
        counts = microscope.acquire(path, 0, len(path), 0.0)[0].astype(float)
    truth = specimen.image[tuple(path.pixels.T)]
    return np.polyfit(truth - truth.mean(), counts - counts.mean(), 1)[0] / (25 * 0.6241509)


def test_contrast_falls_by_the_critical_dose():
    one, two = contrast_after(Raster(), 1), contrast_after(Raster(), 2)
    dose = frame_dose_e_per_a2(path_of(Raster()), 25.0)
    assert two / one == pytest.approx(np.exp(-dose / 600), rel=0.1)  # counts are whole


def test_a_full_raster_destroys_what_a_sparse_scan_preserves():
    assert contrast_after(Raster(), 4) < 0.1
    assert contrast_after(Spiral(1 / 20), 4) > 0.65


def test_the_dose_that_counts_is_the_mean_over_the_surroundings():
    exposure = Exposure(DAMAGE, GRID)
    path = path_of(Spiral(1 / 20))
    exposure.expose(path.positions, path.dwell_times_us, 25.0)
    middle = np.argwhere(np.ones((24, 24))) + 50.0
    assert exposure.dose_e_per_a2(middle).mean() == pytest.approx(frame_dose_e_per_a2(path, 25.0), rel=0.15)


@pytest.mark.parametrize("shape", [(128, 128), (127, 90), (7, 5), (1, 50), (1, 1)])
@pytest.mark.parametrize("spread_nm", [0.01, 1.0, 1000.0])
def test_an_even_scan_gives_an_even_dose_up_to_the_edges(shape, spread_nm):
    grid = ScanGrid(shape)
    path = Raster().paths(grid, dwell_time_us=1.0, rng=np.random.default_rng(0))[0]
    exposure = Exposure(Damage(spread_nm=spread_nm), grid)
    exposure.expose(path.positions, path.dwell_times_us, 25.0)
    dose = exposure.dose_e_per_a2(path.positions)
    assert dose == pytest.approx(frame_dose_e_per_a2(path, 25.0), rel=1e-3)


def test_dose_is_conserved():
    exposure = Exposure(Damage(spread_nm=0.3), GRID)
    exposure.expose(np.array([[64.0, 64.0]], np.float32), np.array([5.0], np.float32), 25.0)
    everywhere = np.argwhere(np.ones(GRID.shape)).astype(np.float32)
    total = exposure.dose_e_per_a2(everywhere).sum() * GRID.pixel_area_a2
    assert total == pytest.approx(5 * 25 * 6.241509, rel=0.02)


def test_a_new_area_is_unharmed():
    specimen, path = Lattice(), path_of(Raster())
    microscope = VirtualMicroscope(
        specimen, [Detector(poisson=False)], beam_current_pa=25.0, rng=np.random.default_rng(0), damage=DAMAGE
    )
    first = microscope.acquire(path, 0, len(path), 0.0)
    worse = microscope.acquire(path, 0, len(path), 0.0)
    microscope.renew()
    np.testing.assert_array_equal(microscope.acquire(path, 0, len(path), 0.0), first)
    assert np.ptp(worse.astype(int)) < np.ptp(first.astype(int))


def test_mass_is_lost_where_it_is_said_to_be():
    path = path_of(Raster())
    kept, lost = (
        VirtualMicroscope(
            Lattice(),
            [Detector(poisson=False)],
            beam_current_pa=2500.0,
            rng=np.random.default_rng(0),
            damage=Damage(critical_dose_e_per_a2=600.0, mass_loss=share),
        ).acquire(path, 0, len(path), 0.0)
        for share in (0.0, 0.5)
    )
    assert lost.mean() / kept.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"critical_dose_e_per_a2": 0}, "critical_dose_e_per_a2 must be > 0"),
        ({"spread_nm": -1}, "spread_nm must be > 0"),
        ({"mass_loss": 2}, "mass_loss must be 0 to 1"),
    ],
)
def test_damage_out_of_bounds_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Damage(**wrong)
