from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d

from lowdose.training.adversarial_losses import adversarial_loss, discriminator_loss
from lowdose.training.losses import (
    ALRC,
    ExpectedErrors,
    blurred_pixel_loss,
    gaussian_blur,
    gaussian_nll,
    gaussian_taps,
    huberised,
    interval_loss,
    mse,
    p_of_coverage,
    pixel_loss,
    relative_mse,
)
from lowdose.training.noise_losses import keep_measured, noise_homogenised, noise_predictor_loss


@pytest.fixture
def seed():
    return torch.Generator().manual_seed(5)


def test_one_step_of_alrc_is_the_published_one():
    alrc = ALRC()
    loss = torch.tensor([100.0], requires_grad=True)
    clipped = alrc(loss)
    clipped.sum().backward()
    assert clipped.item() == pytest.approx(74.7494, abs=1e-4)
    assert loss.grad.item() == pytest.approx(0.747494, abs=1e-6)
    assert (alrc.mu1, alrc.mu2) == (pytest.approx(25.04975, abs=1e-5), pytest.approx(904.68747, abs=1e-5))


def test_alrc_clips_examples_one_by_one_and_leaves_the_others_alone():
    losses = torch.tensor([3.0, 100.0, 0.0], requires_grad=True)
    clipped = ALRC()(losses)
    clipped.sum().backward()
    assert clipped.tolist() == pytest.approx([3, 74.74937, 0])
    assert losses.grad.tolist() == pytest.approx([1, 0.7474937, 1])


def test_alrc_of_a_batch_moves_by_the_means_of_the_clipped_losses():
    alrc = ALRC(mu1=1.0, mu2=4.0)
    alrc(torch.tensor([1.0, 1000.0]))
    cap = 1 + 3 * math.sqrt(3 + 1e-8)
    assert alrc.mu1 == pytest.approx(0.999 + 0.001 * (1 + cap) / 2)
    assert alrc.mu2 == pytest.approx(0.999 * 4 + 0.001 * (1 + cap**2) / 2)


@pytest.mark.parametrize(("mu1", "mu2"), [(25, 30), (25, 625), (-1, 4), (math.nan, 4), (1, math.inf)])
def test_alrc_refuses_moments_no_losses_have(mu1, mu2):
    with pytest.raises(ValueError, match="greater than mu1"):
        ALRC(mu1, mu2)
    with pytest.raises(ValueError, match="greater than mu1"):
        ALRC().load_state_dict({"mu1": mu1, "mu2": mu2})


def test_alrc_goes_on_where_a_checkpoint_stopped():
    alrc, other = ALRC(), ALRC(1, 4)
    alrc(torch.tensor([7.0, 300.0]))
    other.load_state_dict(alrc.state_dict())
    torch.testing.assert_close(other(torch.tensor([500.0])), alrc(torch.tensor([500.0])), rtol=0, atol=0)
    assert other.state_dict() == alrc.state_dict()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_seen_and_does_not_spoil_alrc(bad):
    alrc = ALRC()
    assert not alrc(torch.tensor([bad])).isfinite().any()
    assert alrc(torch.tensor([2.0])).tolist() == [2]


@given(losses=st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_alrc_never_raises_a_loss_and_keeps_possible_moments(losses):
    alrc = ALRC()
    for loss in losses:
        assert 0 <= alrc(torch.tensor([loss])).item() <= loss * (1 + 1e-6)
        assert alrc.mu2 > alrc.mu1**2


def test_alrc_survives_losses_that_never_change():
    alrc = ALRC(mu1=1000, mu2=1000**2 * (1 + 1e-15))
    for _ in range(50):
        assert alrc(torch.tensor([1000.0])).item() == pytest.approx(1000, rel=1e-6)


def test_huberised_takes_the_root_above_one_only():
    losses = torch.tensor([0.0, 0.5, 1.0, 4.0], requires_grad=True)
    out = huberised(losses)
    out.sum().backward()
    assert out.tolist() == pytest.approx([0, 0.5, 1, 2])
    assert losses.grad.tolist() == pytest.approx([1, 1, 1, 0.25])


def test_the_taps_are_the_published_ones():
    assert gaussian_taps(5, 2.5) == pytest.approx([0.16892959, 0.2147516, 0.23263763, 0.2147516, 0.16892959], abs=1e-8)
    assert gaussian_taps(3, 1.5) == pytest.approx([0.3078, 0.3844, 0.3078], abs=5e-5)
    with pytest.raises(ValueError, match="odd size"):
        gaussian_taps(4, 1)


@pytest.mark.parametrize(("size", "sigma"), [(5, 2.5), (3, 1.5)])
def test_blur_equals_scipy_mirrored_at_the_edge(rng, size, sigma):
    images = rng.random((2, 3, 11, 7)).astype(np.float32)
    expected = images
    for axis in (2, 3):
        expected = correlate1d(expected, gaussian_taps(size, sigma), axis=axis, mode="mirror")
    np.testing.assert_allclose(
        gaussian_blur(torch.from_numpy(images), size=size, sigma=sigma).numpy(), expected, atol=1e-6
    )


def test_blur_refuses_pictures_too_small_to_mirror():
    with pytest.raises(ValueError, match="larger than 2"):
        gaussian_blur(torch.zeros(1, 1, 2, 9))


def test_pixel_loss_is_per_example_and_divided_by_p():
    output, target = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.1)
    target[1] = 0.2
    assert pixel_loss(output, target).tolist() == pytest.approx([2, 8])
    assert pixel_loss(output, target, p=torch.tensor([0.5, 2])).tolist() == pytest.approx([4, 4])


