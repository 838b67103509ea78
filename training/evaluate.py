"""Evaluation: the papers' figures on anybody's images (imports numpy, scipy and pillow; scikit-image late).

Every picture is scaled by its own extremes to 0 and 1, scanned sparsely, completed by the Reconstructor that also runs
live, and compared with the truth. Errors are in that unit: shares of the picture's own range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdose.reconstruction.engines.classical_engine import LinearEngine, NearestEngine
from lowdose.reconstruction.infill import nearest_map
from lowdose.reconstruction.metrics import edge_distance, error_profile
from lowdose.simulator.sources import centre_crop, unit_range
from lowdose.training.baselines import biharmonic, lattice_resize, reduced_precision
from lowdose.training.evaluation_images import by_turns, read_truth_again
from lowdose.training.evaluation_rows import EVERYWHERE, Tally, precision_row, rows_of
from lowdose.training.evaluation_scan import Completer, in_range, laid_out
from lowdose.training.examples import blurred

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from lowdose.acquisition.frames import SparseFrame
    from lowdose.reconstruction.engine import Engine, Target
    from lowdose.reconstruction.metrics import Profile
    from lowdose.training.baselines import Alignment, Bits, Method
    from lowdose.training.evaluation_images import ImageSet
    from lowdose.training.evaluation_rows import PrecisionRow, Row
    from lowdose.training.evaluation_scan import Noise, Scan
    from lowdose.training.sources import ImageFile

    Truths = Mapping[Target, NDArray[np.float32]]

TARGETS: tuple[Target, ...] = ("blurred_5x5", "sharp")
"""What every picture is compared with; others where an engine was trained for them."""

DEFAULT_PATTERNS: tuple[dict[str, Any], ...] = (
    *({"name": "lattice", "coverage": f"1/{n}"} for n in (16, 25, 36, 64, 100)),
    {"name": "spiral", "coverage": "1/20"},
    {"name": "spiral", "coverage": "1/50"},
    {"name": "jittered", "coverage": "1/25"},
)
"""Those of DLSS-STEM and partial STEM."""

BASELINES: tuple[tuple[Method, Alignment], ...] = (
    ("nearest", "published"),
    ("area", "published"),
    ("bilinear", "published"),
    ("bicubic", "published"),
    ("lanczos", "published"),
    ("area", "aligned"),
    ("bilinear", "aligned"),
    ("bicubic", "aligned"),
    ("lanczos", "aligned"),
)
"""The engine `nearest` is the aligned nearest."""

FEWER_BITS: tuple[Bits, ...] = (8, 16)
PRECISION_COVERAGE = 1 / 25
"""Of the lattice on which the published test of the input's precision was made."""
BIHARMONIC = "biharmonic"
BASELINE_NAMES = ("nearest", "linear", BIHARMONIC, *(f"{method}_{alignment}" for method, alignment in BASELINES))
"""No other engine can have one of these."""
BIHARMONIC_CROP_PX = 256
BIHARMONIC_IMAGES = 8
EDGE_PX = 64
"""Distances to the edge that are told apart."""
SHOWN = 3
"""Images shown as pictures, of different sources where there are some."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A completed picture, its standard deviation where there is one, and whether linear infill had to make it."""

    image: NDArray[np.float32]
    deviation: NDArray[np.float32] | None
    failed: bool


@dataclass(frozen=True, slots=True)
class EngineErrors:
    """What is drawn of an engine's errors with one pattern.

    Parameters
    ----------
    rmse : dict of Target to list of float
        Of every picture.
    error_map : (rows, cols) float32 ndarray
        RMS over all pictures, against the blurred target.
    by_edge, by_distance : dict of Target to Profile
        RMS error at each distance to the picture's edge, and to the nearest measured pixel.
    reliability : tuple of float
        Share of pixels within the interval of every one of `NOMINAL_SHARES`; empty without uncertainty.
    """

    rmse: dict[Target, list[float]]
    error_map: NDArray[np.float32]
    by_edge: dict[Target, Profile]
    by_distance: dict[Target, Profile]
    reliability: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Pictures:
    """One image, what was measured of it and what the engines made of it.

    Parameters
    ----------
    name : str
        Of the file.
    truth, sampled : (rows, cols) float32 ndarray
        In [0, 1]; `sampled` is NaN where not measured.
    images, deviations : dict of str to (rows, cols) float32 ndarray
        By engine, which is said to have failed where it has; deviations only of those that have an uncertainty.
    """

    name: str
    truth: NDArray[np.float32]
    sampled: NDArray[np.float32]
    images: dict[str, NDArray[np.float32]]
    deviations: dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class PatternResult:
    """Everything found out with one pattern.

    Parameters
    ----------
    label, name : str
        Of the pattern, with its nominal coverage and without.
    coverage : float
        Visited share of all pixels.
    rows, precision : tuple of Row, tuple of PrecisionRow
        `precision` is empty for all patterns but one.
    errors : dict of str to EngineErrors
        By engine; without those that failed on every picture.
    shown : tuple of Pictures
        Of a few images.
    """

    label: str
    name: str
    coverage: float
    rows: tuple[Row, ...]
    precision: tuple[PrecisionRow, ...]
    errors: dict[str, EngineErrors]
    shown: tuple[Pictures, ...]


