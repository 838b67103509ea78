"""Recipes: shipped ones and a user's own, what may be changed, and what is refused and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from lowdose.training.data_settings import ProceduralSource
from lowdose.training.settings import (
    CompletionObjective,
    RecipeError,
    TwoStageObjective,
    dump_recipe,
    merged,
    read_recipe,
    recipe_names,
    set_value,
)

if TYPE_CHECKING:
    from pathlib import Path

OWN = """
name: mine
data:
  crop_px: 64
  patterns: [{pattern: {name: lattice, coverage: 1/16}}, {pattern: {name: spiral, coverage: 1/20}}]
  channels: [linear, cubic, sparse, mask, distance]
network: {name: compact}
objective: {kind: completion, loss: {relative_mse: 1}, learning_rate: {policy: cosine, lr: 1e-3}}
steps: 10
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN)
    return str(path)


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipe_has_its_files_name_and_comes_back_from_its_own_yaml(name, tmp_path):
    settings = read_recipe(name)
    written = tmp_path / "settings.yaml"
    written.write_text(dump_recipe(settings))
    assert settings.name == name
    assert read_recipe(str(written)) == settings


@pytest.mark.parametrize("name", recipe_names())
def test_smoke_needs_no_images_and_is_small_and_has_a_name_of_its_own(name):
    settings = read_recipe(name, smoke=True)
    assert settings.name == f"{name}_smoke"
    assert settings.data.crop_px == 128
    assert settings.steps <= 50
    assert all(isinstance(source, ProceduralSource) for source in settings.data.sources)


