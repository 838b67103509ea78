from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.ndimage import correlate1d

from lowdose.acquisition.assembly import FrameAssembler
from lowdose.acquisition.messages import SampleBlock, ScanStart
from lowdose.reconstruction.engine import CHANNELS
from lowdose.reconstruction.engines.classical_engine import LinearEngine
from lowdose.reconstruction.infill import PathMaps, linear_map, nearest_map
from lowdose.reconstruction.lattice_infill import lattice_maps
from lowdose.reconstruction.pipeline import Reconstructor
from lowdose.scan_patterns.dose import ELECTRONS_PER_PA_US
from lowdose.scan_patterns.grid import ScanGrid
from lowdose.simulator.detector import Detector
from lowdose.simulator.drawn import Still
from lowdose.simulator.microscope import VirtualMicroscope
from lowdose.training.data_settings import DataSettings, PatternMix
from lowdose.training.data_store import Store
from lowdose.training.examples import blur_taps, blurred, counted, displaced, full_range, published_noise, scanned
from lowdose.training.masks import Mask, MaskPool, Samples
from lowdose.training.pattern_choice import make_pattern

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PICTURE = np.arange(9, dtype=np.float32).reshape(3, 3) / 8
EDGE = 64


def settings_of(**values: Any) -> DataSettings:
    return DataSettings.model_validate({"patterns": [{"pattern": {"name": "random"}}], "target": "sharp"} | values)


def mask_at(shape: tuple[int, int], *pixels: int, dwell: list[float] | None = None) -> Mask:
    """Return a mask with the given flat pixels visited, each at its centre."""
    mask = np.zeros(shape, bool)
    mask.ravel()[list(pixels)] = True
    nearest, distance = nearest_map(mask)
    maps = lattice_maps(mask) or PathMaps(nearest, distance, linear_map(mask, nearest))
    n = len(pixels)
    samples = Samples(np.argwhere(mask).astype(np.float32), np.ones(n, np.float32), np.arange(n))
    return Mask(maps, np.array(dwell or [1] * n, np.float32), samples, 0.5)


# --- blur -----------------------------------------------------------------------------------------------------------


def test_taps_are_the_published_ones() -> None:
    np.testing.assert_allclose(blur_taps(2, 2.5)[:3], [0.16892959, 0.2147516, 0.23263763], atol=5e-9)
    np.testing.assert_allclose(blur_taps(1, 1.5), [0.3078, 0.3844, 0.3078], atol=5e-5)


@pytest.mark.parametrize(("target", "taps"), [("blurred_5x5", (2, 2.5)), ("blurred_3x3", (1, 1.5))])
def test_blur_mirrors_without_repeating_the_edge(target: Any, taps: Any, rng: np.random.Generator) -> None:
    picture = rng.random((12, 17), np.float32)
    expected = picture
    for axis in (0, 1):
        expected = correlate1d(expected, blur_taps(*taps), axis, mode="mirror")
    np.testing.assert_allclose(blurred(picture, target), expected, rtol=1e-5)
    assert blurred(picture, "sharp") is picture


# --- the published recipes ------------------------------------------------------------------------------------------


def test_a_blank_picture_becomes_zero() -> None:
    assert full_range(np.full((2, 2), 0.3, np.float32)).tolist() == [[0, 0], [0, 0]]
    assert full_range(PICTURE)[1].tolist() == [-0.25, 0, 0.25]


@pytest.mark.parametrize(
    ("rule", "pixels", "inputs"),
    [
        # pixels 4 and 7 are 0 and 0.75 between -1 and 1: unvisited pixels count as -1
        ("pstem", (4, 7), [0.0, 1 / 1.75, 1.0]),
        ("pstem", tuple(range(9)), [0.0, 0.5, 0.875]),
        # they count as 0, below or above what was measured
        ("dlss", (5, 7), [0.0, 0.25 / 0.75, 1.0]),
        ("dlss", (1, 7), [0.0, 0.0, 1.0]),
        ("dlss", (0, 1), [1.0, 0.0, 0.25]),
    ],
)
def test_measured_values_become_inputs_as_published(
    rule: str, pixels: tuple[int, ...], inputs: list[float], rng: np.random.Generator
) -> None:
    mask = mask_at((3, 3), *pixels)
    example = scanned(PICTURE, mask, 0, settings_of(channels=["sparse"], normalisation=rule), rng)
    seen = example.inputs.ravel()[list(pixels)] if len(pixels) == 2 else example.inputs.ravel()[[0, 4, 7]]
    np.testing.assert_allclose(seen, inputs[-len(seen) :], atol=1e-6)
    np.testing.assert_allclose(example.truth[0], full_range(PICTURE))


