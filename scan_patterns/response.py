"""How a scan coil answers: a discrete second-order response, and commands shaped so that the beam goes where it should.

One function models the coil; the pre-compensation uses it with the parameters one believes in, the simulator with those
that are true (imports numpy and scipy).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import solveh_banded

from lowdose.scan_patterns.checks import require_positive

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

STEPS_PER_LAG = 16
"""Steps of the model in the coil's shortest time constant, 1 / angular frequency."""
CHUNK_STEPS = 1 << 21
"""Steps modelled in one go: bounds the memory."""
SETTLED = 20.0
"""Slowest time constants after which nothing is left of how the beam began (2e-9)."""
CORRECTIONS = 2
CUTOFF_OVER_NATURAL = 3.0
"""The beam is made to follow up to three times the coil's natural frequency, for which commands must be 8 times as large."""


@dataclass(frozen=True, slots=True)
class CoilResponse:
    """Second-order response of one deflection axis: position'' = w^2 (command - position) - 2 damping w position'.

    Parameters
    ----------
    natural_frequency_khz : float
        w / 2 pi [kHz].
    damping : float
        Damping ratio, 1 = critical.
    delay_us : float
        Pure delay of electronics [µs].

    Examples
    --------
    >>> round(CoilResponse().lag_us, 2)
    4.96
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 read by pydantic

    natural_frequency_khz: float = 50.0
    damping: float = 0.7
    delay_us: float = 0.5

    def __post_init__(self) -> None:
        require_positive(natural_frequency_khz=self.natural_frequency_khz, damping=self.damping)
        if not (math.isfinite(self.delay_us) and self.delay_us >= 0):
            raise ValueError(f"delay_us must be >= 0, got {self.delay_us}")

    @property
    def angular_frequency(self) -> float:
        """Natural angular frequency w [rad/µs]."""
        return 2 * math.pi * self.natural_frequency_khz * 1e-3

    @property
    def lag_us(self) -> float:
        """How far the beam is behind a steadily moving command, delay included [µs]."""
        return 2 * self.damping / self.angular_frequency + self.delay_us


def respond(
    command: ArrayLike, hold_us: ArrayLike, coil: CoilResponse, *, more_delay_us: float = 0.0
) -> NDArray[np.float64]:
    """Return where the beam is on average while each command is held.

    The beam starts at rest at the first command.

    Parameters
    ----------
    command : (m, axes) array_like
        Commanded positions, held one after another.
    hold_us : float or (m,) array_like
        How long each is held [µs].
    coil : CoilResponse
        Of both axes.
    more_delay_us : float
        Further delay, such as that of the detector: the mean is taken so much earlier [µs].

    Returns
    -------
    (m, axes) float64 ndarray
        Mean beam position, in the unit of the commands.
    """
    command = np.asarray(command, np.float64)
    hold = np.broadcast_to(np.asarray(hold_us, np.float64), len(command))
    ends = np.cumsum(hold)
    step = min(1 / (STEPS_PER_LAG * coil.angular_frequency), float(hold.min()) / 2)
    delay = coil.delay_us + more_delay_us
    memory = delay + SETTLED / (coil.angular_frequency * (coil.damping - math.sqrt(max(0, coil.damping**2 - 1))))
    chunk = max(CHUNK_STEPS * step, 4 * memory)
    beam = np.empty_like(command)
    for begin in np.arange(0, ends[-1], chunk):
        first, stop = np.searchsorted(ends - hold / 2, [begin, begin + chunk])
        lead = int(np.searchsorted(ends, ends[first - 1] - memory)) if first else 0
        beam[first:stop] = _respond(command[lead:stop], hold[lead:stop], coil, delay, step)[first - lead :]
    return beam


def _respond(
    command: NDArray[np.float64], hold_us: NDArray[np.float64], coil: CoilResponse, delay_us: float, step_us: float
) -> NDArray[np.float64]:
    from scipy.signal import bilinear, lfilter, lfilter_zi  # takes half a second, and most scans need no coil

    ends = np.cumsum(hold_us)
    starts = ends - hold_us
    times = step_us * np.arange(math.ceil(ends[-1] / step_us) + 1)
    around = np.append(times, times[-1] + step_us) - step_us / 2  # edges of the steps
    bounds = np.concatenate([[-step_us, 0.0], ends, [around[-1] + step_us]])
    w = coil.angular_frequency
    numerator, denominator = bilinear([w**2], [1, 2 * coil.damping * w, w**2], 1 / step_us)
    at_rest = lfilter_zi(numerator, denominator)
    beam = np.empty_like(command)
    for axis in range(command.shape[1]):
        held = np.concatenate([command[:1, axis], command[:, axis], command[-1:, axis]])
        integral = np.concatenate([[0.0], np.cumsum(held * np.diff(bounds))])
        # the mean over each step, so that it does not matter where in a step the command changes
        commanded = np.diff(np.interp(around, bounds, integral)) / step_us
        moved, _ = lfilter(numerator, denominator, commanded, zi=at_rest * command[0, axis])
        beam[:, axis] = _mean_between(times, moved, starts - delay_us, ends - delay_us)
    return beam


def smoothest_beam(
    positions: NDArray[np.float64], times_us: NDArray[np.float64], weights: NDArray[np.float64], cutoff_khz: float
) -> NDArray[np.float64]:
    """Return the smoothest curve through the positions, with least jerk, that a band-limited beam can follow.

    Minimises sum(weights (b - positions)^2) + integral(b'''^2) / (2 pi cutoff)^6: a smoothing spline, whose response
    falls to one half at the cutoff. Where weights are zero, such as on the way of a jump, the beam goes freely, with
    the least jerk that joins what is before and behind.

    Parameters
    ----------
    positions : (m, axes) float64 ndarray
        Where the beam should be.
    times_us : (m,) float64 ndarray
        When, increasing [µs].
    weights : (m,) float64 ndarray
        Of each position, in units of time [µs]; 0 = anywhere. At least three must be above zero when m >= 4.
    cutoff_khz : float
        Bandwidth [kHz].
    """
    if len(positions) < 4:
        return positions.copy()
    banded = _jerk_penalty(times_us) * (2 * math.pi * cutoff_khz * 1e-3) ** -6.0
    banded[-1] += weights
    return np.asarray(solveh_banded(banded, weights[:, None] * positions, overwrite_ab=True, check_finite=False))


def command_for(
    beam: NDArray[np.float64], times_us: NDArray[np.float64], coil: CoilResponse, *, more_delay_us: float = 0.0
) -> NDArray[np.float64]:
    """Return the commands that make the coil's beam follow a smooth curve: its response inverted, the delay advanced.

    Parameters
    ----------
    beam : (m, axes) float64 ndarray
        Where the beam should be, as `smoothest_beam` returns it.
    times_us : (m,) float64 ndarray
        When: the middle of each hold [µs].
    coil : CoilResponse
        As believed.
    more_delay_us : float
        Further delay to make up for, such as that of the detector [µs].
    """
    from scipy.interpolate import CubicSpline  # heavy to import

    if len(beam) < 4:
        return beam.copy()
    curve = CubicSpline(times_us, beam)
    w = coil.angular_frequency
    ahead = np.minimum(times_us + coil.delay_us + more_delay_us, times_us[-1])
    return np.asarray(curve(ahead) + (2 * coil.damping / w) * curve(ahead, 1) + curve(ahead, 2) / w**2)


def corrected(
    command: NDArray[np.float64],
    hold_us: NDArray[np.float64],
    wanted: NDArray[np.float64],
    samples: NDArray[np.intp],
    coil: CoilResponse,
    *,
    more_delay_us: float = 0.0,
) -> NDArray[np.float64]:
    """Return commands moved, hold by hold, by what the modelled beam misses its positions.

    For holds of several lags, which a curve through their middles describes badly. Every round leaves lag / hold of the
    error; shorter holds answer for each other and diverge.

    Parameters
    ----------
    command : (m, axes) float64 ndarray
        To begin with.
    hold_us : (m,) float64 ndarray
        Of each [µs].
    wanted : (n, axes) float64 ndarray
        Positions.
    samples : (n,) intp ndarray
        Which of the holds is that of each position.
    coil, more_delay_us
        As in `respond`.
    """
    command = command.copy()
    for _ in range(CORRECTIONS):
        command[samples] += wanted - respond(command, hold_us, coil, more_delay_us=more_delay_us)[samples]
    return command


def _mean_between(
    times: NDArray[np.float64], values: NDArray[np.float64], starts: NDArray[np.float64], ends: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mean of a sampled function between times; before the first sample it is constant."""
    step = times[1] - times[0]
    integral = np.concatenate([[0.0], np.cumsum((values[1:] + values[:-1]) * (step / 2))])
    low, high = (np.interp(t, times, integral) + np.minimum(t, 0) * values[0] for t in (starts, ends))
    return np.asarray((high - low) / (ends - starts))


def _jerk_penalty(times_us: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the upper bands, (4, m), of the matrix of integral(b'''^2) by third divided differences."""
    knots = np.stack([times_us[i : len(times_us) - 3 + i] for i in range(4)])  # (4, m - 3)
    apart = knots[:, None] - knots[None]
    apart[np.arange(4), np.arange(4)] = 1
    third = 6 / apart.prod(axis=1) * np.sqrt((knots[3] - knots[0]) / 3)  # (4, m - 3)
    banded = np.zeros((4, len(times_us)))
    for i in range(4):
        for j in range(i, 4):
            banded[3 - (j - i), j : len(times_us) - 3 + j] += third[i] * third[j]
    return banded
