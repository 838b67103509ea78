"""`lowdose bench engine`: its rows, on real engine files in real processes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lowdose.config.bench_engine import run_engine
from lowdose.config.errors import ConfigError
from lowdose.reconstruction.engines.choice import precisions
from tests.reconstruction.engine_files import write_smoothing

if TYPE_CHECKING:
    from pathlib import Path

KEYS = {"model", "engine", "precision", "batch", "size", "ms_p50", "ms_p99", "gmac_per_s", "peak_fraction", "parity"}
KEYS |= {"peak_mib", "runs", "first_ms"}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_every_combination_gets_a_row_of_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_smoothing(tmp_path)
    out = tmp_path / "figures.json"
    code = run_engine(
        models=[str(file.path)], runtimes=["openvino"], batches=[1, 2], sizes=[32], json_file=out, row_s=0.05
    )
    assert code == 0
    figures = json.loads(out.read_text())
    wanted = [("smoothing", "openvino", name, batch, 32) for batch in (1, 2) for name in precisions("openvino", file)]
    found = [tuple(row[key] for key in ("model", "engine", "precision", "batch", "size")) for row in figures["rows"]]
    assert found == wanted
    for row in figures["rows"]:
        assert set(row) == KEYS
        assert 0 < row["ms_p50"] <= row["ms_p99"]
        assert 10 < row["peak_mib"] < 4000
    assert "smoothing" in capsys.readouterr().out


def test_a_runtime_that_cannot_take_the_file_is_a_row_with_the_reason(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file, out = write_smoothing(tmp_path), tmp_path / "figures.json"
    code = run_engine(models=[str(file.path)], runtimes=["torch"], batches=[1], sizes=[32], json_file=out, row_s=0.05)
    assert code == 1
    assert all("names no network" in row["error"] for row in json.loads(out.read_text())["rows"])


def test_a_size_the_engine_cannot_take_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    file = write_smoothing(tmp_path, size_multiple=32)
    with pytest.raises(ConfigError, match=r"--size must be a multiple of 32 for smoothing\.onnx, got 70"):
        run_engine(models=[str(file.path)], runtimes=["openvino"], batches=[1], sizes=[70], json_file=None)


@pytest.mark.parametrize(
    ("models", "runtimes", "said"),
    [
        (["two_stages"], [], "unknown model 'two_stages': did you mean 'two_stage'"),
        (["gone.onnx"], [], r"cannot read gone\.json"),
        ([], ["openvinos"], "unknown runtime 'openvinos': did you mean 'openvino'"),
    ],
)
def test_what_there_is_not_is_refused_before_anything_is_measured(
    models: list[str], runtimes: list[str], said: str
) -> None:
    pytest.importorskip("torch")
    with pytest.raises(ConfigError, match=said):
        run_engine(models=models, runtimes=runtimes, batches=[1], sizes=[64], json_file=None)
