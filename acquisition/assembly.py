"""Assembly: sample blocks become sparse frames, whatever was lost, doubled or late on the way (imports numpy only)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lowdose.acquisition.frames import SparseFrame

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lowdose.acquisition.messages import SampleBlock, ScanStart
    from lowdose.scan_patterns.path import ScanPath


@dataclass(frozen=True)
class Scatter:
    """Sums the samples of a path into pixels; all that depends on the path alone is computed once.

    Parameters
    ----------
    path : ScanPath
        Whose samples.
    dwell_time_us : float
        Nominal dwell time [µs].
    """

    path: ScanPath
    dwell_time_us: float

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        order = np.argsort(self.path.flat_pixels, kind="stable")
        return order[np.count_nonzero(~self.path.inside) :]  # overscan is pixel -1 and comes first

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        sorted_pixels = self.path.flat_pixels[self._order]
        return np.flatnonzero(np.diff(sorted_pixels, prepend=-1))

    @cached_property
    def visited(self) -> NDArray[np.intp]:
        """(v,) flat indices of the visited pixels, ascending."""
        return self.path.flat_pixels[self._order][self._starts].astype(np.intp)

    @cached_property
    def _dwell_sums(self) -> NDArray[np.float32]:
        return np.asarray(self._summed(self.path.dwell_times_us[None])[0])

    def _summed(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(self._starts) == 0:
            return np.zeros((len(samples), 0), np.float32)
        ordered: NDArray[np.float32] = samples[:, self._order]
        return np.add.reduceat(ordered, self._starts, axis=1).astype(np.float32, copy=False)

    def frame(
        self, counts: NDArray[np.uint16], received: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
        """Return values and hits of a frame.

        Parameters
        ----------
        counts : (channels, n) uint16 ndarray
            Counts of every position of the path.
        received : (n,) bool ndarray or None
            True where the count is there; None = everywhere.

        Returns
        -------
        values : (channels, rows, cols) float32 ndarray
            Sum of counts / sum of dwell times * nominal dwell time; 0 where nothing was received.
        hits : (rows, cols) uint16 ndarray
            Samples received in each pixel.
        """
        dwell, hits, samples = self._dwell_sums, self.path.hits, counts.astype(np.float32)
        if received is not None:
            present = received.astype(np.float32)
            dwell = self._summed((self.path.dwell_times_us * present)[None])[0]
            hits = self._scattered(np.minimum(self._summed(present[None]), 65_535))[0].astype(np.uint16)
            samples *= present
        with np.errstate(divide="ignore", invalid="ignore"):
            means = self._summed(samples) * (np.float32(self.dwell_time_us) / dwell)
        if received is not None:
            means[:, dwell == 0] = 0
        return self._scattered(means), hits

    def _scattered(self, at_visited: NDArray[np.float32]) -> NDArray[np.float32]:
        full = np.zeros((len(at_visited), self.path.grid.n_pixels), np.float32)
        full[:, self.visited] = at_visited
        return full.reshape(-1, *self.path.grid.shape)


class FrameAssembler:
    """Places the blocks of one scan and hands out its frames.

    Blocks may be lost, doubled or out of order. A frame completes with its last sample, or with a hole when a block of
    a later frame shows that the rest is not coming. Samples of the same path's frame before stay until new ones take
    their place, so that a partial frame is whole from the second one on.

    Parameters
    ----------
    start : ScanStart
        The scan.
    clock : callable
        Monotonic time [ns].
    """

    def __init__(self, start: ScanStart, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.start = start
        self._clock = clock
        self._scatters = [Scatter(path, start.dwell_time_us) for path in start.paths]
        n_channels = len(start.channels)
        self._counts = [np.zeros((n_channels, len(path)), np.uint16) for path in start.paths]
        self._ever = [np.zeros(len(path), bool) for path in start.paths]
        self._fresh = np.zeros(len(start.paths[0]), bool)
        self.frame_index = -1
        self._frame_done = True
        self._times: dict[str, int] = {}
        self.refused = 0

    def add(self, block: SampleBlock, t_received_ns: int) -> list[SparseFrame]:
        """Place a block; return the frames completed by it: the one before, with a hole, and its own.

        A block that fits no position of the scan, or belongs to a frame already handed out, is counted in `refused`.
        """
        if not block_fits(self.start, block):
            self.refused += 1
            return []
        completed = []
        if block.frame_index > self.frame_index:
            completed = self.finish()
            self._begin(block)
        elif self._frame_done or block.frame_index < self.frame_index:
            self.refused += 1
            return []
        self._place(block, t_received_ns)
        return completed + (self.finish() if self._fresh.all() else [])

    def finish(self) -> list[SparseFrame]:
        """Return the frame under way, if there is one, as complete: nothing more of it will come."""
        if self._frame_done:
            return []
        self._frame_done = True
        return [self.frame(complete=True)]

    def break_off(self) -> list[SparseFrame]:
        """Return the frame under way, if there is one, as far as it came: the scan was ended in the middle of it."""
        if self._frame_done:
            return []
        self._frame_done = True
        return [self.frame(complete=False)]

    @property
    def under_way(self) -> bool:
        """A frame has begun and is not complete."""
        return not self._frame_done

    def frame(self, *, complete: bool) -> SparseFrame:
        """Return the frame as it stands: its own samples alone when complete, else filled up with those before."""
        k = self.frame_index % len(self._scatters)
        received = self._fresh if complete else self._ever[k]
        values, hits = self._scatters[k].frame(self._counts[k], None if received.all() else received)
        path = self.start.paths[k]
        return SparseFrame(
            grid=path.grid,
            values=values,
            hits=hits,
            scan_id=self.start.scan_id,
            path_digest=path.digest,
            frame_index=self.frame_index,
            complete=complete,
            samples_used=int(np.count_nonzero(self._fresh)),
            times_ns={**self._times, "assembled": self._clock()},
        )

    def _begin(self, block: SampleBlock) -> None:
        self.frame_index = block.frame_index
        self._frame_done = False
        self._fresh = np.zeros(len(self.start.path_of(block.frame_index)), bool)
        self._times = {"first_sample": block.t_first_ns, "last_sample": 0, "sent": 0, "received": 0}

    def _place(self, block: SampleBlock, t_received_ns: int) -> None:
        k = block.frame_index % len(self._scatters)
        where = slice(block.first, block.first + block.counts.shape[1])
        self._counts[k][:, where] = block.counts
        self._ever[k][where] = True
        self._fresh[where] = True
        times = self._times
        times["first_sample"] = min(times["first_sample"], block.t_first_ns)
        if block.t_last_ns >= times["last_sample"]:
            times |= {"last_sample": block.t_last_ns, "sent": block.t_sent_ns, "received": t_received_ns}


def block_fits(start: ScanStart, block: SampleBlock) -> bool:
    """Tell whether a block is of this scan and lies on its path."""
    path = start.path_of(block.frame_index)
    n_channels, m = block.counts.shape
    return (
        block.scan_id == start.scan_id
        and block.path_digest == path.digest
        and n_channels == len(start.channels)
        and m > 0
        and block.first + m <= len(path)
    )


class SequenceCounter:
    """Counts the messages of a numbered stream that did not come.

    Examples
    --------
    >>> counter = SequenceCounter()
    >>> for seq in (7, 8, 11, 10, 10): counter.saw(seq)
    >>> counter.dropped
    1
    """

    def __init__(self) -> None:
        self._next: int | None = None
        self._missing: set[int] = set()
        self._forgotten = 0

    @property
    def dropped(self) -> int:
        """Numbers skipped and not seen since."""
        return self._forgotten + len(self._missing)

    def saw(self, seq: int) -> None:
        """Take note of one message; a late one is not lost after all, a doubled one is nothing new."""
        if self._next is None or seq >= self._next:
            if self._next is not None:
                self._skip(range(self._next, seq))
            self._next = seq + 1
        else:
            self._missing.discard(seq)

    def _skip(self, gap: range) -> None:
        if len(gap) + len(self._missing) > 10_000:  # bounded memory: the far past cannot come late any more
            self._forgotten += len(self._missing)
            self._missing.clear()
        if len(gap) > 10_000:
            self._forgotten += len(gap)
        else:
            self._missing.update(gap)
