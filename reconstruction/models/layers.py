"""Convolutions with weight normalisation and mean-only batch normalisation, and how to fold both away (imports torch).

Padding is PyTorch's symmetric `kernel // 2`, and one more row and column at the end of a transposed convolution: a
stride of 2 halves and doubles sizes exactly, output pixel i of a strided layer is centred on input pixel 2i, and the
transposed layer is its exact adjoint. TensorFlow's SAME, under which the networks were published, centres it on 2i + 1.
Trained from scratch this is the same network (and 2i is where decimation takes its pixels from); published weights
would not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

MeanSource = Literal["running", "current"]

RUNNING_MEAN_DECAY = 0.99
WEIGHT_DEVIATION = 0.05


class ConvLayer(nn.Module):
    """Convolution or transposed convolution, normalised, then its activation.

    activation(gain * conv(x, weight / |weight|) - mean + bias), with |weight| the Euclidean norm of what makes one
    output channel, and the mean that of the channel (mean-only batch normalisation) if the layer is centred, else 0. A
    plain layer is what remains after folding: activation(conv(x, weight) + bias).

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    kernel : int
        Rows and columns of the kernel; odd.
    stride : 1 or 2
        Output pixel per input pixel: 1/stride, or `stride` if transposed.
    transposed : bool
        Upsample.
    slope : float or None
        Of the leaky ReLU below 0; 0 is a ReLU, None is linear.
    centred : bool
        Subtract the mean. In training it is the batch's own until `frozen`, and a running mean follows it.
    mean_source : "running" or "current"
        Where else the mean comes from: the running mean, a constant that folds away, or always each picture's own, with
        which the published errors were measured.
    plain : bool
        Without normalisations; `centred` and `mean_source` mean nothing.

    References
    ----------
    T. Salimans, D. P. Kingma, "Weight normalization", NeurIPS 2016, arXiv:1602.07868.
    """

    running_mean: torch.Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        transposed: bool = False,
        slope: float | None = None,
        centred: bool = False,
        mean_source: MeanSource = "running",
        plain: bool = False,
    ) -> None:
        super().__init__()
        self.padding, self.stride, self.transposed, self.slope = kernel // 2, stride, transposed, slope
        self.centred, self.mean_source, self.frozen = centred and not plain, mean_source, False
        channels = (inputs, outputs) if transposed else (outputs, inputs)
        self.weight = nn.Parameter(torch.empty(*channels, kernel, kernel).normal_(std=WEIGHT_DEVIATION))
        self.gain = None if plain else nn.Parameter(torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        running = self.centred and mean_source == "running"
        self.register_buffer("running_mean", torch.zeros(outputs) if running else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (batch, outputs, rows', cols') activations of (batch, inputs, rows, cols) ones."""
        weight = self.normalised_weight()
        if self.centred and (self.mean_source == "current" or (self.training and not self.frozen)):
            x = self._convolve(x, weight, None)
            x = x + (self.bias.view(-1, 1, 1) - self._own_mean(x))
        else:
            x = self._convolve(x, weight, self.folded_bias())
        if self.slope is None:
            return x
        return functional.leaky_relu(x, self.slope) if self.slope else functional.relu(x)

    def normalised_weight(self) -> torch.Tensor:
        """Return the weight to convolve with, in the weight's own shape."""
        if self.gain is None:
            return self.weight
        axis = 1 if self.transposed else 0
        others = [a for a in range(4) if a != axis]
        norm: torch.Tensor = torch.linalg.vector_norm(self.weight, dim=others, keepdim=True)
        return self.weight * (self.gain.view_as(norm) / norm)

    def folded_bias(self) -> torch.Tensor:
        """Return the (outputs,) bias that the running mean, being a constant, is part of."""
        return self.bias if self.running_mean is None else self.bias - self.running_mean

    @torch.no_grad()
    def normalise_activations(self, x: torch.Tensor) -> None:
        """Set gain, bias and running mean such that `x` gives every channel mean 0 and variance 1."""
        if self.gain is None:
            raise ValueError("a plain layer has no gain: initialise the network it was folded from")
        self.gain.fill_(1)
        variance, mean = torch.var_mean(self._convolve(x, self.normalised_weight(), None), (0, 2, 3), correction=0)
        self.gain.copy_((variance + 1e-8).rsqrt())
        self.bias.copy_(-mean * self.gain)
        if self.centred:  # the mean is subtracted, once
            if self.running_mean is not None:
                self.running_mean.copy_(mean * self.gain)
            self.bias.zero_()

    def _own_mean(self, x: torch.Tensor) -> torch.Tensor:
        if self.running_mean is None:
            return x.mean((2, 3), keepdim=True)
        mean = x.mean((0, 2, 3))
        self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), 1 - RUNNING_MEAN_DECAY)  # in autocast
        return mean.view(-1, 1, 1)

    def _convolve(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not self.transposed:
            return functional.conv2d(x, weight, bias, self.stride, self.padding)
        return functional.conv_transpose2d(x, weight, bias, self.stride, self.padding, output_padding=self.stride - 1)


class ResidualBlock(nn.Sequential):
    """Layers whose input is added to their output, with no activation after the sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, channels, rows, cols) like `x`."""
        y = x
        for layer in self:
            y = layer(y)
        return x + y


def freeze_running_means(network: nn.Module, frozen: bool = True) -> None:
    """Keep the running means of a network as they are, and use them in training, too."""
    for layer in _conv_layers(network):
        layer.frozen = frozen


def initialise_from_example(network: nn.Module, *example: torch.Tensor) -> None:
    """Set gains, biases and running means such that `network(*example)` has normalised activations in every layer.

    Parameters
    ----------
    network : torch.nn.Module
        Each of its layers gives every channel mean 0 and variance 1 before the activation.
    *example : Tensor
        Its inputs: a typical one, or `uniform_example`.

    References
    ----------
    Section 3 of arXiv:1602.07868.
    """

    def normalise(layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if isinstance(layer, ConvLayer):
            layer.normalise_activations(*inputs)

    hooks = [layer.register_forward_pre_hook(normalise) for layer in _conv_layers(network)]
    try:
        with torch.no_grad():
            network(*example)
    finally:
        for hook in hooks:
            hook.remove()


def uniform_example(channels: int = 1, *, size: int = 512, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return a (1, channels, size, size) picture uniform in [-0.8, 0.8] (arXiv:1910.10467)."""
    return torch.empty(1, channels, size, size).uniform_(-0.8, 0.8, generator=generator)


def folded_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of the plain network that gives the same outputs: weight and bias of each convolution.

    Raises
    ------
    ValueError
        If a mean is each picture's own, which is no constant.
    """
    state = {}
    for name, layer in network.named_modules():
        if isinstance(layer, ConvLayer):
            if layer.centred and layer.running_mean is None:
                raise ValueError(f'{name} subtracts the mean of each picture: only mean_source="running" can be folded')
            state[f"{name}.weight"] = layer.normalised_weight().detach().clone()
            state[f"{name}.bias"] = layer.folded_bias().detach().clone()
    return state


def scaled(channels: int, width: float) -> int:
    """Return how many channels a layer of a network scaled by `width` has."""
    if not width > 0:
        raise ValueError(f"width must be > 0, got {width}")
    return max(1, round(channels * width))


def require_choice(name: str, got: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `got` is one of the choices."""
    if got not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {got!r}")


def _conv_layers(network: nn.Module) -> Iterator[ConvLayer]:
    return (module for module in network.modules() if isinstance(module, ConvLayer))
