from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d, map_coordinates
from scipy.signal import cont2discrete, lfilter, lfilter_zi

from lowdose.scan_patterns import ScanGrid, ScanPath
from lowdose.scan_patterns.identification import CoilFit, first_run, fit_scan, fit_step, measure_delay_us, step_response
from lowdose.scan_patterns.response import CoilResponse, respond
from lowdose.scan_patterns.spiral import Spiral

COILS = [CoilResponse(), CoilResponse(30, 0.5, 1.0), CoilResponse(80, 1.0, 0.0)]
COUNTS = 20
FINER = 10
"""Steps of the true beam in a dwell time."""
EDGE = 512
TIMES_US = np.arange(0, 150, 0.5)


def true_beam(commands: np.ndarray, dwell_time_us: float, coil: CoilResponse) -> np.ndarray:
    """Return the beam at the middles of the steps, (n, FINER, 2): held commands, integrated exactly."""
    w, step = coil.angular_frequency, dwell_time_us / FINER
    b, a, _ = cont2discrete(([w**2], [1, 2 * coil.damping * w, w**2]), step)
    held = np.repeat(commands, FINER, axis=0)
    late = np.concatenate([np.repeat(held[:1], round(coil.delay_us / step), axis=0), held])[: len(held) + 1]
    late = np.concatenate([late, held[-1:]])[: len(held) + 1]
    ends = np.stack([lfilter(b.ravel(), a, axis, zi=lfilter_zi(b.ravel(), a) * axis[0])[0] for axis in late.T], axis=1)
    return ((ends[1:] + ends[:-1]) / 2).reshape(len(commands), FINER, 2)


def texture(rng: np.random.Generator) -> np.ndarray:
    """Return band-limited noise of mean 1 on half pixels, (2 EDGE, 2 EDGE)."""
    frequency = np.fft.fftfreq(2 * EDGE) * 2
    low_pass = np.exp(-16 * (frequency[:, None] ** 2 + frequency**2))
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(2 * EDGE, 2 * EDGE))) * low_pass).real
    return np.maximum(1 + 0.4 * noise / noise.std(), 0.05)


def scanned(coil: CoilResponse, specimen: np.ndarray, rng: np.random.Generator):
    """Return a spiral, what is counted along it, and where the beam really was on average, (n, 2)."""
    (path,) = Spiral(1 / 20).paths(ScanGrid((EDGE, EDGE)), dwell_time_us=1.0, rng=rng)
    beam = true_beam(path.positions.astype(float), 1.0, coil)
    signal = map_coordinates(specimen, 2 * beam.reshape(-1, 2).T, order=1, mode="nearest").reshape(-1, FINER)
    return path, rng.poisson(COUNTS * signal.mean(axis=1)), beam.mean(axis=1)


@pytest.fixture(scope="module")
def specimen() -> np.ndarray:
    return texture(np.random.default_rng(0))


def slow_image(specimen: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).poisson(1000 * specimen[::2, ::2])


@pytest.mark.parametrize("coil", COILS, ids=str)
def test_coil_fitted_to_a_spiral_places_the_beam_within_a_quarter_pixel(coil, specimen):
    path, values, beam = scanned(coil, specimen, np.random.default_rng(2))
    fit = fit_scan(values, path, slow_image(specimen))
    run = first_run(path)
    modelled = respond(path.positions, 1.0, fit.coil)
    off = np.hypot(*(modelled - beam)[:run].T)
    assert fit.coil.lag_us == pytest.approx(coil.lag_us, rel=0.01)
    assert "lag_us" in fit.determined
    assert (off < 0.25).mean() > 0.99
    assert np.sqrt((off**2).mean()) < 0.1


def test_errors_tell_what_can_be_known_of_slow_and_of_fast_coils(specimen):
    determined = {}
    for coil in (CoilResponse(20, 0.7, 2.0), CoilResponse(80, 1.0, 0.0)):
        path, values, _ = scanned(coil, specimen, np.random.default_rng(2))
        fit = fit_scan(values, path, slow_image(specimen))
        assert abs(fit.coil.natural_frequency_khz - coil.natural_frequency_khz) < 4 * fit.natural_frequency_error_khz
        assert abs(fit.coil.damping - coil.damping) < 4 * fit.damping_error
        assert abs(fit.coil.delay_us - coil.delay_us) < 4 * fit.delay_error_us
        determined[coil.natural_frequency_khz] = fit.determined
    assert determined[20] == ("lag_us", "natural_frequency_khz", "damping", "delay_us")
    assert determined[80] == ("lag_us",)


