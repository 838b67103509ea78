from __future__ import annotations

import pytest
from pydantic import ValidationError

from lowdose.acquisition.settings import (
    BeamSettings,
    DoseSettings,
    GridSettings,
    NetworkSettings,
    RecordSettings,
    SafetySettings,
    ScanSettings,
)
from lowdose.scan_patterns import ScanGrid

EVERY = [GridSettings, BeamSettings, ScanSettings, DoseSettings, RecordSettings, SafetySettings, NetworkSettings]


@pytest.mark.parametrize("kind", EVERY)
def test_unknown_keys_are_refused(kind):
    with pytest.raises(ValidationError, match="extra_forbidden"):
        kind(nonsense=1)


@pytest.mark.parametrize("kind", EVERY)
def test_settings_do_not_change(kind):
    made = kind()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(made, next(iter(kind.model_fields)), 1)


def test_grid_settings_build_the_grid_they_name():
    made = GridSettings(rows=3, cols=4, pixel_size_nm=0.1, rotation_deg=30)
    assert made.build() == ScanGrid((3, 4), 0.1, 30.0)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (GridSettings, {"rows": 0}),
        (GridSettings, {"cols": 16_385}),
        (GridSettings, {"rows": 1.5}),
        (GridSettings, {"pixel_size_nm": 0}),
        (GridSettings, {"pixel_size_nm": float("inf")}),
        (GridSettings, {"rotation_deg": float("nan")}),
        (BeamSettings, {"current_pa": 0}),
        (BeamSettings, {"current_pa": float("nan")}),
        (BeamSettings, {"energy_kev": -200}),
        (ScanSettings, {"dwell_time_us": 0}),
        (ScanSettings, {"channels": ()}),
        (ScanSettings, {"channels": ("BF", "BF")}),
        (ScanSettings, {"channels": tuple("abcdefghi")}),
        (ScanSettings, {"seed": -1}),
        (DoseSettings, {"budget_e_per_a2": 0}),
        (DoseSettings, {"budget_e_per_a2": float("inf")}),
        (SafetySettings, {"lease_s": 0}),
        (SafetySettings, {"lease_s": 61}),
        (SafetySettings, {"lease_s": float("nan")}),
        (SafetySettings, {"blank_timeout_s": 11}),
        (NetworkSettings, {"control": "127.0.0.1:5750"}),
        (NetworkSettings, {"samples": "udp://127.0.0.1:5750"}),
        (NetworkSettings, {"frames": ""}),
        (NetworkSettings, {"record": "file:///a"}),
        (RecordSettings, {"fsync": "always"}),
        (SafetySettings, {"record_stall_ms": 50}),
    ],
    ids=str,
)
def test_values_out_of_bounds_are_refused(kind, value):
    with pytest.raises(ValidationError):
        kind(**value)


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:0", "ipc:///tmp/a", "inproc://a"])
def test_every_known_transport_may_be_named(endpoint):
    assert NetworkSettings(control=endpoint).control == endpoint
