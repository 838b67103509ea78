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


MAX_DISTORTION = 0.5


@dataclass(frozen=True, slots=True)
class Distortion:
    """What is true of the virtual instrument, whatever the controller believes.

    Parameters
    ----------
    coil : CoilResponse, optional
        How the beam answers commands; default: as the deflector believes, without a deflector at once.
    detector_delay_us : float
        By which the detector's signal is late; needs a coil or a deflector [µs].
    barrel : float
        Relative displacement at the corner of the field, outwards when > 0, growing with the cube of the distance from
        its middle.
    stretch : (float, float)
        Scale of the rows and columns against their calibration.
    shear : float
        Columns by which the beam goes aside per row.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 read by pydantic

    coil: CoilResponse | None = None
    detector_delay_us: float = 0.0
    barrel: float = 0.0
    stretch: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.detector_delay_us <= 1_000:
            raise ValueError(f"detector_delay_us must be 0 to 1000, got {self.detector_delay_us}")
        for name, value in (("barrel", self.barrel), ("shear", self.shear)):
            if not abs(value) <= MAX_DISTORTION:
                raise ValueError(f"{name} must be -{MAX_DISTORTION:g} to {MAX_DISTORTION:g}, got {value}")
        if not all(abs(scale - 1) <= MAX_DISTORTION for scale in self.stretch):
            raise ValueError(f"stretch must be {1 - MAX_DISTORTION:g} to {1 + MAX_DISTORTION:g}, got {self.stretch}")

    def seen(self, path: ScanPath, deflector: Deflector | None) -> ScanPath:
        """Return the path as the detector sees it: the mean beam position of every dwell, on the unturned specimen."""
        shape, rotation_deg = path.grid.shape, path.grid.rotation_deg
        beam = self._distorted(turned(self._beam(path, deflector), shape, shape, rotation_deg), shape)
        if beam is path.positions:
            return path
        within = np.clip(beam, -OVERSCAN_LIMIT_PX, OVERSCAN_LIMIT_PX)
        return ScanPath(path.grid, within, path.dwell_time_us, path.jumps)

    def _distorted(self, beam: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
        if (self.barrel, self.shear, *self.stretch) == (0.0, 0.0, 1.0, 1.0):
            return beam
        middle = (np.array(shape) - 1) / 2
        away = beam - middle
        away = away * (1 + self.barrel * (away**2).sum(axis=1, keepdims=True) / max(1.0, float((middle**2).sum())))
        away = away * self.stretch
        away[:, 1] += self.shear * away[:, 0]
        return np.asarray(away + middle, np.float32)

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
