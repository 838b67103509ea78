"""`lowdose evaluate`: folders and engines by name, a progress bar, tables on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from pydantic import ValidationError

from lowdose.config.engines import build_engine
from lowdose.config.errors import ConfigError
from lowdose.config.options import require_writable
from lowdose.config.schema import StageSettings
from lowdose.scan_patterns.grid import MAX_EDGE
from lowdose.training.data_settings import ImageSource
from lowdose.training.evaluate import BASELINE_NAMES, DEFAULT_PATTERNS, evaluate, require_comparable
from lowdose.training.evaluation_images import common_folder, usable_images, why_left_out
from lowdose.training.evaluation_report import (
    RANGE_UNITS,
    TARGET_NAMES,
    Evaluation,
    cells,
    columns,
    to_json,
    write_report,
)
from lowdose.training.evaluation_scan import laid_out
from lowdose.training.sources import ImageFile, list_images

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import Console
    from rich.progress import Progress

    from lowdose.reconstruction.engine import Engine
    from lowdose.training.evaluation_scan import Noise

MIN_CROP_PX = 32
DECONVOLVED = " deconvolved"
"""Ends the name of an engine with deconvolution after it."""


def run_evaluation(
    paths: Sequence[Path],
    *,
    engines: str | None,
    pattern: str | None,
    coverage: str | None,
    where: Sequence[str],
    crop_px: int,
    noise: str,
    seed: int,
    limit: int | None,
    out: Path | None,
    json_file: Path | None,
    deconvolve: bool = False,
) -> int:
    """Evaluate engines on images; print the errors, write the figures' numbers as JSON and the report into `out`.

    Raises
    ------
    ConfigError, ValueError
        If an option is wrong or no image is left.
    RuntimeError
        If something could not be written, after everything else was.
    """
    if noise not in ("none", "counts"):
        raise ConfigError(f"--noise must be none or counts, got {noise!r}")
    if not MIN_CROP_PX <= crop_px <= MAX_EDGE:
        raise ConfigError(f"--crop must be {MIN_CROP_PX} to {MAX_EDGE} px, got {crop_px}")
    require_writable(json_file)
    patterns = chosen_patterns(pattern, coverage)
    for mapping in patterns:  # what is wrong with one is told before thousands of images are read
        laid_out(mapping, crop_px, cast("Noise", noise), seed)
    listed = listed_images(paths, where)
    made = make_engines(engines)
    if deconvolve:
        made |= deconvolved(made)
    require_comparable(made)
    if out is not None:
        if (out / "evaluation.json").exists():
            raise ConfigError(f"{out} holds a report already: name another folder with --out")
        _make_folder(out)
        require_writable(out / "report.md", out / "evaluation.json")
    with _progress() as progress:
        reading = progress.add_task("reading", total=len(listed))
        images = usable_images(
            listed, crop_px, limit=limit, folder=_folder_of(paths), advance=lambda: progress.advance(reading)
        )
        n_read = len(images.files) + len(images.left_out)
        progress.update(reading, total=n_read, completed=n_read)
        completing = progress.add_task("completing", total=len(images.files) * len(patterns))
        results = evaluate(
            images,
            patterns,
            made,
            noise=cast("Noise", noise),
            seed=seed,
            advance=lambda: progress.advance(completing),
        )
        evaluation = Evaluation(images, tuple(results), cast("Noise", noise), seed)
    try:
        _print(evaluation)
    finally:  # a closed pipe does not cost the files
        _save(evaluation, json_file, out)
    return 0


def chosen_patterns(name: str | None, coverage: str | None) -> list[dict[str, Any]]:
    """Return the patterns asked for: those of the papers by default, of the name given only where there is one.

    Examples
    --------
    >>> chosen_patterns("lattice", "1/16,0.04")
    [{'name': 'lattice', 'coverage': '1/16'}, {'name': 'lattice', 'coverage': '0.04'}]
    """
    if coverage is not None:
        if name is None:
            raise ConfigError("--coverage needs the --pattern it is of, such as --pattern spiral --coverage 1/20,1/50")
        return [{"name": name, "coverage": value.strip()} for value in coverage.split(",")]
    published = [dict(mapping) for mapping in DEFAULT_PATTERNS if name in (None, mapping["name"])]
    return published or [{"name": name}]


def listed_images(paths: Sequence[Path], where: Sequence[str]) -> list[ImageFile]:
    """Return the images of folders, those of their manifests' rows that fit, and single files; each once.

    Raises
    ------
    ConfigError, DataError
        If there is no such file, or `where` does not fit.
    """
    files: dict[Path, ImageFile] = {}
    for given in paths:
        path = given.expanduser()
        if path.is_dir():
            found = list_images(path, _image_source(path, where))
        elif not path.is_file():
            raise ConfigError(f"{path} is no file or folder: expected images or folders of them, check the path")
        elif where:
            raise ConfigError(
                f"--where chooses from a folder's manifest.csv, got the single file {path}: give the folder"
            )
        else:
            found = [ImageFile(path, path.name)]
        for file in found:
            files.setdefault(file.path.resolve(), file)
    return list(files.values())


def _folder_of(paths: Sequence[Path]) -> Path:
    """Return the folder given, of several the one that holds them all."""
    given = [path.expanduser() for path in paths]
    return common_folder([path if path.is_dir() else path.parent for path in given])


def _image_source(folder: Path, where: Sequence[str]) -> ImageSource:
    tests = dict(_test(text) for text in where)
    try:
        return ImageSource(images=str(folder), where=tests)
    except ValidationError:
        raise ConfigError(
            f"--where {' '.join(where)}: expected COLUMN=VALUE, COLUMN=[VALUE, VALUE] or COLUMN={{at_most: NUMBER}}"
        ) from None


def _test(text: str) -> tuple[str, Any]:
    column, equals, value = text.partition("=")
    if not equals or not column.strip():
        raise ConfigError(f"--where takes COLUMN=VALUE, got {text!r}")
    try:
        test = yaml.safe_load(value) if value.lstrip()[:1] in ("[", "{") else value
    except yaml.YAMLError:
        raise ConfigError(f"--where {text}: the value is not YAML") from None
    return column.strip(), [str(entry) for entry in test] if isinstance(test, list) else test


def make_engines(names: str | None) -> dict[str, Engine]:
    """Return engines by what the report calls them: their name or, of a file, its name without the ending.

    A file whose name another method has is called by the path given.

    Parameters
    ----------
    names : str or None
        Divided by commas: names of engines, or paths of engine files.
    """
    given = [name for name in dict.fromkeys(part.strip() for part in (names or "").split(",")) if name]
    taken = {*BASELINE_NAMES, *(name.replace("_", " ") for name in BASELINE_NAMES), *given}  # tables show both alike
    engines: dict[str, Engine] = {}
    for name in given:
        stem = Path(name).stem
        free = name.endswith(".onnx") and stem not in taken and not stem.endswith((DECONVOLVED, ".onnx"))
        engines[stem if free else name] = build_engine(StageSettings(complete=name))
        taken.add(stem)
    return engines


def deconvolved(engines: Mapping[str, Engine]) -> dict[str, Engine]:
    """Return those that estimate blurred pictures, with deconvolution after them.

    Raises
    ------
    ConfigError
        If there is none, or torch is not installed.
    """
    try:
        from lowdose.training.deconvolution import DeconvolvedEngine
    except ImportError as error:
        raise ConfigError(f'--deconvolve needs torch ({error}): pip install "lowdose[train]"') from None

    found = {name: engine for name, engine in engines.items() if engine.info.target == "blurred_5x5"}
    if not found:
        raise ConfigError("--deconvolve sharpens what engines trained on blurred targets make: name one by --engines")
    return {f"{name}{DECONVOLVED}": DeconvolvedEngine(engine) for name, engine in found.items()}


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {out}: {error.strerror}") from None


def _save(evaluation: Evaluation, json_file: Path | None, out: Path | None) -> None:
    """Write what is asked for; what cannot be written does not keep the rest from being tried."""
    writers = ((json_file, _write_json), (out, _write_report))
    failures = [_failure(write, evaluation, path) for path, write in writers if path is not None]
    if any(failures):
        raise RuntimeError(
            f"cannot write {' nor '.join(filter(None, failures))}: the errors are printed above, free that place or "
            "choose another and evaluate again for the files"
        )


def _failure(write: Callable[[Evaluation, Path], None], evaluation: Evaluation, path: Path) -> str:
    try:
        write(evaluation, path)
    except OSError as error:
        return f"{error.filename or path} ({error.strerror or error})"
    return ""


def _write_json(evaluation: Evaluation, path: Path) -> None:
    path.write_text(to_json(evaluation), encoding="utf-8")


def _write_report(evaluation: Evaluation, out: Path) -> None:
    from lowdose.training.evaluation_figures import draw_figures

    with _progress() as progress:
        drawing = progress.add_task("drawing", total=None)
        write_report(evaluation, out, draw_figures)
        progress.update(drawing, total=1, completed=1)
    _console().print(f"wrote {out / 'report.md'}, evaluation.json and the figures")


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)  # the tables alone go where output is redirected to
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )


def _console() -> Console:
    from rich.console import Console

    return Console(width=110, markup=False, highlight=False)  # names of files may look like markup


def _print(evaluation: Evaluation) -> None:
    from rich.table import Table

    console = _console()
    for target in evaluation.targets:
        heads = [label.replace(" ", "\n") for label in columns(evaluation)]
        table = Table(title=f"RMS error against the {TARGET_NAMES[target]}", padding=(0, 0, 0, 1))
        table.add_column("engine", overflow="fold")
        for head in heads:
            table.add_column(head, justify="right", no_wrap=True)
        for line in cells(evaluation, target, lambda row: f"{row.rms:.4f}"):
            table.add_row(*line)
        console.print(table)
    for failure in evaluation.failures:
        console.print(f"{failure}, see the log")
    console.print(f"{evaluation.summary}.")
    for why in why_left_out(evaluation.images):
        console.print(f"  {why}")
    console.print(RANGE_UNITS)
