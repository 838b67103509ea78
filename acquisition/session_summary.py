"""What is in a session: its scans, what is missing of them, what they cost the specimen (imports numpy only)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdose.acquisition.assembly import SequenceCounter, block_fits
from lowdose.acquisition.frames import DenseFrame
from lowdose.acquisition.messages import SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.session_reader import SessionReader, SessionReport
from lowdose.acquisition.status import Event, StatusReport
from lowdose.scan_patterns.dose import frame_dose_e_per_a2

if TYPE_CHECKING:
    from pathlib import Path

MAX_EVENTS_KEPT = 100


@dataclass(frozen=True, slots=True)
class ScanSummary:
    """One scan of a session.

    Parameters
    ----------
    start : ScanStart
        Where its samples belong.
    frame_indices, frame_times_ns : tuple of int
        Frames with a sample recorded, and the time of the first of each [ns].
    whole_frames : int
        How many have all of them.
    samples, samples_missing : int
        Probe positions recorded; and those that should have come between the first and the last that did.
    blocks, blocks_lost, blocks_refused : int
        Blocks recorded; running numbers left out; blocks that came too late or fit no position.
    dense_frames : int
        Completed frames recorded beside the samples.
    duration_s : float
        From the first recorded sample to the last [s].
    dose_e_per_a2 : float
        Over the field, of the recorded samples, 0 if the beam current is no number > 0; settling and flyback are not
        recorded [e-/Å^2].
    end : str or None
        Why it ended; None if that was not recorded.
    """

    start: ScanStart
    frame_indices: tuple[int, ...]
    frame_times_ns: tuple[int, ...]
    whole_frames: int
    samples: int
    samples_missing: int
    blocks: int
    blocks_lost: int
    blocks_refused: int
    dense_frames: int
    duration_s: float
    dose_e_per_a2: float
    end: str | None

    @property
    def frames(self) -> int:
        """How many frames have a sample recorded."""
        return len(self.frame_indices)

    @property
    def gapless(self) -> bool:
        """Nothing of it is missing."""
        return not (self.samples_missing or self.blocks_lost or self.blocks_refused)


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """What is in a session.

    Parameters
    ----------
    report : SessionReport
        How reading it went.
    opening : dict
        Versions and the wall-clock anchor; empty if that is lost.
    scans : tuple of ScanSummary
        In the order they began.
    messages : dict of str to int
        How many of each kind.
    homeless_blocks : int
        Blocks of scans whose start is not in the file: nobody knows where they were measured.
    alarms, notes : tuple of Event
        Alarms, and what the operator noted; the first 100 of each.
    """

    report: SessionReport
    opening: dict[str, Any]
    scans: tuple[ScanSummary, ...]
    messages: dict[str, int]
    homeless_blocks: int
    alarms: tuple[Event, ...]
    notes: tuple[Event, ...]


def summarise(path: Path) -> SessionSummary:
    """Read a session and tell what is in it.

    Raises
    ------
    SessionError
        If it is no session.
    """
    reader = SessionReader(path)
    scans: dict[str, ScanTally] = {}
    kinds: Counter[str] = Counter()
    opening: dict[str, Any] = {}
    told: dict[str, list[Event]] = {"alarm": [], "note": []}
    homeless = 0
    for message in reader:
        kinds[type(message).__name__] += 1
        if isinstance(message, ScanStart):
            scans.setdefault(message.scan_id, ScanTally(message))
        elif isinstance(message, SampleBlock | ScanEnd | DenseFrame):
            if message.scan_id in scans:
                scans[message.scan_id].take(message)
            else:
                homeless += isinstance(message, SampleBlock)
        elif isinstance(message, StatusReport) and message.source == "session" and not opening:
            opening = message.values
        elif isinstance(message, Event):
            _keep(told.get("alarm" if message.severity == "alarm" else message.kind, []), message)
    return SessionSummary(
        report=reader.report,
        opening=opening,
        scans=tuple(tally.summary() for tally in scans.values()),
        messages=dict(kinds),
        homeless_blocks=homeless,
        alarms=tuple(told["alarm"]),
        notes=tuple(told["note"]),
    )


def _keep(events: list[Event], event: Event) -> None:
    if len(events) < MAX_EVENTS_KEPT:
        events.append(event)


class ScanTally:
    """Counts the samples of one scan, frame by frame, and what is missing between them.

    Parameters
    ----------
    start : ScanStart
        The scan.
    """

    def __init__(self, start: ScanStart) -> None:
        self.start = start
        self._frame_indices: list[int] = []
        self._frame_times_ns: list[int] = []
        self._got = np.zeros(0, bool)
        self._expected_from = 0
        self._whole = self._samples = self._missing = 0
        self._blocks = self._refused = self._dense = 0
        self._beam_us = 0.0
        self._first_ns: int | None = None
        self._last_ns = 0
        self._sequence = SequenceCounter()
        self._end: str | None = None

    def take(self, message: SampleBlock | ScanEnd | DenseFrame) -> None:
        """Count a message of the scan, in the order recorded."""
        if isinstance(message, ScanEnd):
            self._end = message.reason
        elif isinstance(message, DenseFrame):
            self._dense += 1
        else:
            self._blocks += 1
            self._sequence.saw(message.seq)
            self._place(message)

    def summary(self) -> ScanSummary:
        """Return what it has come to; what is missing of the last frame counts only up to its last sample."""
        whole, samples, missing, beam_us = self._frame_figures(self._reached())
        dose_us = self._beam_us + beam_us
        return ScanSummary(
            start=self.start,
            frame_indices=tuple(self._frame_indices),
            frame_times_ns=tuple(self._frame_times_ns),
            whole_frames=self._whole + whole,
            samples=self._samples + samples,
            samples_missing=self._missing + missing,
            blocks=self._blocks,
            blocks_lost=self._sequence.dropped,
            blocks_refused=self._refused,
            dense_frames=self._dense,
            duration_s=(self._last_ns - (self._first_ns or 0)) / 1e9,
            dose_e_per_a2=self._dose(dose_us),
            end=self._end,
        )

    def _place(self, block: SampleBlock) -> None:
        last = self._frame_indices[-1] if self._frame_indices else -1
        if block.frame_index < last or not block_fits(self.start, block):
            self._refused += 1
            return
        if block.frame_index > last:
            self._begin(block, last)
        self._got[block.first : block.first + block.counts.shape[1]] = True
        self._frame_times_ns[-1] = min(self._frame_times_ns[-1], block.t_first_ns)
        self._first_ns = block.t_first_ns if self._first_ns is None else min(self._first_ns, block.t_first_ns)
        self._last_ns = max(self._last_ns, block.t_last_ns)

    def _begin(self, block: SampleBlock, last: int) -> None:
        """Close the frame before and count the frames skipped; recording may have begun in the middle of a scan."""
        if last >= 0:
            whole, samples, missing, beam_us = self._frame_figures(len(self._got))
            self._whole += whole
            self._samples += samples
            self._missing += missing + self._positions_between(last + 1, block.frame_index)
            self._beam_us += beam_us
        self._expected_from = block.first if last < 0 else 0
        self._got = np.zeros(len(self.start.path_of(block.frame_index)), bool)
        self._frame_indices.append(block.frame_index)
        self._frame_times_ns.append(block.t_first_ns)

    def _frame_figures(self, until: int) -> tuple[int, int, int, float]:
        """Return whether the frame is whole, its samples, those missing up to a position, and the time of the beam."""
        if not self._frame_indices:
            return 0, 0, 0, 0.0
        samples = int(np.count_nonzero(self._got))
        missing = until - self._expected_from - int(np.count_nonzero(self._got[self._expected_from : until]))
        dwell = self.start.path_of(self._frame_indices[-1]).dwell_times_us
        return int(samples == len(self._got)), samples, missing, float(dwell[self._got].sum(dtype=np.float64))

    def _reached(self) -> int:
        return int(np.flatnonzero(self._got)[-1]) + 1 if self._got.any() else self._expected_from

    def _positions_between(self, first: int, stop: int) -> int:
        """Return how many positions the frames `first` to `stop` - 1 have."""
        lengths = [len(path) for path in self.start.paths]
        cycles, rest = divmod(stop - first, len(lengths))
        return cycles * sum(lengths) + sum(lengths[(first + k) % len(lengths)] for k in range(rest))

    def _dose(self, beam_us: float) -> float:
        current_pa = self.start.beam_current_pa
        if not (0 < current_pa < math.inf and beam_us > 0):
            return 0.0
        return frame_dose_e_per_a2(self.start.paths[0], current_pa, beam_time_us=beam_us)
