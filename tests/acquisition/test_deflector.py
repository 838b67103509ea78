from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowdose.acquisition.controllers.deflector import REACHED_PX, Deflector
from lowdose.scan_patterns import PATTERNS, ScanGrid, ScanPath
from lowdose.scan_patterns.lattice import Lattice
from lowdose.scan_patterns.line_hop import LineHop
from lowdose.scan_patterns.pattern import READ_FILES, load_pattern_class
from lowdose.scan_patterns.raster import Raster
from lowdose.scan_patterns.response import CoilResponse
from lowdose.scan_patterns.spiral import Spiral
from tests.strategies import grids, quick

FIELD = ScanGrid((512, 512))
SMALL = ScanGrid((64, 64))


def path_of(pattern, grid=FIELD, dwell_time_us=1.0):
    return pattern.paths(grid, dwell_time_us=dwell_time_us, rng=np.random.default_rng(0))[0]


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


# --- pre-compensation -----------------------------------------------------------------------------------------------


def test_precompensation_leaves_a_fifth_of_a_spiral_s_beam_error_at_most():
    path = path_of(Spiral(1 / 20))
    with_it, without = (Deflector(precompensate=flag).drive(path) for flag in (True, False))
    reached = ~with_it.unreached
    assert reached.mean() > 0.98
    assert rms(with_it.error_px[reached]) <= 0.2 * rms(without.error_px[reached])
    assert rms(with_it.error_px) <= 0.05 * rms(without.error_px)  # measured: 0.014


@pytest.mark.parametrize(
    ("pattern", "dwell_time_us"),
    [(Raster(), 1.0), (Lattice(1 / 25), 1.0), (Lattice(1 / 25), 20.0), (Spiral(1 / 20, speed="linear"), 1.0)],
    ids=str,
)
def test_the_modelled_beam_reaches_the_positions(pattern, dwell_time_us):
    drive = Deflector().drive(path_of(pattern, ScanGrid((128, 128)), dwell_time_us))
    assert drive.unreached.mean() < 0.03


def test_hops_that_are_too_sharp_for_the_coil_are_reported_as_unreached():
    fast, slow = (Deflector().drive(path_of(LineHop(), SMALL, dwell)) for dwell in (1.0, 20.0))
    assert fast.unreached.mean() > 0.3
    assert slow.unreached.mean() == 0
    assert (fast.error_px[fast.unreached] > REACHED_PX).all()


def test_a_detector_that_is_late_is_made_up_for():
    path = path_of(Spiral(1 / 20))
    drive = Deflector(detector_delay_us=3.0).drive(path)
    seen = drive.beam(CoilResponse(), 3.0)
    assert rms(np.hypot(*(seen - path.positions).T)) < 0.15
    late = Deflector().drive(path).beam(CoilResponse(), 3.0)
    assert rms(np.hypot(*(late - path.positions).T)) > 2


def test_a_wrong_belief_about_the_coil_leaves_an_error():
    path = path_of(Spiral(1 / 20))
    seen = Deflector().drive(path).beam(CoilResponse(natural_frequency_khz=30), 0.0)
    assert rms(np.hypot(*(seen - path.positions).T)) > 1


# --- settling samples -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PATTERNS if name not in READ_FILES])
@pytest.mark.parametrize("precompensate", [True, False])
def test_every_position_has_its_hold_in_order_and_with_its_dwell(name, precompensate):
    path = path_of(load_pattern_class(name)(), ScanGrid((72, 96)), dwell_time_us=20.0)
    drive = Deflector(precompensate=precompensate).drive(path)
    assert (np.diff(drive.samples) >= 1).all()
    assert drive.hold_us[drive.samples] == pytest.approx(path.dwell_times_us)
    inserted = len(drive.codes) - len(path)
    settled_before = np.diff(drive.samples) > 1
    np.testing.assert_array_equal(settled_before, path.jumps[1:])
    assert inserted > 0  # at least before the frame
    assert drive.beam_time_us > path.duration_us
    assert drive.ends_us[-1] == pytest.approx(drive.beam_time_us)


def test_a_jump_takes_its_length_at_full_slew_and_the_settling_time():
    path = ScanPath(FIELD, [[0, 0], [0, 200]], 10.0, [False, True])
    drive = Deflector().drive(path)
    added_us = drive.beam_time_us - path.duration_us
    assert added_us == pytest.approx(2 * (200 / 2 + 5), abs=2 * 1.25)  # there, and back before the frame


def test_what_is_commanded_without_precompensation_is_the_path():
    path = path_of(Lattice(1 / 25), SMALL)
    deflector = Deflector(precompensate=False)
    drive = deflector.drive(path)
    commanded = deflector.positions(drive.codes[drive.samples], SMALL)
    assert commanded == pytest.approx(path.positions, abs=2e-3)  # half a code


def test_the_beam_is_never_asked_to_move_faster_than_the_slew_on_its_way():
    deflector = Deflector()
    drive = deflector.drive(path_of(Raster(), SMALL, 2.0))
    beam = deflector.positions(drive.codes, SMALL)
    speed = np.abs(np.diff(beam, axis=0)).max(axis=1) / drive.hold_us[1:]
    # the commands lead the beam by its lag where it turns, so that they are a little faster
    assert speed.max() < 2.5 * 2


def test_a_drive_is_kept_as_long_as_its_path():
    deflector, path = Deflector(), path_of(Lattice(1 / 25), SMALL)
    assert deflector.drive(path) is deflector.drive(path)
    assert replace(deflector, settle_us=6.0).drive(path) is not deflector.drive(path)


# --- calibration ----------------------------------------------------------------------------------------------------


