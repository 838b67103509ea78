"""Scans for an evaluation: a pattern laid out, pictures measured by it, engines completing them as they do live."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowdose.acquisition.assembly import Scatter
from lowdose.acquisition.frames import SparseFrame
from lowdose.acquisition.messages import ScanStart
from lowdose.reconstruction.pipeline import Reconstructor
from lowdose.scan_patterns.grid import ScanGrid
from lowdose.simulator.detector import Detector
from lowdose.simulator.microscope import VirtualMicroscope
from lowdose.simulator.sources import LEVELS
from lowdose.training.data_store import DataError
from lowdose.training.pattern_choice import make_pattern

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import Engine
    from lowdose.scan_patterns.path import ScanPath

Noise = Literal["none", "counts"]
DWELL_TIME_US = 1.0
BEAM_CURRENT_PA = 25.0
LINEAR_MAP_S = 300.0
"""Longest wait for the linear infill of a pattern [s]."""


@dataclass(frozen=True, slots=True)
class Scan:
    """A pattern laid out, and what puts its samples into frames.

    Parameters
    ----------
    name : str
        Of the pattern.
    nominal : float
        What the pattern calls its coverage.
    start : ScanStart
        With the one path.
    scatter : Scatter
        Of that path.
    noise : "none" or "counts"
        Of what is measured.
    """

    name: str
    nominal: float
    start: ScanStart
    scatter: Scatter
    noise: Noise

    @property
    def path(self) -> ScanPath:
        """Where the beam goes."""
        return self.start.paths[0]

    @property
    def label(self) -> str:
        """Name and nominal coverage, for people."""
        return f"{self.name} 1/{1 / self.nominal:.4g}"

    def measure(self, truth: NDArray[np.float32], seed: Sequence[int]) -> SparseFrame:
        """Return what is measured of a picture in [0, 1], in counts."""
        counts = self._counted(truth, seed) if self.noise == "counts" else self._mean_counts(truth)
        values, hits = self.scatter.frame(counts, None)
        return SparseFrame(
            grid=self.path.grid,
            values=values,
            hits=hits,
            scan_id=self.start.scan_id,
            path_digest=self.path.digest,
            frame_index=0,
            complete=True,
            samples_used=len(self.path),
            times_ns={},
        )

    def _mean_counts(self, truth: NDArray[np.float32]) -> Any:
        """Return the mean counts of the visited pixels, (1, n) float32: the papers multiply image and mask."""
        share = _share(truth).reshape(-1).take(self.path.flat_pixels)
        return Detector().expected_electrons(share, self.path.dwell_times_us, BEAM_CURRENT_PA)[None]

    def _counted(self, truth: NDArray[np.float32], seed: Sequence[int]) -> NDArray[np.uint16]:
        """Return single electrons counted where the beam is, (1, n)."""
        microscope = VirtualMicroscope(
            _Still(_share(truth)), [Detector()], beam_current_pa=BEAM_CURRENT_PA, rng=np.random.default_rng(seed)
        )
        return microscope.acquire(self.path, 0, len(self.path), 0.0)


@dataclass(frozen=True, slots=True)
class _Still:
    """A picture as specimen."""

    share: NDArray[np.float32]

    def frame(self, t_s: float) -> NDArray[np.float32]:
        return self.share


def laid_out(mapping: Mapping[str, Any], edge_px: int, noise: Noise, seed: int) -> Scan:
    """Return the scan of a pattern's name and parameters; of a cycle the first path.

    Raises
    ------
    ValueError
        If the pattern is wrong or visits nothing of a field of this edge.
    """
    pattern = make_pattern(mapping)
    grid = ScanGrid((edge_px, edge_px))
    path = pattern.paths(grid, dwell_time_us=DWELL_TIME_US, rng=np.random.default_rng(seed))[0]
    if not path.inside.any():
        raise DataError(f"pattern {dict(mapping)} visits no pixel of {edge_px} x {edge_px}: choose other parameters")
    start = ScanStart(
        scan_id="evaluation",
        paths=(path,),
        pattern=dict(mapping),
        channels=("image",),
        dwell_time_us=DWELL_TIME_US,
        beam_current_pa=BEAM_CURRENT_PA,
        energy_kev=200.0,
        area_id=0,
        replay_of=None,
        wall_clock_ns=0,
        t_ns=0,
    )
    nominal = float(getattr(pattern, "coverage", path.coverage))
    return Scan(mapping["name"], nominal, start, Scatter(path, DWELL_TIME_US), noise)


def in_range(counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return counts in units of the picture's own range: its darkest pixel 0, its brightest 1."""
    low, high = _extreme_counts()
    return np.asarray((counts - low) / (high - low))


def _extreme_counts() -> NDArray[np.float32]:
    """Return the mean counts of a picture's darkest and brightest pixel."""
    dwell = np.full(2, DWELL_TIME_US, np.float32)
    return Detector().expected_electrons(np.array(LEVELS, np.float32), dwell, BEAM_CURRENT_PA)


def _share(truth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a picture in [0, 1] as share of the detector's full scale."""
    return np.asarray(LEVELS[0] + (LEVELS[1] - LEVELS[0]) * truth, np.float32)


class Completer:
    """An engine as it runs live, its pictures in units of the truth's range.

    Parameters
    ----------
    engine : Engine
        Completes pictures at the scan's own scale.

    Attributes
    ----------
    failures : int
        Pictures that linear infill had to complete instead, so far.
    """

    def __init__(self, engine: Engine) -> None:
        self.info = engine.info
        self.failures = 0
        self._reconstructor = Reconstructor([engine])

    def prepare(self, scan: Scan) -> None:
        """Wait for the infill maps of a scan: live, frames may begin with nearest infill."""
        self._reconstructor.prepare(scan.start)
        deadline = time.monotonic() + LINEAR_MAP_S
        while not self._reconstructor.ready(scan.start):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no linear infill for {scan.label} after {LINEAR_MAP_S:g} s: use a smaller crop")
            time.sleep(0.01)

    def complete(self, sparse: SparseFrame, scan: Scan) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return picture and, where the engine has one, standard deviation, (rows, cols) each."""
        failed_before = self._reconstructor.engine_failures
        dense = self._reconstructor.complete(sparse, scan.start)
        if dense is None:  # a scan that measures nothing was refused when it was laid out
            raise RuntimeError(f"nothing was measured by {scan.label}")
        failed = self._reconstructor.engine_failures > failed_before
        self.failures += failed or dense.engines[-1].name != self.info.name
        low, high = _extreme_counts()
        has_deviation = self.info.uncertainty_kind != "none"
        return in_range(dense.image[0]), dense.uncertainty[0] / (high - low) if has_deviation else None

    def close(self) -> None:
        """Stop the background work; twice is fine."""
        self._reconstructor.close()
