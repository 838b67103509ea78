"""Losses for training on sharp, noisy targets: examples are weighted by the error that their noise explains.

Source: DLSS-STEM (Ede 2019, arXiv:1910.10467), equations 4 and 6.
"""

from __future__ import annotations

import torch
from torch import Tensor


def keep_measured(output: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Return `output` with the values of `truth` where `mask` is True (measured): those add nothing to a loss.

    For networks trained on sharp targets (DLSS-STEM, figure 5); at inference the measured values go to the same places.
    """
    return torch.where(mask, truth, output)


def noise_predictor_loss(predicted: Tensor, error: Tensor) -> Tensor:
    """Return the (batch,) mean over crops of (M(crop) - error)^2 (DLSS-STEM, equation 4).

    Parameters
    ----------
    predicted : (batch, crops) Tensor
        M's guess from each crop.
    error : (batch,) Tensor
        What it is to guess, `pixel_loss` of the generator; no gradient flows into it.
    """
    return (predicted - error.detach()[:, None]).square().mean(dim=1)


def noise_homogenised(error: Tensor, predicted: Tensor, mean_error: float, *, floor: float = 0.1) -> Tensor:
    """Return error mean_error / max(mean of M(crops), floor): noisy pictures count like clean ones.

    ALRC of this is equation 6 of DLSS-STEM. (The public script clips first and divides crop by crop; this is the
    paper's way.) `mean_error` is that of the error itself, from an ALRC of its own. The ALRC that caps the result
    follows what it scales: taken from there the factor would have no anchor and drift.

    Parameters
    ----------
    error : (batch,) Tensor
        `pixel_loss` of the generator, known pixels replaced (`keep_measured`).
    predicted : (batch, crops) Tensor
        M's guesses; no gradient flows into them.
    mean_error : float
        `mu1` of an ALRC that sees `error`.
    floor : float
        Least prediction believed.
    """
    return error * mean_error / predicted.detach().mean(dim=1).clamp(min=floor)
