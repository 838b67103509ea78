"""Engines by their settings: which file, which runtime, whole or in tiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowdose.config.errors import ConfigError
from lowdose.config.registry import plug_in_class
from lowdose.reconstruction.engine_file import EngineFileError, read_engine_file
from lowdose.reconstruction.engines import AUTO
from lowdose.reconstruction.engines.choice import load_engine, why_not
from lowdose.reconstruction.tiling import Tiled

if TYPE_CHECKING:
    from lowdose.config.schema import StageSettings
    from lowdose.reconstruction.engine import Engine
    from lowdose.reconstruction.engine_file import EngineFile

BEST_WITHOUT_FILE = "linear"


def require_engine(stage: StageSettings) -> None:
    """Raise ConfigError unless there is what a stage names; engine files are read and checked."""
    if _is_file(stage.complete):
        engine_file(stage)
    else:
        engine_class(stage.complete)


def build_engine(stage: StageSettings) -> Engine:
    """Return a stage's engine, ready for pictures of any size.

    Raises
    ------
    ConfigError
        If there is none, or it cannot run here.
    """
    if not _is_file(stage.complete):
        try:
            return engine_class(stage.complete)()  # type: ignore[no-any-return]
        except TypeError as error:
            raise ConfigError(f"engine '{stage.complete}' cannot be made without arguments: {error}") from None
    file = engine_file(stage)
    try:
        engine = load_engine(
            file, runtime=stage.runtime, precision=stage.precision, threads=stage.threads, streams=stage.streams
        )
        return Tiled(engine, tile_px=stage.tile_px)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def engine_class(name: str) -> type:
    """Return the class of an engine that needs no file; `auto` is the best one."""
    return plug_in_class("engine", BEST_WITHOUT_FILE if name == AUTO else name, local=True)


def engine_file(stage: StageSettings) -> EngineFile:
    """Return the engine file of a stage, read and checked; raise ConfigError if it or its runtime cannot be used."""
    if stage.runtime != AUTO and (reason := why_not(stage.runtime)) is not None:
        raise ConfigError(f"runtime '{stage.runtime}' cannot run here: {reason}")
    try:
        return read_engine_file(Path(stage.complete).expanduser())
    except EngineFileError as error:
        raise ConfigError(str(error)) from None


def _is_file(name: str) -> bool:
    return name.endswith(".onnx")
