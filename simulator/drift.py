"""Drift and vibration: how the specimen moves under the beam (imports numpy only)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WALK_STEP_S = 0.01
MAX_MOTION = 1e6
MAX_TRACK_BYTES = 64 << 20
COLUMNS = ("t_s", "row_nm", "col_nm")

Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Motion:
    """Movement of the specimen; everything is off by default and adds up.

    Parameters
    ----------
    drift_nm_per_s : (float, float)
        Constant velocity (row, col) [nm/s].
    walk_nm : float
        Random walk: standard deviation along either axis after 1 s, growing with the root of time [nm].
    track : str, optional
        A measured track: CSV with the header ``t_s,row_nm,col_nm``, or JSON with lists of these names; it holds its
        first and last place before and after.
    vibration_nm : (float, float)
        Amplitude (row, col) [nm].
    vibration_hz : float
        Its frequency, such as the mains' [Hz].
    seed : int
        Of the walk.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 read by pydantic

    drift_nm_per_s: Pair = (0.0, 0.0)
    walk_nm: float = 0.0
    track: str | None = None
    vibration_nm: Pair = (0.0, 0.0)
    vibration_hz: float = 50.0
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = (*self.drift_nm_per_s, self.walk_nm, *self.vibration_nm, self.vibration_hz)
        bounded = all(abs(number) <= MAX_MOTION for number in numbers)
        if not bounded or self.walk_nm < 0 or self.vibration_hz <= 0:
            raise ValueError(
                f"drift, walk and vibration must be finite, at most {MAX_MOTION:g}, walk_nm >= 0 and vibration_hz > 0"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")

    @property
    def still(self) -> bool:
        """Nothing moves."""
        return self.track is None and not any((*self.drift_nm_per_s, self.walk_nm, *self.vibration_nm))

    def start(self) -> Mover:
        """Return what tells where the specimen is. Raises ValueError if the track cannot be read."""
        return Mover(self, None if self.track is None else read_track(Path(self.track)))


class Mover:
    """Tells how far the specimen has moved at any time; the same for the same seed, in whatever order it is asked."""

    def __init__(self, motion: Motion, track: NDArray[np.float64] | None) -> None:
        self._motion, self._track = motion, track
        self._rng = np.random.default_rng(motion.seed)
        self._walk = np.zeros((1, 2))

    def moved_nm(self, t_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the displacement (row, col) at each time [s], (m, 2) [nm]."""
        motion = self._motion
        moved = np.outer(t_s, motion.drift_nm_per_s)
        moved += np.outer(np.sin(2 * math.pi * motion.vibration_hz * t_s), motion.vibration_nm)
        if self._track is not None:
            at, *axes = self._track.T
            moved += np.stack([np.interp(t_s, at, axis) for axis in axes], axis=1)
        if motion.walk_nm > 0:
            moved += self._walked(np.maximum(t_s, 0))
        return np.asarray(moved)

    def _walked(self, t_s: NDArray[np.float64]) -> NDArray[np.float64]:
        missing = math.ceil(float(t_s.max()) / WALK_STEP_S) + 2 - len(self._walk)
        if missing > 0:
            scale = self._motion.walk_nm * math.sqrt(WALK_STEP_S)
            steps = scale * self._rng.standard_normal((max(missing, 1000), 2))
            self._walk = np.concatenate([self._walk, self._walk[-1] + np.cumsum(steps, axis=0)])
        first, last = int(t_s.min() / WALK_STEP_S), int(t_s.max() / WALK_STEP_S) + 2
        at = WALK_STEP_S * np.arange(first, last)
        return np.stack([np.interp(t_s, at, axis[first:last]) for axis in self._walk.T], axis=1)


def read_track(file: Path) -> NDArray[np.float64]:
    """Return a measured track, (n, 3): time [s], row and column displacement [nm].

    Raises
    ------
    ValueError
        If the file cannot be read, has other columns, numbers that are not finite, or times that do not increase.
    """
    if not file.is_file():
        raise ValueError(f"track {file} is no file: expected CSV or JSON with {', '.join(COLUMNS)}")
    if file.stat().st_size > MAX_TRACK_BYTES:
        raise ValueError(f"track {file} has {file.stat().st_size} bytes, at most {MAX_TRACK_BYTES} are read")
    try:
        table = _read_json(file) if file.suffix.lower() == ".json" else _read_csv(file)
    except (ValueError, LookupError, TypeError, OSError, RecursionError) as error:
        raise ValueError(f"track {file}: expected columns {', '.join(COLUMNS)} of numbers: {error}") from None
    if table.ndim != 2 or table.shape[1] != len(COLUMNS) or len(table) == 0:
        raise ValueError(f"track {file}: expected {len(COLUMNS)} columns {', '.join(COLUMNS)}, got shape {table.shape}")
    if not np.isfinite(table).all() or (np.diff(table[:, 0]) <= 0).any():
        raise ValueError(f"track {file}: numbers must be finite and t_s increasing")
    return table


def _read_csv(file: Path) -> NDArray[np.float64]:
    with file.open(encoding="utf-8") as lines:
        header = [name.strip() for name in lines.readline().lstrip("#").split(",")]
        if sorted(header) != sorted(COLUMNS):
            raise ValueError(f"the header is {','.join(header)[:80]!r}")
        table = np.loadtxt(lines, delimiter=",", ndmin=2)
    return np.asarray(table[:, [header.index(name) for name in COLUMNS]])


def _read_json(file: Path) -> NDArray[np.float64]:
    track = json.loads(file.read_text(encoding="utf-8"))
    return np.stack([np.asarray(track[name], np.float64) for name in COLUMNS], axis=1)
