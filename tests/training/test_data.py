from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
import torch

from lowdose.scan_patterns.pattern import PATTERNS
from lowdose.training.data import BLAS_THREADS, TrainingData, batches, binned_by_2, turned
from lowdose.training.data_settings import DataSettings
from lowdose.training.data_store import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CROP = 32


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def settings_of(cache: Path | None = None, **values: Any) -> DataSettings:
    defaults: dict[str, Any] = {
        "crop_px": CROP,
        "sources": [{"procedural": "single_atoms", "edge_px": 80}],
        "patterns": [
            {"pattern": {"name": "spiral", "coverage": ["1/5", "1/10"]}, "n": 4, "field_px": 64},
            {"pattern": {"name": "random", "coverage": {"low": 0.1, "high": 0.2}}, "n": 4, "weight": 3},
        ],
        "noise": {"counts": {"low": 5, "high": 500}},
        "channels": ["linear", "sparse", "mask", "distance"],
        "cache": cache,
    }
    return DataSettings.model_validate(defaults | values)


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_an_example_depends_on_its_index_and_the_seed_alone(cache: Path) -> None:
    first, second = (TrainingData(settings_of(cache, invert=0.3, bin_by_2=0.3), seed=5) for _ in range(2))
    forwards = {index: first[index] for index in range(0, 1200, 111)}
    for index in sorted(forwards, reverse=True):
        assert equal(second[index], forwards[index])
    assert not equal(TrainingData(settings_of(cache), seed=6)[0], forwards[0])
    assert not equal(first[1], forwards[0])


def test_training_and_validation_examples_differ(cache: Path) -> None:
    train, validation = (TrainingData(settings_of(cache), 1, split) for split in ("train", "validation"))  # type: ignore[arg-type]
    assert not torch.equal(train[0]["truth"], validation[0]["truth"])
    assert not torch.equal(train[0]["mask"], validation[0]["mask"])


def test_a_batch_is_a_dictionary_of_stacked_examples(cache: Path) -> None:
    data = TrainingData(settings_of(cache), 1)
    (batch,) = batches(data, batch=3, first_step=2, stop_step=3)
    assert {key: (tuple(value.shape), value.dtype) for key, value in batch.items()} == {
        "inputs": ((3, 4, CROP, CROP), torch.float32),
        "target": ((3, 1, CROP, CROP), torch.float32),
        "truth": ((3, 1, CROP, CROP), torch.float32),
        "mask": ((3, 1, CROP, CROP), torch.bool),
        "coverage": ((3,), torch.float32),
        "pattern": ((3,), torch.int64),
    }
    assert equal({key: value[1] for key, value in batch.items()}, data[7])


def test_resuming_at_a_step_gives_exactly_the_batches_that_follow(cache: Path) -> None:
    whole = list(islice(batches(TrainingData(settings_of(cache), 1), batch=2), 6))
    resumed = list(islice(batches(TrainingData(settings_of(cache), 1), batch=2, first_step=4), 2))
    assert all(equal(a, b) for a, b in zip(whole[4:], resumed, strict=True))


