"""From a checkpoint to an engine file whose card says what it was trained for, on and how (imports torch)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from lowdose.reconstruction.engine import EngineInfo, Precision, Rule
from lowdose.reconstruction.engine_file import Card, EngineFile, ModelSpec, card_path
from lowdose.training.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint
from lowdose.training.export import ExportError, export_engine
from lowdose.training.learner import make_network
from lowdose.training.settings import CompletionObjective, RecipeSettings, TwoStageObjective, validated

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import nn

    from lowdose.acquisition.frames import UncertaintyKind

CALIBRATES = ("compact",)
"""Networks whose option `deviation_scale` multiplies their deviations."""
PUBLISHED_HALO_PX = 20
"""From where on errors do not fall any more with the distance from the edge (arXiv:1910.10467)."""
CALIBRATED_EXAMPLES = 64
"""So many validation examples at least must have set the scale of a standard deviation that counts as calibrated."""


def export_run(
    source: Path, out: Path, *, precision: Precision = "FP16", evaluations: Iterable[Path] = ()
) -> EngineFile:
    """Write the network of a run as an engine file and return it.

    Parameters
    ----------
    source : Path
        A run folder, of which the newest checkpoint is taken, or a checkpoint. The moving average of the weights is
        taken where there is one.
    out : Path
        NAME.onnx; the card goes beside it.
    precision : "FP32", "BF16" or "FP16"
        Of the engine file.
    evaluations : iterable of Path
        Files of `lowdose evaluate` whose errors of this engine go into its card.

    Raises
    ------
    CheckpointError
        If there is no checkpoint, or it cannot be used.
    ExportError
        If no engine can be what was trained, none can lie there, or an evaluation tells nothing of this engine.
    OSError
        If something cannot be read or written.
    """
    _require_place(out)
    path = _checkpoint_of(source)
    content = load_checkpoint(path)
    settings = validated(RecipeSettings, content["recipe"], f"checkpoint {path}")
    errors = tuple(row for file in evaluations for row in _rows_of(file, settings.name))
    network, options = _network(settings, content)
    return export_engine(network, out, _card(settings, content, network, options, errors), precision=precision)


def _require_place(out: Path) -> None:
    """Raise ExportError unless an engine file and its card can lie there; only an earlier one of both is replaced."""
    if out.suffix != ".onnx" or out.is_dir():
        raise ExportError(f"an engine file is called NAME.onnx, got {out}{' (a folder)' if out.is_dir() else ''}")
    if not out.parent.is_dir():
        raise ExportError(f"there is no folder {out.parent} to write {out.name} into: make it, or choose another --out")
    card = card_path(out)
    if out.exists() and not card.exists():
        raise ExportError(f"{out} exists and is no engine file, for it has no card: choose another --out")
    if card.exists() and not _is_card(card):
        raise ExportError(
            f"{card} holds something else, and {out.name} needs that name for its card: choose another --out"
        )


def _is_card(path: Path) -> bool:
    try:
        TypeAdapter(Card).validate_json(path.read_bytes())
    except (ValidationError, OSError):
        return False
    return True


def _checkpoint_of(source: Path) -> Path:
    if source.is_file():
        return source
    path = latest_checkpoint(source / "checkpoints") or latest_checkpoint(source)
    if path is None:
        got = f"{source} holds no checkpoint" if source.is_dir() else f"there is no folder or file {source}"
        raise CheckpointError(f"{got}: expected a run folder of `lowdose train`, or a checkpoint in one")
    return path


def _network(settings: RecipeSettings, content: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Return the trained network as engines are fed, and what to build it with."""
    options = dict(settings.network.options)
    if settings.data.normalisation in ("pstem", "dlss"):
        options["unit_inputs"] = True  # trained on inputs from 0 to 1, engines are fed -1 to 1
    if (scale := _deviation_scale(content["validation"])) is not None and settings.network.name in CALIBRATES:
        options["deviation_scale"] = options.get("deviation_scale", 1.0) * scale
    network = make_network(settings.network.name, options)
    average, learner = content["average"], content["learner"]
    if average is not None:
        weights = average["weights"]
    elif isinstance(settings.objective, TwoStageObjective):
        prefix = "generator."
        weights = {k.removeprefix(prefix): v for k, v in learner["networks"].items() if k.startswith(prefix)}
    else:
        weights = learner["network"]
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ExportError(
            f"the checkpoint's weights are not those of network '{settings.network.name}' with {options} in this "
            f"version of lowdose ({str(error).splitlines()[-1].strip()}): export with the version that trained it"
        ) from None
    return network.eval(), options


