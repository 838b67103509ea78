"""Detector: electrons of the probe become counts (imports numpy only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowdose.scan_patterns.checks import require_positive
from lowdose.scan_patterns.dose import ELECTRONS_PER_PA_US

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_COUNTS = 65_535


@dataclass(frozen=True, slots=True)
class Detector:
    """A counting detector.

    Parameters
    ----------
    efficiency : float
        Counts per electron of the probe where the specimen image is at full scale, > 0.
    """

    efficiency: float = 0.1

    def __post_init__(self) -> None:
        require_positive(efficiency=self.efficiency)

    def expected_counts(
        self, share: NDArray[np.float32], dwell_times_us: NDArray[np.float32], beam_current_pa: float
    ) -> NDArray[np.float32]:
        """Return the mean counts of samples.

        Parameters
        ----------
        share : (m,) float32 ndarray
            Specimen image at the probe positions, 0 to 1 of full scale.
        dwell_times_us : (m,) float32 ndarray
            Dwell times [µs].
        beam_current_pa : float
            Probe current [pA].
        """
        return share * dwell_times_us * np.float32(ELECTRONS_PER_PA_US * beam_current_pa * self.efficiency)

    def count(self, expected: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint16]:
        """Return Poisson counts of the given means, saturating at 65,535."""
        return np.minimum(rng.poisson(expected), MAX_COUNTS).astype(np.uint16)
