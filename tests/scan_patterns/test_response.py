from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.integrate import cumulative_simpson

from lowdose.scan_patterns import ScanGrid, response
from lowdose.scan_patterns.response import (
    CUTOFF_OVER_NATURAL,
    CoilResponse,
    command_for,
    respond,
    smoothest_beam,
)
from lowdose.scan_patterns.spiral import Spiral
from tests.strategies import quick

DEFAULT = CoilResponse()


def closed_form(times_us: np.ndarray, coil: CoilResponse) -> np.ndarray:
    """Return the step response of a second-order system without delay, as in the textbooks."""
    w, z = coil.angular_frequency, coil.damping
    t = np.maximum(times_us, 0)
    if z == 1:
        return 1 - np.exp(-w * t) * (1 + w * t)
    if z < 1:
        damped = w * np.sqrt(1 - z**2)
        return 1 - np.exp(-z * w * t) * (np.cos(damped * t) + z * w / damped * np.sin(damped * t))
    fast, slow = w * (z + np.sqrt(z**2 - 1)), w * (z - np.sqrt(z**2 - 1))
    return 1 - (fast * np.exp(-slow * t) - slow * np.exp(-fast * t)) / (fast - slow)


def step_means(ends: np.ndarray, step_at: float, coil: CoilResponse) -> np.ndarray:
    """Return the means of the closed form between 0 and consecutive ends."""
    fine = np.arange(0, ends[-1] + 0.005, 0.01)
    integral = cumulative_simpson(closed_form(fine - step_at - coil.delay_us, coil), x=fine, initial=0)
    return np.diff(np.interp(ends, fine, integral), prepend=0) / np.diff(ends, prepend=0)


# --- the coil -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [0.3, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("hold_us", [0.9, 4.0])
def test_step_is_the_one_of_the_textbooks_averaged_over_the_holds(damping, hold_us):
    coil = CoilResponse(50, damping, 0.5)
    command = np.where(np.arange(80) < 20, 0.0, 1.0)[:, None]
    expected = step_means(hold_us * np.arange(1, 81), 20 * hold_us, coil)
    got = respond(command, hold_us, coil)[:, 0]
    np.testing.assert_allclose(got, expected, atol=0.003)


@pytest.mark.parametrize("damping", [0.2, 1.0, 3.0])
def test_beam_ends_where_the_command_ends(damping):
    command = np.where(np.arange(400) < 5, 3.0, -7.0)[:, None]
    assert respond(command, 1.0, CoilResponse(50, damping))[-1] == pytest.approx(-7, abs=1e-3)


@pytest.mark.parametrize("hold_us", [0.05, 1.0, 50.0])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_constant_command_gives_the_constant(n, hold_us):
    beam = respond(np.full((n, 2), [3.0, -500.0], np.float32), hold_us, DEFAULT)
    assert beam.dtype == np.float64
    np.testing.assert_allclose(beam, np.full((n, 2), [3.0, -500.0]), rtol=1e-9)


@pytest.mark.parametrize("coil", [DEFAULT, CoilResponse(30, 0.5, 1.0), CoilResponse(80, 1.0, 0.0)], ids=str)
@pytest.mark.parametrize("hold_us", [0.7, 1.0, 2.0, 10.0])
def test_beam_is_behind_a_ramp_by_the_lag(coil, hold_us):
    ramp = np.arange(600.0)[:, None]
    behind = (ramp - respond(ramp, hold_us, coil))[300:, 0] * hold_us
    assert behind.mean() == pytest.approx(coil.lag_us, rel=5e-3)


@pytest.mark.parametrize(("hold_us", "coil"), [(0.05, DEFAULT), (0.3, DEFAULT), (0.5, CoilResponse(30, 0.5))], ids=str)
def test_beam_is_behind_a_ramp_by_the_lag_at_short_holds_too(hold_us, coil):
    ramp = np.arange(4000.0)[:, None]
    behind = (ramp - respond(ramp, hold_us, coil))[2000:, 0]  # in positions
    assert behind.mean() == pytest.approx(coil.lag_us / hold_us, abs=0.02)


def test_delay_of_whole_holds_shifts_the_beam():
    command = np.random.default_rng(0).normal(size=(50, 2)).cumsum(axis=0)
    without = respond(command, 2.0, CoilResponse(50, 0.7, 0.0))
    np.testing.assert_allclose(respond(command, 2.0, CoilResponse(50, 0.7, 6.0))[3:], without[:-3], atol=1e-9)


