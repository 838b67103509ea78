"""SampleStream: what a controller delivers, made into messages: announced, numbered, refused when it is wrong."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lowdose.acquisition.continuity import BlockOrder
from lowdose.acquisition.messages import SampleBlock, ScanEnd
from lowdose.acquisition.realtime import collect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lowdose.acquisition.beam_guard import BeamGuard
    from lowdose.acquisition.controllers.base import ControllerLimits, Samples
    from lowdose.acquisition.messages import ScanStart
    from lowdose.acquisition.wire import Message

COLLECT_EVERY_S, COMPLAIN_EVERY_S = 1.0, 1.0


class SampleStream:
    """Makes messages of the samples of one scan after the other.

    Parameters
    ----------
    limits : ControllerLimits
        Of the controller: they fix what a block must be.
    find : callable
        Returns the scan of an id.
    guard : BeamGuard
        Hears of every good block.
    emit : callable
        Takes every message; must not block.

    Attributes
    ----------
    current : ScanStart
        The scan under way, or about to begin.
    acquired : int
        Frames scanned.
    order : BlockOrder
        Numbers the blocks, and counts those that are lost or wrong.
    """

    current: ScanStart

    def __init__(
        self,
        limits: ControllerLimits,
        find: Callable[[str], ScanStart],
        guard: BeamGuard,
        emit: Callable[[Message], None],
    ) -> None:
        self._find, self._guard, self._emit = find, guard, emit
        self.order = BlockOrder(limits, find)
        self.acquired = 0
        self._last: tuple[str, int] | None = None  # scan and frame of the last block published, until its end is told
        self._complained, self._complained_s = (0, 0), 0.0

    def run(self, blocks: Iterable[Samples], *, begun: Callable[[], None]) -> None:
        """Publish all of it; `begun` is called after each announcement of a scan."""
        collected_s = time.monotonic()
        for samples in blocks:
            seq = self.order.number(samples)
            self._complain()
            if seq is None:
                continue
            self._guard.block_came(samples)
            if self._last is None or samples.scan_id != self._last[0]:
                self.end("another scan follows")
                self.current = self._find(samples.scan_id)
                self._emit(self.current)
                begun()
            self._publish(samples, seq)
            if samples.ends_frame:
                self.acquired += 1
                if time.monotonic() - collected_s > COLLECT_EVERY_S:
                    collect()
                    collected_s = time.monotonic()

    def end(self, reason: str) -> None:
        """Say the last word on the scan under way, if there is one."""
        if self._last is not None:
            self._emit(ScanEnd(*self._last, reason))
            self._last = None

    def _complain(self) -> None:
        """Tell, at most once a second, how many blocks the controller has lost or delivered wrong."""
        counted, now = (self.order.lost, self.order.refused), time.monotonic()
        if counted > self._complained and now - self._complained_s > COMPLAIN_EVERY_S:
            self._complained, self._complained_s = counted, now
            text = f"{counted[0]} blocks of the controller are missing; {counted[1]} were not whole or doubled: refused"
            self._guard.report("blocks_wrong", text, "warning")

    def _publish(self, samples: Samples, seq: int) -> None:
        self._emit(
            SampleBlock(
                scan_id=samples.scan_id,
                path_digest=samples.path.digest,
                frame_index=samples.frame_index,
                first=samples.first,
                counts=samples.counts,
                seq=seq,
                t_first_ns=samples.t_first_ns,
                t_last_ns=samples.t_last_ns,
                t_sent_ns=time.monotonic_ns(),
            )
        )
        self._last = samples.scan_id, samples.frame_index
