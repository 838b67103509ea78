"""How a scan coil answers: a discrete second-order response, and commands shaped so that the beam goes where it should.

One function models the coil; the pre-compensation uses it with the parameters one believes in, the simulator with those
that are true (imports numpy and scipy).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import solve_banded, solveh_banded

from lowdose.scan_patterns.checks import require_positive

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MIN_FREQUENCY_KHZ, MAX_FREQUENCY_KHZ = 0.01, 1e5
MAX_DAMPING = 100.0
MAX_DELAY_US = 1e4
CHUNK_HOLDS = 1 << 18
"""Holds modelled in one go: bounds the memory."""
CRITICAL = 1e-8
MIN_WEIGHTS = 3
SHORTEST_HOLD = 0.02
"""Times the cutoff's angular frequency: with shorter holds a smoothing spline loses all digits."""
CORRECTIONS = 2
CUTOFF_OVER_NATURAL = 3.0
"""The beam is made to follow up to three times the coil's natural frequency; commands there are 9 times as large."""


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
        if not MIN_FREQUENCY_KHZ <= self.natural_frequency_khz <= MAX_FREQUENCY_KHZ:
            raise ValueError(
                f"natural_frequency_khz must be {MIN_FREQUENCY_KHZ:g} to {MAX_FREQUENCY_KHZ:g}, "
                f"got {self.natural_frequency_khz:g}"
            )
        if not 1 / MAX_DAMPING <= self.damping <= MAX_DAMPING:
            raise ValueError(f"damping must be {1 / MAX_DAMPING:g} to {MAX_DAMPING:g}, got {self.damping:g}")
        if not 0 <= self.delay_us <= MAX_DELAY_US:
            raise ValueError(f"delay_us must be 0 to {MAX_DELAY_US:g}, got {self.delay_us:g}")

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
    if not (len(hold) and (hold > 0).all() and np.isfinite(command).all()):
        raise ValueError("respond needs finite commands, one at least, each held for longer than 0 µs")
    edges = np.concatenate([[0.0], np.cumsum(hold)])
    arrivals = edges[1:-1] + (coil.delay_us + more_delay_us)  # of the second command and of all after it
    answer = _Answer(coil, command[0])
    beam = np.empty_like(command)
    for first in range(0, len(command), CHUNK_HOLDS):
        around = edges[first : first + CHUNK_HOLDS + 1]
        low, high = np.searchsorted(arrivals, around[[0, -1]])
        instants = np.union1d(around, arrivals[low:high])
        held = command[np.searchsorted(arrivals, instants[:-1], side="right")]
        travelled = np.concatenate([np.zeros_like(command[:1]), np.cumsum(answer.integrals(held, instants), axis=0)])
        at_edges = travelled[np.searchsorted(instants, around)]
        beam[first : first + CHUNK_HOLDS] = np.diff(at_edges, axis=0) / np.diff(around)[:, None]
    return beam


class _Answer:
    """The beam as the sum of its command and two decaying modes, whose amplitudes step with the command; exact."""

    def __init__(self, coil: CoilResponse, at_rest: NDArray[np.float64]) -> None:
        # at critical damping both poles are one; a hair beside it nothing changes but the algebra
        damping = coil.damping if abs(coil.damping - 1) > CRITICAL else 1 + CRITICAL
        root = np.sqrt(complex(damping**2 - 1))
        self._poles = coil.angular_frequency * np.array([-damping + root, -damping - root])
        self._modes = np.zeros((2, len(at_rest)), np.complex128)
        self._held = at_rest

    def integrals(self, held: NDArray[np.float64], instants: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the integral of the position from each instant to the next, (k, axes), and stay at the last one."""
        length = np.diff(instants)
        change = np.diff(held, axis=0, prepend=self._held[None])
        integral = held * length[:, None]
        for i, (pole, other) in enumerate((self._poles, self._poles[::-1])):
            stepped = change * (other / (pole - other))
            stepped[0] += self._modes[i]
            decay = np.exp(pole * length)
            # mode[k] = decay[k - 1] mode[k - 1] + stepped[k]
            mode = solve_banded((1, 0), np.stack([np.ones_like(decay), -decay]), stepped, check_finite=False)
            integral += (mode * (np.expm1(pole * length) / pole)[:, None]).real
            self._modes[i] = mode[-1] * decay[-1]
        self._held = held[-1]
        return integral


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
        Of each position, in units of time [µs]; 0 = anywhere. At least three must be above zero when m >= 4, and no
        more than about 300 in a row may be zero: the digits lost grow with their number (0.001 px of a jump of 100).
    cutoff_khz : float
        Bandwidth [kHz].
    """
    if len(positions) < 4:
        return positions.astype(np.float64)
    if np.count_nonzero(weights) < MIN_WEIGHTS:
        raise ValueError(
            f"a curve of least jerk needs {MIN_WEIGHTS} weights above zero, got {np.count_nonzero(weights)}"
        )
    cutoff = 2 * math.pi * cutoff_khz * 1e-3  # rad/µs
    if float(np.diff(times_us).min()) < SHORTEST_HOLD / cutoff:
        raise ValueError(
            f"positions every {np.diff(times_us).min():.3g} µs are too close in time for a beam of {cutoff_khz:g} kHz: "
            f"at least {SHORTEST_HOLD / cutoff:.3g} µs apart"
        )
    banded = _jerk_penalty(times_us) * cutoff**-6.0
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
        return beam.astype(np.float64)
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
