"""Engines by their settings: which one, on which runtime, whole or in tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdose.config.errors import ConfigError
from lowdose.config.registry import plug_in_class
from lowdose.reconstruction.engine import EngineInfo
from lowdose.reconstruction.engine_file import read_engine_file
from lowdose.reconstruction.engines import AUTO, ENGINES
from lowdose.reconstruction.engines.choice import (
    engine_named,
    load_engine,
    path_of,
    precisions,
    unknown_engine,
    why_not,
)
from lowdose.reconstruction.tiling import Tiled, require_tiles

if TYPE_CHECKING:
    from lowdose.config.schema import StageSettings
    from lowdose.reconstruction.engine import Engine
    from lowdose.reconstruction.engine_file import EngineFile


def require_engine(stage: StageSettings) -> EngineFile | None:
    """Raise ConfigError unless there is what a stage names and can be used so; return its file, read and checked."""
    try:
        path = path_of(stage.complete)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if path is None:
        if stage.complete not in ENGINES and ":" not in stage.complete:
            raise ConfigError(unknown_engine(stage.complete))
        _require_no_options(stage)
        plug_in_class("engine", stage.complete, local=True)
        return None
    if stage.runtime != AUTO and (reason := why_not(stage.runtime)) is not None:
        raise ConfigError(f"runtime '{stage.runtime}' cannot run here: {reason}")
    try:
        file = read_engine_file(path)
        require_tiles(file.info, stage.tile_px)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if stage.runtime == "openvino" and stage.precision not in (AUTO, *precisions("openvino", file)):
        known = " or ".join(precisions("openvino", file))
        raise ConfigError(f"openvino computes in {known} on this processor, got precision {stage.precision}")
    return file


def _require_no_options(stage: StageSettings) -> None:
    """Raise ConfigError if an engine without a file is given what only runtimes understand."""
    given = [
        name for name in type(stage).model_fields if getattr(stage, name) != type(stage).model_fields[name].default
    ]
    if surplus := [name for name in given if name != "complete"]:
        raise ConfigError(f"{' and '.join(surplus)} are for engine files, '{stage.complete}' is none: leave them out")


def build_engine(stage: StageSettings) -> Engine:
    """Return a stage's engine, ready for pictures of any size.

    Raises
    ------
    ConfigError
        If there is none, or it cannot run here.
    """
    file = require_engine(stage)
    if file is None:
        return _own(stage.complete) if ":" in stage.complete else engine_named(stage.complete)
    try:
        engine = load_engine(
            file, runtime=stage.runtime, precision=stage.precision, threads=stage.threads, streams=stage.streams
        )
        return Tiled(engine, tile_px=stage.tile_px)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _own(name: str) -> Engine:
    """Return a user's own engine, "module:Class"."""
    try:
        engine: Engine = plug_in_class("engine", name, local=True)()
    except TypeError as error:
        raise ConfigError(f"engine '{name}' cannot be made without arguments: {error}") from None
    if not isinstance(getattr(engine, "info", None), EngineInfo):
        raise ConfigError(f"engine '{name}' has no info of the type EngineInfo: an engine needs one")
    return engine