def evaluate(
    images: ImageSet,
    patterns: Sequence[Mapping[str, Any]],
    engines: Mapping[str, Engine],
    *,
    noise: Noise = "none",
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Iterator[PatternResult]:
    """Complete every image with every engine and baseline, pattern by pattern.

    Nearest and linear infill always take part. Resizes do on lattices only, and biharmonic infill, which is slow, on
    the first images and a smaller crop, where scikit-image is installed.

    Parameters
    ----------
    images : ImageSet
        What is looked at.
    patterns : sequence of mapping
        Name and parameters of each; a random one is drawn once, of a cycle the first path is taken.
    engines : mapping of str to Engine
        Those to be compared, by the names they are to have.
    noise : "none" or "counts"
        "none": exact values of whole pixels, as in the papers. "counts": single electrons counted where the beam is, by
        the simulator's microscope at 25 pA and 1 µs (about 16 in the brightest pixel).
    seed : int
        Of random patterns and of the noise.
    advance : callable
        Called after every image of every pattern.

    Raises
    ------
    ValueError
        If a pattern or an engine cannot be used here.
    """
    require_comparable(engines)
    engines = {"nearest": NearestEngine(), "linear": LinearEngine(), **engines}
    scans = [laid_out(mapping, images.crop_px, noise, seed) for mapping in patterns]
    completers = {name: Completer(engine) for name, engine in engines.items()}
    try:
        for index, scan in enumerate(scans):
            precise = scan is _precision_scan(scans)
            yield _evaluate_pattern(images, scan, completers, (seed, index), precise=precise, advance=advance)
    finally:
        for completer in completers.values():
            completer.close()


def require_comparable(engines: Mapping[str, Engine]) -> None:
    """Raise ValueError unless every engine completes pictures at the scan's own scale and has a name of its own."""
    for name, engine in engines.items():
        if engine.info.task != "complete":
            raise ValueError(f"engine '{name}' does {engine.info.task}: expected one that completes sparse pictures")
        if engine.info.scale != 1:
            raise ValueError(f"engine '{name}' enlarges {engine.info.scale} times: expected one of scale 1")
        if name in BASELINE_NAMES and type(engine) not in (NearestEngine, LinearEngine):
            raise ValueError(f"engine '{name}' has the name of a baseline: expected another, rename its file")


def _precision_scan(scans: Sequence[Scan]) -> Scan:
    """Return the scan the input's precision is tested with: the published one, else the first."""
    published = (s for s in scans if s.name == "lattice" and np.isclose(s.nominal, PRECISION_COVERAGE))
    return next(published, scans[0])


def _evaluate_pattern(
    images: ImageSet,
    scan: Scan,
    completers: Mapping[str, Completer],
    seed: tuple[int, int],
    *,
    precise: bool,
    advance: Callable[[], None],
) -> PatternResult:
    tallies = {name: Tally() for name in completers}
    baselines: dict[str, Tally] = {}
    by_bits: dict[tuple[str, Bits], Tally] = {}
    shown: list[Pictures] = []
    for completer in completers.values():
        completer.prepare(scan)
    chosen = _shown(images.files)
    for index, file in enumerate(images.files):
        truth = read_truth_again(file, images.crop_px)
        targets = _targets(truth, completers.values())
        sparse = scan.measure(truth, (*seed, index))
        completed = {name: _complete(completer, sparse, scan) for name, completer in completers.items()}
        for name, completer in completers.items():
            _add_completed(tallies[name], completed[name], completer.info.target, targets)
        _add_resizes(baselines, sparse, targets)
        if precise:
            _add_precisions(by_bits, completers, sparse, scan, targets)
        if index in chosen:
            shown.append(_pictures(file.path.name, truth, sparse, completed))
        advance()
    infos = {name: completer.info for name, completer in completers.items()}
    by_bits |= {(name, 32): tally for name, tally in tallies.items() if precise}
    return PatternResult(
        label=scan.label,
        name=scan.name,
        coverage=scan.path.coverage,
        rows=(*rows_of(images, scan, {**tallies, **baselines}, infos), *_biharmonic_rows(images, scan, seed)),
        precision=tuple(precision_row(scan, *key, tally) for key, tally in by_bits.items()),
        errors={
            name: _engine_errors(tally, scan) for name, tally in tallies.items() if tally.failures < len(images.files)
        },
        shown=tuple(shown),
    )


def _shown(files: Sequence[ImageFile]) -> list[int]:
    """Return which images are shown: of different sources first."""
    return sorted(files.index(file) for file in list(by_turns(files))[:SHOWN])


def _targets(truth: NDArray[np.float32], completers: Iterable[Completer]) -> Truths:
    wanted = dict.fromkeys([*TARGETS, *(completer.info.target for completer in completers)])
    return {target: blurred(truth, target) for target in wanted}


def _complete(completer: Completer, sparse: SparseFrame, scan: Scan) -> Completed:
    before = completer.failures
    image, deviation = completer.complete(sparse, scan)
    failed = completer.failures > before
    return Completed(image, None if failed else deviation, failed)  # the deviation is not the engine's, either


def _add_completed(tally: Tally, completed: Completed, own: Target, targets: Truths) -> None:
    tally.add(completed.image, targets)
    tally.add_maps(completed.image, targets)
    tally.failures += completed.failed
    if completed.deviation is not None:
        tally.add_uncertainty(completed.image, completed.deviation, targets[own])


def _add_resizes(tallies: dict[str, Tally], sparse: SparseFrame, targets: Truths) -> None:
    resize = lattice_resize(sparse.mask)
    if resize is None:
        return
    samples = in_range(sparse.values[0])
    for method, alignment in BASELINES:
        tally = tallies.setdefault(f"{method}_{alignment}", Tally())
        window = resize.window if alignment == "published" else EVERYWHERE
        tally.add(resize.apply(samples, method, alignment), targets, window)


def _add_precisions(
    tallies: dict[tuple[str, Bits], Tally],
    completers: Mapping[str, Completer],
    sparse: SparseFrame,
    scan: Scan,
    targets: Truths,
) -> None:
    for bits in FEWER_BITS:
        coarse = replace(sparse, values=reduced_precision(sparse.values, sparse.mask, bits))
        for name, completer in completers.items():
            completed, tally = _complete(completer, coarse, scan), tallies.setdefault((name, bits), Tally())
            tally.add(completed.image, targets)
            tally.failures += completed.failed


def _pictures(
    name: str, truth: NDArray[np.float32], sparse: SparseFrame, completed: Mapping[str, Completed]
) -> Pictures:
    sampled = np.where(sparse.mask, in_range(sparse.values[0]), np.float32(np.nan))
    images = {f"{name} failed" if done.failed else name: done.image for name, done in completed.items()}
    deviations = {name: done.deviation for name, done in completed.items() if done.deviation is not None}
    return Pictures(name, truth, sampled, images, deviations)


def _biharmonic_rows(images: ImageSet, scan: Scan, seed: tuple[int, int]) -> list[Row]:
    """Return the rows of biharmonic infill, beside linear infill of the same smaller crops."""
    if find_spec("skimage") is None:
        return []
    crop_px, files = min(images.crop_px, BIHARMONIC_CROP_PX), images.files[:BIHARMONIC_IMAGES]
    small, linear = laid_out(scan.start.pattern, crop_px, scan.noise, seed[0]), Completer(LinearEngine())
    linear.prepare(small)
    truths = [unit_range(centre_crop(read_truth_again(file, images.crop_px), (crop_px, crop_px))) for file in files]
    measured = [small.measure(truth, (*seed, index)) for index, truth in enumerate(truths)]
    filled = biharmonic(np.stack([in_range(sparse.values[0]) for sparse in measured]), small.path.mask)
    tallies = {BIHARMONIC: Tally(), "linear": Tally()}
    for truth, sparse, image in zip(truths, measured, filled, strict=True):
        targets = _targets(truth, [])
        tallies[BIHARMONIC].add(image, targets)
        tallies["linear"].add(linear.complete(sparse, small)[0], targets)
    linear.close()
    rows = rows_of(replace(images, files=files, crop_px=crop_px), small, tallies, {})
    return [row for row in rows if row.engine == BIHARMONIC]


def _engine_errors(tally: Tally, scan: Scan) -> EngineErrors:
    n = len(tally.mse["sharp"])
    mean_squared = {target: squared / n for target, squared in tally.squared.items()}
    edge = np.minimum(edge_distance(scan.path.grid.shape), EDGE_PX)
    distance = nearest_map(scan.path.mask)[1]
    reliability = np.mean(tally.shares, axis=0)[2:].tolist() if tally.shares else []
    return EngineErrors(
        rmse={target: np.sqrt(mse).tolist() for target, mse in tally.mse.items()},
        error_map=np.sqrt(mean_squared["blurred_5x5"]).astype(np.float32),
        by_edge={target: error_profile(squared, edge) for target, squared in mean_squared.items()},
        by_distance={target: error_profile(squared, distance) for target, squared in mean_squared.items()},
        reliability=tuple(reliability),
    )
