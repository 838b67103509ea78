"""Recipe: everything a training run depends on, from a shipped or a user's YAML file (imports pydantic, no torch)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from lowdose.acquisition.settings import Positive, Settings
from lowdose.reconstruction.models import MODELS
from lowdose.scan_patterns.checks import nearest_name
from lowdose.training.data_settings import DataSettings  # noqa: TC001 pydantic reads it
from lowdose.training.pattern_choice import n_choices
from lowdose.training.yaml_errors import explain

if TYPE_CHECKING:
    from collections.abc import Iterable

RECIPES = files("lowdose.training") / "recipes"

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]

SMOKE: dict[str, Any] = {
    "steps": 24,
    "log_every": 4,
    "validate_every": 12,
    "validation_examples": 8,
    "checkpoint_every": 12,
    "data": {"crop_px": 128, "sources": [{"procedural": "mixed"}]},
}
"""What --smoke changes in every recipe, below the changes of its own; and of each pattern there are few masks."""
SMOKE_MASKS = 4


class RecipeError(ValueError):
    """A recipe cannot be used: what was got, what was expected, what to do."""


class NetworkSettings(Settings):
    """Which network.

    Parameters
    ----------
    name : str
        A row of `reconstruction.models.MODELS`.
    options : dict
        What its class is called with; without any it is as published.
    """

    name: str
    options: dict[str, Any] = Field(default={})

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in MODELS:
            raise ValueError(f"unknown network '{name}': {nearest_name(name, MODELS)}")
        return name


class ReplaySettings(Settings):
    """Hard examples come again: see `Replay`."""

    slots: Count = 50
    probability: Share = 0.2
    share: Share = 0.2


class AdversarialSettings(Settings):
    """The second half of the steps, with discriminators.

    Parameters
    ----------
    weight : float
        Of the sum over the discriminators, beside the blurred pixel term.
    width : float
        Scales the channels of the discriminators.
    resize : "average" or "decimate"
        How their crops become patches; "decimate" as published.
    """

    weight: Positive = 2.0
    width: Positive = 1.0
    resize: Literal["average", "decimate"] = "average"


class TwoStageObjective(Settings):
    """The published training of the two-stage generator.

    Parameters
    ----------
    lr : float
        Of the generator to begin with; the ladder of learning rates and beta1 follows from it and the steps.
    beta1_decays : bool
        As the papers say; the published errors were reached with a constant 0.9.
    expected_error : "one", "lattice" or "tracked"
        What losses are divided by: nothing, the published function of a lattice's coverage, or a moving average of the
        errors at each pattern and coverage.
    initialise : "example" or "unit"
        Gains and biases such that a random picture has normalised activations, or 1 and 0 as in the public scripts.
    huberise : bool
        Take the root of losses above 1, as the public scripts do for spirals, and the papers do not.
    homogenise_noise : bool
        Let a noise predictor weight examples, and leave measured pixels out of the loss; for sharp targets.
    replay : ReplaySettings or None
        None = every example is seen once.
    adversarial : AdversarialSettings or None
        None = squared error alone, for all steps: the first half of the published training.
    """

    kind: Literal["two_stage"]
    lr: Positive = 3e-4
    beta1_decays: bool = True
    expected_error: Literal["one", "lattice", "tracked"] = "one"
    initialise: Literal["example", "unit"] = "example"
    huberise: bool = False
    homogenise_noise: bool = False
    replay: ReplaySettings | None = ReplaySettings()
    adversarial: AdversarialSettings | None = None


class CosineRate(Settings):
    """A straight rise over `warm_up` steps, but no more than a tenth of all, to `lr`; half a cosine down to `last`."""

    policy: Literal["cosine"]
    lr: Positive
    warm_up: Annotated[int, Field(ge=0)] = 0
    last: NotNegative = 0.0


class OneStageRate(Settings):
    """The published steps of the one-stage generator."""

    policy: Literal["one_stage"]
    lr: Positive = 1e-3


class LossWeights(Settings):
    """What is added up; a weight of 0 leaves a term out.

    Parameters
    ----------
    relative_mse : float
        Mean squared error over that of linear infill; needs the channel `linear`.
    nll : float
        Negative log-likelihood of the mean and standard deviation that the network puts out; beside another term it
        trains the standard deviation alone.
    interval : float
        Quantile score of the interval that is to hold 90 % of the pixels, over linear infill's error; needs the channel
        `linear` and trains the standard deviation alone.
    pixel : float
        200 times the mean squared error, clipped by ALRC.
    """

    relative_mse: NotNegative = 0.0
    nll: NotNegative = 0.0
    interval: NotNegative = 0.0
    pixel: NotNegative = 0.0

    @model_validator(mode="after")
    def _something(self) -> LossWeights:
        if not (self.relative_mse or self.nll or self.interval or self.pixel):
            raise ValueError("no loss has a weight: give relative_mse, nll, interval or pixel one")
        return self


class CompletionObjective(Settings):
    """One network, one optimiser.

    Parameters
    ----------
    loss : LossWeights
        What is minimised.
    learning_rate : CosineRate or OneStageRate
        Told apart by `policy`.
    optimizer : "adam" or "adamw"
        With adam `weight_decay` is an L2 term of the loss.
    weight_decay : float
        Of all parameters.
    clip_norm : float or None
        Gradients of a larger norm are shortened to it (arXiv:1211.5063): one odd batch must not undo thousands.
    """

    kind: Literal["completion"]
    loss: LossWeights
    learning_rate: Annotated[CosineRate | OneStageRate, Field(discriminator="policy")]
    optimizer: Literal["adam", "adamw"] = "adamw"
    weight_decay: NotNegative = 0.0
    clip_norm: Positive | None = None


class RecipeSettings(Settings):
    """Everything a training run depends on.

    Parameters
    ----------
    name : str
        Of the recipe, and of engines made by it.
    data, network, objective
        What is learned from, what learns, and how.
    steps : int
        Updates; schedules scale with it.
    batch, accumulate : int
        Examples of an update, over all processes, and the parts in which each process works through its own.
    precision : "fp32" or "bf16"
        bf16 = automatic mixed precision of the networks; losses are fp32.
    channels_last : bool
        Memory layout of networks and inputs.
    ema : float or None
        Decay of a moving average of the weights, which is then what is validated and exported.
    log_every, validate_every, checkpoint_every : int
        Steps between them; the last step does all three.
    validation_examples, keep_checkpoints : int
        How many; the checkpoint before an adversarial half is kept, too.
    seed : int
        Of everything random.
    device : "auto", "cpu" or "cuda"
        auto = cuda where there is one.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    data: DataSettings
    network: NetworkSettings
    objective: Annotated[TwoStageObjective | CompletionObjective, Field(discriminator="kind")]
    steps: Count
    batch: Count = 1
    accumulate: Count = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    log_every: Count = 50
    validate_every: Count = 5000
    validation_examples: Annotated[int, Field(ge=0)] = 64
    checkpoint_every: Count = 5000
    keep_checkpoints: Count = 3
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> RecipeSettings:
        if self.batch % self.accumulate:
            raise ValueError(f"batch must be divisible by accumulate, {self.accumulate}, got {self.batch}")
        if isinstance(self.objective, TwoStageObjective):
            self._check_two_stage(self.objective)
        else:
            self._check_completion(self.objective)
        return self

    def _check_two_stage(self, objective: TwoStageObjective) -> None:
        if self.network.name != "two_stage":
            raise ValueError(f"objective two_stage trains the network two_stage, got '{self.network.name}'")
        if objective.homogenise_noise and self.data.target != "sharp":
            raise ValueError(f"homogenise_noise is for data.target sharp, got {self.data.target}")
        if objective.adversarial and self.steps % 2:
            raise ValueError(f"steps must be even, half of them adversarial, got {self.steps}")

    def _check_completion(self, objective: CompletionObjective) -> None:
        compared = objective.loss.relative_mse or objective.loss.interval
        if compared and "linear" not in self.data.channels:
            raise ValueError(
                f"relative_mse and interval need linear among data.channels, got {list(self.data.channels)}"
            )