def test_further_delay_adds_to_the_coil_s():
    command = np.random.default_rng(0).normal(size=(50, 2)).cumsum(axis=0)
    together = respond(command, 1.0, CoilResponse(50, 0.7, 1.75))
    np.testing.assert_allclose(respond(command, 1.0, DEFAULT, more_delay_us=1.25), together, atol=1e-9)


def test_hold_cut_in_two_is_the_same_command():
    rng = np.random.default_rng(0)
    command, hold = rng.normal(size=(40, 2)).cumsum(axis=0), rng.uniform(1.0, 3.0, 40)
    share = rng.uniform(0.4, 0.6, 40)
    halves = np.stack([hold * share, hold * (1 - share)], axis=1)
    cut = respond(np.repeat(command, 2, axis=0), halves.ravel(), DEFAULT).reshape(40, 2, 2)
    together = (cut * halves[:, :, None]).sum(axis=1) / hold[:, None]
    np.testing.assert_allclose(respond(command, hold, DEFAULT), together, atol=0.01)


@pytest.mark.parametrize("coil", [DEFAULT, CoilResponse(20, 2.0, 1.0), CoilResponse(50, 1.0, 0.0)], ids=str)
def test_what_is_modelled_in_chunks_is_as_if_in_one(coil, monkeypatch):
    rng = np.random.default_rng(0)
    command, hold_us = rng.normal(size=(500, 2)).cumsum(axis=0), rng.uniform(0.2, 3, 500)
    whole = respond(command, hold_us, coil, more_delay_us=3.0)
    monkeypatch.setattr(response, "CHUNK_HOLDS", 7)
    np.testing.assert_allclose(respond(command, hold_us, coil, more_delay_us=3.0), whole, atol=1e-5)


@pytest.mark.parametrize(("command", "hold_us"), [([[0.0]], 0.0), ([[np.nan]], 1.0), (np.zeros((0, 2)), 1.0)])
def test_commands_that_are_none_are_refused(command, hold_us):
    with pytest.raises(ValueError, match="finite commands, one at least"):
        respond(command, hold_us, DEFAULT)


def test_positions_too_close_in_time_for_the_coil_are_refused_with_what_would_do():
    positions = np.zeros((10, 2))
    with pytest.raises(ValueError, match=r"every 0\.01 µs are too close in time for a beam of 100 kHz: at least 0\.03"):
        smoothest_beam(positions, middles(10, 0.01), np.full(10, 0.01), 100.0)


def test_holds_of_a_second_are_modelled():
    np.testing.assert_allclose(respond([[1.0], [2.0]], 1e6, DEFAULT), [[1.0], [2.0]], atol=1e-4)


tracks = hnp.arrays(np.float64, (12, 2), elements=st.floats(-100, 100))


@given(tracks, tracks, st.floats(-3, 3), st.sampled_from([0.3, 1.0, 7.0]))
@quick
def test_response_is_linear(first, second, factor, hold_us):
    beam = respond(first, hold_us, DEFAULT) + factor * respond(second, hold_us, DEFAULT)
    np.testing.assert_allclose(respond(first + factor * second, hold_us, DEFAULT), beam, atol=1e-8)


@given(tracks)
@quick
def test_axes_do_not_see_each_other(command):
    both = respond(command, 1.0, DEFAULT)
    np.testing.assert_array_equal(both[:, :1], respond(command[:, :1], 1.0, DEFAULT))


def test_coil_far_faster_than_the_holds_follows_and_one_far_slower_stays():
    command = np.random.default_rng(0).normal(size=(100, 2))
    np.testing.assert_allclose(respond(command, 50.0, CoilResponse(5000, 0.7, 0.0)), command, atol=0.01)
    np.testing.assert_allclose(respond(command, 0.05, CoilResponse(0.5)), np.repeat(command[:1], 100, 0), atol=0.01)


@pytest.mark.parametrize(
    ("name", "value"),
    [("natural_frequency_khz", 0), ("natural_frequency_khz", np.inf), ("damping", -1), ("damping", np.nan)]
    + [("delay_us", value) for value in (-0.1, np.nan, np.inf)],
)
def test_impossible_coils_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        CoilResponse(**{name: value})


