"""Example: a picture scanned sparsely, normalised, and what a network should make of it (imports numpy)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from lowdose.reconstruction.lattice_infill import NearestOnLattice
from lowdose.reconstruction.normalise import Normalisation, normalisation_of
from lowdose.scan_patterns.dose import ELECTRONS_PER_PA_US
from lowdose.simulator.detector import Detector, Readout
from lowdose.simulator.interpolation import bilinear

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import Channel
    from lowdose.training.data_settings import DataSettings, PhysicalNoise, Rule, Target
    from lowdose.training.masks import Mask

T = TypeVar("T", bound=np.generic)
WIDTHS: dict[Target, tuple[int, float]] = {"blurred_5x5": (2, 2.5), "blurred_3x3": (1, 1.5)}
"""Reach and standard deviation of the published blurs [pixel]."""
MIN_RANGE = 1e-6
"""A picture of a smaller range is blank."""


@dataclass(frozen=True, slots=True)
class Example:
    """What a network is given, and what it should make of it.

    Parameters
    ----------
    inputs : (channels, rows, cols) float32 ndarray
        As `DataSettings.channels` names them.
    target, truth : (1, rows, cols) float32 ndarray
        Blurred or sharp as `DataSettings.target` says, and sharp.
    mask : (1, rows, cols) bool ndarray
        True = measured.
    coverage : float
        Nominal one of the pattern, 1 if it has none.
    pattern : int
        Its place in `DataSettings.patterns`.
    """

    inputs: NDArray[np.float32]
    target: NDArray[np.float32]
    truth: NDArray[np.float32]
    mask: NDArray[np.bool_]
    coverage: float
    pattern: int


def scanned(
    share: NDArray[np.float32], mask: Mask, pattern: int, settings: DataSettings, rng: np.random.Generator
) -> Example:
    """Return the example of a picture and a mask.

    Parameters
    ----------
    share : (rows, cols) float32 ndarray
        The picture as share of full scale, 0 to 1.
    mask : Mask
        Of the same shape.
    pattern : int
        Its place in the settings.
    settings : DataSettings
        Noise, normalisation, channels, target.
    rng : numpy.random.Generator
        Of the noise.
    """
    if isinstance(settings.noise, str):
        truth = full_range(share)
        measured = truth.reshape(-1).take(mask.visited)
        if settings.noise == "published":
            measured = published_noise(truth, mask, rng)
    else:
        truth, measured = counted(share, mask, settings.noise, rng)
    normalisation = _normalisation(measured, settings.normalisation, everywhere=len(measured) == share.size)
    normalised = normalisation.apply(measured[None])
    if settings.normalisation in ("mean_std", "min_max"):
        truth = normalisation.apply(truth[None])[0]
    return Example(
        inputs=_inputs(normalised, mask, settings),
        target=blurred(truth, settings.target)[None],
        truth=truth[None],
        mask=_picture(np.ones(len(measured), np.bool_), mask)[None],
        coverage=mask.coverage,
        pattern=pattern,
    )


def full_range(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a picture with its extremes at -1 and 1, a blank one as 0: what the papers begin with."""
    low, high = picture.min(), picture.max()
    if high - low < MIN_RANGE:
        return np.zeros_like(picture)
    return np.asarray((picture - low) * (2 / (high - low)) - 1, np.float32)


