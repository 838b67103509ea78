"""The commands train and export, as the command line calls them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowdose.training.checkpoint import checkpoints_in, step_of
from lowdose.training.commands import run_export, run_train
from lowdose.training.run_folder import read_metrics
from lowdose.training.settings import RecipeError
from tests.training.runs import recipe_file


def test_train_tells_scores_and_the_folder_and_export_goes_on_from_it(tmp_path, capsys):
    path = recipe_file(tmp_path, "completion")
    assert run_train(str(path), ["validate_every=2"], steps=2, out=tmp_path / "run") == 0
    told = capsys.readouterr().err
    assert "step 2: all: RMS 0." in told
    assert "of linear infill's" in told
    assert f"trained 2 steps: {tmp_path / 'run'}" in told.replace("\n", "")
    assert run_export(tmp_path / "run", tmp_path / "engine.onnx", precision="fp32") == 0
    assert (tmp_path / "engine.onnx").exists()
    assert (tmp_path / "engine.json").exists()


def test_without_a_folder_runs_go_below_runs_and_the_newest_is_resumed(tmp_path, monkeypatch):
    path = recipe_file(tmp_path, "completion")
    monkeypatch.chdir(tmp_path)
    run_train(str(path), ["validation_examples=0"], steps=2)
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("small_completion-2")
    run_train(str(path), ["validation_examples=0"], steps=2, resume=True)
    assert [step_of(found) for found in checkpoints_in(folder / "checkpoints")] == [2]
    assert len(read_metrics(folder)) == 1


def test_nothing_to_resume_is_told(tmp_path, monkeypatch):
    path = recipe_file(tmp_path, "completion")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="holds no run of 'small_completion' to resume: name its folder by --out"):
        run_train(str(path), resume=True)


def test_unknown_precision_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="precision must be one of FP32, BF16, FP16, got 'int8'"):
        run_export(tmp_path, tmp_path / "engine.onnx", precision="int8")
