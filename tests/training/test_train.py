"""Training runs: they go on exactly where they stopped, however they stopped, and leave behind what they should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lowdose.training import recorder
from lowdose.training.checkpoint import (
    checkpoint_name,
    checkpoints_in,
    latest_checkpoint,
    load_checkpoint,
)
from lowdose.training.ranks import Ranks
from lowdose.training.run_folder import RunFolder, read_metrics
from lowdose.training.settings import RecipeError, read_recipe
from lowdose.training.train import TrainingError, train
from tests.training.runs import differences, recipe, recipe_file
from tests.training.test_checkpoint import files_no_larger_than

if TYPE_CHECKING:
    from pathlib import Path

RUN = "import sys; from pathlib import Path; from lowdose.training.commands import run_train;"


def last_state(folder: Path) -> dict[str, Any]:
    """Return the newest checkpoint of a run, but for what may differ from run to run."""
    path = latest_checkpoint(folder / "checkpoints")
    assert path is not None
    content = load_checkpoint(path)
    content["about"].pop("trained_s")
    return content


def begun(recipe_path: Path, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start a run in a process of its own."""
    code = f"{RUN} sys.exit(run_train({str(recipe_path)!r}, {list(more)!r}, out=Path({str(folder)!r})))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[bytes], deadline_s: float = 90) -> None:
    end = time.monotonic() + deadline_s
    while latest_checkpoint(folder / "checkpoints") is None:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < end, "no checkpoint was written"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "stop"),
    [("completion", 3), ("two_stage", 2), ("two_stage", 3), ("two_stage", 4)],
    ids=lambda value: str(value),
)
def test_a_run_in_two_parts_is_bit_by_bit_the_run_in_one(name, stop, tmp_path):
    settings = recipe(tmp_path, name)
    train(settings, tmp_path / "one")
    train(settings, tmp_path / "two", until=stop)
    outcome = train(settings, tmp_path / "two", resume=True)
    assert outcome.step == 6
    assert differences(last_state(tmp_path / "one"), last_state(tmp_path / "two")) == []


def test_training_changes_every_weight_and_the_average_lags_behind(tmp_path):
    settings = recipe(tmp_path, "two_stage", "objective.adversarial=null")
    train(settings, tmp_path / "run")
    first, last = (load_checkpoint(path) for path in checkpoints_in(tmp_path / "run" / "checkpoints")[::2])
    changed = differences(first["learner"]["networks"], last["learner"]["networks"])
    assert len(changed) == len(first["learner"]["networks"])
    assert differences({**last["average"]["weights"]}, {
        name.removeprefix("generator."): weight
        for name, weight in last["learner"]["networks"].items()
        if name.startswith("generator.")
    })  # fmt: skip


def test_another_seed_gives_other_weights_and_the_same_seed_the_same(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(recipe(tmp_path, "completion", f"seed={seed}", "validation_examples=0"), tmp_path / folder, until=2)
    states = [last_state(tmp_path / folder)["learner"] for folder in "abc"]
    assert differences(states[0], states[1]) == []
    assert differences(states[0]["network"], states[2]["network"]) != []


def test_accumulated_parts_give_the_weights_of_the_whole_batch(tmp_path):
    whole, parts = (recipe(tmp_path, "completion", f"accumulate={n}", "validation_examples=0") for n in (1, 4))
    train(whole, tmp_path / "whole", until=1)
    train(parts, tmp_path / "parts", until=1)
    first, second = (last_state(tmp_path / folder)["learner"]["network"] for folder in ("whole", "parts"))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-5)


