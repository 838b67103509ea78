"""Zarr v3 (imports zarr)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zarr

from lowdose.acquisition.exporting import ExportFrame

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from lowdose.acquisition.exporting import ExportPlan


class ZarrStore:
    """A Zarr v3 group with one array for each layer, a chunk for each picture, not sharded.

    Parameters
    ----------
    path : Path
        The store to make.
    plan : ExportPlan
        What comes.
    """

    def __init__(self, path: Path, plan: ExportPlan) -> None:
        self._group = zarr.open_group(path, mode="w-", zarr_format=3, attributes=plan.described())
        self._arrays = {
            layer: self._group.create_array(
                layer,
                shape=plan.shape_of(layer),
                chunks=(1, 1, *plan.grid_of(layer).shape),
                dtype=plan.dtype(layer),
                dimension_names=("frame", "channel", "row", "col"),
                attributes={
                    **plan.described_layer(layer),
                    "channels": list(plan.channels_of(layer)),
                    "frame_time_s": plan.frame_time_s,
                },
            )
            for layer in plan.layers
        }
        self._facts: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._group.attrs["frames"] = self._facts

    def add(self, frame: ExportFrame) -> None:
        """Write a frame."""
        for layer, array in self._arrays.items():
            array[len(self._facts)] = frame.layers[layer]
        self._facts.append({name: getattr(frame, name) for name in ExportFrame.FACTS})
