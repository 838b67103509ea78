"""Recorder: logs, validates and saves a run, in the first process only (imports torch)."""

from __future__ import annotations

import copy
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lowdose.training.checkpoint import checkpoint_name, delete_old, latest_checkpoint, save_checkpoint
from lowdose.training.data import TrainingData
from lowdose.training.run_folder import RunFolder
from lowdose.training.settings import TwoStageObjective
from lowdose.training.validation import ValidationSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from lowdose.training.learner import Learner, Workplace
    from lowdose.training.schedules import WeightAverage
    from lowdose.training.settings import RecipeSettings
    from lowdose.training.validation import Score


@dataclass(frozen=True, slots=True)
class Past:
    """What was done before a run began: nothing, or what a checkpoint says.

    Parameters
    ----------
    step : int
        Steps done.
    trained_s : float
        Time they took [s].
    scores : tuple of Score
        Of the last validation.
    """

    step: int = 0
    trained_s: float = 0.0
    scores: tuple[Score, ...] = ()


class Watcher:
    """Is told how a run goes; this one does nothing about it."""

    def begin(self, first: int, steps: int) -> None:
        """Hear how many steps are done and how many there will be."""

    def losses(self, step: int, losses: dict[str, float], steps_per_s: float) -> None:
        """Hear the mean losses since the last time."""

    def scores(self, step: int, scores: Sequence[Score]) -> None:
        """Hear what validation gave."""


class Recorder:
    """What all processes but the first record: nothing."""

    scores: tuple[Score, ...] = ()
    """Of the last validation."""

    def note(self, losses: dict[str, Tensor]) -> None:
        """Take in the losses of a step."""

    def log(self, step: int) -> None:
        """Write the mean losses since the last time."""

    def validate(self, step: int) -> None:
        """Score the network."""

    def save(self, step: int) -> None:
        """Write a checkpoint."""

    def save_failed(self, step: int) -> str:
        """Write what cannot be gone on with, and return where in a sentence."""
        return f"another process keeps the state before step {step}"

    def finish(self, step: int) -> None:
        """Do for the last step what was not done yet."""


class FirstRecorder(Recorder):
    """Records a run.

    Parameters
    ----------
    settings : RecipeSettings
        What is done.
    folder : Path
        Of the run.
    learner, average : Learner, WeightAverage or None
        What is saved. The average, if there is one, is what is validated.
    data : TrainingData
        What is learned from: its provenance goes into every checkpoint.
    workplace : Workplace
        Where validation is done.
    watcher : Watcher
        Is told.
    """

    def __init__(
        self,
        settings: RecipeSettings,
        folder: Path,
        learner: Learner,
        average: WeightAverage | None,
        data: TrainingData,
        workplace: Workplace,
        watcher: Watcher,
    ) -> None:
        self._settings, self._path, self._learner, self._average = settings, folder, learner, average
        self._workplace, self._watcher = workplace, watcher
        self._about = {
            "patterns": list(data.pattern_names),
            "coverages": list(data.coverages),
            "training_data": [dict(row) for row in data.provenance],
        }
        self._noted: dict[str, list[Tensor]] = {}
        self._network: nn.Module = learner.network if average is None else copy.deepcopy(learner.network)
        self._logged, self._saved = 0, -1

    @contextmanager
    def opened(self, past: Past) -> Iterator[None]:
        """Keep the folder and the validation set open."""
        self.scores = past.scores
        with RunFolder(self._path, self._settings, resume_at=past.step) as self._folder:
            self._validation = self._validation_set()
            self._watcher.begin(past.step, self._settings.steps)
            self._logged = self._saved = past.step
            self._logged_s = time.perf_counter()
            self._began_s = self._logged_s - past.trained_s
            yield

    def note(self, losses: dict[str, Tensor]) -> None:
        """Take in the losses of a step; nothing is read from the device."""
        for name, loss in losses.items():
            self._noted.setdefault(name, []).append(loss.mean())

    def log(self, step: int) -> None:
        """Write the mean losses since the last time."""
        now_s = time.perf_counter()
        losses = {name: float(torch.stack(values).mean()) for name, values in self._noted.items()}
        steps_per_s = (step - self._logged) / (now_s - self._logged_s)
        self._folder.write_losses(step, losses, {"steps_per_s": steps_per_s})
        self._watcher.losses(step, losses, steps_per_s)
        self._noted.clear()
        self._logged, self._logged_s = step, now_s

    def validate(self, step: int) -> None:
        """Score the network on the validation set."""
        if self._validation is None:
            return
        began_s = time.perf_counter()
        if self._average is not None:
            self._average.copy_to(self._network)
        self.scores = tuple(self._validation.scores(self._network))
        self._folder.write_scores(step, self.scores)
        self._watcher.scores(step, self.scores)
        self._logged_s += time.perf_counter() - began_s  # the speed is that of training alone

    def save(self, step: int) -> None:
        """Write a checkpoint and delete those no longer wanted."""
        save_checkpoint(self._folder.checkpoints / checkpoint_name(step), self._content(step))
        self._saved = step
        objective = self._settings.objective
        adversarial = isinstance(objective, TwoStageObjective) and objective.adversarial is not None
        spare = {self._settings.steps // 2} if adversarial else set()
        delete_old(self._folder.checkpoints, keep=self._settings.keep_checkpoints, spare=spare)

    def save_failed(self, step: int) -> str:
        """Write the state before a step that failed, where no resume takes it up, and return where in a sentence."""
        path = self._folder.checkpoints / f"failed_{checkpoint_name(step)}"
        save_checkpoint(path, self._content(step))
        last = latest_checkpoint(self._folder.checkpoints)
        before = f"the last checkpoint before is {last.name}" if last else "there is no checkpoint before"
        return f"the weights that led to it are in {path}, {before}. Try a lower learning rate, or precision: fp32"

    def finish(self, step: int) -> None:
        """Do for the last step what was not done yet, and draw the curve."""
        if self._noted:
            self.log(step)
        if self._saved != step:
            self.save(step)
        self._folder.draw_curve(step)

    def _content(self, step: int) -> dict[str, Any]:
        trained_s = time.perf_counter() - self._began_s
        return {
            "step": step,
            "recipe": self._settings.model_dump(mode="json"),
            "learner": self._learner.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
            "about": {**self._folder.about, **self._about, "trained_s": trained_s},
            "validation": [score.row() for score in self.scores],
        }

    def _validation_set(self) -> ValidationSet | None:
        settings = self._settings
        if settings.validation_examples == 0:
            return None
        with TrainingData(settings.data, settings.seed, split="validation") as data:
            return ValidationSet(data, settings, self._workplace.device)
