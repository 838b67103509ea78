"""ScanController: what moves the beam and reads the detectors (imports numpy only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from lowdose.acquisition.controllers.deflector import Deflector
    from lowdose.scan_patterns.path import ScanPath

MIN_BLOCK_SAMPLES = 256
MIN_BLOCK_US = 2_000.0
MAX_BLOCK_US = 10_000.0


class BlankNotConfirmedError(RuntimeError):
    """The controller did not confirm that the beam is off: a person must blank it by hand."""


class ControllerError(RuntimeError):
    """The controller failed while scanning."""


@dataclass(frozen=True, slots=True)
class ControllerLimits:
    """What a controller can do, checked before the beam moves.

    Parameters
    ----------
    min_dwell_us : float
        Shortest time at a position [µs].
    max_positions : int
        Longest path of one frame.
    look_ahead_ms : float
        Beam time handed over ahead of the samples read, at most 5 [ms].
    dead_man : bool
        The controller blanks by itself when the host stops.
    deflector : Deflector, optional
        Limits of the deflection; None = it goes anywhere in no time.
    """

    min_dwell_us: float
    max_positions: int
    look_ahead_ms: float
    dead_man: bool
    deflector: Deflector | None = None

    def __post_init__(self) -> None:
        if not 0 < self.look_ahead_ms <= 5:
            raise ValueError(f"look_ahead_ms must be > 0 and <= 5, got {self.look_ahead_ms}")

    def require(self, path: ScanPath) -> None:
        """Raise ValueError unless the controller can follow a path."""
        shortest_us = float(path.dwell_times_us.min())
        if shortest_us < self.min_dwell_us * (1 - 1e-6):
            raise ValueError(f"dwell_time_us must be >= {self.min_dwell_us:g} on this controller, got {shortest_us:g}")
        if len(path) > self.max_positions:
            raise ValueError(f"a path may have {self.max_positions} positions on this controller, got {len(path)}")
        if self.deflector is not None:
            self.deflector.drive(path)

    def beam_time_us(self, path: ScanPath) -> float:
        """Return how long the beam is on in one frame along a path, settling and flyback included [µs]."""
        return path.duration_us if self.deflector is None else self.deflector.drive(path).beam_time_us

    def ends_us(self, path: ScanPath) -> NDArray[np.float64]:
        """Return when each dwell of a frame ends, settling included, since the frame began, (n,) [µs]."""
        return path.dwell_times_us.cumsum(dtype="f8") if self.deflector is None else self.deflector.drive(path).ends_us

    def unreached(self, path: ScanPath) -> int:
        """Return how many positions the modelled beam misses: the centre of a spiral, hops that are too sharp."""
        return 0 if self.deflector is None else int(self.deflector.drive(path).unreached.sum())


@dataclass(frozen=True, slots=True)
class Samples:
    """What `ScanController.blocks` yields: consecutive samples of one frame.

    Parameters
    ----------
    scan_id : str
        As given to `prepare`.
    path : ScanPath
        The path followed.
    frame_index, first : int
        Frame since that `prepare`, index of the first sample in the path.
    counts : (channels, m) uint16 ndarray
        Detector counts.
    t_first_ns, t_last_ns : int
        When the first and the last sample were taken, monotonic [ns].
    """

    scan_id: str
    path: ScanPath
    frame_index: int
    first: int
    counts: NDArray[np.uint16]
    t_first_ns: int
    t_last_ns: int

    @property
    def ends_frame(self) -> bool:
        """These are the frame's last samples."""
        return self.first + int(self.counts.shape[1]) == len(self.path)


class ScanController(Protocol):
    """Moves the beam along paths. `blank`, `park` and `stop` may be called from any thread, the rest from one."""

    @property
    def limits(self) -> ControllerLimits:
        """What this controller can do."""
        ...

    def prepare(self, scan_id: str, paths: tuple[ScanPath, ...]) -> None:
        """Take a new cycle of paths; while scanning it takes effect at the next frame edge.

        Raises ValueError, before the beam moves, when a path lies beyond `limits`.
        """
        ...

    def start(self, admit: Callable[[str, ScanPath], bool]) -> None:
        """Get ready to scan. `admit(scan_id, path)` is asked before each frame; False ends the scan there."""
        ...

    def blocks(self) -> Iterator[Samples]:
        """Yield samples until `stop` or until a frame is not admitted.

        Every position of a frame is delivered, in order, in blocks of `block_edges`.
        """
        ...

    def unblank(self) -> None:
        """Let the beam reach the specimen while scanning."""
        ...

    def blank(self, timeout_s: float) -> None:
        """Turn the beam off; return once confirmed, else raise `BlankNotConfirmedError`."""
        ...

    def park(self, timeout_s: float) -> None:
        """Move the beam off the field; return once confirmed, else raise `BlankNotConfirmedError`."""
        ...

    def stop(self) -> None:
        """End `blocks` at once; no further position is visited."""
        ...

    def new_area(self) -> None:
        """Take note that the stage has moved to an area that has had no dose; called while blanked or scanning."""
        ...

    def close(self) -> None:
        """Blank and let go of the hardware; twice is fine."""
        ...


def block_edges(ends_us: NDArray[np.float64]) -> list[int]:
    """Return where the blocks of a path begin, and its length at the end.

    A block ends at the earliest of: 2 ms of beam time but at least 256 samples; 10 ms; the end of the frame.

    Parameters
    ----------
    ends_us : (n,) float64 ndarray
        When the dwell at each position ends, since the frame began; settling included [µs].

    Examples
    --------
    >>> import numpy as np
    >>> block_edges(np.arange(1.0, 5001.0))
    [0, 2000, 4000, 5000]
    """
    edges, n = [0], len(ends_us)
    while edges[-1] < n:
        first = edges[-1]
        start_us = ends_us[first - 1] if first else 0.0
        by_time = int(ends_us.searchsorted(start_us + MIN_BLOCK_US * (1 - 1e-9))) + 1
        at_most = int(ends_us.searchsorted(start_us + MAX_BLOCK_US * (1 + 1e-9), side="right"))
        edges.append(min(max(by_time, first + MIN_BLOCK_SAMPLES), max(at_most, first + 1), n))
    return edges