def test_the_target_of_the_papers_is_the_blurred_picture_between_minus_one_and_one(rng: np.random.Generator) -> None:
    picture = rng.random((32, 32), np.float32)
    settings = settings_of(normalisation="pstem", target="blurred_5x5")
    example = scanned(picture, mask_at((32, 32), 3, 99, 700), 2, settings, rng)
    np.testing.assert_array_equal(example.target[0], blurred(full_range(picture), "blurred_5x5"))
    assert (example.truth.min(), example.truth.max()) == pytest.approx((-1, 1))
    assert (example.pattern, example.coverage) == (2, 0.5)
    assert np.flatnonzero(example.mask).tolist() == [3, 99, 700]


def test_published_noise_has_the_published_mean_and_none_where_the_signal_is_whole() -> None:
    picture = full_range(PICTURE)
    mask, rng = mask_at((3, 3), 1, 4, 8, dwell=[1.0, 0.5, 0.25]), np.random.default_rng(0)
    drawn = np.array([published_noise(picture, mask, rng) for _ in range(4000)])
    smooth = full_range(blurred(picture, "blurred_5x5")).ravel()[[1, 4, 8]]
    phi, signal = mask.dwell, picture.ravel()[[1, 4, 8]]
    np.testing.assert_allclose(drawn.mean(axis=0), phi * (phi * signal + (1 - phi) * smooth), atol=5e-3)
    assert (drawn[:, 0] == signal[0]).all()
    assert drawn[:, 2].max() <= 0.25 * (0.25 + 0.75 * 2)
    assert drawn[:, 2].std() == pytest.approx(0.25 * 0.75 * 2 / 12**0.5, rel=0.05)


def test_a_blurred_mask_gives_sparse_inputs_from_zero_to_one_and_its_shares_as_dwell(rng: np.random.Generator) -> None:
    mask = mask_at((3, 3), 1, 4, 8, dwell=[0.6, 0.5, 0.25])
    settings = settings_of(noise="published", normalisation="pstem", channels=["sparse", "dwell"])
    sparse, dwell = scanned(PICTURE, mask, 0, settings, rng).inputs
    assert (sparse.min(), sparse.max()) == (0, 1)
    assert np.count_nonzero(sparse) == 3
    np.testing.assert_array_equal(dwell.ravel()[[1, 4, 8]], mask.dwell)


def test_one_stage_inputs_are_the_lattice_itself_and_the_target_has_its_scale(rng: np.random.Generator) -> None:
    settings = settings_of(
        patterns=[{"pattern": {"name": "lattice", "coverage": "1/4"}}],
        channels=["sparse"], inputs="lattice", normalisation="min_max",
    )  # fmt: skip
    picture = np.arange(16, dtype=np.float32).reshape(4, 4) / 15
    example = scanned(picture, mask_at((4, 4), 0, 2, 8, 10), 0, settings, rng)
    np.testing.assert_allclose(example.inputs, [[[-1, -0.6], [0.6, 1]]], atol=1e-6)
    assert example.target.shape == (1, 4, 4)
    np.testing.assert_allclose(example.target.ravel(), np.linspace(-1, 2, 16), atol=1e-6)


# --- counted electrons ----------------------------------------------------------------------------------------------


def physical(low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"noise": {"counts": {"low": low, "high": high}, **more}}


def test_counts_have_the_mean_and_spread_of_poisson_around_the_truth(rng: np.random.Generator) -> None:
    share = np.full((100, 100), 0.5, np.float32)
    noise = settings_of(**physical(40, 40)).noise
    truth, measured = counted(share, mask_at((100, 100), *range(10_000)), noise, rng)  # type: ignore[arg-type]
    np.testing.assert_allclose(truth, 20, rtol=1e-5)
    assert measured.mean() == pytest.approx(20, abs=0.2)
    assert measured.var() == pytest.approx(20, rel=0.06)


def test_a_share_of_the_examples_is_measured_exactly(rng: np.random.Generator) -> None:
    noise = settings_of(noise={"counts": {"low": 50, "high": 50}, "exact": 0.25}).noise
    mask = mask_at((3, 3), *range(9))
    exact = 0
    for _ in range(400):
        truth, measured = counted(PICTURE, mask, noise, rng)  # type: ignore[arg-type]
        exact += np.allclose(measured, truth.ravel())
    assert exact == pytest.approx(100, abs=30)


@pytest.mark.parametrize(("deviation_px", "correlation"), [(0.5, 0.3), (1.0, 3.0), (2.0, 30.0)])
def test_a_jittering_probe_is_as_far_off_and_as_long_as_asked(
    deviation_px: float, correlation: float, rng: np.random.Generator
) -> None:
    away = displaced(200_000, deviation_px, correlation, rng)
    assert away.std(axis=0) == pytest.approx(deviation_px, rel=0.05)
    step = round(max(correlation, 1))
    both = (away[step:] * away[:-step]).mean(axis=0) / away.var(axis=0)
    assert both == pytest.approx(np.exp(-step / correlation), abs=0.04)
    assert (away[:, 0] * away[:, 1]).mean() == pytest.approx(0, abs=0.05 * deviation_px**2)
    first = np.array([displaced(1, deviation_px, correlation, rng)[0] for _ in range(2_000)])
    assert first.std() == pytest.approx(deviation_px, rel=0.1)  # as spread from the first sample on


