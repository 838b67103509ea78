"""SessionReplay: a ScanController over a recorded session; nothing moves, its samples are the recorded ones.

What a session says is data: its scans get new ids, its labels are cut to what a status report can hold, a block that
does not lie on its scan's path is left out and counted. What is missing stays missing, running numbers and all.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lowdose.acquisition.assembly import block_fits
from lowdose.acquisition.controllers.base import Samples
from lowdose.acquisition.messages import SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.session_reader import SessionError
from lowdose.simulator.replay_timing import Numbers, Pace, require_pace
from lowdose.simulator.replayed_scan import LIMITS, MAX_LABEL, label, replayed, require_sound

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from lowdose.acquisition.controllers.base import ControllerLimits
    from lowdose.acquisition.session_reader import SessionReader
    from lowdose.scan_patterns.path import ScanPath

logger = logging.getLogger(__name__)

LOOK_S = 0.01
"""Between two looks at whether waiting is over."""
SCANS_REMEMBERED = 8


@dataclass(frozen=True, slots=True)
class ReplayedSamples(Samples):
    """Samples of a session, with what the recording says of them beyond what a controller tells.

    Parameters
    ----------
    seq : int
        Running number; numbers that the recording left out are left out.
    end : str or None
        Why the scan was ended after these samples; None if it went on, or if that is not recorded.
    """

    seq: int
    end: str | None


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A block of the session, the scan it is replayed as, and what ended that scan after it."""

    start: ScanStart
    block: SampleBlock
    end: str | None = None

    @property
    def frame(self) -> tuple[str, int]:
        return self.start.scan_id, self.block.frame_index


