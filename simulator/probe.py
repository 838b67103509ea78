"""Probe: the beam that reaches the specimen, its width and its current (imports numpy only)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAWN_AT_ONCE = 256
MAX_BLUR_NM = 100.0


@dataclass(frozen=True, slots=True)
class Probe:
    """The virtual probe; everything is off by default.

    Parameters
    ----------
    blur_nm : float
        Standard deviation of its profile [nm].
    current_step : float
        Standard deviation of the logarithm of sudden changes of the current, as of a field emitter's tip.
    steps_per_s : float
        How often they happen, on average [1/s].
    seed : int
        Of the steps.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 read by pydantic

    blur_nm: float = 0.0
    current_step: float = 0.0
    steps_per_s: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("blur_nm", self.blur_nm), ("current_step", self.current_step)):
            if not 0 <= value <= MAX_BLUR_NM:
                raise ValueError(f"{name} must be 0 to {MAX_BLUR_NM:g}, got {value}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
        if not 0 < self.steps_per_s <= 1e4:
            raise ValueError(f"steps_per_s must be > 0 and <= 10000, got {self.steps_per_s}")


class Emitter:
    """Tells by what factor the current differs from its nominal value; the same for the same seed."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._rng = np.random.default_rng(probe.seed)
        self._changes_s, self._factors = np.zeros(1), np.ones(1)

    def factor(self, t_s: float) -> float:
        """Return the factor at a time [s]; 1 before the first change."""
        if self._probe.current_step == 0:
            return 1.0
        while self._changes_s[-1] <= t_s:
            gaps = self._rng.exponential(1 / self._probe.steps_per_s, DRAWN_AT_ONCE)
            self._changes_s = np.concatenate([self._changes_s, self._changes_s[-1] + np.cumsum(gaps)])
            drawn = np.exp(self._probe.current_step * self._rng.standard_normal(DRAWN_AT_ONCE))
            self._factors = np.concatenate([self._factors, drawn])
        return float(self._factors[max(0, int(np.searchsorted(self._changes_s, t_s, side="right")) - 1)])