def test_a_target_of_another_shape_is_refused_instead_of_broadcast():
    with pytest.raises(ValueError, match="one shape"):
        mse(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 1))
    with pytest.raises(ValueError, match="one shape"):
        gaussian_nll(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 2, 2))


def test_blurred_pixel_loss_hardly_sees_the_finest_detail(seed):
    truth = torch.rand(1, 1, 32, 32, generator=seed)
    checkerboard = (torch.arange(32)[:, None] + torch.arange(32)) % 2 - 0.5
    assert blurred_pixel_loss(truth, truth).item() == 0
    assert (
        blurred_pixel_loss(truth + checkerboard, truth).item() < 1e-3 * pixel_loss(truth + checkerboard, truth).item()
    )


def test_relative_mse_is_one_for_linear_infill_and_bounded_on_easy_crops():
    target, linear = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.5)
    linear[1] = 1e-4
    assert relative_mse(linear, target, linear, floor=1e-3).tolist() == pytest.approx([1, 1e-5])
    assert relative_mse(target, target, linear).tolist() == [0, 0]


def test_nll_is_least_where_the_deviation_is_the_error(seed):
    target = 0.3 * torch.randn(1, 1, 200, 200, generator=seed)
    mean = torch.zeros_like(target)
    losses = {sd: gaussian_nll(mean, torch.full_like(target, sd), target).item() for sd in (0.2, 0.27, 0.3, 0.33, 0.45)}
    assert min(losses, key=losses.get) == 0.3
    normal = torch.distributions.Normal(0.0, 0.3)
    assert losses[0.3] == pytest.approx(
        -normal.log_prob(target).mean().item() - math.log(1e-3 * math.sqrt(2 * math.pi)), rel=1e-4
    )


def test_nll_is_never_negative_and_a_deviation_below_the_floor_still_learns():
    deviation = torch.full((1, 1, 4, 4), 1e-6, requires_grad=True)
    perfect, wrong = (gaussian_nll(torch.zeros(1, 1, 4, 4), deviation, torch.full((1, 1, 4, 4), t)) for t in (0.0, 0.1))
    wrong.sum().backward()
    assert perfect.item() == pytest.approx(0, abs=1e-5)
    assert (deviation.grad < 0).all()


def test_p_of_coverage_is_the_published_table():
    coverages = torch.tensor([1 / s**2 for s in range(4, 11)])
    expected = [0.6547, 0.7790, 0.9292, 1.0478, 1.1361, 1.2018, 1.2513]
    assert p_of_coverage(coverages).tolist() == pytest.approx(expected, abs=5e-5)


def test_p_holds_its_ends_beyond_the_coverages_it_was_fitted_to():
    p = p_of_coverage(torch.tensor([1 / 400, 1 / 100, 1 / 16, 1.0]))
    assert p[0] == p[1]
    assert p[2] == p[3]


def test_expected_errors_are_learnt_for_each_pattern_and_coverage():
    errors = ExpectedErrors(decay=0.9)
    pattern, coverage = torch.tensor([0, 1]), torch.tensor([0.05, 0.05], dtype=torch.float64)
    assert errors.p(pattern, coverage).tolist() == [1, 1]
    for _ in range(100):
        errors.update(pattern, coverage, torch.tensor([1.0, 3.0]))
    assert errors.p(pattern, coverage).tolist() == pytest.approx([0.5, 1.5])
    assert errors.p(torch.tensor([7]), torch.tensor([0.05])).tolist() == [1]
    for _ in range(100):
        errors.update(pattern, coverage, torch.tensor([2.0, 2.0]))
    assert errors.p(pattern, coverage).tolist() == pytest.approx([1, 1], rel=1e-3)


