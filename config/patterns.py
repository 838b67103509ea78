"""`lowdose pattern list | show | export`: patterns as table, picture and file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from lowdose.acquisition.controllers.deflector import REACHED_PX, Deflector, Drive
from lowdose.config.build import require_memory
from lowdose.config.errors import ConfigError
from lowdose.config.options import pattern_mapping
from lowdose.config.registry import make_pattern, plug_in_class, validated
from lowdose.scan_patterns.checks import rounded_down
from lowdose.scan_patterns.dose import (
    budget_dwell_time_us,
    cumulative_dose_e_per_a2,
    dose_rate_e_per_a2_s,
    frame_dose_e_per_a2,
    share_of_raster,
    visited_dose_e_per_a2,
)
from lowdose.scan_patterns.pattern import PATTERNS
from lowdose.scan_patterns.points import COLUMNS, is_npy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.scan_patterns.path import ScanPath


MAX_DRIVEN = 1 << 21
"""Longer paths take minutes to model."""


@dataclass(frozen=True)
class PathReport:
    """One path of a pattern, and what the sheet and the printed facts tell of it.

    Parameters
    ----------
    mapping : dict
        Name and parameters of the pattern, ``coverage`` solved for.
    path : ScanPath
        The path.
    place : str
        Which path of the cycle it is; empty when there is one only.
    dwell_time_us, beam_current_pa : float
        Nominal dwell time [µs], probe current [pA].
    cycle : tuple of ScanPath
        All paths of the pattern.
    deflector : Deflector
        That is to follow it.
    budget_e_per_a2 : float or None
        Dose a frame may have [e-/Å^2].
    """

    mapping: dict[str, Any]
    path: ScanPath
    place: str
    dwell_time_us: float
    beam_current_pa: float
    cycle: tuple[ScanPath, ...] = ()
    deflector: Deflector = field(default_factory=Deflector)
    budget_e_per_a2: float | None = None

    @cached_property
    def deflection(self) -> Drive | str:
        """What the deflector does with the path, or why nothing is known of it."""
        return _deflected(self.deflector, self.path)

    @cached_property
    def distances_px(self) -> NDArray[np.float64]:
        """(rows, cols) distance of every pixel to the nearest visited one [pixel]."""
        from scipy.ndimage import distance_transform_edt

        return np.asarray(distance_transform_edt(~self.path.mask))

    @cached_property
    def steps_px(self) -> NDArray[np.float32]:
        """(n - 1,) length of every step, jumps included [pixel]."""
        return np.asarray(np.hypot(*np.diff(self.path.positions, axis=0).T))

    @cached_property
    def slews_px_per_us(self) -> NDArray[np.float32]:
        """Speed needed by every step that is no jump: its length over the dwell time before it [pixel/µs]."""
        steady = ~self.path.jumps[1:]
        return self.steps_px[steady] / self.path.dwell_times_us[:-1][steady]

    @property
    def title(self) -> str:
        """Name and parameters of the pattern, and which path of its cycle this is."""
        parameters = ", ".join(f"{key} {_short(value)}" for key, value in self.mapping.items() if key != "name")
        return "   ".join(filter(None, (self.mapping["name"], parameters, self.place)))

    @cached_property
    def facts(self) -> list[str]:
        """What the path is and costs, line by line."""
        path, current = self.path, self.beam_current_pa
        nominal = self.mapping.get("coverage", path.coverage)
        dose, visited = frame_dose_e_per_a2(path, current), visited_dose_e_per_a2(path, current)
        slews = self.slews_px_per_us
        slew = f"median {np.median(slews):.4g}, max {slews.max():.4g} px/µs" if len(slews) else "none, every step jumps"
        return [
            f"{self.mapping['name']}: {len(path)} positions on {path.grid.rows} x {path.grid.cols}, "
            f"{int(path.jumps.sum())} jumps{self.place and ', '}{self.place}",
            f"coverage_nominal {_share(nominal)}, coverage {_share(path.coverage)}",
            f"frame {path.duration_us / 1e3:.4g} ms; at {current:g} pA and {path.grid.pixel_size_nm:g} nm pixels "
            f"{dose:.4g} e-/Å² over the field, {visited:.4g} in a visited pixel",
            f"{_share(share_of_raster(path, self.dwell_time_us))} of the full raster's dose, settling aside; "
            f"dose rate {dose_rate_e_per_a2_s(path.grid, current):.4g} e-/Å²/s",
            f"distance to the nearest measurement: mean {self.distances_px.mean():.4g}, "
            f"max {self.distances_px.max():.4g} px",
            f"slew needed: {slew}",
            self.deflection_fact,
            *self._cycle_fact(),
            *self._budget_fact(),
        ]

    @property
    def deflection_fact(self) -> str:
        """What the deflector makes of the path."""
        deflector, drive = self.deflector, self.deflection
        coil = deflector.coil
        name = (
            f"deflector ({coil.natural_frequency_khz:g} kHz, {deflector.slew_px_per_us:g} px/µs, "
            f"{deflector.settle_us:g} µs to settle)"
        )
        if isinstance(drive, str):
            return f"{name}: {drive}"
        dose = frame_dose_e_per_a2(self.path, self.beam_current_pa, beam_time_us=drive.beam_time_us)
        missed = int(drive.unreached.sum())
        worst = f", by {drive.error_px.max():.2g} px at most" if missed else ""
        return (
            f"{name}: frame {drive.beam_time_us / 1e3:.4g} ms, {dose:.4g} e-/Å² with settling and flyback; "
            f"{missed} positions missed by more than {REACHED_PX:g} px{worst}"
        )

    def _cycle_fact(self) -> list[str]:
        n = len(self.cycle)
        if n < 2:
            return []
        dose = cumulative_dose_e_per_a2(self.cycle, self.beam_current_pa, n)[-1]
        visits = np.sum([path.hits for path in self.cycle], axis=0, dtype=np.int64)
        return [f"all {n} frames: {dose:.4g} e-/Å² over the field, {visits.min()} to {visits.max()} visits to a pixel"]

    def _budget_fact(self) -> list[str]:
        if self.budget_e_per_a2 is None:
            return []
        dwell_time_us = budget_dwell_time_us(
            self.path,
            self.beam_current_pa,
            self.budget_e_per_a2,
            dwell_time_us=self.dwell_time_us,
            beam_time_us=self.deflector.beam_time_us,
        )
        slower = self.path.with_dwell(dwell_time_us / self.dwell_time_us)
        problem = _deflected(self.deflector, slower)
        refused = f", which the deflector {problem}" if isinstance(problem, str) else ""
        kept = f"dwell_time_us {rounded_down(dwell_time_us):g}"
        return [f"budget of {self.budget_e_per_a2:g} e-/Å² for a frame: {kept}{refused}"]


def _deflected(deflector: Deflector, path: ScanPath) -> Drive | str:
    if len(path) > MAX_DRIVEN:
        return f"is not modelled with for more than {MAX_DRIVEN:,} positions"
    try:
        return deflector.drive(path)
    except ValueError as error:
        return f"cannot follow: {error}"


def print_table() -> None:
    """Print every pattern with its parameters and their defaults."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_lines=True)
    table.add_column("pattern", no_wrap=True)
    table.add_column("parameters", overflow="fold")
    table.add_column("what it is", overflow="fold")
    for name in PATTERNS:
        cls = plug_in_class("pattern", name, local=False)
        parameters = "\n".join(map(_default, dataclasses.fields(cls))) or "-"
        table.add_row(name, parameters, (cls.__doc__ or "").split("\n", 1)[0])
    Console().print(table)


