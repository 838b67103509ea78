"""Commands that make and judge engines: train, export, evaluate, compile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

engines_app = typer.Typer()


@engines_app.command("compile")
def compile_engine(
    file: Annotated[Path, typer.Argument(help="Engine file (NAME.onnx).")],
    runtime: Annotated[str, typer.Option(help="What is to run it.")] = "auto",
    precision: Annotated[str, typer.Option(help="FP32, BF16 or FP16.")] = "auto",
    size: Annotated[int, typer.Option(min=32, help="Edge of the pictures, in pixels.")] = 512,
) -> None:
    """Prepare an engine file for this machine, so that a session starts at once, and time it."""
    from lowdose.config.compile import compile_engine

    sys.exit(compile_engine(file, runtime=runtime, precision=precision, size=size))
