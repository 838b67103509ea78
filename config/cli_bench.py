"""`lowdose bench`: measure, honest about what is counted."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lowdose.config.cli_options import Coverage, Images, JsonFile, Overrides, PatternName, settings_of

bench_app = typer.Typer(no_args_is_help=True, help="Measure, honest about what is counted.")


@bench_app.command("latency")
def bench_latency(
    frames: Annotated[int, typer.Option(min=10, help="Frames measured, after the warm-up.")] = 500,
    size: Annotated[int, typer.Option(min=32, help="Edge of the square field [pixel].")] = 512,
    pattern: PatternName = None,
    coverage: Coverage = None,
    images: Images = None,
    record: Annotated[bool, typer.Option("--record", help="Record everything meanwhile.")] = False,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Measure the live pipeline from the last sample to the painted frame, stage by stage."""
    from lowdose.config.bench import run_latency

    sizes = [f"grid.rows={size}", f"grid.cols={size}"]
    settings = settings_of(None, [*sizes, *(overrides or [])], images=images, pattern=pattern, coverage=coverage)
    sys.exit(run_latency(settings, frames=frames, record=record, json_file=json_file))


@bench_app.command("safety")
def bench_safety(
    trials: Annotated[int, typer.Option("--frames", min=1, help="Trials of each fault in each setup.")] = 15,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Measure how fast the beam is off after every fault, by the simulated beam's own clock."""
    from lowdose.config.bench_safety import run_safety

    sys.exit(run_safety(settings_of(None, overrides), trials=trials, json_file=json_file))


@bench_app.command("engine")
def bench_engine(
    models: Annotated[
        str,
        typer.Option(
            help="Engine files (NAME.onnx), shipped ones (live_default), reference models (two_stage), with commas.",
            show_default="all shipped ones and two_stage",
        ),
    ] = "",
    engines: Annotated[str, typer.Option(help="Runtimes, with commas.", show_default="all that run here")] = "",
    batch: Annotated[str, typer.Option(help="Pictures in a batch; several with commas.")] = "1",
    size: Annotated[str, typer.Option(help="Edges of the pictures, in pixels; several with commas.")] = "512",
    json_file: JsonFile = None,
) -> None:
    """Measure how fast each runtime runs each engine file, and how near it stays to the reference."""
    from lowdose.config.bench_engine import run_engine

    names = models.split(",") if models else []
    runtimes = engines.split(",") if engines else []
    batches, sizes = _numbers("batch", batch), _numbers("size", size)
    sys.exit(run_engine(models=names, runtimes=runtimes, batches=batches, sizes=sizes, json_file=json_file))


@bench_app.command("wire")
def bench_wire(
    size: Annotated[int, typer.Option(help="Edge of the square frames, in pixels.")] = 512,
    record_s: Annotated[
        float, typer.Option("--record", min=0, help="Record 20 million samples/s for so many seconds, too.")
    ] = 0.0,
    json_file: JsonFile = None,
) -> None:
    """Measure what the sockets and the wire format carry, over every transport."""
    from lowdose.config.bench_wire import run_wire

    sys.exit(run_wire(size=size, json_file=json_file, record_s=record_s))


def _numbers(name: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise ValueError(f"--{name} must be whole numbers >= 1 with commas between them, got {text!r}")
    return numbers
