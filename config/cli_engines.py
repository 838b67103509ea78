"""Commands that make, judge and use engines: train, export, evaluate, compile, complete."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lowdose.config.cli_options import Coverage, JsonFile, Overrides, PatternName, TrueCoverage
from lowdose.config.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

RECIPES = sorted(
    file.name.removesuffix(".yaml")
    for file in (files("lowdose.training") / "recipes").iterdir()
    if file.name.endswith(".yaml")
)
NEEDS = "Needs torch: install the package with its extra `train`."

engines_app = typer.Typer()


@contextmanager
def _extra_train() -> Iterator[None]:
    """Say what to install where a library of the extra `train` is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "lowdose"):
            raise
        raise ConfigError(f'{missing} is needed to train: pip install "lowdose[train]"') from None


@engines_app.command("train", epilog=NEEDS)
def train(
    recipe: Annotated[str, typer.Argument(help=f"Path of a YAML file, or one of {', '.join(RECIPES)}.")],
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A minute's run of a small network on made-up pictures.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Length; schedules scale with it.")] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/RECIPE-TIME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make examples; 0 = none beside this one.")] = 0,
) -> None:
    """Train a network by a recipe; what comes out is a run folder with checkpoints."""
    with _extra_train():
        from lowdose.training.commands import run_train

        sys.exit(run_train(recipe, overrides or [], smoke=smoke, steps=steps, out=out, resume=resume, workers=workers))


@engines_app.command("export", epilog=NEEDS)
def export(
    run: Annotated[Path, typer.Argument(help="Run folder, or a checkpoint in it.")],
    out: Annotated[Path, typer.Option(help="Engine file to write, NAME.onnx; its card goes beside it.")],
    precision: Annotated[str, typer.Option(help="FP32, BF16 or FP16.")] = "FP16",
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="evaluation.json of `lowdose evaluate`: its errors go into the card."),
    ] = None,
) -> None:
    """Make an engine file of a trained network."""
    with _extra_train():
        from lowdose.training.commands import run_export

        sys.exit(run_export(run, out, precision=precision, evaluations=evaluation or []))


@engines_app.command("evaluate")
def evaluate(
    images: Annotated[
        list[Path], typer.Argument(metavar="FOLDER_OR_IMAGES...", help="Images, or folders with their manifest.csv.")
    ],
    engines: Annotated[
        str | None, typer.Option(metavar="A,B", help="Engines or engine files beside nearest and linear.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="Scan pattern.", show_default="those of the papers")] = None,
    coverage: Annotated[str | None, typer.Option(metavar="X,Y", help="Nominal coverages of --pattern.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Rows of manifest.csv; VALUE, [VALUE, VALUE] or {at_most: N}."),
    ] = None,
    crop: Annotated[int, typer.Option(help="Edge of the square from the middle of each image, in pixels.")] = 512,
    noise: Annotated[str, typer.Option(help="none, or counts: single electrons at 25 pA and 1 µs.")] = "none",
    seed: Annotated[int, typer.Option(min=0, help="Of random patterns and noise.")] = 0,
    deconvolve: Annotated[
        bool, typer.Option("--deconvolve", help="Also sharpen what engines of blurred targets make: seconds a picture.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="End with so many images, sources by turns.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.md, evaluation.json and figures.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure engines on images: the papers' tables and figures."""
    from lowdose.config.evaluate import run_evaluation

    sys.exit(
        run_evaluation(
            images,
            engines=engines,
            pattern=pattern,
            coverage=coverage,
            where=where or [],
            crop_px=crop,
            noise=noise,
            seed=seed,
            limit=limit,
            out=out,
            json_file=json_file,
            deconvolve=deconvolve,
        )
    )


@engines_app.command("complete")
def complete(
    file: Annotated[Path, typer.Argument(metavar="PICTURE", help="TIFF, PNG or NPY of one grey picture.")],
    mask: Annotated[
        Path | None, typer.Option(help="Picture of the same size, 0 = not measured.", show_default="NaN in PICTURE")
    ] = None,
    pattern: PatternName = None,
    coverage: Coverage = None,
    true_coverage: TrueCoverage = None,
    engine: Annotated[str, typer.Option(help="auto, an engine's name or an engine file.")] = "auto",
    form: Annotated[str, typer.Option("--format", help="tiff, hspy, emd or zarr.")] = "tiff",
    out: Annotated[Path | None, typer.Option(help="File or folder to make.", show_default="PICTURE-completed")] = None,
) -> None:
    """Complete a sparsely measured picture; with --pattern, a picture as if only that had been measured."""
    from lowdose.config.complete import Measured, run_complete

    sys.exit(run_complete(file, Measured(mask, pattern, coverage, true_coverage), engine=engine, form=form, out=out))


@engines_app.command("compile")
def compile_engine(
    file: Annotated[Path, typer.Argument(help="Engine file (NAME.onnx).")],
    runtime: Annotated[str, typer.Option(help="What is to run it.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, FP32, BF16 or FP16.")] = "auto",
    size: Annotated[int, typer.Option(min=32, help="Edge of the pictures, in pixels.")] = 512,
) -> None:
    """Prepare an engine file for this machine, so that a session starts at once, and time it."""
    from lowdose.config.compile import compile_engine

    spelled = "auto" if precision.lower() == "auto" else precision.upper()
    sys.exit(compile_engine(file, runtime=runtime, precision=spelled, size=size))
