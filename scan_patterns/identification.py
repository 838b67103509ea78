"""What coil is in the microscope: its response fitted to a measured step, to a scan, to a line there and back.

Fit with these, then command the scan for the coil found (imports numpy and scipy).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import least_squares, minimize_scalar

from lowdose.scan_patterns.checks import require_positive
from lowdose.scan_patterns.response import CoilResponse, respond

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from lowdose.scan_patterns.path import ScanPath

DAMPINGS = (0.1, 5.0)
MAX_SHARE = 0.9
"""Where damping and share of the delay in the lag are looked for."""
START_DAMPINGS = (0.4, 0.7, 1.2)
START_SHARES = (0.05, 0.4)
SMOOTHED_OVER_PX = 1.5
"""Standard deviation of the smoothing of the image at first, to find the lag from further away [pixel]."""
MIN_SAMPLES = 8
MIN_SIGNIFICANCE = 8.0
"""Of a correlation, in standard deviations of what noise alone gives; the best of many tries reaches 4 to 5."""
MIN_CORRELATION = 0.1
WELL_DETERMINED = 0.1
"""Largest relative standard error; that of the delay is related to the lag."""
AS_GOOD = 0.9
"""Another maximum of the correlation as high as this share of the highest makes the shift ambiguous."""


@dataclass(frozen=True, slots=True)
class CoilFit:
    """A coil as identified, and how well.

    Where the beam moves steadily only the lag shows, 2 damping / w + delay. It is known best by far; its parts make up
    for one another, and wrong ones may yet place the beam well: ask `determined`. Standard errors assume that the
    model is right and the noise independent from sample to sample.

    Parameters
    ----------
    coil : CoilResponse
        Best fit.
    natural_frequency_error_khz, damping_error, delay_error_us, lag_error_us : float
        Standard errors [kHz], -, [µs], [µs].
    residual_rms : float
        Root mean square of data - model, in the unit of the data.
    """

    coil: CoilResponse
    natural_frequency_error_khz: float
    damping_error: float
    delay_error_us: float
    lag_error_us: float
    residual_rms: float

    @property
    def determined(self) -> tuple[str, ...]:
        """Names of what is known within 10 %, the delay within 10 % of the lag."""
        relative = {
            "lag_us": self.lag_error_us / self.coil.lag_us,
            "natural_frequency_khz": self.natural_frequency_error_khz / self.coil.natural_frequency_khz,
            "damping": self.damping_error / self.coil.damping,
            "delay_us": self.delay_error_us / self.coil.lag_us,
        }
        return tuple(name for name, error in relative.items() if error <= WELL_DETERMINED)


def fit_step(times_us: ArrayLike, positions: ArrayLike, step_at_us: float) -> CoilFit:
    """Identify a coil from a step: one command changed at once, the position measured before and behind.

    Parameters
    ----------
    times_us : (n,) array_like
        When positions were measured, increasing [µs]; several within 1 / angular frequency of the coil.
    positions : (n,) array_like
        Along the step, in any unit; where it begins and ends is fitted too.
    step_at_us : float
        When the command changed [µs].

    Raises
    ------
    ValueError
        If the data are unusable or hold no step, or one that says nothing of the coil.

    Examples
    --------
    >>> times_us = np.arange(0, 60, 0.5)
    >>> moving = np.maximum(times_us - 10.5, 0)  # critically damped, delayed by 0.5 µs
    >>> fit = fit_step(times_us, 7 - 3 * np.exp(-moving / 4) * (1 + moving / 4), step_at_us=10)
    >>> round(fit.coil.lag_us, 3), round(fit.coil.damping, 3)
    (8.5, 1.0)
    """
    times, measured = _finite("times_us", times_us), _finite("positions", positions)
    if times.ndim != 1 or times.shape != measured.shape:
        raise ValueError(f"times_us and positions must be (n,) alike, got {times.shape} and {measured.shape}")
    if not (np.diff(times) > 0).all():
        raise ValueError("times_us must increase from sample to sample")
    since = times - step_at_us
    after = since[since > 0]
    if len(after) < MIN_SAMPLES:
        raise ValueError(f"at least {MIN_SAMPLES} samples must follow the step at {step_at_us} µs, got {len(after)}")
    shortest = float(np.diff(times).min())

    def model(coil: CoilResponse) -> NDArray[np.float64]:
        return step_response(since, coil)

    starts = _coils(np.geomspace(shortest, after[-1], 40).tolist())
    fit, correlation = _fit(model, measured, starts, lags := (shortest / 10, 10 * float(after[-1])))
    significance = _significance(correlation, len(times))
    if significance < MIN_SIGNIFICANCE:
        raise ValueError(
            f"positions show no step: {significance:.1f} standard deviations, need {MIN_SIGNIFICANCE:g}. "
            "Use a larger step, or average several"
        )
    _require_inside(fit, lags, shortest)
    return fit


def fit_scan(values: ArrayLike, path: ScanPath, image: ArrayLike, *, max_lag_us: float | None = None) -> CoilFit:
    """Identify a coil from a fast scan, such as a spiral, and a slow raster image of the same area.

    The values must have been measured with the positions commanded as they are, each held for its dwell time, the beam
    at rest at the first; what follows the first jump is not used. Fitted is values = gain * image(mean beam position)
    + offset. Any delay of the detector counts as one of the coil.

    The path must turn through all directions: along a straight line a lag by one period of a lattice looks like none.
    What tells damping, frequency and delay apart are turns within a few times 1 / w, the first ones of a spiral; blobs
    or texture serve best.

    Parameters
    ----------
    values : (n,) array_like
        Measured along the path.
    path : ScanPath
        As commanded, without pre-compensation.
    image : (rows, cols) array_like
        Of the path's grid, true: taken slowly enough that the lag is far below a pixel.
    max_lag_us : float, optional
        Where to stop looking [µs]. Default: 64 times the mean dwell time.

    Raises
    ------
    ValueError
        If arrays do not fit together, or values and image do not show the same structure.
    """
    measured, raster = _finite("values", values), _finite("image", image)
    if measured.shape != (len(path),):
        raise ValueError(f"values must be one for each of {len(path)} positions, got shape {measured.shape}")
    if raster.shape != path.grid.shape:
        raise ValueError(f"image must have the shape of the path's grid, {path.grid.shape}, got {raster.shape}")
    run = first_run(path)
    if run < MIN_SAMPLES:
        raise ValueError(f"the path jumps after {run} positions: use one that runs on, such as a spiral")
    measured, positions = measured[:run], path.positions[:run].astype(np.float64)
    dwell = path.dwell_times_us[:run].astype(np.float64)
    max_lag_us = 64 * float(dwell.mean()) if max_lag_us is None else max_lag_us
    require_positive(max_lag_us=max_lag_us)

    def fit_to(seen: NDArray[np.float64], starts: list[CoilResponse]) -> CoilFit:
        lags = (float(dwell.min()) / 4, 2 * max_lag_us)
        return _fit(lambda coil: _look_up(seen, respond(positions, dwell, coil)), measured, starts, lags)[0]

    smooth = gaussian_filter(raster, SMOOTHED_OVER_PX)
    lag, correlation = _best_lag(measured, positions, dwell, smooth, max_lag_us)
    if correlation < (needed := _needed(run)):
        raise ValueError(
            f"values and image correlate by {correlation:.2f} only, need {needed:.2f}: take both of the same area "
            "without drift between them, or with more dose"
        )
    return fit_to(raster, [fit_to(smooth, _coils([lag])).coil])


def measure_delay_us(
    forward: ArrayLike, backward: ArrayLike, dwell_time_us: float, *, max_delay_us: float | None = None
) -> float:
    """Return by how much signal and beam lag behind the command, from lines scanned forward and back [µs].

    Both see the line shifted by the lag, in opposite directions: twice the lag between them. The lag is that of coil
    and detector together; noise may bring one of zero slightly below.

    Parameters
    ----------
    forward, backward : (n,) or (k, n) array_like
        The same k lines at constant speed, in the order of acquisition: both begin with what was measured first.
    dwell_time_us : float
        Per position [µs].
    max_delay_us : float, optional
        Where to stop looking [µs]. Default: a quarter of the line's time. On a lattice, below a quarter of the time the
        beam takes for a period.

    Raises
    ------
    ValueError
        If the lines have nothing in common, or match at several shifts.

    Examples
    --------
    >>> line = np.exp(-(((np.arange(100) - 40) / 6) ** 2))
    >>> forward, backward = np.roll(line, 3), np.roll(line, -3)[::-1]  # 3 positions late in both directions
    >>> round(measure_delay_us(forward, backward, dwell_time_us=2.0), 3)
    6.0
    """
    there, back = (np.atleast_2d(_finite(*line)) for line in (("forward", forward), ("backward", backward)))
    if there.ndim != 2 or there.shape != back.shape or there.shape[1] < 2 * MIN_SAMPLES:
        raise ValueError(
            f"forward and backward must be (k, n) alike with n >= {2 * MIN_SAMPLES}, got {there.shape} and {back.shape}"
        )
    require_positive(dwell_time_us=dwell_time_us)
    longest = there.shape[1] // 2
    if max_delay_us is not None:
        require_positive(max_delay_us=max_delay_us)
        longest = min(longest, math.ceil(2 * max_delay_us / dwell_time_us))
    shifts = np.arange(-2, longest + 1)
    correlation = np.array([_shifted_correlation(there, back[:, ::-1], int(shift)) for shift in shifts])
    best = int(correlation.argmax())
    _require_match(correlation, shifts, there.size, dwell_time_us)
    smooth = CubicSpline(shifts, -correlation)
    around = (shifts[best] - 1, min(shifts[best] + 1, longest))
    return float(minimize_scalar(smooth, bounds=around, method="bounded").x * dwell_time_us / 2)


def step_response(times_us: NDArray[np.float64], coil: CoilResponse) -> NDArray[np.float64]:
    """Return where the beam is after a command from 0 to 1 at time 0."""
    t = np.maximum(times_us - coil.delay_us, 0)
    root = np.sqrt(complex(coil.damping**2 - 1))
    slow, apart = coil.angular_frequency * (root - coil.damping), -2 * coil.angular_frequency * root
    # (exp(apart t) - 1) / apart, which tends to t at critical damping
    grown = t if apart == 0 else np.expm1(apart * t) / apart
    return np.asarray(1 - (np.exp(slow * t) * (1 - slow * grown)).real)


def first_run(path: ScanPath) -> int:
    """Return how many positions there are before the first jump."""
    jumps = np.flatnonzero(path.jumps[1:])
    return int(jumps[0]) + 1 if len(jumps) else len(path)


def _fit(
    model: Callable[[CoilResponse], NDArray[np.float64]],
    values: NDArray[np.float64],
    starts: list[CoilResponse],
    lags_us: tuple[float, float],
) -> tuple[CoilFit, float]:
    """Return the coil for which gain * model + offset fits values best, from the best start, and how both correlate."""
    values = values - values.mean()
    if not values.any():
        raise ValueError("the measured values are all the same")
    start = max(starts, key=lambda coil: _correlation(values, model(coil)))
    low, high = _bounds(lags_us)
    found = least_squares(
        lambda numbers: _residuals(values, model(_coil(numbers))),
        np.clip(_numbers(start), low, high),
        jac="3-point",
        bounds=(low, high),
        x_scale="jac",
        diff_step=3e-3,  # an image between its pixels is not smooth
    )
    coil = _coil(found.x)
    rms = math.sqrt(2 * found.cost / max(len(values) - 5, 1))
    frequency, damping, delay, lag = (rms * _deviations(coil, _inverse(found.jac.T @ found.jac))).tolist()
    return CoilFit(coil, frequency, damping, delay, lag, rms), _correlation(values, model(coil))


def _bounds(lags_us: tuple[float, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where `_numbers` are looked for."""
    low = [math.log(lags_us[0]), math.log(DAMPINGS[0]), 0.0]
    high = [math.log(lags_us[1]), math.log(DAMPINGS[1]), MAX_SHARE]
    return np.array(low), np.array(high)


