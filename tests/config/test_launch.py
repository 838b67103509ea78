"""Processes and supervision: `live` as the operator starts it, and services started alone."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from PIL import Image

from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.frames import DenseFrame
from lowdose.acquisition.settings import NetworkSettings
from lowdose.acquisition.sockets import EndpointError, Subscriber, free_endpoint
from lowdose.config import launch
from lowdose.config.launch import Child, with_free_ports
from lowdose.config.loading import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., Any]
    Until = Callable[..., Any]

KEYS = {
    *("frames", "acquired", "skipped", "dropped", "gaps", "pattern", "coverage", "coverage_nominal", "dwell_time_us"),
    *("dose_e_per_a2", "dose_visited_e_per_a2", "engine", "fps", "latency_ms", "state", "alarm", "late"),
    *("blocks_lost", "blocks_refused", "engine_failures", "frames_by_engine"),
}
SERVICES = {"microscope", "reconstruct", "display"}
END_S = 5.0
"""Design says 2 s of the end; the rest is for a machine that runs other tests at the same time."""

NO_SCREEN = dict.fromkeys(("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"))
ENDLESS = ("--headless", "--frames", "1000000")


@pytest.fixture
def endpoints() -> dict[str, str]:
    return {name: free_endpoint() for name in NetworkSettings.model_fields}


@pytest.fixture
def named(endpoints: dict[str, str]) -> tuple[str, ...]:
    """Return options that name all endpoints."""
    return tuple(f"--set=network.{name}={endpoint}" for name, endpoint in endpoints.items())


@pytest.fixture
def newer_frame(endpoints: dict[str, str], until: Until) -> Callable[[int], int]:
    """Return a function that waits for a frame with a larger index than the one given, and returns it."""

    def wait(than: int = 5) -> int:
        with Subscriber(endpoints["frames"], ("frames",), hwm=2) as frames:

            def look() -> DenseFrame | None:
                message = frames.receive(0.05)
                return message if isinstance(message, DenseFrame) and message.frame_index > than else None

            return int(until(look, f"a frame after {than}").frame_index)

    return wait


@pytest.fixture
def client(endpoints: dict[str, str]) -> Iterator[MicroscopeClient]:
    with MicroscopeClient(endpoints["control"], "test", timeout_s=0.5) as asking:
        yield asking


def status(client: MicroscopeClient) -> dict[str, Any] | None:
    try:
        return client.status()
    except TimeoutError:
        return None


# --- live -----------------------------------------------------------------------------------------------------------


def test_live_ends_after_its_frames_and_leaves_figures_and_picture(start: Start, small: Any, folder: Path) -> None:
    # a file of the operator's own that is named like a module of the library must not be imported
    (folder / "queue.py").write_text("raise SystemExit('imported from the working folder')\n", encoding="utf-8")
    live = start("live", "--headless", "--frames", 30, *small, "--picture", "out.png", "--json", "out.json")
    code, out, err = live.end()
    assert (code, err) == (0, "")
    figures = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert set(figures) == KEYS
    assert set(figures["latency_ms"]) == {"p50", "p90", "p99", "max"}
    assert (figures["frames"], figures["dropped"], figures["gaps"]) == (30, 0, 0)
    assert (figures["pattern"], figures["coverage_nominal"], figures["dwell_time_us"]) == ("spiral", 0.05, 1.0)
    assert figures["acquired"] >= 30
    with Image.open(folder / "out.png") as picture:
        assert picture.size[1] == 128
    assert "30 frames shown" in out
    assert sorted(path.name for path in folder.iterdir()) == ["out.json", "out.png", "queue.py"]


def test_live_without_a_screen_says_so_and_leaves_a_picture(start: Start, small: Any, folder: Path) -> None:
    code, out, err = start("live", *small, environment=NO_SCREEN).end()
    assert (code, err) == (0, "")
    assert "no screen: running without a window" in out
    assert "200 frames shown" in out
    assert [path.name for path in folder.iterdir()] == ["lowdose-live.png"]


def test_live_with_a_window_ends_after_its_frames(start: Start, small: Any, folder: Path) -> None:
    offscreen = {"QT_QPA_PLATFORM": "offscreen"}
    code, _, err = start("live", "--frames", 20, *small, "--json", "out.json", environment=offscreen).end()
    assert code == 0, err
    assert "Traceback" not in err
    figures = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert set(figures) == KEYS
    assert (figures["frames"], figures["dropped"]) == (20, 0)


def test_live_takes_an_own_pattern_from_yaml(start: Start, small: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own_live_pattern.py").write_text(
        "import dataclasses\nimport numpy as np\nfrom lowdose.scan_patterns.path import ScanPath\n\n"
        "@dataclasses.dataclass(frozen=True)\nclass Comb:\n    step: int = 8\n\n"
        "    def paths(self, grid, *, dwell_time_us, rng):\n"
        "        positions = np.indices(grid.shape, dtype=np.float32)[:, ::self.step].reshape(2, -1).T\n"
        "        return (ScanPath(grid, positions, dwell_time_us, jumps=positions[:, 1] == 0),)\n",
        encoding="utf-8",
    )
    config = tmp_path / "own.yaml"
    config.write_text("scan: {pattern: {name: 'own_live_pattern:Comb', step: 4}}\n", encoding="utf-8")
    options = ("--headless", "--frames", 5, *small, "--json", "out.json")
    code, _, err = start("live", config, *options, environment={"PYTHONPATH": str(tmp_path)}).end()
    assert (code, err) == (0, "")
    figures = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert (figures["pattern"], figures["coverage"]) == ("own_live_pattern:Comb", 0.25)


def test_a_run_that_a_fault_cuts_short_is_no_success(start: Start, small: Any, folder: Path) -> None:
    faults = ("--set", "controller={name: simulated, faults: {stall: 3000}}")
    live = start("live", "--headless", "--frames", 100_000, *small, *faults, "--json", "out.json")
    code, _, err = live.end()
    assert code == 1
    assert "delivered nothing" in err
    assert "of 100000 frames" in err
    assert json.loads((folder / "out.json").read_text(encoding="utf-8"))["state"] == "parked"


def test_the_services_of_live_are_named_subcommands(start: Start, small: Any, until: Until) -> None:
    live = start("live", *ENDLESS, *small)
    until(lambda: set(live.children()) == SERVICES, "all services")
    for name, process in live.children().items():
        line = process.cmdline()
        assert line[1:4] == ["-m", "lowdose.config.cli", name]
        assert "--config" in line


@pytest.mark.skipif(os.name != "posix", reason="sessions of processes are POSIX")
def test_ctrl_c_of_the_terminal_reaches_the_supervisor_only(start: Start, small: Any, until: Until) -> None:
    live = start("live", *ENDLESS, *small)
    until(lambda: set(live.children()) == SERVICES, "all services")
    assert all(os.getpgid(process.pid) != os.getpgid(live.process.pid) for process in live.children().values())
    os.killpg(live.process.pid, signal.SIGINT)  # as early as possible: they are still importing
    code, _, err = live.end(END_S)
    assert code == 0
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_ends_everything_within_two_seconds(
    number: int, start: Start, small: Any, named: Any, newer_frame: Any, until: Until
) -> None:
    live = start("live", *ENDLESS, *small, *named)
    newer_frame()
    assert set(live.children()) == SERVICES
    live.signal(number)
    code, _, err = live.end(END_S)
    assert (code, err) == (0, "")
    assert live.left() == []


def test_live_ends_with_code_1_when_the_microscope_is_killed(
    start: Start, small: Any, named: Any, newer_frame: Any, until: Until
) -> None:
    live = start("live", *ENDLESS, *small, *named)
    newer_frame()
    live.children()["microscope"].kill()
    code, _, err = live.end(END_S)
    assert code == 1
    assert "the microscope service ended" in err
    assert "Traceback" not in err
    assert live.left() == []


@pytest.mark.parametrize(("victim", "told"), [("reconstruct", "reconstruction"), ("display", "display")])
def test_a_killed_viewer_is_started_again_and_the_scan_goes_on(
    victim: str, told: str, start: Start, small: Any, named: Any, newer_frame: Any, client: Any, until: Until
) -> None:
    live = start("live", *ENDLESS, *small, *named)
    seen = newer_frame()
    old = live.children()
    before = until(lambda: status(client), "the microscope's answer")
    old[victim].kill()
    until(lambda: live.children().get(victim, old[victim]).pid != old[victim].pid, f"another {victim}")
    acquired = until(lambda: status(client), "the microscope's answer")["acquired"]
    newer_frame(max(seen, acquired))
    after = until(lambda: status(client), "the microscope's answer")
    assert after["scan_id"] == before["scan_id"]
    assert after["state"] == "scanning"
    assert live.children()["microscope"].pid == old["microscope"].pid
    live.signal(signal.SIGTERM)
    code, _, err = live.end(END_S)
    assert code == 0
    assert f"the {told} died" in err
    assert live.left() == []


def newer(live: Any, than: int) -> psutil.Process | None:
    found = live.children().get("reconstruct")
    return found if found is not None and found.pid != than else None


def test_a_viewer_that_dies_again_and_again_ends_live_with_code_1(start: Start, small: Any, until: Until) -> None:
    live = start("live", *ENDLESS, *small)
    old = 0
    for _ in range(4):
        victim = until(lambda old=old: newer(live, old), "another reconstruction")
        victim.kill()
        old = victim.pid
    code, _, err = live.end(END_S)
    assert code == 1
    assert err.count(": started again, the scan goes on") == 3
    assert "not started again" in err
    assert live.left() == []


def test_the_services_end_by_themselves_when_the_supervisor_is_killed(
    start: Start, small: Any, named: Any, newer_frame: Any, until: Until
) -> None:
    live = start("live", *ENDLESS, *small, *named)
    newer_frame()
    assert set(live.children()) == SERVICES
    live.signal(signal.SIGKILL)
    until(lambda: not live.left(), "the end of all services", END_S)


@pytest.mark.parametrize("victim", sorted(SERVICES))
def test_a_frozen_service_does_not_keep_live_from_ending(
    victim: str, start: Start, small: Any, named: Any, newer_frame: Any, until: Until
) -> None:
    live = start("live", *ENDLESS, *small, *named)
    newer_frame()
    live.children()[victim].suspend()
    live.signal(signal.SIGTERM)
    code, _, err = live.end(END_S)
    assert code == 0
    assert "Traceback" not in err
    assert live.left() == []


def test_a_frozen_supervisor_blanks_the_beam(
    start: Start, small: Any, named: Any, newer_frame: Any, client: Any, until: Until
) -> None:
    live = start("live", *ENDLESS, *small, *named)
    newer_frame()
    live.children()
    live.signal(signal.SIGSTOP)
    until(lambda: (status(client) or {}).get("state") == "parked", "the beam to be parked", END_S)


def test_live_keeps_the_endpoints_that_were_named(
    start: Start, small: Any, named: Any, endpoints: dict[str, str], client: Any, until: Until
) -> None:
    live = start("live", *ENDLESS, *small, *named)
    until(lambda: status(client), "the microscope's answer")
    ours = [c for child in live.children().values() for c in child.net_connections("tcp") if c.status == "LISTEN"]
    assert {f"tcp://{c.laddr.ip}:{c.laddr.port}" for c in ours} <= set(endpoints.values())


def test_nothing_listens_beyond_this_machine(start: Start, small: Any, until: Until) -> None:
    live = start("live", *ENDLESS, *small)

    def listening() -> list[Any]:
        children = [*live.children().values(), psutil.Process(live.process.pid)]
        return [c for child in children for c in child.net_connections("inet") if c.status == "LISTEN"]

    found = until(lambda: len(listening()) == len(NetworkSettings.model_fields) and listening(), "all endpoints")
    assert {connection.laddr.ip for connection in found} == {"127.0.0.1"}


# --- services started alone -----------------------------------------------------------------------------------------


def test_services_started_alone_work_and_never_end_each_other(
    start: Start, small: Any, named: Any, newer_frame: Any, client: Any, until: Until, folder: Path
) -> None:
    microscope, reconstruction = (start(name, *small, *named) for name in ("microscope", "reconstruct"))
    until(lambda: (status(client) or {}).get("has_listener"), "the reconstruction to listen")
    display = start("display", "--headless", "--frames", 20, *named, "--json", "out.json", "--picture", "out.png")
    code, _, err = display.end()
    assert (code, err) == (0, "")
    assert json.loads((folder / "out.json").read_text(encoding="utf-8"))["frames"] == 20
    assert (folder / "out.png").exists()
    until(lambda: (status(client) or {}).get("state") == "parked", "the beam off once its display has gone")
    assert (microscope.process.poll(), reconstruction.process.poll()) == (None, None)

    reconstruction.signal(signal.SIGKILL)
    reconstruction.end(END_S)
    assert until(lambda: status(client), "the microscope's answer")["state"] == "parked"
    until(lambda: not (status(client) or {}).get("has_listener"), "the killed one to be missed")
    again = start("reconstruct", *small, *named)
    until(lambda: (status(client) or {}).get("has_listener"), "the other reconstruction to listen")
    until(lambda: not (status(client) or {})["control_holder"], "control to be free again")
    assert start("display", "--headless", "--frames", 20, *named).end()[0] == 0

    microscope.signal(signal.SIGTERM)
    assert microscope.end(END_S)[0] == 0
    assert again.process.poll() is None
    again.signal(signal.SIGINT)
    assert again.end(END_S)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_display_that_waits_for_its_microscope_ends_on_a_signal(
    number: int, start: Start, named: Any, until: Until
) -> None:
    display = start("display", "--headless", *named)
    until(lambda: psutil.Process(display.process.pid).num_threads() > 3, "the display to wait")
    display.signal(number)
    code, out, err = display.end(END_S)
    assert code == 0
    assert "Traceback" not in err
    assert "no frame came" in out


# --- functions ------------------------------------------------------------------------------------------------------


def test_a_child_may_be_started_again_three_times_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.time, "monotonic", lambda: 100.0)
    child = Child("display", ())
    for starts, may in ((1, True), (2, True), (3, True), (4, False)):
        child.started_s = deque([99.0] * starts)
        assert child.may_restart() is may


def test_starts_of_more_than_a_minute_ago_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.time, "monotonic", lambda: 100.0)
    child = Child("display", (), started_s=deque([1.0, 2.0, 3.0, 39.0, 41.0]))
    assert child.may_restart()
    assert list(child.started_s) == [41.0]


def test_a_child_that_was_never_started_can_be_ended() -> None:
    child = Child("display", ())
    child.ask_to_end()
    child.end(0.0)
    assert child.ended() is None


def test_endpoints_nobody_named_are_free_ones() -> None:
    network = with_free_ports(load_settings(), lambda _: False).network
    endpoints = [endpoint for _, endpoint in network]
    assert all(endpoint.startswith("tcp://127.0.0.1:") for endpoint in endpoints)
    assert len(set(endpoints)) == len(endpoints)
    assert not set(endpoints) & {endpoint for _, endpoint in NetworkSettings()}


def test_named_endpoints_are_kept_and_port_0_is_a_free_one() -> None:
    control = free_endpoint()
    settings = load_settings(None, [f"network.control={control}", "network.samples=tcp://127.0.0.1:0"])
    network = with_free_ports(settings, {"control", "samples"}.__contains__).network
    assert network.control == control
    assert not network.samples.endswith(":0")


def test_a_port_in_use_is_named_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = load_settings(None, [f"network.frames=tcp://127.0.0.1:{taken.getsockname()[1]}"])
        with pytest.raises(EndpointError, match=r"network\.frames: tcp://127\.0\.0\.1:\d+ cannot be bound"):
            with_free_ports(settings, {"frames"}.__contains__)


@pytest.mark.parametrize("endpoint", ["ipc:///tmp/lowdose-test", "tcp://localhost:0", "tcp://127.0.0.1:0"])
def test_endpoints_of_this_machine_are_accepted(endpoint: str) -> None:
    assert with_free_ports(load_settings(None, [f"network.frames={endpoint}"]), {"frames"}.__contains__)