def recipe_names() -> list[str]:
    """Return the names of the recipes shipped with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in RECIPES.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(
    recipe: str, overrides: Iterable[str] = (), *, smoke: bool = False, steps: int | None = None
) -> RecipeSettings:
    """Return a validated recipe.

    Parameters
    ----------
    recipe : str
        Name of a shipped one, or path of a YAML file. Its key `smoke` holds what --smoke changes.
    overrides : iterable of "a.b=value"
        Applied last; values are YAML, entries of a list go by their index.
    smoke : bool
        A small network on small, made-up pictures for a few steps; "_smoke" is added to the name.
    steps : int, optional
        Another length.

    Raises
    ------
    RecipeError
        If anything cannot be read or used.
    """
    where, mapping = _read(recipe)
    own_smoke = mapping.pop("smoke", None) or {}
    if smoke:
        mapping = _smoked(merged(merged(mapping, SMOKE), own_smoke))
    if steps is not None:
        mapping["steps"] = steps
    for override in overrides:
        set_value(mapping, override)
    return validated(RecipeSettings, mapping, where)


def dump_recipe(settings: RecipeSettings) -> str:
    """Return a recipe as YAML that `read_recipe` reads back, with nothing left to defaults."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


S = TypeVar("S", bound=Settings)


def validated(model: type[S], mapping: dict[str, Any], where: str) -> S:
    """Return settings made of a mapping, or raise RecipeError with the first complaint."""
    try:
        return model.model_validate(mapping)
    except ValidationError as error:
        raise RecipeError(f"{where}: {explain(error, model, mapping)}") from None