def _numbers(coil: CoilResponse) -> NDArray[np.float64]:
    """Return what is fitted: lag, all but independent of the rest, and damping, as logarithms, share of the delay."""
    return np.array([math.log(coil.lag_us), math.log(coil.damping), coil.delay_us / coil.lag_us])


def _coil(numbers: NDArray[np.float64]) -> CoilResponse:
    """Return the coil of `_numbers`."""
    lag, damping, share = math.exp(numbers[0]), math.exp(numbers[1]), float(numbers[2])
    return CoilResponse(1e3 * damping / (math.pi * lag * (1 - share)), damping, lag * share)


def _deviations(coil: CoilResponse, covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard errors of frequency, damping, delay and lag from the covariance of `_numbers`."""
    share = coil.delay_us / coil.lag_us
    change = np.array([
        coil.natural_frequency_khz * np.array([-1, 1, 1 / (1 - share)]),
        [0, coil.damping, 0],
        [coil.delay_us, 0, coil.lag_us],
        [coil.lag_us, 0, 0],
    ])  # fmt: skip
    return np.asarray(np.sqrt((change @ covariance * change).sum(axis=1)))


def _finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array


def _inverse(normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the inverse of a normal matrix; what is not determined at all gets very large instead of infinite."""
    scale = np.sqrt(np.maximum(normal.diagonal(), 1e-12 * normal.trace() + 1e-300))
    return np.asarray(np.linalg.inv(normal / np.outer(scale, scale) + 1e-12 * np.eye(len(normal)))) / np.outer(
        scale, scale
    )


def _coils(lags: list[float]) -> list[CoilResponse]:
    """Return coils of every lag, damping and share of the delay to start from."""
    every = product(np.log(lags), np.log(START_DAMPINGS), START_SHARES)
    return [_coil(np.array(numbers)) for numbers in every]


def _residuals(values: NDArray[np.float64], model: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what is left of values of mean zero when gain and offset of the model are the best ones."""
    model = model - model.mean()
    power = float(model @ model)
    return values - model * (float(model @ values) / power) if power > 0 else values


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Pearson's coefficient, 0 when one of both is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else 0.0


def _needed(n: int) -> float:
    """Return the correlation of n samples above which it is none of noise."""
    return min(max(MIN_CORRELATION, MIN_SIGNIFICANCE / math.sqrt(n)), 0.9)


def _significance(correlation: float, n: int) -> float:
    """Return a correlation of n samples in standard deviations of that of noise."""
    return abs(correlation) * math.sqrt(n / max(1 - correlation**2, 1e-12))


def _look_up(image: NDArray[np.float64], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an image at positions, (n, 2), bilinear; outside it goes on as at its edge."""
    return np.asarray(map_coordinates(image, positions.T, order=1, mode="nearest"))


def _best_lag(
    values: NDArray[np.float64],
    positions: NDArray[np.float64],
    dwell: NDArray[np.float64],
    image: NDArray[np.float64],
    max_lag_us: float,
) -> tuple[float, float]:
    """Return the delay that, on its own, makes values match the image best, to 1/4 dwell time [µs], and how well."""
    middles = np.cumsum(dwell) - dwell / 2

    def match(lag: float) -> float:
        late = np.stack([np.interp(middles - lag, middles, axis) for axis in positions.T], axis=1)
        return _correlation(values, _look_up(image, late))

    step = float(dwell.mean()) / 4
    return max(
        ((lag, match(lag)) for lag in np.arange(step, max_lag_us + step, step).tolist()), key=lambda pair: pair[1]
    )


def _require_inside(fit: CoilFit, lags_us: tuple[float, float], shortest_us: float) -> None:
    """Raise ValueError if the step does not tell what the coil is."""
    coil, numbers, (low, high) = fit.coil, _numbers(fit.coil), _bounds(lags_us)
    if (numbers > high - 1e-2).any() or (numbers < low + 1e-2)[:2].any():  # no delay is no bound
        raise ValueError(
            f"the coil cannot be told from this step: the fit went to the end of the search, {coil}. Measure the beam "
            "along the step itself, often enough to see its shape"
        )
    if "lag_us" not in fit.determined or coil.lag_us < shortest_us:
        raise ValueError(
            f"the lag cannot be told from this step: {coil.lag_us:.2f} ± {fit.lag_error_us:.2f} µs with samples "
            f"{shortest_us:.2f} µs apart. Measure more often, longer, or with less noise"
        )


def _shifted_correlation(forward: NDArray[np.float64], backward: NDArray[np.float64], shift: int) -> float:
    """Return how forward[x] and backward[x - shift] correlate where both are, over all lines, (k, n)."""
    n = forward.shape[1]
    a = forward[:, max(shift, 0) : n + min(shift, 0)]
    b = backward[:, max(-shift, 0) : n - max(shift, 0)]
    a, b = (lines - lines.mean(axis=1, keepdims=True) for lines in (a, b))
    return _correlation(a.ravel(), b.ravel())


def _require_match(
    correlation: NDArray[np.float64], shifts: NDArray[np.int_], n_samples: int, dwell_time_us: float
) -> None:
    """Raise ValueError unless lines match at one shift inside the range, clearly."""
    best = int(correlation.argmax())
    if correlation[best] < (needed := _needed(n_samples)):
        raise ValueError(
            f"forward and backward correlate by {correlation[best]:.2f} at most, need {needed:.2f}: scan a line with "
            "more contrast, or more lines, and give both in the order of acquisition"
        )
    if best in (0, len(shifts) - 1):
        raise ValueError(
            f"forward and backward match best at the end of the search, {shifts[best] * dwell_time_us / 2:.2f} µs: "
            "allow a longer max_delay_us, or check the order of the samples"
        )
    inner = correlation[1:-1]
    peaks = 1 + np.flatnonzero((inner >= correlation[:-2]) & (inner >= correlation[2:]))
    rivals = [int(i) for i in peaks if i != best and correlation[i] > AS_GOOD * correlation[best]]
    if rivals:
        delays = ", ".join(f"{shifts[i] * dwell_time_us / 2:.2f}" for i in sorted([best, *rivals]))
        raise ValueError(
            f"the lines match about equally at delays of {delays} µs: scan something that is not periodic, or "
            "give a smaller max_delay_us"
        )
