"""Registry: every plug-in by name, the shipped tables joined with a user's own `module:Class`."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from lowdose.acquisition.controllers import CONTROLLERS
from lowdose.config.errors import ConfigError
from lowdose.reconstruction.engines import ENGINES
from lowdose.scan_patterns.checks import nearest_name
from lowdose.scan_patterns.pattern import PATTERNS, READ_FILES, parse_coverage, solve_true_coverage
from lowdose.scan_patterns.placement import Placement, place
from lowdose.simulator.sources import SOURCES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.scan_patterns.pattern import Pattern

T = TypeVar("T")
Kind = Literal["pattern", "controller", "engine", "specimen"]
TABLES: dict[Kind, dict[str, str]] = {
    "pattern": PATTERNS,
    "controller": {"simulated": "lowdose.simulator.controller:Simulated", **CONTROLLERS},
    "engine": ENGINES,
    "specimen": SOURCES,
}
VERBS: dict[Kind, str] = {"pattern": "paths", "controller": "close", "engine": "run", "specimen": "open"}
"""A method by which a user's own class of the right kind is told from any other."""


def plug_in_class(kind: Kind, name: str, *, local: bool) -> type:
    """Return the class a name stands for.

    Parameters
    ----------
    kind : str
        Which table.
    name : str
        A row of the table or, only when `local`, a user's own ``module:Class``.
    local : bool
        The name comes from this machine's YAML or command line, not from a socket or a session file.

    Raises
    ------
    ConfigError
        If the name is unknown, naming the nearest, or cannot be imported.
    """
    target = TABLES[kind].get(name)
    if target is None:
        if not (local and ":" in name):
            raise ConfigError(f"unknown {kind} '{name}': {nearest_name(name, TABLES[kind])}")
        target = name
    module, _, attribute = target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(f"{kind} '{name}' cannot be imported: {type(error).__name__}: {error}") from None
    if not isinstance(found, type):
        raise ConfigError(f"{kind} '{name}' is not a class but {type(found).__name__}")
    if name not in TABLES[kind] and not hasattr(found, VERBS[kind]):
        raise ConfigError(f"{kind} '{name}' has no method '{VERBS[kind]}': a {kind} needs one")
    return found


def make_plug_in(kind: Kind, mapping: Mapping[str, Any], *, local: bool) -> Any:
    """Return a plug-in made of its name and parameters.

    Raises
    ------
    ConfigError
        If a parameter is unknown, naming the nearest, or has a wrong type or value.
    """
    parameters = dict(mapping)
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{kind} needs a name: {nearest_name('', TABLES[kind])}")
    cls = plug_in_class(kind, name, local=local)
    if not dataclasses.is_dataclass(cls):
        return _called(kind, name, cls, parameters)
    known = [field.name for field in dataclasses.fields(cls)]
    for key in parameters:
        if key not in known:
            hint = nearest_name(str(key), known) if known else "it has no parameters"
            raise ConfigError(f"{kind} '{name}' has no parameter '{key}': {hint}")
    return validated(cls, parameters, f"{kind} '{name}'")


def validated(cls: type[T], parameters: Mapping[str, Any], what: str) -> T:
    """Return a dataclass made of parameters.

    Raises
    ------
    ConfigError
        In one sentence that begins with `what`; an unknown key gets the nearest one there is.
    """
    try:
        return TypeAdapter(cls).validate_python(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        *place, last = first["loc"] or ("",)
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "unexpected_keyword_argument":
            where, reason = (
                ".".join(map(str, place)),
                f"unknown key '{last}': {nearest_name(str(last), _keys(cls, place))}",
            )
        raise ConfigError(f"{what}{f', {where}' if where else ''}: {reason}") from None
    except PydanticUserError as error:
        reason = str(error).split("\n", 1)[0]
        raise ConfigError(f"{what} has a field that cannot stand in YAML: {reason}") from None


def _keys(cls: Any, place: Sequence[Any]) -> list[str]:
    """Return the keys there are at a place inside a dataclass of dataclasses."""
    for part in place:
        hint = get_type_hints(cls).get(part) if dataclasses.is_dataclass(cls) else None
        inner = [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]
        cls = inner[0] if inner else cls
    return [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def _called(kind: Kind, name: str, cls: type, parameters: dict[str, Any]) -> Any:
    try:
        return cls(**parameters)
    except TypeError as error:
        raise ConfigError(f"{kind} '{name}' cannot be made of {sorted(parameters)}: {error}") from None


def make_pattern(mapping: Mapping[str, Any], grid: ScanGrid, *, local: bool = False) -> Pattern:
    """Return a pattern; `coverage` may be a fraction such as 1/20, `true_coverage` is solved for on the grid.

    `region` and `rotation_deg` place any pattern; its coverage is then that of the region.

    Raises
    ------
    ConfigError
        If name, parameter or coverage is wrong.
    """
    parameters = dict(mapping)
    if not local and parameters.get("name") in READ_FILES:
        raise ConfigError(f"pattern '{parameters['name']}' reads a file: configure it where the microscope runs")
    true_coverage = parameters.pop("true_coverage", None)
    wanted: dict[str, Any] = {key: parameters.pop(key) for key in ("region", "rotation_deg") if key in parameters}
    placement = validated(Placement, wanted, "pattern")
    try:
        if parameters.get("coverage") is not None:
            parameters["coverage"] = parse_coverage(parameters["coverage"])
        pattern: Pattern = make_plug_in("pattern", parameters, local=local)
        if true_coverage is not None:
            pattern = solve_true_coverage(pattern, placement.layout_grid(grid), parse_coverage(true_coverage))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return place(pattern, placement)