def _rows_of(evaluation: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of an engine in a file of `lowdose evaluate`, each with the noise it was found with."""
    try:
        found = json.loads(evaluation.read_text(encoding="utf-8"))
        rows = [{"noise": found["noise"], **row} for row in found["rows"] if row["engine"] == name]
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{evaluation} is no evaluation.json of `lowdose evaluate` ({error})") from None
    if not rows:
        raise ExportError(f"{evaluation} tells nothing of an engine '{name}': evaluate {name}.onnx, then export again")
    return rows


def _card(
    settings: RecipeSettings,
    content: dict[str, Any],
    network: nn.Module,
    options: dict[str, Any],
    errors: tuple[dict[str, Any], ...],
) -> Card:
    about, used = content["about"], content["recipe"]
    folds = hasattr(network, "folded")
    return Card(
        _info(settings, content, network),
        opset=0,  # with outputs and cost for the export to say
        outputs=2,
        gmac_512=0.0,
        model=ModelSpec(settings.network.name, {**options, "plain": True} if folds else options),
        patterns=tuple(dict.fromkeys(about["patterns"])),
        coverages=tuple(about["coverages"]),
        sizes=(settings.data.crop_px,),
        provenance={
            "recipe": {**used, "data": {key: value for key, value in used["data"].items() if key != "cache"}},
            "revision": about["revision"],
            "seed": settings.seed,
            "steps": content["step"],
            "trained_s": round(about["trained_s"], 1),
            "versions": about["versions"],
            "validation": content["validation"],
        },
        errors=errors,
        training_data=tuple(about["training_data"]),
    )


def _info(settings: RecipeSettings, content: dict[str, Any], network: nn.Module) -> EngineInfo:
    data, scale = settings.data, _scale(settings)
    rule: Rule = "mean_std" if data.normalisation == "mean_std" else "min_max"
    return EngineInfo(
        name=settings.name,
        version=str(content["about"]["versions"]["lowdose"]),
        digest="",
        precision="",
        task="super_resolve" if data.inputs == "lattice" else "complete",
        scale=scale,
        channels=data.channels,
        normalisation=rule,
        target=data.target,
        size_multiple=getattr(network, "size_multiple", 1),
        halo_px=getattr(network, "halo_px", PUBLISHED_HALO_PX),
        keeps_measured=isinstance(settings.objective, TwoStageObjective) and settings.objective.homogenise_noise,
        uncertainty_kind=_uncertainty_kind(settings, content["validation"]),
        most_coverage=max(content["about"]["coverages"], default=1.0),
    )


def _scale(settings: RecipeSettings) -> int:
    """Return pixels out per pixel in."""
    if settings.data.inputs == "field":
        return 1
    scale = settings.network.options.get("scale")
    if scale not in (1, 2, 4):
        raise ExportError(
            f"network {settings.network.name} makes {scale or 'a broken number of'} pixels of one, engines 1, 2 or 4: "
            "train on a lattice of coverage 1/16 with network.options.scale: 4"
        )
    return int(scale)


def _uncertainty_kind(settings: RecipeSettings, scores: list[dict[str, Any]]) -> UncertaintyKind:
    """Return what the second output, if there is one, is worth."""
    objective = settings.objective
    if not (isinstance(objective, CompletionObjective) and (objective.loss.nll or objective.loss.interval)):
        return "none"
    scaled = _deviation_scale(scores) is not None and settings.network.name in CALIBRATES
    return "calibrated" if scaled and scores[0]["examples"] >= CALIBRATED_EXAMPLES else "placeholder"


def _deviation_scale(scores: list[dict[str, Any]]) -> float | None:
    """Return what validation found the deviations to be multiplied by, if it did."""
    return scores[0].get("deviation_scale") if scores else None
