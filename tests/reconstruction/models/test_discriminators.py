"""Discriminators: counts as published, the same places for all pictures, spectral norm 1."""

from __future__ import annotations

import pytest
import torch

from lowdose.reconstruction.models.cost import gmac
from lowdose.reconstruction.models.discriminators import Discriminator, MultiscaleDiscriminator, same_patches


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_parameters_and_cost_are_the_published_ones():
    with torch.device("meta"):
        one, three, patch = Discriminator(), MultiscaleDiscriminator(), torch.zeros(1, 1, 70, 70)
    assert (parameters(one), parameters(three)) == (2_754_496, 8_263_488)
    assert gmac(one.eval(), patch) == pytest.approx(0.068817, abs=5e-7)


def test_a_verdict_is_the_sum_of_all_features():
    discriminator, patch = Discriminator(width=0.125).eval(), torch.randn(2, 1, 70, 70)
    features = torch.nn.Sequential(*discriminator)(patch)
    assert features.shape == (2, 64, 2, 2)
    torch.testing.assert_close(discriminator(patch), features.sum((1, 2, 3)))


def test_all_pictures_of_an_example_are_cropped_at_the_same_places():
    real = torch.randn(3, 1, 256, 256)
    for patches in same_patches(torch.stack([real, -real], dim=1), generator=seeded()):
        assert patches.shape == (3, 2, 70, 70)
        assert torch.equal(patches[:, 1], -patches[:, 0])


def test_each_example_has_its_own_places():
    rows = torch.arange(512.0).view(-1, 1).expand(512, 512)
    small, _, _ = same_patches(rows.expand(8, 1, 1, 512, 512), generator=seeded())
    assert len(small.amin((1, 2, 3)).unique()) > 4


@pytest.mark.parametrize(("resize", "offset"), [("average", (0, 0.5, 1.5)), ("decimate", (0, 0, 0))])
def test_larger_crops_are_means_or_every_second_and_fourth_pixel(resize, offset):
    columns = torch.arange(4096.0).expand(4096, 4096)[
        None, None, None
    ]  # so wide that no crop of this seed is reflected
    for patch, step, shift in zip(
        same_patches(columns, generator=seeded(), resize=resize), (1, 2, 4), offset, strict=True
    ):
        line = patch[0, 0, 0]
        assert torch.equal(line.diff(), torch.full((69,), float(step)))
        assert line[0] % 1 == shift % 1


def test_pictures_go_on_beyond_their_edges_by_reflection():
    columns = torch.arange(100.0).expand(100, 100)[None, None, None]
    _, _, large = same_patches(columns, generator=seeded(), resize="decimate")
    steps = large[0, 0, 0].diff().abs()
    assert (steps == 4).sum() > 60  # all but where a reflection turns round
    assert large.amin() >= 0
    assert large.amax() <= 99


def test_the_same_seed_gives_the_same_verdicts():
    discriminator, scans = MultiscaleDiscriminator(width=0.125).eval(), torch.randn(2, 1, 128, 128)
    verdicts = discriminator(scans, -scans, generator=seeded())
    assert verdicts.shape == (2, 3, 2)
    assert torch.equal(discriminator(scans, -scans, generator=seeded()), verdicts)
    torch.testing.assert_close(discriminator(-scans, generator=seeded())[0], verdicts[1])


@pytest.mark.parametrize("size", [94, 128, 140, 512])
def test_sizes_from_94_on_work(size):
    assert len(same_patches(torch.zeros(1, 1, 1, size, size), generator=seeded())) == 3


def test_smaller_pictures_are_refused():
    message = "pictures must be at least 94 × 94 for crops of 280 pixels, got 128 × 93: train on larger ones"
    with pytest.raises(ValueError, match=message):
        same_patches(torch.zeros(1, 1, 1, 128, 93))


def test_an_unknown_resize_is_refused():
    with pytest.raises(ValueError, match="resize must be one of average, decimate, got 'nearest'"):
        MultiscaleDiscriminator(resize="nearest")  # type: ignore[arg-type]


def test_every_weight_has_spectral_norm_1():
    discriminator = Discriminator(width=0.125).train()
    for _ in range(30):  # one step of the power iteration each
        discriminator(torch.zeros(1, 1, 70, 70))
    for layer in list(discriminator.eval())[::2]:
        sigma = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
        assert sigma.item() == pytest.approx(1, abs=0.02)


def test_only_training_moves_the_power_iteration():
    discriminator, scans = MultiscaleDiscriminator(width=0.125).eval(), torch.randn(1, 1, 128, 128)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    discriminator(scans)
    assert all(torch.equal(before[name], value) for name, value in discriminator.state_dict().items())
    discriminator.train()(scans)
    assert not all(torch.equal(before[name], value) for name, value in discriminator.state_dict().items())
