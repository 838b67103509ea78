"""`lowdose bench latency`: what is counted, and the names of its figures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from lowdose.config.bench import WARM_UP, latency_figures
from tests.config.conftest import PATIENT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MS = 1_000_000
SUMMARY = {"dropped": 1, "gaps": 2, "skipped": 3, "fps": 50.0, "pattern": "spiral", "coverage": 0.05}
KEYS = {"frames", "dropped", "size", "pattern", "coverage", "engine", "floor_ms", "end_to_end_ms", "pipeline_ms"}
KEYS |= {"paint_ms", "stages", "machine"}
PERCENTILES = {"p50", "p90", "p99", "max"}


def stamp(index: int, *, engine: str = "linear", late_ms: int = 0) -> dict[str, Any]:
    """Return a frame whose stages take 1, 2, 3, … ms, of which the engine 4."""
    names = ("last_sample", "sent", "received", "assembled", "prepared", "finished", "arrived", "painted")
    begin = index * 100 * MS
    ends_ms = (0, 1, 3, 6, 10, 20, 26, 33 + late_ms)
    times = {name: begin + ms * MS for name, ms in zip(names, ends_ms, strict=True)}
    return {"scan_id": "0123456789abcdef", "frame_index": index, "engine": engine, "engine_ns": 4 * MS, **times}


def figures(stamps: list[dict[str, Any]], frames: int = 1000) -> dict[str, Any]:
    return latency_figures({"stamps": stamps, "summary": SUMMARY}, frames=frames, size=64, floor_ms=1.5)


def test_every_figure_is_the_difference_of_its_stamps() -> None:
    found = figures([stamp(i) for i in range(WARM_UP + 20)])
    assert found["end_to_end_ms"]["p50"] == pytest.approx(33)
    assert found["paint_ms"]["p50"] == pytest.approx(7)
    assert found["pipeline_ms"]["p50"] == pytest.approx(26 - 4)
    medians = {name: stage["p50"] for name, stage in found["stages"].items()}
    assert medians == {
        "send": 1,
        "samples on the wire": 2,
        "assemble": 3,
        "look up maps": 4,
        "fill, normalise": 6,
        "engine": 4,
        "frame on the wire": 6,
        "paint": 7,
    }


def test_the_stages_add_up_to_the_whole() -> None:
    found = figures([stamp(i) for i in range(WARM_UP + 20)])
    assert sum(stage["p50"] for stage in found["stages"].values()) == pytest.approx(found["end_to_end_ms"]["p50"])


def test_the_names_are_those_of_the_contract() -> None:
    found = figures([stamp(i) for i in range(WARM_UP + 20)])
    assert set(found) >= KEYS
    assert set(found["end_to_end_ms"]) == PERCENTILES | {"worst_frame"}
    assert all(set(found[name]) == PERCENTILES for name in ("pipeline_ms", "paint_ms"))
    assert all(set(stage) == PERCENTILES for stage in found["stages"].values())
    assert (found["floor_ms"], found["size"], found["dropped"], found["engine"]) == (1.5, 64, 1, "linear")
    json.dumps(found)


def test_the_worst_frame_is_named() -> None:
    stamps = [stamp(i, late_ms=50 * (i == WARM_UP + 7)) for i in range(WARM_UP + 20)]
    found = figures(stamps)["end_to_end_ms"]
    assert (found["worst_frame"], found["max"]) == (f"01234567/{WARM_UP + 7}", 83)


def test_frames_of_the_warm_up_are_not_counted() -> None:
    stamps = [stamp(i, late_ms=1000 * (i < WARM_UP)) for i in range(WARM_UP + 20)]
    found = figures(stamps)
    assert (found["frames"], found["warm_up"]) == (20, WARM_UP)
    assert found["end_to_end_ms"]["max"] == 33


def test_the_warm_up_begins_when_the_engine_is_the_final_one() -> None:
    stamps = [stamp(i, engine="nearest" if i < 30 else "linear") for i in range(30 + WARM_UP + 20)]
    found = figures(stamps)
    assert (found["frames"], found["warm_up"], found["engine"]) == (20, 30 + WARM_UP, "linear")


def test_no_more_frames_are_counted_than_were_asked_for() -> None:
    found = figures([stamp(i) for i in range(3 * WARM_UP + 20)], frames=20)
    assert (found["frames"], found["warm_up"]) == (20, 3 * WARM_UP)


@pytest.mark.parametrize("n", [0, 1, WARM_UP])
def test_nothing_after_the_warm_up_is_told_and_no_figure_made_up(n: int) -> None:
    with pytest.raises(RuntimeError, match=f"nothing to measure: {n} frames came"):
        figures([stamp(i) for i in range(n)])


@pytest.mark.parametrize("record", [False, True], ids=["not recorded", "recorded"])
def test_bench_measures_the_real_pipeline(record: bool, start: Callable[..., Any], folder: Path) -> None:
    options = ("--frames", 20, "--size", 128, "--json", "bench.json", *(["--record"] * record), *PATIENT)
    code, out, err = start("bench", "latency", *options).end(60)
    assert code == 0, err
    assert "Traceback" not in err
    found = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    assert set(found) >= KEYS
    assert "worst_frame" in found["end_to_end_ms"]
    assert set(found["stages"]["engine"]) >= PERCENTILES
    assert (found["frames"], found["size"], found["dropped"]) == (20, 128, 0)
    assert found["floor_ms"] == pytest.approx(1.024, rel=0.05)
    assert found["end_to_end_ms"]["p50"] > found["paint_ms"]["p50"] > 0
    assert "end to end" in out
    assert found["recorded"] is record
    assert ("everything was recorded" in out) is record
    assert [path.name for path in folder.iterdir()] == ["bench.json"]
