"""Deflector: from probe positions to DAC codes that a scan coil can follow (imports numpy and scan_patterns).

A path says where the sample is wanted; a drive says what the DAC is told, when, and where the beam then is. Between two
positions that are a jump apart it inserts settling samples, which the controller drops: indices stay those of the path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from lowdose.scan_patterns.checks import require_positive, rounded_up
from lowdose.scan_patterns.response import (
    CUTOFF_OVER_NATURAL,
    MIN_WEIGHTS,
    CoilResponse,
    command_for,
    corrected,
    respond,
    smoothest_beam,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.scan_patterns.path import ScanPath

REACHED_PX = 0.25
"""A position is reached when the modelled beam passes so near to it [pixel]."""
FIELD_SHARE = 0.6
"""Of the DAC's range that a field without calibration takes: its corners' circle fits, too, and commands that lead."""
MIN_FIELD_PX = 128
"""Smaller fields without calibration take less of the range: the beam turns round some 20 px beyond their edge."""
MAX_HOLDS = 1 << 26
"""Positions and settling samples of one frame."""
SLEW_TOLERANCE = 1.001
PRECISION = 0.01
"""Of the dwell time that is advised."""
SLOW_LAGS = 2.0
"""With dwell times of so many lags the beam comes to rest at every position."""
MAX_SETTLING_HOLD_US = 1.25
"""Longest settling sample: short enough to shape the way of a jump [µs]."""
MAX_FREE_HOLDS = 100
"""Settling samples at either end of a jump."""

Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Deflector:
    """What turns positions into codes, and its limits. The defaults are a good test coil, not a certain microscope's.

    Parameters
    ----------
    bits : int
        Of the DAC.
    codes_per_nm : ((float, float), (float, float)), optional
        Affine calibration: (row, col) codes for 1 nm along the specimen's (slow, fast) axes. Default: the magnification
        follows the field, whose longer edge takes 60 % of the range.
    centre_code : (float, float), optional
        (row, col) code of the middle of the field. Default: the middle of the range.
    min_dwell_us : float
        Shortest time at a position [µs].
    slew_px_per_us : float
        Fastest the beam can be moved along either axis, in pixels of the grid [pixel/µs].
    settle_us : float
        Time at either end of a jump in which the beam may do as it must [µs].
    detector_delay_us : float
        The signal comes so much after its beam position; `identification.measure_delay_us` finds it [µs].
    coil : CoilResponse
        Response of both axes, as believed.
    precompensate : bool
        Shape the commands so that the modelled beam goes where the path says; False commands the path itself.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 read by pydantic

    bits: int = 16
    codes_per_nm: tuple[Pair, Pair] | None = None
    centre_code: Pair | None = None
    min_dwell_us: float = 0.125
    slew_px_per_us: float = 2.0
    settle_us: float = 5.0
    detector_delay_us: float = 0.0
    coil: CoilResponse = field(default_factory=CoilResponse)
    precompensate: bool = True

    def __post_init__(self) -> None:
        if not 8 <= self.bits <= 16:
            raise ValueError(f"bits must be 8 to 16, got {self.bits}")
        require_positive(min_dwell_us=self.min_dwell_us, slew_px_per_us=self.slew_px_per_us)
        for name, value in (("settle_us", self.settle_us), ("detector_delay_us", self.detector_delay_us)):
            if not 0 <= value <= 1_000:
                raise ValueError(f"{name} must be 0 to 1000, got {value}")
        if self.codes_per_nm is not None and not 0 < abs(np.linalg.det(np.array(self.codes_per_nm))) < np.inf:
            raise ValueError(f"codes_per_nm must be finite and have an inverse, got {self.codes_per_nm}")
        if self.centre_code is not None and not all(0 < code < self.max_code for code in self.centre_code):
            raise ValueError(f"centre_code must be > 0 and < {self.max_code}, got {self.centre_code}")

    # --- calibration ------------------------------------------------------------------------------------------------

    @property
    def max_code(self) -> int:
        """Largest code of the DAC; the smallest is 0."""
        return (1 << self.bits) - 1

    def codes(self, positions: NDArray[np.floating], grid: ScanGrid) -> NDArray[np.float64]:
        """Return the (row, col) codes of positions [pixel] on a grid, (n, 2), neither rounded nor checked."""
        return np.asarray((positions - _middle(grid)) @ self._codes_per_px(grid).T + self._centre())

    def positions(self, codes: NDArray[np.generic], grid: ScanGrid) -> NDArray[np.float64]:
        """Return the positions [pixel] that (row, col) codes deflect to, (n, 2)."""
        inverse = np.linalg.inv(self._codes_per_px(grid))
        return np.asarray((codes.astype(np.float64) - self._centre()) @ inverse.T + _middle(grid))

    def _codes_per_px(self, grid: ScanGrid) -> NDArray[np.float64]:
        if self.codes_per_nm is None:
            per_px = np.eye(2) * (FIELD_SHARE * (1 << self.bits) / max(*grid.shape, MIN_FIELD_PX))
        else:
            per_px = np.array(self.codes_per_nm) * grid.pixel_size_nm
        angle = math.radians(grid.rotation_deg)
        cos, sin = math.cos(angle), math.sin(angle)
        return np.asarray(per_px @ np.array([[cos, sin], [-sin, cos]]))

    def _centre(self) -> NDArray[np.float64]:
        return np.full(2, (1 << self.bits) / 2) if self.centre_code is None else np.array(self.centre_code)

    # --- driving ----------------------------------------------------------------------------------------------------

    def drive(self, path: ScanPath) -> Drive:
        """Return what the DAC is told to follow a path; kept while the path is.

        Raises
        ------
        ValueError
            If the deflector cannot follow: dwell time too short, too fast, or out of range; the message says by how
            much, and what would do.
        """
        drives = _drives.setdefault(path, {})
        if self not in drives:
            drives[self] = self._driven(path)
        return drives[self]

    def beam_time_us(self, path: ScanPath) -> float:
        """Return how long a frame takes, settling and flyback included, whether the beam can follow or not [µs]."""
        return float(_Plan.of(path, self.slew_px_per_us, self.settle_us).hold_us.sum())

    def _driven(self, path: ScanPath) -> Drive:
        shortest_us = float(path.dwell_times_us.min())
        if shortest_us < self.min_dwell_us * (1 - 1e-6):
            factor = max(self.min_dwell_us / shortest_us, self._factor_that_works(path))
            raise ValueError(
                f"dwell_time_us must be >= {self.min_dwell_us:g} on this deflector, the path has {shortest_us:g}"
                f"{_longer_dwell(path, factor)}"
            )
        plan = _Plan.of(path, self.slew_px_per_us, self.settle_us)
        beam, command = self._shaped(plan) if self.precompensate else (plan.wanted, plan.wanted)
        self._require_slew(path, beam[plan.samples])
        codes = self._in_range(self.codes(command, path.grid), path)
        beam = respond(self.positions(codes, path.grid), plan.hold_us, self.coil, more_delay_us=self.detector_delay_us)
        error_px = np.hypot(*(beam[plan.samples] - path.positions).T)
        return Drive(self, path.grid, codes, plan.hold_us, plan.samples, error_px.astype(np.float32))

    def _shaped(self, plan: _Plan) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where the beam is to be at each hold, and the commands that bring it there."""
        coil, delay_us = self.coil, self.detector_delay_us
        if np.count_nonzero(plan.weights) < MIN_WEIGHTS:  # too few for a curve: commanded as they are
            return plan.wanted, plan.wanted
        if float(np.median(plan.hold_us[plan.samples])) >= SLOW_LAGS * (coil.lag_us + delay_us):
            positions = plan.wanted[plan.samples]
            return plan.wanted, corrected(
                plan.wanted, plan.hold_us, positions, plan.samples, coil, more_delay_us=delay_us
            )
        cutoff_khz = CUTOFF_OVER_NATURAL * coil.natural_frequency_khz
        beam = smoothest_beam(plan.wanted, plan.times_us, plan.weights, cutoff_khz)
        return beam, command_for(beam, plan.times_us, coil, more_delay_us=delay_us)

    def _require_slew(self, path: ScanPath, beam: NDArray[np.float64]) -> None:
        """Refuse a path whose steps, jumps aside, are faster than the coil."""
        speed = _speeds(path, beam)
        if speed.max(initial=0) > self.slew_px_per_us * SLEW_TOLERANCE:
            raise ValueError(
                f"the path moves {speed.max():.3g} px/µs at position {int(speed.argmax()) + 1}, the deflector at most "
                f"{self.slew_px_per_us:.3g} px/µs{_longer_dwell(path, self._factor_that_works(path))}"
            )

    def _factor_that_works(self, path: ScanPath) -> float:
        """Return by how much the dwell times must be longer for the coil to keep up with the shaped beam."""
        too_fast, slow_enough = 1.0, 1.0
        while (speed := self._fastest(path.with_dwell(slow_enough))) > self.slew_px_per_us:
            too_fast, slow_enough = slow_enough, slow_enough * 1.05 * speed / self.slew_px_per_us
        while slow_enough / too_fast > 1 + PRECISION:
            middle = math.sqrt(too_fast * slow_enough)
            fits = self._fastest(path.with_dwell(middle)) <= self.slew_px_per_us
            too_fast, slow_enough = (too_fast, middle) if fits else (middle, slow_enough)
        return slow_enough

    def _fastest(self, path: ScanPath) -> float:
        plan = _Plan.of(path, self.slew_px_per_us, self.settle_us)
        beam = self._shaped(plan)[0] if self.precompensate else plan.wanted
        return float(_speeds(path, beam[plan.samples]).max(initial=0))

    def _in_range(self, codes: NDArray[np.float64], path: ScanPath) -> NDArray[np.uint16]:
        rounded = np.rint(codes)
        if rounded.min() < 0 or rounded.max() > self.max_code:
            away = np.maximum(np.abs(codes - self._centre()).max(axis=0), 1)
            room = np.minimum(self._centre(), self.max_code - self._centre())
            share = math.floor(100 * float((room / away).min())) / 100
            overscan = "" if path.inside.all() else ", or leave out the overscan"
            raise ValueError(
                f"the path needs codes {rounded.min():.0f} to {rounded.max():.0f}, the DAC has 0 to {self.max_code}: "
                f"scan a field of at most {share:.2f} times {path.grid.fov_nm[0]:.4g} x {path.grid.fov_nm[1]:.4g} nm, "
                f"or with a longer dwell time{overscan}"
            )
        return rounded.astype(np.uint16)


@dataclass(frozen=True, eq=False, slots=True)
class Drive:
    """What the DAC is told in one frame.

    Parameters
    ----------
    deflector : Deflector
        Whose codes these are.
    grid : ScanGrid
        Of the path.
    codes : (m, 2) uint16 ndarray
        (row, col), one after another.
    hold_us : (m,) float64 ndarray
        How long each is held [µs].
    samples : (n,) intp ndarray
        Which of the codes is that of each position of the path; the others are settling samples, to be dropped.
    error_px : (n,) float32 ndarray
        Distance of the modelled beam, averaged over its dwell, from each position [pixel].
    """

    deflector: Deflector
    grid: ScanGrid
    codes: NDArray[np.uint16]
    hold_us: NDArray[np.float64]
    samples: NDArray[np.intp]
    error_px: NDArray[np.float32]

    @property
    def ends_us(self) -> NDArray[np.float64]:
        """When each position's dwell ends, settling included, since the frame began, (n,) [µs]."""
        return np.asarray(np.cumsum(self.hold_us)[self.samples])

    @property
    def beam_time_us(self) -> float:
        """Time the frame takes, settling and flyback included [µs]."""
        return float(self.hold_us.sum())

    @property
    def unreached(self) -> NDArray[np.bool_]:
        """(n,) True where the modelled beam misses a position by more than 0.25 px."""
        return self.error_px > REACHED_PX

    def beam(self, coil: CoilResponse, detector_delay_us: float) -> NDArray[np.float64]:
        """Return where the beam of a coil is on average while the detector sees each position, (n, 2) [pixel]."""
        commanded = self.deflector.positions(self.codes, self.grid)
        return respond(commanded, self.hold_us, coil, more_delay_us=detector_delay_us)[self.samples]