PUBLISHED = {  # steps, learning rate, coverage, channels; doi:10.1038/s41598-020-65261-0 and arXiv:1910.10467
    "partial_stem_binary": (1_000_000, 3e-4, "1/16", ("nearest",)),
    "partial_stem_blurred": (500_000, 3e-4, "1/20", ("sparse", "dwell")),
    "partial_stem_adversarial": (1_000_000, 3e-4, "1/20", ("sparse", "dwell")),
    "dlss_individual": (1_000_000, 3e-4, "1/25", ("nearest",)),
    "dlss_unified": (1_000_000, 3e-4, ["1/16", "1/25", "1/36", "1/49", "1/64", "1/81", "1/100"], ("nearest",)),
    "dlss_unified_no_blur": (1_000_000, 3e-4, ["1/16", "1/25", "1/36", "1/49", "1/64", "1/81", "1/100"], ("nearest",)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_of_the_two_stage_generator_is_as_published(name):
    settings = read_recipe(name)
    steps, lr, coverage, channels = PUBLISHED[name]
    objective = settings.objective
    assert isinstance(objective, TwoStageObjective)
    assert (settings.steps, settings.batch, settings.data.crop_px) == (steps, 1, 512)
    assert objective.lr == lr
    assert settings.data.patterns[0].pattern["coverage"] == coverage
    assert settings.data.channels == channels
    assert "width" not in settings.network.options
    assert (objective.adversarial is not None) == (name == "partial_stem_adversarial")
    assert objective.replay is not None
    assert objective.replay.slots == 50


def test_recipe_of_the_one_stage_generator_is_as_published():
    settings = read_recipe("dlss_one_stage")
    objective = settings.objective
    assert isinstance(objective, CompletionObjective)
    assert (settings.steps, settings.batch, settings.data.crop_px) == (100_000, 16, 512)
    assert objective.learning_rate.lr == 1e-3
    assert (objective.optimizer, objective.weight_decay) == ("adam", 1e-5)
    assert settings.data.target == "blurred_3x3"


def test_overrides_go_into_maps_and_lists_and_come_last(own):
    changes = ["steps=7", "data.patterns.1.pattern.coverage=1/50", "objective.learning_rate.warm_up=2", "ema=0.9"]
    settings = read_recipe(own, changes, steps=99)
    assert settings.steps == 7
    assert settings.data.patterns[1].pattern["coverage"] == "1/50"
    assert settings.objective.learning_rate.warm_up == 2
    assert settings.ema == 0.9


def test_a_part_left_out_can_be_added_by_an_override():
    settings = read_recipe("dlss_individual", ["objective.adversarial.weight=1", "steps=2000000"])
    assert settings.objective.adversarial.weight == 1


def test_merged_replaces_lists_and_leaves_its_arguments_alone():
    mapping = {"a": {"b": [1], "c": 2}}
    assert merged(mapping, {"a": {"b": [3]}}) == {"a": {"b": [3], "c": 2}}
    assert mapping == {"a": {"b": [1], "c": 2}}


WRONG = [
    ("stepps: 3", "unknown key 'stepps': did you mean 'steps'?"),
    ("network: {name: compact, size: 3}", "unknown key 'network.size'"),
    ("network: {name: kompact}", "network.name: unknown network 'kompact': did you mean 'compact'?"),
    ("steps: 0", "steps: Input should be greater than or equal to 1, got 0"),
    ("batch: 4\naccumulate: 3", "batch must be divisible by accumulate, 3, got 4"),
    ("objective: {kind: two_stages}", "objective"),
    ("objective: {kind: two_stage}", "objective two_stage trains the network two_stage, got 'compact'"),
    ("objective: {kind: completion, loss: {pixel: 1}}", "objective.learning_rate is missing"),
    (
        "objective: {kind: completion, loss: {pixle: 1}, learning_rate: {policy: one_stage}}",
        "unknown key 'objective.loss.pixle': did you mean 'pixel'?",
    ),
    (
        "objective: {kind: completion, loss: {pixel: 1}, learning_rate: {policy: cosine, lr: -1}}",
        "objective.learning_rate.lr: Input should be greater than 0, got -1",
    ),
    ("objective: {kind: completion, loss: {}, learning_rate: {policy: one_stage}}", "objective.loss: no loss"),
    ("name: a/b", "name: String should match pattern"),
    (
        "data: {sources: [{procedural: mixed, wieght: 2}], patterns: [{pattern: {name: spiral}}]}",
        "unknown key 'data.sources.0.wieght': did you mean 'weight'?",
    ),
    ("data: {patterns: [{pattern: {name: spirall}}]}", "data.patterns.0: unknown pattern 'spirall'"),
    ("data: {patterns: [{pattern: {name: spiral}}], channels: [mask]}", "linear among data.channels, got"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_wrong_recipe_is_refused_in_one_sentence_that_names_the_key(text, message, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(OWN), **yaml.safe_load(text)}))
    with pytest.raises(RecipeError) as refused:
        read_recipe(str(path))
    assert str(refused.value).startswith(str(path))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_homogenised_noise_is_for_sharp_targets():
    with pytest.raises(RecipeError, match=r"data.target sharp, got blurred_5x5"):
        read_recipe("dlss_unified", ["objective.homogenise_noise=true"])


def test_adversarial_steps_come_in_two_halves():
    with pytest.raises(RecipeError, match="steps must be even, half of them adversarial, got 3"):
        read_recipe("partial_stem_adversarial", steps=3)


def test_unknown_recipe_gets_the_nearest_name():
    with pytest.raises(
        RecipeError, match=r"no recipe or file 'dlss_unifed'\. Did you mean 'dlss_unified'\? Known: dlss"
    ):
        read_recipe("dlss_unifed")
    with pytest.raises(RecipeError, match=r"there is no recipe or file 'xyz'\. Known: dlss_individual, "):
        read_recipe("xyz")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not YAML"), ("- 1", "must hold a map of settings, got list"), ("\xff", "cannot read")],
)
def test_file_that_is_no_recipe_is_refused(text, message, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecipeError, match=message):
        read_recipe(str(path))


def test_missing_file_is_refused_with_what_there_is():
    with pytest.raises(
        RecipeError, match=r"read nowhere\.yaml: No such file or directory\. Expected .*, dlss_unified, "
    ):
        read_recipe("nowhere.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "--set takes a.b=value"),
        ("=3", "--set takes a.b=value"),
        ("steps=[", "the value is not YAML"),
        ("steps.a=3", "which is no map or list"),
        ("list.7=3", "must be an index from 0 to 1"),
        ("list.x=3", "must be an index from 0 to 1"),
    ],
)
def test_override_that_says_nothing_usable_is_refused(override, message):
    with pytest.raises(RecipeError, match=message):
        set_value({"steps": 3, "list": [1, 2]}, override)