def test_expected_errors_begin_as_the_plain_mean_and_leave_out_what_is_not_finite():
    errors = ExpectedErrors()
    same = torch.zeros(4, dtype=torch.int64), torch.full((4,), 0.1)
    errors.update(*same, torch.tensor([1.0, math.nan, 2.0, 6.0]))
    assert errors.state_dict()["groups"] == [(0, pytest.approx(0.1), pytest.approx(3), 3)]


def test_a_group_without_error_gets_no_endless_weight():
    errors = ExpectedErrors()
    groups = torch.tensor([0, 1]), torch.tensor([0.1, 0.1])
    errors.update(*groups, torch.tensor([0.0, 1.0]))
    assert errors.p(*groups).tolist() == pytest.approx([0.01, 2])


def test_expected_errors_come_back_from_a_saved_checkpoint(tmp_path):
    errors, other = ExpectedErrors(), ExpectedErrors()
    groups = torch.tensor([0, 1]), torch.tensor([0.05, 0.01])
    errors.update(*groups, torch.tensor([1.0, 4.0]))
    torch.save(errors.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.p(*groups).tolist() == errors.p(*groups).tolist()


def test_known_pixels_add_nothing_to_a_loss_nor_to_its_gradient():
    output, truth = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.ones(1, 1, 2, 2)
    mask = torch.tensor([[[[True, False], [False, False]]]])
    loss = pixel_loss(keep_measured(output, truth, mask), truth)
    loss.sum().backward()
    assert loss.item() == pytest.approx(150)
    assert (output.grad != 0).flatten().tolist() == [False, True, True, True]


def test_the_noise_predictor_learns_from_the_generators_error_but_does_not_teach_it():
    error = torch.tensor([2.0], requires_grad=True)
    predicted = torch.tensor([[1.0, 4.0]], requires_grad=True)
    loss = noise_predictor_loss(predicted, error)
    loss.sum().backward()
    assert loss.tolist() == [2.5]
    assert error.grad is None
    assert predicted.grad.tolist() == [[-1, 2]]


def test_homogenised_errors_are_relative_to_those_predicted():
    error = torch.tensor([2.0, 8.0, 1.0], requires_grad=True)
    predicted = torch.tensor([[1.0, 3.0], [8.0, 8.0], [-5.0, 1.0]], requires_grad=True)
    loss = noise_homogenised(error, predicted, mean_error=4.0)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([4, 4, 40])
    assert error.grad.tolist() == pytest.approx([2, 0.5, 40])
    assert predicted.grad is None


def test_least_squares_terms_add_over_scales():
    real = [torch.tensor([1.0, 0.0]), torch.tensor([[0.5], [1.0]]), torch.tensor([1.0, 1.0])]
    fake = [torch.tensor([0.0, 1.0]), torch.tensor([[0.5], [1.0]]), torch.tensor([1.0, 1.0])]
    assert discriminator_loss(real, fake).tolist() == [1.5, 4]
    assert adversarial_loss(fake).tolist() == [2 * 1.25, 0]
    assert adversarial_loss(fake, weight=1).tolist() == [1.25, 0]


def test_the_interval_loss_is_least_where_nine_of_ten_errors_lie_within():
    generator = torch.Generator().manual_seed(0)
    for draw in (torch.randn, torch.rand):  # whatever the distribution
        error = draw(1, 1, 100, 100, generator=generator)
        mean, linear = torch.zeros_like(error), torch.ones_like(error) + error
        deviations = torch.linspace(0.2, 2.0, 181)
        losses = [interval_loss(mean, torch.full_like(error, d), error, linear).item() for d in deviations]
        best = deviations[int(np.argmin(losses))].item()
        within = (error.abs() <= 1.645 * best).float().mean().item()
        assert within == pytest.approx(0.9, abs=0.01)


def test_the_interval_loss_counts_crops_alike_whatever_their_contrast():
    target = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    mean, deviation, linear = 0.9 * target, torch.full_like(target, 0.3), 0.5 * target
    once = interval_loss(mean, deviation, target, linear)
    torch.testing.assert_close(interval_loss(5 * mean, 5 * deviation, 5 * target, 5 * linear), once)