_drives: WeakKeyDictionary[ScanPath, dict[Deflector, Drive]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class _Plan:
    """One hold for every position and every settling sample: how long, and where the beam is wanted how much."""

    hold_us: NDArray[np.float64]
    times_us: NDArray[np.float64]  # middle of each hold
    wanted: NDArray[np.float64]
    weights: NDArray[np.float64]
    samples: NDArray[np.intp]

    @classmethod
    def of(cls, path: ScanPath, slew_px_per_us: float, settle_us: float) -> _Plan:
        """Plan a frame: a jump takes its length at full slew and the settling time.

        In the middle of a jump the beam is wanted on a straight line at full slew, for the settling time at either end
        it may turn as it likes. The frame begins with the jump from its own end.
        """
        positions, dwell = path.positions.astype(np.float64), path.dwell_times_us.astype(np.float64)
        jumps = np.flatnonzero(path.jumps | (np.arange(len(path)) == 0))
        leave, arrive = (v.clip(-slew_px_per_us, slew_px_per_us) for v in _velocities(path))
        start, stop = positions[jumps - 1], positions[jumps]  # jumps[0] - 1 is the last position
        turning = (leave[jumps - 1] + arrive[jumps]) / 2
        way = stop - start - settle_us * turning
        hold = max(min(float(np.median(dwell)), MAX_SETTLING_HOLD_US), settle_us / MAX_FREE_HOLDS)
        inserted = np.ceil((np.abs(way).max(axis=1) / slew_px_per_us + settle_us) / hold - 1e-9)

        if len(path) + float(inserted.sum()) > MAX_HOLDS:
            raise ValueError(
                f"the jumps of the path take {inserted.sum():.3g} settling samples, at most {MAX_HOLDS} fit: "
                f"choose a pattern with fewer jumps, or set a faster slew or a longer dwell time"
            )
        inserted = inserted.astype(np.intp)
        before = np.zeros(len(path), np.intp)
        before[jumps] = inserted
        samples = np.arange(len(path)) + np.cumsum(before)
        hold_us = np.full(len(path) + int(inserted.sum()), hold)
        hold_us[samples] = dwell
        times_us = np.cumsum(hold_us) - hold_us / 2
        wanted, weights = np.zeros((len(hold_us), 2)), np.zeros(len(hold_us))
        wanted[samples], weights[samples] = positions, dwell

        jump = np.repeat(np.arange(len(jumps)), inserted)
        settling = np.flatnonzero(weights == 0)
        first = samples[jumps] - inserted  # of each jump's holds
        since = times_us[settling] - (times_us[first] - hold / 2)[jump]
        total = (inserted * hold)[jump]
        speed = way[jump] / np.maximum(total - settle_us, hold)[:, None]
        turned = start[jump] + settle_us * (leave[jumps - 1][jump] + speed) / 2
        on_line = (since >= settle_us) & (since <= total - settle_us)
        share = np.minimum(1, since / np.maximum(total - settle_us, hold))[:, None]
        direct = start[jump] + (stop - start)[jump] * share  # what is commanded when nothing is shaped
        wanted[settling] = np.where(on_line[:, None], turned + speed * (since - settle_us)[:, None], direct)
        weights[settling] = np.where(on_line, hold, 0.0)
        return cls(hold_us, times_us, wanted, weights, samples)


def _velocities(path: ScanPath) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the velocity with which the beam leaves and arrives at each position, (n, 2) [px/µs]; 0 next to a jump."""
    dwell = path.dwell_times_us.astype(np.float64)
    steps = np.diff(path.positions.astype(np.float64), axis=0) / ((dwell[1:] + dwell[:-1]) / 2)[:, None]
    steps[path.jumps[1:]] = 0
    still = np.zeros((1, 2))
    return np.concatenate([still, steps]), np.concatenate([steps, still])


def _middle(grid: ScanGrid) -> NDArray[np.float64]:
    return (np.array(grid.shape) - 1) / 2


def _speeds(path: ScanPath, beam: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the speed of the beam between positions along its faster axis, 0 where it jumps, (n - 1,) [px/µs]."""
    dwell = path.dwell_times_us.astype(np.float64)
    speed = np.abs(np.diff(beam, axis=0)).max(axis=1, initial=0) / ((dwell[1:] + dwell[:-1]) / 2)
    speed[path.jumps[1:]] = 0
    return np.asarray(speed)


def _longer_dwell(path: ScanPath, factor: float) -> str:
    """Return the remedy, rounded up: the dwell time that would do."""
    if not isinstance(path.dwell_time_us, float | int):
        return f": the dwell times must be {rounded_up(factor):g} times as long"
    return f": dwell_time_us must be >= {rounded_up(path.dwell_time_us * factor):g}"
