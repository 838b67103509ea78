"""The GPU's self-test, as far as there is something to be tested without one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from lowdose.config import gpu_check
from lowdose.config.gpu_check import self_test
from lowdose.reconstruction.engine import PRECISIONS
from lowdose.reconstruction.engines.choice import load_engine

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_without_a_gpu_it_says_so_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "why_not", lambda _: "no NVIDIA GPU here")
    assert self_test(tmp_path / "gpu.json") == 0
    assert not (tmp_path / "gpu.json").exists()
    assert "no NVIDIA GPU here" in capsys.readouterr().out


def on_the_cpu(monkeypatch: pytest.MonkeyPatch, spoiled: float = 1.0) -> None:
    """Let OpenVINO stand in for TensorRT, its output times a factor."""

    class Other:
        def __init__(self, engine):  # type: ignore[no-untyped-def]
            self.engine = engine

        def run(self, inputs):  # type: ignore[no-untyped-def]
            return np.float32(spoiled) * self.engine.run(inputs)

    def load(file, *, runtime, precision="FP32"):  # type: ignore[no-untyped-def]
        engine = load_engine(file, runtime="openvino", precision="FP32")
        return Other(engine) if runtime == "tensorrt" else engine

    monkeypatch.setattr(gpu_check, "why_not", lambda _: None)
    monkeypatch.setattr(gpu_check, "load_engine", load)


def test_a_runtime_that_computes_the_same_passes_in_every_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_cpu(monkeypatch)
    assert self_test(tmp_path / "gpu.json") == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["precision"] for row in report["rows"]] == list(PRECISIONS)
    assert report["agree"]


def test_a_runtime_that_computes_something_else_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_the_cpu(monkeypatch, spoiled=1.1)
    assert self_test(tmp_path / "gpu.json") == 1
    assert not json.loads((tmp_path / "gpu.json").read_text())["agree"]