def test_making_batches_leaves_the_global_random_numbers_alone(cache: Path) -> None:
    before = torch.get_rng_state()
    list(batches(TrainingData(settings_of(cache), 1), batch=2, stop_step=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_worker_processes_make_the_same_batches() -> None:
    with TrainingData(settings_of(None), 1) as data:
        alone = list(batches(data, batch=2, stop_step=4))
        shared = list(batches(data, batch=2, stop_step=4, workers=1))
    assert all(equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert BLAS_THREADS not in os.environ


def test_patterns_come_by_weight_with_all_their_coverages(cache: Path) -> None:
    data = TrainingData(settings_of(cache), 1)
    drawn = np.array([data.example(index).pattern for index in range(200)])
    assert (drawn == 1).mean() == pytest.approx(0.75, abs=0.1)
    assert data.pattern_names == ("spiral", "random")
    assert {1 / 5, 1 / 10} < set(data.coverages)
    assert len(data.coverages) == 6


@pytest.mark.parametrize("name", sorted(set(PATTERNS) - {"points"}))
def test_every_pattern_can_be_learned_from(name: str) -> None:
    with TrainingData(settings_of(None, crop_px=64, patterns=[{"pattern": {"name": name}, "n": 2}]), 1) as data:
        example = data.example(0)
    assert np.isfinite(example.inputs).all()
    assert example.mask.any()


# --- images ---------------------------------------------------------------------------------------------------------


RAMP = np.linspace(0, 1, 60, dtype=np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sources, one that changes along the rows and one along the columns."""
    for source, image in (("down", np.tile(RAMP[:, None], 60)), ("across", np.tile(RAMP, (60, 1)))):
        (tmp_path / source).mkdir()
        tifffile.imwrite(tmp_path / source / "image.tif", image)
    return tmp_path


def of_images(folder: Path, **values: Any) -> DataSettings:
    source = {"images": str(folder), "validation_sources": ["across"]}
    return settings_of(folder / "cache", **({"sources": [source], "noise": "none", "invert": 0.0} | values))


@pytest.mark.parametrize(("split", "axis", "source"), [("train", 0, "down"), ("validation", 1, "across")])
def test_training_and_validation_see_different_sources(split: Any, axis: int, source: str, folder: Path) -> None:
    data = TrainingData(of_images(folder, symmetries=False), 1, split)
    assert [row["source"] for row in data.provenance] == [source]
    for index in range(30):
        steps = np.diff(data.example(index).truth[0], axis=axis)
        assert (steps > 0).all()


def test_nothing_left_to_validate_on_is_an_error(folder: Path) -> None:
    source = {"images": str(folder), "validation_sources": []}
    with pytest.raises(DataError, match="no image is left for validation"):
        TrainingData(of_images(folder, sources=[source]), 1, "validation")


def test_a_folder_with_nothing_for_validation_leaves_it_to_the_specimens(folder: Path) -> None:
    sources = [{"images": str(folder), "validation_sources": []}, {"procedural": "single_atoms"}]
    data = TrainingData(of_images(folder, sources=sources), 1, "validation")
    assert [row["source"] for row in data.provenance] == ["lowdose simulator, single_atoms"]


@pytest.mark.parametrize("option", ["bin_by_2", "decimate_by_2"])
def test_crops_twice_as_large_are_halved_where_the_image_is_large_enough(
    option: str, cache: Path, rng: np.random.Generator
) -> None:
    image = rng.random((64, 64), np.float32)
    data = TrainingData(settings_of(cache, symmetries=False, **{option: 1.0}), 1)
    expected = binned_by_2(image) if option == "bin_by_2" else image[::2, ::2]
    np.testing.assert_array_equal(data._crop(image, rng), expected)
    np.testing.assert_array_equal(data._crop(image[:CROP, :CROP], rng), image[:CROP, :CROP])


def test_two_by_two_pixels_are_averaged() -> None:
    assert binned_by_2(np.float32([[1, 2, 5, 5], [3, 4, 5, 9]])).tolist() == [[2.5, 6.0]]


def test_the_eight_symmetries_are_all_different() -> None:
    picture = np.arange(4, dtype=np.float32).reshape(2, 2)
    assert len({turned(picture, symmetry).tobytes() for symmetry in range(8)}) == 8


def test_contrast_is_inverted_as_often_as_asked(cache: Path, rng: np.random.Generator) -> None:
    data = TrainingData(settings_of(cache, invert=0.25, symmetries=False), 1)
    dark = np.zeros((CROP, CROP), np.float32)
    assert np.mean([data._crop(dark, rng).max() for _ in range(400)]) == pytest.approx(0.25, abs=0.06)


def test_real_micrographs_can_be_learned_from(micrographs: Path) -> None:
    where = {"licence": ["MIT", "Apache-2.0", "BSD-3-Clause"], "real_or_simulated": "real"}
    source = {"images": str(micrographs), "where": where, "balance": "source"}
    with TrainingData(settings_of(None, sources=[source]), 1) as data:
        batch = next(iter(batches(data, batch=4)))
        assert {row["licence"] for row in data.provenance} <= set(where["licence"])
    assert torch.isfinite(batch["inputs"]).all()
