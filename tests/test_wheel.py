"""Imports and the command line against the built wheel: `make wheel` names its folder in LOWDOSE_WHEEL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("acquisition", "config", "reconstruction", "scan_patterns", "simulator", "training")

pytestmark = pytest.mark.wheel


@pytest.fixture
def wheel():
    folder = os.environ.get("LOWDOSE_WHEEL")
    if not folder:
        pytest.skip("LOWDOSE_WHEEL does not name an installed wheel: run `make wheel`")
    return Path(folder)


def run(wheel, tmp_path, *command):
    # -S -E would lose the dependencies: the wheel comes first on the path, the editable install's finder is not asked
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def test_every_module_imports_from_the_wheel(wheel, tmp_path):
    names = [
        "lowdose." + ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for floor in FLOORS
        for file in sorted((ROOT / floor).rglob("*.py"))
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    module = importlib.import_module(name)\n"
        f"    assert module.__file__.startswith({str(wheel)!r}), module.__file__\n"
    )
    result = run(wheel, tmp_path, sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr


def test_the_wheel_s_command_line_scans_for_real(wheel, tmp_path):
    command = [
        "live",
        "--headless",
        "--frames",
        "10",
        "--set",
        "grid.rows=96",
        "--set",
        "grid.cols=96",
        "--json",
        "o.json",
    ]
    result = run(wheel, tmp_path, sys.executable, "-m", "lowdose.config.cli", *command)
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
    assert figures["frames"] == 10
    assert (tmp_path / "lowdose-live.png").exists()


def test_the_wheel_lists_its_patterns_and_refuses_unknown_ones(wheel, tmp_path):
    listed = run(wheel, tmp_path, sys.executable, "-m", "lowdose.config.cli", "pattern", "list")
    assert "spiral" in listed.stdout
    refused = run(wheel, tmp_path, sys.executable, "-m", "lowdose.config.cli", "pattern", "show", "spirl")
    assert refused.returncode == 2
    assert "did you mean 'spiral'" in refused.stderr
