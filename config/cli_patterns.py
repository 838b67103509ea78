"""`lowdose pattern`: scan patterns as a table, a picture or a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowdose.config.cli_options import Coverage, TrueCoverage

if TYPE_CHECKING:
    from lowdose.config.patterns import PathReport

pattern_app = typer.Typer(no_args_is_help=True, help="Scan patterns as a table, a picture or a file.")

ScanPatternName = Annotated[str, typer.Argument(help="Name of a scan pattern.")]
Parameters = Annotated[
    list[str] | None, typer.Option("--param", metavar="KEY=VALUE", help="Parameter of the pattern, VALUE is YAML.")
]
Shape = Annotated[int, typer.Option(min=1, help="Edge of the square field, in pixels.")]
PixelSize = Annotated[float, typer.Option(help="Edge of a pixel, in nm.")]
DwellTime = Annotated[float, typer.Option(help="Nominal dwell time, in µs.")]
Current = Annotated[float, typer.Option(help="Probe current, for the dose, in pA.")]
Seed = Annotated[int, typer.Option(min=0, help="Of random patterns.")]
DeflectorOption = Annotated[
    list[str] | None,
    typer.Option("--deflector", metavar="KEY=VALUE", help="Property of the deflector, as under controller.deflector."),
]
Budget = Annotated[float | None, typer.Option(help="Tell the dwell time for this dose of a frame, in e-/Å².")]
CycleFrame = Annotated[int, typer.Option(min=0, help="Which path of a pattern's cycle.")]


@pattern_app.command("list")
def pattern_list() -> None:
    """List the scan patterns and their parameters."""
    from lowdose.config.patterns import print_table

    print_table()


@pattern_app.command("show")
def pattern_show(
    name: ScanPatternName,
    coverage: Coverage = None,
    true_coverage: TrueCoverage = None,
    parameters: Parameters = None,
    shape: Shape = 512,
    pixel_size_nm: PixelSize = 0.05,
    dwell_time_us: DwellTime = 1.0,
    current_pa: Current = 25.0,
    seed: Seed = 0,
    frame: CycleFrame = 0,
    deflector: DeflectorOption = None,
    budget_e_per_a2: Budget = None,
    out: Annotated[Path | None, typer.Option(help="PNG, PDF or SVG to write.", show_default="NAME.png")] = None,
    window: Annotated[bool, typer.Option("--window", help="Open a window to zoom in; a file only with --out.")] = False,
) -> None:
    """Draw where the beam goes, what it measures and what that costs."""
    from lowdose.config.options import require_writable
    from lowdose.config.patterns import show
    from lowdose.config.sheet import require_window

    out = out if out or window else Path(f"{name}.png")
    require_writable(out)
    if window:
        require_window()
    report = _report(
        name,
        shape,
        pixel_size_nm,
        coverage=coverage,
        true_coverage=true_coverage,
        parameters=parameters or [],
        dwell_time_us=dwell_time_us,
        beam_current_pa=current_pa,
        seed=seed,
        frame=frame,
        deflector=deflector or [],
        budget_e_per_a2=budget_e_per_a2,
    )
    show(report, out, window=window)


@pattern_app.command("export")
def pattern_export(
    name: ScanPatternName,
    out: Annotated[Path, typer.Option(help="CSV to write; NPY when named .npy.")],
    coverage: Coverage = None,
    true_coverage: TrueCoverage = None,
    parameters: Parameters = None,
    shape: Shape = 512,
    pixel_size_nm: PixelSize = 0.05,
    dwell_time_us: DwellTime = 1.0,
    current_pa: Current = 25.0,
    seed: Seed = 0,
    frame: CycleFrame = 0,
    deflector: DeflectorOption = None,
    budget_e_per_a2: Budget = None,
) -> None:
    """Write the probe positions, row,col,dwell_time_us,jump, for a pattern that reads points."""
    from lowdose.config.options import require_writable
    from lowdose.config.patterns import export

    require_writable(out)
    report = _report(
        name,
        shape,
        pixel_size_nm,
        coverage=coverage,
        true_coverage=true_coverage,
        parameters=parameters or [],
        dwell_time_us=dwell_time_us,
        beam_current_pa=current_pa,
        seed=seed,
        frame=frame,
        deflector=deflector or [],
        budget_e_per_a2=budget_e_per_a2,
    )
    export(report, out)


def _report(name: str, edge: int, pixel_size_nm: float, **asked: Any) -> PathReport:
    from lowdose.config.patterns import make_report
    from lowdose.scan_patterns.grid import ScanGrid

    return make_report(name, grid=ScanGrid((edge, edge), pixel_size_nm), **asked)
