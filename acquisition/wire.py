"""Messages to bytes and back: [topic, header, part, part, …], every byte distrusted (imports msgpack and pydantic).

The header is a msgpack map of at most 64 KiB: protocol version, type, the message's own fields and name, dtype and
shape of each part. Parts are raw C-order little-endian arrays. Nothing is allocated before all sizes agree, nothing is
imported or expanded from a message.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import msgpack
import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from lowdose.acquisition.frames import DenseFrame, EngineStamp
from lowdose.acquisition.messages import RecordAck, Reply, Request, SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.status import Event, StatusReport
from lowdose.scan_patterns.grid import ScanGrid
from lowdose.scan_patterns.path import ScanPath

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

PROTOCOL_VERSION = 1
MAX_HEADER_BYTES = 64 * 1024
MAX_PART_BYTES = 1 << 31
MAX_TOPIC = 32
MAX_PARTS = 8
MAX_PATHS = 1 << 16
MAX_COMPLAINT = 500
"""Longest error message [characters]: what it quotes may be as long as the sender likes."""

Message = ScanStart | SampleBlock | ScanEnd | DenseFrame | StatusReport | Event | Request | Reply | RecordAck
Topic = Literal["samples", "frames", "status", "control", "record"]
Buffer = bytes | memoryview
Fields = dict[str, Any]
Arrays = dict[str, "NDArray[Any]"]


class WireError(ValueError):
    """The bytes are not a message of this protocol."""


@dataclass(frozen=True)
class _Codec:
    """How one type travels: its topic, strictly typed header fields, parts by dtype and dimensions."""

    topic: Topic
    fields: dict[str, Any]
    parts: dict[str, tuple[str, int]]
    load: Callable[[Fields, Arrays], Message]
    dump: Callable[[Any], tuple[Fields, Arrays]] | None = None

    def taken_apart(self, message: Any) -> tuple[Fields, Arrays]:
        if self.dump is not None:
            return self.dump(message)
        return {n: getattr(message, n) for n in self.fields}, {n: getattr(message, n) for n in self.parts}


def encode(message: Message) -> list[Buffer]:
    """Return the message as [topic, header, part, …]; arrays are not copied when they lie in C order."""
    codec = _CODECS[type(message).__name__]
    fields, arrays = codec.taken_apart(message)
    parts = [np.ascontiguousarray(arrays[name], dtype) for name, (dtype, _) in codec.parts.items()]
    header = {
        "version": PROTOCOL_VERSION,
        "type": type(message).__name__,
        "fields": fields,
        "parts": [
            (name, dtype, part.shape) for (name, (dtype, _)), part in zip(codec.parts.items(), parts, strict=True)
        ],
    }
    packed = msgpack.packb(header)
    if len(packed) > MAX_HEADER_BYTES:
        raise WireError(f"header of {type(message).__name__} is {len(packed)} bytes, at most {MAX_HEADER_BYTES} fit")
    return [codec.topic.encode(), packed, *(_bytes_of(part) for part in parts)]


def decode(buffers: Sequence[Buffer]) -> Message:
    """Return the message; its arrays are read-only views of the buffers.

    Raises
    ------
    WireError
        Whatever the bytes are: wrong version, type, field, size or value. Never another exception.
    """
    try:
        return _decode(buffers)
    except RecursionError:  # quoting a value nested as deeply as msgpack allows
        raise WireError("header is nested too deeply") from None


def _decode(buffers: Sequence[Buffer]) -> Message:
    if not 2 <= len(buffers) <= 2 + MAX_PARTS:
        raise WireError(f"a message has 2 to {2 + MAX_PARTS} buffers, got {len(buffers)}")
    if len(buffers[1]) > MAX_HEADER_BYTES:
        raise WireError(f"header is {len(buffers[1])} bytes, at most {MAX_HEADER_BYTES} are read")
    try:
        header = msgpack.unpackb(buffers[1], use_list=False)
    except Exception as error:  # msgpack raises half a dozen kinds for bad bytes
        raise WireError(f"header is not msgpack: {error}") from None
    return decode_unpacked(header, bytes(buffers[0][:MAX_TOPIC]), buffers[2:])


def decode_unpacked(header: object, topic: bytes, parts: Sequence[Buffer]) -> Message:
    """Return the message whose header is unpacked already; see `decode`, but for a header nested too deeply."""
    kind = _kind_of(header)
    codec = _CODECS.get(kind)
    if codec is None or topic != codec.topic.encode():
        raise WireError(f"unknown message type {kind[:32]!r} under topic {topic!r}")
    described = cast("dict[str, Any]", header)
    try:
        fields = _HEADER_MODELS[kind].model_validate(described["fields"])
        arrays = _decode_parts(described["parts"], parts, codec.parts)
        return codec.load({name: getattr(fields, name) for name in codec.fields}, arrays)
    except (ValidationError, ValueError, TypeError, KeyError, OverflowError, IndexError) as error:
        raise WireError(f"bad {kind}: {error}"[:MAX_COMPLAINT]) from None


def _kind_of(header: object) -> str:
    """Return the type a header names; WireError if it is no header of this version."""
    if not isinstance(header, dict) or set(header) != {"version", "type", "fields", "parts"}:
        raise WireError("header is not a map of version, type, fields and parts")
    if header["version"] != PROTOCOL_VERSION:
        raise WireError(f"protocol version {header['version']!r} is not {PROTOCOL_VERSION}: update the older side")
    if not isinstance(header["type"], str):
        raise WireError("message type is not text")
    return header["type"]


def _decode_parts(described: Any, buffers: Sequence[Buffer], expected: Mapping[str, tuple[str, int]]) -> Arrays:
    if not isinstance(described, tuple) or len(described) != len(expected) or len(buffers) != len(expected):
        raise WireError(f"expected {len(expected)} parts, {len(buffers)} came")
    arrays: Arrays = {}
    for (name, (dtype, ndim)), description, buffer in zip(expected.items(), described, buffers, strict=True):
        arrays[name] = _decode_part(name, dtype, ndim, description, buffer)
    return arrays


def _decode_part(name: str, dtype: str, ndim: int, description: Any, buffer: Buffer) -> NDArray[Any]:
    got_name, got_dtype, shape = description
    if got_name != name or got_dtype != dtype or len(shape) != ndim:
        raise WireError(f"part {name} must be {dtype} with {ndim} dimensions, got {description!r}")
    if not all(type(n) is int and 0 <= n < MAX_PART_BYTES for n in shape):
        raise WireError(f"part {name} has shape {shape!r}")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size != len(buffer) or size > MAX_PART_BYTES:
        raise WireError(f"part {name} of shape {shape} must have {size} bytes, {len(buffer)} came")
    array = np.frombuffer(buffer, dtype).reshape(shape)
    array.setflags(write=False)  # what a socket received is writable
    return array


def _bytes_of(array: NDArray[Any]) -> Buffer:
    return array.data.cast("B") if array.size else b""


# --- one dump and load for each type that is more than its fields ---------------------------------------------------


def _dump_grid(grid: ScanGrid) -> Fields:
    return {"shape": grid.shape, "pixel_size_nm": grid.pixel_size_nm, "rotation_deg": grid.rotation_deg}


def _load_grid(fields: Mapping[str, Any]) -> ScanGrid:
    if set(fields) != {"shape", "pixel_size_nm", "rotation_deg"}:
        raise WireError(f"grid has the fields {sorted(map(str, fields))}")
    shape = fields["shape"]
    if not isinstance(shape, tuple) or not all(type(n) is int for n in shape):
        raise WireError(f"grid has the shape {shape!r}")
    return ScanGrid(cast("tuple[int, int]", shape), float(fields["pixel_size_nm"]), float(fields["rotation_deg"]))


def _dump_scan_start(start: ScanStart) -> tuple[Fields, Arrays]:
    fields = {name: getattr(start, name) for name in _SCAN_START_FIELDS if name != "grid"}
    arrays: Arrays = {
        "lengths": np.array([len(path) for path in start.paths], np.uint32),
        "positions": np.concatenate([path.positions for path in start.paths]),
        "dwell_times_us": np.concatenate([path.dwell_times_us for path in start.paths]),
        "jumps": np.concatenate([path.jumps for path in start.paths]).view(np.uint8),
    }
    return {**fields, "grid": _dump_grid(start.grid)}, arrays


def _load_scan_start(fields: Fields, arrays: Arrays) -> ScanStart:
    grid = _load_grid(fields.pop("grid"))
    lengths = arrays.pop("lengths").astype(np.int64)
    if not 1 <= len(lengths) <= MAX_PATHS or not lengths.all():
        raise WireError(f"a scan has 1 to {MAX_PATHS} paths, none of them empty, got {len(lengths)}")
    if any(len(array) != lengths.sum() for array in arrays.values()):
        raise WireError(f"paths of {lengths.sum()} positions in all do not fit their arrays")
    split = {name: np.split(array, np.cumsum(lengths)[:-1]) for name, array in arrays.items()}
    paths = tuple(
        ScanPath(grid, positions, _scalar_if_constant(dwell), jumps)
        for positions, dwell, jumps in zip(split["positions"], split["dwell_times_us"], split["jumps"], strict=True)
    )
    return ScanStart(paths=paths, **fields)


def _scalar_if_constant(dwell: NDArray[np.float32]) -> float | NDArray[np.float32]:
    return float(dwell[0]) if len(dwell) and (dwell == dwell[0]).all() else dwell


def _dump_dense_frame(frame: DenseFrame) -> tuple[Fields, Arrays]:
    visited = np.flatnonzero(frame.hits > 0)  # three times faster than on the counts
    fields = {name: getattr(frame, name) for name in _DENSE_FRAME_FIELDS if name not in ("grid", "engines")}
    fields |= {
        "grid": _dump_grid(frame.grid),
        "engines": tuple((stamp.name, stamp.digest, stamp.precision) for stamp in frame.engines),
    }
    arrays: Arrays = {
        "image": frame.image,
        "uncertainty": frame.uncertainty,  # float16 would save 0.5 MB of wire and cost 1.7 ms of conversion
        "visited": visited.astype(np.uint32),
        "measured": frame.measured.reshape(len(frame.measured), -1)[:, visited],
        "hits": frame.hits.reshape(-1)[visited],
    }
    return fields, arrays


def _load_dense_frame(fields: Fields, arrays: Arrays) -> DenseFrame:
    grid = _load_grid(fields.pop("grid"))
    scale = fields["scale"]
    if not fields["channels"]:  # then nothing would vouch for the size of the grid
        raise WireError("a frame needs at least one channel, got none")
    if scale not in (1, 2, 4) or arrays["image"].shape != (len(fields["channels"]), *grid.shape):
        raise WireError(f"image {arrays['image'].shape} at scale {scale} does not fit the grid {grid.shape}")
    scan_shape = (grid.rows // scale, grid.cols // scale)
    n_channels, n_pixels = len(fields["channels"]), scan_shape[0] * scan_shape[1]
    visited, values = arrays["visited"], arrays["measured"]
    if values.shape != (n_channels, len(visited)) or len(arrays["hits"]) != len(visited):
        raise WireError(f"measured {values.shape} and hits do not fit {len(visited)} visited pixels")
    if len(visited) and visited.max() >= n_pixels:
        raise WireError(f"visited pixel {visited.max()} lies outside {n_pixels} pixels")
    measured = np.zeros((n_channels, n_pixels), np.float32)
    measured[:, visited] = values
    hits = np.zeros(n_pixels, np.uint16)
    hits[visited] = arrays["hits"]
    return DenseFrame(
        grid=grid,
        image=arrays["image"],
        uncertainty=arrays["uncertainty"],
        measured=measured.reshape(n_channels, *scan_shape),
        hits=hits.reshape(scan_shape),
        engines=tuple(EngineStamp(*stamp) for stamp in fields.pop("engines")),
        **fields,
    )


def _plain(kind: Callable[..., Message]) -> Callable[[Fields, Arrays], Message]:
    return lambda fields, arrays: kind(**fields, **arrays)


_SCAN_START_FIELDS: dict[str, Any] = {
    "scan_id": str,
    "grid": dict[str, Any],
    "pattern": dict[str, Any],
    "channels": tuple[str, ...],
    "dwell_time_us": float,
    "beam_current_pa": float,
    "energy_kev": float,
    "area_id": int,
    "replay_of": str | None,
    "wall_clock_ns": int,
    "t_ns": int,
}
_DENSE_FRAME_FIELDS: dict[str, Any] = {
    "grid": dict[str, Any],
    "uncertainty_kind": Literal["none", "placeholder", "calibrated"],
    "scale": int,
    "scan_id": str,
    "path_digest": str,
    "frame_index": int,
    "complete": bool,
    "samples_used": int,
    "channels": tuple[str, ...],
    "engines": tuple[tuple[str, str, str], ...],
    "dropped": int,
    "gaps": int,
    "times_ns": dict[str, int],
}
_CODECS: dict[str, _Codec] = {
    "ScanStart": _Codec(
        "samples",
        _SCAN_START_FIELDS,
        {"lengths": ("<u4", 1), "positions": ("<f4", 2), "dwell_times_us": ("<f4", 1), "jumps": ("|u1", 1)},
        _load_scan_start,
        _dump_scan_start,
    ),
    "SampleBlock": _Codec(
        "samples",
        {"scan_id": str, "path_digest": str, "frame_index": int, "first": int, "seq": int}
        | {"t_first_ns": int, "t_last_ns": int, "t_sent_ns": int},
        {"counts": ("<u2", 2)},
        _plain(SampleBlock),
    ),
    "ScanEnd": _Codec("samples", {"scan_id": str, "frame_index": int, "reason": str}, {}, _plain(ScanEnd)),
    "DenseFrame": _Codec(
        "frames",
        _DENSE_FRAME_FIELDS,
        {
            "image": ("<f4", 3),
            "uncertainty": ("<f4", 3),
            "visited": ("<u4", 1),
            "measured": ("<f4", 2),
            "hits": ("<u2", 1),
        },
        _load_dense_frame,
        _dump_dense_frame,
    ),
    "StatusReport": _Codec("status", {"source": str, "t_ns": int, "values": dict[str, Any]}, {}, _plain(StatusReport)),
    "Event": _Codec(
        "status",
        {"source": str, "kind": str, "text": str, "severity": Literal["info", "warning", "alarm"], "t_ns": int},
        {},
        _plain(Event),
    ),
    "Request": _Codec(
        "control", {"client": str, "request_id": int, "verb": str, "arguments": dict[str, Any]}, {}, _plain(Request)
    ),
    "Reply": _Codec("control", {"request_id": int, "error": str, "result": dict[str, Any]}, {}, _plain(Reply)),
    "RecordAck": _Codec("record", {"token": str, "seq": int, "error": str}, {}, _plain(RecordAck)),
}
_HEADER_MODELS: dict[str, type[BaseModel]] = {
    name: create_model(
        f"{name}Header",
        __config__=ConfigDict(strict=True, extra="forbid"),
        **cast("Any", {field: (annotation, ...) for field, annotation in codec.fields.items()}),
    )
    for name, codec in _CODECS.items()
}
