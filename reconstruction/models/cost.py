"""What one forward pass of a network costs, counted and not timed (imports torch)."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode


def gmac(network: torch.nn.Module, *inputs: torch.Tensor) -> float:
    """Return the cost of `network(*inputs)` [10^9 multiply-accumulates].

    Convolutions and matrix products count; biases, norms, activations and resizing do not. A transposed convolution
    costs input pixels × kernel area × input channels × output channels.

    Parameters
    ----------
    network : torch.nn.Module
        Runs once, as it stands: in training mode that moves its running statistics. On the device "meta" it computes
        nothing and the count is the same.
    *inputs : Tensor
        On the same device.

    Examples
    --------
    >>> import torch
    >>> gmac(torch.nn.Conv2d(2, 5, kernel_size=3, padding=1), torch.zeros(1, 2, 1000, 1000))
    0.09
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return float(counter.get_total_flops()) / 2 / 1e9
