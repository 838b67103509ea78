"""VirtualMicroscope: the forward model from specimen and path to detector counts (imports numpy only)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowdose.scan_patterns.path import ScanPath
    from lowdose.simulator.detector import Detector
    from lowdose.simulator.sources import SpecimenSource


@dataclass(frozen=True)
class ProbeWeights:
    """Bilinear weights of every position of a path, computed once: counts = weights . image[pixels].

    Positions outside the field see its mirror image.
    """

    path: ScanPath

    @cached_property
    def on_pixels(self) -> bool:
        """Every position is the centre of a pixel, so that no interpolation is needed."""
        return bool((self.path.positions == self.path.pixels).all())

    @cached_property
    def corners(self) -> NDArray[np.intp]:
        """(4, n) flat indices of the pixels around each position, or (1, n) of the one it is on."""
        rows, cols = self._low[:, 0], self._low[:, 1]
        n_rows, n_cols = self.path.grid.shape
        offsets = [(0, 0)] if self.on_pixels else [(0, 0), (0, 1), (1, 0), (1, 1)]
        return np.stack([_mirrored(rows + r, n_rows) * n_cols + _mirrored(cols + c, n_cols) for r, c in offsets])

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """(4, n) weight of each corner, or (1, n) of ones."""
        if self.on_pixels:
            return np.ones((1, len(self.path)), np.float32)
        row, col = (self.path.positions - self._low).T
        return np.stack([(1 - row) * (1 - col), (1 - row) * col, row * (1 - col), row * col]).astype(np.float32)

    @cached_property
    def _low(self) -> NDArray[np.intp]:
        return np.floor(self.path.positions).astype(np.intp)

    def sample(self, image: NDArray[np.float32], first: int, stop: int) -> NDArray[np.float32]:
        """Return the image at positions `first` to `stop` of the path, (stop - first,)."""
        seen = image.reshape(-1).take(self.corners[:, first:stop])
        if self.on_pixels:
            return np.asarray(seen[0])
        interpolated: NDArray[np.float32] = np.einsum("km,km->m", seen, self.weights[:, first:stop])
        return interpolated


def _mirrored(index: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Return indices in range(n): what lies outside is mirrored at the edges."""
    index = index % (2 * n)
    return np.minimum(index, 2 * n - 1 - index)


class VirtualMicroscope:
    """A specimen, a probe and detectors.

    Parameters
    ----------
    specimen : SpecimenSource
        What is looked at.
    detectors : sequence of Detector
        One for each channel.
    beam_current_pa : float
        Probe current [pA].
    rng : numpy.random.Generator
        Source of the counting noise.
    """

    def __init__(
        self,
        specimen: SpecimenSource,
        detectors: Sequence[Detector],
        *,
        beam_current_pa: float,
        rng: np.random.Generator,
    ) -> None:
        self._specimen = specimen
        self._detectors = tuple(detectors)
        self._beam_current_pa = beam_current_pa
        self._rng = rng
        self._probe: ProbeWeights | None = None

    def acquire(self, path: ScanPath, first: int, stop: int, t_s: float) -> NDArray[np.uint16]:
        """Return the counts of consecutive positions of a path.

        Parameters
        ----------
        path : ScanPath
            On the specimen's grid.
        first, stop : int
            Positions ``first <= i < stop``.
        t_s : float
            Specimen time of the block [s].

        Returns
        -------
        (channels, stop - first) uint16 ndarray
            Detector counts.
        """
        if self._probe is None or self._probe.path is not path:
            self._probe = ProbeWeights(path)
        share = self._probe.sample(self._specimen.frame(t_s), first, stop)
        dwell = path.dwell_times_us[first:stop]
        return np.stack(
            [d.count(d.expected_counts(share, dwell, self._beam_current_pa), self._rng) for d in self._detectors]
        )
