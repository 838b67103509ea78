from __future__ import annotations

import csv
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile

from lowdose.training.data_settings import ImageSource, ProceduralSource
from lowdose.training.data_store import DataError, Store
from lowdose.training.sources import LANES, ImageFolder, Specimens, list_images, split_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowdose.training.sources import Split

COLUMNS = ("file", "repo", "licence", "noise_over_range")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "cache")
    yield store
    store.close()


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Three sources of two images of 64 px each, a small one and one that is no image."""
    folder = tmp_path / "images"
    for source in "abc":
        (folder / source).mkdir(parents=True)
        for i in (1, 2):
            tifffile.imwrite(folder / source / f"{i}.tif", rng.random((64, 70), np.float32))
    tifffile.imwrite(folder / "small.tif", np.eye(40, dtype=np.float32))
    (folder / "broken.tif").write_bytes(b"II*\0 nothing")
    return folder


def write_manifest(folder: Path, rows: list[tuple[str, ...]]) -> None:
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def open_folder(folder: Path, store: Store, split: Split = "train", min_edge_px: int = 48, **more: Any) -> ImageFolder:
    settings = ImageSource(images=str(folder), **({"validation_sources": ("b",)} | more))
    return ImageFolder(settings, split, store, min_edge_px=min_edge_px, levels=False)


def test_unusable_images_are_left_out_and_counted(folder: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    images = open_folder(folder, store)
    assert len(images) == 4
    assert images.skipped == {"smaller": 1, "unreadable": 1}
    assert "1 images smaller than 48 px, 1 files unreadable" in caplog.text


def test_nothing_left_is_an_error_that_names_the_folder(folder: Path, store: Store) -> None:
    with pytest.raises(DataError, match=r"images is left to train on: 5 are smaller than 65 px"):
        open_folder(folder, store, min_edge_px=65)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, store: Store) -> None:
    with pytest.raises(DataError, match="is no folder"):
        open_folder(tmp_path / "nothing", store)


def test_a_validation_source_that_is_not_there_is_an_error_and_not_trained_on(folder: Path, store: Store) -> None:
    with pytest.raises(DataError, match=r"no image .* is of the validation source 'bb': did you mean 'b'\?"):
        open_folder(folder, store, validation_sources=("b", "bb"))


def test_variables_in_the_path_are_expanded(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_IMAGES", str(folder.parent))
    settings = ImageSource(images="$SOME_IMAGES/images", validation_sources=())
    assert len(ImageFolder(settings, "train", store, min_edge_px=48, levels=False)) == 6


def test_without_a_manifest_a_source_is_a_folder_of_the_top_level(folder: Path) -> None:
    found = list_images(folder, ImageSource(images=str(folder)))
    assert {file.source for file in found} == {"a", "b", "c", "small.tif", "broken.tif"}


def test_training_and_validation_share_no_source(folder: Path, store: Store) -> None:
    train, validation = (open_folder(folder, store, split) for split in ("train", "validation"))
    assert [row["source"] for row in train.provenance] == ["a", "c"]
    assert validation.provenance == [{"source": "b", "licence": "unknown", "images": "2"}]


def test_the_hash_keeps_a_source_in_its_split_whatever_else_there_is() -> None:
    settings = ImageSource(images="x", validation_share=0.2)
    splits = {name: split_of(name, settings) for name in map(str, range(1000))}
    assert 150 < list(splits.values()).count("validation") < 250
    assert [name for name, split in splits.items() if split == "validation"][:2] == ["2", "6"]


def test_rows_of_the_manifest_are_chosen_by_any_column(folder: Path, store: Store) -> None:
    write_manifest(
        folder,
        [("a/1.tif", "x", "MIT", "0.01"), ("a/2.tif", "x", "GPL", "0.01"), ("b/1.tif", "y", "BSD", "0.2"),
         ("b/2.tif", "y", "BSD", ""), ("c/1.tif", "z", "BSD", "0.02")],
    )  # fmt: skip
    where = {"licence": ["MIT", "BSD"], "noise_over_range": {"at_most": 0.1}}
    images = open_folder(folder, store, where=where, validation_sources=("z",))
    assert images.provenance == [{"source": "x", "licence": "MIT", "images": "1"}]


def test_a_column_that_is_not_there_gets_the_nearest_name(folder: Path, store: Store) -> None:
    write_manifest(folder, [("a/1.tif", "x", "MIT", "0")])
    with pytest.raises(DataError, match="no column 'license': did you mean 'licence'"):
        open_folder(folder, store, where={"license": "MIT"})


def test_choosing_rows_needs_a_manifest(folder: Path, store: Store) -> None:
    with pytest.raises(DataError, match=r"has no manifest\.csv"):
        open_folder(folder, store, where={"licence": "MIT"})


def test_every_page_of_a_stack_is_an_image(tmp_path: Path, store: Store, rng: np.random.Generator) -> None:
    stack = rng.random((3, 50, 50), np.float32)
    np.save(tmp_path / "stack.npy", stack)
    images = open_folder(tmp_path, store, validation_sources=())
    assert len(images) == 3
    seen = {images.picture(0, rng)[0, 0].item() for _ in range(50)}
    assert len(seen) == 3


def test_images_are_decoded_once(folder: Path, store: Store, rng: np.random.Generator, tmp_path: Path) -> None:
    before = open_folder(folder, store).picture(0, np.random.default_rng(1)).copy()
    entries = set((tmp_path / "cache").iterdir())
    again = open_folder(folder, Store(tmp_path / "cache")).picture(0, np.random.default_rng(1))
    np.testing.assert_array_equal(again, before)
    assert set((tmp_path / "cache").iterdir()) == entries
    assert before.min() == 0
    assert before.max() == 1


def test_sources_can_be_drawn_evenly(tmp_path: Path, store: Store, rng: np.random.Generator) -> None:
    for name, value in [("few/0", 0.0), *((f"many/{i}", 1.0) for i in range(9))]:
        file = tmp_path / "images" / f"{name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.pad([[1 - value, value]], ((0, 49), (0, 48)), constant_values=0.5))
    for balance, few in (("source", 0.5), ("image", 0.1)):
        images = open_folder(tmp_path / "images", store, balance=balance, validation_sources=())
        drawn = [images.picture(0, rng)[0, 0] == 1 for _ in range(500)]
        assert np.mean(drawn) == pytest.approx(few, abs=0.07)


def specimens(entropy: tuple[int, ...] = (1, 2), *, reuse: int = 4, share: float = 1.0) -> Specimens:
    return Specimens(ProceduralSource(procedural="single_atoms", reuse=reuse), entropy, edge_px=40, share=share)


def test_specimens_depend_on_the_index_alone(rng: np.random.Generator) -> None:
    forwards, backwards = specimens(), specimens()
    seen = {index: forwards.picture(index, rng) for index in range(0, 300, 7)}
    for index in sorted(seen, reverse=True):
        np.testing.assert_array_equal(backwards.picture(index, rng), seen[index])


def test_neighbouring_examples_see_different_specimens(rng: np.random.Generator) -> None:
    source = specimens()
    assert len({source.picture(index, rng).tobytes() for index in range(LANES)}) == LANES


@pytest.mark.parametrize(("reuse", "share"), [(4, 1.0), (2, 0.5)])
def test_a_specimen_serves_as_many_examples_as_asked(reuse: int, share: float, rng: np.random.Generator) -> None:
    source = specimens(reuse=reuse, share=share)
    n = 40 * LANES
    drawn = {source.picture(index, rng).tobytes() for index in range(n)}
    assert len(drawn) == pytest.approx(n * share / reuse, rel=0.1)
