from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lowdose.reconstruction import complete, engine_named
from lowdose.reconstruction.engines import choice
from lowdose.reconstruction.engines.classical_engine import LinearEngine
from lowdose.reconstruction.shipped import DEFAULT
from lowdose.scan_patterns import ScanGrid
from lowdose.scan_patterns.spiral import Spiral
from tests.reconstruction.engine_files import write_smoothing


@pytest.fixture
def mask():
    (path,) = Spiral(1 / 10).paths(ScanGrid((96, 128)), dwell_time_us=1.0, rng=np.random.default_rng(0))
    return path.mask


def plane(shape):
    return np.add.outer(3.0 * np.arange(shape[0]), 2.0 * np.arange(shape[1])) - 7


def test_a_plane_is_completed_as_a_plane_where_it_is_surrounded_by_what_was_measured(mask):
    truth = plane(mask.shape)
    image, uncertainty = complete(truth, mask, engine="linear")
    assert image.shape == uncertainty.shape == mask.shape
    assert image.dtype == uncertainty.dtype == np.float32
    inner = np.s_[20:76, 20:108]
    np.testing.assert_allclose(image[inner], truth[inner], atol=0.01)
    np.testing.assert_allclose(image[mask], truth[mask], atol=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64])
def test_values_may_be_of_any_kind_of_number(mask, dtype, rng):
    values = rng.integers(0, 200, mask.shape).astype(dtype)
    image, _ = complete(values, mask.astype(np.uint8), engine=LinearEngine())
    np.testing.assert_allclose(image[mask], values[mask].astype(float), atol=1e-3)


def test_what_was_not_measured_is_not_looked_at(mask):
    values = plane(mask.shape)
    for unmeasured in (np.nan, np.inf, 1e300):
        spoiled = np.where(mask, values, unmeasured)
        np.testing.assert_array_equal(complete(values, mask)[0], complete(spoiled, mask)[0])


def test_the_unit_of_the_values_makes_no_difference(mask):
    values = plane(mask.shape)
    image, uncertainty = complete(values, mask, engine="linear")
    scaled, scaled_uncertainty = complete(1e-12 * values, mask, engine="linear")
    np.testing.assert_allclose(1e12 * scaled, image, rtol=1e-3, atol=0.05)
    np.testing.assert_allclose(1e12 * scaled_uncertainty, uncertainty, rtol=1e-3)


@pytest.mark.parametrize("n_measured", [1, 50])
@pytest.mark.parametrize("engine", ["auto", "linear"])
def test_the_uncertainty_of_equal_values_has_their_unit_too(engine, n_measured):
    mask = np.zeros((64, 64), bool)
    mask.reshape(-1)[10 : 10 + n_measured] = True
    for unit in (5e-12, 1.0, 1e6):
        image, uncertainty = complete(np.full(mask.shape, unit), mask, engine=engine)
        np.testing.assert_allclose(image[mask], unit, rtol=0.5)
        assert 0 < uncertainty.max() < 2 * unit


@pytest.mark.parametrize("kind", [str, Path])
def test_an_engine_file_is_named_by_its_path(tmp_path, mask, kind):
    file = write_smoothing(tmp_path)
    image, uncertainty = complete(plane(mask.shape), mask, engine=kind(file.path))
    assert np.isfinite(image).all()
    assert not uncertainty.any()


def test_a_named_engine_says_what_it_estimates_and_is_made_once():
    assert engine_named("auto").info.target == "blurred_5x5"
    assert engine_named("auto") is engine_named(DEFAULT)
    assert engine_named("linear").info.keeps_measured


def test_without_its_file_the_default_engine_is_said_to_be_missing(mask, monkeypatch):
    monkeypatch.setattr(choice, "shipped", dict)
    with pytest.raises(ValueError, match=r"live_default\.onnx is missing from this installation"):
        complete(plane(mask.shape), mask)


@pytest.mark.parametrize(
    ("values", "mask", "said"),
    [
        (np.zeros((16, 16)), np.zeros((16, 17), bool), r"one shape, got \(16, 16\) and \(16, 17\)"),
        (np.zeros((2, 16, 16)), np.ones((2, 16, 16), bool), "one shape"),
        (np.zeros((16, 16)), np.zeros((16, 16), bool), "nothing is measured"),
        (np.full((16, 16), np.inf), np.ones((16, 16), bool), "must be finite"),
        (np.zeros((16, 16), complex), np.ones((16, 16), bool), "real numbers, got complex"),
        (np.zeros((4, 16)), np.ones((4, 16), bool), r"8 pixels along each edge .* got \(4, 16\)"),
        (np.full((16, 16), 1e300), np.ones((16, 16), bool), r"must be at most 1e[+]30, got 1e[+]300"),
        (np.zeros((16, 16)), np.full((16, 16), np.nan), "mask must be of bool .* got float64"),
        (np.zeros((16, 16)), np.full((16, 16), "yes"), "mask must be of bool .* got <U3"),
    ],
)
def test_what_cannot_be_completed_is_refused(values, mask, said):
    with pytest.raises(ValueError, match=said):
        complete(values, mask)


def test_an_unknown_engine_is_refused_with_the_nearest(mask):
    with pytest.raises(ValueError, match="unknown engine 'liner': did you mean 'linear'"):
        complete(plane(mask.shape), mask, engine="liner")


def test_an_engine_that_fails_is_no_silent_replacement(mask):
    class Failing(LinearEngine):
        def run(self, inputs):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="engine 'linear' failed: RuntimeError: out of memory"):
        complete(plane(mask.shape), mask, engine=Failing())


def test_what_is_no_engine_is_refused(mask):
    with pytest.raises(ValueError, match="engine must be the name of one, or have info and run, got NoneType"):
        complete(plane(mask.shape), mask, engine=None)
