"""Costs counted by hand for one layer of each kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowdose.reconstruction.models.cost import gmac


@pytest.mark.parametrize(
    ("network", "shape", "macs"),
    [
        (nn.Conv2d(2, 5, 3, padding=1), (1, 2, 8, 8), 64 * 9 * 2 * 5),
        (nn.Conv2d(2, 5, 3, stride=2, padding=1), (3, 2, 8, 8), 3 * 16 * 9 * 2 * 5),
        (nn.ConvTranspose2d(2, 5, 3, stride=2, padding=1, output_padding=1), (1, 2, 8, 8), 64 * 9 * 2 * 5),
        (nn.Linear(7, 11), (2, 3, 7), 6 * 7 * 11),
        (nn.Sequential(nn.BatchNorm2d(2), nn.LeakyReLU(), nn.Upsample(scale_factor=2)), (1, 2, 8, 8), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_multiplications_are_counted_on_any_device(network, shape, macs):
    assert gmac(network, torch.zeros(shape)) == pytest.approx(macs / 1e9)
    assert gmac(network.to("meta"), torch.zeros(shape, device="meta")) == pytest.approx(macs / 1e9)
