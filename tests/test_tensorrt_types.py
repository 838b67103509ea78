"""TensorRT cannot be run everywhere: its calls are at least checked against the stubs of the oldest version."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ROOT / ".typing" / "pyright-tensorrt.json"
PLAN = "reconstruction/engines/tensorrt_plan.py"


@pytest.fixture
def pyright():
    if not (ROOT / ".typing" / "stubs" / "tensorrt").is_dir():
        pytest.skip("no stubs of TensorRT: make lint fetches them")
    pytest.importorskip("pyright", reason="pyright is not installed: make installs it")

    def check(settings):
        command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(settings)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)

    return check


def test_calls_of_tensorrt_exist(pyright):
    found = pyright(SETTINGS)
    assert found.returncode == 0, found.stdout


def test_made_up_method_is_refused(pyright, tmp_path):
    text = (ROOT / PLAN).read_text()
    (tmp_path / "plan.py").write_text(text.replace("build_serialized_network(", "build_serialised_network("))
    here = SETTINGS.parent
    settings = json.loads(SETTINGS.read_text())
    settings |= {"include": ["plan.py"], "stubPath": str(here / "stubs"), "extraPaths": [str(here)]}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    found = pyright(tmp_path / "settings.json")
    assert found.returncode == 1
    assert 'Cannot access attribute "build_serialised_network" for class "Builder"' in found.stdout
    assert "1 error" in found.stdout