def test_a_jittering_probe_measures_the_picture_beside_its_place_and_the_truth_stays(rng: np.random.Generator) -> None:
    slope = np.tile(np.linspace(0, 1, 101, dtype=np.float32), (101, 1))
    noise = settings_of(
        noise={
            "counts": {"low": 100, "high": 100},
            "exact": 1,
            "jitter": {"px": {"low": 2, "high": 2}, "samples": {"low": 1, "high": 1}},
        }
    ).noise
    pixels = [row * 101 + col for row in range(101) for col in range(20, 81)]
    truth, measured = counted(slope, mask_at((101, 101), *pixels), noise, rng)  # type: ignore[arg-type]
    np.testing.assert_allclose(truth, 100 * slope, rtol=1e-5)
    assert (measured - truth.ravel()[pixels]).std() == pytest.approx(2.0, rel=0.05)  # one count for every pixel


def test_without_a_share_nothing_jitters(rng: np.random.Generator) -> None:
    jitter = {"px": {"low": 1, "high": 1}, "samples": {"low": 1, "high": 1}, "share": 0}
    still = settings_of(noise={"counts": {"low": 50, "high": 50}, "jitter": jitter, "exact": 1}).noise
    truth, measured = counted(PICTURE, mask_at((3, 3), *range(9)), still, rng)  # type: ignore[arg-type]
    np.testing.assert_allclose(measured, truth.ravel(), rtol=1e-6)


def test_a_bright_field_is_inverted(rng: np.random.Generator) -> None:
    noise = settings_of(**physical(10, 10, kinds=["bf"])).noise
    truth, _ = counted(PICTURE, mask_at((3, 3), 0, 1), noise, rng)  # type: ignore[arg-type]
    np.testing.assert_allclose(truth, 10 * (1 - 0.8 * PICTURE), rtol=1e-5)


def test_target_and_truth_are_normalised_as_the_measured_values_are(rng: np.random.Generator) -> None:
    share = rng.random((32, 32), np.float32)
    mask = mask_at((32, 32), *range(0, 1024, 3))
    settings = settings_of(**physical(5000, 5000), channels=["sparse"], normalisation="mean_std", target="blurred_5x5")
    example = scanned(share, mask, 0, settings, rng)
    measured = example.inputs[0].ravel()[mask.visited]
    assert measured.mean() == pytest.approx(0, abs=1e-5)
    assert measured.std() == pytest.approx(1, abs=1e-5)
    assert np.corrcoef(measured, example.truth.ravel()[mask.visited])[0, 1] > 0.999
    assert np.abs(measured - example.truth.ravel()[mask.visited]).mean() < 0.05
    np.testing.assert_array_equal(example.target[0], blurred(example.truth[0], "blurred_5x5"))


# --- as the live engine sees it -------------------------------------------------------------------------------------


class Listening:
    """An engine that keeps what it was given."""

    info = replace(LinearEngine().info, channels=CHANNELS)

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        self.inputs = inputs.copy()
        return np.zeros((len(inputs), 2, *inputs.shape[2:]), np.float32)


@pytest.mark.parametrize("pattern", ["spiral", "jittered", "lattice", "lissajous"])
def test_examples_are_what_the_live_pipeline_makes_of_the_simulated_microscope(
    pattern: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    share, grid = rng.random((EDGE, EDGE), np.float32), ScanGrid((EDGE, EDGE))
    mapping = {"name": pattern, "coverage": 1 / 9}
    pool = MaskPool(PatternMix(pattern=mapping, n=1), EDGE, (1,), Store(tmp_path), linear=True, blurred=False)
    settings = settings_of(**physical(50, 500), channels=CHANNELS, normalisation="mean_std")
    example = scanned(share, pool[0], 0, settings, np.random.default_rng(3))

    (path,) = make_pattern(mapping).paths(grid, dwell_time_us=1.0, rng=np.random.default_rng([1, 0]))
    same = np.random.default_rng(3)
    same.integers(1)
    current_pa = settings.noise.counts.draw(same) / (ELECTRONS_PER_PA_US * Detector().efficiency)  # type: ignore[union-attr]
    microscope = VirtualMicroscope(Still(share), [Detector()], beam_current_pa=current_pa, rng=same)
    start = ScanStart("scan", (path,), mapping, ("HAADF",), 1.0, current_pa, 200.0, 0, None, 1, 1)
    block = SampleBlock("scan", path.digest, 0, 0, microscope.acquire(path, 0, len(path), 0.0), 0, 1, 2, 3)
    (sparse,) = FrameAssembler(start).add(block, 4)
    engine = Listening()
    reconstructor = Reconstructor([engine])
    deadline = time.monotonic() + 20
    while not reconstructor.ready(start):
        assert time.monotonic() < deadline
    reconstructor.complete(sparse, start)
    reconstructor.close()
    np.testing.assert_allclose(example.inputs, engine.inputs[0], atol=2e-5)
