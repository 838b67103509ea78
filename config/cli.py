"""The command line: every subcommand loads settings, builds, runs. Heavy imports happen inside the subcommands."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="lowdose",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Live completion of sparse STEM scans.",
)
pattern_app = typer.Typer(no_args_is_help=True, help="Scan patterns as a table, a picture or a file.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure, honest about what is counted.")
app.add_typer(pattern_app, name="pattern")
app.add_typer(bench_app, name="bench")

Config = Annotated[str | None, typer.Argument(help="Name of a preset, or path of a YAML file.")]
ConfigOption = Annotated[str | None, typer.Option("--config", help="Name of a preset, or path of a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=VALUE", help="Override a setting.")]
Images = Annotated[Path | None, typer.Option(help="Image file or folder to use as the specimen.")]
PatternName = Annotated[str | None, typer.Option("--pattern", help="Name of a scan pattern.")]
Coverage = Annotated[str | None, typer.Option(help="Published nominal coverage, 0.05 or 1/20.")]
TrueCoverage = Annotated[str | None, typer.Option(help="Visited share of all pixels, solved for.")]
Frames = Annotated[int | None, typer.Option(min=1, help="End after so many frames shown.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]
Picture = Annotated[Path | None, typer.Option(help="Write measured and completed picture here at the end (PNG).")]
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
IsChild = Annotated[bool, typer.Option("--child", hidden=True, help="End when standard input ends.")]


def main() -> None:
    """Run the command line: exit code 2 for wrong input, 1 for a failure, never a traceback for a user's mistake."""
    try:
        _begin_log(os.environ.get("LOWDOSE_LOG") or "WARNING")
        app()
    except ValueError as error:  # ConfigError, EndpointError and every check at a public border
        logging.getLogger(__name__).debug("wrong input", exc_info=True)
        _complain(str(error))
        sys.exit(2)
    except (RuntimeError, OSError) as error:
        logging.getLogger(__name__).debug("failure", exc_info=True)
        _complain(str(error))
        sys.exit(1)
    except MemoryError as error:
        _complain(f"out of memory: {error or 'choose a smaller grid'}")
        sys.exit(1)


def _begin_log(level: str) -> None:
    if level.upper() not in logging.getLevelNamesMapping():
        raise ValueError(f"LOWDOSE_LOG must be DEBUG, INFO, WARNING or ERROR, got {level!r}")
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")


def _complain(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)


@app.command()
def live(
    config: Config = None,
    overrides: Overrides = None,
    images: Images = None,
    pattern: PatternName = None,
    coverage: Coverage = None,
    true_coverage: TrueCoverage = None,
    headless: Annotated[bool, typer.Option("--headless", help="No window.")] = False,
    frames: Frames = None,
    picture: Picture = None,
    json_file: JsonFile = None,
) -> None:
    """Run the whole pipeline on one machine: microscope, reconstruction and window."""
    from lowdose.config.live import run_live

    settings = _settings(
        config, overrides, images=images, pattern=pattern, coverage=coverage, true_coverage=true_coverage
    )
    sys.exit(
        run_live(
            settings,
            headless=headless,
            frames=frames,
            picture=picture,
            json_file=json_file,
            named=_named(config, overrides),
        )
    )


@app.command()
def microscope(config: ConfigOption = None, overrides: Overrides = None, child: IsChild = False) -> None:
    """Run the microscope service alone."""
    from lowdose.config.build import build_microscope
    from lowdose.config.child import run_service

    run_service(build_microscope(_settings(config, overrides)), child=child)


@app.command()
def reconstruct(config: ConfigOption = None, overrides: Overrides = None, child: IsChild = False) -> None:
    """Run the reconstruction service alone."""
    from lowdose.config.build import build_reconstruction
    from lowdose.config.child import run_service

    run_service(build_reconstruction(_settings(config, overrides)), child=child)


@app.command()
def display(
    config: ConfigOption = None,
    overrides: Overrides = None,
    frames: Frames = None,
    picture: Picture = None,
    json_file: JsonFile = None,
    headless: Annotated[bool, typer.Option("--headless", hidden=True)] = False,
    trace: Annotated[Path | None, typer.Option(hidden=True)] = None,
    child: IsChild = False,
) -> None:
    """Run the operator's window alone."""
    from lowdose.config.live import run_display

    run_display(
        _settings(config, overrides),
        headless=headless,
        frames=frames,
        picture=picture,
        json_file=json_file,
        trace=trace,
        child=child,
    )


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
    from lowdose.config.patterns import make_report, show
    from lowdose.config.sheet import require_window
    from lowdose.scan_patterns.grid import ScanGrid

    out = out if out or window else Path(f"{name}.png")
    require_writable(out)
    if window:
        require_window()
    report = make_report(
        name,
        coverage=coverage,
        true_coverage=true_coverage,
        parameters=parameters or [],
        grid=ScanGrid((shape, shape), pixel_size_nm),
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
    from lowdose.config.patterns import export, make_report
    from lowdose.scan_patterns.grid import ScanGrid

    require_writable(out)
    report = make_report(
        name,
        coverage=coverage,
        true_coverage=true_coverage,
        parameters=parameters or [],
        grid=ScanGrid((shape, shape), pixel_size_nm),
        dwell_time_us=dwell_time_us,
        beam_current_pa=current_pa,
        seed=seed,
        frame=frame,
        deflector=deflector or [],
        budget_e_per_a2=budget_e_per_a2,
    )
    export(report, out)


@bench_app.command("latency")
def bench_latency(
    frames: Annotated[int, typer.Option(min=10, help="Frames measured, after the warm-up.")] = 500,
    size: Annotated[int, typer.Option(min=32, help="Edge of the square field [pixel].")] = 512,
    pattern: PatternName = None,
    coverage: Coverage = None,
    images: Images = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Measure the live pipeline from the last sample to the painted frame, stage by stage."""
    from lowdose.config.bench import run_latency

    sizes = [f"grid.rows={size}", f"grid.cols={size}"]
    settings = _settings(None, [*sizes, *(overrides or [])], images=images, pattern=pattern, coverage=coverage)
    sys.exit(run_latency(settings, frames=frames, json_file=json_file))


@bench_app.command("safety")
def bench_safety(
    trials: Annotated[int, typer.Option("--frames", min=1, help="Trials of each fault in each setup.")] = 15,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Measure how fast the beam is off after every fault, by the simulated beam's own clock."""
    from lowdose.config.bench_safety import run_safety

    sys.exit(run_safety(_settings(None, overrides), trials=trials, json_file=json_file))


@app.command()
def doctor(gpu: Annotated[bool, typer.Option("--gpu", help="Look closer at the GPU.")] = False) -> None:
    """Tell what is installed, what would run where, and what is missing."""
    from lowdose.config.doctor import examine

    sys.exit(examine(gpu=gpu))


def _settings(config: str | None, overrides: list[str] | None, **options: Any) -> Any:
    """Return settings with the options of the command line on top."""
    from lowdose.config.loading import load_settings
    from lowdose.config.options import with_options

    return with_options(load_settings(config, overrides or []), **options)


def _named(config: str | None, overrides: list[str] | None) -> Any:
    """Return a test of whether the user named an endpoint."""
    from lowdose.config.loading import named_endpoints

    names = named_endpoints(config, overrides or [])
    return names.__contains__


if __name__ == "__main__":
    main()
