"""`lowdose evaluate`: options, folders with and without a manifest, and files written."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from lowdose.config.errors import ConfigError
from lowdose.config.evaluate import chosen_patterns, deconvolved, listed_images, make_engines, run_evaluation
from lowdose.reconstruction.engines.classical_engine import LinearEngine
from lowdose.training.data_store import DataError
from tests.reconstruction.engine_files import write_smoothing

DISK_FULL = Path("/dev/full")

OPTIONS = {
    "engines": None,
    "pattern": "lattice",
    "coverage": "1/16",
    "where": [],
    "crop_px": 32,
    "noise": "none",
    "seed": 0,
    "limit": None,
    "out": None,
    "json_file": None,
}


class OutOfOrder(LinearEngine):
    def run(self, inputs):
        raise RuntimeError("out of order")


class Enlarging(LinearEngine):
    def __init__(self):
        super().__init__()
        self.info = replace(self.info, scale=2)


class Denoising(LinearEngine):
    def __init__(self):
        super().__init__()
        self.info = replace(self.info, task="denoise")


@pytest.fixture
def folder(tmp_path):
    """Return a folder of three images with a manifest, two of them under the MIT licence."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = [("a.tif", "r1", "MIT", "0.01"), ("b.tif", "r2", "MIT", "0.2"), ("c.tif", "r2", "GPL-3.0", "")]
    for name, *_ in rows:
        tifffile.imwrite(folder / name, rng.random((40, 40), np.float32))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "repo", "licence", "noise_over_range"), *rows])
    return folder


def test_command_prints_tables_and_writes_report_and_json(folder, tmp_path, capsys):
    out, json_file = tmp_path / "new" / "report", tmp_path / "figures.json"
    assert run_evaluation([folder], **{**OPTIONS, "out": out, "json_file": json_file, "where": ["licence=MIT"]}) == 0
    printed = capsys.readouterr()
    assert "bilinear published" in printed.out
    assert "2 images of 2 sources" in printed.out
    assert "completing" in printed.err
    assert json.loads(json_file.read_text())["rows"][0]["images"] == 2
    assert (out / "report.md").exists()


def test_folder_that_holds_a_report_is_left_as_it_is(folder, tmp_path):
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a report already: name another folder with --out"):
        run_evaluation([folder], **{**OPTIONS, "out": tmp_path})
    assert (tmp_path / "evaluation.json").read_text() == "{}"


def test_where_takes_a_value_a_list_or_a_limit(folder):
    def names(*where):
        return [file.path.name for file in listed_images([folder], where)]

    assert names() == ["a.tif", "b.tif", "c.tif"]
    assert names("licence=MIT") == ["a.tif", "b.tif"]
    assert names("licence=[MIT, GPL-3.0]", "repo=r2") == ["b.tif", "c.tif"]
    assert names("noise_over_range={at_most: 0.05}") == ["a.tif"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("licence", "COLUMN=VALUE"),
        ("license=MIT", "licence"),
        ("licence=Unlicense", "no image"),
        ("licence=[MIT", "YAML"),
        ("licence={at_least: 1}", "at_most"),
    ],
)
def test_wrong_where_is_told_in_one_sentence(folder, where, message):
    with pytest.raises((ConfigError, DataError), match=message):
        listed_images([folder], [where])


def test_where_on_a_single_file_is_refused(folder):
    with pytest.raises(ConfigError, match="give the folder"):
        listed_images([folder / "a.tif"], ["licence=MIT"])


def test_files_and_folders_together_name_each_image_once(folder):
    assert len(listed_images([folder / "a.tif", folder, folder / "b.tif"], [])) == 3


def test_missing_path_and_empty_folder_are_told(tmp_path):
    with pytest.raises(ConfigError, match="no file or folder"):
        listed_images([tmp_path / "nothing"], [])
    with pytest.raises(DataError, match="no image"):
        listed_images([tmp_path], [])


def test_coverage_needs_its_pattern_and_a_pattern_alone_has_its_published_coverages():
    with pytest.raises(ConfigError, match="--pattern"):
        chosen_patterns(None, "1/16")
    assert [p["coverage"] for p in chosen_patterns("spiral", None)] == ["1/20", "1/50"]
    assert chosen_patterns("poisson_disc", None) == [{"name": "poisson_disc"}]
    assert len(chosen_patterns(None, None)) == 8


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"noise": "gauss"}, "none or counts"),
        ({"crop_px": 8}, "--crop"),
        ({"pattern": "spirall", "coverage": None}, "spiral"),
        ({"coverage": "1/0"}, "coverage"),
        ({"engines": "liner"}, "linear"),
        ({"engines": "missing.onnx"}, "missing"),
        ({"json_file": Path("/nowhere/at/all.json")}, "no folder"),
        ({"crop_px": 64}, "3 are smaller than 64 px"),
    ],
    ids=str,
)
def test_wrong_option_ends_with_a_message(folder, option, message):
    with pytest.raises(ValueError, match=message):
        run_evaluation([folder], **{**OPTIONS, **option})


def test_engines_are_called_by_their_name():
    assert list(make_engines("linear, nearest,linear")) == ["linear", "nearest"]
    assert make_engines(None) == {}


