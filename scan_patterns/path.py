"""ScanPath: the ordered probe positions of one frame (imports numpy only)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from lowdose.scan_patterns.grid import MAX_EDGE, ScanGrid

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_T = TypeVar("_T", bound=np.generic)

OVERSCAN_LIMIT_PX = 4 * MAX_EDGE
"""No probe position may lie further out than this [pixel]."""

LONGEST_STEP_PX = 1.5
"""Scattered positions further apart than neighbouring pixels are jumps [pixel]."""


@dataclass(frozen=True, eq=False)
class ScanPath:
    """Where the probe goes during one frame, in order.

    Two paths are equal when their digests are. All arrays are read-only copies.

    Parameters
    ----------
    grid : ScanGrid
        The pixels the positions refer to.
    positions : (n, 2) float32 array
        (row, col) of every probe position [pixel], sub-pixel; pixel (0, 0) has its centre at (0, 0).
        Positions that round to no pixel of the grid are overscan: visited and paid for, never imaged.
    dwell_time_us : float or (n,) float32 array
        Time at each position [µs], > 0.
    jumps : (n,) bool array, optional
        True where the beam jumps before this position. Default: nowhere.

    Raises
    ------
    ValueError
        If a length, a dwell time or a coordinate is out of bounds; the message names it.

    Examples
    --------
    >>> path = ScanPath(ScanGrid((2, 2)), [[0, 0], [0.4, 1.2]], dwell_time_us=1.5)
    >>> path.coverage, path.duration_us, path.pixels.tolist()
    (0.5, 3.0, [[0, 0], [0, 1]])
    """

    grid: ScanGrid
    positions: NDArray[np.float32]
    dwell_time_us: float | NDArray[np.float32]
    jumps: NDArray[np.bool_]

    def __init__(
        self,
        grid: ScanGrid,
        positions: ArrayLike,
        dwell_time_us: float | ArrayLike,
        jumps: ArrayLike | None = None,
    ) -> None:
        positions = _frozen(np.array(positions, dtype=np.float32, order="C"))
        if positions.ndim != 2 or positions.shape[1] != 2 or len(positions) == 0:
            raise ValueError(f"positions must be (n, 2) with n >= 1, got shape {positions.shape}")
        if not (np.abs(positions) <= OVERSCAN_LIMIT_PX).all():
            raise ValueError(f"positions must be finite and within {OVERSCAN_LIMIT_PX} px of the field")
        n = len(positions)
        jumps = _frozen(np.zeros(n, bool) if jumps is None else np.array(jumps, dtype=bool))
        if jumps.shape != (n,):
            raise ValueError(f"jumps must have one entry for each of {n} positions, got shape {jumps.shape}")
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "dwell_time_us", _checked_dwell(dwell_time_us, n))
        object.__setattr__(self, "jumps", jumps)

    def __len__(self) -> int:
        return len(self.positions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScanPath) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def with_dwell(self, scale: float) -> ScanPath:
        """Return the path with all dwell times so many times as long."""
        return ScanPath(self.grid, self.positions, np.multiply(self.dwell_time_us, scale), self.jumps)

    @cached_property
    def dwell_times_us(self) -> NDArray[np.float32]:
        """Dwell time of each position, (n,) [µs]."""
        return np.broadcast_to(np.asarray(self.dwell_time_us, np.float32), (len(self),))

    @cached_property
    def pixels(self) -> NDArray[np.int32]:
        """(n, 2) pixel (row, col) nearest to each position, half up; overscan lies outside the grid."""
        return _frozen(nearest_pixels(self.positions))

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """(n,) True where the position rounds to a pixel of the grid, False where it is overscan."""
        return _frozen(in_field(self.positions, self.grid.shape))

    @cached_property
    def flat_pixels(self) -> NDArray[np.int64]:
        """(n,) index of each position's pixel in the flattened grid, -1 for overscan."""
        flat = self.pixels[:, 0].astype(np.int64) * self.grid.cols + self.pixels[:, 1]
        return _frozen(np.where(self.inside, flat, -1))

    @cached_property
    def hits(self) -> NDArray[np.uint16]:
        """(rows, cols) number of visits to each pixel, at most 65,535."""
        counts = np.bincount(self.flat_pixels[self.inside], minlength=self.grid.n_pixels)
        return _frozen(np.minimum(counts, 65_535).astype(np.uint16).reshape(self.grid.shape))

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(rows, cols) True = measured."""
        return _frozen(self.hits > 0)

    @cached_property
    def coverage(self) -> float:
        """Visited pixels / all pixels, 0 to 1; needs memory for the positions only, whatever the grid."""
        flat = np.sort(self.flat_pixels)  # overscan is pixel -1
        return int(np.count_nonzero(np.diff(flat, prepend=-1))) / self.grid.n_pixels

    @cached_property
    def duration_us(self) -> float:
        """Time one frame takes, the sum of all dwell times [µs]."""
        return float(self.dwell_times_us.sum(dtype=np.float64))

    @cached_property
    def digest(self) -> str:
        """BLAKE2b over grid, positions, dwell times and jumps, 32 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(np.array(self.grid.shape, "<i8").tobytes())
        digest.update(np.array([self.grid.pixel_size_nm, self.grid.rotation_deg], "<f8").tobytes())
        digest.update(self.positions.astype("<f4").tobytes())
        digest.update(self.dwell_times_us.astype("<f4").tobytes())
        digest.update(np.packbits(self.jumps).tobytes())
        return digest.hexdigest()


def nearest_pixels(positions: ArrayLike) -> NDArray[np.int32]:
    """Return the pixel nearest to each position as a path keeps it (float32), half up, (..., 2)."""
    pixels: NDArray[np.int32] = np.floor(np.asarray(positions, np.float32) + np.float32(0.5)).astype(np.int32)
    return pixels


def in_field(positions: ArrayLike, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return True where a position, (..., 2), rounds to a pixel of the field."""
    pixels = nearest_pixels(positions)
    return np.asarray(((pixels >= 0) & (pixels < shape)).all(axis=-1))


def far_steps(positions: ArrayLike) -> NDArray[np.bool_]:
    """Return (n,) True where a position is no neighbour of the one before: the beam jumps there; the first is False.

    Examples
    --------
    >>> far_steps([[0, 0], [1, 1], [1, 4]]).tolist()
    [False, False, True]
    """
    steps = np.diff(np.asarray(positions, np.float64), axis=0)
    return np.concatenate([[False], np.hypot(*steps.T) > LONGEST_STEP_PX])


def _checked_dwell(dwell_time_us: float | ArrayLike, n: int) -> float | NDArray[np.float32]:
    dwell = np.array(dwell_time_us, dtype=np.float32)
    if dwell.shape not in ((), (n,)):
        raise ValueError(f"dwell_time_us must be one number or one for each of {n} positions, got shape {dwell.shape}")
    if not (np.isfinite(dwell).all() and (dwell > 0).all()):
        raise ValueError(f"dwell_time_us must be > 0, got {dwell.min()}")
    return float(dwell_time_us) if dwell.ndim == 0 else _frozen(dwell)  # type: ignore[arg-type]


def _frozen(array: NDArray[_T]) -> NDArray[_T]:
    array.setflags(write=False)
    return array
