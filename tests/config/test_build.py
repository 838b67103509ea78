"""The composition root: what can be wrong is found before anything is started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.sockets import ControlRefusedError, EndpointError
from lowdose.config.build import (
    build_microscope,
    build_reconstruction,
    make_paths,
    require_memory,
    require_usable,
)
from lowdose.config.engines import build_engine
from lowdose.config.errors import ConfigError
from lowdose.config.loading import load_settings, preset_names
from lowdose.config.schema import StageSettings
from lowdose.reconstruction.engines import ENGINES
from lowdose.reconstruction.shipped import shipped
from lowdose.scan_patterns.grid import ScanGrid
from lowdose.scan_patterns.pattern import PATTERNS, READ_FILES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OWN = """
import dataclasses, pathlib
import numpy as np
from lowdose.scan_patterns.path import ScanPath

pathlib.Path(__file__).with_suffix(".imported").touch()

@dataclasses.dataclass(frozen=True)
class Corner:
    edge: int = 8

    def paths(self, grid, *, dwell_time_us, rng):
        positions = np.indices((self.edge, self.edge), dtype=np.float32).reshape(2, -1).T
        return (ScanPath(grid, positions, dwell_time_us, jumps=positions[:, 1] == 0),)

class Engine:
    def run(self, inputs): ...

class Demanding:
    def __init__(self, weights): ...
    def run(self, inputs): ...
