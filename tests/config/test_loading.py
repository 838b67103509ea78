"""Settings come from presets, files and the command line, and what cannot be used is refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lowdose.config.errors import ConfigError
from lowdose.config.loading import dump_settings, load_settings, named_endpoints, preset_names
from lowdose.config.registry import make_pattern
from lowdose.config.schema import LowdoseSettings
from lowdose.scan_patterns.pattern import PATTERNS

if TYPE_CHECKING:
    from pathlib import Path


def write(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "scan.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name: str) -> None:
    assert isinstance(load_settings(name), LowdoseSettings)


def test_without_a_file_everything_is_the_default() -> None:
    assert load_settings() == LowdoseSettings()


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_settings(write(tmp_path, "")) == LowdoseSettings()


@pytest.mark.parametrize("name", preset_names())
def test_dumped_settings_read_back_equal(name: str, tmp_path: Path) -> None:
    overrides = [
        "grid={rows: 64, cols: 96, pixel_size_nm: 0.1}",
        "scan.channels=[HAADF, BF]",
        "scan.pattern={name: lattice, coverage: 1/25}",
        "dose.budget_e_per_a2=40",
        "stages=[{complete: nearest}]",
        "network.control=tcp://127.0.0.1:6000",
    ]
    settings = load_settings(name, overrides)
    assert load_settings(write(tmp_path, dump_settings(settings))) == settings


@pytest.mark.parametrize(
    ("override", "where", "expected"),
    [
        ("grid.rows=64", ("grid", "rows"), 64),
        ("scan.dwell_time_us=2.5", ("scan", "dwell_time_us"), 2.5),
        ("scan.channels=[BF]", ("scan", "channels"), ("BF",)),
        ("dose.budget_e_per_a2=null", ("dose", "budget_e_per_a2"), None),
        ("safety.allow_no_dead_man=true", ("safety", "allow_no_dead_man"), True),
        ("network.samples=tcp://127.0.0.1:0", ("network", "samples"), "tcp://127.0.0.1:0"),
        ("grid={rows: 7}", ("grid", "rows"), 7),
        (" grid.rows =64", ("grid", "rows"), 64),
    ],
)
def test_set_takes_typed_values(override: str, where: tuple[str, ...], expected: Any) -> None:
    value: Any = load_settings(None, [override])
    for part in where:
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


def test_later_overrides_win_and_leave_their_neighbours(tmp_path: Path) -> None:
    config = write(tmp_path, "grid: {rows: 10, cols: 20}\n")
    assert load_settings(config, ["grid.rows=30", "grid.rows=40"]).grid.build().shape == (40, 20)


@pytest.mark.parametrize("coverage", ["1/20", "'1/20'", "0.05", "5.0e-2"])
def test_coverage_may_be_a_fraction_in_yaml(coverage: str, tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, f"scan: {{pattern: {{name: spiral, coverage: {coverage}}}}}\n"))
    assert make_pattern(settings.scan.pattern, settings.grid.build()).coverage == pytest.approx(1 / 20)


@pytest.mark.parametrize(
    ("override", "get", "expected"),
    [
        ("scan.pattern.coverage=1/10", lambda s: s.scan.pattern, {"name": "spiral", "coverage": "1/10"}),
        ("controller.pacing=as_fast_as_possible", lambda s: s.controller["name"], "simulated"),
        ("specimen.seed=3", lambda s: s.specimen, {"name": "procedural", "seed": 3}),
    ],
)
def test_set_changes_one_parameter_of_the_default_plug_in(override: str, get: Any, expected: Any) -> None:
    assert get(load_settings(None, [override])) == expected


@pytest.mark.parametrize("name", PATTERNS)
def test_set_chooses_another_pattern_with_defaults_of_its_own(name: str) -> None:
    assert load_settings(None, [f"scan.pattern.name={name}"]).scan.pattern == {"name": name}


def test_set_leaves_the_defaults_themselves_alone() -> None:
    load_settings(None, ["specimen.seed=3", "scan.pattern.coverage=1/10"])
    assert load_settings() == LowdoseSettings()


def test_named_endpoints_are_those_of_file_and_command_line(tmp_path: Path) -> None:
    config = write(tmp_path, "network: {frames: 'tcp://127.0.0.1:6001'}\n")
    assert named_endpoints(config, ["network.control=tcp://127.0.0.1:6000"]) == {"frames", "control"}


def test_no_endpoint_is_named_by_default() -> None:
    assert named_endpoints(None) == set()


UNREADABLE = {
    "not yaml": ("grid: [\n", "is not YAML"),
    "a list": ("- grid\n", "must hold a map of settings, got list"),
    "a word": ("spiral\n", "must hold a map of settings, got str"),
    "binary": (bytes(range(256)), "cannot read"),
    "a day that does not exist": ("grid: 2024-13-45\n", "is not YAML"),
    "too many brackets": ("[" * 5000, "is not YAML"),
    "a key that is no text": ("1: 2\n", "Keys should be strings"),
    "a tag that runs code": ("grid: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    "null bytes": (b"grid:\0 1\n", "is not YAML"),
}


@pytest.mark.parametrize(("text", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_cannot_be_used_is_refused_by_name(text: str | bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as refusal:
        load_settings(write(tmp_path, text))
    assert "scan.yaml" in str(refusal.value)
    assert "\n" not in str(refusal.value)


WRONG = {
    "grid.rows=0": "grid.rows: .*got 0",
    "grid.rows=16385": "grid.rows: .*got 16385",
    "grid.rows=1.5": "grid.rows: .*got 1.5",
    "grid.rows=": "grid.rows: .*got None",
    "grid=5": "grid: .*got 5",
    "grid.rows.x=5": "grid.rows: .*got",
    "scan.dwell_time_us=0": "scan.dwell_time_us: .*got 0",
    "scan.dwell_time_us=-1": "scan.dwell_time_us: .*got -1",
    "scan.dwell_time_us=.nan": "scan.dwell_time_us: .*got nan",
    "scan.dwell_time_us=.inf": "scan.dwell_time_us: .*got inf",
    "scan.dwell_time_us=fast": "scan.dwell_time_us: .*got 'fast'",
    "scan.channels=[]": "scan.channels",
    "scan.channels=[BF, BF]": "channels must differ",
    'scan.channels=[""]': "names of printable characters",
    'scan.channels=["B\\0F"]': "names of printable characters",
    "stages=[]": "stages",
    "stages=linear": "stages: .*got 'linear'",
    "beam.current_pa=.nan": "beam.current_pa",
    "controller={}": "controller: needs a name",
    "specimen=procedural": "specimen: .*got 'procedural'",
    "network.control=5750": "network.control",
    "network.control=udp://127.0.0.1:1": "must begin with tcp://",
    "scan.dwel_time_us=1": "unknown key 'scan.dwel_time_us': did you mean 'dwell_time_us'",
    "scna.dwell_time_us=1": "unknown key 'scna': did you mean 'scan'",
    "stages=[{complet: linear}]": "unknown key 'stages.0.complet': did you mean 'complete'",
    "grid": "--set takes a.b=value, got 'grid'",
    "=5": "--set takes a.b=value",
    "grid.rows=[": "the value is not YAML",
    "grid.rows=2024-13-45": "the value is not YAML",
}


@pytest.mark.parametrize(("override", "words"), WRONG.items(), ids=WRONG)
def test_a_wrong_value_is_refused_with_its_key(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_settings(None, [override])


def test_set_through_a_value_that_is_no_map_is_refused() -> None:
    with pytest.raises(ConfigError, match="'grid' holds 5, not a map"):
        load_settings(None, ["grid=5", "grid.rows=6"])


def test_an_unknown_preset_is_refused_with_the_nearest_name() -> None:
    for name in preset_names():
        with pytest.raises(ConfigError, match=f"no preset or file '{name[:-1]}': did you mean '{name}'"):
            load_settings(name[:-1])


def test_a_missing_file_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_settings(str(tmp_path / "missing.yaml"))


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_settings(str(tmp_path))