def test_lag_is_that_of_the_coil_and_the_delay():
    assert CoilResponse(50, 0.7, 0.5).lag_us == pytest.approx(1.4 / (2 * np.pi * 0.05) + 0.5)


# --- commands for a beam --------------------------------------------------------------------------------------------


def middles(n: int, hold_us: float) -> np.ndarray:
    return hold_us * (np.arange(n) + 0.5)


def test_pre_compensated_beam_follows_the_spiral():
    (path,) = Spiral(1 / 20).paths(ScanGrid((512, 512)), dwell_time_us=1.0, rng=np.random.default_rng(0))
    first_turns = path.positions[: np.flatnonzero(path.jumps)[0]].astype(float)
    times = middles(len(first_turns), 1.0)
    beam = smoothest_beam(first_turns, times, np.ones(len(times)), CUTOFF_OVER_NATURAL * DEFAULT.natural_frequency_khz)
    outside = np.hypot(*(first_turns - 255.5).T) > 10
    with_it = np.hypot(*(respond(command_for(beam, times, DEFAULT), 1.0, DEFAULT) - first_turns)[outside].T)
    without = np.hypot(*(respond(first_turns, 1.0, DEFAULT) - first_turns)[outside].T)
    assert np.sqrt((with_it**2).mean() / (without**2).mean()) < 0.03
    assert (with_it < 0.25).mean() > 0.98


def test_command_makes_up_for_the_detector_too():
    times = middles(2000, 1.0)
    wave = np.stack([100 * np.sin(times / 40), 100 * np.cos(times / 40)], axis=1)
    command = command_for(wave, times, DEFAULT, more_delay_us=2.0)
    beam = respond(command, 1.0, DEFAULT, more_delay_us=2.0)
    assert np.abs(beam - wave)[100:-10].max() < 0.1


@pytest.mark.parametrize("spread", [0.0, 0.6])
def test_smooth_curve_passes_positions_that_come_at_uneven_times(spread):
    hold = 1 + spread * np.sin(np.arange(400) * 0.7)
    times = np.cumsum(hold) - hold / 2
    wave = np.stack([50 * np.sin(times / 60), times / 8], axis=1)
    assert np.abs(smoothest_beam(wave, times, hold, 100.0) - wave).max() < 0.01


@given(hnp.arrays(np.float64, 3, elements=st.floats(-1, 1)), st.sampled_from([0.5, 1.0, 10.0, 50.0]))
@quick
def test_parabola_is_smooth_already(coefficients, hold_us):
    times = middles(300, hold_us)
    x = times / times[-1]
    track = 100 * np.stack([coefficients @ [np.ones(300), x, x**2], x], axis=1)
    np.testing.assert_allclose(smoothest_beam(track, times, np.full(300, hold_us), 100.0), track, atol=1e-5)


def test_transition_where_nothing_is_asked_for_has_the_least_jerk():
    n, gap = 400, 200
    weights = np.ones(n)
    weights[100 : 100 + gap] = 0
    positions = np.where(np.arange(n) < 150, 0.0, 100.0)[:, None]
    beam = smoothest_beam(positions, middles(n, 1.0), weights, 200.0)[:, 0]
    s = np.clip((np.arange(n) - 99) / (gap + 1), 0, 1)
    np.testing.assert_allclose(beam, 100 * (10 * s**3 - 15 * s**4 + 6 * s**5), atol=1.0)


@pytest.mark.parametrize("hold_us", [0.05, 1.0, 50.0])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_few_positions_are_commanded_somewhere_finite(n, hold_us):
    positions = np.arange(2.0 * n, dtype=np.float32).reshape(n, 2)
    times = middles(n, hold_us)
    beam = smoothest_beam(positions, times, np.full(n, hold_us), 100.0)
    np.testing.assert_allclose(beam, positions, atol=1e-4)
    assert np.isfinite(respond(command_for(beam, times, DEFAULT), hold_us, DEFAULT)).all()


def test_positions_given_are_not_changed():
    positions = np.random.default_rng(0).normal(size=(50, 2))
    kept, times = positions.copy(), middles(50, 1.0)
    command_for(smoothest_beam(positions, times, np.ones(50), 100.0), times, DEFAULT)
    np.testing.assert_array_equal(positions, kept)