def parse_parameters(parameters: Iterable[str], option: str = "--param") -> dict[str, Any]:
    """Return parameters given as key=VALUE on the command line; values are YAML.

    Raises
    ------
    ConfigError
        If one is not of this form.

    Examples
    --------
    >>> parse_parameters(["offset=[1, 2]", "speed=linear"])
    {'offset': [1, 2], 'speed': 'linear'}
    """
    mapping: dict[str, Any] = {}
    for parameter in parameters:
        key, equals, value = parameter.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"{option} takes key=VALUE, got {parameter!r}")
        if key == "name":
            raise ConfigError(f"{option} {parameter}: the pattern's name is the argument of the command")
        try:
            mapping[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ConfigError(f"{option} {parameter}: the value is not YAML") from None
    return mapping


def make_report(
    name: str,
    *,
    coverage: str | None,
    true_coverage: str | None,
    parameters: Iterable[str],
    grid: ScanGrid,
    dwell_time_us: float,
    beam_current_pa: float,
    seed: int,
    frame: int,
    deflector: Iterable[str] = (),
    budget_e_per_a2: float | None = None,
) -> PathReport:
    """Return the path that frame `frame` of a pattern's cycle follows, with what there is to tell of it.

    Raises
    ------
    ConfigError, ValueError
        If the pattern or a parameter is wrong, the cycle is shorter, or the path visits no pixel.
    """
    mapping = pattern_mapping({"name": name, **parse_parameters(parameters)}, name, coverage, true_coverage)
    require_memory(grid)
    pattern = make_pattern(mapping, grid, local=True)
    cycle = pattern.paths(grid, dwell_time_us=dwell_time_us, rng=np.random.default_rng(seed))
    if frame >= len(cycle):
        raise ConfigError(
            f"--frame must be 0 to {len(cycle) - 1}, the cycle of '{name}' has length {len(cycle)}, got {frame}"
        )
    if not cycle[frame].inside.any():
        raise ConfigError(f"the path of '{name}' visits no pixel of the field: choose other parameters")
    nominal = getattr(pattern, "coverage", None)
    mapping = {key: value for key, value in mapping.items() if key != "true_coverage"}
    return PathReport(
        {**mapping, **({} if nominal is None else {"coverage": nominal})},
        cycle[frame],
        f"path {frame} of a cycle of {len(cycle)}" if len(cycle) > 1 else "",
        dwell_time_us,
        beam_current_pa,
        cycle,
        validated(Deflector, parse_parameters(deflector, "--deflector"), "--deflector"),
        budget_e_per_a2,
    )


def show(report: PathReport, out: Path | None, *, window: bool) -> None:
    """Draw the sheet of a path into a file, a window or both, and print its facts."""
    from lowdose.config.sheet import show_sheet, write_sheet

    print(*report.facts, sep="\n")
    if out is not None:
        write_sheet(report, out)
        print(f"wrote {out}")
    if window:
        show_sheet(report)


def export(report: PathReport, out: Path) -> None:
    """Write the probe positions as CSV or, when named ``.npy``, as (n, 4) float32; `Points` reads both."""
    path = report.path
    table = np.column_stack([path.positions, path.dwell_times_us, path.jumps]).astype(np.float32, copy=False)
    try:
        if is_npy(out):
            with out.open("wb") as binary:
                np.save(binary, table)
        else:
            _write_csv(report, table, out)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from None
    print(f"wrote {len(path)} positions to {out}, digest {path.digest}")


def _write_csv(report: PathReport, table: NDArray[np.float32], out: Path) -> None:
    comments = [*report.facts, f"pattern {report.mapping}, digest {report.path.digest}"]
    with out.open("w", encoding="utf-8") as file:
        file.writelines(f"# {line}\n" for line in comments)
        file.write(f"{','.join(COLUMNS)}\n")
        np.savetxt(file, table, fmt=("%.9g", "%.9g", "%.9g", "%d"), delimiter=",")  # 9 digits keep a float32


def _default(field: dataclasses.Field[Any]) -> str:
    """Return a parameter with its default, or alone when it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return f"{field.name}={_short(field.default_factory())}"
    return field.name if field.default is dataclasses.MISSING else f"{field.name}={_short(field.default)}"


def _share(share: float) -> str:
    return f"{share:.5g} (1/{1 / share:.4g})"


def _short(value: Any) -> str:
    """Return a parameter's value, a float that is one over a small integer as such a fraction."""
    if not isinstance(value, float):
        return str(value)
    inverse = 1 / value if value else 0.0
    whole = 2 < inverse < 1000 and abs(inverse - round(inverse)) < 1e-9 * inverse
    return f"1/{inverse:.0f}" if whole else f"{value:.5g}"
