"""Distortion: where a real instrument's beam is when it was told to be somewhere (imports numpy and scan_patterns)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowdose.scan_patterns.path import OVERSCAN_LIMIT_PX, ScanPath
from lowdose.scan_patterns.placement import turned
from lowdose.scan_patterns.response import CoilResponse, respond

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.acquisition.controllers.deflector import Deflector


@dataclass(frozen=True, slots=True)
class Distortion:
    """What is true of the virtual instrument, whatever the controller believes.

    Parameters
    ----------
    coil : CoilResponse, optional
        How the beam answers commands; default: as the deflector believes, without a deflector at once.
    detector_delay_us : float
        By which the detector's signal is late; needs a coil or a deflector [µs].
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 read by pydantic

    coil: CoilResponse | None = None
    detector_delay_us: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.detector_delay_us <= 1_000:
            raise ValueError(f"detector_delay_us must be 0 to 1000, got {self.detector_delay_us}")

    def seen(self, path: ScanPath, deflector: Deflector | None) -> ScanPath:
        """Return the path as the detector sees it: the mean beam position of every dwell, on the unturned specimen."""
        shape, rotation_deg = path.grid.shape, path.grid.rotation_deg
        beam = turned(self._beam(path, deflector), shape, shape, rotation_deg)
        if beam is path.positions:
            return path
        within = np.clip(beam, -OVERSCAN_LIMIT_PX, OVERSCAN_LIMIT_PX)
        return ScanPath(path.grid, within, path.dwell_time_us, path.jumps)

    def _beam(self, path: ScanPath, deflector: Deflector | None) -> NDArray[np.float32]:
        if deflector is not None:
            beam = deflector.drive(path).beam(self.coil or deflector.coil, self.detector_delay_us)
        elif self.coil is not None:
            beam = respond(path.positions, path.dwell_times_us, self.coil, more_delay_us=self.detector_delay_us)
        elif self.detector_delay_us > 0:
            raise ValueError("detector_delay_us needs a coil or a deflector that moves the beam: set one")
        else:
            return path.positions
        return beam.astype(np.float32)
