"""Detector: electrons of the probe become numbers, with the faults of scintillators and converters (numpy, scipy)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.linalg import solve_banded

from lowdose.scan_patterns.checks import require_positive
from lowdose.scan_patterns.dose import ELECTRONS_PER_PA_US

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["haadf", "adf", "bf"]

MAX_EFFICIENCY, MAX_GAIN = 1e3, 1e6
ADF_EXPONENT = 1.3 / 1.7
"""Of the HAADF signal: at lower angles the intensity goes with about Z^1.3 instead of Z^1.7."""
BF_ABSORPTION = 0.8
"""Share of the beam that the brightest part of the specimen takes out of the bright field."""


@dataclass(frozen=True, slots=True)
class Detector:
    """One detector and its digitiser; every fault is off by default.

    Parameters
    ----------
    efficiency : float
        Detected electrons per electron of the probe where the signal is at full scale, > 0.
    kind : "haadf", "adf" or "bf"
        What of the specimen it sees: the image itself, the image with less contrast between the elements, or the beam
        that is left over.
    poisson : bool
        Count single electrons; False gives their mean: a replay of the image without noise.
    gain, offset : float
        Numbers per detected electron, and with none.
    read_noise : float
        Standard deviation of the amplifier's noise [numbers].
    bits : 8 or 16
        Of the converter; what is more than it can tell saturates.
    afterglow : float
        Share of the light that a scintillator gives off late: bright edges streak along the scan.
    afterglow_us : float
        Its decay time [µs].
    interleave : float
        Relative difference in gain between odd and even samples, as of two interleaved converters: lines in every
        second column of a raster.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 read by pydantic

    efficiency: float = 0.1
    kind: Kind = "haadf"
    poisson: bool = True
    gain: float = 1.0
    offset: float = 0.0
    read_noise: float = 0.0
    bits: Literal[8, 16] = 16
    afterglow: float = 0.0
    afterglow_us: float = 10.0
    interleave: float = 0.0

    def __post_init__(self) -> None:
        require_positive(efficiency=self.efficiency, gain=self.gain, afterglow_us=self.afterglow_us)
        if self.efficiency > MAX_EFFICIENCY or self.gain > MAX_GAIN:
            raise ValueError(
                f"efficiency must be at most {MAX_EFFICIENCY:g} and gain {MAX_GAIN:g}, got {self.efficiency:g} and "
                f"{self.gain:g}"
            )
        if self.kind not in ("haadf", "adf", "bf"):
            raise ValueError(f"kind must be 'haadf', 'adf' or 'bf', got {self.kind!r}")
        if self.bits not in (8, 16):
            raise ValueError(f"bits must be 8 or 16, got {self.bits}")
        if not (math.isfinite(self.offset) and math.isfinite(self.read_noise) and self.read_noise >= 0):
            raise ValueError(f"offset must be finite and read_noise >= 0, got {self.offset} and {self.read_noise}")
        if not 0 <= self.afterglow < 1:
            raise ValueError(f"afterglow must be >= 0 and < 1, got {self.afterglow}")
        if not -1 < self.interleave < 1:
            raise ValueError(f"interleave must be between -1 and 1, got {self.interleave}")

    @property
    def max_number(self) -> int:
        """Where the converter saturates."""
        return int((1 << self.bits) - 1)

    def signal(self, share: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the share of full scale that this detector sees of a specimen, 0 to 1."""
        if self.kind == "bf":
            return np.float32(1) - np.float32(BF_ABSORPTION) * share
        return share if self.kind == "haadf" else np.asarray(share ** np.float32(ADF_EXPONENT))

    def expected_electrons(
        self, share: NDArray[np.float32], dwell_times_us: NDArray[np.float32], beam_current_pa: float
    ) -> NDArray[np.float32]:
        """Return the mean number of detected electrons of samples.

        Parameters
        ----------
        share : (m,) float32 ndarray
            Specimen image at the probe positions, 0 to 1 of full scale.
        dwell_times_us : (m,) float32 ndarray
            Dwell times [µs].
        beam_current_pa : float
            Probe current [pA].
        """
        per_us = np.float32(ELECTRONS_PER_PA_US * beam_current_pa * self.efficiency)
        return self.signal(share) * dwell_times_us * per_us


USUAL_DETECTORS = {"HAADF": Detector(), "ADF": Detector(0.3, "adf"), "BF": Detector(0.5, "bf")}
"""What a channel of this name has when nothing else is said."""


class Readout:
    """A detector at work: draws the noise, and remembers the light that is still to come.

    Parameters
    ----------
    detector : Detector
        What it is.
    rng : numpy.random.Generator
        Of its noise.
    """

    def __init__(self, detector: Detector, rng: np.random.Generator) -> None:
        self._detector, self._rng = detector, rng
        self._stored = 0.0  # light still in the scintillator [electrons]

    def read(
        self,
        expected: NDArray[np.float32],
        dwell_times_us: NDArray[np.float32],
        waits_us: NDArray[np.float64],
        first: int,
    ) -> NDArray[np.uint16]:
        """Return the numbers of consecutive samples.

        Parameters
        ----------
        expected : (m,) float32 ndarray
            Mean number of electrons of each, >= 0.
        dwell_times_us, waits_us : (m,) float32 ndarray
            How long each takes, and how long nothing is read before it [µs].
        first : int
            Index of the first of them since the frame began.
        """
        detector = self._detector
        light: NDArray[np.floating | np.integer] = self._rng.poisson(expected) if detector.poisson else expected
        if detector.afterglow > 0:
            light = self._glowing(light.astype(np.float64), dwell_times_us, waits_us)
        if detector.interleave != 0:
            light = light * np.where(
                (first + np.arange(len(light))) % 2, 1 + detector.interleave / 2, 1 - detector.interleave / 2
            )
        if (detector.gain, detector.offset) != (1.0, 0.0):
            light = detector.gain * light + detector.offset
        if detector.read_noise > 0:
            light = light + detector.read_noise * self._rng.standard_normal(len(light))
        if light.dtype.kind == "f":
            light = np.maximum(np.rint(light), 0)
        numbers: NDArray[np.uint16] = np.minimum(light, detector.max_number).astype(np.uint16)
        return numbers

    def _glowing(
        self, light: NDArray[np.float64], dwell_us: NDArray[np.float32], waits_us: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return what is seen when a share of every electron's light comes late, exponentially.

        Of light made evenly during a dwell, the share r = (1 - exp(-dwell / tau)) tau / dwell of what is late is still
        stored at its end; what is stored leaves by exp(-t / tau), unseen while nothing is read.
        """
        tau, late = self._detector.afterglow_us, self._detector.afterglow
        seen_share = -np.expm1(-dwell_us.astype(np.float64) / tau)
        kept = late * seen_share * tau / dwell_us
        wait = np.exp(-waits_us.astype(np.float64) / tau)
        # stored[k] = decay[k] stored[k - 1] + kept[k] light[k]
        decay, source = wait * (1 - seen_share), kept * light
        source[0] += decay[0] * self._stored
        banded = np.stack([np.ones_like(decay), -np.append(decay[1:], 0)])
        stored = solve_banded((1, 0), banded, source, check_finite=False)
        before = np.append(self._stored, stored[:-1])
        self._stored = float(stored[-1])
        return np.asarray((1 - kept) * light + before * wait * seen_share)