def test_file_with_the_name_of_another_method_is_called_by_its_path(tmp_path):
    (tmp_path / "more").mkdir()
    names = ["spiral", "more/spiral", "linear", "area_published", "area published", "biharmonic", "spiral deconvolved"]
    paths = [str(write_smoothing(tmp_path, name=f"{name}.onnx").path) for name in names]
    assert list(make_engines(",".join(["linear", *paths]))) == ["linear", "spiral", *paths[1:]]


def test_file_with_the_name_of_a_baseline_has_rows_of_its_own(folder, tmp_path, capsys):
    json_file = tmp_path / "figures.json"
    file = write_smoothing(tmp_path, name="linear.onnx")
    run_evaluation([folder], **{**OPTIONS, "engines": f"linear,{file.path}", "json_file": json_file})
    rows = {row["engine"]: row for row in json.loads(json_file.read_text())["rows"]}
    assert rows["linear"]["ratio_to_linear"] == 1
    assert rows[str(file.path)]["ratio_to_linear"] != 1


@pytest.mark.parametrize(("name", "message"), [("Enlarging", "enlarges 2 times"), ("Denoising", "does denoise")])
def test_engine_that_does_something_else_is_refused_before_an_image_is_read(tmp_path, name, message):
    (tmp_path / "torn.tif").write_bytes(b"II*\0")
    with pytest.raises(ValueError, match=message):
        run_evaluation([tmp_path], **{**OPTIONS, "engines": f"{__name__}:{name}"})


def test_what_failed_and_what_was_left_out_is_printed(folder, capsys):
    tifffile.imwrite(folder / "colour.tif", np.zeros((40, 40, 3), np.uint8))
    (folder / "manifest.csv").unlink()
    run_evaluation([folder], **{**OPTIONS, "engines": f"{__name__}:OutOfOrder"})
    printed = " ".join(capsys.readouterr().out.split())
    assert f"* {__name__}:OutOfOrder failed on 3 of 3 pictures: those are linear infill" in printed
    assert "left out: 1 unreadable" in printed
    assert "colour.tif is a colour image" in printed


@pytest.mark.skipif(not DISK_FULL.exists(), reason="no /dev/full on this system")
def test_write_that_fails_costs_neither_the_tables_nor_the_report(folder, tmp_path, capsys):
    out = tmp_path / "report"
    with pytest.raises(RuntimeError, match=r"cannot write /dev/full \(No space left.*choose another"):
        run_evaluation([folder], **{**OPTIONS, "out": out, "json_file": DISK_FULL})
    assert "bilinear published" in capsys.readouterr().out
    assert (out / "report.md").exists()


def test_figure_that_cannot_be_written_costs_no_numbers(folder, tmp_path, capsys):
    out, json_file = tmp_path / "report", tmp_path / "figures.json"
    (out / "histograms.png").mkdir(parents=True)
    with pytest.raises(RuntimeError, match=r"histograms\.png"):
        run_evaluation([folder], **{**OPTIONS, "out": out, "json_file": json_file})
    printed = capsys.readouterr().out
    assert "bilinear published" in printed
    assert "wrote" not in printed
    assert json.loads(json_file.read_text()) == json.loads((out / "evaluation.json").read_text())


def test_worst_image_is_named_from_the_folder_given_on(folder, tmp_path):
    json_file = tmp_path / "figures.json"
    (folder / "manifest.csv").unlink()
    (folder / "deep").mkdir()
    for name in "abc":
        (folder / f"{name}.tif").rename(folder / "deep" / f"{name}.tif")
    run_evaluation([folder], **{**OPTIONS, "json_file": json_file})
    rows = json.loads(json_file.read_text())["rows"]
    assert {row["worst_image"] for row in rows} <= {"deep/a.tif", "deep/b.tif", "deep/c.tif"}


def test_real_micrographs_give_the_published_order_of_the_baselines(micrographs, tmp_path):
    json_file = tmp_path / "figures.json"
    paths = sorted((micrographs / "partial_stem_examples").glob("truth-*.tif"))
    run_evaluation(paths, **{**OPTIONS, "coverage": "1/25", "crop_px": 256, "json_file": json_file})
    rms = {
        row["engine"]: row["rms"] for row in json.loads(json_file.read_text())["rows"] if row["target"] == "blurred_5x5"
    }
    order = ["bilinear", "bicubic", "lanczos", "nearest"]
    assert sorted(order, key=lambda method: rms[f"{method}_published"]) == order  # DLSS-STEM, Table 2
    assert rms["bilinear_aligned"] < rms["bilinear_published"]


def test_deconvolution_asks_for_an_engine_of_blurred_pictures(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--deconvolve sharpens what engines trained on blurred targets make"):
        deconvolved(make_engines("linear"))
    file = write_smoothing(tmp_path, target="blurred_5x5")
    made = deconvolved(make_engines(str(file.path)))
    assert [(name, engine.info.target) for name, engine in made.items()] == [("smoothing deconvolved", "sharp")]


def test_deconvolution_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "lowdose.training.deconvolution", raising=False)
    with pytest.raises(ConfigError, match=r'pip install "lowdose\[train\]"'):
        deconvolved(make_engines("linear"))
