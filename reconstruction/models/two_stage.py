"""The two-stage generator that completes sparse scans: an inner network at half size, an outer one at full size."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from lowdose.reconstruction.models.layers import (
    ConvLayer,
    MeanSource,
    ResidualBlock,
    folded_state,
    require_choice,
    scaled,
)

Variant = Literal["A", "paper"]
HalfSize = Literal["decimate", "average"]

INNER_CHANNELS = (64, 128, 256, 512, 768)
OUTER_CHANNELS = (32, 64)
INNER_BLOCKS, OUTER_BLOCKS, CONVS_PER_BLOCK = 6, 3, 3
FIRST_SLOPE, SLOPE = 0.1, 0.01
"""Of the leaky ReLUs after the first layers, and after all others."""


class TwoStageGenerator(nn.Module):
    """Two-stage generator: outer(inner(half(x)), x).

    106,140,994 trainable parameters and 60.5 GMAC at 512 × 512, with one input channel; any size that is a multiple of
    32 works. `plain=True` builds the network that `folded` returns, without a network to fold: `load_state_dict` then
    takes the initialisers of an engine file by their names. Built under `torch.device("meta")` and loaded with
    `assign=True` it costs no more than reading the weights.

    Parameters
    ----------
    input_channels : int
        1: the infilled scan. 2: the scan and the path of the beam.
    variant : "A" or "paper"
        "A", with which the published errors were measured, subtracts means after the first layers and the transposed
        convolutions only and has leaky ReLUs. "paper" subtracts them after all layers but the last and has ReLUs.
    width : float
        Scales the channels of every layer.
    half_size : "decimate" or "average"
        How the inner network's input is made: every second pixel, as published, or means of 2 × 2.
    mean_source : "running" or "current"
        Of the means subtracted at inference; see `ConvLayer`.
    unit_inputs : bool
        The scan comes in [-1, 1], as live reconstruction gives it, and is brought to [0, 1], in which the network was
        trained; where the path, if given, did not go it stays 0.
    plain : bool
        Without normalisations, for inference.

    References
    ----------
    J. M. Ede, R. Beanland, "Partial scanning transmission electron microscopy with deep learning", Sci. Rep. 10, 8332
    (2020), doi:10.1038/s41598-020-65261-0; J. M. Ede, "Deep learning supersampled scanning transmission electron
    microscopy", arXiv:1910.10467.
    """

    size_multiple: ClassVar[int] = 32

    def __init__(
        self,
        input_channels: int = 1,
        *,
        variant: Variant = "A",
        width: float = 1.0,
        half_size: HalfSize = "decimate",
        mean_source: MeanSource = "running",
        unit_inputs: bool = False,
        plain: bool = False,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "input_channels": input_channels,
            "variant": variant,
            "width": width,
            "half_size": half_size,
            "mean_source": mean_source,
            "unit_inputs": unit_inputs,
            "plain": plain,
        }
        require_choice("half_size", half_size, get_args(HalfSize))
        layers = _Layers(variant, width, mean_source, plain)
        self.inner = Inner(input_channels, layers)
        self.outer = Outer(input_channels, layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (batch, 1, rows, cols) completed scan of (batch, channels, rows, cols) inputs."""
        return self.forward_with_features(x)[0]

    def forward_with_features(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the completed scan and the inner network's features.

        Parameters
        ----------
        x : (batch, channels, rows, cols) Tensor
            Rows and columns are multiples of 32.

        Returns
        -------
        completed : (batch, 1, rows, cols) Tensor
        features : (batch, 64 * width, rows / 2, cols / 2) Tensor
            What `InnerTrainer` takes.
        """
        self._check(x)
        if self.options["unit_inputs"]:
            x = _to_unit_range(x)
        features = self.inner(halve(x, self.options["half_size"]))
        return self.outer(features, x), features

    def folded(self) -> TwoStageGenerator:
        """Return the plain network with the same outputs: its running means, gains and norms are part of the weights.

        Raises
        ------
        ValueError
            If `mean_source` is "current".
        """
        with torch.device("meta"):
            plain = TwoStageGenerator(**{**self.options, "plain": True})
        plain.load_state_dict(folded_state(self), assign=True)
        return plain.train(self.training)

    def _check(self, x: torch.Tensor) -> None:
        expected = self.options["input_channels"]
        if x.ndim != 4 or x.shape[1] != expected:
            raise ValueError(f"inputs must be (batch, {expected}, rows, cols), got {tuple(x.shape)}")
        if x.shape[2] % self.size_multiple or x.shape[3] % self.size_multiple:
            raise ValueError(
                f"rows and columns must be multiples of {self.size_multiple}, got {x.shape[2]} × {x.shape[3]}: pad them"
            )


class InnerTrainer(nn.Module):
    """Turns the inner network's features into a half-size scan, in training only, so that they come to show it.

    37,570 trainable parameters; its target is the halved, blurred truth.

    Parameters
    ----------
    variant, width, mean_source
        As of the generator.
    """

    def __init__(self, *, variant: Variant = "A", width: float = 1.0, mean_source: MeanSource = "running") -> None:
        super().__init__()
        layers = _Layers(variant, width, mean_source, plain=False)
        features = layers.scaled(INNER_CHANNELS[0])
        self.layers = nn.Sequential(layers.conv(features, features), layers.last(features))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the (batch, 1, rows / 2, cols / 2) scan that features show."""
        scan: torch.Tensor = self.layers(features)
        return scan


class Inner(nn.Module):
    """Inner network: the halved inputs to 64 features for each of their pixels."""

    def __init__(self, input_channels: int, layers: _Layers) -> None:
        super().__init__()
        channels = [layers.scaled(c) for c in INNER_CHANNELS]
        down = list(pairwise(channels))
        self.encode = nn.Sequential(
            layers.first(input_channels, channels[0]), *(layers.conv(i, o, stride=2) for i, o in down)
        )
        self.blocks = nn.Sequential(*(layers.block(channels[-1]) for _ in range(INNER_BLOCKS)))
        self.decode = nn.Sequential(*(layers.upsample(o, i) for i, o in reversed(down)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, 64 * width, rows, cols) features of (batch, channels, rows, cols) inputs."""
        features: torch.Tensor = self.decode(self.blocks(self.encode(x)))
        return features


class Outer(nn.Module):
    """Outer network: full-size inputs and the inner network's features to the completed scan."""

    def __init__(self, input_channels: int, layers: _Layers) -> None:
        super().__init__()
        full, half = (layers.scaled(c) for c in OUTER_CHANNELS)
        self.encode = nn.Sequential(
            layers.first(input_channels, full), layers.conv(full, half, stride=2, slope=FIRST_SLOPE)
        )
        self.blocks = nn.Sequential(*(layers.block(half) for _ in range(OUTER_BLOCKS)))
        self.decode = nn.Sequential(layers.upsample(half, full), layers.conv(full, full), layers.last(full))

    def forward(self, features: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the (batch, 1, rows, cols) completed scan."""
        completed: torch.Tensor = self.decode(self.blocks(self.encode(x) + features))
        return completed


def halve(pictures: torch.Tensor, how: HalfSize) -> torch.Tensor:
    """Return pictures at half size: (..., rows, cols) to (..., rows / 2, cols / 2).

    "decimate" takes every second pixel from the first on, which is what the published bilinear resize did.
    """
    return pictures[..., ::2, ::2] if how == "decimate" else functional.avg_pool2d(pictures, 2)


def _to_unit_range(x: torch.Tensor) -> torch.Tensor:
    scan = 0.5 * x[:, :1] + 0.5
    if x.shape[1] == 1:
        return scan
    path = x[:, 1:]
    return torch.cat([scan * (path > 0).to(scan.dtype), path], 1)


@dataclass(frozen=True, slots=True)
class _Layers:
    """Makes the layers as the variant has them."""

    variant: Variant
    width: float
    mean_source: MeanSource
    plain: bool

    def __post_init__(self) -> None:
        require_choice("variant", self.variant, get_args(Variant))
        require_choice("mean_source", self.mean_source, get_args(MeanSource))

    def scaled(self, channels: int) -> int:
        return scaled(channels, self.width)

    def first(self, inputs: int, outputs: int) -> ConvLayer:
        return self.conv(inputs, outputs, kernel=5, slope=FIRST_SLOPE, centred=True)

    def upsample(self, inputs: int, outputs: int) -> ConvLayer:
        return self.conv(inputs, outputs, stride=2, transposed=True, centred=True)

    def block(self, channels: int) -> ResidualBlock:
        return ResidualBlock(*(self.conv(channels, channels) for _ in range(CONVS_PER_BLOCK)))

    def last(self, inputs: int) -> ConvLayer:
        return ConvLayer(inputs, 1, plain=self.plain)

    def conv(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        transposed: bool = False,
        slope: float = SLOPE,
        centred: bool = False,
    ) -> ConvLayer:
        paper = self.variant == "paper"
        return ConvLayer(
            inputs,
            outputs,
            kernel=kernel,
            stride=stride,
            transposed=transposed,
            slope=0.0 if paper else slope,
            centred=centred or paper,
            mean_source=self.mean_source,
            plain=self.plain,
        )
