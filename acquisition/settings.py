"""Settings of the scan, the beam and the network, as they stand in YAML (imports pydantic only)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lowdose.scan_patterns.grid import MAX_EDGE, ScanGrid

MAX_PORT = 65_535
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of every settings model: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GridSettings(Settings):
    """The field of view."""

    rows: Annotated[int, Field(ge=1, le=MAX_EDGE)] = 512
    cols: Annotated[int, Field(ge=1, le=MAX_EDGE)] = 512
    pixel_size_nm: Positive = 0.05
    rotation_deg: Annotated[float, Field(allow_inf_nan=False)] = 0.0

    def build(self) -> ScanGrid:
        """Return the grid these settings name."""
        return ScanGrid((self.rows, self.cols), self.pixel_size_nm, self.rotation_deg)


class BeamSettings(Settings):
    """The probe."""

    current_pa: Positive = 25.0
    energy_kev: Positive = 200.0


class ScanSettings(Settings):
    """What is scanned, and how fast. `pattern` holds a row of the pattern table and its parameters."""

    pattern: dict[str, Any] = Field(default={"name": "spiral", "coverage": 1 / 20})
    dwell_time_us: Positive = 1.0
    channels: Annotated[tuple[str, ...], Field(min_length=1, max_length=8)] = ("HAADF",)
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("channels")
    @classmethod
    def _channels_differ(cls, channels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(channels)) != len(channels):
            raise ValueError(f"channels must differ, got {', '.join(channels)}")
        if not all(name and name.isprintable() for name in channels):
            raise ValueError(f"channels need names of printable characters, got {list(channels)}")
        return channels


class DoseSettings(Settings):
    """The dose one area may receive; null = no budget."""

    budget_e_per_a2: Positive | None = None


class SafetySettings(Settings):
    """Bounds after which the beam is blanked. A frame's own pace stretches the block deadline, never shortens it."""

    lease_s: Annotated[float, Field(gt=0, le=60)] = 1.0
    block_deadline_ms: Annotated[float, Field(gt=0, le=60_000)] = 50.0
    block_deadline_blocks: Annotated[float, Field(ge=1, le=100)] = 3.0
    late_ms: Annotated[float, Field(gt=0, le=60_000)] = 5.0
    check_every_ms: Annotated[float, Field(gt=0, le=100)] = 2.0
    record_stall_ms: Annotated[float, Field(ge=100, le=60_000)] = 500.0
    blank_timeout_s: Annotated[float, Field(gt=0, le=10)] = 0.1
    allow_no_dead_man: bool = False


class RecordSettings(Settings):
    """Where everything measured goes: null = nothing is recorded from the beginning.

    `fsync` says when to wait until the disk itself has it: never, after every chunk (200 ms), or when the file is
    closed. `frames` adds completed frames; they may be dropped, which the file counts, and never hold up anything.
    """

    path: str | None = None
    fsync: Literal["never", "chunk", "close"] = "close"
    frames: bool = False


class NetworkSettings(Settings):
    """Endpoints of the services; only loopback may be bound."""

    control: str = "tcp://127.0.0.1:5750"
    samples: str = "tcp://127.0.0.1:5751"
    record: str = "tcp://127.0.0.1:5752"
    frames: str = "tcp://127.0.0.1:5753"

    @field_validator("control", "samples", "record", "frames")
    @classmethod
    def _known_transport(cls, endpoint: str) -> str:
        if not endpoint.startswith(("tcp://", "ipc://", "inproc://")):
            raise ValueError(f"endpoint must begin with tcp://, ipc:// or inproc://, got {endpoint!r}")
        port = endpoint.rpartition(":")[2]
        if endpoint.startswith("tcp://") and not (port.isdecimal() and int(port) <= MAX_PORT):
            raise ValueError(f"port must be 0 to {MAX_PORT}, got {endpoint!r}: expected tcp://127.0.0.1:PORT")
        return endpoint


Pacing = Literal["real_time", "as_fast_as_possible"]
