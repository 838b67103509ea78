"""Train a network by a recipe: one loop, in the order things happen (imports torch)."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lowdose.training.checkpoint import latest_checkpoint, load_checkpoint, require_same_recipe
from lowdose.training.data import TrainingData, batches
from lowdose.training.learner import NonFiniteLossError, Workplace, make_learner
from lowdose.training.ranks import joined_ranks
from lowdose.training.recorder import FirstRecorder, Past, Recorder, Watcher
from lowdose.training.run_folder import require_new, require_run
from lowdose.training.schedules import WeightAverage
from lowdose.training.settings import RecipeError, RecipeSettings
from lowdose.training.stop_signals import StopSignals
from lowdose.training.validation import Score

if TYPE_CHECKING:
    import signal
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from lowdose.training.learner import Batch, Learner


class TrainingError(RuntimeError):
    """Training cannot go on: at which step, why, and what is kept."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Parameters
    ----------
    step : int
        Steps done, those before a resume included.
    stopped_by : signal.Signals or None
        None = all steps are done, or as many as asked for.
    scores : tuple of Score
        Of the last validation; empty without any.
    """

    step: int
    stopped_by: signal.Signals | None
    scores: tuple[Score, ...]


def train(
    settings: RecipeSettings,
    folder: Path,
    *,
    resume: bool = False,
    workers: int = 0,
    until: int | None = None,
    watcher: Watcher | None = None,
) -> Outcome:
    """Train a network; on SIGTERM or SIGINT end after the current step. Every end leaves a checkpoint.

    Parameters
    ----------
    settings : RecipeSettings
        What to do.
    folder : Path
        Of the run.
    resume : bool
        Go on from the newest checkpoint of the folder. On a CPU, and alone, the weights become those of a run that
        never stopped, bit by bit. Of several processes all but the first begin with the first one's replay examples.
    workers : int
        Processes that make examples; the examples are the same for any number.
    until : int, optional
        End after so many steps, as if told to.
    watcher : Watcher, optional
        Is told how it goes.

    Raises
    ------
    RecipeError, DataError
        If recipe, data or folder cannot be used.
    TrainingError
        If a loss is not finite.
    CheckpointError
        If the newest checkpoint is damaged or of other settings.
    OSError, StoreError
        If something cannot be read or written.
    """
    device = device_named(settings.device)
    with ExitStack() as stack:
        stopping = stack.enter_context(StopSignals())
        workplace = Workplace(device, ranks := stack.enter_context(joined_ranks(device)))
        if settings.batch % (ranks.count * settings.accumulate):
            raise RecipeError(f"batch must be divisible by {ranks.count} processes × accumulate, got {settings.batch}")
        if ranks.first:
            (require_run if resume else require_new)(folder)
        torch.manual_seed(settings.seed)
        learner = make_learner(settings, workplace)
        average = WeightAverage(learner.network, decay=settings.ema) if settings.ema else None
        past = _resumed(folder, settings, learner, average) if resume else Past()
        data = stack.enter_context(TrainingData(settings.data, settings.seed))
        made = batches(
            ranks.share_of(data, settings.batch),
            batch=settings.batch // ranks.count,
            first_step=past.step,
            stop_step=min(until or settings.steps, settings.steps),
            workers=workers,
        )
        stream = stack.enter_context(closing(_until_told(made, stopping)))  # its processes end before the data goes
        del made
        recorder = Recorder()
        if ranks.first:
            recorder = FirstRecorder(settings, folder, learner, average, data, workplace, watcher or Watcher())
            stack.enter_context(recorder.opened(past))

        done = past.step
        for batch in stream:
            try:
                losses = learner.step({name: t.to(device, non_blocking=True) for name, t in batch.items()}, done)
            except NonFiniteLossError as error:
                raise TrainingError(f"{error}; {recorder.save_failed(done)}") from None
            if average is not None:
                average.update(learner.network)
            recorder.note(losses)
            done += 1
            if done % settings.log_every == 0:
                recorder.log(done)
            if done % settings.validate_every == 0 or done == settings.steps:
                recorder.validate(done)
            if done % settings.checkpoint_every == 0:
                recorder.save(done)
            if ranks.any(stopping.requested is not None):
                break
        recorder.finish(done)
        return Outcome(done, stopping.requested, recorder.scores)


def device_named(name: str) -> torch.device:
    """Return a device of the recipe; "auto" is the first GPU, or the CPU.

    Raises
    ------
    RecipeError
        If there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device: cuda, but torch finds no GPU: use device: auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _resumed(folder: Path, settings: RecipeSettings, learner: Learner, average: WeightAverage | None) -> Past:
    """Take up the newest checkpoint of a folder, if there is one, and return what was done before."""
    path = latest_checkpoint(folder / "checkpoints")
    if path is None:
        return Past()
    content = load_checkpoint(path)
    require_same_recipe(content, settings, path)
    learner.load_state_dict(content["learner"])
    if average is not None:
        average.load_state_dict(content["average"])
    torch.set_rng_state(content["random"]["cpu"])
    if content["random"]["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(content["random"]["cuda"])
    scores = tuple(Score(**row) for row in content["validation"])
    return Past(content["step"], content["about"]["trained_s"], scores)


def _until_told(stream: Iterator[Batch], stopping: StopSignals) -> Generator[Batch]:
    """Yield batches; if the processes that make them were told to stop, too, and died of it, there are no more."""
    while True:
        try:
            batch = next(stream, None)
        except RuntimeError:
            if stopping.requested is None:
                raise
            return
        if batch is None:
            return
        yield batch
