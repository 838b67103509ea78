"""Completion for scripts: measured values and a mask in, the whole picture and its uncertainty out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdose.reconstruction.infill import PathMaps, linear_map, nearest_map
from lowdose.reconstruction.lattice_infill import lattice_maps
from lowdose.reconstruction.pipeline import Reconstructor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import Engine, EngineInfo

MIN_EDGE_PX, MAX_PIXELS = 8, 1 << 28
MAX_VALUE = 1e30
"""What comes out is float32."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A completed picture and its uncertainty, both (rows, cols) float32, the engine that made them, and the maps."""

    image: NDArray[np.float32]
    uncertainty: NDArray[np.float32]
    info: EngineInfo
    maps: PathMaps


def completed(values: NDArray[Any], mask: NDArray[Any], *, engine: Engine, maps: PathMaps | None = None) -> Completed:
    """Return a completed picture; see `lowdose.reconstruction.complete`. Maps of the mask need not be made twice."""
    if not (hasattr(engine, "info") and hasattr(engine, "run")):
        raise ValueError(f"engine must be the name of one, or have info and run, got {type(engine).__name__}")
    values, mask = np.asarray(values), np.asarray(mask)
    _require_usable(values, mask)
    measured = mask.astype(np.bool_)
    seen = values[measured].astype(np.float64)
    if (largest := float(np.abs(seen).max())) > MAX_VALUE:
        raise ValueError(f"measured values must be at most {MAX_VALUE:g}, got {largest:g}: use a larger unit")
    offset = float(seen.mean())
    scale = float(seen.std()) or abs(offset) or 1.0  # amperes or counts: float32 is to hold what matters
    plain = np.zeros(values.shape, np.float32)
    plain[measured] = (seen - offset) / scale
    maps = maps or all_maps(measured)
    reconstructor = Reconstructor([engine])
    try:
        hits = measured.astype(np.uint16)
        (image,), (uncertainty,), info = reconstructor.complete_values(plain[None], hits, maps)
    finally:
        reconstructor.close()
    if reconstructor.engine_failures:
        raise RuntimeError(f"engine '{engine.info.name}' failed: {reconstructor.engine_error}")
    return Completed((image * scale + offset).astype(np.float32), (uncertainty * scale).astype(np.float32), info, maps)


def all_maps(mask: NDArray[np.bool_]) -> PathMaps:
    """Return all infill maps of a mask, worked out now; where no triangle can be made linear infill is nearest."""
    if (on_lattice := lattice_maps(mask)) is not None:
        return on_lattice
    nearest, distance = nearest_map(mask)
    return PathMaps(nearest, distance, linear_map(mask, nearest))


def _require_usable(values: NDArray[Any], mask: NDArray[Any]) -> None:
    if values.ndim != 2 or values.shape != mask.shape:
        raise ValueError(f"values and mask must be pictures of one shape, got {values.shape} and {mask.shape}")
    if min(values.shape) < MIN_EDGE_PX or values.size > MAX_PIXELS:
        raise ValueError(
            f"pictures must have {MIN_EDGE_PX} pixels along each edge and {MAX_PIXELS:,} in all at most, "
            f"got {values.shape}"
        )
    if values.dtype.kind not in "iufb":
        raise ValueError(f"values must be real numbers, got {values.dtype}")
    if mask.dtype.kind not in "biu":
        raise ValueError(f"the mask must be of bool (True = measured) or integers, got {mask.dtype}")
    if not mask.any():
        raise ValueError("nothing is measured: expected at least one True in the mask")
    if not np.isfinite(values[mask.astype(np.bool_)]).all():
        raise ValueError("measured values must be finite: leave those that are not out of the mask")
