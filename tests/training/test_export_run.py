"""A trained network becomes an engine file that says what it was trained for, on and how."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from lowdose.reconstruction.engine_file import card_path, read_engine_file
from lowdose.reconstruction.engines.torch_engine import TorchEngine
from lowdose.training import export_run as export_run_module
from lowdose.training.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint
from lowdose.training.export import ExportError
from lowdose.training.export_run import _network, _uncertainty_kind, export_run
from lowdose.training.learner import make_network
from lowdose.training.settings import RecipeSettings, validated
from lowdose.training.train import train
from tests.training.runs import recipe
from tests.training.test_checkpoint import files_no_larger_than

if TYPE_CHECKING:
    from lowdose.reconstruction.engine_file import EngineFile


def trained(folder: Path, name: str, *overrides: str, steps: int = 2) -> Path:
    train(recipe(folder, name, "validation_examples=0", *overrides), folder / "run", until=steps)
    return folder / "run"


def content_of(run: Path) -> dict[str, Any]:
    path = latest_checkpoint(run / "checkpoints")
    assert path is not None
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, EngineFile]:
    """Return a run whose examples were kept in a folder, and its engine file: an export takes seconds."""
    folder = tmp_path_factory.mktemp("exported")
    run = trained(folder, "completion", f"data.cache={folder / 'kept'}")
    return run, export_run(run, folder / "engine.onnx")


def test_card_says_what_a_network_was_trained_for_on_and_how(exported):
    card = read_engine_file(exported[1].path).card
    assert (card.info.name, card.info.task, card.info.scale) == ("small_completion", "complete", 1)
    assert card.info.channels == ("linear", "cubic", "sparse", "mask", "distance")
    assert (card.info.normalisation, card.info.target, card.info.size_multiple) == ("mean_std", "blurred_5x5", 16)
    assert (card.outputs, card.info.uncertainty_kind) == (2, "placeholder")
    assert card.patterns == ("lattice", "spiral")
    assert card.coverages == pytest.approx((1 / 25, 1 / 16, 1 / 10))
    assert card.info.most_coverage == pytest.approx(1 / 10)
    assert card.sizes == (32,)
    assert card.provenance["recipe"]["objective"]["loss"]["relative_mse"] == 1
    assert (card.provenance["seed"], card.provenance["steps"]) == (0, 2)
    assert card.provenance["versions"]["torch"] == torch.__version__
    assert [row["source"] for row in card.training_data]
    assert all(row["licence"] for row in card.training_data)


def test_neither_file_says_where_it_was_made_nor_where_examples_were_kept(exported):
    run, written = exported
    recipe_of_card = written.card.provenance["recipe"]
    assert "cache" not in recipe_of_card["data"]
    assert recipe_of_card["data"]["crop_px"] == 32
    for path in (written.path, card_path(written.path)):
        assert str(run.parent).encode() not in path.read_bytes()
    assert b".py" not in written.path.read_bytes()


def copied(written: EngineFile, folder: Path) -> Path:
    shutil.copy(card_path(written.path), folder)
    return Path(shutil.copy(written.path, folder))


def test_card_takes_the_errors_of_this_engine_from_evaluations_and_an_earlier_one_is_replaced(exported, tmp_path):
    run, written = exported
    path, digest = copied(written, tmp_path), written.info.digest
    for noise, rms in (("none", 0.5), ("counts", 0.75)):
        write_evaluation(tmp_path / f"{noise}.json", noise, rms, digest)
    export_run(run, path, evaluations=[tmp_path / "none.json", tmp_path / "counts.json"])
    card = read_engine_file(path).card
    assert card.info.digest == digest
    assert [(row["noise"], row["rms"]) for row in card.errors] == [("none", 0.5), ("counts", 0.75)]


def write_evaluation(path: Path, noise: str, rms: float, digest: str) -> None:
    own = {"engine": "small_completion", "engine_digest": digest, "rms": rms}
    path.write_text(json.dumps({"noise": noise, "rows": [{"engine": "linear", "engine_digest": "", "rms": 2.0}, own]}))


def test_errors_found_with_another_engine_file_are_refused_and_nothing_written(exported, tmp_path):
    write_evaluation(tmp_path / "none.json", "none", 0.5, digest="0" * 32)
    with pytest.raises(ExportError, match=r"errors were found with the engine file of digest 0{32}, this one has"):
        export_run(exported[0], tmp_path / "e.onnx", evaluations=[tmp_path / "none.json"])
    assert not (tmp_path / "e.onnx").exists()


def test_weights_that_are_not_those_of_the_network_are_refused(tmp_path, monkeypatch):
    run = trained(tmp_path, "completion")
    monkeypatch.setattr(export_run_module, "make_network", lambda *_: torch.nn.Conv2d(5, 2, 3))
    with pytest.raises(ExportError, match=r"weights are not those of network 'compact' .* with the version that trai"):
        export_run(run, tmp_path / "e.onnx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", r"is no evaluation\.json of `lowdose evaluate`"),
        ("[1]", r"is no evaluation\.json"),
        ("not json", r"is no evaluation\.json"),
        ('{"noise": "none", "rows": [{"engine": "other"}]}', "tells nothing of an engine 'small_completion'"),
    ],
)
def test_file_that_tells_nothing_of_the_engine_is_refused_and_nothing_written(text, message, tmp_path):
    run = trained(tmp_path, "completion")
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(ExportError, match=message):
        export_run(run, tmp_path / "engine.onnx", evaluations=[tmp_path / "evaluation.json"])
    assert not (tmp_path / "engine.onnx").exists()


def test_moving_average_is_what_is_exported(tmp_path):
    run = trained(tmp_path, "completion", "objective.learning_rate.lr=0.1")
    written = export_run(run, tmp_path / "engine.onnx", precision="FP32")
    weights = content_of(run)["average"]["weights"]
    network = make_network("compact", {"widths": [4, 8], "blocks": [1, 1]})
    network.load_state_dict(weights)
    inputs = torch.rand(1, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(inputs).numpy()
    np.testing.assert_allclose(TorchEngine(written, precision="FP32").run(inputs.numpy()), expected, atol=1e-5)


def test_two_stage_engine_is_fed_from_minus_one_to_one_and_does_what_was_trained_from_zero_to_one(tmp_path):
    run = trained(tmp_path, "two_stage")
    engine = TorchEngine(export_run(run, tmp_path / "engine.onnx", precision="FP32"), precision="FP32")
    assert (engine.info.normalisation, engine.info.keeps_measured) == ("min_max", True)
    content = content_of(run)
    network = make_network("two_stage", content["recipe"]["network"]["options"]).eval()
    network.load_state_dict(content["average"]["weights"])
    picture = torch.rand(1, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(picture)[:, 0].numpy()
    np.testing.assert_allclose(engine.run((2 * picture - 1).numpy())[:, 0], expected, atol=1e-4)


def test_blurred_mask_network_takes_pixels_off_the_path_as_zero(tmp_path):
    options = ["data.channels=[sparse, dwell]", "data.noise=published", "data.normalisation=pstem", "ema=null"]
    run = trained(tmp_path, "two_stage", *options, "network.options.input_channels=2")
    content = content_of(run)
    exported, _ = _network(validated(RecipeSettings, content["recipe"], ""), content)
    network = make_network("two_stage", content["recipe"]["network"]["options"]).eval()
    of_generator = {k: v for k, v in content["learner"]["networks"].items() if k.startswith("generator.")}
    network.load_state_dict({k.removeprefix("generator."): v for k, v in of_generator.items()})
    generator = torch.Generator().manual_seed(0)
    scan, path = torch.rand(2, 1, 1, 96, 96, generator=generator)
    path = torch.where(torch.rand(path.shape, generator=generator) > 0.7, path, 0.0)
    on_path = (path > 0).float()
    with torch.inference_mode():
        expected = network(torch.cat([scan * on_path, path], 1))
        got = exported(torch.cat([(2 * scan - 1) * on_path, path], 1))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


LATTICE = (
    "data.patterns=[{pattern: {name: lattice, coverage: 1/16}, n: 1}]",
    "data.inputs=lattice",
    "data.channels=[sparse]",
    "data.normalisation=min_max",
    "data.target=blurred_3x3",
    "objective.loss={pixel: 1}",
)


def test_one_stage_network_of_scale_4_becomes_a_super_resolving_engine(tmp_path):
    run = trained(tmp_path, "completion", *LATTICE, "network={name: one_stage, options: {scale: 4, width: 0.125}}")
    info = export_run(run, tmp_path / "engine.onnx", precision="FP32").info
    assert (info.task, info.scale, info.size_multiple, info.target) == ("super_resolve", 4, 4, "blurred_3x3")
    assert info.uncertainty_kind == "none"


def test_one_stage_network_of_a_broken_scale_is_refused(tmp_path):
    options = [
        "data.patterns.0.pattern.coverage=1/25",
        "network={name: one_stage, options: {scale: 5.333333333333333, width: 0.125}}",
    ]
    run = trained(tmp_path, "completion", *LATTICE, *options)
    with pytest.raises(ExportError, match=r"5\.33.* pixels of one, engines 1, 2 or 4"):
        export_run(run, tmp_path / "engine.onnx")
    assert not (tmp_path / "engine.onnx").exists()


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        ([{"examples": 64, "deviation_scale": 1.2}], "calibrated"),
        ([{"examples": 63, "deviation_scale": 1.2}], "placeholder"),
        ([{"examples": 64}], "placeholder"),
        ([], "placeholder"),
    ],
)
def test_deviation_counts_as_calibrated_if_enough_examples_set_its_scale(scores, kind, tmp_path):
    assert _uncertainty_kind(recipe(tmp_path, "completion"), scores) == kind


def test_deviations_are_exported_as_validation_found_them_to_hold(tmp_path):
    run = trained(tmp_path, "completion", "validation_examples=4", "validate_every=2")
    content = content_of(run)
    scale = content["validation"][0]["deviation_scale"]
    network, options = _network(validated(RecipeSettings, content["recipe"], ""), content)
    assert options["deviation_scale"] == pytest.approx(scale) != 1
    plain = make_network("compact", {**options, "deviation_scale": 1.0})
    plain.load_state_dict(network.state_dict())
    x = torch.rand(1, 5, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(network(x)[:, 1], scale * plain.eval()(x)[:, 1])


def test_second_output_that_no_loss_trained_is_worth_nothing(tmp_path):
    settings = recipe(tmp_path, "completion", "objective.loss={relative_mse: 1}")
    assert _uncertainty_kind(settings, [{"examples": 64, "deviation_scale": 1.2}]) == "none"


def test_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint: expected a run folder"):
        export_run(tmp_path, tmp_path / "engine.onnx")
    with pytest.raises(CheckpointError, match=r"there is no folder or file .*none: expected a run folder"):
        export_run(tmp_path / "none", tmp_path / "engine.onnx")


def test_engine_file_is_not_exported_again(tmp_path):
    (tmp_path / "engine.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    with pytest.raises(
        CheckpointError, match=r"engine\.onnx is of another format, or cut short: expected a checkpoint"
    ):
        export_run(tmp_path / "engine.onnx", tmp_path / "again.onnx")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("engine.pt", r"an engine file is called NAME\.onnx, got .*engine\.pt$"),
        ("folder.onnx", r"called NAME\.onnx, got .*folder\.onnx \(a folder\)"),
        ("nodir/engine.onnx", r"there is no folder .*nodir to write engine\.onnx into: make it"),
        ("run.onnx", r"run\.json holds something else, and run\.onnx needs that name for its card: choose another"),
    ],
)
def test_place_where_no_engine_file_can_lie_is_refused_before_anything_is_read(out, message, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "run.json").write_text('{"seed": 0}')
    with pytest.raises(ExportError, match=message):
        export_run(tmp_path / "none", tmp_path / out)
    assert (tmp_path / "run.json").read_text() == '{"seed": 0}'
    assert not (tmp_path / "run.onnx").exists()


def test_file_without_a_card_is_not_replaced(tmp_path):
    (tmp_path / "mine.onnx").write_text("hello")
    with pytest.raises(ExportError, match=r"mine\.onnx exists and is no engine file, for it has no card"):
        export_run(tmp_path / "none", tmp_path / "mine.onnx")
    assert (tmp_path / "mine.onnx").read_text() == "hello"


def test_earlier_engine_file_is_left_by_a_full_disk(exported, tmp_path):
    run, written = exported
    path = copied(written, tmp_path)
    with (
        files_no_larger_than(1000),
        pytest.raises(OSError, match=r"cannot write .*engine\.onnx: File too large\. Free some space"),
    ):
        export_run(run, path, precision="FP32")
    assert read_engine_file(path).card == written.card
