"""SimulatedController: a ScanController over the virtual microscope, with a beam on a clock of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from lowdose.acquisition.controllers.base import (
    BlankNotConfirmedError,
    ControllerError,
    ControllerLimits,
    Samples,
    block_edges,
)
from lowdose.acquisition.controllers.deflector import Deflector  # noqa: TC001 read when the settings are validated
from lowdose.acquisition.settings import Pacing  # noqa: TC001 likewise
from lowdose.simulator.damage import Damage  # noqa: TC001 likewise
from lowdose.simulator.detector import USUAL_DETECTORS, Detector
from lowdose.simulator.distortion import Distortion
from lowdose.simulator.drift import Motion
from lowdose.simulator.faults import NEVER_NS, Faults, InstrumentLog
from lowdose.simulator.microscope import VirtualMicroscope
from lowdose.simulator.probe import Probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from lowdose.scan_patterns.path import ScanPath
    from lowdose.simulator.faults import Moment
    from lowdose.simulator.sources import SpecimenSource

LIMITS = ControllerLimits(min_dwell_us=0.01, max_positions=1 << 26, look_ahead_ms=5.0, dead_man=True)
PIECE_NS = 1_000_000
"""Beam time of one hand-over: a fifth of the look-ahead, so that the next is handed over in good time."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """Settings of the simulated controller.

    Parameters
    ----------
    pacing : "real_time" or "as_fast_as_possible"
        By the dwell times, or without waiting.
    detectors : dict of Detector
        By channel; the defaults are typical of HAADF, ADF and BF.
    seed : int
        Of the counting noise.
    deflector : Deflector, optional
        Turns the path into codes and inserts settling samples; default: the beam is wherever it is told.
    distortion : Distortion
        Where the beam really is.
    motion : Motion
        How the specimen moves under it.
    probe : Probe
        Its width and steadiness.
    damage : Damage, optional
        What the dose does to the specimen; default: nothing.
    faults : Faults
        What the driver does wrong; default: nothing.
    log : str, optional
        File for the instrument's own times, see `InstrumentLog`.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 read by pydantic

    pacing: Pacing = "real_time"
    detectors: dict[str, Detector] = field(default_factory=dict)
    seed: int = 0
    deflector: Deflector | None = None
    distortion: Distortion = field(default_factory=Distortion)
    motion: Motion = field(default_factory=Motion)
    probe: Probe = field(default_factory=Probe)
    damage: Damage | None = None
    faults: Faults = field(default_factory=Faults)
    log: str | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")

    def open(self, specimen: SpecimenSource, *, channels: Sequence[str], beam_current_pa: float) -> SimulatedController:
        """Return a controller that scans a specimen with a detector for each channel."""
        if unknown := [name for name in self.detectors if name not in channels]:
            raise ValueError(f"detectors: no channel is named {unknown[0]!r}, there are {', '.join(channels)}")
        microscope = VirtualMicroscope(
            specimen,
            [self.detectors.get(name) or USUAL_DETECTORS.get(name.upper(), Detector()) for name in channels],
            beam_current_pa=beam_current_pa,
            rng=np.random.default_rng(self.seed),
            probe=self.probe,
            motion=self.motion,
            damage=self.damage,
        )
        return SimulatedController(
            microscope,
            pacing=self.pacing,
            deflector=self.deflector,
            distortion=self.distortion,
            faults=self.faults,
            log=None if self.log is None else InstrumentLog(self.log),
        )


