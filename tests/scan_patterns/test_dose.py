from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowdose.scan_patterns import ScanGrid, ScanPath
from lowdose.scan_patterns.dose import (
    ELECTRONS_PER_PA_US,
    budget_dwell_time_us,
    cumulative_dose_e_per_a2,
    dose_map_e_per_a2,
    dose_rate_e_per_a2_s,
    fluence_e_per_a2,
    frame_dose_e_per_a2,
    position_dose_e_per_a2,
    share_of_raster,
    visited_dose_e_per_a2,
)
from lowdose.scan_patterns.jitter import Jittered
from lowdose.scan_patterns.raster import Raster
from tests.strategies import paths, quick

currents_pa = st.floats(0.1, 1e3)
GRID = ScanGrid((2, 3), pixel_size_nm=0.1)  # a pixel is 1 Å^2
RNG = np.random.default_rng(0)


def electrons(path: ScanPath, current_pa: float, which: np.ndarray) -> float:
    return ELECTRONS_PER_PA_US * current_pa * float(path.dwell_times_us[which].sum(dtype=np.float64))


@quick
@given(paths(), currents_pa)
def test_electrons_on_the_map_are_those_of_the_positions_inside(path, current_pa):
    on_map = dose_map_e_per_a2(path, current_pa).sum(dtype=np.float64) * path.grid.pixel_area_a2
    assert on_map == pytest.approx(electrons(path, current_pa, path.inside), rel=1e-5)


@quick
@given(paths(), currents_pa)
def test_the_map_adds_up_the_positions_of_each_pixel(path, current_pa):
    expected = np.zeros(path.grid.shape)
    for (row, col), dose in zip(
        path.pixels[path.inside], position_dose_e_per_a2(path, current_pa)[path.inside], strict=True
    ):
        expected[row, col] += dose
    np.testing.assert_allclose(dose_map_e_per_a2(path, current_pa), expected, rtol=1e-5)


@quick
@given(paths(), currents_pa)
def test_the_frame_pays_for_overscan_too(path, current_pa):
    everything = electrons(path, current_pa, np.ones(len(path), bool))
    assert frame_dose_e_per_a2(path, current_pa) == pytest.approx(everything / path.grid.area_a2)


@quick
@given(paths(overscan=False), currents_pa)
def test_the_mean_of_the_map_is_the_dose_of_the_frame_without_overscan(path, current_pa):
    mean = dose_map_e_per_a2(path, current_pa).mean(dtype=np.float64)
    assert mean == pytest.approx(frame_dose_e_per_a2(path, current_pa), rel=1e-5)


def test_a_position_deposits_its_fluence():
    path = ScanPath(GRID, [[0, 0], [1, 2]], [1.0, 2.5])
    expected = [fluence_e_per_a2(25, dwell, 0.1) for dwell in (1.0, 2.5)]
    np.testing.assert_allclose(position_dose_e_per_a2(path, 25), expected, rtol=1e-6)


def test_the_map_shows_every_visit_and_no_overscan():
    path = ScanPath(GRID, [[0, 0], [0, 0], [1, 2], [5, 5]], 1.0)
    unit = ELECTRONS_PER_PA_US
    np.testing.assert_allclose(dose_map_e_per_a2(path, 1.0), [[2 * unit, 0, 0], [0, 0, unit]], rtol=1e-6)
    assert visited_dose_e_per_a2(path, 1.0) == pytest.approx(1.5 * unit)


def test_beam_time_beyond_the_path_is_paid_for():
    path = ScanPath(GRID, [[0, 0], [0, 1]], 1.0)
    assert frame_dose_e_per_a2(path, 25, beam_time_us=3.0) == pytest.approx(1.5 * frame_dose_e_per_a2(path, 25))
    assert share_of_raster(path, 1.0, beam_time_us=3.0) == pytest.approx(0.5)


def test_dose_adds_up_frame_by_frame_along_the_cycle():
    cycle = [ScanPath(GRID, [[0, 0]] * n, 1.0) for n in (1, 2)]
    one, two = (frame_dose_e_per_a2(path, 25) for path in cycle)
    np.testing.assert_allclose(cumulative_dose_e_per_a2(cycle, 25, 5), np.cumsum([one, two, one, two, one]))


@quick
@given(paths(), currents_pa)
def test_the_rate_over_the_frame_time_is_the_dose_of_the_frame(path, current_pa):
    rate = dose_rate_e_per_a2_s(path.grid, current_pa)
    assert rate * path.duration_us * 1e-6 == pytest.approx(frame_dose_e_per_a2(path, current_pa))


@quick
@given(st.floats(0.1, 100), st.floats(2, 500), st.floats(0, 100))
def test_a_dwell_time_for_a_budget_spends_it_and_no_more(nominal_us, budget, overhead_us):
    grid, pattern = ScanGrid((64, 64), pixel_size_nm=0.1), Jittered()
    (path,) = pattern.paths(grid, dwell_time_us=nominal_us, rng=np.random.default_rng(1))
    dwell_us = budget_dwell_time_us(
        path, 5.0, budget, dwell_time_us=nominal_us, beam_time_us=lambda slower: slower.duration_us + overhead_us
    )
    (scaled,) = pattern.paths(grid, dwell_time_us=dwell_us, rng=np.random.default_rng(1))
    spent = frame_dose_e_per_a2(scaled, 5.0, beam_time_us=scaled.duration_us + overhead_us)
    assert spent <= budget
    assert spent == pytest.approx(budget, rel=3e-5)


def test_a_budget_that_settling_alone_exceeds_is_refused():
    path = ScanPath(GRID, [[0, 0]], 1.0)
    with pytest.raises(
        ValueError, match=r"budget_e_per_a2 1 allows .* µs of beam, which settling and flyback alone take: raise"
    ):
        budget_dwell_time_us(path, 25, 1.0, dwell_time_us=1.0, beam_time_us=lambda slower: slower.duration_us + 1e6)


@pytest.mark.parametrize("dwell_time_us", [0.1, 1.0, 3.7])
def test_a_raster_compared_with_itself_is_one(dwell_time_us):
    (path,) = Raster().paths(ScanGrid((7, 5)), dwell_time_us=dwell_time_us, rng=RNG)
    assert share_of_raster(path, dwell_time_us) == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_current_time_or_budget_that_is_none_is_refused(value):
    path = ScanPath(GRID, [[0, 0]], 1.0)
    for call in (
        lambda: position_dose_e_per_a2(path, value),
        lambda: dose_map_e_per_a2(path, value),
        lambda: frame_dose_e_per_a2(path, value),
        lambda: frame_dose_e_per_a2(path, 1.0, beam_time_us=value),
        lambda: dose_rate_e_per_a2_s(GRID, value),
        lambda: budget_dwell_time_us(path, 1.0, value, dwell_time_us=1.0),
        lambda: share_of_raster(path, value),
    ):
        with pytest.raises(ValueError, match="must be > 0"):
            call()