class SessionReplay:
    """Delivers what a session holds, scan after scan, at the recorded times or faster.

    There is no beam: `blank` and `park` hold the recording, `unblank` lets it go on. The silence before a block is
    that of the recording, at most a minute; after being held, the next block comes at once.

    Parameters
    ----------
    session : SessionReader
        What was recorded.
    speed : float
        So many times faster than recorded, at least 0.001; 0 = without waiting, as fast as frames are admitted.
    start_s : float
        Frames that began earlier than this after the first recorded sample are left out [s].
    loop : bool
        Begin again at the end, each time under new scan ids.
    step : bool
        Hold after every frame.
    require : callable
        Raises ValueError for a scan that cannot be had here, such as one too large for the memory; it is left out.
    clock, sleep : callable
        Monotonic time [ns] and waiting [s]; tests drive them.

    Attributes
    ----------
    homeless, refused : int
        Blocks left out: of scans whose start is not recorded, and those that do not lie on their scan's path.
    lost : int
        Running numbers left out between the blocks delivered.
    """

    def __init__(
        self,
        session: SessionReader,
        *,
        speed: float = 1.0,
        start_s: float = 0.0,
        loop: bool = False,
        step: bool = False,
        require: Callable[[ScanStart], None] = lambda _start: None,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        require_pace(speed=speed, start_s=start_s)
        self._session, self._start_ns = session, round(start_s * 1e9)
        self._loop, self._step, self._require = loop, step, require
        self._clock, self._sleep = clock, sleep
        self._pace = Pace(speed, clock)
        self._numbers = Numbers()
        self._scans: dict[str, ScanStart] = {}
        self._replayed_as: dict[str, str] = {}
        self._admit: Callable[[str, ScanPath], bool] = lambda _scan_id, _path: False
        self._unblanked, self._stopped = threading.Event(), threading.Event()
        self.homeless = self.refused = 0

    @property
    def limits(self) -> ControllerLimits:
        """What this controller can do: whatever was recorded; without a beam nothing has to be blanked."""
        return LIMITS

    @property
    def held(self) -> bool:
        """The recording does not go on until it is unblanked."""
        return not self._unblanked.is_set()

    @property
    def lost(self) -> int:
        """Running numbers left out between the blocks delivered."""
        return self._numbers.lost

    def scan(self, scan_id: str) -> ScanStart:
        """Return a scan being replayed; ValueError if it is not known, or not any more."""
        if scan_id not in self._scans:
            raise ValueError(f"no scan {scan_id[:MAX_LABEL]!r} is known here")
        return self._scans[scan_id]

    def prepare(self, scan_id: str, paths: tuple[ScanPath, ...]) -> None:
        """Refuse any paths but those recorded."""
        if scan_id not in self._scans or self._scans[scan_id].paths != paths:
            raise ValueError("a recorded session has the paths it was recorded along: start a scan for others")

    def start(self, admit: Callable[[str, ScanPath], bool]) -> None:
        """Get ready to replay from the beginning."""
        self._admit = admit
        self._stopped.clear()

    def blocks(self) -> Iterator[ReplayedSamples]:
        """Yield the recorded samples until their end, until stopped, or until a frame is not admitted.

        Raises
        ------
        SessionError
            If there is nothing to replay: no scan, or nothing as late as `start_s`.
        """
        delivered = True
        while delivered and not self._stopped.is_set():
            delivered = yield from self._once()
            if not (delivered or self._stopped.is_set()):
                raise SessionError(self._why_nothing())
            if not self._loop:
                return

    def _why_nothing(self) -> str:
        where = self._session.path
        if self._start_ns and self._pace.span_ns:
            seconds = self._start_ns / 1e9
            return f"{where}: no frame begins {seconds:g} s after the first, it lasts {self._pace.span_ns / 1e9:.3g} s"
        if self.homeless:
            return f"{where}: none of its {self.homeless:,} blocks can be placed, the start of their scan is missing"
        return f"{where}: there are no samples in it"

    def _once(self) -> Generator[ReplayedSamples, None, bool]:
        """Yield the session's samples once; return whether there were any, or it was broken off."""
        self._numbers.begin_anew()
        self._pace.begin_anew()
        frame: tuple[str, int] | None = None
        for recorded in self._from_start_time():
            if _begins(recorded, frame):
                self._hold_after(frame)
                self._ask_to_begin(recorded)
                frame = recorded.frame
            self._wait_until_due(recorded)
            if self._stopped.is_set():
                return True
            yield self._samples(recorded)
        self._hold_after(frame)
        return frame is not None

    def _hold_after(self, frame: tuple[str, int] | None) -> None:
        """Hold after a frame, if the session is replayed in single steps, until the next one is wanted."""
        if self._step and frame is not None:
            self._unblanked.clear()
            self._wait_while_held()

    def _ask_to_begin(self, recorded: _Recorded) -> None:
        start = recorded.start
        if not (self._stopped.is_set() or self._admit(start.scan_id, start.path_of(recorded.block.frame_index))):
            self._stopped.set()

    def _wait_until_due(self, recorded: _Recorded) -> None:
        """Wait until a block is due, or the replay is stopped."""
        self._wait_while_held()
        self._pace.come(recorded.block)
        while (left_s := self._pace.seconds_left()) > 0 and not self._stopped.is_set():
            self._sleep(min(left_s, LOOK_S))
            if self._wait_while_held():
                self._pace.come(recorded.block)

    def _wait_while_held(self) -> bool:
        """Wait while the recording is held, or until it is stopped; tell whether it was held."""
        if not self.held:
            return False
        while self.held and not self._stopped.is_set():
            self._sleep(LOOK_S)
        self._pace.forget()
        return True

    def _samples(self, recorded: _Recorded) -> ReplayedSamples:
        start, block = recorded.start, recorded.block
        t_first_ns, t_last_ns = self._pace.stamps(block)
        return ReplayedSamples(
            scan_id=start.scan_id,
            path=start.path_of(block.frame_index),
            frame_index=block.frame_index,
            first=block.first,
            counts=block.counts,
            t_first_ns=t_first_ns,
            t_last_ns=t_last_ns,
            seq=self._numbers.number(block),
            end=recorded.end,
        )

    # --- what is in the session -------------------------------------------------------------------------------------

    def _from_start_time(self) -> Iterator[_Recorded]:
        """Yield the blocks from the first frame on that begins late enough."""
        begun, left_out = self._start_ns == 0, ("", 0)
        for recorded in self._recorded():
            late_enough = self._pace.since_first_ns(recorded.block) >= self._start_ns
            begun = begun or (late_enough and recorded.frame != left_out)
            if begun:
                yield recorded
            left_out = recorded.frame

    def _recorded(self) -> Iterator[_Recorded]:
        """Yield the blocks that can be placed; each waits for the next, for it may be the last of its scan."""
        self._replayed_as.clear()
        waiting: _Recorded | None = None
        for message in self._session:
            if isinstance(message, ScanStart):
                self._learn(message)
            elif isinstance(message, ScanEnd) and waiting is not None and self._is_of(message, waiting.start):
                yield replace(waiting, end=label(message.reason))
                waiting = None
            elif isinstance(message, SampleBlock) and (placed := self._placed(message)) is not None:
                if waiting is not None:
                    yield waiting
                waiting = placed
        if waiting is not None:
            yield waiting

    def _learn(self, start: ScanStart) -> None:
        """Take note of a scan under a new id, unless it is known already or cannot be had here."""
        if start.scan_id in self._replayed_as:
            return
        scan = replayed(start, t_ns=self._clock())
        try:
            require_sound(scan)
            self._require(scan)
        except ValueError as error:
            logger.warning("scan %s of the session is left out: %s", label(start.scan_id)[:8], error)
            return
        self._scans[scan.scan_id] = scan
        self._replayed_as[start.scan_id] = scan.scan_id
        while len(self._scans) > SCANS_REMEMBERED:
            self._scans.pop(next(iter(self._scans)))

    def _placed(self, block: SampleBlock) -> _Recorded | None:
        start = self._scans.get(self._replayed_as.get(block.scan_id, ""))
        if start is None:
            self.homeless += 1
            return None
        block = replace(block, scan_id=start.scan_id)
        if not block_fits(start, block):
            self.refused += 1
            return None
        return _Recorded(start, block)

    def _is_of(self, end: ScanEnd, start: ScanStart) -> bool:
        return self._replayed_as.get(end.scan_id) == start.scan_id

    # --- what a controller must do ----------------------------------------------------------------------------------

    def unblank(self) -> None:
        """Let the recording go on."""
        self._unblanked.set()

    def blank(self, timeout_s: float) -> None:
        """Hold the recording."""
        self._unblanked.clear()

    def park(self, timeout_s: float) -> None:
        """Hold the recording."""
        self._unblanked.clear()

    def stop(self) -> None:
        """End `blocks` at once."""
        self._stopped.set()

    def new_area(self) -> None:
        """Do nothing: the recording stays where it was made."""

    def close(self) -> None:
        """Stop; twice is fine."""
        self.stop()


def _begins(recorded: _Recorded, frame: tuple[str, int] | None) -> bool:
    """Tell whether a block is of another frame than the one under way, not a late one of a frame before."""
    return frame is None or recorded.frame[0] != frame[0] or recorded.frame[1] > frame[1]
