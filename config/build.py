"""Composition root: from settings to running services."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from lowdose.acquisition.messages import MAX_CLIENT_NAME
from lowdose.config.engines import build_engine, require_engine
from lowdose.config.errors import ConfigError
from lowdose.config.options import require_recordable
from lowdose.config.registry import TABLES, make_pattern, make_plug_in, plug_in_class
from lowdose.scan_patterns.checks import rounded_down
from lowdose.scan_patterns.dose import budget_dwell_time_us, frame_dose_e_per_a2
from lowdose.scan_patterns.pattern import READ_FILES

if TYPE_CHECKING:
    from pathlib import Path

    from lowdose.acquisition.controllers.base import ScanController
    from lowdose.acquisition.microscope import MicroscopeService
    from lowdose.acquisition.recorder import RecorderService
    from lowdose.config.schema import LowdoseSettings
    from lowdose.reconstruction.service import ReconstructionService
    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.scan_patterns.path import ScanPath

BYTES_PER_PIXEL = 300
"""Peak memory of all services together: infill maps, frames on their way, specimen."""


def require_usable(settings: LowdoseSettings) -> tuple[ScanPath, ...]:
    """Check everything that can be wrong before anything is started; return the paths that would be scanned.

    Raises
    ------
    ConfigError
        If the grid does not fit into memory, a plug-in or its parameters are unknown, the specimen cannot be read.
    ValueError
        If the controller cannot follow the paths.
    """
    grid = settings.grid.build()
    require_memory(grid, len(settings.scan.channels))
    paths = make_paths(settings)
    for stage in settings.stages:
        require_engine(stage)
    plug_in_class("controller", settings.controller["name"], local=True)
    if settings.controller["name"] == "simulated":  # hardware is opened by the service alone, and once
        with closing(build_controller(settings)) as controller:
            for path in paths:
                controller.limits.require(path)
            _require_budget(settings, controller, paths)
    return paths


def _require_budget(settings: LowdoseSettings, controller: ScanController, paths: tuple[ScanPath, ...]) -> None:
    """Raise ConfigError if the dose budget does not even allow one frame, with the dwell time that it does allow."""
    budget, current_pa = settings.dose.budget_e_per_a2, settings.beam.current_pa
    if budget is None:
        return
    path, limits = paths[0], controller.limits
    dose = frame_dose_e_per_a2(path, current_pa, beam_time_us=limits.beam_time_us(path))
    if dose > budget:
        dwell_time_us = budget_dwell_time_us(
            path,
            current_pa,
            budget,
            dwell_time_us=settings.scan.dwell_time_us,
            beam_time_us=limits.deflector.beam_time_us if limits.deflector else None,
        )
        raise ConfigError(
            f"one frame costs {dose:.4g} e-/Å², dose.budget_e_per_a2 allows {budget:g}: a dwell_time_us of "
            f"{rounded_down(dwell_time_us):g} keeps it, or a pattern of less coverage"
        )


def require_memory(grid: ScanGrid, n_channels: int = 1) -> None:
    """Raise ConfigError if frames of this grid do not fit into the memory that is free."""
    needed = grid.n_pixels * n_channels * BYTES_PER_PIXEL
    free = psutil.virtual_memory().available
    if needed > free:
        raise ConfigError(
            f"a grid of {grid.rows} x {grid.cols} needs about {needed / 2**30:.1f} GiB of memory, "
            f"{free / 2**30:.1f} GiB are free: set a smaller grid.rows and grid.cols"
        )


def make_paths(settings: LowdoseSettings) -> tuple[ScanPath, ...]:
    """Return the paths of one cycle of the configured scan."""
    grid, scan = settings.grid.build(), settings.scan
    pattern = make_pattern(scan.pattern, grid, local=True)
    try:
        return pattern.paths(grid, dwell_time_us=scan.dwell_time_us, rng=np.random.default_rng(scan.seed))
    except ValueError as error:
        raise ConfigError(f"pattern '{scan.pattern.get('name')}': {error}") from None


def build_controller(settings: LowdoseSettings) -> ScanController:
    """Return the configured controller; the simulated one gets the configured specimen to look at."""
    from lowdose.simulator.controller import Simulated

    controller = make_plug_in("controller", settings.controller, local=True)
    if not isinstance(controller, Simulated):
        return controller  # type: ignore[no-any-return]
    try:
        specimen = make_plug_in("specimen", settings.specimen, local=True).open(settings.grid.build())
    except (ValueError, OSError) as error:
        raise ConfigError(f"specimen: {error}") from None
    try:
        return controller.open(specimen, channels=settings.scan.channels, beam_current_pa=settings.beam.current_pa)
    except ValueError as error:
        raise ConfigError(f"controller: {error}") from None


def build_microscope(settings: LowdoseSettings) -> MicroscopeService:
    """Return the microscope service, its endpoints bound, the beam parked."""
    from lowdose.acquisition.microscope import MicroscopeService

    require_memory(settings.grid.build(), len(settings.scan.channels))
    make_paths(settings)
    own = settings.scan.pattern
    shipped = [name for name in TABLES["pattern"] if name not in READ_FILES]
    return MicroscopeService(
        build_controller(settings),
        settings.grid.build(),
        settings.scan,
        settings.beam,
        settings.dose,
        settings.safety,
        settings.network,
        make_pattern=partial(_make_allowed_pattern, own),
        pattern_names=tuple(dict.fromkeys([*shipped, str(own.get("name"))])),
        settings_facts=settings.model_dump(mode="json"),
    )


def _make_allowed_pattern(own: dict[str, Any], mapping: Any, grid: Any) -> Any:
    """Make a pattern asked for over a socket: of the shipped table, or the user's own that was configured here."""
    configured_here = all(mapping.get(key) == own.get(key) for key in ("name", "path"))
    return make_pattern(mapping, grid, local=configured_here)


def build_recorder(settings: LowdoseSettings, path: Path) -> RecorderService:
    """Return the recorder service, its file made."""
    from lowdose.acquisition.recorder import RecorderService

    require_recordable(path)
    record, name = settings.record, f"recorder of {path.name}"[:MAX_CLIENT_NAME]
    return RecorderService(path, settings.network, fsync=record.fsync, frames=record.frames, name=name)


def build_reconstruction(settings: LowdoseSettings) -> ReconstructionService:
    """Return the reconstruction service, its endpoint bound, ready for the configured scan."""
    from lowdose.reconstruction.pipeline import Reconstructor
    from lowdose.reconstruction.service import ReconstructionService

    require_memory(settings.grid.build(), len(settings.scan.channels))
    reconstructor = Reconstructor([build_engine(stage) for stage in settings.stages])
    reconstructor.warm_up(settings.grid.build().shape, len(settings.scan.channels), _first_path(settings))
    return ReconstructionService(reconstructor, settings.network)


def _first_path(settings: LowdoseSettings) -> ScanPath | None:
    """Return the path that is scanned first; None for one that cannot be, as on the grid of a replay of another."""
    try:
        return make_paths(settings)[0]
    except ConfigError:
        return None
