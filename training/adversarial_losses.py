"""Least-squares adversarial losses (imports torch only).

Sources: X. Mao et al., arXiv:1611.04076; DLSS-STEM (Ede 2019, arXiv:1910.10467).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Return the (batch,) sum over scales of (D(truth) - 1)^2 + D(output)^2 (least squares, arXiv:1611.04076).

    No scale shares weights with another: the gradients are those of one loss per discriminator.

    Parameters
    ----------
    real, fake : sequence of (batch,) or (batch, 1) Tensor
        What each discriminator says of unblurred truths and of outputs without gradient (`detach()`).
    """
    return _sum_over_scales([(r - 1).square() + f.square() for r, f in zip(real, fake, strict=True)])


def adversarial_loss(fake: Sequence[Tensor], *, weight: float = 2.0) -> Tensor:
    """Return weight x the (batch,) sum over scales of (D(output) - 1)^2: the generator's term.

    The weight is of the sum. Three scales at 2 are close to partial STEM's 5 x the mean. (Both papers print
    D(output - 1)^2, a slip.)

    Parameters
    ----------
    fake : sequence of (batch,) or (batch, 1) Tensor
        What each discriminator says of the outputs, with gradient.
    weight : float
        Beside `blurred_pixel_loss` of weight 1.
    """
    return weight * _sum_over_scales([(f - 1).square() for f in fake])


def _sum_over_scales(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack([term.flatten(1).mean(dim=1) if term.ndim > 1 else term for term in terms]).sum(dim=0)
