"""Parity: how far two runs of one network may differ (imports numpy only)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import Precision

MAX_DIFFERENCE: dict[Precision, float] = {"FP32": 1e-4, "BF16": 3e-2, "FP16": 5e-3}
"""RMS(difference) / std(reference): more is no rounding of the precision."""


def relative_rms(output: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return RMS(output - reference) / std(reference), in double precision.

    Examples
    --------
    >>> import numpy as np
    >>> round(relative_rms(np.float32([1.1, 3.1]), np.float32([1, 3])), 6)
    0.1
    """
    difference = output.astype(np.float64) - reference
    return float(np.sqrt(np.mean(difference**2)) / max(float(np.std(reference, dtype=np.float64)), 1e-12))
