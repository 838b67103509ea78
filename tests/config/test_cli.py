"""The command line: wrong input ends with code 2 and a sentence, before anything is started or written."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from lowdose.acquisition.display import qt_checks
from lowdose.acquisition.display.qt_checks import DisplayError
from lowdose.acquisition.recording import SessionWriter
from lowdose.config import cli
from lowdose.config.figures import write_json
from lowdose.config.loading import preset_names
from lowdose.scan_patterns.pattern import PATTERNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")


@pytest.fixture
def no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SCREENS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def used_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield f"tcp://127.0.0.1:{taken.getsockname()[1]}"


WRONG_OPTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown pattern": (("--pattern", "spirl"), "did you mean 'spiral'"),
    "unknown key": (("--set", "scan.dwel_time_us=1"), "did you mean 'dwell_time_us'"),
    "unknown engine": (("--set", "stages=[{complete: linaer}]"), "did you mean 'linear'"),
    "unknown preset": ((preset_names()[0][:-1],), f"did you mean '{preset_names()[0]}'"),
    "unknown specimen": (("--set", "specimen.name=procedurl"), "did you mean 'procedural'"),
    "unknown controller": (("--set", "controller.name=simulatd"), "did you mean 'simulated'"),
    "unknown option": (("--patern", "spiral"), "No such option"),
    "coverage 0": (("--coverage", "0"), "coverage must be > 0 and <= 1 (0.05 or 1/20), got 0"),
    "coverage -1": (("--coverage=-1",), "got -1"),
    "coverage 1.5": (("--coverage", "1.5"), "got 1.5"),
    "coverage nan": (("--coverage", "nan"), "coverage must be"),
    "coverage abc": (("--coverage", "abc"), "a fraction such as 1/20, got 'abc'"),
    "coverage 1/0": (("--coverage", "1/0"), "got '1/0'"),
    "coverage empty": (("--coverage", ""), "coverage"),
    "true coverage 0": (("--true-coverage", "0"), "coverage must be > 0"),
    "coverage of raster": (("--pattern", "raster", "--coverage", "1/20"), "no parameter 'coverage'"),
    "true coverage of raster": (("--pattern", "raster", "--true-coverage", "1/20"), "no coverage to choose"),
    "both coverages": (("--coverage", "1/20", "--true-coverage", "1/20"), "not both"),
    "dwell 0": (("--set", "scan.dwell_time_us=0"), "scan.dwell_time_us: "),
    "dwell -1": (("--set", "scan.dwell_time_us=-1"), "got -1"),
    "dwell nan": (("--set", "scan.dwell_time_us=.nan"), "got nan"),
    "dwell below the controller's": (("--set", "scan.dwell_time_us=0.001"), "on this controller"),
    "no frames": (("--frames", "0"), "frames"),
    "half a frame": (("--frames", "1.5"), "frames"),
    "no image": (("--images", "missing.tif"), "missing.tif"),
    "picture into a missing folder": (("--picture", "missing/x.png"), "there is no folder"),
    "json into a missing folder": (("--json", "missing/x.json"), "there is no folder"),
    "picture is a folder": (("--picture", "."), "it is a folder"),
    "json is a folder": (("--json", "."), "it is a folder"),
    "not loopback": (("--set", "network.control=tcp://0.0.0.0:0"), "only loopback"),
    "another machine": (("--set", "network.frames=tcp://192.168.1.5:5753"), "only loopback"),
    "no port": (("--set", "network.samples=tcp://127.0.0.1"), "port must be 0 to 65535"),
    "no such port": (("--set", "network.control=tcp://127.0.0.1:99999"), "port must be 0 to 65535"),
    "within one process": (("--set", "network.control=inproc://here"), "live needs tcp://"),
    "one port twice": (
        ("--set", "network.control=tcp://127.0.0.1:47113", "--set", "network.frames=tcp://127.0.0.1:47113"),
        "network.frames: tcp://127.0.0.1:47113 cannot be bound",
    ),
}


@pytest.mark.parametrize(("options", "words"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_live_refuses_a_wrong_option(
    options: tuple[str, ...], words: str, refused: Callable[..., str], small: Any
) -> None:
    complaint = refused("live", *small, *options, "--headless")
    assert words in " ".join(complaint.split())


IMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty.tif": (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
    "garbage.tif": (lambda path: path.write_bytes(b"no image" * 100), "cannot be read"),
    "garbage.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50)), "cannot be read"),
    "zero.npy": (lambda path: np.save(path, np.zeros((0, 64), np.float32)), "without pixels"),
    "rgba.png": (lambda path: Image.new("RGBA", (64, 64)).save(path), "colour image"),
    "nan.tif": (lambda path: tifffile.imwrite(path, np.full((64, 64), np.nan, np.float32)), "no finite pixel"),
    "text.txt": (lambda path: path.write_text("hello"), "no image by its name"),
    "tiny.png": (lambda path: Image.new("L", (4, 4)).save(path), "at least 32 x 32"),
    "empty_folder": (lambda path: path.mkdir(), "holds no image"),
    "pickled.npy": (lambda path: np.save(path, np.array([{}], object), allow_pickle=True), "real numbers"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_live_refuses_an_image_that_is_none(name: str, refused: Callable[..., str], small: Any, tmp_path: Path) -> None:
    make, words = IMAGES[name]
    make(tmp_path / name)
    complaint = refused("live", "--headless", *small, "--images", tmp_path / name)
    assert words in complaint
    assert name in complaint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"grid: [\n", "is not YAML"),
        (b"- grid\n", "must hold a map"),
        (bytes(range(256)), "cannot read"),
        (b"network: {records: 5}\n", "unknown key 'network.records'"),
    ],
    ids=["not yaml", "a list", "binary", "unknown key"],
)
@pytest.mark.parametrize("service", [("live",), ("microscope", "--config"), ("reconstruct", "--config")])
def test_a_configuration_that_cannot_be_used_is_refused(
    content: bytes, words: str, service: tuple[str, ...], refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "scan.yaml").write_bytes(content)
    assert words in refused(*service, tmp_path / "scan.yaml")


def test_live_refuses_a_grid_larger_than_the_memory(refused: Callable[..., str], monkeypatch: Any) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 64 * 2**30})())
    channels = "scan.channels=[A, B, C, D, E, F, G, H]"
    options = ("--set", "grid.rows=16384", "--set", "grid.cols=16384", "--set", channels)
    assert "needs about 600.0 GiB of memory, 64.0 GiB are free" in refused("live", "--headless", *options)


@pytest.mark.parametrize("name", ["control", "samples", "frames"])
def test_live_refuses_a_port_in_use_and_names_it(
    name: str, refused: Callable[..., str], small: Any, used_port: str, tmp_path: Path
) -> None:
    (tmp_path / "scan.yaml").write_text(f"network: {{{name}: '{used_port}'}}\n", encoding="utf-8")
    complaint = refused("live", tmp_path / "scan.yaml", "--headless", *small, "--json", "figures.json")
    assert f"network.{name}: {used_port} cannot be bound" in complaint
    assert "set another port" in complaint


@pytest.mark.parametrize(
    ("service", "name"), [("microscope", "control"), ("microscope", "samples"), ("reconstruct", "frames")]
)
def test_a_service_refuses_a_port_in_use_and_names_it(
    service: str, name: str, refused: Callable[..., str], small: Any, used_port: str
) -> None:
    others = [f"--set=network.{other}=tcp://127.0.0.1:0" for other in ("control", "samples", "frames")]
    complaint = refused(service, *small, *others, "--set", f"network.{name}={used_port}")
    assert f"{used_port} is in use" in complaint


@pytest.mark.parametrize("service", ["microscope", "reconstruct"])
def test_a_service_refuses_to_be_reached_from_elsewhere(service: str, refused: Callable[..., str], small: Any) -> None:
    others = [f"--set=network.{other}=tcp://0.0.0.0:0" for other in ("control", "samples", "frames")]
    assert "only loopback" in refused(service, *small, *others)


@pytest.mark.usefixtures("no_screen")
def test_display_without_a_screen_is_refused(refused: Callable[..., str]) -> None:
    assert "no screen: neither DISPLAY nor WAYLAND_DISPLAY is set" in refused("display")


@pytest.mark.usefixtures("no_screen")
def test_display_on_a_screen_that_does_not_answer_is_refused(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qt_checks, "x_server_answers", lambda *_: False)
    monkeypatch.setenv("DISPLAY", ":93")
    assert "cannot connect to display :93" in refused("display")


@pytest.mark.parametrize("option", ["--picture", "--json"])
def test_display_refuses_a_missing_folder_before_it_connects(option: str, refused: Callable[..., str]) -> None:
    assert "there is no folder" in refused("display", "--headless", option, "missing/x")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("libEGL.so.1: cannot open shared object file: No such file or directory", "apt-get install libegl1"),
        ("libxcb-cursor.so.0: cannot open shared object file", "apt-get install libxcb-cursor0"),
        ("libstrange.so.4: cannot open shared object file", "apt-file search libstrange.so.4"),
    ],
)
def test_a_missing_system_library_is_named_with_the_command_that_helps(error: str, advice: str) -> None:
    def importer(_name: str) -> None:
        raise ImportError(error)

    with pytest.raises(DisplayError, match=advice):
        qt_checks.require_qt(importer)


def test_a_missing_qt_is_named_with_the_command_that_helps() -> None:
    def importer(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name="PySide6")

    with pytest.raises(DisplayError, match="PySide6 is missing: pip install"):
        qt_checks.require_qt(importer)


@pytest.mark.usefixtures("no_screen")
def test_live_with_a_window_is_refused_when_a_library_of_the_plug_in_is_missing(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_path: str) -> None:
        raise OSError("libxcb-cursor.so.0: cannot open shared object file: No such file or directory")

    monkeypatch.setenv("DISPLAY", ":93")
    monkeypatch.setattr(qt_checks, "x_server_answers", lambda *_: True)
    monkeypatch.setattr(qt_checks.require_xcb_plugin, "__defaults__", (None, load))
    assert "apt-get install libxcb-cursor0" in refused("live")


@pytest.mark.parametrize("option", ["--json", "--picture"])
@pytest.mark.parametrize(
    "words",
    [("live", "--headless"), ("session", "info", "s.mcap"), ("replay", "s.mcap", "--headless"), ("bench", "latency")],
    ids=lambda words: words[0],
)
def test_no_output_replaces_a_session(
    words: tuple[str, ...], option: str, refused: Callable[..., str], folder: Path
) -> None:
    if option == "--picture" and words[0] in ("session", "bench"):
        pytest.skip("it leaves no picture")
    with SessionWriter(folder / "s.mcap"):
        pass
    before = (folder / "s.mcap").read_bytes()
    assert "s.mcap is a session file" in refused(*words, option, "s.mcap")
    assert (folder / "s.mcap").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [("--record", "x", "--json", "x"), ("--json", "./x", "--picture", "x"), ("--record", "x", "--picture", "x")],
)
def test_one_file_cannot_hold_two_things(options: tuple[str, ...], refused: Callable[..., str]) -> None:
    assert "x is to hold two different things" in refused("live", "--headless", *options)


@pytest.mark.parametrize("name", ["a\nb.mcap", b"\xff.mcap".decode(errors="surrogateescape")])
def test_a_recording_needs_a_name_that_can_be_told(name: str, refused: Callable[..., str]) -> None:
    assert "a name of printable characters" in refused("live", "--headless", "--record", name)


def test_figures_that_do_not_fit_are_an_error_with_the_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RuntimeError, match=r"cannot write .*out\.json: No space left on device"):
        write_json(tmp_path / "out.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_complaint_does_not_give_orders_to_the_terminal(refused: Callable[..., str]) -> None:
    assert "cannot read s?[31m.mcap" in refused("session", "info", "s\x1b[31m.mcap")


def test_bench_refuses_a_missing_folder_before_it_measures(refused: Callable[..., str]) -> None:
    assert "there is no folder" in refused("bench", "latency", "--json", "missing/x.json")


@pytest.mark.parametrize(
    "options", [("--frames", "9"), ("--size", "16"), ("--size", "x"), ("--pattern", "spirl"), ("--images", "none.tif")]
)
def test_bench_refuses_a_wrong_option(options: tuple[str, ...], refused: Callable[..., str]) -> None:
    refused("bench", "latency", *options)


def test_a_log_level_that_is_none_is_refused(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWDOSE_LOG", "loud")
    assert "LOWDOSE_LOG must be DEBUG, INFO, WARNING or ERROR, got 'loud'" in refused("doctor")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("wrong"), 2, "error: wrong\n"),
        (RuntimeError("broken"), 1, "error: broken\n"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (MemoryError(), 1, "out of memory"),
    ],
)
def test_the_exit_code_tells_wrong_input_from_failure(
    error: Exception, code: int, words: str, command: Callable[..., tuple[Any, str, str]], monkeypatch: Any
) -> None:
    def fail(**_options: Any) -> int:
        raise error

    monkeypatch.setattr("lowdose.config.doctor.examine", fail)
    got, _, complaint = command("doctor")
    assert got == code
    assert words in complaint
    assert "Traceback" not in complaint


def test_without_arguments_the_commands_are_listed(command: Callable[..., tuple[Any, str, str]]) -> None:
    _, out, err = command()
    for name in ("live", "microscope", "reconstruct", "record", "display", "pattern", "bench", "doctor"):
        assert name in out + err


def test_help_needs_no_heavy_library() -> None:
    heavy = ("numpy", "zmq", "PySide6", "matplotlib", "pydantic")
    code = f"import sys; import lowdose.config.cli; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_wrong_input_ends_a_process_with_code_2_and_one_line(start: Any) -> None:
    code, out, err = start("live", "--headless", "--pattern", "spirl").end()
    assert (code, out) == (2, "")
    assert err == f"error: unknown pattern 'spirl': did you mean 'spiral'? Known: {', '.join(sorted(PATTERNS))}\n"


def test_the_display_process_without_a_screen_ends_with_code_2(start: Any) -> None:
    code, _, err = start("display", environment=dict.fromkeys(SCREENS)).end()
    assert code == 2
    assert err.startswith("error: no screen: ")
    assert "Traceback" not in err


def test_the_entry_point_is_main() -> None:
    assert callable(cli.main)
