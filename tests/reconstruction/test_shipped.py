"""The engines that come with the package: small, licensed, and better than linear infill on specimens of their own."""

from __future__ import annotations

import numpy as np
import pytest

from lowdose.reconstruction import complete
from lowdose.reconstruction.completion import all_maps
from lowdose.reconstruction.engine_file import read_engine_file
from lowdose.reconstruction.engines.choice import engine_named, load_engine
from lowdose.reconstruction.parity import MAX_DIFFERENCE, relative_rms
from lowdose.reconstruction.shipped import DEFAULT, shipped
from lowdose.scan_patterns import ScanGrid
from lowdose.simulator.mixed import draw
from lowdose.training.examples import blurred
from lowdose.training.pattern_choice import make_pattern

EDGE = 256
KINDS = ("lattice", "interface", "nanoparticles", "core_shell", "gold_islands", "procedural")
PATTERNS = {"lattice": "1/25", "spiral": "1/20", "jittered": "1/25"}
BRIGHTEST = 100
"""Electrons counted in one dwell time."""
INTERVAL90 = 1.6449
PERMISSIVE = ("MIT", "BSD-3-Clause", "BSD-2-Clause", "Apache-2.0", "NIST public-domain software notice (17 USC 105)")
LARGEST = {"live_default": (6.5, 3e6), "live_fast": (2.5, 3e6)}
"""GMAC at 512 x 512, parameters."""
RATIOS = {
    "live_default": {"lattice": (0.84, 0.83), "spiral": (0.85, 0.82), "jittered": (0.84, 0.82)},
    "live_fast": {"lattice": (0.88, 0.87), "spiral": (0.89, 0.85), "jittered": (0.86, 0.83)},
}
"""RMS error over that of linear infill, exact and counted, that an engine must stay below: what was found and 5 %."""


@pytest.fixture(scope="module")
def specimens():
    grid = ScanGrid((EDGE, EDGE), pixel_size_nm=0.03)
    return [draw(kind, grid, np.random.default_rng([77, i])) for i, kind in enumerate(KINDS)]


def mask_of(name):
    pattern = make_pattern({"name": name, "coverage": PATTERNS[name]})
    path, *_ = pattern.paths(ScanGrid((EDGE, EDGE)), dwell_time_us=1.0, rng=np.random.default_rng(5))
    return path.mask


def measured(specimen, noise, rng):
    return rng.poisson(BRIGHTEST * specimen).astype(np.float32) if noise else BRIGHTEST * specimen


def test_auto_is_the_default_engine_and_it_is_there():
    assert DEFAULT in shipped()
    assert engine_named("auto").info.name == DEFAULT


@pytest.mark.parametrize("name", sorted(shipped()))
def test_card_says_what_it_was_trained_on_and_what_was_measured(name):
    card = read_engine_file(shipped()[name]).card
    assert card.info.name == name
    assert (card.info.target, card.info.keeps_measured) == ("blurred_5x5", False)
    assert card.info.uncertainty_kind == "calibrated"
    assert {"lattice", "spiral", "jittered"} <= set(card.patterns)
    assert min(card.coverages) <= 1 / 144
    assert max(card.coverages) >= 1 / 9
    assert {row["licence"] for row in card.training_data} <= set(PERMISSIVE)
    assert {row["noise"] for row in card.errors} == {"none", "counts"}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_it_is_small_enough_for_two_processor_cores(name):
    path, (gmac, parameters) = shipped()[name], LARGEST[name]
    assert read_engine_file(path).card.gmac_512 <= gmac
    assert path.stat().st_size <= min(6e6, 2.1 * parameters)  # FP16: two bytes each


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("noise", [False, True], ids=["exact", "counted"])
@pytest.mark.parametrize("name", sorted(shipped()))
def test_it_is_as_much_better_than_linear_infill_as_when_it_was_shipped(name, noise, pattern, specimens):
    engine, mask, rng = engine_named(name), mask_of(pattern), np.random.default_rng(3)
    ratios, within = [], []
    for specimen in specimens:
        values, target = measured(specimen, noise, rng), BRIGHTEST * blurred(specimen, "blurred_5x5")
        image, uncertainty = complete(values, mask, engine=engine)
        linear, _ = complete(values, mask, engine="linear")
        error = np.abs(image - target)
        ratios.append(np.sqrt(np.mean(error**2) / np.mean((linear - target) ** 2)))
        within.append(np.mean(error < INTERVAL90 * uncertainty))
    assert np.mean(ratios) < RATIOS[name][pattern][noise], ratios
    assert 0.8 < np.mean(within) < 0.97, within


def test_a_blank_picture_stays_blank_and_one_pixel_is_enough():
    mask = mask_of("spiral")
    image, uncertainty = complete(np.full(mask.shape, 7.0), mask)
    assert np.ptp(image) < 0.7
    assert np.isfinite(uncertainty).all()
    one = np.zeros((64, 96), bool)
    one[10, 20] = True
    image, _ = complete(np.full(one.shape, 3.0), one)
    assert np.isfinite(image).all()


def test_a_picture_measured_denser_than_anything_it_learned_is_filled_linearly(specimens):
    for mask in (np.ones((EDGE, EDGE), bool), np.indices((EDGE, EDGE)).max(0) % 2 == 0):
        image, _ = complete(specimens[0], mask)
        np.testing.assert_array_equal(image, complete(specimens[0], mask, engine="linear")[0])


@pytest.mark.parametrize("name", sorted(shipped()))
def test_torch_makes_of_it_what_openvino_does(name, rng):
    file = read_engine_file(shipped()[name])
    inputs = rng.standard_normal((1, len(file.info.channels), 96, 160), dtype=np.float32)
    first, second = (load_engine(file, runtime=runtime, precision="FP32") for runtime in ("torch", "openvino"))
    assert relative_rms(first.run(inputs), second.run(inputs)) < MAX_DIFFERENCE["FP16"]


def test_maps_of_the_patterns_tested_are_linear():
    for maps in map(all_maps, map(mask_of, PATTERNS)):
        assert maps.linear is not None
        assert maps.linear is not maps.nearest