class VirtualBeam:
    """The instrument's own side: scans what was handed over by its own clock, then blanks by itself.

    No more than `look_ahead_ns` of beam time is accepted ahead, and every hand-over ends with a blank: a host that
    stops leaves a blanked beam within that time. This is the dead man. Only a blanker that sticks leaves it on.
    """

    def __init__(self, *, look_ahead_ns: int, clock: Callable[[], int], log: InstrumentLog | None = None) -> None:
        self._look_ahead_ns = look_ahead_ns
        self._clock, self._log = clock, log
        self._lock = threading.Lock()
        self._busy_until_ns = 0
        self.blanked = True
        self.parked = True
        self.stuck = False

    @property
    def on(self) -> bool:
        """The beam reaches the specimen now."""
        return self.stuck or (not self.blanked and self._clock() < self._busy_until_ns)

    def stick(self) -> None:
        """Leave the beam on for good: the blanker does not move any more."""
        with self._lock:
            self.stuck = True
            self._note_on_until()

    def _note_on_until(self) -> None:
        if self._log is not None:
            self._log.note("on_until", NEVER_NS if self.stuck else self._busy_until_ns)

    def room_at_ns(self, duration_ns: int) -> int:
        """Return when so much more beam time may be handed over."""
        return self._busy_until_ns + duration_ns - self._look_ahead_ns

    def hand_over(self, duration_ns: int) -> tuple[int, int] | None:
        """Take beam time; return when it begins and ends, or None if the beam is blanked.

        Raises
        ------
        ControllerError
            If it would be more than the look-ahead.
        """
        with self._lock:
            now = self._clock()
            if self.blanked:
                return None
            begin = max(now, self._busy_until_ns)
            if begin + duration_ns - now > self._look_ahead_ns:
                raise ControllerError(f"more than {self._look_ahead_ns} ns of beam time handed over")
            self._busy_until_ns = begin + duration_ns
            self._note_on_until()
            return begin, self._busy_until_ns

    def unblank(self) -> None:
        """Let the beam through whenever there is beam time."""
        with self._lock:
            self.blanked = self.parked = False

    def blank(self) -> None:
        """Turn the beam off now and drop what was handed over."""
        with self._lock:
            self.blanked = True
            self._busy_until_ns = min(self._busy_until_ns, self._clock())
            self._note_on_until()

    def park(self) -> None:
        """Blank, and rest beside the field."""
        self.blank()
        self.parked = True


@dataclass(frozen=True)
class _Course:
    """A path as it is scanned: where the beam really is, when each dwell ends, settling included, and its pieces."""

    path: ScanPath
    seen: ScanPath
    ends_us: NDArray[np.float64]
    cut: list[tuple[int, int, int, bool]]  # (first, stop, duration_ns, ends_block) of every piece

    @cached_property
    def waits_us(self) -> NDArray[np.float64]:
        """Time before each dwell in which nothing is read, (n,) [µs]."""
        return np.diff(self.ends_us, prepend=0.0) - self.path.dwell_times_us


@dataclass(frozen=True, slots=True)
class _Piece:
    """Beam time handed over at once: a part of a block, and whether it is the block's last."""

    scan_id: str
    course: _Course
    frame_index: int
    first: int
    stop: int
    duration_ns: int
    ends_block: bool


