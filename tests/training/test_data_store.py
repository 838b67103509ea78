from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lowdose.training import data_store
from lowdose.training.data_store import DataError, Store, StoreError, entry_name
from tests.training.test_checkpoint import files_no_larger_than

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

KEY = entry_name("image", 1)


def two() -> Iterator[tuple[str, NDArray[Any]]]:
    yield "a", np.arange(3)
    yield "b", np.eye(2, dtype=np.float32)


def refuse() -> Iterator[tuple[str, NDArray[Any]]]:
    raise AssertionError("made again")
    yield


def test_arrays_are_made_once_and_found_by_the_next_run(tmp_path: Path) -> None:
    Store(tmp_path).get(KEY, two)
    arrays = Store(tmp_path).get(KEY, refuse)
    assert arrays["a"].tolist() == [0, 1, 2]
    assert arrays["b"].dtype == np.float32
    assert not arrays["a"].flags.writeable


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    Store(tmp_path).get(KEY, two)
    file = next(tmp_path.rglob("a.npy"))
    file.write_bytes(file.read_bytes()[:-5])
    assert Store(tmp_path).get(KEY, two)["a"].tolist() == [0, 1, 2]


def test_nothing_is_kept_of_what_failed(tmp_path: Path) -> None:
    def fails() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "a", np.arange(3)
        raise OverflowError

    with pytest.raises(OverflowError):
        Store(tmp_path).get(KEY, fails)
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_goes_with_close() -> None:
    store = Store()
    store.get(KEY, two)
    folder = store._folder
    assert folder.is_dir()
    store.close()
    store.close()
    assert not folder.exists()


def test_a_temporary_folder_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_store, "MAX_TEMPORARY_BYTES", 30)
    store = Store()
    with pytest.raises(DataError, match="set cache: FOLDER"):
        store.get(KEY, two)
    store.close()


def test_a_copy_in_another_process_does_not_own_the_folder() -> None:
    store = Store()
    store.get(KEY, two)
    state = store.__getstate__()
    copy = Store.__new__(Store)
    copy.__dict__.update(state)
    assert copy.get(KEY, refuse)["a"].tolist() == [0, 1, 2]
    copy.close()
    assert store._folder.is_dir()
    store.close()


def test_a_full_disk_is_told_with_the_folder_and_what_to_do(tmp_path: Path) -> None:
    def large() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "a", np.zeros(100_000, np.uint8)

    with files_no_larger_than(50_000), pytest.raises(StoreError) as told:
        Store(tmp_path).get(KEY, large)
    assert f"into {tmp_path}: no room left. Free some space there, or set data.cache" in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def unreadable() -> Iterator[tuple[str, NDArray[Any]]]:
        raise PermissionError("image.tif")
        yield

    with pytest.raises(PermissionError, match=r"image\.tif"):
        Store(tmp_path).get(KEY, unreadable)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_gone_meanwhile_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    with pytest.raises(StoreError, match="cache: No such file or directory"):
        store.get(KEY, two)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/cache cannot be made"):
        Store(tmp_path / "file" / "cache")