def merged(mapping: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping with changes laid over it; maps are merged, everything else is replaced.

    Examples
    --------
    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    result = dict(mapping)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def set_value(mapping: dict[str, Any], override: str) -> None:
    """Set what "a.b=value" says, the value being YAML.

    Raises
    ------
    RecipeError
        If it says nothing, or goes into something that is no map or list.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set takes a.b=value, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(f"--set {override}: the value is not YAML") from None
    *parents, last = key.strip().split(".")
    inner: Any = mapping
    for parent in parents:
        place = _place(inner, parent, override)
        if isinstance(inner, dict) and inner.get(place) is None:
            inner[place] = {}
        inner = inner[place]
    inner[_place(inner, last, override)] = value


def _place(inner: Any, part: str, override: str) -> str | int:
    """Return the key or index that part of a path is in a map or a list."""
    if isinstance(inner, dict):
        return part
    if not isinstance(inner, list):
        raise RecipeError(f"--set {override}: '{part}' lies in {inner!r}, which is no map or list")
    if not (part.isdecimal() and int(part) < len(inner)):
        raise RecipeError(f"--set {override}: '{part}' must be an index from 0 to {len(inner) - 1}")
    return int(part)


def _smoked(mapping: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe under a name of its own, with few masks of each pattern, laid out on the crops themselves."""
    mixes = [
        {**mix, "n": max(n_choices(mix["pattern"]), SMOKE_MASKS), "field_px": None}
        for mix in mapping["data"].get("patterns", ())
        if isinstance(mix, dict) and isinstance(mix.get("pattern"), dict)
    ]
    return merged(mapping, {"name": f"{mapping.get('name')}_smoke", "data": {"patterns": mixes}})


def _read(recipe: str) -> tuple[str, dict[str, Any]]:
    path = Path(recipe)
    try:
        if path.suffix in (".yaml", ".yml") or path.exists():
            return recipe, _parsed(path.read_text(encoding="utf-8"), recipe)
        if recipe in recipe_names():
            return f"recipe {recipe}", _parsed((RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"), recipe)
    except (OSError, UnicodeDecodeError) as error:
        reason, known = getattr(error, "strerror", None) or error, ", ".join(recipe_names())
        raise RecipeError(f"cannot read {recipe}: {reason}. Expected a YAML file or one of {known}") from None
    known = nearest_name(recipe, recipe_names())
    raise RecipeError(f"there is no recipe or file '{recipe}'. {known[0].upper()}{known[1:]}")


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        mapping = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(mapping, dict):
        raise RecipeError(f"{where} must hold a map of settings, got {type(mapping).__name__}")
    return mapping
