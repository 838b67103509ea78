"""A pattern of a recipe: its parameters drawn from lists and ranges, and the pattern they make (numpy, pydantic)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from lowdose.scan_patterns.checks import nearest_name
from lowdose.scan_patterns.pattern import load_pattern_class, parse_coverage
from lowdose.scan_patterns.placement import Placement, place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowdose.scan_patterns.pattern import Pattern

LISTS = ("offset", "region")
"""Parameters that are lists themselves: of them a list of lists is a choice."""
PLACEMENT = ("region", "rotation_deg")


def n_choices(mapping: Mapping[str, Any]) -> int:
    """Return how many combinations of listed values there are.

    Examples
    --------
    >>> n_choices({"name": "lattice", "coverage": ["1/16", "1/25"], "offset": [0, 1]})
    2
    """
    return math.prod(len(value) for key, value in mapping.items() if _is_choice(key, value))


def drawn_parameters(mapping: Mapping[str, Any], index: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return the parameters of mask `index`: listed values by turns, ranges drawn evenly in their logarithm.

    Raises
    ------
    ValueError
        If a range cannot be read.
    """
    parameters: dict[str, Any] = {}
    for key, value in mapping.items():
        if _is_choice(key, value):
            index, turn = divmod(index, len(value))
            parameters[key] = value[turn]
        else:
            parameters[key] = _draw(key, value, rng) if isinstance(value, dict) else value
    return parameters


def make_pattern(mapping: Mapping[str, Any]) -> Pattern:
    """Return the pattern of a name and parameters; `region` and `rotation_deg` place any of them.

    Raises
    ------
    ValueError
        If name, parameter or value is wrong, saying what there is.
    """
    parameters = dict(mapping)
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise ValueError("pattern needs a name, such as {name: spiral, coverage: 1/20}")
    cls = load_pattern_class(name)
    placement = {key: parameters.pop(key) for key in PLACEMENT if key in parameters}
    known = list(getattr(cls, "__dataclass_fields__", {}))
    for key in parameters:
        if key not in known:
            raise ValueError(
                f"pattern '{name}' has no parameter '{key}': {nearest_name(str(key), [*known, *PLACEMENT])}"
            )
    if "coverage" in parameters:
        parameters["coverage"] = parse_coverage(parameters["coverage"])
    pattern: Pattern = _validated(cls, parameters, name)
    return place(pattern, _validated(Placement, placement, name))


def _validated(cls: Any, parameters: dict[str, Any], name: str) -> Any:
    try:
        return TypeAdapter(cls).validate_python(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"pattern '{name}'{f', {where}' if where else ''}: {reason}") from None


def _is_choice(key: str, value: Any) -> bool:
    if not isinstance(value, list | tuple):
        return False
    if len(value) == 0:
        raise ValueError(f"{key} lists no values: expected at least one")
    return key not in LISTS or all(isinstance(entry, list | tuple) for entry in value)


def _draw(key: str, value: dict[str, Any], rng: np.random.Generator) -> float:
    if set(value) != {"low", "high"}:
        raise ValueError(f"{key} must be a value, a list of them or {{low, high}}, got {value}")
    try:
        low, high = (parse_coverage(value[k]) if key == "coverage" else float(value[k]) for k in ("low", "high"))
    except TypeError:
        raise ValueError(f"low and high of {key} must be numbers, got {value['low']!r} and {value['high']!r}") from None
    if not 0 < low <= high < math.inf:
        raise ValueError(f"{key} must have 0 < low <= high, got {low:g} and {high:g}")
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