def test_residual_of_a_good_fit_is_the_noise(specimen):
    path, values, _ = scanned(COILS[0], specimen, np.random.default_rng(3))
    assert fit_scan(values, path, slow_image(specimen)).residual_rms == pytest.approx(np.sqrt(COUNTS), rel=0.1)


def test_spiral_is_not_fooled_by_a_lattice_since_it_turns(specimen):
    fringes = np.broadcast_to(1 + 0.4 * np.cos(np.pi * np.arange(2 * EDGE) / 8), specimen.shape)  # 8 px
    path, values, _ = scanned(COILS[0], fringes, np.random.default_rng(4))
    assert fit_scan(values, path, slow_image(fringes)).coil.lag_us == pytest.approx(COILS[0].lag_us, rel=0.03)


def test_scan_of_another_area_is_refused(specimen):
    path, values, _ = scanned(COILS[0], specimen, np.random.default_rng(5))
    with pytest.raises(ValueError, match="values and image correlate by"):
        fit_scan(values, path, slow_image(specimen)[::-1], max_lag_us=10)


def short_path(jump_at: int = 20) -> ScanPath:
    along = np.arange(20.0)
    return ScanPath(ScanGrid((20, 20)), np.stack([along, along], axis=1), 1.0, along == jump_at)


@pytest.mark.parametrize(
    ("values", "path", "image", "says"),
    [
        (np.zeros(3), short_path(), np.zeros((20, 20)), "one for each of 20 positions"),
        (np.zeros(20), short_path(), np.zeros((4, 4)), "shape of the path's grid"),
        (np.full(20, np.nan), short_path(), np.zeros((20, 20)), "values must be finite"),
        (np.zeros(20), short_path(), np.full((20, 20), np.inf), "image must be finite"),
        (np.zeros(20), short_path(5), np.zeros((20, 20)), "jumps after 5 positions"),
        (np.arange(20), short_path(), np.zeros((20, 20)), "correlate by 0.00 only"),
    ],
)
def test_unusable_scan_is_refused(values, path, image, says):
    with pytest.raises(ValueError, match=says):
        fit_scan(values, path, image)


# --- a step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coil", [*COILS, CoilResponse(20, 2.5, 0.5)], ids=str)
def test_step_without_noise_gives_the_coil(coil):
    fit = fit_step(TIMES_US, 5 - 3 * step_response(TIMES_US - 20, coil), 20)
    assert fit.coil.natural_frequency_khz == pytest.approx(coil.natural_frequency_khz, rel=1e-3)
    assert fit.coil.damping == pytest.approx(coil.damping, rel=1e-3)
    assert fit.coil.delay_us == pytest.approx(coil.delay_us, abs=1e-3)
    assert fit.residual_rms < 1e-4


def test_standard_errors_of_a_noisy_step_are_honest():
    coil, rng = COILS[0], np.random.default_rng(0)
    clean = step_response(TIMES_US - 20, coil)
    fits = [fit_step(TIMES_US, clean + 0.03 * rng.normal(size=len(clean)), 20) for _ in range(30)]
    lag = [(fit.coil.lag_us - coil.lag_us) / fit.lag_error_us for fit in fits]
    frequency = [(fit.coil.natural_frequency_khz - 50) / fit.natural_frequency_error_khz for fit in fits]
    assert 0.6 < np.std(lag) < 1.5
    assert 0.6 < np.std(frequency) < 1.5
    assert np.mean([fit.residual_rms for fit in fits]) == pytest.approx(0.03, rel=0.1)


def test_offset_and_unit_of_the_positions_do_not_matter():
    measured = step_response(TIMES_US - 20, COILS[0]) + 0.01 * np.random.default_rng(0).normal(size=len(TIMES_US))
    first, second = fit_step(TIMES_US, measured, 20), fit_step(TIMES_US, 1e6 - 400 * measured, 20)
    assert first.coil.lag_us == pytest.approx(second.coil.lag_us, rel=1e-4)


@pytest.mark.parametrize(
    ("times", "positions", "says"),
    [
        (TIMES_US, np.zeros(300), "all the same"),
        (TIMES_US, np.random.default_rng(0).normal(size=300), "show no step"),
        (TIMES_US, np.maximum(TIMES_US - 20, 0), "end of the search"),
        (TIMES_US, np.where(TIMES_US > 20, 1.0, 0.0), "lag cannot be told"),
        (TIMES_US[:44], TIMES_US[:44], "at least 8 samples must follow"),
        (TIMES_US, TIMES_US[:-1], "alike"),
        (TIMES_US[::-1], TIMES_US, "must increase"),
        (TIMES_US, np.full(300, np.nan), "positions must be finite"),
        (np.full(300, np.inf), TIMES_US, "times_us must be finite"),
    ],
)
def test_unusable_step_is_refused(times, positions, says):
    with pytest.raises(ValueError, match=says):
        fit_step(times, positions, 20)


