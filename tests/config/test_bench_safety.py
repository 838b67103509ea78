"""`lowdose bench safety`: what is counted, and the names of its figures."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from lowdose.config.bench_safety import FAULTS, Fault, Trial, _made, _settings_for, row_of
from lowdose.config.loading import load_settings
from lowdose.simulator.faults import NEVER_NS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MS = 1_000_000
PERCENTILES = {"p50", "p99", "max"}


def test_detection_counts_from_the_fault_and_blanking_from_its_condition() -> None:
    row = row_of("stall", "idle", [Trial(100 * MS, 150 * MS, 152 * MS, 153 * MS, alarm=False)])
    assert row == {
        "fault": "stall",
        "setup": "idle",
        "n": 1,
        "detect_ms": dict.fromkeys(("p50", "p99", "max"), 52.0),
        "blank_ms": dict.fromkeys(("p50", "p99", "max"), 3.0),
        "alarm": False,
    }


def test_a_beam_that_was_off_before_its_condition_counts_as_at_once() -> None:
    row = row_of("frozen", "idle", [Trial(0, 10 * MS, 12 * MS, 5 * MS, alarm=False)])
    assert row["blank_ms"]["max"] == 0


def test_one_beam_that_never_went_off_leaves_no_figure_and_an_alarm() -> None:
    trials = [Trial(0, 0, MS, 2 * MS, alarm=True), Trial(0, 0, MS, NEVER_NS, alarm=True)]
    row = row_of("refuses", "idle", trials)
    assert row["blank_ms"] is None
    assert row["alarm"]


needs_posix = pytest.mark.skipif(os.name != "posix", reason="the bench needs POSIX signals")


@needs_posix
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_is_made_known_and_answered(fault: Fault, folder: Path) -> None:
    settings = _settings_for(load_settings(None, ["grid.rows=128", "grid.cols=128"]), fault)
    (trial,) = _made(settings, fault, "two processes" if fault.two_processes_only else "in-process", 1)
    assert trial.fault_ns <= trial.known_ns
    assert (trial.off_ns == NEVER_NS) == (fault.name == "refuses to blank")
    assert trial.alarm == (fault.name in ("refuses to blank", "exception in the driver"))


@needs_posix
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_fault_is_measured_in_every_setup(start: Callable[..., object], folder: Path) -> None:
    code, out, err = start("bench", "safety", "--frames", 1, "--json", "safety.json").end(500)  # type: ignore[attr-defined]
    assert code == 0, err
    assert "Traceback" not in err
    rows = json.loads((folder / "safety.json").read_text(encoding="utf-8"))["rows"]
    setups = {f"{place}, {load}" for place in ("in-process", "two processes") for load in ("idle", "busy")}
    expected = {(f.name, s) for f in FAULTS for s in setups if "two" in s or not f.two_processes_only}
    assert {(row["fault"], row["setup"]) for row in rows} == expected
    for row in rows:
        assert set(row) == {"fault", "setup", "n", "detect_ms", "blank_ms", "alarm"}
        assert set(row["detect_ms"]) == PERCENTILES
        assert row["n"] == 1
        refuses = row["fault"] == "refuses to blank"
        assert row["blank_ms"] is None if refuses else set(row["blank_ms"]) == PERCENTILES
        assert row["alarm"] == (refuses or row["fault"] == "exception in the driver")
    assert "condition" in out
    assert [path.name for path in folder.iterdir()] == ["safety.json"]