def published_noise(picture: NDArray[np.float32], mask: Mask, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the measured values of a blurred mask, (v,): Phi (Phi I + (1 - Phi) 2 U I_b).

    I is the picture between -1 and 1, I_b the same blurred, U uniform between 0 and 1. It is no physical model.
    Source: J. M. Ede and R. Beanland, Sci. Rep. 10, 8332 (2020), doi:10.1038/s41598-020-65261-0, and its public code.
    """
    phi = mask.dwell
    signal, smooth = (
        image.reshape(-1).take(mask.visited) for image in (picture, full_range(blurred(picture, "blurred_5x5")))
    )
    noise = 2 * rng.random(len(phi), np.float32) * smooth
    return np.asarray(phi * (phi * signal + (1 - phi) * noise), np.float32)


def counted(
    share: NDArray[np.float32], mask: Mask, noise: PhysicalNoise, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean of counts in every pixel, and those counted where the mask is, as the live simulator does.

    Both in counts per nominal dwell time, (rows, cols) and (v,). The specimen is taken where the probe is, which may be
    off the centre of its pixel; a pixel visited several times gets the mean by dwell time.
    """
    detector = Detector(kind=noise.kinds[int(rng.integers(len(noise.kinds)))])
    current_pa = noise.counts.draw(rng) / (ELECTRONS_PER_PA_US * detector.efficiency)
    samples = mask.samples
    positions, jitter = samples.positions, noise.jitter
    if jitter is not None and rng.random() < jitter.share:
        positions = positions + displaced(len(positions), jitter.px.draw(rng), jitter.samples.draw(rng), rng)
    expected = detector.expected_electrons(bilinear(share, positions), samples.dwell, current_pa)
    exact = noise.exact > 0 and rng.random() < noise.exact
    none = np.zeros(len(expected))
    counts = expected if exact else Readout(detector, rng).read(expected, samples.dwell, none, 0)
    total, dwell = (np.bincount(samples.measured, x, len(mask.visited)) for x in (counts, samples.dwell))
    truth = detector.expected_electrons(share, np.ones(1, np.float32), current_pa)
    return truth, (total / dwell).astype(np.float32)


def displaced(n: int, deviation_px: float, correlation: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return how far the probe is from its place at each of n samples, (n, 2) [pixel]: an Ornstein-Uhlenbeck process.

    Along both axes with the same standard deviation; from one sample to the next k the correlation falls to
    exp(-k / correlation).
    """
    from scipy.signal import lfilter  # takes half a second, and few need it

    kept = math.exp(-1 / correlation)
    steps = rng.standard_normal((n, 2), np.float32) * (deviation_px * math.sqrt(1 - kept**2))
    steps[:1] /= math.sqrt(1 - kept**2)  # as spread from the first sample on
    return np.asarray(lfilter([1.0], [1.0, -kept], steps, axis=0), np.float32)


def blurred(picture: NDArray[np.float32], target: Target) -> NDArray[np.float32]:
    """Return a picture, (rows, cols), as a network should learn it.

    The published blurs are Gaussians cut off at 5 x 5 pixels (standard deviation 2.5) and 3 x 3 (1.5), mirrored at the
    edges without repeating them.

    Examples
    --------
    >>> dot = np.float32([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    >>> (100 * blurred(dot, "blurred_3x3")).round().tolist()[1]
    [24.0, 15.0, 12.0, 0.0]
    """
    if target == "sharp":
        return picture
    taps = blur_taps(*WIDTHS[target]).astype(np.float32)
    return np.ascontiguousarray(_blurred_columns(_blurred_columns(picture, taps).T, taps).T)


def blur_taps(reach: int, sigma: float) -> NDArray[np.float64]:
    """Return the taps of a Gaussian cut off at `reach` pixels, which sum to 1, (2 reach + 1,).

    Examples
    --------
    >>> blur_taps(2, 2.5).round(8).tolist()
    [0.16892959, 0.2147516, 0.23263763, 0.2147516, 0.16892959]
    """
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.asarray(taps / taps.sum())


def _blurred_columns(picture: NDArray[np.float32], taps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the picture blurred along its columns; sums of shifted pictures are faster than a filter."""
    reach, n = len(taps) // 2, len(picture)
    padded = np.concatenate([picture[reach:0:-1], picture, picture[-2 : -reach - 2 : -1]])
    out = taps[reach] * picture
    for k in range(reach):
        pair = padded[k : k + n] + padded[2 * reach - k : 2 * reach - k + n]
        pair *= taps[k]
        out += pair
    return np.asarray(out)


def _normalisation(measured: NDArray[np.float32], rule: Rule, *, everywhere: bool) -> Normalisation:
    """Return how measured values, (v,), become inputs.

    "pstem": what is not measured counts as -1, the smallest there is; extremes to 0 and 1. "dlss": it counts as 0.
    """
    if rule in ("mean_std", "min_max"):
        return normalisation_of(measured[None], "mean_std" if rule == "mean_std" else "min_max")
    low, high = float(measured.min()), float(measured.max())
    if not everywhere:
        unmeasured = -1.0 if rule == "pstem" else 0.0
        low, high = min(low, unmeasured), max(high, unmeasured)
    scale = high - low if high - low >= MIN_RANGE else 1.0
    return Normalisation(np.array([low], np.float32), np.array([scale], np.float32))


def _inputs(normalised: NDArray[np.float32], mask: Mask, settings: DataSettings) -> NDArray[np.float32]:
    """Return the channels, made of normalised measured values (1, v)."""
    if settings.inputs == "lattice" and isinstance(mask.maps.nearest, NearestOnLattice):
        return mask.maps.nearest.crossings(normalised)
    inputs = np.empty((len(settings.channels), *mask.shape), np.float32)
    for picture, channel in zip(inputs, settings.channels, strict=True):
        picture[...] = _channel(channel, normalised, mask)
    return inputs


def _channel(name: Channel, normalised: NDArray[np.float32], mask: Mask) -> NDArray[np.float32]:
    maps = mask.maps
    if (infill := maps.infill(name)) is not None:
        return np.asarray(infill.apply(normalised)[0])
    if name == "distance":
        return maps.distance
    if name == "sparse":
        return _picture(normalised[0], mask)
    return _picture(mask.dwell if name == "dwell" else np.ones_like(mask.dwell), mask)


def _picture(values: NDArray[T], mask: Mask) -> NDArray[T]:
    """Return measured values at their pixels, zero elsewhere."""
    picture = np.zeros(mask.shape, values.dtype)
    picture.reshape(-1)[mask.visited] = values
    return picture
