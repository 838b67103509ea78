"""ScanBook: scans made of patterns, refused before anything moves, and remembered while somebody may ask for them."""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdose.acquisition.messages import ScanStart
from lowdose.scan_patterns.dose import frame_dose_e_per_a2, visited_dose_e_per_a2
from lowdose.scan_patterns.placement import spec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from lowdose.acquisition.controllers.base import ControllerLimits, ScanController
    from lowdose.acquisition.settings import BeamSettings, ScanSettings
    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.scan_patterns.path import ScanPath
    from lowdose.scan_patterns.pattern import Pattern

logger = logging.getLogger(__name__)

MAX_SCANS_REMEMBERED = 8
MAX_PATTERN_TEXT = 10_000
MISSED_SHARE = 0.02
MIN_DWELL_US, MAX_DWELL_US = 1e-3, 1e6


class ScanBook:
    """Makes scans and keeps the last few.

    Parameters
    ----------
    controller : ScanController
        Its limits are what a scan must keep.
    grid : ScanGrid
        Field of view.
    scan, beam : ScanSettings, BeamSettings
        Channels, seed and probe.
    make_pattern : callable
        Makes a pattern of a mapping with `name` and parameters; ValueError says what is wrong.
    """

    def __init__(
        self,
        controller: ScanController,
        grid: ScanGrid,
        scan: ScanSettings,
        beam: BeamSettings,
        make_pattern: Callable[[Mapping[str, Any], ScanGrid], Pattern],
    ) -> None:
        self._controller, self._grid, self._scan, self._beam = controller, grid, scan, beam
        self._make_pattern = make_pattern
        self._scans: dict[str, ScanStart] = {}

    def __len__(self) -> int:
        return len(self._scans)

    def find(self, scan_id: str) -> ScanStart:
        """Return a scan; ValueError if it is not known any more."""
        if scan_id not in self._scans:
            raise ValueError(f"no scan {scan_id!r} is known here")
        return self._scans[scan_id]

    def new(
        self, pattern: Mapping[str, Any], dwell_time_us: float, *, area_id: int, keep: Collection[str] = ()
    ) -> ScanStart:
        """Expand a pattern into a scan; nothing moves yet.

        Parameters
        ----------
        pattern : mapping
            `name` and parameters.
        dwell_time_us : float
            Nominal dwell time [µs].
        area_id : int
            Specimen area it is for.
        keep : collection of str
            Scans that must not be forgotten for it.

        Raises
        ------
        ValueError
            If pattern or dwell time are wrong, or beyond what the controller can do.
        """
        if not MIN_DWELL_US <= dwell_time_us <= MAX_DWELL_US:
            raise ValueError(
                f"dwell_time_us must be > 0 and {MIN_DWELL_US:g} to {MAX_DWELL_US:g}, got {dwell_time_us:g}"
            )
        if len(str(pattern)) > MAX_PATTERN_TEXT:  # it travels with every scan start and report
            raise ValueError(f"pattern must fit {MAX_PATTERN_TEXT} characters, got {len(str(pattern))}")
        made = self._make_pattern(pattern, self._grid)
        rng = np.random.default_rng(self._scan.seed)
        paths = made.paths(self._grid, dwell_time_us=dwell_time_us, rng=rng)
        for path in paths:
            self._controller.limits.require(path)
        _warn_if_missed(paths[0], self._controller.limits)
        scan = ScanStart(
            scan_id=uuid.uuid4().hex,
            paths=paths,
            pattern={**_resolved(pattern, made), "seed": self._scan.seed},
            channels=self._scan.channels,
            dwell_time_us=dwell_time_us,
            beam_current_pa=self._beam.current_pa,
            energy_kev=self._beam.energy_kev,
            area_id=area_id,
            replay_of=None,
            wall_clock_ns=time.time_ns(),
            t_ns=time.monotonic_ns(),
        )
        self._remember(scan, keep)
        return scan

    def again(self, scan: ScanStart, *, area_id: int) -> ScanStart:
        """Return the same scan under a new id, to be begun anew: frames of the old one are never taken for it."""
        again = dataclasses.replace(
            scan,
            scan_id=uuid.uuid4().hex,
            area_id=area_id,
            wall_clock_ns=time.time_ns(),
            t_ns=time.monotonic_ns(),
        )
        self._remember(again, {scan.scan_id})
        return again

    def _remember(self, scan: ScanStart, keep: Collection[str]) -> None:
        """Add a scan and forget the oldest ones too many, but none of `keep`."""
        self._scans[scan.scan_id] = scan
        too_many = len(self._scans) - MAX_SCANS_REMEMBERED
        if too_many > 0:
            in_use = {scan.scan_id, *keep}
            for scan_id in [scan_id for scan_id in self._scans if scan_id not in in_use][:too_many]:
                self._scans.pop(scan_id)


def _warn_if_missed(path: ScanPath, limits: ControllerLimits) -> None:
    missed = limits.unreached(path) / len(path)
    if missed > MISSED_SHARE:
        logger.warning(
            "the deflector misses %.0f %% of the positions by more than a quarter of a pixel: scan more slowly, or see "
            "what it does with 'lowdose pattern show'",
            100 * missed,
        )


def spec_of(scan: ScanStart) -> dict[str, Any]:
    """Return the pattern's name and parameters, as they can be configured again."""
    return {key: value for key, value in scan.pattern.items() if key != "seed"}


def scan_values(scan: ScanStart, limits: ControllerLimits) -> dict[str, Any]:
    """Return what people want to know about a scan on a controller, by the names of the house's JSON."""
    path = scan.paths[0]
    beam_time_us = limits.beam_time_us(path)
    parameters = {key: value for key, value in spec_of(scan).items() if key != "name"}
    return {
        "scan_id": scan.scan_id,
        "pattern": scan.pattern["name"],
        "pattern_parameters": parameters,
        "coverage": path.coverage,
        "coverage_nominal": parameters.get("coverage", path.coverage),
        "dwell_time_us": scan.dwell_time_us,
        "frame_ms": beam_time_us / 1e3,
        "positions": len(path),
        "positions_unreached": limits.unreached(path),
        "dose_e_per_a2": frame_dose_e_per_a2(path, scan.beam_current_pa, beam_time_us=beam_time_us),
        "dose_visited_e_per_a2": visited_dose_e_per_a2(path, scan.beam_current_pa),
    }


def _resolved(pattern: Mapping[str, Any], made: Any) -> dict[str, Any]:
    """Return the pattern as numbers: fractions read, a true coverage replaced by the nominal one it came to."""
    if dataclasses.is_dataclass(getattr(made, "pattern", made)):  # a user's own class need not be one
        return {"name": pattern["name"], **spec(made)}
    return dict(pattern)
