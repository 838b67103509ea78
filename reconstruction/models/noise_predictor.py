"""A small network that predicts from the noise of a scan how large the error of its completion is (imports torch)."""

from __future__ import annotations

import torch
from torch import nn

CROP_PX = 5
CROPS = 20


class NoisePredictor(nn.Module):
    """Perceptron of 23,001 trainable parameters that sees 5 × 5 crops, one network for all of them.

    Parameters
    ----------
    per_pixel : bool
        See each pixel of a crop alone and give the mean, as the published code did (20,601 parameters). That is blind
        to how a pixel differs from its neighbours, which is what noise is.

    References
    ----------
    J. M. Ede, arXiv:1910.10467, eqs. (4) to (6).
    """

    def __init__(self, *, per_pixel: bool = False) -> None:
        super().__init__()
        self.per_pixel = per_pixel
        inputs = 1 if per_pixel else CROP_PX**2
        self.layers = nn.Sequential(
            nn.Linear(inputs, 100), nn.ReLU(), nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 1)
        )

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Return the (...) predicted errors of (..., 5, 5) crops."""
        pixels = crops.flatten(-2)
        if not self.per_pixel:
            predicted: torch.Tensor = self.layers(pixels).squeeze(-1)
            return predicted
        of_pixels: torch.Tensor = self.layers(pixels.unsqueeze(-1)).squeeze(-1)
        return of_pixels.mean(-1)


def random_crops(scans: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return 20 crops of each scan from anywhere in it.

    Parameters
    ----------
    scans : (batch, 1, rows, cols) Tensor
        In [-1, 1]; at least 5 × 5.
    generator : torch.Generator, optional
        Of the places; on the CPU.

    Returns
    -------
    (batch, 20, 5, 5) Tensor
    """
    batch, _, rows, cols = scans.shape
    if min(rows, cols) < CROP_PX:
        raise ValueError(f"scans must be at least {CROP_PX} × {CROP_PX}, got {rows} × {cols}")
    tops = torch.randint(rows - CROP_PX + 1, (batch, CROPS, 1, 1), generator=generator)
    lefts = torch.randint(cols - CROP_PX + 1, (batch, CROPS, 1, 1), generator=generator)
    steps = torch.arange(CROP_PX)
    places = (tops + steps[:, None]) * cols + lefts + steps  # (batch, 20, 5, 5)
    return scans.flatten(1).gather(1, places.flatten(1).to(scans.device)).view(places.shape)