@given(grid=grids(), angle=st.floats(-180, 180), scale=st.floats(1, 1e4), shear=st.floats(-0.5, 0.5))
@quick
def test_codes_and_positions_are_each_other_s_inverse(grid, angle, scale, shear):
    grid = ScanGrid(grid.shape, grid.pixel_size_nm, angle)
    deflector = Deflector(codes_per_nm=((scale, shear * scale), (0.0, -scale)), centre_code=(30_000.0, 35_000.0))
    positions = np.array([[0, 0], [1.5, 2.25], [-3, 7]])
    back = deflector.positions(deflector.codes(positions, grid), grid)
    assert back == pytest.approx(positions, abs=1e-6)


def test_without_a_calibration_the_longer_edge_takes_six_tenths_of_the_range():
    codes = Deflector().codes(np.array([[-0.5, -0.5], [99.5, 399.5]]), ScanGrid((100, 400)))
    assert np.diff(codes[:, 1])[0] == pytest.approx(0.6 * 2**16)
    assert np.diff(codes[:, 0])[0] == pytest.approx(0.15 * 2**16)


def test_a_calibration_in_codes_per_nanometre_places_the_field_by_its_size():
    deflector = Deflector(codes_per_nm=((1000.0, 0.0), (0.0, 1000.0)))
    codes = deflector.codes(np.array([[31.5, 31.5], [31.5, 41.5]]), ScanGrid((64, 64), pixel_size_nm=0.1))
    assert codes[0] == pytest.approx([2**15, 2**15])
    assert codes[1] - codes[0] == pytest.approx([0, 1000])


def test_the_scan_rotation_turns_the_fast_axis():
    deflector = Deflector(codes_per_nm=((1000.0, 0.0), (0.0, 1000.0)))
    grid = ScanGrid((64, 64), pixel_size_nm=0.1, rotation_deg=90.0)
    along_fast = np.diff(deflector.codes(np.array([[0, 0], [0, 10]]), grid), axis=0)[0]
    assert along_fast == pytest.approx([1000, 0])


# --- refused before the beam moves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("precompensate", [True, False])
def test_a_path_that_is_too_fast_is_refused_with_the_dwell_time_that_would_do(precompensate):
    path = path_of(load_pattern_class("fermat")(1 / 20))
    deflector = Deflector(precompensate=precompensate)
    with pytest.raises(
        ValueError, match=r"moves 4\.\d+ px/µs at position \d+, the deflector at most 2 px/µs"
    ) as refused:
        deflector.drive(path)
    would_do = float(str(refused.value).rpartition(">= ")[2])
    deflector.drive(path_of(load_pattern_class("fermat")(1 / 20), dwell_time_us=would_do * 1.01))


def test_a_field_beyond_the_range_is_refused_with_the_largest_that_fits():
    deflector = Deflector(codes_per_nm=((1000.0, 0.0), (0.0, 1000.0)))
    with pytest.raises(
        ValueError, match=r"needs codes -\d+ to \d+, the DAC has 0 to 65535: scan a field of at most 0\.\d"
    ):
        deflector.drive(path_of(Raster(), ScanGrid((64, 64), pixel_size_nm=2.0)))


def test_a_dwell_time_below_the_converter_s_is_refused():
    with pytest.raises(
        ValueError, match=r"dwell_time_us must be >= 0\.125.*: dwell_time_us must be >= 0\.5"
    ) as refused:
        Deflector().drive(path_of(Raster(), SMALL, 0.05))
    would_do = float(str(refused.value).rpartition(">= ")[2])
    Deflector().drive(path_of(Raster(), SMALL, would_do))


@pytest.mark.parametrize("name", ["spiral", "fermat", "raster", "line_hop", "lissajous"])
@pytest.mark.parametrize("edge", [64, 256])
def test_the_dwell_time_that_is_advised_works_at_once(name, edge):
    pattern, grid = load_pattern_class(name)(), ScanGrid((edge, edge))
    with pytest.raises(ValueError, match="must be >=") as refused:
        Deflector().drive(path_of(pattern, grid, 0.126))
    Deflector().drive(path_of(pattern, grid, float(str(refused.value).rpartition(">= ")[2])))


@pytest.mark.parametrize("positions", [[[5, 5]], [[5, 5], [50, 60]], [[5, 5], [5, 5]]])
@pytest.mark.parametrize("settle_us", [0.0, 5.0, 1000.0])
def test_paths_too_short_for_a_curve_are_commanded_as_they_are(positions, settle_us):
    jumps = np.arange(len(positions)) > 0
    drive = Deflector(settle_us=settle_us).drive(ScanPath(SMALL, positions, 20.0, jumps))
    assert len(drive.samples) == len(positions)
    assert np.isfinite(drive.error_px).all()


def test_jumps_that_take_for_ever_are_refused_before_anything_is_allocated():
    with pytest.raises(ValueError, match=r"take 1e\+\d+ settling samples|settling samples, at most"):
        Deflector(slew_px_per_us=1e-9).drive(path_of(Lattice(1 / 25)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bits": 4}, "bits must be 8 to 16"),
        ({"slew_px_per_us": 0.0}, "slew_px_per_us must be > 0"),
        ({"settle_us": -1.0}, "settle_us must be 0 to 1000"),
        ({"detector_delay_us": float("nan")}, "detector_delay_us must be 0 to 1000"),
        ({"codes_per_nm": ((float("inf"), 0.0), (0.0, 1.0))}, "must be finite"),
        ({"centre_code": (float("nan"), 1.0)}, "centre_code must be > 0 and < 65535"),
        ({"centre_code": (70_000.0, 1.0)}, "centre_code must be > 0 and < 65535"),
        ({"codes_per_nm": ((1.0, 1.0), (1.0, 1.0))}, "must be finite and have an inverse"),
    ],
)
def test_a_deflector_out_of_bounds_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Deflector(**wrong)
