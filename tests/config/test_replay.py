"""`lowdose replay` as its user starts it: recorded sessions, broken ones, steps, loops, a window."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from mcap.writer import Writer as McapWriter
from PIL import Image

from lowdose.acquisition.recording import PROFILE
from lowdose.config import replay
from lowdose.config.errors import ConfigError
from lowdose.config.replay import ReplayOptions, first_scan, with_grid_of
from lowdose.config.schema import LowdoseSettings
from lowdose.reconstruction.shipped import DEFAULT
from lowdose.scan_patterns import ScanGrid, ScanPath
from tests.simulator.sessions import blocks_of, new_raster, new_scan, scanned, write_session

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[..., Any]

GRID = ScanGrid((96, 64), pixel_size_nm=0.125)
START = new_scan(grid=GRID, channels=("HAADF",))
PER_FRAME = len(blocks_of(START, 1))
KEYS = {
    *("frames", "acquired", "skipped", "dropped", "gaps", "pattern", "coverage", "coverage_nominal", "dwell_time_us"),
    *("dose_e_per_a2", "dose_visited_e_per_a2", "engine", "fps", "latency_ms"),
}
END_S = 10.0


@pytest.fixture
def session(folder: Path) -> Path:
    second = new_scan("second", grid=ScanGrid((64, 64)), channels=("ADF", "BF"))
    messages = [*scanned(START, 20), *scanned(second, 15, first_seq=20 * PER_FRAME, t_ns=10**9)]
    return write_session(folder / "s.mcap", messages)


def figures_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    return found


# --- whole sessions -------------------------------------------------------------------------------------------------


def test_a_session_is_replayed_to_its_end_as_fast_as_it_can_be_completed(
    start: Start, session: Path, folder: Path
) -> None:
    started = start("replay", "s.mcap", "--speed", 0, "--headless", "--json", "out.json", "--picture", "out.png")
    code, out, err = started.end()
    assert (code, err) == (0, "")
    figures = figures_of(folder)
    assert set(figures) >= KEYS
    assert (figures["acquired"], figures["dropped"], figures["gaps"]) == (35, 0, 0)
    assert 0 < figures["frames"] <= 35
    assert figures["engine"] == DEFAULT
    assert (figures["pattern"], figures["dwell_time_us"], figures["state"]) == ("spiral", 2.0, "parked")
    with Image.open(folder / "out.png") as picture:
        assert picture.size[1] == 64
    assert "35 acquired" in out
    assert sorted(path.name for path in folder.iterdir()) == ["out.json", "out.png", "s.mcap"]


def test_frames_end_a_loop_and_a_signal_ends_it_too(start: Start, session: Path, until: Any) -> None:
    endless = ("replay", session, "--loop", "--headless")
    code, out, err = start(*endless, "--speed", 0, "--frames", 90).end()
    assert (code, err) == (0, "")
    assert "90 frames shown" in out
    running = start(*endless)
    until(lambda: set(running.children()) == {"replay", "reconstruct", "display"}, "all services")
    running.signal(2)
    assert running.end(END_S)[0] == 0
    assert running.left() == []


def test_a_start_time_and_another_engine_can_be_chosen_and_fewer_frames_than_asked_for_are_no_failure(
    start: Start, session: Path, folder: Path
) -> None:
    options = ("--start", 0.5, "--speed", 0, "--set", "stages=[{complete: nearest}]", "--frames", 1000)
    code, _, err = start("replay", session, "--headless", *options, "--json", "out.json").end()
    assert (code, err) == (0, "")
    assert (figures_of(folder)["acquired"], figures_of(folder)["engine"]) == (15, "nearest")


def test_a_replay_in_the_window_ends_with_the_session(start: Start, session: Path, folder: Path) -> None:
    offscreen = {"QT_QPA_PLATFORM": "offscreen"}
    code, _, err = start("replay", session, "--json", "out.json", environment=offscreen).end()
    assert code == 0, err
    assert "Traceback" not in err
    assert (figures_of(folder)["acquired"], figures_of(folder)["dropped"]) == (35, 0)


@pytest.mark.parametrize(("lines", "frames"), [("", 1), ("\n" * 9, 7)], ids=["none", "enough"])
def test_every_line_of_the_standard_input_is_a_step(lines: str, frames: int, folder: Path) -> None:
    session = write_session(folder / "s.mcap", scanned(START, 7))
    lowdose = Path(sys.executable).with_name("lowdose")
    command = [lowdose, "replay", session, "--step", "--headless", "--json", "out.json"]
    ended = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert figures_of(folder)["acquired"] == frames


# --- damaged ones ---------------------------------------------------------------------------------------------------


def test_what_can_be_read_of_a_damaged_session_is_replayed_and_told(start: Start, folder: Path) -> None:
    messages = [*blocks_of(new_scan("lost"), 2), *scanned(START, 30, first_seq=100, t_ns=10**8)]
    path = write_session(folder / "s.mcap", messages, chunk_of=lambda k: k % 5 == 4)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 : 4 * len(data) // 5])
    code, _, err = start("replay", path, "--speed", 0, "--headless", "--json", "out.json").end()
    assert code == 0
    assert "is not whole, what can be read was replayed" in err
    assert f"{len(blocks_of(new_scan(), 2))} blocks left out because their scan's start is missing, 0 because" in err
    assert "Traceback" not in err
    figures = figures_of(folder)
    assert 10 < figures["acquired"] < 30
    assert figures["blocks_lost"] == figures["dropped"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is no session: expected an MCAP file written by lowdose"),
        (b"GIF89a and so on", "is no session: expected an MCAP file written by lowdose"),
        (b"\x89MCAP0\r\n", "there are no samples in it"),
    ],
    ids=["empty", "another file", "cut short"],
)
def test_what_is_no_session_is_refused(content: bytes, why: str, refused: Any, folder: Path) -> None:
    (folder / "s.mcap").write_bytes(content)
    assert why in refused("replay", "s.mcap", "--headless")


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        ("ros2", "is an MCAP file, but no session of lowdose"),
        (f"{PROFILE}9", "is a session of format '9', this version"),
    ],
)
def test_other_formats_and_versions_are_refused(profile: str, why: str, refused: Any, folder: Path) -> None:
    with (folder / "s.mcap").open("wb") as file:
        writer = McapWriter(file)
        writer.start(profile=profile)
        writer.finish()
    assert why in refused("replay", "s.mcap", "--headless")


def test_a_session_without_its_scan_start_is_refused(refused: Any, folder: Path) -> None:
    write_session(folder / "s.mcap", blocks_of(START, 3))
    assert "the start of their scan is missing" in refused("replay", "s.mcap", "--headless")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--speed", "-2"), "speed must be 0, as fast as it goes, or a finite number >= 0.001, got -2"),
        (("--speed", "nan"), "a finite number >= 0.001, got nan"),
        (("--speed", "inf"), "a finite number >= 0.001, got inf"),
        (("--speed", "1e-300"), "a finite number >= 0.001, got 1e-300"),
        (("--start", "-1"), "start_s must be 0 to 1e+09 s, got -1"),
        (("--start", "1e300"), "start_s must be 0 to 1e+09 s, got 1e+300"),
        (("--set", "record.path=x.mcap"), "record.path is 'x.mcap', but a replay is not recorded"),
        (("--start", "99"), "no frame begins 99 s after the first, it lasts 1"),
        (("--json", "none/out.json"), "there is no folder"),
        (("--set", "stages=[{complete: nearst}]"), "nearest"),
        (("--set", "stages=[{complete: 'own.module:Engine'}]"), "cannot be imported"),
        (("--set", "speed=1"), "unknown key 'speed'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_are_wrong_are_refused_before_anything_starts(
    options: tuple[str, ...], why: str, refused: Any, session: Path
) -> None:
    assert why in refused("replay", session, "--headless", *options)


def test_a_missing_file_is_told_by_name(refused: Any) -> None:
    assert "cannot read nowhere.mcap: No such file" in refused("replay", "nowhere.mcap", "--headless")


# --- what the session decides, and what not -------------------------------------------------------------------------


def test_nothing_that_a_session_names_is_imported(start: Start, folder: Path) -> None:
    (folder / "own_trap.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    hostile = new_scan(grid=GRID, pattern={"name": "own_trap:Pattern", "coverage": "own_trap:X"})
    write_session(folder / "s.mcap", scanned(hostile, 3))
    trap = {"PYTHONPATH": str(folder)}
    code, out, err = start("replay", "s.mcap", "--speed", 0, "--headless", environment=trap).end()
    assert (code, err) == (0, "")
    assert "own_trap:Pattern coverage" in out


def test_a_grid_too_large_for_the_memory_is_refused_before_anything_is_made(refused: Any, folder: Path) -> None:
    few = ScanPath(ScanGrid((16_384, 16_384)), START.paths[0].positions, 2.0)
    write_session(folder / "s.mcap", scanned(new_scan(paths=(few,)), 1))
    assert "a grid of 16384 x 16384 needs about" in refused("replay", "s.mcap", "--headless")


def test_the_grid_made_ready_is_the_recorded_one(session: Path) -> None:
    settings = with_grid_of(first_scan(session, ReplayOptions()), LowdoseSettings())
    assert settings.grid.build() == GRID
    later = with_grid_of(first_scan(session, ReplayOptions(start_s=0.5)), LowdoseSettings())
    assert (later.grid.rows, later.grid.cols) == (64, 64)


def test_a_scan_that_does_not_fit_later_on_is_left_out(session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def require(grid: ScanGrid, _n_channels: int) -> None:
        if grid == GRID:
            raise ConfigError("too large")

    monkeypatch.setattr(replay, "require_memory", require)
    with pytest.raises(ConfigError, match="too large"):
        first_scan(session, ReplayOptions())


def test_a_recorded_raster_is_what_live_looks_at(start: Start, small: Any, folder: Path) -> None:
    write_session(folder / "raster.mcap", scanned(new_raster(grid=ScanGrid((64, 64), 0.1)), 2))
    live = start("live", "--headless", "--frames", 5, *small, "--images", "raster.mcap", "--json", "out.json")
    code, _, err = live.end()
    assert code == 0, err
    assert "a pixel of this grid shows 0.05 nm of the image" in err or err == ""
    assert figures_of(folder)["frames"] == 5
    assert np.isfinite(figures_of(folder)["coverage"])
