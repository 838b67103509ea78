"""`lowdose doctor`: what is there, what is missing, and the command that helps."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from lowdose.config import doctor

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    Command = Callable[..., tuple[Any, str, str]]


def test_doctor_names_every_package_with_its_version(command: Command) -> None:
    code, out, err = command("doctor")
    assert (code, err) == (0, "")
    assert all(f"{name} {version(name)}" in out for name in doctor.BASE)


def test_doctor_tells_of_screen_priority_and_engines(command: Command) -> None:
    _, out, _ = command("doctor")
    assert all(f"{topic}: " in out for topic in ("display", "priority", "engines"))


def test_a_missing_package_is_named_with_the_command_that_helps(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> str:
        if name in ("mcap", "openvino"):
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", found)
    code, out, _ = command("doctor")
    assert code == 1
    assert "openvino MISSING" in out
    assert "mcap MISSING" in out
    assert "pip install openvino mcap" in out


def test_a_missing_extra_is_no_failure(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> str:
        if name == "torch":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", found)
    code, out, _ = command("doctor")
    assert code == 0
    assert 'extra train: not installed ("pip install lowdose[train]")' in out
    assert "extra gpu: installed" in out


def test_without_a_screen_doctor_says_what_live_does_then(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert "display: no screen: `lowdose live` runs without a window" in command("doctor")[1]


def test_without_a_driver_doctor_says_that_all_runs_on_the_processor(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "which", lambda _: None)
    code, out, _ = command("doctor", "--gpu")
    assert code == 0
    assert "everything runs on the processor" in out
