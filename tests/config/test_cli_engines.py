"""Commands that make engines: what they need and take, code 2 for wrong input, code 1 for a failure."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from lowdose.config import cli, compile
from lowdose.training.settings import recipe_names

if TYPE_CHECKING:
    from pathlib import Path

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from lowdose.config.cli import main; main()"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["lowdose", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.mark.parametrize("arguments", ["train live_default --smoke", "export run --out engine.onnx"])
def test_without_torch_it_is_told_what_to_install(arguments, tmp_path):
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == 'error: torch is needed to train: pip install "lowdose[train]"\n'
    assert not list(tmp_path.iterdir())


def test_help_of_train_lists_the_recipes_and_what_it_needs(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    assert run(monkeypatch, "train", "--help") == 0
    told = capsys.readouterr().out
    assert all(name in told for name in recipe_names())
    assert "its extra `train`" in told


@pytest.mark.parametrize("precision", ["fp16", "Fp16", "FP16", "AUTO", "auto"])
def test_compile_takes_a_precision_in_any_case(precision, monkeypatch):
    asked = []
    monkeypatch.setattr(compile, "compile_engine", lambda file, **options: asked.append(options["precision"]) or 0)
    assert run(monkeypatch, "compile", "engine.onnx", "--precision", precision) == 0
    assert asked == ["auto" if precision.lower() == "auto" else "FP16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("export none --out engine.onnx", "there is no folder or file none"),
        ("export none --out nodir/engine.onnx", "there is no folder nodir to write engine.onnx into"),
        ("export engine.bin --out engine.onnx --precision fp32", "engine.bin is of another format, or cut short"),
        ("train nosuch", "there is no recipe or file 'nosuch'. Known: dlss_individual, "),
        ("train live_default --smoke --out engine.bin/run", "run folder engine.bin/run cannot be made"),
    ],
)
def test_wrong_input_ends_with_code_2_and_a_sentence(arguments, message, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "engine.bin").write_bytes(b"\x08\x08\x12\x07pytorch")
    assert run(monkeypatch, *arguments.split()) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["engine.bin"]
