"""Damage: what the beam does to the specimen (imports numpy and scipy)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

from lowdose.scan_patterns.checks import require_positive
from lowdose.scan_patterns.dose import fluence_e_per_a2
from lowdose.simulator.interpolation import bilinear

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

CELLS_PER_SPREAD = 2
"""Of the dose map, along either axis."""
MAX_CELLS = 256
"""Of the dose map, along either axis: it is smoothed with every block, in 1 ms."""
MIN_NM, MAX_NM = 1e-3, 1e4


@dataclass(frozen=True, slots=True)
class Damage:
    """Detail fades with the dose the surroundings have had: exp(-dose / critical dose).

    Radiolysis is delocalised: secondary electrons and what they set free act beyond the pixel that was hit, so that the
    dose that counts is the mean over the surroundings. This is why a sparse scan preserves what a full raster destroys
    at the same dose per visited pixel. Exponential decay with a critical dose: R. F. Egerton, P. Li and M. Malac,
    "Radiation damage in the TEM and SEM", Micron 35, 399 (2004), doi:10.1016/j.micron.2004.02.003.

    Parameters
    ----------
    critical_dose_e_per_a2 : float
        Dose after which 1/e of the detail is left [e-/Å^2].
    spread_nm : float
        Standard deviation of the damage around the probe, no less than about 1/256 of the field [nm].
    detail_nm : float
        Structure finer than this fades; what is left is the mean over it, such as an amorphous film [nm].
    mass_loss : float
        Share of the signal that goes with it, 0 to 1.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 read by pydantic

    critical_dose_e_per_a2: float = 1_000.0
    spread_nm: float = 1.0
    detail_nm: float = 1.0
    mass_loss: float = 0.0

    def __post_init__(self) -> None:
        require_positive(
            critical_dose_e_per_a2=self.critical_dose_e_per_a2, spread_nm=self.spread_nm, detail_nm=self.detail_nm
        )
        if not all(MIN_NM <= length <= MAX_NM for length in (self.spread_nm, self.detail_nm)):
            raise ValueError(
                f"spread_nm and detail_nm must be {MIN_NM:g} to {MAX_NM:g}, "
                f"got {self.spread_nm:g} and {self.detail_nm:g}"
            )
        if not 0 <= self.mass_loss <= 1:
            raise ValueError(f"mass_loss must be 0 to 1, got {self.mass_loss}")


class Exposure:
    """The dose an area has had, and what is left of its detail.

    Parameters
    ----------
    damage : Damage
        How sensitive it is.
    grid : ScanGrid
        The area.
    """

    def __init__(self, damage: Damage, grid: ScanGrid) -> None:
        self._damage, self._grid = damage, grid
        spread_px = damage.spread_nm / grid.pixel_size_nm
        self._cell_px = max(1, round(spread_px / CELLS_PER_SPREAD), -(-max(grid.shape) // MAX_CELLS))
        self._cell_px = min(self._cell_px, max(grid.shape))
        self._blur = partial(gaussian_filter, sigma=spread_px / self._cell_px, mode="constant", truncate=3.0)
        rows, cols = (np.diff(np.append(np.arange(0, n, self._cell_px), n)) for n in grid.shape)
        self._sum = np.zeros((len(rows), len(cols)), np.float32)  # of the doses of each cell's pixels
        self._area = self._blur(np.outer(rows, cols).astype(np.float32))  # what goes beyond the edge comes back
        self._dose = np.zeros_like(self._sum)

    def expose(self, positions: NDArray[np.float32], times_us: NDArray[np.floating], beam_current_pa: float) -> None:
        """Add the dose of the beam that stays at positions [pixel] for times [µs]; outside the area it is left out."""
        cells = np.floor((positions + 0.5) / self._cell_px).astype(np.intp)
        inside = ((cells >= 0) & (cells < self._sum.shape)).all(axis=1)
        flat = cells[inside, 0] * self._sum.shape[1] + cells[inside, 1]
        per_us = fluence_e_per_a2(beam_current_pa, 1.0, self._grid.pixel_size_nm)
        added = np.bincount(flat, weights=times_us[inside], minlength=self._sum.size) * per_us
        self._sum += added.reshape(self._sum.shape).astype(np.float32)
        self._dose = self._blur(self._sum) / self._area

    def dose_e_per_a2(self, positions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the dose that counts at positions [pixel], (m,) [e-/Å^2]."""
        return bilinear(self._dose, (positions + 0.5) / self._cell_px - 0.5)

    def left(
        self, share: NDArray[np.float32], coarse: NDArray[np.float32], positions: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return what is left of the specimen at positions, of which an unharmed one would show `share`.

        `coarse` is what it shows there without any detail.
        """
        left = np.exp(-self.dose_e_per_a2(positions) / np.float32(self._damage.critical_dose_e_per_a2))
        kept = 1 - np.float32(self._damage.mass_loss) * (1 - left)
        return np.asarray((coarse + (share - coarse) * left) * kept)


def without_detail(image: NDArray[np.float32], damage: Damage, grid: ScanGrid) -> NDArray[np.float32]:
    """Return an image smoothed over `detail_nm`: three boxes, about a Gaussian, whose time does not grow with it."""
    size = max(1, round(math.sqrt(12 * (damage.detail_nm / grid.pixel_size_nm) ** 2 / 3 + 1)))
    for _ in range(3):
        image = uniform_filter(image, size, mode="nearest")
    return image
