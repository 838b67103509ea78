"""Engines by their settings: which one, on which runtime, whole or in tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowdose.config.errors import ConfigError
from lowdose.config.registry import plug_in_class
from lowdose.reconstruction.engine_file import EngineFileError, read_engine_file
from lowdose.reconstruction.engines import AUTO
from lowdose.reconstruction.engines.choice import engine_named, path_of, why_not

if TYPE_CHECKING:
    from lowdose.config.schema import StageSettings
    from lowdose.reconstruction.engine import Engine


def require_engine(stage: StageSettings) -> None:
    """Raise ConfigError unless there is what a stage names; engine files are read and checked."""
    if (path := path_of(stage.complete)) is not None:
        if stage.runtime != AUTO and (reason := why_not(stage.runtime)) is not None:
            raise ConfigError(f"runtime '{stage.runtime}' cannot run here: {reason}")
        try:
            read_engine_file(path)
        except EngineFileError as error:
            raise ConfigError(str(error)) from None
    elif stage.complete != AUTO:
        plug_in_class("engine", stage.complete, local=True)


def build_engine(stage: StageSettings) -> Engine:
    """Return a stage's engine, ready for pictures of any size.

    Raises
    ------
    ConfigError
        If there is none, or it cannot run here.
    """
    require_engine(stage)
    if path_of(stage.complete) is None and ":" in stage.complete:
        return _own(stage.complete)
    try:
        return engine_named(
            stage.complete,
            runtime=stage.runtime,
            precision=stage.precision,
            threads=stage.threads,
            streams=stage.streams,
            tile_px=stage.tile_px,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _own(name: str) -> Engine:
    """Return a user's own engine, "module:Class"."""
    try:
        return plug_in_class("engine", name, local=True)()  # type: ignore[no-any-return]
    except TypeError as error:
        raise ConfigError(f"engine '{name}' cannot be made without arguments: {error}") from None
