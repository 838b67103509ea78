"""What the services tell each other: scans, sample blocks, requests, replies, acknowledgements (numpy only)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.scan_patterns.path import ScanPath

MAX_CLIENT_NAME = 200


@dataclass(frozen=True, slots=True)
class ScanStart:
    """Everything a receiver needs to place the samples of a scan.

    Parameters
    ----------
    scan_id : str
        Unique; sample blocks and frames refer to it.
    paths : tuple of ScanPath
        The cycle: frame k follows ``paths[k % len(paths)]``. All have the same grid.
    pattern : dict
        Spec and seed, a label for people.
    channels : tuple of str
        Detector channels in the order of the counts.
    dwell_time_us : float
        Nominal dwell time; frame values are counts per this time [µs].
    beam_current_pa, energy_kev : float
        Probe current [pA] and electron energy [keV].
    area_id : int
        Specimen area the dose is summed for.
    replay_of : str or None
        Scan id of the recording this replays.
    wall_clock_ns, t_ns : int
        The same instant on the wall clock and on the monotonic clock [ns].
    """

    scan_id: str
    paths: tuple[ScanPath, ...]
    pattern: dict[str, Any]
    channels: tuple[str, ...]
    dwell_time_us: float
    beam_current_pa: float
    energy_kev: float
    area_id: int
    replay_of: str | None
    wall_clock_ns: int
    t_ns: int

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("a scan needs at least one path, got none")
        if any(path.grid != self.paths[0].grid for path in self.paths):
            raise ValueError("all paths of a scan must share one grid")
        if not self.channels:
            raise ValueError("a scan needs at least one channel, got none")
        if not self.dwell_time_us > 0:
            raise ValueError(f"dwell_time_us must be > 0, got {self.dwell_time_us}")

    @property
    def grid(self) -> ScanGrid:
        """The grid of every path."""
        return self.paths[0].grid

    def path_of(self, frame_index: int) -> ScanPath:
        """Return the path frame `frame_index` follows."""
        return self.paths[frame_index % len(self.paths)]


@dataclass(frozen=True, slots=True)
class SampleBlock:
    """Consecutive samples of one frame.

    Parameters
    ----------
    scan_id, path_digest : str
        Which scan, which of its paths.
    frame_index, first : int
        Frame of the scan, index of the first sample in the path.
    counts : (channels, m) uint16 ndarray
        Detector counts.
    seq : int
        Running number of the blocks a microscope sends; a step other than 1 is a loss.
    t_first_ns, t_last_ns, t_sent_ns : int
        Monotonic time of the first and last sample and of sending [ns].
    """

    scan_id: str
    path_digest: str
    frame_index: int
    first: int
    counts: NDArray[np.uint16]
    seq: int
    t_first_ns: int
    t_last_ns: int
    t_sent_ns: int

    def __post_init__(self) -> None:
        if self.counts.ndim != 2 or self.counts.dtype != np.uint16:
            raise ValueError(f"counts must be (channels, m) uint16, got {self.counts.shape} {self.counts.dtype}")
        if min(self.frame_index, self.first, self.seq) < 0:
            raise ValueError("frame_index, first and seq must be >= 0")


@dataclass(frozen=True, slots=True)
class ScanEnd:
    """The last word on a scan: its last frame and why it ended."""

    scan_id: str
    frame_index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Request:
    """A client asks the microscope service to do something; `verb` and `arguments` are checked by the service."""

    client: str
    request_id: int
    verb: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.client) > MAX_CLIENT_NAME:  # it goes into every report of who holds lease and control
            raise ValueError(f"a client's name has at most {MAX_CLIENT_NAME} characters, got {len(self.client)}")


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer: `error` is empty when it was done, else says why not."""

    request_id: int
    error: str = ""
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordAck:
    """A recorder's word, at least every 50 ms: everything up to `seq` is written; or `error` says why no more will be.

    Parameters
    ----------
    token : str
        As the microscope gave it.
    seq : int
        Running number of the record path.
    error : str
        Empty while all is well.
    """

    token: str
    seq: int
    error: str = ""

    def __post_init__(self) -> None:
        if not (self.token.isascii() and self.seq >= 0):
            raise ValueError(f"a token is ASCII and seq >= 0, got seq {self.seq}")
