"""Every shipped recipe trains: a few steps of a small network on made-up pictures."""

from __future__ import annotations

import math

import pytest

from lowdose.training.run_folder import read_metrics
from lowdose.training.settings import read_recipe, recipe_names
from lowdose.training.train import train

SMALLER = {"two_stage": ["network.options.width=0.03125"], "one_stage": ["network.options.width=0.125"]}


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_trains_its_first_steps_in_each_of_its_halves(name, tmp_path):
    network = read_recipe(name).network.name
    changes = [*SMALLER.get(network, []), "steps=4", "log_every=1", "validation_examples=2"]
    outcome = train(read_recipe(name, changes, smoke=True), tmp_path / "run", until=3)
    assert outcome.step == 3
    losses = [row["losses"] for row in read_metrics(tmp_path / "run")]
    assert len(losses) == 3
    assert all(math.isfinite(value) for row in losses for value in row.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_smoke_run_of_a_recipe_ends_with_a_score(name, tmp_path):
    outcome = train(read_recipe(name, smoke=True), tmp_path / "run")
    assert outcome.step == read_recipe(name, smoke=True).steps
    assert outcome.scores[0].examples == 8
    assert 0 < outcome.scores[0].rms_01 < 1