@pytest.mark.parametrize("damping", [0.5, 1.0, 2.0])
def test_step_response_starts_after_the_delay_and_ends_at_the_command(damping):
    coil = CoilResponse(50, damping, 3.0)
    at = step_response(np.array([-5.0, 0.0, 3.0, 1e6]), coil)
    assert at == pytest.approx([0, 0, 0, 1])
    near = step_response(TIMES_US, CoilResponse(50, damping * (1 + 1e-7), 3.0))
    np.testing.assert_allclose(step_response(TIMES_US, coil), near, atol=1e-5)


def test_determined_names_what_is_known_within_a_tenth():
    fit = CoilFit(CoilResponse(), 4.0, 0.1, 0.3, 0.02, 1.0)
    assert fit.determined == ("lag_us", "natural_frequency_khz", "delay_us")


# --- a line there and back ------------------------------------------------------------------------------------------


def there_and_back(lag: float, k: int, rng: np.random.Generator, counts: float = COUNTS):
    """Return lines of texture, (k, 256), as counted in both directions."""
    noise = gaussian_filter1d(rng.normal(size=(k, 4000)), 20)
    line = np.maximum(1 + 0.4 * noise / noise.std(), 0.05)
    at, late = 500 + 10 * np.arange(256), round(10 * lag)
    return rng.poisson(counts * line[:, at - late]), rng.poisson(counts * line[:, at + late])[:, ::-1]


@pytest.mark.parametrize("lag", [0.0, 0.3, 2.3, 4.9, 9.7])
def test_delay_from_lines_is_right_to_a_fraction_of_the_dwell_time(lag):
    rng = np.random.default_rng(0)
    assert measure_delay_us(*there_and_back(lag, 8, rng), 2.0) == pytest.approx(2 * lag, abs=2 * 0.2)
    assert measure_delay_us(*there_and_back(lag, 1, rng, counts=1e4), 2.0) == pytest.approx(2 * lag, abs=2 * 0.1)


def test_delay_of_a_coil_is_its_lag():
    coil, rng = COILS[0], np.random.default_rng(1)
    columns = np.concatenate([np.arange(600), np.arange(600)[::-1]]).astype(float)
    beam = respond(columns[:, None], 1.0, coil)[:, 0]
    line = gaussian_filter1d(rng.normal(size=700), 3)
    values = np.interp(beam, np.arange(700) - 50, line)
    forward, backward = values[50:550], values[650:1150]  # the same columns, after the turn
    assert measure_delay_us(forward, backward, 1.0) == pytest.approx(coil.lag_us, rel=0.02)


def test_lattice_along_the_line_is_refused_unless_the_search_is_shorter_than_a_quarter_period():
    x = np.arange(256)
    forward, backward = (np.cos(2 * np.pi * (x + late) / 20) for late in (-1.5, 1.5))
    with pytest.raises(ValueError, match=r"equally at delays of 1\.50, 11\.50"):
        measure_delay_us(forward, backward[::-1], 1.0)
    assert measure_delay_us(forward, backward[::-1], 1.0, max_delay_us=4.5) == pytest.approx(1.5, abs=0.02)


@pytest.mark.parametrize(
    ("forward", "backward", "says"),
    [
        (np.ones(64), np.ones(64), "correlate by 0.00 at most"),
        (*np.random.default_rng(0).normal(size=(2, 256)), "more contrast, or more lines"),
        (np.zeros(64), np.zeros(63), "alike"),
        (np.zeros(8), np.zeros(8), "n >= 16"),
        (np.full(64, np.nan), np.zeros(64), "forward must be finite"),
        (np.arange(200.0), np.arange(200.0)[::-1], "end of the search"),
    ],
)
def test_unusable_lines_are_refused(forward, backward, says):
    with pytest.raises(ValueError, match=says):
        measure_delay_us(forward, backward, 1.0)


@pytest.mark.parametrize("wrong", [{"dwell_time_us": 0.0}, {"dwell_time_us": 1.0, "max_delay_us": -1.0}], ids=str)
def test_times_that_are_not_positive_are_refused(wrong):
    with pytest.raises(ValueError, match="must be > 0"):
        measure_delay_us(np.arange(64.0), np.arange(64.0), **wrong)
