"""LowdoseSettings: everything that can be configured, composed of each folder's own settings (imports pydantic)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from lowdose.acquisition.settings import (
    BeamSettings,
    DoseSettings,
    GridSettings,
    NetworkSettings,
    RecordSettings,
    SafetySettings,
    ScanSettings,
    Settings,
)
from lowdose.reconstruction.engines import AUTO


class StageSettings(Settings):
    """One stage of the reconstruction: a task and what does it.

    `complete` is "auto" or the name of an engine that comes with the package, one that needs no file ("linear"), the
    path of an engine file (NAME.onnx) or a user's own "module:Class"; the rest is for engine files: which runtime runs
    them, with what arithmetic on how many threads (0 = one for every core), how many pictures side by side, in tiles of
    which edge [pixel] (none = whole).
    """

    complete: str = AUTO
    runtime: Literal["auto", "openvino", "tensorrt", "torch", "torch_compiled", "torch_cuda_graph"] = "auto"
    precision: Literal["auto", "FP32", "BF16", "FP16"] = "auto"
    threads: int = Field(default=0, ge=0, le=256)
    streams: int = Field(default=1, ge=1, le=64)
    tile_px: int | None = Field(default=None, ge=64, le=8192)


class LowdoseSettings(Settings):
    """All settings of a session.

    `controller` and `specimen` name a row of their plug-in table, with its parameters beside the name.
    """

    grid: GridSettings = GridSettings()
    beam: BeamSettings = BeamSettings()
    scan: ScanSettings = ScanSettings()
    dose: DoseSettings = DoseSettings()
    controller: dict[str, Any] = Field(default={"name": "simulated"})
    specimen: dict[str, Any] = Field(default={"name": "procedural"})
    stages: Annotated[tuple[StageSettings, ...], Field(min_length=1, max_length=8)] = (StageSettings(),)
    record: RecordSettings = RecordSettings()
    safety: SafetySettings = SafetySettings()
    network: NetworkSettings = NetworkSettings()

    @field_validator("controller", "specimen")
    @classmethod
    def _has_a_name(cls, plug_in: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(plug_in.get("name"), str):
            raise ValueError("needs a name, such as {name: …}")
        return plug_in
