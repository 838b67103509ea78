"""Rows of an evaluation: the errors of pictures summed up, and compared with linear infill (imports numpy only)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from lowdose.reconstruction.metrics import (
    INTERVAL50,
    INTERVAL90,
    root_mean,
    root_std,
    shares_within,
    squared_errors,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lowdose.acquisition.frames import UncertaintyKind
    from lowdose.reconstruction.engine import EngineInfo, Target
    from lowdose.training.baselines import Bits
    from lowdose.training.evaluation_images import ImageSet
    from lowdose.training.evaluation_scan import Scan

NOMINAL_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Of pixels that should lie within the interval of a reliability plot."""
MULTIPLES = (INTERVAL50, INTERVAL90, *(float(ndtri((1 + share) / 2)) for share in NOMINAL_SHARES))
EVERYWHERE = (slice(None), slice(None))


@dataclass(frozen=True, slots=True)
class Row:
    """How an engine did with a pattern; errors in shares of each picture's own range.

    Parameters
    ----------
    images : int
        Pictures completed.
    engine, pattern : str
        Names.
    engine_digest : str
        Of the engine's file, "" where there is none.
    coverage, coverage_nominal : float
        Visited share of all pixels, and what the pattern calls it.
    target : str
        What the picture was compared with, as in `EngineInfo`.
    rms, rms_std : float
        Root of the mean, and of the standard deviation, of the pictures' mean squared errors.
    ratio_to_linear : float or None
        rms over that of linear infill; None where that makes no error.
    interval90, interval50 : float or None
        Share of pixels that the engine's uncertainty covers, of its own target and the pictures it completed alone.
    ratio_by_source : float or None
        The pictures' ratios of RMS errors, averaged over the pictures of a source and then over sources.
    worst_ratio : float or None
        Of a single picture, `worst_image`.
    worst_image : str
        Name of its file, from the folder on that was given.
    uncertainty_kind : str or None
        What the engine calls its uncertainty; None where it completed no picture.
    crop_px : int
        Edge of the pictures [pixel].
    failures : int
        Pictures on which the engine failed, or that were measured denser than it was trained for, and which linear
        infill completed instead: their errors are its.
    """

    images: int
    engine: str
    engine_digest: str
    pattern: str
    coverage: float
    coverage_nominal: float
    target: Target
    rms: float
    rms_std: float
    ratio_to_linear: float | None
    interval90: float | None
    interval50: float | None
    ratio_by_source: float | None
    worst_ratio: float | None
    worst_image: str
    uncertainty_kind: UncertaintyKind | None
    crop_px: int
    failures: int


@dataclass(frozen=True, slots=True)
class PrecisionRow:
    """How an engine did with measured values of so many bits, against the blurred target; the rest as in `Row`."""

    images: int
    engine: str
    pattern: str
    coverage: float
    bits: Bits
    target: Target
    rms: float
    rms_std: float
    failures: int


@dataclass
class Tally:
    """What is summed up of one method over the pictures of a pattern.

    Attributes
    ----------
    mse : dict of Target to list of float
        Of every picture.
    squared : dict of Target to (rows, cols) float64 ndarray
        Sum of the squared errors of every pixel.
    shares : list of (multiples,) float64 ndarray
        Of the pixels of every picture, within `MULTIPLES` of the uncertainty.
    failures : int
        Pictures that linear infill completed instead.
    """

    mse: dict[Target, list[float]] = field(default_factory=dict)
    squared: dict[Target, NDArray[np.float64]] = field(default_factory=dict)
    shares: list[NDArray[np.float64]] = field(default_factory=list)
    failures: int = 0

    def add(
        self,
        image: NDArray[np.float32],
        targets: Mapping[Target, NDArray[np.float32]],
        window: tuple[slice, slice] = EVERYWHERE,
    ) -> None:
        """Add a picture's mean squared error, of a part of it or of all."""
        for name, truth in targets.items():
            mse = float(squared_errors(image[window], truth[window]).mean(dtype=np.float64))
            self.mse.setdefault(name, []).append(mse)

    def add_maps(self, image: NDArray[np.float32], targets: Mapping[Target, NDArray[np.float32]]) -> None:
        """Add the squared errors of its pixels."""
        for name, truth in targets.items():
            self.squared.setdefault(name, np.zeros(truth.shape))[...] += squared_errors(image, truth)

    def add_uncertainty(
        self, image: NDArray[np.float32], deviation: NDArray[np.float32], truth: NDArray[np.float32]
    ) -> None:
        """Add how many of its pixels its uncertainty covers."""
        self.shares.append(shares_within(image, truth, deviation, MULTIPLES))


def rows_of(images: ImageSet, scan: Scan, tallies: Mapping[str, Tally], infos: Mapping[str, EngineInfo]) -> list[Row]:
    """Return the rows of all methods, one of which is linear infill; only engines have infos."""
    rows = []
    for name, tally in tallies.items():
        info = infos.get(name)
        kind = info.uncertainty_kind if info else "none"
        for target, mse in tally.mse.items():
            own = np.mean(tally.shares, axis=0) if info and tally.shares and info.target == target else None
            rows.append(
                Row(
                    images=len(images.files),
                    engine=name,
                    engine_digest=info.digest if info else "",
                    pattern=scan.name,
                    coverage=scan.path.coverage,
                    coverage_nominal=scan.nominal,
                    target=target,
                    rms=root_mean(mse),
                    rms_std=root_std(mse),
                    **_ratios(mse, tallies["linear"].mse[target], images),
                    interval50=None if own is None else float(own[0]),
                    interval90=None if own is None else float(own[1]),
                    uncertainty_kind=kind if tally.failures < len(mse) else None,
                    crop_px=images.crop_px,
                    failures=tally.failures,
                )
            )
    return rows


def _ratios(mse: Sequence[float], linear: Sequence[float], images: ImageSet) -> dict[str, Any]:
    """Return the RMS error over that of linear infill: of all pictures, with equal weight per source, the worst."""
    total = root_mean(linear)
    single = {file: float(np.sqrt(m / n)) for m, n, file in zip(mse, linear, images.files, strict=True) if n > 0}
    by_source: dict[str, list[float]] = {}
    for file, ratio in single.items():
        by_source.setdefault(file.source, []).append(ratio)
    worst = max(single, key=single.__getitem__, default=None)
    return {
        "ratio_to_linear": root_mean(mse) / total if total > 0 else None,
        "ratio_by_source": float(np.mean([np.mean(ratios) for ratios in by_source.values()])) if single else None,
        "worst_ratio": None if worst is None else single[worst],
        "worst_image": "" if worst is None else images.name_of(worst),
    }


def precision_row(scan: Scan, engine: str, bits: Bits, tally: Tally) -> PrecisionRow:
    """Return the row of an engine and a number of bits."""
    mse = tally.mse["blurred_5x5"]
    return PrecisionRow(
        images=len(mse),
        engine=engine,
        pattern=scan.name,
        coverage=scan.path.coverage,
        bits=bits,
        target="blurred_5x5",
        rms=root_mean(mse),
        rms_std=root_std(mse),
        failures=tally.failures,
    )