def test_run_folder_tells_what_was_done_and_how_it_went(tmp_path):
    settings = recipe(tmp_path, "completion")
    outcome = train(settings, tmp_path / "run")
    assert read_recipe(str(tmp_path / "run" / "settings.yaml")) == settings
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["seed"] == 0
    assert about["versions"]["torch"] == torch.__version__
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "losses" in row] == [2, 4, 6]
    assert all(
        {"relative_mse", "nll"} == row["losses"].keys() and row["steps_per_s"] > 0 for row in rows if "losses" in row
    )
    validated = [row for row in rows if "validation" in row]
    assert [row["step"] for row in validated] == [4, 6]
    assert validated[-1]["validation"][0]["pattern"] == "all"
    assert validated[-1]["validation"] == [score.row() for score in outcome.scores]
    assert (tmp_path / "run" / "validation.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))
    assert [path.name for path in checkpoints_in(tmp_path / "run" / "checkpoints")] == [
        checkpoint_name(step) for step in (2, 4, 6)
    ]


def test_checkpoint_before_the_adversarial_half_is_kept(tmp_path):
    settings = recipe(tmp_path, "two_stage", "checkpoint_every=1", "keep_checkpoints=1", "validation_examples=0")
    train(settings, tmp_path / "run")
    kept = checkpoints_in(tmp_path / "run" / "checkpoints")
    assert [path.name for path in kept] == [checkpoint_name(3), checkpoint_name(6)]


def test_metrics_of_steps_done_again_stand_there_once(tmp_path):
    settings = recipe(tmp_path, "completion", "log_every=1", "validation_examples=0")
    train(settings, tmp_path / "run", until=3)
    (tmp_path / "run" / "checkpoints" / checkpoint_name(3)).unlink()  # as if killed before it was written
    with (tmp_path / "run" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 4, "los')
    train(settings, tmp_path / "run", resume=True)
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_resumed_changes_nothing(tmp_path):
    settings = recipe(tmp_path, "completion")
    train(settings, tmp_path / "run")
    before, rows = last_state(tmp_path / "run"), read_metrics(tmp_path / "run")
    for _ in range(2):
        assert train(settings, tmp_path / "run", resume=True).step == 6
    assert differences(before, last_state(tmp_path / "run")) == []
    assert read_metrics(tmp_path / "run") == rows


def test_last_checkpoint_holds_the_scores_of_the_last_step(tmp_path):
    outcome = train(recipe(tmp_path, "completion", "validate_every=4", "checkpoint_every=2"), tmp_path / "run")
    assert last_state(tmp_path / "run")["validation"] == [score.row() for score in outcome.scores]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_signal_during_a_run_saves_what_is_done(number, tmp_path, monkeypatch):
    settings = recipe(tmp_path, "completion")
    note = recorder.FirstRecorder.note
    noted = []

    def note_and_interrupt(self: Any, losses: Any) -> None:
        note(self, losses)
        noted.append(1)
        if len(noted) == 3:
            signal.raise_signal(number)

    monkeypatch.setattr(recorder.FirstRecorder, "note", note_and_interrupt)
    handler = signal.getsignal(number)
    outcome = train(settings, tmp_path / "run")
    assert (outcome.step, outcome.stopped_by) == (3, number)
    assert last_state(tmp_path / "run")["step"] == 3
    assert signal.getsignal(number) is handler


def test_signalled_process_saves_and_ends_with_the_signals_code(tmp_path):
    number = signal.SIGTERM
    process = begun(recipe_file(tmp_path, "completion"), tmp_path / "run", "steps=100000", "checkpoint_every=3")
    wait_for_checkpoint(tmp_path / "run", process)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    step = last_state(tmp_path / "run")["step"]
    assert f"stopped by {number.name} after step {step}: go on with --resume" in " ".join(told.decode().split())


@pytest.mark.slow
def test_a_group_of_processes_told_to_stop_saves_and_ends_quietly(tmp_path):
    path = recipe_file(tmp_path, "completion")
    code = tmp_path / "run.py"
    run = f"run_train({str(path)!r}, ['steps=100000'], out=Path({str(tmp_path / 'run')!r}), workers=1)"
    code.write_text(f"{RUN}\nif __name__ == '__main__':\n    sys.exit({run})")
    process = subprocess.Popen([sys.executable, str(code)], stderr=subprocess.PIPE, start_new_session=True)
    wait_for_checkpoint(tmp_path / "run", process)
    os.killpg(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Error" not in told.decode()
    assert f"stopped by SIGTERM after step {last_state(tmp_path / 'run')['step']}" in " ".join(told.decode().split())


def test_killed_process_goes_on_from_its_last_checkpoint_to_the_same_weights(tmp_path):
    path = recipe_file(tmp_path, "completion")
    changes = ["steps=40", "checkpoint_every=3", "validation_examples=0", "log_every=1"]
    process = begun(path, tmp_path / "killed", *changes)
    wait_for_checkpoint(tmp_path / "killed", process)
    process.kill()
    process.communicate()
    settings = read_recipe(str(path), changes)
    train(settings, tmp_path / "killed", resume=True)
    train(settings, tmp_path / "whole")
    assert differences(last_state(tmp_path / "whole"), last_state(tmp_path / "killed")) == []
    assert not list((tmp_path / "killed" / "checkpoints").glob(".step*"))


@pytest.mark.parametrize(
    ("name", "rate"),
    [("completion", "objective.learning_rate.lr"), ("two_stage", "objective.lr")],
    ids=["completion", "two_stage"],
)
def test_loss_that_is_no_number_ends_the_run_and_says_where(name, rate, tmp_path):
    settings = recipe(tmp_path, name, f"{rate}=1e30", "checkpoint_every=1", "validate_every=100")
    with pytest.raises(TrainingError) as told:
        train(settings, tmp_path / "run")
    assert "at step 1 the loss" in str(told.value)
    assert "of example 1 of" in str(told.value)
    failed = tmp_path / "run" / "checkpoints" / f"failed_{checkpoint_name(1)}"
    assert f"are in {failed}, the last checkpoint before is {checkpoint_name(1)}" in str(told.value)
    assert load_checkpoint(failed)["step"] == 1
    assert last_state(tmp_path / "run")["step"] == 1


def test_full_disk_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    settings = recipe(tmp_path, "completion", "validation_examples=0")
    train(settings, tmp_path / "run", until=2)
    size = (tmp_path / "run" / "checkpoints" / checkpoint_name(2)).stat().st_size
    with (
        files_no_larger_than(size // 2),
        pytest.raises(OSError, match=f"last good checkpoint is .*{checkpoint_name(2)}"),
    ):
        train(settings, tmp_path / "run", resume=True)
    assert last_state(tmp_path / "run")["step"] == 2
    assert train(settings, tmp_path / "run", resume=True).step == 6


def test_disk_too_full_for_metrics_is_told_with_what_to_do(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0, "more": "' + 10_000 * "." + '"}\n')
    with (
        RunFolder(tmp_path / "run", recipe(tmp_path, "completion")) as folder,
        files_no_larger_than(10_030),
        pytest.raises(OSError, match=r"cannot write below .* at step 2: .* --resume"),
    ):
        folder.write_losses(2, {"pixel": 1.0}, {})
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("batch=2", "batch was 4, is 2"),
        ("seed=3", "seed was 0, is 3"),
        ("steps=3", "steps was 6, is 3"),
        ("name=other", "is of recipe 'small_completion', this is 'other'"),
    ],
)
def test_checkpoint_of_other_settings_is_wrong_input(change, message, tmp_path):
    train(recipe(tmp_path, "completion", "validation_examples=0"), tmp_path / "run", until=1)
    with pytest.raises(ValueError, match=message):
        train(recipe(tmp_path, "completion", "validation_examples=0", change), tmp_path / "run", resume=True)


def test_run_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match=r"run folder .*file/run cannot be made \(Not a directory\): choose another"):
        train(recipe(tmp_path, "completion"), tmp_path / "file" / "run")


def test_disk_too_full_for_the_run_folder_is_told(tmp_path):
    settings = recipe(tmp_path, "completion")
    with files_no_larger_than(100), pytest.raises(OSError, match=r"cannot write below .*run at step 0: File too large"):
        RunFolder(tmp_path / "run", settings)


def test_new_run_does_not_land_in_a_folder_that_holds_something(tmp_path):
    with pytest.raises(RecipeError, match="go on with it by --resume, or choose another --out"):
        train(recipe(tmp_path, "completion"), tmp_path)


def test_only_a_run_can_be_resumed(tmp_path):
    with pytest.raises(RecipeError, match="holds no run to resume"):
        train(recipe(tmp_path, "completion"), tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


def test_run_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    settings = recipe(tmp_path, "completion", "validation_examples=0")
    train(settings, tmp_path / "run", until=1)
    (tmp_path / "run" / "checkpoints" / checkpoint_name(1)).unlink()
    assert train(settings, tmp_path / "run", resume=True, until=1).step == 1


def test_options_that_a_network_does_not_take_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"network compact cannot be built with .*width"):
        train(recipe(tmp_path, "completion", "network.options={width: 3}"), tmp_path / "run")


def test_a_gpu_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="torch finds no GPU: use device: auto or cpu"):
        train(recipe(tmp_path, "completion", "device=cuda"), tmp_path / "run")


def test_shares_of_all_ranks_are_the_batches_of_one():
    numbers = {index: {"index": torch.tensor(index)} for index in range(100)}
    shares = [Ranks(rank, 2).share_of(numbers, 6) for rank in (0, 1)]  # type: ignore[arg-type]
    seen = [[int(share[i]["index"]) for i in range(6)] for share in shares]
    assert seen == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    path = recipe_file(tmp_path, "completion")
    changes = ["validation_examples=0", "steps=4"]
    code = tmp_path / "run.py"
    code.write_text(f"{RUN} sys.exit(run_train({str(path)!r}, {changes!r}, out=Path({str(tmp_path / 'two')!r})))")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(code)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=300)
    train(read_recipe(str(path), changes), tmp_path / "one")
    first, second = (last_state(tmp_path / folder)["learner"]["network"] for folder in ("one", "two"))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-5)
