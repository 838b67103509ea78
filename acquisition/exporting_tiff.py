"""TIFF as ImageJ reads it, calibrated (imports tifffile)."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from lowdose.acquisition.exporting import ExportError, ExportFrame

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO, Self

    from lowdose.acquisition.exporting import ExportPlan, Layer

MAX_TIFF_BYTES = (1 << 32) - (1 << 25)
"""An ImageJ hyperstack is one classic TIFF: 4 GiB with its labels."""
MAX_LABELS = 10_000


class TiffFolder:
    """A folder with one ImageJ hyperstack for each layer and ``metadata.json``.

    Parameters
    ----------
    path : Path
        The folder to make.
    plan : ExportPlan
        What comes.
    """

    def __init__(self, path: Path, plan: ExportPlan) -> None:
        for layer in plan.layers:
            size = int(np.prod(plan.shape_of(layer))) * np.dtype(plan.dtype(layer)).itemsize
            if size > MAX_TIFF_BYTES:
                raise ExportError(
                    f"{layer} has {size / 2**30:.1f} GiB, ImageJ's TIFF holds 4 GiB: export fewer --frames, or zarr"
                )
        path.mkdir()
        self._path, self._plan = path, plan
        self._facts: list[dict[str, Any]] = []
        self._opened = ExitStack()
        self._files: dict[Layer, BinaryIO] = {}

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._files = {layer: opened.enter_context(self._stack(layer)) for layer in self._plan.layers}
            self._opened = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._opened.close()
        described = {**self._plan.described(), "frames": self._facts}
        text = json.dumps(described, indent=2, ensure_ascii=False)
        (self._path / "metadata.json").write_text(text + "\n", encoding="utf-8")

    def add(self, frame: ExportFrame) -> None:
        """Write a frame behind those before it."""
        self._facts.append({name: getattr(frame, name) for name in ExportFrame.FACTS})
        for layer, file in self._files.items():
            file.write(np.ascontiguousarray(frame.layers[layer], self._plan.dtype(layer)).data)

    def _labels(self, layer: Layer) -> list[str]:
        """Return what ImageJ shows above each picture; of very many, above the first only."""
        labels = [f"{name}: {self._plan.label(layer)}" for name in self._plan.channels_of(layer)]
        return labels * self._plan.n_frames if self._plan.n_frames * len(labels) <= MAX_LABELS else labels[:1]

    def _stack(self, layer: Layer) -> BinaryIO:
        """Make an empty hyperstack, and return it open where its first frame belongs."""
        plan, path = self._plan, self._path / f"{layer}.tif"
        step, unit = plan.pixel_of(layer)  # to ImageJ, pictures in pixels are not calibrated
        tifffile.imwrite(
            path,
            shape=plan.shape_of(layer),
            dtype=plan.dtype(layer),
            byteorder="<",
            imagej=True,
            resolution=(1 / step, 1 / step),
            metadata={
                "axes": "TCYX",
                "unit": unit,
                "finterval": plan.frame_time_s,
                "Labels": self._labels(layer),
                "Info": json.dumps(plan.described(), indent=1),
            },
        )
        with tifffile.TiffFile(path) as made:
            offset = made.series[0].dataoffset
        if offset is None:
            raise ExportError(f"{path.name} is not contiguous: this version of tifffile cannot be used")
        file = path.open("r+b")
        file.seek(offset)
        return file
