"""BlockOrder: every block of a controller gets its running number, or is refused (imports the controller's types only).

A block that is not whole, or not in its place, would make a wrong picture: samples shifted along the path look like any
others. What a block must be is known before it comes: its edges follow from the path.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from lowdose.acquisition.controllers.base import block_edges

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lowdose.acquisition.controllers.base import ControllerLimits, Samples
    from lowdose.acquisition.messages import ScanStart
    from lowdose.scan_patterns.path import ScanPath

MAX_AHEAD = 10_000
"""Blocks that may be missing at once: 20 s of beam. A number further ahead is an error of the controller's."""
SCANS_REMEMBERED = 8


@dataclass(frozen=True)
class BlockPlan:
    """The blocks of one frame.

    Parameters
    ----------
    stops : dict of int to int
        First sample -> one after the last, of each block, in order.
    beam_ns : dict of int to int
        First sample -> beam time of the block, settling included [ns].
    index : dict of int to int
        First sample -> which block of the frame.
    longest_ns : int
        Beam time of the longest block [ns].
    """

    stops: dict[int, int]
    beam_ns: dict[int, int]
    index: dict[int, int]
    longest_ns: int

    def __len__(self) -> int:
        return len(self.stops)


_plans: WeakKeyDictionary[ScanPath, dict[ControllerLimits, BlockPlan]] = WeakKeyDictionary()


def block_plan(path: ScanPath, limits: ControllerLimits) -> BlockPlan:
    """Return the blocks in which a controller delivers a frame along a path; kept while the path is."""
    plans = _plans.setdefault(path, {})
    if limits not in plans:
        plans[limits] = _planned(limits.ends_us(path))
    return plans[limits]


def _planned(ends_us: NDArray[np.float64]) -> BlockPlan:
    edges = block_edges(ends_us)
    firsts, stops = edges[:-1], edges[1:]
    beam_ns = np.diff(1e3 * ends_us[np.array(stops) - 1], prepend=0.0).round().astype(int).tolist()
    return BlockPlan(
        stops=dict(zip(firsts, stops, strict=True)),
        beam_ns=dict(zip(firsts, beam_ns, strict=True)),
        index={first: k for k, first in enumerate(firsts)},
        longest_ns=max(beam_ns),
    )


class BlockOrder:
    """Numbers the blocks of all scans on end; a missing block leaves its number out, so that every receiver sees it.

    Parameters
    ----------
    limits : ControllerLimits
        Of the controller: they fix the edges.
    find : callable
        Returns the scan of an id; ValueError if there is none.
    """

    def __init__(self, limits: ControllerLimits, find: Callable[[str], ScanStart]) -> None:
        self._limits, self._find = limits, find
        self._scan: ScanStart | None = None
        self._ended: deque[str] = deque(maxlen=SCANS_REMEMBERED)
        self._starts: list[int] = [0]
        self._base = self._next = 0
        self._missing: set[int] = set()
        self._forgotten = 0
        self.refused = 0

    @property
    def lost(self) -> int:
        """Blocks that did not come from the controller."""
        return self._forgotten + len(self._missing)

    def number(self, samples: Samples) -> int | None:
        """Return a block's running number; None, counted in `refused`, if it is not whole, not of its scan, or doubled.

        A late block gets the number that was left out for it.
        """
        number = self._expected_number(samples)
        if number is None or not (number in self._missing or self._next <= number <= self._next + MAX_AHEAD):
            self.refused += 1
            return None
        if number in self._missing:
            self._missing.discard(number)
        else:
            self._skip_to(number)
        return number

    def _expected_number(self, samples: Samples) -> int | None:
        """Return the number of a block at this place, None if no such block is to come."""
        if self._scan is None or samples.scan_id != self._scan.scan_id:
            if samples.scan_id in self._ended:
                return None
            self._begin(self._find(samples.scan_id))
        scan = self._scan
        if scan is None or samples.frame_index < 0 or samples.path != scan.path_of(samples.frame_index):
            return None
        plan = block_plan(samples.path, self._limits)
        whole = (len(scan.channels), plan.stops.get(samples.first, -1) - samples.first)
        if samples.counts.shape != whole or samples.counts.dtype != np.uint16:
            return None
        cycle, turn = divmod(samples.frame_index, len(scan.paths))
        return self._base + cycle * self._starts[-1] + self._starts[turn] + plan.index[samples.first]

    def _begin(self, scan: ScanStart) -> None:
        if self._scan is not None:
            self._ended.append(self._scan.scan_id)
        self._scan, self._base = scan, self._next
        self._starts = [0, *accumulate(len(block_plan(path, self._limits)) for path in scan.paths)]

    def _skip_to(self, number: int) -> None:
        if len(self._missing) + number - self._next > MAX_AHEAD:  # bounded memory: the far past will not come any more
            self._forgotten += len(self._missing)
            self._missing.clear()
        self._missing.update(range(self._next, number))
        self._next = number + 1
