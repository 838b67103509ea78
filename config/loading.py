"""Settings from presets, YAML files and the command line; what cannot be used is refused by file, key and remedy."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lowdose.config.errors import ConfigError
from lowdose.config.schema import LowdoseSettings
from lowdose.scan_patterns.checks import nearest_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

M = TypeVar("M", bound=BaseModel)
PRESETS = files("lowdose.config") / "presets"

_DEFAULTS = LowdoseSettings()
_PLUG_INS = {
    "scan.pattern": {"name": _DEFAULTS.scan.pattern["name"]},
    "controller": {"name": _DEFAULTS.controller["name"]},
    "specimen": {"name": _DEFAULTS.specimen["name"]},
}
"""Whose parameter `--set controller.pacing=…` means where the file says nothing."""


def preset_names() -> list[str]:
    """Return the names of the settings files shipped with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in PRESETS.iterdir() if entry.name.endswith(".yaml"))


def load_settings(config: str | None = None, overrides: Iterable[str] = ()) -> LowdoseSettings:
    """Return validated settings.

    Parameters
    ----------
    config : str or None
        Name of a preset, or path of a YAML file; None = the defaults.
    overrides : iterable of "a.b=value"
        Applied on top; values are YAML.

    Raises
    ------
    ConfigError
        If anything cannot be read or used.
    """
    where, mapping = ("the defaults", {}) if config is None else _read(config)
    for override in overrides:
        _set(mapping, override)
    return checked(LowdoseSettings, mapping, where)


def checked(model: type[M], mapping: Mapping[str, Any], where: str) -> M:
    """Return a model made of a mapping; raise ConfigError, beginning with `where`, if it does not fit."""
    try:
        return model.model_validate(mapping)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, model)}") from None


def named_endpoints(config: str | None, overrides: Iterable[str] = ()) -> set[str]:
    """Return which endpoints the user named; the others may be any free port."""
    mapping = {} if config is None else _read(config)[1]
    for override in overrides:
        _set(mapping, override)
    network = mapping.get("network")
    return set(network) if isinstance(network, dict) else set()


def dump_settings(settings: LowdoseSettings) -> str:
    """Return settings as YAML that `load_settings` reads back."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first complaint as one sentence: the key's path, what was got, what was expected."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{path}': {nearest_name(str(first['loc'][-1]), _fields_at(model, first['loc'][:-1]))}"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{path}: {reason}, got {first['input']!r}" if path else reason


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        nested = [annotation, *getattr(annotation, "__args__", ())]
        model = next(kind for kind in nested if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)


def _read(config: str) -> tuple[str, dict[str, Any]]:
    path = Path(config)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        if config not in preset_names():
            raise ConfigError(f"no preset or file '{config}': {nearest_name(config, preset_names())}")
        return f"preset {config}", _parsed((PRESETS / f"{config}.yaml").read_text(encoding="utf-8"), config)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read {config}: {error}. Expected a YAML file or a preset: {preset_names()}"
        ) from None
    return config, _parsed(text, config)


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        mapping = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, too many brackets
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    if mapping is None:
        return {}
    if not isinstance(mapping, dict):
        raise ConfigError(f"{where} must hold a map of settings, got {type(mapping).__name__}")
    return mapping


def _set(mapping: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes a.b=value, got {override!r}")
    *parents, last = key.strip().split(".")
    for depth, parent in enumerate(parents, 1):
        inner = mapping.setdefault(parent, dict(_PLUG_INS.get(".".join(parents[:depth]), {})))
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: '{parent}' holds {inner!r}, not a map")
        mapping = inner
    try:
        mapping[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"--set {override}: the value is not YAML") from None
