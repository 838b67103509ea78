"""The one-stage generator that enlarges a scan of a regular lattice of spots in one pass (imports torch)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from lowdose.reconstruction.models.layers import scaled

DOUBLINGS = 4
BLOCKS = 6


class OneStageGenerator(nn.Module):
    """One-stage generator: shrink in two steps to 1/16 of the output, six residual blocks, double four times.

    2,198,145 trainable parameters; 4.74 GMAC from the 103 × 103 spots of a 1/25 lattice to 512 × 512.

    Along an axis n pixels become b = round(n * scale / 16) in the middle and 16 b at the end: 512 from 103, as is
    published. With scale 1, 2 or 4, which live reconstruction asks for, the output is exactly scale * n, and n must be
    a multiple of 16, 8 or 4.

    Nothing is folded: the zeros a convolution pads with come after the normalisation before it, so that the edges would
    change.

    Parameters
    ----------
    input_channels : int
        1 as published.
    scale : float
        Pixels out per pixel in, along each axis; at most 16.
    width : float
        Scales the channels of every layer.

    References
    ----------
    J. M. Ede, "Deep learning supersampled scanning transmission electron microscopy", arXiv:1910.10467.
    """

    def __init__(self, input_channels: int = 1, *, scale: float = 512 / 103, width: float = 1.0) -> None:
        super().__init__()
        if not 0 < scale <= 2**DOUBLINGS:
            raise ValueError(f"scale must be > 0 and at most {2**DOUBLINGS}, got {scale}")
        self.options: dict[str, Any] = {"input_channels": input_channels, "scale": scale, "width": width}
        self.scale = scale
        self.size_multiple = math.ceil(2**DOUBLINGS / scale) if scale in (1, 2, 4) else 1
        c32, c64, c96, c128 = (scaled(c, width) for c in (32, 64, 96, 128))
        self.first = PreNormLayer(input_channels, c32, relu=False)
        self.shrink = nn.ModuleList([PreNormLayer(c32, c64), PreNormLayer(c64, c128)])
        self.blocks = nn.ModuleList(
            nn.Sequential(PreNormLayer(c128, c128), PreNormLayer(c128, c128)) for _ in range(BLOCKS)
        )
        widths = [c128, c128, c96, c64, c32]
        self.enlarge = nn.Sequential(*(PreNormLayer(i, o, transposed=True) for i, o in pairwise(widths)))
        self.last = PreNormLayer(c32, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (batch, 1, scale * rows, scale * cols) completed scan of (batch, channels, rows, cols) inputs."""
        sizes = [self._sizes(n) for n in x.shape[2:]]
        x = self.first(x)
        for layer, size in zip(self.shrink, zip(*sizes, strict=True), strict=True):
            x = layer(x, size)
        for block in self.blocks:
            x = x + block(x)
        completed: torch.Tensor = self.last(self.enlarge(x))
        return completed

    def _sizes(self, n: int) -> tuple[int, int]:
        """Return how many pixels along an axis remain after the first and the second step down."""
        ratio = self.scale / 2**DOUBLINGS
        if self.scale == int(self.scale) and (n * int(self.scale)) % 2**DOUBLINGS:
            multiple = 2**DOUBLINGS // math.gcd(2**DOUBLINGS, int(self.scale))
            raise ValueError(f"with scale {self.scale} rows and columns must be multiples of {multiple}, got {n}")
        return max(1, math.floor(math.sqrt(ratio) * n + 0.5)), max(1, math.floor(ratio * n + 0.5))


class PreNormLayer(nn.Module):
    """ReLU, batch normalisation with an offset and no gain, bilinear resize if asked for, convolution.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    transposed : bool
        Double the size.
    relu, bias : bool
        Without them in the first and last layer.
    """

    def __init__(
        self, inputs: int, outputs: int, *, transposed: bool = False, relu: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.relu = relu
        self.norm = OffsetNorm(inputs)
        self.conv: nn.Conv2d | nn.ConvTranspose2d = (
            nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
            if transposed
            else nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
        )
        nn.init.xavier_uniform_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Return the (batch, outputs, rows', cols') activations, resized to `size` before the convolution."""
        x = self.norm(functional.relu(x) if self.relu else x)
        if size is not None:
            x = functional.interpolate(x, size, mode="bilinear", align_corners=True)
        y: torch.Tensor = self.conv(x)
        return y


class OffsetNorm(nn.Module):
    """Batch normalisation with a trained offset and no trained gain; running moments decay by 0.999."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, channels, rows, cols) like `x`; in training the moments are the batch's own."""
        return functional.batch_norm(
            x, self.running_mean, self.running_var, None, self.bias, self.training, momentum=0.001, eps=1e-3
        )
