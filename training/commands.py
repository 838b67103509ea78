"""The commands `train` and `export`: options in, exit code out, progress on the terminal (rich; torch inside)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lowdose.reconstruction.engine import PRECISIONS
from lowdose.training.recorder import Watcher
from lowdose.training.run_folder import SETTINGS
from lowdose.training.settings import RecipeError, read_recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lowdose.training.validation import Score

RUNS = Path("runs")
"""Where runs go that are given no folder."""


def run_train(
    recipe: str,
    overrides: Iterable[str] = (),
    *,
    smoke: bool = False,
    steps: int | None = None,
    out: Path | None = None,
    resume: bool = False,
    workers: int = 0,
) -> int:
    """Train by a recipe; return 0, or 128 + the number of the signal that ended it early."""
    from lowdose.training.train import train

    settings = read_recipe(recipe, overrides, smoke=smoke, steps=steps)
    folder = out or (
        _newest_run(settings.name) if resume else RUNS / f"{settings.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    first = os.environ.get("RANK", "0") == "0"
    with Console(stderr=True, quiet=not first) as console, TerminalWatcher(console) as watcher:
        outcome = train(settings, folder, resume=resume, workers=workers, watcher=watcher)
        if outcome.stopped_by is not None:
            console.print(f"stopped by {outcome.stopped_by.name} after step {outcome.step}: go on with --resume")
            return 128 + outcome.stopped_by
        console.print(f"trained {outcome.step} steps: {folder}", soft_wrap=True, highlight=False)
    return 0


def run_export(run: Path, out: Path, *, precision: str = "FP16", evaluations: Iterable[Path] = ()) -> int:
    """Make an engine file of a run or a checkpoint; return 0."""
    from lowdose.training.export_run import export_run

    chosen = next((known for known in PRECISIONS if known == precision.upper()), None)
    if chosen is None:
        raise RecipeError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    file = export_run(run, out, precision=chosen, evaluations=evaluations)
    Console(stderr=True).print(f"wrote {file.path} and its card, digest {file.info.digest}", soft_wrap=True)
    return 0


class TerminalWatcher(Watcher):
    """Shows a bar where there is a terminal, and a line for every validation anywhere; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, refresh_per_second=2, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> TerminalWatcher:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, first: int, steps: int) -> None:
        """Set the bar's length."""
        self._progress.reset(self._task, completed=first, total=steps)

    def losses(self, step: int, losses: dict[str, float], steps_per_s: float) -> None:
        """Move the bar."""
        text = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        self._progress.update(self._task, completed=step, description=f"{text} ({steps_per_s:.3g} steps/s)")

    def scores(self, step: int, scores: Sequence[Score]) -> None:
        """Print what validation gave."""
        for score in scores:
            interval = "" if score.interval90 is None else f", {score.interval90:.1%} in the 90 % interval"
            self._console.print(
                f"step {step}: {score.pattern}: RMS {score.rms_01:.4f} of the range, "
                f"{score.ratio_to_linear:.3f} of linear infill's{interval}",
                highlight=False,
            )


def _newest_run(name: str) -> Path:
    runs = [path.parent for path in RUNS.glob(f"{name}-*/{SETTINGS}")]
    if not runs:
        raise RecipeError(f"{RUNS} holds no run of '{name}' to resume: name its folder by --out")
    return max(runs, key=lambda path: path.stat().st_mtime)