class SimulatedController:
    """Scans the virtual microscope in real time, or as fast as the host can.

    Parameters
    ----------
    microscope : VirtualMicroscope
        The forward model.
    pacing : "real_time" or "as_fast_as_possible"
        By the dwell times, or without waiting; samples are stamped with the clock either way.
    deflector : Deflector, optional
        Turns the path into codes and inserts settling samples; None = the beam is wherever it is told.
    distortion : Distortion
        Where the beam really is.
    faults : Faults, optional
        What goes wrong.
    log : InstrumentLog, optional
        Takes the instrument's own times.
    clock, sleep : callable
        Monotonic time [ns] and waiting [s]; tests drive them.
    """

    def __init__(
        self,
        microscope: VirtualMicroscope,
        *,
        pacing: Pacing = "real_time",
        deflector: Deflector | None = None,
        distortion: Distortion | None = None,
        faults: Faults | None = None,
        log: InstrumentLog | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._microscope = microscope
        self._limits = replace(LIMITS, deflector=deflector)
        self._distortion = distortion or Distortion()
        self._paced = pacing == "real_time"
        self._clock, self._sleep = clock, sleep
        self._faults, self._log = faults or Faults(), log
        self.beam = VirtualBeam(look_ahead_ns=round(LIMITS.look_ahead_ms * 1e6), clock=clock, log=log)
        self._lock = threading.Lock()
        self._prepared: tuple[str, tuple[_Course, ...]] | None = None
        self._admit: Callable[[str, ScanPath], bool] = lambda _scan_id, _path: False
        self._stopped = threading.Event()
        self._t0_ns = clock()

    @property
    def limits(self) -> ControllerLimits:
        """What this controller can do."""
        return self._limits

    def prepare(self, scan_id: str, paths: tuple[ScanPath, ...]) -> None:
        """Take a new cycle of paths, from the next frame edge on."""
        for path in paths:
            self._limits.require(path)
        courses = tuple(self._course(path) for path in paths)
        with self._lock:
            self._prepared = (scan_id, courses)

    def _course(self, path: ScanPath) -> _Course:
        """Return all that depends on the path alone: between two blocks there is no time for it."""
        ends_us, seen = self._limits.ends_us(path), self._distortion.seen(path, self._limits.deflector)
        course = _Course(path, seen, ends_us, self._cut(ends_us))
        _ = seen.flat_pixels, course.waits_us  # kept from now on; 0.2 s for 2048 x 2048 positions
        self._microscope.warm_up(seen)
        return course

    def start(self, admit: Callable[[str, ScanPath], bool]) -> None:
        """Get ready to scan."""
        if self._prepared is None:
            raise ControllerError("nothing to scan: prepare paths first")
        self._admit = admit
        self._stopped.clear()

    def blocks(self) -> Iterator[Samples]:
        """Yield samples until stopped, blanked, or until a frame is not admitted, with what goes wrong."""
        return self._faults.disturb(self._scanned(), sleep=self._sleep, stick=self.beam.stick, note=self._note)

    def _note(self, moment: Moment) -> None:
        if self._log is not None:
            self._log.note(moment, self._clock())

    def _scanned(self) -> Iterator[Samples]:
        """Yield samples as measured.

        One loop keeps the beam supplied and delivers each block the moment the beam has passed it.
        """
        pieces = self._pieces()
        piece = next(pieces, None)
        block_start_ns, due = 0, deque[tuple[int, int, _Piece]]()
        while (piece is not None or due) and not self._stopped.is_set():
            now = self._clock()
            if due and due[0][1] <= now:
                yield self._samples(*due.popleft())
            elif piece is not None and self.beam.room_at_ns(piece.duration_ns) <= now:
                if (handed := self.beam.hand_over(piece.duration_ns)) is None:
                    return
                block_start_ns = block_start_ns or handed[0]
                if piece.ends_block:
                    due.append((block_start_ns, handed[1], piece))
                    block_start_ns = 0
                piece = next(pieces, None)
            else:
                wake = [due[0][1]] if due else []
                wake += [self.beam.room_at_ns(piece.duration_ns)] if piece is not None else []
                self._sleep((min(wake) - now) / 1e9)

    def _pieces(self) -> Iterator[_Piece]:
        """Yield what to hand over, frame after admitted frame; a new cycle of paths begins at a frame edge."""
        scan_id, frame_index = "", 0
        while not self._stopped.is_set():
            with self._lock:
                prepared_id, courses = self._prepared or ("", ())
            if prepared_id != scan_id:
                scan_id, frame_index = prepared_id, 0
            turn = frame_index % len(courses)
            if not self._admit(scan_id, courses[turn].path):
                return
            for first, stop, duration_ns, ends_block in courses[turn].cut:
                yield _Piece(scan_id, courses[turn], frame_index, first, stop, duration_ns, ends_block)
            frame_index += 1

    def _cut(self, ends_us: NDArray[np.float64]) -> list[tuple[int, int, int, bool]]:
        """Return (first, stop, duration_ns, ends_block) of every piece of one frame."""
        edges = block_edges(ends_us)
        if not self._paced:
            return [(first, stop, 0, True) for first, stop in pairwise(edges)]
        ends_ns = np.concatenate([[0.0], 1e3 * ends_us])[edges].round().astype(int)
        cut = []
        for (first, stop), (begin_ns, end_ns) in zip(pairwise(edges), pairwise(ends_ns.tolist()), strict=True):
            n = -(-(end_ns - begin_ns) // PIECE_NS)
            marks = np.linspace(begin_ns, end_ns, n + 1).round().astype(int).tolist()
            cut += [(first, stop, b - a, b == end_ns) for a, b in pairwise(marks)]
        return cut

    def _samples(self, t_first_ns: int, t_last_ns: int, piece: _Piece) -> Samples:
        t_s = (t_first_ns - self._t0_ns) / 1e9
        course, first, stop = piece.course, piece.first, piece.stop
        counts = self._microscope.acquire(course.seen, first, stop, t_s, waits_us=course.waits_us[first:stop])
        return Samples(piece.scan_id, course.path, piece.frame_index, piece.first, counts, t_first_ns, t_last_ns)

    def unblank(self) -> None:
        """Let the beam reach the specimen."""
        self.beam.unblank()

    def blank(self, timeout_s: float) -> None:
        """Turn the beam off."""
        self.beam.blank()
        self._require_off(timeout_s)

    def park(self, timeout_s: float) -> None:
        """Blank and rest beside the field."""
        self.beam.park()
        self._require_off(timeout_s)

    def _require_off(self, timeout_s: float) -> None:
        if self.beam.stuck:
            self._sleep(timeout_s)
            raise BlankNotConfirmedError("the detectors still see the beam")

    def stop(self) -> None:
        """End `blocks` at once."""
        self._stopped.set()

    def new_area(self) -> None:
        """Look at an area of the specimen that has had no dose."""
        self._microscope.renew()

    def close(self) -> None:
        """Stop, blank and park; twice is fine."""
        self.stop()
        self.beam.park()