"""
SMALL = ["grid.rows=64", "grid.cols=64"]
ANY_PORT = [f"network.{name}=tcp://127.0.0.1:0" for name in ("control", "samples", "record", "frames")]


@pytest.fixture
def own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_parts_built.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_used(name: str) -> None:
    assert require_usable(load_settings(name, SMALL))


@pytest.mark.parametrize("name", [name for name in PATTERNS if name not in READ_FILES])
def test_every_pattern_can_be_used_by_its_name_alone(name: str) -> None:
    assert require_usable(load_settings(None, [*SMALL, f"scan.pattern={{name: {name}}}"]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["scan.pattern.name=spirl"], "did you mean 'spiral'"),
        (["controller.name=simulatd"], "did you mean 'simulated'"),
        (["controller.pasing=real_time"], "did you mean 'pacing'"),
        (["controller.pacing=slow"], "controller 'simulated', pacing"),
        (["specimen.name=procedurl"], "did you mean 'procedural'"),
        (["specimen={name: images}"], "specimen 'images', path"),
        (["specimen={name: images, path: /no/such/file.tif}"], "no file or folder"),
        (["stages=[{complete: linaer}]"], "did you mean 'linear'"),
        (["stages=[{complete: linear}, {complete: 'own:'}]"], "engine 'own:' cannot be imported"),
        (["scan.dwell_time_us=0.001"], "dwell_time_us must be >= 0.01 on this controller"),
        (["grid.rotation_deg=.nan"], "rotation_deg"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        require_usable(load_settings(None, [*SMALL, *overrides]))


def test_a_grid_larger_than_the_free_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 2**30})())
    with pytest.raises(ConfigError, match=r"2048 x 2048 needs about 1\.2 GiB of memory, 1\.0 GiB are free: set a sm"):
        require_memory(ScanGrid((2048, 2048)))
    require_memory(ScanGrid((1024, 1024)), 3)
    with pytest.raises(ConfigError):
        require_memory(ScanGrid((1024, 1024)), 4)


@pytest.mark.parametrize("build", [require_usable, build_microscope, build_reconstruction])
def test_the_largest_grid_with_all_channels_is_refused_at_once(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 64 * 2**30})())
    channels = "scan.channels=[A, B, C, D, E, F, G, H]"
    settings = load_settings(None, ["grid.rows=16384", "grid.cols=16384", channels, *ANY_PORT])
    with pytest.raises(ConfigError, match="a grid of 16384 x 16384 needs about"):
        build(settings)


def test_auto_is_an_engine_there_is() -> None:
    assert build_engine(StageSettings()).info.name in {*ENGINES, *shipped()}


def test_the_same_seed_makes_the_same_paths() -> None:
    settings = load_settings(None, [*SMALL, "scan.pattern={name: jittered}", "scan.seed=5"])
    first, again = make_paths(settings), make_paths(settings)
    assert [path.digest for path in first] == [path.digest for path in again]


@pytest.mark.usefixtures("own_parts")
def test_own_pattern_and_engine_can_be_used() -> None:
    overrides = [
        "scan.pattern={name: 'own_parts_built:Corner', edge: 4}",
        "stages=[{complete: 'own_parts_built:Engine'}]",
    ]
    (path,) = require_usable(load_settings(None, [*SMALL, *overrides]))
    assert len(path) == 16


@pytest.mark.usefixtures("own_parts")
def test_own_engine_that_asks_for_arguments_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be made without arguments"):
        build_engine(StageSettings(complete="own_parts_built:Demanding"))


@pytest.mark.parametrize("name", ["control", "samples", "record"])
@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "*", "eth0"])  # noqa: S104 refused is what is tested
def test_the_microscope_binds_loopback_only(name: str, host: str) -> None:
    with pytest.raises(EndpointError, match="only loopback"):
        build_microscope(load_settings(None, [*SMALL, *ANY_PORT, f"network.{name}=tcp://{host}:0"]))


def test_the_reconstruction_binds_loopback_only() -> None:
    with pytest.raises(EndpointError, match="only loopback"):
        build_reconstruction(load_settings(None, [*SMALL, *ANY_PORT, "network.frames=tcp://0.0.0.0:0"]))


@pytest.fixture
def microscope(own_parts: Path) -> Iterator[MicroscopeClient]:
    """Return a client of a microscope service configured with the shipped spiral."""
    with (
        build_microscope(load_settings(None, [*SMALL, *ANY_PORT])) as service,
        MicroscopeClient(service.endpoints["control"], "test") as client,
    ):
        yield client


def test_own_class_is_refused_over_the_control_socket_and_not_imported(
    microscope: MicroscopeClient, own_parts: Path
) -> None:
    with pytest.raises(ControlRefusedError, match="unknown pattern 'own_parts_built:Corner'"):
        microscope.configure(pattern={"name": "own_parts_built:Corner"})
    assert not (own_parts / "own_parts_built.imported").exists()


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ({"name": "spirl"}, "did you mean 'spiral'"),
        ({"name": "spiral", "coverage": 0}, "coverage must be"),
        ({"name": "spiral", "coverage": "1/0"}, "coverage must be"),
        ({"name": "raster", "coverage": 0.1}, "no parameter 'coverage'"),
        ({}, "pattern needs a name"),
    ],
)
def test_a_wrong_pattern_is_refused_over_the_control_socket(
    pattern: dict[str, Any], words: str, microscope: MicroscopeClient
) -> None:
    with pytest.raises(ControlRefusedError, match=words):
        microscope.configure(pattern=pattern)
    assert microscope.status()["pattern"] == "spiral"


def test_the_pattern_configured_here_may_be_asked_for_over_the_control_socket(own_parts: Path) -> None:
    own = ["scan.pattern={name: 'own_parts_built:Corner', edge: 4}"]
    with (
        build_microscope(load_settings(None, [*SMALL, *ANY_PORT, *own])) as service,
        MicroscopeClient(service.endpoints["control"], "test") as client,
    ):
        assert "own_parts_built:Corner" in client.status()["patterns"]
        scan = client.configure(pattern={"name": "own_parts_built:Corner", "edge": 8})
        assert scan["coverage"] == pytest.approx(64 / 64**2)
        with pytest.raises(ControlRefusedError, match="unknown pattern 'own_parts_built:Engine'"):
            client.configure(pattern={"name": "own_parts_built:Engine"})


def test_every_channel_sees_the_specimen() -> None:
    settings = load_settings(None, [*SMALL, *ANY_PORT, "scan.channels=[HAADF, BF]", "controller.seed=1"])
    with build_microscope(settings) as service, MicroscopeClient(service.endpoints["control"], "test") as client:
        assert client.describe_scan().channels == ("HAADF", "BF")
        assert np.isclose(client.describe_scan().dwell_time_us, 1.0)


def test_a_file_of_points_is_opened_at_no_other_s_word(tmp_path: Path) -> None:
    for name in ("mine.csv", "secret.csv"):
        (tmp_path / name).write_text("row,col\n1,1\n2,5\n", encoding="utf-8")
    mine = f"scan.pattern={{name: points, path: {tmp_path / 'mine.csv'}}}"
    for configured in ([], [mine]):
        settings = load_settings(None, [*SMALL, *ANY_PORT, *configured])
        with build_microscope(settings) as service, MicroscopeClient(service.endpoints["control"], "me") as client:
            with pytest.raises(ControlRefusedError, match="reads a file: configure it where the microscope runs"):
                client.configure(pattern={"name": "points", "path": str(tmp_path / "secret.csv")})
            if configured:
                client.configure(pattern={"name": "points", "path": str(tmp_path / "mine.csv")})
