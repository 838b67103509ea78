"""Checkpoints: whole or not there, and refused clearly when they cannot be gone on with."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lowdose.training.checkpoint import (
    FORMAT,
    CheckpointError,
    checkpoint_name,
    checkpoints_in,
    delete_old,
    delete_unfinished,
    latest_checkpoint,
    load_checkpoint,
    require_same_recipe,
    save_checkpoint,
    step_of,
)
from lowdose.training.settings import read_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator


def content_of(step: int = 1, **changes: Any) -> dict[str, Any]:
    settings = read_recipe("dlss_individual")
    return {
        "step": step,
        "recipe": settings.model_dump(mode="json"),
        "learner": {"weights": torch.arange(50_000.0)},
        "average": None,
        "random": {},
        "about": {"versions": {"lowdose": "9.9"}},
        "validation": [],
        **changes,
    }


@contextmanager
def files_no_larger_than(n_bytes: int) -> Iterator[None]:
    """Let the system refuse to write on, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_checkpoint_comes_back_as_it_was_saved(tmp_path):
    path = tmp_path / checkpoint_name(12)
    save_checkpoint(path, content_of(12))
    content = load_checkpoint(path)
    assert content["step"] == step_of(path) == 12
    assert torch.equal(content["learner"]["weights"], torch.arange(50_000.0))


def test_latest_goes_by_the_step_and_knows_only_whole_checkpoints(tmp_path):
    for name in (
        "step_00000009.pt",
        "step_00000010.pt",
        "step_123456789.pt",
        ".step_99999999.pt-x",
        "failed_step_00000099.pt",
    ):
        (tmp_path / name).touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_123456789.pt"
    assert [step_of(path) for path in checkpoints_in(tmp_path)] == [9, 10, 123456789]


def test_old_checkpoints_go_but_not_the_one_to_spare(tmp_path):
    for step in (1, 2, 3, 4, 5):
        (tmp_path / checkpoint_name(step)).touch()
    delete_old(tmp_path, keep=2, spare={2})
    assert [step_of(path) for path in checkpoints_in(tmp_path)] == [2, 4, 5]


def test_what_a_killed_process_left_half_written_is_deleted(tmp_path):
    for name in (f".{checkpoint_name(3)}-ab12", checkpoint_name(3)):
        (tmp_path / name).touch()
    delete_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint_name(3)]


def test_full_disk_is_told_and_leaves_the_last_good_checkpoint_and_nothing_else(tmp_path):
    good = tmp_path / checkpoint_name(1)
    save_checkpoint(good, content_of(1))
    with files_no_larger_than(100_000), pytest.raises(OSError) as told:  # noqa: PT011 looked at below
        save_checkpoint(tmp_path / checkpoint_name(2), content_of(2))
    assert "cannot write checkpoint" in str(told.value)
    assert f"the last good checkpoint is {good}" in str(told.value)
    assert list(tmp_path.iterdir()) == [good]
    assert load_checkpoint(good)["step"] == 1


def test_full_disk_does_not_harm_a_checkpoint_of_the_same_name(tmp_path):
    path = tmp_path / checkpoint_name(1)
    save_checkpoint(path, content_of(1))
    with files_no_larger_than(100_000), pytest.raises(OSError, match="Free some space and go on with --resume"):
        save_checkpoint(path, content_of(7))
    assert load_checkpoint(path)["step"] == 1


def test_missing_folder_is_told(tmp_path):
    with pytest.raises(OSError, match="there is no earlier one"):
        save_checkpoint(tmp_path / "gone" / checkpoint_name(1), content_of())


@pytest.mark.parametrize("length", [0, 10, 1000, 150_000])
def test_checkpoint_cut_short_is_refused_with_what_to_do(length, tmp_path):
    path = tmp_path / checkpoint_name(1)
    save_checkpoint(path, content_of())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError) as told:
        load_checkpoint(path)
    assert f"{path} is of another format, or cut short: expected a checkpoint" in str(told.value)
    assert "to go on from the one before, move this one out of its folder" in str(told.value)


@pytest.mark.parametrize(
    "content", [b"\x08\x08\x12\x07pytorch", b"\x80\x04K\x01.", b"text\n"], ids=["onnx", "pickle", "text"]
)
def test_no_refusal_advises_to_trust_or_to_delete_a_file(content, tmp_path):
    path = tmp_path / "engine.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as told:
        load_checkpoint(path)
    for advice in ("weights_only", "delete", "trust", "ickle"):
        assert advice not in str(told.value)
    assert str(told.value).startswith(str(path))
    assert str(told.value).endswith("choose another file")


class _NotOurs:
    pass


def test_checkpoint_with_anything_but_tensors_and_numbers_is_refused(tmp_path):
    path = tmp_path / checkpoint_name(1)
    torch.save({"format": FORMAT, "step": _NotOurs()}, path)
    with pytest.raises(CheckpointError, match="holds more than tensors and plain values: expected a checkpoint"):
        load_checkpoint(path)


def test_checkpoint_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(OSError, match=r"cannot read checkpoint .*none\.pt: No such file or directory$"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("content", [{"weights": torch.zeros(3)}, [1, 2], {"format": FORMAT, "step": 3}])
def test_file_of_someone_else_is_refused(content, tmp_path):
    path = tmp_path / checkpoint_name(1)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="lowdose train"):
        load_checkpoint(path)


def test_newer_format_is_refused_with_the_version_that_wrote_it(tmp_path):
    path = tmp_path / checkpoint_name(1)
    save_checkpoint(path, content_of())
    torch.save({**torch.load(path, weights_only=True), "format": FORMAT + 1}, path)
    with pytest.raises(
        CheckpointError, match=rf"format {FORMAT + 1}, written by lowdose 9.9; this version reads up to {FORMAT}"
    ):
        load_checkpoint(path)


def test_checkpoint_of_another_recipe_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is of recipe 'dlss_individual', this is 'dlss_unified'"):
        require_same_recipe(content_of(), read_recipe("dlss_unified"), tmp_path)


def test_other_settings_are_refused_by_their_names(tmp_path):
    other = read_recipe("dlss_individual", ["objective.lr=0.1", "data.patterns.0.n=3"])
    with pytest.raises(CheckpointError, match=r"data.patterns.0.n was 1, is 3; objective.lr was 0.0003, is 0.1"):
        require_same_recipe(content_of(), other, tmp_path)


def test_setting_that_is_new_since_a_checkpoint_had_its_default_value_then(tmp_path):
    content = content_of()
    del content["recipe"]["objective"]["initialise"]
    require_same_recipe(content, read_recipe("dlss_individual"), tmp_path)
    with pytest.raises(CheckpointError, match=r"objective.initialise was 'example', is 'unit'"):
        require_same_recipe(content, read_recipe("dlss_individual", ["objective.initialise=unit"]), tmp_path)


def test_settings_that_no_weight_depends_on_may_change(tmp_path):
    other = read_recipe("dlss_individual", ["checkpoint_every=7", "data.cache=/tmp/x", "validation_examples=0"])
    require_same_recipe(content_of(), other, tmp_path)
