from __future__ import annotations

import itertools

import pytest
import torch

from lowdose.training.schedules import WeightAverage, apply, cosine, one_stage, two_stage

TOTAL = 2_000_000
LADDER = [3.0e-4, 2.625e-4, 2.25e-4, 1.875e-4, 1.5e-4, 1.125e-4, 7.5e-5, 3.75e-5]
BETAS = [0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55]


@pytest.mark.parametrize("step", [0, 250_000, 499_999])
def test_two_stage_begins_flat(step):
    rates = two_stage(step, TOTAL)
    assert (rates.generator.lr, rates.trainer.lr, rates.predictor.lr) == pytest.approx((3e-4, 6e-4, 3e-4))
    assert {r.beta1 for r in (rates.generator, rates.trainer, rates.predictor)} == {0.9}
    assert not rates.adversarial
    assert not rates.norm_frozen


@pytest.mark.parametrize("level", range(8))
@pytest.mark.parametrize("offset", [0, 62_499])
def test_two_stage_second_quarter_is_the_published_ladder(level, offset):
    rates = two_stage(500_000 + 62_500 * level + offset, TOTAL)
    assert rates.generator.lr == pytest.approx(LADDER[level])
    assert rates.predictor.lr == pytest.approx(LADDER[level])
    assert rates.trainer.lr == pytest.approx(2 * LADDER[level])
    assert (rates.generator.beta1, rates.trainer.beta1) == pytest.approx((BETAS[level], BETAS[level]))
    assert rates.predictor.beta1 == 0.9
    assert two_stage(500_000 + 62_500 * level + offset, TOTAL, beta1_decays=False).generator.beta1 == 0.9


@pytest.mark.parametrize(("step", "f"), [(1_000_000, 1), (1_499_999, 1), (1_562_500, 7 / 8), (1_999_999, 1 / 8)])
def test_two_stage_second_half_is_adversarial(step, f):
    rates = two_stage(step, TOTAL)
    assert (rates.generator.lr, rates.trainer.lr) == pytest.approx((1e-4 * f, 2e-4 * f))
    assert rates.discriminator.lr == pytest.approx(1e-4)
    assert {r.beta1 for r in (rates.generator, rates.trainer, rates.discriminator)} == {0.5}
    assert rates.predictor is None
    assert rates.adversarial
    assert rates.norm_frozen


@pytest.mark.parametrize("policy", [two_stage, one_stage], ids=lambda p: p.__name__)
def test_a_policy_keeps_its_shape_at_any_length(policy):
    short, long = 320, 2_000_000
    assert [policy(i, short) for i in range(short)] == [policy(i * long // short, long) for i in range(short)]


def test_one_stage_is_the_published_policy():
    bounds = {0: 1e-3, 12_499: 1e-3, 12_500: 5e-4, 24_999: 5e-4, 25_000: 2.5e-4, 99_999: 2.5e-4}
    assert [one_stage(i, 100_000).generator.lr for i in bounds] == pytest.approx(list(bounds.values()))
    before, after = one_stage(49_999, 100_000), one_stage(50_000, 100_000)
    assert (before.generator.beta1, before.norm_frozen) == (0.9, False)
    assert (after.generator.beta1, after.norm_frozen) == (0.5, True)


def test_cosine_warms_up_in_a_line_and_falls_to_its_last_value():
    lrs = [cosine(i, 110, lr=1.0, warm_up=10, last=0.1).generator.lr for i in range(110)]
    assert lrs[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert lrs[10] == 1
    assert lrs[60] == pytest.approx(0.55)
    assert lrs[-1] == pytest.approx(0.1, abs=1e-3)
    assert all(a > b for a, b in itertools.pairwise(lrs[10:]))


@pytest.mark.parametrize("step", [-1, 100])
def test_a_step_outside_the_training_is_refused(step):
    for policy in (two_stage, one_stage, lambda i, n: cosine(i, n, lr=1)):
        with pytest.raises(ValueError, match="step must be 0 to total - 1 = 99"):
            policy(step, 100)


def test_a_warm_up_that_never_ends_is_refused():
    with pytest.raises(ValueError, match="warm_up must be"):
        cosine(0, 100, lr=1, warm_up=100)


def test_apply_sets_rate_and_beta1_and_keeps_the_moments():
    weight = torch.nn.Parameter(torch.ones(2))
    adam = torch.optim.Adam([weight])
    weight.grad = torch.ones(2)
    adam.step()
    apply(adam, 1e-4, 0.5)
    assert adam.param_groups[0]["lr"] == 1e-4
    assert adam.param_groups[0]["betas"] == (0.5, 0.999)
    assert adam.state[weight]["step"] == 1
    with pytest.raises(ValueError, match="got SGD"):
        apply(torch.optim.SGD([weight]), 1e-4, 0.5)


def network():
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))


@torch.no_grad()
def filled(model, value):
    for tensor in model.state_dict().values():
        tensor.fill_(value)
    return model


def test_the_average_forgets_its_start_soon_and_changes_slowly_later():
    model = filled(network(), 0)
    average = WeightAverage(model, decay=0.99)
    filled(model, 1)
    average.update(model)
    assert average.weights["0.weight"].unique().item() == pytest.approx(1 - 2 / 11)
    for _ in range(2000):
        average.update(model)
    filled(model, 2)
    average.update(model)
    assert average.weights["0.weight"].unique().item() == pytest.approx(1.01)
    assert average.weights["1.running_mean"].unique().item() == pytest.approx(1.01)
    assert average.weights["1.num_batches_tracked"].item() == 2


def test_the_average_is_apart_from_the_network_until_copied_to_it():
    model = filled(network(), 0)
    average = WeightAverage(model)
    filled(model, 1)
    assert average.weights["0.bias"].tolist() == [0, 0]
    average.copy_to(model)
    assert model[0].bias.tolist() == [0, 0]


def test_the_average_goes_on_where_a_checkpoint_stopped(tmp_path):
    model = filled(network(), 1)
    average, other = WeightAverage(model), WeightAverage(network())
    average.update(filled(model, 3))
    torch.save(average.state_dict(), tmp_path / "average.pt")
    other.load_state_dict(torch.load(tmp_path / "average.pt", weights_only=True))
    for a in (average, other):
        a.update(filled(model, 5))
    torch.testing.assert_close(other.weights, average.weights, rtol=0, atol=0)
    assert other.updates == 2


def test_the_average_of_another_network_is_refused():
    average = WeightAverage(network())
    with pytest.raises(ValueError, match=r"2 weights differ, the first is 0.bias \(here \(2,\), in the state \(3,\)\)"):
        average.load_state_dict(
            WeightAverage(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(2))).state_dict()
            | {"weights": {**average.weights, "0.weight": torch.ones(3, 2), "0.bias": torch.ones(3)}}
        )
