"""The compact generator: one small network for every scan pattern and coverage, live on two processor cores."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

CHANNELS = ("linear", "sparse", "mask", "distance")
"""What it takes, in this order."""
FARTHEST_PX = 32.0
"""Distances beyond say no more."""
LEAST_DEVIATION = 1e-3
"""In standard deviations of the measured values."""


class CompactGenerator(nn.Module):
    """Compact generator: linear infill plus what a small U-Net knows better, and how far off that may be.

    The picture is folded by 2 into channels, so that full-size convolutions, which cost most, are none. Each level
    halves it again; the way up adds the features of the way down. The last layer begins at zero: an untrained network
    is linear infill.

    Parameters
    ----------
    widths : sequence of int
        Channels of each level, the finest first.
    blocks : sequence of int
        Residual blocks of each level, on the way down and again on the way up (the coarsest has one way).
    deviation_scale : float
        Times what the network says of its deviation: 1 in training, calibrated when it is exported.
    """

    def __init__(
        self,
        widths: Sequence[int] = (24, 48, 96, 128, 160),
        blocks: Sequence[int] = (1, 1, 1, 2, 2),
        *,
        deviation_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths:
            raise ValueError(f"widths and blocks must be of one length, got {list(widths)} and {list(blocks)}")
        if not deviation_scale > 0:
            raise ValueError(f"deviation_scale must be > 0, got {deviation_scale}")
        self.deviation_scale = deviation_scale
        self.options: dict[str, Any] = {
            "widths": list(widths),
            "blocks": list(blocks),
            "deviation_scale": deviation_scale,
        }
        self.size_multiple = 2 ** len(widths)
        self.enter = nn.Conv2d(4 * len(CHANNELS), widths[0], 3, padding=1)
        self.down = nn.ModuleList(_blocks(width, n) for width, n in zip(widths, blocks, strict=True))
        pairs = list(pairwise(widths))
        self.coarser = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.finer = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
        self.up = nn.ModuleList(_blocks(width, n) for width, n in zip(widths[:-1], blocks[:-1], strict=True))
        self.leave = _begun_at_zero(nn.Conv2d(widths[0], 4 * 2, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return mean and standard deviation.

        Parameters
        ----------
        x : (batch, 4, rows, cols) Tensor
            Linear infill, measured values (0 elsewhere), mask, distance [pixel]; rows and cols multiples of
            `size_multiple`.

        Returns
        -------
        (batch, 2, rows, cols) Tensor
        """
        linear, values, distance = x[:, :1], x[:, 1:3], x[:, 3:]
        near = distance.clamp(max=FARTHEST_PX) / FARTHEST_PX
        features = self.enter(functional.pixel_unshuffle(torch.cat([linear, values, near], 1), 2))
        skips = []
        for blocks, coarser in zip(self.down, self.coarser, strict=False):
            features = blocks(features)
            skips.append(features)
            features = coarser(features)
        features = self.down[-1](features)
        for i in reversed(range(len(skips))):
            features = self.up[i](self.finer[i](features) + skips[i])
        residual, spread = functional.pixel_shuffle(self.leave(features), 2).split(1, 1)
        deviation = self.deviation_scale * (functional.softplus(spread) + LEAST_DEVIATION)
        return torch.cat([linear + residual, deviation], 1)


class _Block(nn.Module):
    """x + two convolutions; the second begins at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = _begun_at_zero(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(functional.relu(self.first(functional.relu(x))))
        return x + y


def _blocks(width: int, n: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(width) for _ in range(n)))


def _begun_at_zero(layer: nn.Conv2d) -> nn.Conv2d:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
