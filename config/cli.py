"""The command line: every subcommand loads settings, builds, runs. Heavy imports happen inside the subcommands."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lowdose.config.cli_bench import bench_app
from lowdose.config.cli_engines import engines_app
from lowdose.config.cli_options import (
    Config,
    ConfigOption,
    Coverage,
    Frames,
    Images,
    IsChild,
    JsonFile,
    Overrides,
    PatternName,
    Picture,
    Record,
    TrueCoverage,
    named_by,
    settings_of,
)
from lowdose.config.cli_patterns import pattern_app
from lowdose.config.cli_replay import replay_app
from lowdose.config.cli_session import session_app

app = typer.Typer(
    name="lowdose",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Live completion of sparse STEM scans.",
)
app.add_typer(pattern_app, name="pattern")
app.add_typer(bench_app, name="bench")
app.add_typer(session_app, name="session")
app.add_typer(engines_app)
app.add_typer(replay_app)


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
    """Print a complaint; names of files in it reach the terminal as text, never as orders."""
    from lowdose.scan_patterns.checks import printable

    shown = "\n".join(map(printable, message.split("\n")))
    print(f"error: {shown}", file=sys.stderr)


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
    record: Record = None,
    picture: Picture = None,
    json_file: JsonFile = None,
) -> None:
    """Run the whole pipeline on one machine: microscope, reconstruction and window."""
    from lowdose.config.live import run_live

    settings = settings_of(
        config, overrides, images=images, pattern=pattern, coverage=coverage, true_coverage=true_coverage
    )
    sys.exit(
        run_live(
            settings,
            headless=headless,
            frames=frames,
            record=record,
            picture=picture,
            json_file=json_file,
            named=named_by(config, overrides),
        )
    )


@app.command()
def microscope(config: ConfigOption = None, overrides: Overrides = None, child: IsChild = False) -> None:
    """Run the microscope service alone."""
    from lowdose.config.build import build_microscope
    from lowdose.config.child import run_service

    run_service(build_microscope(settings_of(config, overrides)), child=child)


@app.command()
def reconstruct(config: ConfigOption = None, overrides: Overrides = None, child: IsChild = False) -> None:
    """Run the reconstruction service alone."""
    from lowdose.config.build import build_reconstruction
    from lowdose.config.child import run_service

    run_service(build_reconstruction(settings_of(config, overrides)), child=child, may_be_late=True)


@app.command()
def record(
    file: Annotated[Path, typer.Argument(help="Session file to make (.mcap).")],
    config: ConfigOption = None,
    overrides: Overrides = None,
    child: IsChild = False,
) -> None:
    """Record everything a microscope service measures, until it ends or this is told to."""
    from lowdose.config.build import build_recorder
    from lowdose.config.child import run_service

    run_service(build_recorder(settings_of(config, overrides), file), child=child)


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
        settings_of(config, overrides),
        headless=headless,
        frames=frames,
        picture=picture,
        json_file=json_file,
        trace=trace,
        child=child,
    )


@app.command()
def doctor(gpu: Annotated[bool, typer.Option("--gpu", help="Look closer at the GPU.")] = False) -> None:
    """Tell what is installed, what would run where, and what is missing."""
    from lowdose.config.doctor import examine

    sys.exit(examine(gpu=gpu))


if __name__ == "__main__":
    main()
