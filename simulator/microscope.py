"""VirtualMicroscope: the forward model from specimen and path to detector counts (imports numpy and scipy)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter

from lowdose.simulator.damage import Damage, Exposure
from lowdose.simulator.detector import Readout
from lowdose.simulator.interpolation import bilinear
from lowdose.simulator.probe import Emitter, Probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowdose.scan_patterns.path import ScanPath
    from lowdose.simulator.detector import Detector
    from lowdose.simulator.drift import Motion
    from lowdose.simulator.sources import SpecimenSource


class VirtualMicroscope:
    """A specimen, a probe and detectors.

    Parameters
    ----------
    specimen : SpecimenSource
        What is looked at.
    detectors : sequence of Detector
        One for each channel.
    beam_current_pa : float
        Nominal probe current [pA].
    rng : numpy.random.Generator
        Source of the counting noise.
    probe : Probe
        Its width and its steadiness.
    motion : Motion
        How the specimen moves under it.
    damage : Damage, optional
        How the specimen suffers; None = not at all.
    """

    def __init__(
        self,
        specimen: SpecimenSource,
        detectors: Sequence[Detector],
        *,
        beam_current_pa: float,
        rng: np.random.Generator,
        probe: Probe | None = None,
        motion: Motion | None = None,
        damage: Damage | None = None,
    ) -> None:
        self._specimen = specimen
        self._detectors = tuple(detectors)
        self._readouts = [Readout(detector, rng) for detector in detectors]
        self._beam_current_pa = beam_current_pa
        self._probe, self._emitter = probe or Probe(), Emitter(probe or Probe())
        self._mover = None if motion is None or motion.still else motion.start()
        self._damage = damage
        self._exposure: Exposure | None = None
        self._path: ScanPath | None = None
        self._on_pixels = False
        self._sharp: NDArray[np.float32] | None = None
        self._blurred: NDArray[np.float32] | None = None

    def acquire(
        self, path: ScanPath, first: int, stop: int, t_s: float, *, waits_us: NDArray[np.float64] | None = None
    ) -> NDArray[np.uint16]:
        """Return the counts of consecutive positions of a path.

        Parameters
        ----------
        path : ScanPath
            Where the beam is, on the specimen's grid.
        first, stop : int
            Positions ``first <= i < stop``.
        t_s : float
            Specimen time at which the first of them begins, its wait included [s].
        waits_us : (stop - first,) float64 ndarray, optional
            Time before each dwell in which nothing is read, such as for settling; default: none [µs].

        Returns
        -------
        (channels, stop - first) uint16 ndarray
            Detector counts.
        """
        dwell = path.dwell_times_us[first:stop]
        waits = np.zeros(stop - first) if waits_us is None else waits_us
        share = self._share(path, first, stop, t_s, dwell, waits)
        current_pa = self._beam_current_pa * self._emitter.factor(t_s)
        return np.stack(
            [
                readout.read(detector.expected_electrons(share, dwell, current_pa), dwell, waits, first)
                for detector, readout in zip(self._detectors, self._readouts, strict=True)
            ]
        )

    def renew(self) -> None:
        """Move to an area that has had no dose yet."""
        self._exposure = None

    def _share(
        self,
        path: ScanPath,
        first: int,
        stop: int,
        t_s: float,
        dwell_us: NDArray[np.float32],
        waits_us: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """Return the specimen under the beam, (m,), as far as it is still there."""
        image = self._under_probe(path, self._specimen.frame(t_s))
        if self._mover is None and self._damage is None and self._lies_on_pixels(path):
            return image.reshape(-1).take(path.flat_pixels[first:stop])
        positions = path.positions[first:stop]
        if self._mover is not None:
            times_s = t_s + 1e-6 * (np.cumsum(dwell_us + waits_us) - dwell_us / 2)
            moved_px = self._mover.moved_nm(times_s) / path.grid.pixel_size_nm
            positions = (positions - moved_px).astype(np.float32)
        share = bilinear(image, positions)
        if self._damage is None:
            return share
        if self._exposure is None:
            self._exposure = Exposure(self._damage, path.grid)
        self._exposure.expose(positions, dwell_us, self._beam_current_pa)
        return self._exposure.seen(image, share, positions)

    def _lies_on_pixels(self, path: ScanPath) -> bool:
        if self._path is not path:
            self._path = path
            self._on_pixels = bool((path.positions == path.pixels).all() and path.inside.all())
        return self._on_pixels

    def _under_probe(self, path: ScanPath, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the image as wide as the probe shows it, made once for each image."""
        if self._probe.blur_nm == 0:
            return image
        if self._sharp is not image or self._blurred is None:
            self._sharp = image
            self._blurred = gaussian_filter(image, self._probe.blur_nm / path.grid.pixel_size_nm, mode="nearest")
        return self._blurred
