"""VirtualMicroscope: the forward model from specimen and path to detector counts (imports numpy and scipy)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from scipy.ndimage import gaussian_filter

from lowdose.simulator.damage import Damage, Exposure, without_detail
from lowdose.simulator.detector import Readout
from lowdose.simulator.interpolation import bilinear
from lowdose.simulator.probe import Emitter, Probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid
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
        self._made: _Images | None = None

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
        current_pa = self._beam_current_pa * self._emitter.factor(t_s)
        share = self._share(path, first, stop, t_s, dwell, waits, current_pa)
        return np.stack(
            [
                readout.read(detector.expected_electrons(share, dwell, current_pa), dwell, waits, first)
                for detector, readout in zip(self._detectors, self._readouts, strict=True)
            ]
        )

    def warm_up(self, path: ScanPath) -> None:
        """Work out what is kept for a path and the first image: between two blocks there is no time for it."""
        self._images(self._specimen.frame(0.0), path.grid)
        _lies_on_pixels(path)

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
        current_pa: float,
    ) -> NDArray[np.float32]:
        """Return the specimen under the beam, (m,), as far as it is still there."""
        images = self._images(self._specimen.frame(t_s), path.grid)
        if self._mover is None and self._damage is None and _lies_on_pixels(path):
            return images.seen.reshape(-1).take(path.flat_pixels[first:stop])
        positions = path.positions[first:stop]
        if self._mover is not None:
            times_s = t_s + 1e-6 * (np.cumsum(dwell_us + waits_us) - dwell_us / 2)
            moved_px = self._mover.moved_nm(times_s) / path.grid.pixel_size_nm
            positions = (positions - moved_px).astype(np.float32)
        share = bilinear(images.seen, positions)
        if self._damage is None:
            return share
        exposure = self._exposure or Exposure(self._damage, path.grid)
        self._exposure = exposure
        exposure.expose(positions, dwell_us + waits_us, current_pa)  # on its way the beam is nearly there
        return exposure.left(share, bilinear(images.coarse, positions), positions)

    def _images(self, image: NDArray[np.float32], grid: ScanGrid) -> _Images:
        """Return what is made of a specimen's image, once for each; set whole, for any thread may ask."""
        made = self._made
        if made is None or made.image is not image:
            blur_px = self._probe.blur_nm / grid.pixel_size_nm
            seen = gaussian_filter(image, blur_px, mode="nearest") if blur_px > 0 else image
            coarse = seen if self._damage is None else without_detail(seen, self._damage, grid)
            made = self._made = _Images(image, seen, coarse)
        return made


@dataclass(frozen=True, slots=True)
class _Images:
    """A specimen's image, as wide as the probe shows it, and that without its detail."""

    image: NDArray[np.float32]
    seen: NDArray[np.float32]
    coarse: NDArray[np.float32]


_on_pixels: WeakKeyDictionary[ScanPath, bool] = WeakKeyDictionary()


def _lies_on_pixels(path: ScanPath) -> bool:
    """Tell whether every position is the centre of a pixel, so that nothing is interpolated; kept while the path is."""
    if path not in _on_pixels:
        _on_pixels[path] = bool((path.positions == path.pixels).all() and path.inside.all())
    return _on_pixels[path]
