from __future__ import annotations

import ast
import doctest
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("acquisition", "config", "reconstruction", "scan_patterns", "simulator", "training")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PYPROJECT["tool"]["setuptools"]["packages"]


def modules():
    for floor in FLOORS:
        for file in sorted((ROOT / floor).rglob("*.py")):
            dotted = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            yield "lowdose." + dotted.removesuffix(".__init__")


def imports_of(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_the_package_list_names_every_folder_with_an_init_and_those_of_data():
    folders = {
        "lowdose." + ".".join(init.parent.relative_to(ROOT).parts)
        for floor in FLOORS
        for init in (ROOT / floor).rglob("__init__.py")
    }
    data = set(PYPROJECT["tool"]["setuptools"]["package-data"])
    assert folders | data == set(PACKAGES)
    assert not folders & data


def test_every_folder_with_code_has_an_init():
    for floor in FLOORS:
        for file in (ROOT / floor).rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), file.parent


def test_type_checkers_see_every_floor_through_a_link():
    for floor in FLOORS:
        assert (ROOT / ".typing" / "lowdose" / floor).resolve() == ROOT / floor


def test_scan_patterns_import_nothing_but_numpy_and_scipy():
    allowed = {"numpy", "scipy", "lowdose", *sys.stdlib_module_names}
    for file in (ROOT / "scan_patterns").rglob("*.py"):
        assert set(imports_of(file)) <= allowed, file
        text = file.read_text(encoding="utf-8")
        assert "lowdose." not in text.replace("lowdose.scan_patterns", ""), file


def test_the_view_model_knows_no_qt():
    for name in ("view_model", "counters", "levels", "receiver", "operator", "keys", "snapshot", "headless"):
        imported = set(imports_of(ROOT / "acquisition" / "display" / f"{name}.py"))
        assert not imported & {"PySide6", "pyqtgraph"}, name


@pytest.mark.parametrize("name", list(modules()))
def test_docstring_examples_run(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_help_answers_without_importing_anything_heavy():
    code = (
        "import sys; from lowdose.config import cli\n"
        "heavy = {'numpy', 'scipy', 'zmq', 'PySide6', 'pyqtgraph', 'matplotlib', 'openvino'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_live_services_need_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import lowdose.config.build as b, lowdose.config.loading as l\n"
        "s = l.load_settings(None, ['grid.rows=64', 'grid.cols=64', 'network.control=inproc://c',"
        " 'network.samples=inproc://s', 'network.record=inproc://r', 'network.frames=inproc://f'])\n"
        "m, r = b.build_microscope(s), b.build_reconstruction(s)\n"
        "m.close(); r.close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_pins_hold_the_window_library_where_it_is_known_to_work():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    assert "torch==2.13.0" in pins
    version = next(line.split("==")[1] for line in pins.splitlines() if line.startswith("pyside6"))
    assert (6, 10) <= tuple(map(int, version.split(".")[:2])) < (6, 12)
