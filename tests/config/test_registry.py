"""Plug-ins by name: the shipped tables, a user's own classes, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lowdose.config.errors import ConfigError
from lowdose.config.registry import TABLES, make_pattern, make_plug_in, plug_in_class
from lowdose.scan_patterns.grid import ScanGrid

if TYPE_CHECKING:
    from pathlib import Path

GRID = ScanGrid((64, 64))
ROWS = [(kind, name) for kind, table in TABLES.items() for name in table]

OWN = """
import dataclasses
import numpy as np
from lowdose.scan_patterns.path import ScanPath

@dataclasses.dataclass(frozen=True)
class Diagonal:
    step: int = 1

    def paths(self, grid, *, dwell_time_us, rng):
        n = min(grid.shape)
        positions = np.repeat(np.arange(0, n, self.step, dtype=np.float32)[:, None], 2, axis=1)
        return (ScanPath(grid, positions, dwell_time_us, jumps=np.ones(len(positions), bool)),)

@dataclasses.dataclass(frozen=True)
class Array:
    points: np.ndarray

    def paths(self, grid, *, dwell_time_us, rng): ...

class Plain:
    def __init__(self, step):
        self.step = step

    def paths(self, grid, *, dwell_time_us, rng):
        return Diagonal(self.step).paths(grid, dwell_time_us=dwell_time_us, rng=rng)

def function(): ...
"""


@pytest.fixture
def own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_patterns_tested.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "broken_module_tested.py").write_text("def f(:\n", encoding="utf-8")
    (tmp_path / "raising_module_tested.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_patterns_tested"


@pytest.mark.parametrize(("kind", "name"), ROWS, ids=["-".join(row) for row in ROWS])
def test_every_row_of_every_table_can_be_imported(kind: Any, name: str) -> None:
    assert isinstance(plug_in_class(kind, name, local=False), type)


@pytest.mark.parametrize(
    ("kind", "name", "nearest"),
    [
        ("pattern", "spirl", "spiral"),
        ("controller", "simulatd", "simulated"),
        ("engine", "linaer", "linear"),
        ("specimen", "image", "images"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(kind: Any, name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown {kind} '{name}': did you mean '{nearest}'"):
        plug_in_class(kind, name, local=True)


@pytest.mark.parametrize("kind", TABLES)
def test_an_own_class_is_refused_unless_it_is_named_locally(kind: Any) -> None:
    with pytest.raises(ConfigError, match=f"unknown {kind} 'json:JSONDecoder'"):
        plug_in_class(kind, "json:JSONDecoder", local=False)


def test_an_own_pattern_is_made_of_its_parameters(own_parts: str) -> None:
    pattern = make_pattern({"name": f"{own_parts}:Diagonal", "step": 2}, GRID, local=True)
    assert len(pattern.paths(GRID, dwell_time_us=1.0, rng=None)[0]) == 32  # type: ignore[arg-type]


def test_an_own_class_need_not_be_a_dataclass(own_parts: str) -> None:
    assert make_plug_in("pattern", {"name": f"{own_parts}:Plain", "step": 3}, local=True).step == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module_tested:X", "cannot be imported"),
        ("own_patterns_tested:Missing", "cannot be imported"),
        ("own_patterns_tested:", "cannot be imported"),
        ("own_patterns_tested:function", "not a class but function"),
        ("broken_module_tested:X", "cannot be imported: SyntaxError"),
        ("raising_module_tested:X", "cannot be imported: ZeroDivisionError"),
        (".relative:X", "cannot be imported"),
        (":X", "cannot be imported"),
        ("json:JSONDecoder", "has no method 'paths'"),
    ],
)
@pytest.mark.usefixtures("own_parts")
def test_an_own_class_that_cannot_be_used_is_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_pattern({"name": name}, GRID, local=True)


def test_an_own_field_that_cannot_stand_in_yaml_is_refused(own_parts: str) -> None:
    with pytest.raises(ConfigError, match="cannot stand in YAML"):
        make_pattern({"name": f"{own_parts}:Array", "points": [1]}, GRID, local=True)


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({}, "pattern needs a name"),
        ({"name": 5}, "pattern needs a name"),
        ({"name": "spiral", "coverag": 0.1}, "no parameter 'coverag': did you mean 'coverage'"),
        ({"name": "raster", "coverage": 0.1}, "no parameter 'coverage': Known: lines"),
        ({"name": "raster", "true_coverage": 0.1}, "no coverage to choose"),
        ({"name": "spiral", "overscan": "maybe"}, "'spiral', overscan"),
        ({"name": "spiral", "coverage": [0.1]}, "coverage must be a number"),
        ({"name": "spiral", "coverage": {"a": 1}}, "coverage must be a number"),
        ({"name": "spiral", "true_coverage": "much"}, "coverage must be a number"),
        ({"name": "jittered", "coverage": 0.6}, "coverage"),
    ],
)
def test_a_wrong_pattern_is_refused_in_words(mapping: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_pattern(mapping, GRID)


@pytest.mark.parametrize("coverage", [0, -1, 1.5, float("nan"), float("inf"), "abc", "1/0", "", "0", "-1/20", "21/20"])
@pytest.mark.parametrize("key", ["coverage", "true_coverage"])
def test_a_coverage_that_is_no_share_is_refused(key: str, coverage: Any) -> None:
    with pytest.raises(ConfigError, match="coverage must be"):
        make_pattern({"name": "spiral", key: coverage}, GRID)


@pytest.mark.parametrize("name", ["spiral", "jittered"])
@pytest.mark.parametrize("wanted", ["1/16", "1/20"])
def test_true_coverage_is_met_within_two_percent(name: str, wanted: str) -> None:
    grid = ScanGrid((256, 256))
    pattern = make_pattern({"name": name, "true_coverage": wanted}, grid)
    path = pattern.paths(grid, dwell_time_us=1.0, rng=np.random.default_rng(0))[0]
    top, bottom = map(int, wanted.split("/"))
    assert path.coverage == pytest.approx(top / bottom, rel=0.02)
