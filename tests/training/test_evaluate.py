"""Evaluation: rows, ratios, intervals and what is left out, on pictures whose errors are known."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from lowdose.reconstruction.engines.classical_engine import LinearEngine
from lowdose.training.data_store import DataError
from lowdose.training.evaluate import DEFAULT_PATTERNS, evaluate
from lowdose.training.evaluation_figures import draw_figures
from lowdose.training.evaluation_images import usable_images, why_left_out
from lowdose.training.evaluation_report import Evaluation, cells, to_json, to_markdown, write_report
from lowdose.training.evaluation_scan import Completer, laid_out
from lowdose.training.sources import ImageFile

EDGE = 48
LATTICE = {"name": "lattice", "coverage": "1/16"}
ROW_NAMES = {"images", "engine", "pattern", "coverage", "target", "rms", "rms_std", "ratio_to_linear", "interval90"}


class Certain(LinearEngine):
    """Linear infill that claims the same standard deviation everywhere, in units of that of the measured values."""

    def __init__(self, deviation, **info):
        super().__init__()
        self.info = replace(self.info, name="certain", uncertainty_kind="calibrated", **info)
        self._deviation = deviation

    def run(self, inputs):
        out = super().run(inputs)
        out[:, 1] = self._deviation
        return out


class Broken(LinearEngine):
    def run(self, inputs):
        raise RuntimeError("out of order")


class Faltering(Certain):
    """Fails on the very first picture."""

    calls = 0

    def run(self, inputs):
        self.calls += 1
        if self.calls == 1:
            raise RuntimeError("out of order")
        return super().run(inputs)


def smooth(seed, edge=EDGE):
    rng = np.random.default_rng(seed)
    row, col = np.indices((edge, edge)) / edge
    wave = sum(rng.normal() * np.sin(2 * np.pi * (k * row + rng.integers(4) * col) + k) for k in range(4))
    return (wave + 0.1 * rng.normal(size=wave.shape)).astype(np.float32)


def stored(folder, name, picture, source="a"):
    path = folder / name
    tifffile.imwrite(path, picture)
    return ImageFile(path, source)


@pytest.fixture
def files(tmp_path):
    sources = {"one.tif": "a", "two.tif": "a", "three.tif": "b"}
    return [stored(tmp_path, name, smooth(i), source) for i, (name, source) in enumerate(sources.items())]


@pytest.fixture
def images(files):
    return usable_images(files, EDGE)


def rows_by(results, target="sharp"):
    return {(row.engine, row.pattern): row for result in results for row in result.rows if row.target == target}


def test_full_raster_leaves_no_error_against_the_truth_itself(images):
    (result,) = evaluate(images, [{"name": "lattice", "coverage": "1"}], {})
    rows = rows_by([result])
    assert rows["nearest", "lattice"].rms == pytest.approx(0, abs=1e-6)
    assert rows["linear", "lattice"].coverage == 1


def test_error_is_that_of_the_nearest_value_in_units_of_the_pictures_range(tmp_path):
    picture = np.zeros((EDGE, EDGE), np.float32)
    picture[:, 2::4] = 50  # one column right of every sample
    picture[:, 1::4] = -50  # on the samples
    images = usable_images([stored(tmp_path, "lines.tif", picture)], EDGE)
    on_lines = {"name": "lattice", "coverage": "1/16", "offset": [1, 1]}
    row = rows_by(evaluate(images, [on_lines], {}))["nearest", "lattice"]
    # everywhere 0; the truth is 0.5, 0, 1, 0.5 by columns
    assert row.rms == pytest.approx(np.sqrt((0.25 + 0 + 1 + 0.25) / 4), abs=1e-5)


def test_ratios_are_of_all_pictures_with_equal_weight_per_source_and_of_the_worst(images):
    (result,) = evaluate(images, [LATTICE], {})
    errors = {name: np.array(errors.rmse["sharp"]) for name, errors in result.errors.items()}
    row = rows_by([result])["nearest", "lattice"]
    single = errors["nearest"] / errors["linear"]
    assert row.images == 3
    assert row.rms == pytest.approx(np.sqrt((errors["nearest"] ** 2).mean()))
    assert row.rms_std == pytest.approx(np.sqrt((errors["nearest"] ** 2).std()))
    assert row.ratio_to_linear == pytest.approx(row.rms / np.sqrt((errors["linear"] ** 2).mean()))
    assert row.ratio_by_source == pytest.approx((single[:2].mean() + single[2]) / 2)
    assert row.worst_ratio == pytest.approx(single.max())
    assert row.worst_image == images.files[int(single.argmax())].path.name


def test_linear_infill_compared_with_itself_is_one(images):
    rows = rows_by(evaluate(images, [LATTICE], {}))
    assert rows["linear", "lattice"].ratio_to_linear == 1
    assert rows["linear", "lattice"].worst_ratio == 1


def test_baselines_take_part_on_lattices_only(images):
    results = list(evaluate(images, [LATTICE, {"name": "spiral", "coverage": "1/8"}], {}))
    engines = {result.name: {row.engine for row in result.rows} for result in results}
    assert {"bilinear_published", "bilinear_aligned", "lanczos_published", "area_aligned"} < engines["lattice"]
    assert engines["spiral"] - {"biharmonic"} == {"nearest", "linear"}


def test_interval_is_told_for_the_engines_own_target_alone(images):
    own = {"wide": Certain(100.0, target="blurred_5x5"), "narrow": Certain(0.0, target="blurred_3x3")}
    (result,) = evaluate(images, [LATTICE], own)
    found = {(row.engine, row.target): row.interval90 for row in result.rows}
    assert found["wide", "blurred_5x5"] == 1
    assert found["narrow", "blurred_3x3"] < 0.1
    assert found["wide", "sharp"] is None
    assert found["narrow", "sharp"] is None
    assert found["bicubic_aligned", "sharp"] is None


def test_engine_without_uncertainty_has_no_interval(images):
    engine = Completer(Certain(1.0)).info
    silent = Certain(1.0)
    silent.info = replace(engine, uncertainty_kind="none")
    (result,) = evaluate(images, [LATTICE], {"silent": silent})
    assert {row.interval90 for row in result.rows if row.engine == "silent"} == {None}
    assert result.errors["silent"].reliability == ()


def test_a_failing_engine_is_completed_by_linear_infill_and_counted(images, caplog):
    (result,) = evaluate(images, [LATTICE], {"broken": Broken()})
    rows = rows_by([result])
    assert rows["broken", "lattice"].failures == 3  # fewer bits, on which it fails, too, are not counted again
    assert rows["broken", "lattice"].rms == rows["linear", "lattice"].rms
    assert rows["linear", "lattice"].failures == 0
    assert "out of order" in caplog.text


def test_an_engine_that_completed_nothing_has_no_uncertainty_and_no_curves(images):
    (result,) = evaluate(images, [LATTICE], {"broken": Broken()})
    row = rows_by([result])["broken", "lattice"]
    assert (row.uncertainty_kind, row.interval90, row.interval50) == (None, None, None)
    assert set(result.errors) == {"nearest", "linear"}
    assert all("broken failed" in pictures.images for pictures in result.shown)


def test_uncertainty_is_that_of_the_pictures_an_engine_completed(images):
    (result,) = evaluate(images, [{"name": "spiral", "coverage": "1/8"}], {"wide": Faltering(100.0)})
    row = rows_by([result])["wide", "spiral"]
    assert row.failures == 1
    assert (row.uncertainty_kind, row.interval90) == ("calibrated", 1)


def test_tables_mark_failed_pictures_and_the_report_says_how_many(images):
    evaluation = evaluation_of(images, {"broken": Broken(), "wide": Faltering(100.0)}, [SPIRAL])
    table = dict(cells(evaluation, "sharp", lambda row: "1"))
    assert (table["linear"], table["broken"], table["wide"]) == ("1", "failed*", "1*")
    text = to_markdown(evaluation, {})
    assert "- \\* broken failed on 3 of 3 pictures: those are linear infill" in text
    assert "- \\* wide failed on 1 of 3 pictures: those are linear infill" in text
    assert "| broken | failed* |" in text


def test_figures_are_drawn_whatever_failed(images, tmp_path):
    evaluation = evaluation_of(images, {"broken": Broken(), "wide": Faltering(100.0)}, [SPIRAL])
    assert "pictures-spiral-8.png" in draw_figures(evaluation, tmp_path)


def test_engine_that_enlarges_is_refused(images):
    with pytest.raises(ValueError, match="enlarges 4 times"):
        next(evaluate(images, [LATTICE], {"large": Certain(1.0, scale=4)}))


@pytest.mark.parametrize("name", ["biharmonic", "area_published"])
def test_engine_with_the_name_of_a_baseline_is_refused(images, name):
    with pytest.raises(ValueError, match="name of a baseline"):
        next(evaluate(images, [LATTICE], {name: Broken()}))


def test_fewer_bits_hardly_change_the_error(images):
    (result,) = evaluate(images, [{"name": "lattice", "coverage": "1/25"}], {})
    by_bits = {row.bits: row.rms for row in result.precision if row.engine == "nearest"}
    assert sorted(by_bits) == [8, 16, 32]
    assert by_bits[8] == pytest.approx(by_bits[32], rel=0.01)
    assert by_bits[16] == pytest.approx(by_bits[32], rel=0.001)


def test_counted_electrons_make_errors_larger_and_the_seed_decides_which(images):
    exact, noisy, again, other = (
        rows_by(evaluate(images, [LATTICE], {}, noise=noise, seed=seed))["linear", "lattice"].rms
        for noise, seed in (("none", 0), ("counts", 0), ("counts", 0), ("counts", 1))
    )
    assert noisy > 1.2 * exact
    assert noisy == again
    assert noisy != other


def test_linear_infill_is_there_from_the_first_picture_of_a_spiral_on(files):
    scan = laid_out({"name": "spiral", "coverage": "1/8"}, EDGE, "none", 0)
    completer = Completer(LinearEngine())
    completer.prepare(scan)
    plane = np.add.outer(np.arange(EDGE), np.arange(EDGE)).astype(np.float32) / (2 * EDGE - 2)
    image, _ = completer.complete(scan.measure(plane, (0,)), scan)
    completer.close()
    assert np.median(np.abs(image - plane)) < 1e-5


def test_images_that_cannot_be_used_are_counted(tmp_path, files):
    (tmp_path / "torn.tif").write_bytes(b"II*\0")
    files += [
        stored(tmp_path, "small.tif", smooth(7, edge=40)),
        stored(tmp_path, "tiny.tif", smooth(7, edge=10)),  # which the reader itself refuses
        stored(tmp_path, "colour.tif", np.zeros((EDGE, EDGE, 3), np.uint8)),
        stored(tmp_path, "blank.tif", np.ones((EDGE, EDGE), np.float32)),
        ImageFile(tmp_path / "torn.tif", "c"),
    ]
    images = usable_images(files, EDGE)
    assert len(images.files) == 3
    assert images.skipped == {"smaller": 2, "unreadable": 2, "blank": 1}
    evaluation = evaluation_of(images, patterns=[SPIRAL])
    told = {Path(entry["file"]).name: entry for entry in json.loads(to_json(evaluation))["skipped_files"]}
    assert told["colour.tif"]["reason"] == "unreadable"
    assert "colour image" in told["colour.tif"]["why"]
    text = to_markdown(evaluation, {})
    assert all(f"- {entry['why']}" in text for entry in told.values())


def test_of_many_images_left_out_the_first_are_told(tmp_path, files):
    small = [stored(tmp_path, f"small-{n}.tif", smooth(n, edge=40)) for n in range(8)]
    told = why_left_out(usable_images([*files, *small], EDGE))
    assert "small-0.tif has 40 x 40 pixels, fewer than the crop of 48" in told[0]
    assert told[-1] == "and 3 more"


def test_no_usable_image_is_an_error_that_says_why(files):
    with pytest.raises(DataError, match=r"3 are smaller than 64 px.*smaller crop\n.*one.tif has 48 x 48 pixels"):
        usable_images(files, 64)


def test_a_smaller_crop_is_no_remedy_for_colour(tmp_path):
    with pytest.raises(DataError, match="colour image") as caught:
        usable_images([stored(tmp_path, "colour.tif", np.zeros((EDGE, EDGE, 3), np.uint8))], EDGE)
    assert "smaller crop" not in str(caught.value)


def test_worst_image_is_named_from_the_common_folder_on(tmp_path):
    files = []
    for n, source in enumerate("ab"):
        (tmp_path / source).mkdir()
        files.append(stored(tmp_path / source, "same.tif", smooth(n), source))
    (result,) = evaluate(usable_images(files, EDGE), [SPIRAL], {})
    single = np.divide(*(result.errors[name].rmse["sharp"] for name in ("nearest", "linear")))
    assert rows_by([result])["nearest", "spiral"].worst_image == f"{'ab'[int(single.argmax())]}/same.tif"


def test_limit_takes_from_every_source_by_turns(files):
    images = usable_images(files, EDGE, limit=2)
    assert Counter(file.source for file in images.files) == {"a": 1, "b": 1}


def test_default_patterns_fit_the_papers_field():
    scans = [laid_out(mapping, 512, "none", 0) for mapping in DEFAULT_PATTERNS]
    assert [scan.label for scan in scans[:5]] == [f"lattice 1/{n}" for n in (16, 25, 36, 64, 100)]
    assert 1 / scans[1].path.coverage == pytest.approx(24.71, abs=0.01)


SPIRAL = {"name": "spiral", "coverage": "1/8"}


def evaluation_of(images, engines=None, patterns=(LATTICE, SPIRAL)):
    return Evaluation(images, tuple(evaluate(images, patterns, engines or {})), "none", 0)


def test_json_has_the_names_that_others_rely_on(images):
    found = json.loads(to_json(evaluation_of(images)))
    assert {"rows", "precision", "curves", "reliability", "skipped", "images", "units"} <= found.keys()
    assert all(row.keys() >= ROW_NAMES for row in found["rows"])
    assert {row["target"] for row in found["rows"]} == {"blurred_5x5", "sharp"}
    curve = found["curves"][0]
    assert len(curve["edge"]["rms"]) == len(curve["edge"]["distance_px"]) == EDGE // 2
    assert len(curve["rmse"]) == 3


def test_report_has_a_table_with_a_column_for_each_pattern_and_names_the_unit(images):
    text = to_markdown(evaluation_of(images), {"histograms.png": "Errors"})
    assert "| engine | lattice 1/16 | spiral 1/8 |" in text
    assert "share" in text.split("##")[0]
    assert "![Errors](histograms.png)" in text


def test_every_figure_is_written_and_linked(images, tmp_path):
    evaluation = evaluation_of(images, {"certain": Certain(0.3)}, [SPIRAL])
    out = tmp_path / "report"
    out.mkdir()
    write_report(evaluation, out, draw_figures)
    written = {path.name for path in out.iterdir()}
    assert {"report.md", "evaluation.json", "histograms.png", "reliability.png", "error-map-spiral-8.png"} <= written
    text = (out / "report.md").read_text(encoding="utf-8")
    pictures = {name for name in written if name.endswith(".png")}
    assert all(f"({name})" in text for name in pictures)
    assert {"pictures-spiral-8.png", "error-by-edge.png", "error-by-distance.png"} <= pictures
