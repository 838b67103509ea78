"""The compact generator: one small network for every scan pattern and coverage, live on two processor cores."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

CHANNELS = ("linear", "cubic", "sparse", "mask", "distance")
"""What it takes, in this order."""
FARTHEST_PX = 32.0
"""Distances beyond say no more."""
LEAST_DEVIATION = 1e-3
"""In local standard deviations."""
LEAST_CONTRAST = 1e-3
"""Of the local standard deviation, in standard deviations of the measured values."""
MOST_CONTRAST = 30.0
"""Of a pixel, in standard deviations of the measured values: squares of more, summed over a cell, pass FP16's limit."""
MOST_LEVELS, MOST_BLOCKS = 8, 64
"""What a card may ask for before its weights are compared."""
FAR_DEVIATION = 2**0.5
"""In standard deviations of the measured values, beyond `FARTHEST_PX`: what is shown there and what is there are two
draws of one distribution."""
LOW_PASS = (10 / 16, 4 / 16, -1 / 16)
"""Along each axis, from the centre outwards: passes 0.99 at a tenth of a cycle per pixel, 0.57 at 0.3, nothing at 0.5.
A picture blurred 5 x 5 holds next to nothing so fine."""
CELL = 8
"""Local means and contrasts are those of cells of so many folded pixels, 16 of the picture, and their neighbours."""


class CompactGenerator(nn.Module):
    """Compact generator: linear infill plus what a small U-Net knows better, and how far off that may be.

    Everything is seen less the local mean and over the local contrast of the linear infill, so that detail in a dark
    corner counts as much as any. The picture is folded by 2 into channels, so that full-size convolutions, which cost
    most, are none. Each level halves it again; the way up adds the features of the way down. What cubic infill has
    beyond linear is filtered and added as far as the network trusts it here. What comes out is low-passed as the target
    is. The last layer begins at zero: an untrained network is linear infill. Far from everything measured the
    deviation is that of the measured values, which must come normalised by it.

    Parameters
    ----------
    widths : sequence of int
        Channels of each level, the finest first.
    blocks : sequence of int
        Residual blocks of each level, on the way down and again on the way up (the coarsest has one way).
    deviation_scale : float
        Times what the network says of its deviation: 1 in training, calibrated when it is exported.
    """

    channels = CHANNELS

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
        if len(widths) > MOST_LEVELS or sum(blocks) > MOST_BLOCKS:
            raise ValueError(
                f"expected at most {MOST_LEVELS} levels and {MOST_BLOCKS} blocks, got {len(widths)} and {sum(blocks)}"
            )
        if not deviation_scale > 0:
            raise ValueError(f"deviation_scale must be > 0, got {deviation_scale}")
        self.deviation_scale = deviation_scale
        self.options: dict[str, Any] = {
            "widths": list(widths),
            "blocks": list(blocks),
            "deviation_scale": deviation_scale,
        }
        self.size_multiple = max(2 ** len(widths), 2 * CELL)
        self.enter = nn.Conv2d(4 * len(CHANNELS), widths[0], 3, padding=1)
        self.down = nn.ModuleList(_blocks(width, n) for width, n in zip(widths, blocks, strict=True))
        pairs = list(pairwise(widths))
        self.coarser = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.finer = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
        self.up = nn.ModuleList(_blocks(width, n) for width, n in zip(widths[:-1], blocks[:-1], strict=True))
        self.leave = _begun_at_zero(nn.Conv2d(widths[0], 4 + 4 + 1, 3, padding=1))
        self.detail = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        nn.init.dirac_(self.detail.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return mean and standard deviation.

        Parameters
        ----------
        x : (batch, 5, rows, cols) Tensor
            Linear and cubic infill, measured values (0 elsewhere), mask, distance [pixel]; rows and cols multiples of
            `size_multiple`.

        Returns
        -------
        (batch, 2, rows, cols) Tensor
        """
        linear, cubic, sparse, mask, distance = functional.pixel_unshuffle(x, 2).split(4, 1)
        mean, contrast = _local(linear.mean(1, keepdim=True))
        near = distance.clamp(max=FARTHEST_PX) / FARTHEST_PX
        seen = [(linear - mean) / contrast, (cubic - mean) / contrast, (sparse - mask * mean) / contrast, mask, near]
        features = self.enter(torch.cat(seen, 1))
        skips = []
        for blocks, coarser in zip(self.down, self.coarser, strict=False):
            features = blocks(features)
            skips.append(features)
            features = coarser(features)
        features = self.down[-1](features)
        for i in reversed(range(len(skips))):
            features = self.up[i](self.finer[i](features) + skips[i])
        residual, spread, trust = self.leave(features).split([4, 4, 1], 1)
        residual = residual + trust * self.detail(seen[1] - seen[0])
        deviation = (functional.softplus(spread) + LEAST_DEVIATION) * (self.deviation_scale * contrast)
        picture = _low_passed(x[:, :1] + functional.pixel_shuffle(residual * contrast, 2))
        far = FAR_DEVIATION * (x[:, -1:] / FARTHEST_PX - 1).clamp(0, 1)
        return torch.cat([picture, torch.maximum(functional.pixel_shuffle(deviation, 2), far)], 1)


def _low_passed(picture: torch.Tensor) -> torch.Tensor:
    """Return pictures by `LOW_PASS` along both axes, edges repeated; as sums, for convolutions may round to BF16."""
    centre, *beside = LOW_PASS
    for axis in (2, 3):
        n = picture.shape[axis]
        first, last = picture.narrow(axis, 0, 1), picture.narrow(axis, n - 1, 1)
        reach = len(beside)
        padded = torch.cat([first] * reach + [picture] + [last] * reach, axis)
        moved = [padded.narrow(axis, k, n) for k in range(2 * reach + 1)]
        picture = centre * picture
        for k, weight in enumerate(beside, 1):
            picture = picture + weight * (moved[reach - k] + moved[reach + k])
    return picture


def _local(picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return local means and standard deviations of (batch, 1, rows, cols), of the same shape."""
    mean = _smooth(picture)
    away = (picture - mean).clamp(-MOST_CONTRAST, MOST_CONTRAST)
    return mean, (_smooth(away.square()) + LEAST_CONTRAST**2).sqrt()


def _smooth(picture: torch.Tensor) -> torch.Tensor:
    """Return the means of cells and their neighbours, bilinear in between."""
    cells = functional.avg_pool2d(functional.avg_pool2d(picture, CELL), 3, 1, 1, count_include_pad=False)
    return functional.interpolate(cells, scale_factor=float(CELL), mode="bilinear", align_corners=False)


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
