"""One sentence out of a validation error: the key's path, what was got, what was expected (imports pydantic only)."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from lowdose.scan_patterns.checks import nearest_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

Location = tuple[int | str, ...]
NOTHING = object()


def explain(error: ValidationError, model: type[BaseModel], mapping: Any) -> str:
    """Return the first complaint about a mapping.

    Where a value may be one of several models, the one that complains least is taken to be meant.
    """
    complaints: dict[Location, list[ErrorDetails]] = defaultdict(list)
    for entry in error.errors():
        complaints[_branch(entry["loc"], mapping)].append(entry)
    first = min(complaints.values(), key=len)[0]
    path = ".".join(str(part) for part, _ in _keys(first["loc"], mapping))
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, first["loc"][:-1])
        return f"unknown key '{path}': {nearest_name(str(first['loc'][-1]), known)}"
    if first["type"] == "missing":
        return f"{'.'.join(filter(None, [path, str(first['loc'][-1])]))} is missing: expected a value"
    reason = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict | BaseModel) else f", got {first['input']!r}"
    return f"{path}: {reason}{got}" if path else reason


def _keys(location: Location, mapping: Any) -> Iterator[tuple[int | str, int]]:
    """Yield the parts of a location that are keys or indices of the mapping, and where; not the names of models."""
    for i, part in enumerate(location):
        inner = _inside(mapping, part)
        last = i == len(location) - 1
        if inner is not NOTHING and (last or isinstance(inner, dict | list | tuple)):
            mapping = inner
            yield part, i


def _inside(mapping: Any, part: int | str) -> Any:
    if isinstance(mapping, dict):
        return mapping.get(part, NOTHING)
    return mapping[part] if isinstance(mapping, list | tuple) and isinstance(part, int) else NOTHING


def _branch(location: Location, mapping: Any) -> Location:
    """Return a location up to the first name of a model in it."""
    keys = {i for _, i in _keys(location, mapping)}
    first_tag = next((i for i in range(len(location)) if i not in keys), len(location))
    return location[: first_tag + 1]


def _fields_at(model: type[BaseModel], location: Location) -> list[str]:
    """Return the keys there may be at a location."""
    models = [model]
    for part in location:
        fields = [known.model_fields[part] for known in models if part in known.model_fields]
        nested = [inner for field in fields for inner in _models_in(field.annotation)]
        if nested:
            models = nested
        elif isinstance(part, str):
            models = [known for known in models if part in _tags(known)]
    return sorted({name for known in models for name in known.model_fields})


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _tags(model: type[BaseModel]) -> set[str]:
    """Return the names by which errors may call a model: its own, its keys, and the values of its literals."""
    literals = {value for field in model.model_fields.values() for value in get_args(field.annotation)}
    return {model.__name__, *model.model_fields, *(value for value in literals if isinstance(value, str))}
