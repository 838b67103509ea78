"""Recording under `live` and with services started alone: processes, signals and exit codes."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.messages import SampleBlock, ScanEnd
from lowdose.acquisition.session_check import verify
from lowdose.acquisition.session_reader import read_session
from lowdose.acquisition.settings import NetworkSettings
from lowdose.acquisition.sockets import free_endpoint
from lowdose.config.launch import RECORDING_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., Any]
    Until = Callable[..., Any]

END_S = 5.0
ENDLESS = ("--headless", "--frames", "1000000")


@pytest.fixture
def endpoints() -> dict[str, str]:
    return {name: free_endpoint() for name in NetworkSettings.model_fields}


@pytest.fixture
def named(endpoints: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"--set=network.{name}={endpoint}" for name, endpoint in endpoints.items())


@pytest.fixture
def client(endpoints: dict[str, str]) -> Iterator[MicroscopeClient]:
    """Return a client that may do what the supervisor may: it goes by the name of who holds the lease."""
    with MicroscopeClient(endpoints["control"], "supervisor", timeout_s=0.5) as asking:
        yield asking


@pytest.fixture
def status(client: MicroscopeClient) -> Callable[[], dict[str, Any]]:
    def ask() -> dict[str, Any]:
        try:
            return client.status()
        except TimeoutError:
            return {}

    return ask


@pytest.fixture
def recorded(start: Start, small: Any, named: Any, status: Any, until: Until) -> Callable[..., Any]:
    """Return a function that starts `live --record` and waits until it scans."""

    def run(*options: str) -> Any:
        live = start("live", *ENDLESS, *small, *named, "--record", "session.mcap", *options)
        until(lambda: status().get("acquired", 0) > 500, "frames that last longer than a chunk of the file")
        assert status()["recorder"] == "recorder of session.mcap"
        return live

    return run


def numbers_in(path: Path) -> list[int]:
    return [message.seq for message in read_session(path) if isinstance(message, SampleBlock)]


def assert_from_the_beginning(path: Path) -> None:
    numbers = numbers_in(path)
    assert numbers
    assert numbers == list(range(len(numbers)))


def test_live_records_everything_from_the_first_block_to_the_end(start: Start, small: Any, folder: Path) -> None:
    live = start("live", "--headless", "--frames", 30, *small, "--record", "session.mcap")
    code, _, err = live.end()
    assert (code, err) == (0, "")
    assert verify(folder / "session.mcap").whole
    assert_from_the_beginning(folder / "session.mcap")
    assert any(isinstance(message, ScanEnd) for message in read_session(folder / "session.mcap"))


def test_a_file_named_in_the_settings_is_recorded_to(start: Start, small: Any, folder: Path) -> None:
    live = start("live", "--headless", "--frames", 10, *small, "--set", "record={path: a.mcap, fsync: never}")
    code, _, err = live.end()
    assert (code, err) == (0, "")
    assert verify(folder / "a.mcap").whole


def test_nothing_recorded_is_overwritten(refused: Any, folder: Path, small: Any) -> None:
    (folder / "a.mcap").write_bytes(b"mine")
    assert "exists already" in refused("live", "--headless", *small, "--record", "a.mcap")
    assert "exists already" in refused("record", "a.mcap")
    assert "no folder" in refused("live", "--headless", *small, "--record", "nowhere/a.mcap")


def test_a_signal_ends_live_and_its_recording_is_whole(recorded: Any, folder: Path) -> None:
    live = recorded()
    live.children()
    live.signal(signal.SIGINT)
    code, _, err = live.end(END_S)
    assert (code, err) == (0, "")
    assert verify(folder / "session.mcap").whole
    assert live.left() == []


def test_a_recorder_that_is_killed_ends_live_with_code_1_saying_so(recorded: Any, folder: Path) -> None:
    live = recorded()
    live.child("record").kill()
    code, _, err = live.end(END_S)
    assert code == 1
    assert "a recording was lost" in err
    assert "recorder" in err
    assert "Traceback" not in err
    assert_from_the_beginning(folder / "session.mcap")
    assert live.left() == []


@pytest.mark.skipif(os.name != "posix", reason="freezes a process")
def test_a_recorder_that_is_frozen_ends_live_with_code_1_saying_so(recorded: Any, folder: Path) -> None:
    live = recorded()
    live.child("record").suspend()
    code, _, err = live.end(END_S)
    assert code == 1
    assert "recorder of session.mcap was silent" in err
    assert "a recording was lost" in err
    assert live.left() == []


def test_a_microscope_that_is_killed_leaves_a_readable_recording(recorded: Any, folder: Path) -> None:
    live = recorded()
    live.child("microscope").kill()
    code, _, err = live.end(END_S)
    assert code == 1
    assert "the microscope service ended" in err
    assert "Traceback" not in err
    assert_from_the_beginning(folder / "session.mcap")
    assert live.left() == []


def test_the_operator_begins_and_ends_recordings_while_the_scan_goes_on(
    start: Start, small: Any, named: Any, client: Any, status: Any, until: Until, folder: Path
) -> None:
    live = start("live", *ENDLESS, *small, *named)
    until(lambda: status().get("acquired", 0) > 5, "frames")
    scan_id = status()["scan_id"]
    client.begin_recording()
    until(lambda: status().get("recorder"), "a recorder")
    begun = status()["acquired"]
    until(lambda: status().get("acquired", 0) > begun + 5, "more frames")
    client.end_recording()
    until(lambda: "record" not in live.children(), "the end of the recorder")
    ended = status()["acquired"]
    until(lambda: status().get("acquired", 0) > ended + 5, "more frames")
    assert (status()["scan_id"], status()["state"]) == (scan_id, "scanning")
    live.signal(signal.SIGTERM)
    code, _, err = live.end(END_S)
    assert (code, err) == (0, "")
    (path,) = folder.glob("lowdose-*.mcap")
    assert verify(path).whole
    numbers = numbers_in(path)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_recording_that_cannot_begin_is_told_and_the_scan_goes_on(
    start: Start, small: Any, named: Any, client: Any, status: Any, until: Until, folder: Path
) -> None:
    live = start("live", *ENDLESS, *small, *named)
    until(lambda: status().get("acquired", 0) > 5, "frames")
    for later_s in range(100):  # every name it could take
        (folder / time.strftime(RECORDING_NAME, time.localtime(time.time() + later_s))).touch()
    client.begin_recording()
    until(lambda: not status().get("record_wanted", True), "the wish to be given up")
    assert status()["state"] == "scanning"
    live.signal(signal.SIGTERM)
    code, _, err = live.end(END_S)
    assert code == 0
    assert "exists already" in err
    assert "before anything was recorded" in err
    assert "Traceback" not in err


def test_a_recorder_alone_ends_on_ctrl_c_and_the_scan_goes_on(
    start: Start, small: Any, named: Any, client: Any, status: Any, until: Until, folder: Path
) -> None:
    start("microscope", *small, *named)
    until(status, "the microscope's answer")
    recorder = start("record", "alone.mcap", *named)
    until(lambda: status().get("recorder"), "the recorder")
    second = start("record", "other.mcap", *named)
    code, _, err = second.end()
    assert code == 1
    assert "recorder of alone.mcap records already" in err
    client.start()
    until(lambda: client.renew_lease() and status().get("acquired", 0) > 5, "frames")
    recorder.signal(signal.SIGINT)
    assert recorder.end(END_S)[:2] == (0, "")
    client.renew_lease()
    assert status()["state"] == "scanning"
    assert_from_the_beginning(folder / "alone.mcap")
    assert verify(folder / "alone.mcap").whole
    assert [path.name for path in folder.iterdir()] == ["alone.mcap"]
