"""Classical engines: nearest and linear infill, no training, always there (imports numpy only)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowdose.reconstruction.engine import Channel, EngineInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

CORRELATION_PX = 8.0
"""Distance over which a placeholder guess loses half its confidence [pixel]."""


class _InfillEngine:
    """Hands on one infilled channel, with an uncertainty that grows with the distance to what was measured.

    The uncertainty is a placeholder: distance / (distance + 8 px) standard deviations of the measured values.
    """

    def __init__(self, channel: Channel) -> None:
        self.info = EngineInfo(
            name=channel,
            version="1",
            digest="",
            precision="FP32",
            task="complete",
            scale=1,
            channels=(channel, "distance"),
            normalisation="mean_std",
            target="sharp",
            size_multiple=1,
            halo_px=0,
            keeps_measured=True,
            uncertainty_kind="placeholder",
        )

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the infilled channel and its placeholder uncertainty."""
        out = np.empty((len(inputs), 2, *inputs.shape[2:]), np.float32)
        out[:, 0] = inputs[:, 0]
        np.add(inputs[:, 1], np.float32(CORRELATION_PX), out=out[:, 1])
        np.divide(inputs[:, 1], out[:, 1], out=out[:, 1])
        return out


class NearestEngine(_InfillEngine):
    """Every pixel takes the nearest measured value."""

    def __init__(self) -> None:
        super().__init__("nearest")


class LinearEngine(_InfillEngine):
    """Piecewise linear over the Delaunay triangles of the measured pixels; bilinear on a lattice."""

    def __init__(self) -> None:
        super().__init__("linear")
