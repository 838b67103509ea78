"""Discriminators that judge completed scans by crops of three sizes (imports torch)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from lowdose.reconstruction.models.layers import require_choice, scaled

Resize = Literal["average", "decimate"]

PATCH_PX = 70
CROP_SIZES_PX = (70, 140, 280)
REFLECTED_PX = 140
"""Every picture is continued by as much before a crop is drawn, against artefacts periodic in its position."""
SMALLEST_PX = 94
"""Reflected on both sides it is just as large as the largest crop."""


class MultiscaleDiscriminator(nn.Module):
    """Three discriminators of one layout, each for crops of one size; 8,263,488 trainable parameters.

    Parameters
    ----------
    width : float
        Scales the channels of every layer.
    resize : "average" or "decimate"
        How a crop becomes a patch of 70 × 70: means of 2 × 2 and 4 × 4, or every second and fourth pixel, as published.

    References
    ----------
    Layout and crops: doi:10.1038/s41598-020-65261-0, arXiv:1910.10467. Spectral normalisation: T. Miyato et al.,
    arXiv:1802.05957.
    """

    def __init__(self, *, width: float = 1.0, resize: Resize = "average") -> None:
        super().__init__()
        require_choice("resize", resize, get_args(Resize))
        self.resize: Resize = resize
        self.scales = nn.ModuleList(Discriminator(width=width) for _ in CROP_SIZES_PX)

    def forward(self, *pictures: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return how real pictures of the same places look.

        Parameters
        ----------
        *pictures : (batch, 1, rows, cols) Tensor
            In [-1, 1]; all are cropped at the same random places. At least 94 × 94.
        generator : torch.Generator, optional
            Of the places; on the CPU.

        Returns
        -------
        (pictures, scales, batch) Tensor
            1 is what real ones are trained to have, 0 generated ones.

        Raises
        ------
        ValueError
            If the pictures are too small, or differ in shape.
        """
        patches = same_patches(torch.stack(pictures, dim=1), generator=generator, resize=self.resize)
        verdicts = []
        for discriminator, patch in zip(self.scales, patches, strict=True):
            one_batch = patch.transpose(0, 1).reshape(-1, 1, PATCH_PX, PATCH_PX)  # (B, K, ...) -> (K * B, 1, ...)
            verdicts.append(discriminator(one_batch).view(len(pictures), -1))
        return torch.stack(verdicts, dim=1)


class Discriminator(nn.Sequential):
    """One discriminator: four spectrally normalised convolutions, their features summed; 2,754,496 parameters.

    Parameters
    ----------
    width : float
        Scales the channels of every layer.
    """

    def __init__(self, *, width: float = 1.0) -> None:
        channels = [1, *(scaled(c, width) for c in (64, 128, 256, 512))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(channels):
            convolution = nn.Conv2d(inputs, outputs, kernel_size=4, stride=2)
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]  # it has one
            layers += [parametrizations.spectral_norm(convolution, n_power_iterations=1), nn.LeakyReLU(0.2)]
        super().__init__(*layers)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return (batch,) verdicts on (batch, 1, 70, 70) patches."""
        features = patches
        for layer in self:
            features = layer(features)
        return features.sum((1, 2, 3))


def same_patches(
    pictures: torch.Tensor, *, generator: torch.Generator | None = None, resize: Resize = "average"
) -> tuple[torch.Tensor, ...]:
    """Return patches of every scale, at places of which each example has its own and all its pictures have the same.

    Parameters
    ----------
    pictures : (batch, pictures, 1, rows, cols) Tensor
        Reflected by 140 pixels, or as many as they have, before cropping: their least size is 94 × 94.
    generator : torch.Generator, optional
        Of the places; on the CPU.
    resize : "average" or "decimate"
        How larger crops become patches.

    Returns
    -------
    tuple of (batch, pictures, 70, 70) Tensor
        From crops of 70, 140 and 280 pixels.
    """
    rows, cols = pictures.shape[-2:]
    if min(rows, cols) < SMALLEST_PX:
        raise ValueError(
            f"pictures must be at least {SMALLEST_PX} × {SMALLEST_PX} for crops of {CROP_SIZES_PX[-1]} pixels, "
            f"got {rows} × {cols}: train on larger ones"
        )
    down, right = min(REFLECTED_PX, rows - 1), min(REFLECTED_PX, cols - 1)
    reflected = functional.pad(pictures.squeeze(2), (right, right, down, down), mode="reflect")
    return tuple(_shrink(_random_crops(reflected, size, generator), resize) for size in CROP_SIZES_PX)


def _random_crops(stacks: torch.Tensor, size: int, generator: torch.Generator | None) -> torch.Tensor:
    rows, cols = (n - size + 1 for n in stacks.shape[-2:])
    tops = torch.randint(rows, (len(stacks),), generator=generator).tolist()
    lefts = torch.randint(cols, (len(stacks),), generator=generator).tolist()
    crops = [s[:, top : top + size, left : left + size] for s, top, left in zip(stacks, tops, lefts, strict=True)]
    return torch.stack(crops)


def _shrink(crops: torch.Tensor, resize: Resize) -> torch.Tensor:
    factor = crops.shape[-1] // PATCH_PX
    return functional.avg_pool2d(crops, factor) if resize == "average" else crops[..., ::factor, ::factor]
