"""RunFolder: what a training run leaves for people to look at, and for checkpoints (matplotlib, tensorboard inside)."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowdose.training.checkpoint import delete_unfinished
from lowdose.training.settings import RecipeError, RecipeSettings, dump_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lowdose.training.validation import Score

SETTINGS, METRICS, ABOUT, CURVE = "settings.yaml", "metrics.jsonl", "run.json", "validation.png"


class RunFolder:
    """Writes settings, metrics, TensorBoard events and the curve of a run; a context manager.

    Parameters
    ----------
    path : Path
        Made when missing.
    settings : RecipeSettings
        Written as settings.yaml, with nothing left to defaults.
    resume_at : int
        Steps done before; rows of later ones are dropped.

    Raises
    ------
    RecipeError
        If there can be no such folder.
    OSError
        If it cannot be written to, here and in all that follows.
    """

    def __init__(self, path: Path, settings: RecipeSettings, *, resume_at: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = path
        self.checkpoints = path / "checkpoints"
        self.about = {"revision": revision(), "seed": settings.seed, "versions": versions()}
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"run folder {path} cannot be made ({error.strerror}): choose another --out") from None
        with self._telling(resume_at):
            delete_unfinished(self.checkpoints)
            (path / SETTINGS).write_text(dump_recipe(settings), encoding="utf-8")
            (path / ABOUT).write_text(json.dumps(self.about, indent=2) + "\n", encoding="utf-8")
            _drop_rows_after(path / METRICS, resume_at)
            self._metrics = (path / METRICS).open("ab", buffering=0)  # nothing is left to write when it is closed
            self._events = SummaryWriter(str(path / "tensorboard"), purge_step=resume_at or None)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        self._events.close()

    def write_losses(self, step: int, losses: dict[str, float], speed: dict[str, float]) -> None:
        """Write the mean losses and the speed of the steps since the last time."""
        with self._telling(step):
            self._write(step, {"losses": losses, **speed})
            for group, numbers in (("loss", losses), ("speed", speed)):
                for name, value in numbers.items():
                    self._events.add_scalar(f"{group}/{name}", value, step)

    def write_scores(self, step: int, scores: Sequence[Score]) -> None:
        """Write what validation gave."""
        with self._telling(step):
            self._write(step, {"validation": [score.row() for score in scores]})
            for score in scores:
                for name, value in score.row().items():
                    if isinstance(value, float):
                        self._events.add_scalar(f"validation/{score.pattern}/{name}", value, step)

    def draw_curve(self, step: int) -> None:
        """Draw losses and validation over the steps of the whole run."""
        from matplotlib.figure import Figure

        rows = read_metrics(self.path)
        figure = Figure(figsize=(8, 6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        trained = [row for row in rows if "losses" in row]
        for name in trained[-1]["losses"] if trained else ():
            shown = [(row["step"], row["losses"][name]) for row in trained if name in row["losses"]]
            above.plot(*zip(*shown, strict=True), label=name, linewidth=1)
        validated = [(row["step"], score) for row in rows for score in row.get("validation", ())]
        for pattern in dict.fromkeys(score["pattern"] for _, score in validated):
            shown = [(step, score["ratio_to_linear"]) for step, score in validated if score["pattern"] == pattern]
            below.plot(*zip(*shown, strict=True), label=pattern, marker=".")
        above.set(yscale="log", ylabel="training loss")
        below.set(xlabel="step", ylabel="RMS error / that of linear infill")
        for axes in (above, below):
            if axes.lines:
                axes.legend(fontsize="small")
        with self._telling(step):
            figure.savefig(self.path / CURVE, dpi=120)

    def _write(self, step: int, row: dict[str, Any]) -> None:
        unwritten = json.dumps({"step": step, **row}).encode() + b"\n"
        while unwritten:
            unwritten = unwritten[self._metrics.write(unwritten) :]

    @contextmanager
    def _telling(self, step: int) -> Iterator[None]:
        """Say what to do where something cannot be written."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"cannot write below {self.path} at step {step}: {error.strerror or error}. Checkpoints written before "
                "are whole: free some space and go on with --resume"
            ) from error


def require_new(path: Path) -> None:
    """Raise RecipeError if a new run would land where something is."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RecipeError(f"{path} holds something already: go on with it by --resume, or choose another --out")


def require_run(path: Path) -> None:
    """Raise RecipeError unless a folder holds a run."""
    if not (path / SETTINGS).is_file():
        raise RecipeError(f"{path} holds no run to resume: it has no {SETTINGS}; start one without --resume")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics, but for a last one that was cut short."""
    rows = []
    for line in (path / METRICS).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def versions() -> dict[str, str]:
    """Return the versions of what the weights depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("lowdose", "torch", "numpy")}}


def revision() -> str | None:
    """Return the git revision of the package's own source, "+" if it was changed, or None outside a repository."""
    folder = Path(__file__).parent
    if not _git(folder, "ls-files", "settings.py"):
        return None
    head = _git(folder, "rev-parse", "HEAD")
    return head and head + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run([git, "-C", folder, *arguments], capture_output=True, text=True, check=False)  # noqa: S603 fixed
    return done.stdout.strip() if done.returncode == 0 else None


def _drop_rows_after(path: Path, step: int) -> None:
    """Drop the rows that steps will write again."""
    if path.exists():
        kept = [row for row in read_metrics(path.parent) if row["step"] <= step]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
