"""One-stage generator: counts and costs as published, rules of its sizes."""

from __future__ import annotations

import pytest
import torch

from lowdose.reconstruction.models.cost import gmac
from lowdose.reconstruction.models.one_stage import OneStageGenerator


def on_meta(**options: float) -> OneStageGenerator:
    with torch.device("meta"):
        return OneStageGenerator(**options)  # type: ignore[arg-type]


def spots(*shape: int) -> torch.Tensor:
    return torch.zeros(1, 1, *shape, device="meta")


def test_parameters_cost_and_sizes_are_the_published_ones():
    network, sizes = on_meta(), []
    for layer in (network.first, *network.shrink, *network.enlarge):
        layer.register_forward_hook(lambda layer, args, y: sizes.append(y.shape[-1]))
    assert network(spots(103, 103)).shape == (1, 1, 512, 512)
    assert sizes == [103, 57, 32, 64, 128, 256, 512]
    assert sum(p.numel() for p in network.parameters()) == 2_198_145
    assert sum(p.numel() for name, p in network.named_parameters() if "norm" in name) == 2_081
    assert gmac(network, spots(103, 103)) == pytest.approx(4.7438, abs=5e-5)


@pytest.mark.parametrize(("scale", "rows", "cols"), [(1, 64, 96), (2, 40, 64), (4, 128, 20), (1, 32, 16)])
def test_whole_scales_give_exactly_as_many_times_the_size(scale, rows, cols):
    assert on_meta(scale=scale)(spots(rows, cols)).shape == (1, 1, scale * rows, scale * cols)


def test_other_sizes_come_out_as_the_nearest_multiple_of_16():
    assert on_meta()(spots(52, 206)).shape == (1, 1, 256, 1024)


@pytest.mark.parametrize(("scale", "multiple"), [(1, 16), (2, 8), (4, 4)])
def test_sizes_that_a_whole_scale_cannot_meet_are_refused(scale, multiple):
    with pytest.raises(
        ValueError, match=f"with scale {scale} rows and columns must be multiples of {multiple}, got 66"
    ):
        on_meta(scale=scale)(spots(64, 66))


@pytest.mark.parametrize("scale", [0, 17])
def test_impossible_scales_are_refused(scale):
    with pytest.raises(ValueError, match=f"scale must be > 0 and at most 16, got {scale}"):
        on_meta(scale=scale)


def test_training_learns_offsets_and_moves_the_running_moments_by_a_thousandth():
    network, x = OneStageGenerator(width=0.125).train(), torch.full((2, 1, 26, 26), 3.0)
    network(x).square().mean().backward()
    assert network.first.norm.running_mean.item() == pytest.approx(0.003)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
