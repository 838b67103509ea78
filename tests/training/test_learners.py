"""One step of training: who learns from what, how fast, and from when on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from lowdose.training.completion_training import CompletionTraining
from lowdose.training.learner import (
    NonFiniteLossError,
    Workplace,
    evaluating,
    make_learner,
    parts_of,
    require_finite,
    step_seed,
)
from lowdose.training.losses import ALRC, p_of_coverage
from lowdose.training.ranks import Ranks
from lowdose.training.settings import RecipeError
from lowdose.training.two_stage_training import TwoStageTraining
from tests.training.runs import recipe

if TYPE_CHECKING:
    from pathlib import Path

    from lowdose.training.learner import Batch

HERE = Workplace(torch.device("cpu"), Ranks())
PX = 96


def two_stage(folder: Path, *overrides: str) -> TwoStageTraining:
    torch.manual_seed(0)
    learner = make_learner(recipe(folder, "two_stage", *overrides), HERE)
    assert isinstance(learner, TwoStageTraining)
    return learner


def unclipped(learner: TwoStageTraining) -> TwoStageTraining:
    learner._alrc = {name: ALRC(1e4, 1e9) for name in learner._alrc}
    return learner


def completion(folder: Path, *overrides: str) -> CompletionTraining:
    torch.manual_seed(0)
    learner = make_learner(recipe(folder, "completion", *overrides), HERE)
    assert isinstance(learner, CompletionTraining)
    return learner


def batch_of(channels: int = 1, *, px: int = PX, n: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(5)

    def pictures(channels: int) -> Any:
        return torch.rand(n, channels, px, px, generator=generator) * 2 - 1

    return {
        "inputs": pictures(channels),
        "target": pictures(1),
        "truth": pictures(1),
        "mask": pictures(1) > 0.8,
        "coverage": torch.full((n,), 1 / 16),
        "pattern": torch.zeros(n, dtype=torch.long),
    }


def learned(network: torch.nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters())


def test_outer_generator_learns_from_the_main_loss_alone_and_the_inner_one_from_both(tmp_path):
    learner = two_stage(tmp_path)
    learner._losses(batch_of())["auxiliary"].sum().backward()
    assert learned(learner.network.inner)
    assert learned(learner._networks["trainer"])
    assert not learned(learner.network.outer)
    learner.network.zero_grad()
    learner._losses(batch_of())["main"].sum().backward()
    assert learned(learner.network.inner)
    assert learned(learner.network.outer)


def test_every_network_of_the_first_half_has_an_optimiser_with_its_own_rate(tmp_path):
    learner = two_stage(tmp_path)
    learner.step(batch_of(), 0)
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in learner._optimizers.items()}
    assert rates == {"inner": 3e-4, "outer": 3e-4, "trainer": 6e-4, "predictor": 3e-4}


def test_squared_error_alone_goes_down_the_first_half_of_the_ladder(tmp_path):
    learner = two_stage(tmp_path, "objective.adversarial=null", "steps=16")
    learner.step(batch_of(), 15)
    assert learner._optimizers["outer"].param_groups[0]["lr"] == pytest.approx(3e-4 / 8)
    assert learner._optimizers["trainer"].param_groups[0]["betas"][0] == pytest.approx(0.55)


def test_adversarial_half_begins_with_new_optimisers_and_keeps_running_means(tmp_path):
    learner = two_stage(tmp_path)
    for step in range(3):
        assert learner.step(batch_of(), step).keys() == {"main", "auxiliary", "predictor"}
    means = {name: b.clone() for name, b in learner.network.named_buffers()}
    assert learner.step(batch_of(), 3).keys() == {"main", "auxiliary", "adversarial", "discriminator"}
    assert learner._optimizers.keys() == {"inner", "outer", "trainer", "discriminator"}
    assert {int(state["step"]) for state in learner._optimizers["inner"].state.values()} == {1}
    assert learner._optimizers["discriminator"].param_groups[0]["lr"] == pytest.approx(1e-4)
    assert all(torch.equal(means[name], b) for name, b in learner.network.named_buffers())


def test_generator_and_discriminators_learn_from_their_own_losses_alone(tmp_path):
    learner = two_stage(tmp_path)
    learner._begin_adversarial()
    learner._losses(batch_of())["discriminator"].sum().backward()
    assert learned(learner._networks["discriminator"])
    assert not learned(learner.network)
    learner._networks.zero_grad()
    learner._losses(batch_of())["adversarial"].sum().backward()
    assert learned(learner.network)
    assert not learned(learner._networks["discriminator"])


def test_measured_pixels_add_nothing_to_the_error_that_is_homogenised(tmp_path):
    batch = batch_of()
    other = {**batch, "target": torch.where(batch["mask"], 0.0, batch["target"])}
    inverted = [{**given, "mask": ~batch["mask"]} for given in (batch, other)]
    same = [two_stage(tmp_path)._losses(given)["predictor"] for given in (batch, other)]
    differing = [two_stage(tmp_path)._losses(given)["predictor"] for given in inverted]
    assert torch.equal(*same)
    assert not torch.allclose(*differing, rtol=1e-2)


def test_first_outputs_are_of_the_size_of_the_pictures(tmp_path):
    output = two_stage(tmp_path).network(batch_of()["inputs"])
    assert 0.3 < float(output.detach().std()) < 3


def test_losses_are_divided_by_the_error_expected_on_a_lattice(tmp_path):
    options = ["objective.homogenise_noise=false", "data.target=blurred_5x5"]
    one, lattice = (
        unclipped(two_stage(tmp_path, *options, f"objective.expected_error={kind}"))._losses(batch_of())
        for kind in ("one", "lattice")
    )
    p = p_of_coverage(torch.tensor([1 / 16]))
    torch.testing.assert_close(lattice["auxiliary"], one["auxiliary"] / p)


def test_tracked_errors_are_those_before_the_division(tmp_path):
    options = ["objective.homogenise_noise=false", "data.target=blurred_5x5", "objective.replay=null"]
    learner = unclipped(two_stage(tmp_path, *options))
    losses = learner.step(batch_of(n=1), 0)
    ((_, _, error, count),) = learner._expected.state_dict()["groups"]
    assert count == 1
    assert 200 * error == pytest.approx(float(losses["main"]), rel=1e-5)


def test_gains_begin_as_in_the_public_scripts_if_asked(tmp_path):
    unit, example = (
        two_stage(tmp_path, f"objective.initialise={how}").network.inner.encode[0].gain for how in ("unit", "example")
    )
    assert torch.equal(unit, torch.ones_like(unit))
    assert not torch.allclose(example, torch.ones_like(example))


def test_replay_trains_on_examples_seen_before(tmp_path):
    learner = two_stage(tmp_path, "objective.replay={slots: 1, probability: 1, share: 0}", "batch=1")
    first = batch_of(n=1)
    learner.step(first, 0)
    stored = learner.state_dict()["replay"]["examples"]["inputs"]
    assert torch.equal(stored, first["inputs"])


def test_untrained_compact_network_is_as_good_as_linear(tmp_path):
    learner, batch = completion(tmp_path), batch_of(5, px=32, n=4)
    batch["inputs"][:, 0] = 0.5
    losses = learner._losses(batch)
    torch.testing.assert_close(losses["relative_mse"], torch.ones(4))


def test_likelihood_beside_an_error_trains_the_deviation_alone(tmp_path):
    learner = completion(tmp_path)
    learner._losses(batch_of(5, px=32))["nll"].sum().backward()
    of_mean, of_deviation, of_trust = learner.network.leave.bias.grad.split(4)  # type: ignore[union-attr, operator]
    assert torch.equal(of_mean, torch.zeros(4))
    assert torch.equal(of_trust, torch.zeros(1))
    assert bool((of_deviation != 0).all())


def test_likelihood_alone_trains_both(tmp_path):
    learner = completion(tmp_path, "objective.loss={nll: 1}")
    learner._losses(batch_of(5, px=32))["nll"].sum().backward()
    assert bool((learner.network.leave.bias.grad != 0).all())  # type: ignore[union-attr]


def test_a_network_is_given_the_channels_it_takes_in_its_order(tmp_path):
    with pytest.raises(RecipeError, match=r"network compact takes the channels linear, cubic, sparse, mask, distance"):
        completion(tmp_path, "data.channels=[cubic, linear, sparse, mask, distance]")


def test_likelihood_needs_a_deviation(tmp_path):
    options = [
        "network={name: two_stage, options: {width: 0.0625}}",
        "objective.loss={nll: 1}",
        "data.channels=[nearest]",
    ]
    with pytest.raises(RecipeError, match="a network of 2 outputs, mean and standard deviation, got 1"):
        completion(tmp_path, *options).step(batch_of(1, px=32), 0)


def test_weights_of_losses_multiply_them(tmp_path):
    one, three = (
        completion(tmp_path, f"objective.loss={{relative_mse: {w}}}")._losses(batch_of(5, px=32)) for w in (1, 3)
    )
    torch.testing.assert_close(three["relative_mse"], 3 * one["relative_mse"])


def test_gradients_longer_than_the_bound_are_shortened_to_it(tmp_path):
    learner = completion(tmp_path, "objective.clip_norm=0.01")
    learner._optimizer.zero_grad = lambda: None  # type: ignore[method-assign] to look at what the step was made of
    learner.step(batch_of(5, px=32), 0)
    norms = [p.grad.norm() for p in learner.network.parameters() if p.grad is not None]
    assert float(torch.linalg.vector_norm(torch.stack(norms))) == pytest.approx(0.01, rel=1e-3)


def test_one_stage_policy_freezes_normalisation_at_half(tmp_path):
    learner = completion(
        tmp_path,
        "network={name: one_stage, options: {scale: 1, width: 0.125}}",
        "objective.learning_rate={policy: one_stage}",
        "objective.loss={pixel: 1}",
        "data.channels=[nearest]",
        "steps=16",
    )
    mean = learner.network.first.norm.running_mean  # type: ignore[union-attr]
    learner.step(batch_of(1, px=32), 7)
    moved = mean.clone()
    assert not torch.equal(moved, torch.zeros_like(moved))
    learner.step(batch_of(1, px=32), 8)
    with evaluating(learner.network):
        pass
    learner.step(batch_of(1, px=32), 9)
    assert torch.equal(mean, moved)
    assert learner._optimizer.param_groups[0]["lr"] == 2.5e-4


def test_mixed_precision_and_channels_last_give_nearly_the_same_losses(tmp_path):
    batch = batch_of(5, px=32, n=4)
    full, mixed = (completion(tmp_path, *options) for options in ((), ("precision=bf16", "channels_last=true")))
    for step in range(3):
        expected, got = full.step(batch, step), mixed.step(batch, step)
    assert got["nll"].dtype == torch.float32
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=0.02, atol=0.02)


def test_parts_of_a_batch_are_all_of_it():
    batch = batch_of(n=4)
    parts = list(parts_of(batch, 2))
    assert torch.equal(torch.cat([part["inputs"] for part in parts]), batch["inputs"])
    assert [len(part["pattern"]) for part in parts] == [2, 2]


def test_losses_that_are_no_numbers_are_named():
    losses = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0, float("nan")])}
    with pytest.raises(NonFiniteLossError, match="at step 7 the loss b of example 2 of 2 is nan"):
        require_finite(losses, 7)


def test_draws_of_a_step_depend_on_seed_step_and_rank():
    assert step_seed(0, 1, 0) == step_seed(0, 1, 0)
    assert len({step_seed(*key) for key in ((0, 1, 0), (0, 2, 0), (1, 1, 0), (0, 1, 1))}) == 4
