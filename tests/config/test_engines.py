"""Engines by their settings: files, runtimes, tiles, and what is said when one cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from lowdose.config.build import require_usable
from lowdose.config.cli import app
from lowdose.config.engines import build_engine, require_engine
from lowdose.config.errors import ConfigError
from lowdose.config.loading import load_settings
from lowdose.config.schema import StageSettings
from lowdose.reconstruction.engines import choice
from tests.reconstruction.engine_files import write_smoothing

if TYPE_CHECKING:
    from pathlib import Path


def stage(path: Path, **settings: object) -> StageSettings:
    return StageSettings(complete=str(path), **settings)  # type: ignore[arg-type]


def test_an_engine_file_runs_pictures_of_sizes_it_has_no_multiple_of(tmp_path: Path) -> None:
    engine = build_engine(stage(write_smoothing(tmp_path, size_multiple=32).path))
    assert engine.run(np.ones((1, 2, 50, 70), np.float32)).shape == (1, 2, 50, 70)


def test_in_tiles_it_gives_what_it_gives_whole(tmp_path: Path, rng: np.random.Generator) -> None:
    file = write_smoothing(tmp_path)
    inputs = rng.standard_normal((2, 2, 150, 200), dtype=np.float32)
    whole = build_engine(stage(file.path, precision="FP32")).run(inputs)
    tiled = build_engine(stage(file.path, precision="FP32", tile_px=96)).run(inputs)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_tiles_too_small_for_the_halo_are_refused_before_the_first_frame(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tile_px must be at least .* got 64"):
        build_engine(stage(write_smoothing(tmp_path, halo_px=40).path, tile_px=64))


def test_tiles_that_are_no_size_multiple_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of the engine's 32, got 100"):
        build_engine(stage(write_smoothing(tmp_path, size_multiple=32).path, tile_px=100))


def test_a_damaged_engine_file_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    file = write_smoothing(tmp_path)
    file.path.write_bytes(file.path.read_bytes()[:-7])
    settings = load_settings(None, [f"stages=[{{complete: {file.path}}}]"])
    with pytest.raises(ConfigError, match="the file is damaged or belongs to another card"):
        require_usable(settings)


def test_a_runtime_that_cannot_run_here_is_refused_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice.shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match="'tensorrt' cannot run here: no NVIDIA GPU here"):
        require_engine(stage(write_smoothing(tmp_path).path, runtime="tensorrt"))


def test_an_unknown_runtime_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"stages.0.runtime.*'openvino'"):
        load_settings(None, ["stages=[{complete: a.onnx, runtime: onnxruntime}]"])


def test_compile_makes_an_engine_ready_and_tells_what_it_takes(tmp_path: Path) -> None:
    file = write_smoothing(tmp_path)
    result = CliRunner().invoke(app, ["compile", str(file.path), "--size", "64", "--precision", "FP32"])
    assert result.exit_code == 0
    assert "smoothing 1 in FP32, 64 x 64: ready after" in result.output


def test_compile_refuses_what_is_no_precision(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compile", str(write_smoothing(tmp_path).path), "--precision", "INT4"])
    assert isinstance(result.exception, ConfigError)
    assert "compile: precision" in str(result.exception)


def test_what_only_runtimes_understand_is_refused_for_engines_without_a_file() -> None:
    with pytest.raises(ConfigError, match="runtime and tile_px are for engine files, 'linear' is none"):
        require_engine(StageSettings(complete="linear", runtime="torch", tile_px=128))


def test_a_precision_the_processor_lacks_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    file = write_smoothing(tmp_path)
    lacking = next(name for name in ("FP16", "BF16") if name not in choice.precisions("openvino", file))
    with pytest.raises(ConfigError, match=f"openvino computes in FP32.* got precision {lacking}"):
        require_engine(stage(file.path, runtime="openvino", precision=lacking))


def test_tiles_that_cannot_be_are_refused_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of the engine's 32, got 130"):
        require_engine(stage(write_smoothing(tmp_path, size_multiple=32).path, tile_px=130))
