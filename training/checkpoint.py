"""Checkpoints: all a run needs to go on as if it had never stopped, in files that are whole or not there (torch)."""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowdose.training.settings import RecipeSettings, validated

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


FORMAT = 1
KEYS = ("step", "recipe", "learner", "average", "random", "about", "validation")
FREE_TO_CHANGE = {
    "log_every",
    "validate_every",
    "validation_examples",
    "checkpoint_every",
    "keep_checkpoints",
    "device",
    "data.cache",
}
"""Settings that no weight depends on: a run may go on with others."""
_NAME = re.compile(r"step_(\d{8,})\.pt")


class CheckpointError(ValueError):
    """A file is no checkpoint, or not one of this run: what was got, what was expected, what to do."""


def checkpoint_name(step: int) -> str:
    """Return the file name of the checkpoint after so many steps."""
    return f"step_{step:08d}.pt"


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest step first."""
    found = [path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Return after how many steps a checkpoint was written."""
    match = _NAME.fullmatch(path.name)
    return int(match.group(1)) if match else 0


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint of the last step, if there is any."""
    return max(checkpoints_in(folder), key=step_of, default=None)


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint as a whole or not at all.

    Raises
    ------
    OSError
        If it cannot be written; what was there before still is.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's own writer turns a full disk into a RuntimeError
        last = latest_checkpoint(path.parent) if path.parent.is_dir() else None
        kept = f"the last good checkpoint is {last}" if last else "there is no earlier one"
        raise OSError(
            f"cannot write checkpoint {path}: {_first_line(error)}; {kept}. Free some space and go on with --resume"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def delete_old(folder: Path, *, keep: int, spare: Collection[int] = ()) -> None:
    """Delete all checkpoints but the newest and those of the steps to spare."""
    for path in checkpoints_in(folder)[:-keep]:
        if step_of(path) not in spare:
            path.unlink(missing_ok=True)


def delete_unfinished(folder: Path) -> None:
    """Delete what a process left that was killed while it wrote a checkpoint."""
    for path in folder.glob(".*.pt-*"):
        path.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, its tensors on the CPU.

    Raises
    ------
    OSError
        If the file cannot be read.
    CheckpointError
        If it is damaged, none of ours, or of a newer version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise OSError(f"cannot read checkpoint {path}: {error.strerror or error}") from None
    except Exception:  # a damaged file may raise anything, and torch's own advice would be to trust it
        archive = zipfile.is_zipfile(path)
        got = "holds more than tensors and plain values" if archive else "is of another format, or cut short"
        raise _refused(path, got) from None
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise _refused(path, "holds tensors or values of something else")
    if version > FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {version}, written by lowdose {_writer(content)}; "
            f"this version reads up to {FORMAT}: update lowdose"
        )
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise _refused(path, f"lacks {', '.join(missing)}")
    return dict(content)


def require_same_recipe(content: Mapping[str, Any], settings: RecipeSettings, path: Path) -> None:
    """Raise CheckpointError unless a checkpoint is of a recipe that leads to the same weights."""
    trained = validated(RecipeSettings, content["recipe"], f"checkpoint {path}")  # with settings that are new since
    if trained.name != settings.name:
        raise CheckpointError(
            f"checkpoint {path} is of recipe '{trained.name}', this is '{settings.name}': "
            "train the other one on, or choose another --out"
        )
    before, now = (_flat(recipe.model_dump(mode="json")) for recipe in (trained, settings))
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key) and key not in FREE_TO_CHANGE]
    if differing:
        changes = "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in differing[:3])
        raise CheckpointError(
            f"checkpoint {path} was trained with other settings: {changes}. "
            "Resume with the same ones, or choose another --out"
        )


def _refused(path: Path, got: str) -> CheckpointError:
    """Return the error that a file is no checkpoint, with what to do."""
    remedy = "to go on from the one before, move this one out of its folder" if step_of(path) else "choose another file"
    return CheckpointError(
        f"{path} {got}: expected a checkpoint that `lowdose train` wrote (checkpoints/step_NUMBER.pt); {remedy}"
    )


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested maps and lists, "a.0.b" -> value."""
    if isinstance(tree, dict) and tree:
        entries: Any = tree.items()
    elif isinstance(tree, list | tuple) and tree:
        entries = enumerate(tree)
    else:
        return {path: tree}
    return {
        key: value
        for name, inner in entries
        for key, value in _flat(inner, f"{path}.{name}" if path else f"{name}").items()
    }


def _writer(content: Mapping[str, Any]) -> str:
    about = content.get("about")
    return str(about.get("versions", {}).get("lowdose", "?")) if isinstance(about, dict) else "?"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
