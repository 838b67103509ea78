"""Engine files: a network as ONNX with a card beside it that says what it is, wants and was measured to do."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import TypeAdapter, ValidationError

from lowdose.reconstruction.engine import EngineInfo  # noqa: TC001 pydantic reads it
from lowdose.scan_patterns.checks import nearest_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.protobuf.message import Message
    from onnx import ModelProto, TensorProto

CARD_VERSION = 1
OPSETS = range(17, 24)
"""What every runtime here can read."""
MAX_BYTES = (1 << 31) - 1
"""Of an ONNX file, a limit of its format; larger ones are refused before they are read."""
MAX_CARD_BYTES = 1 << 20
DIGEST_BYTES = 16
INPUTS, OUTPUTS = "inputs", "outputs"
"""The names every engine file gives its one input and its one output."""
FLOAT32 = 1
"""As ONNX numbers element types."""


class EngineFileError(ValueError):
    """An engine file cannot be used: what was got, what was expected, what to do."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The network an engine file holds, so that it can be built again.

    Parameters
    ----------
    name : str
        A row of `reconstruction.models.MODELS`.
    options : dict
        What its class is called with.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Card:
    """What is known about an engine file.

    Parameters
    ----------
    info : EngineInfo
        What it is and wants; its digest is that of the ONNX file.
    opset : int
        Of the ONNX file.
    outputs : 1 or 2
        1 = mean alone; 2 = mean and standard deviation.
    gmac_512 : float
        Multiply-accumulates of one picture of 512 x 512 [1e9]; they grow with the area.
    model : ModelSpec or None
        None = the ONNX file alone says what it is: the torch engine cannot run it.
    patterns, coverages, sizes : tuple
        What it was trained for: names, nominal coverages, edges of the training crops [pixel]. Empty = nothing.
    provenance : dict
        Recipe, revision, seed, steps and the like.
    errors : tuple of dict
        What was measured, rows as `lowdose evaluate` makes them.
    training_data : tuple of dict
        Source and licence of every data set it was trained on.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    info: EngineInfo
    opset: int
    outputs: Literal[1, 2]
    gmac_512: float
    model: ModelSpec | None = None
    patterns: tuple[str, ...] = ()
    coverages: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    errors: tuple[dict[str, Any], ...] = ()
    training_data: tuple[dict[str, str], ...] = ()
    card_version: int = CARD_VERSION

    def __post_init__(self) -> None:
        if not (math.isfinite(self.gmac_512) and self.gmac_512 >= 0):
            raise ValueError(f"gmac_512 must be a finite number >= 0, got {self.gmac_512}")
        if self.outputs == 1 and self.info.uncertainty_kind != "none":
            raise ValueError(f"uncertainty_kind must be none where outputs is 1, got {self.info.uncertainty_kind}")


@dataclass(frozen=True, slots=True)
class EngineFile:
    """An engine file that was checked: the ONNX file is whole and is what its card says."""

    path: Path
    card: Card

    @property
    def info(self) -> EngineInfo:
        """What the engine is and wants."""
        return self.card.info


def card_path(path: Path) -> Path:
    """Return where the card of an ONNX file lies."""
    return path.with_suffix(".json")


def digest_of(onnx_bytes: bytes) -> str:
    """Return the digest by which an ONNX file is known."""
    return hashlib.blake2b(onnx_bytes, digest_size=DIGEST_BYTES).hexdigest()


def read_engine_file(path: Path) -> EngineFile:
    """Return an engine file after checking it against its card.

    Raises
    ------
    EngineFileError
        If a file is missing, too large or damaged, or is not what the card says; the message names both sides.
    """
    card = _read_card(card_path(path))
    onnx_bytes = _read(path, MAX_BYTES)
    if (digest := digest_of(onnx_bytes)) != card.info.digest:
        raise EngineFileError(
            f"{path} has digest {digest}, its card {card_path(path).name} says {card.info.digest}: "
            "the file is damaged or belongs to another card, get both again"
        )
    _require_agreement(parse_onnx(onnx_bytes, path), card, path)
    return EngineFile(path, card)


def bytes_of(file: EngineFile) -> bytes:
    """Return the ONNX file that was checked, for a runtime to load.

    Raises
    ------
    EngineFileError
        If it cannot be read any more, or is another one by now.
    """
    onnx_bytes = _read(file.path, MAX_BYTES)
    if digest_of(onnx_bytes) != file.info.digest:
        raise EngineFileError(f"{file.path} has changed since it was checked: start again")
    return onnx_bytes


def write_engine_file(path: Path, onnx_bytes: bytes, card: Card) -> EngineFile:
    """Write an ONNX file and its card, each as a whole or not at all, and return them checked.

    Raises
    ------
    EngineFileError
        If they do not belong together; nothing is written then.
    """
    if digest_of(onnx_bytes) != card.info.digest:
        raise EngineFileError(f"the card is of digest {card.info.digest}, the network of {digest_of(onnx_bytes)}")
    _require_agreement(parse_onnx(onnx_bytes, path), card, path)
    write_whole(path, onnx_bytes)
    write_whole(card_path(path), TypeAdapter(Card).dump_json(card, indent=2) + b"\n")
    return EngineFile(path, card)


def parse_onnx(onnx_bytes: bytes, path: Path) -> ModelProto:
    """Return the network in an ONNX file; weights in further files are refused, not looked for."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(onnx_bytes)
    except DecodeError as error:
        raise EngineFileError(f"{path} is no ONNX file ({error}): expected one that `lowdose export` wrote") from None
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
        raise EngineFileError(f"{path} keeps its weights in other files: expected them inside, export it again")
    return model


def _tensors(message: Message) -> Iterator[TensorProto]:
    """Yield every tensor in a part of an ONNX file, wherever it is: weights, constants, subgraphs, functions."""
    from google.protobuf.message import Message
    from onnx import TensorProto

    if isinstance(message, TensorProto):
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                yield from _tensors(part)


def _read_card(path: Path) -> Card:
    text = _read(path, MAX_CARD_BYTES)
    try:
        card = TypeAdapter(Card).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "unexpected_keyword_argument":
            reason = f"unknown key: {nearest_name(str(first['loc'][-1]), [known.name for known in fields(Card)])}"
        raise EngineFileError(f"{path} is no engine card: {where}: {reason}") from None
    if card.card_version != CARD_VERSION:
        raise EngineFileError(f"{path} is a card of version {card.card_version}, expected {CARD_VERSION}: export again")
    return card


def _read(path: Path, limit: int) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a device would be read for ever
            raise EngineFileError(f"{path} is no file: expected NAME.onnx with its card NAME.json beside it")
        if (size := path.stat().st_size) > limit:
            raise EngineFileError(f"{path} has {size} bytes, expected at most {limit}")
        return path.read_bytes()
    except OSError as error:
        raise EngineFileError(
            f"cannot read {path}: {error.strerror}; an engine file is NAME.onnx with its card NAME.json beside it"
        ) from None


def write_whole(path: Path, content: bytes) -> None:
    """Write beside its place and move it there, so that no half file ever has the name."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _require_agreement(model: ModelProto, card: Card, path: Path) -> None:
    """Raise EngineFileError unless opset, input and output of the network are those of the card."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset != card.opset or opset not in OPSETS:
        raise EngineFileError(
            f"{path} has opset {opset}, its card says {card.opset}: expected one from {OPSETS[0]} to {OPSETS[-1]}"
        )
    weights = {tensor.name for tensor in model.graph.initializer}
    ends = {
        INPUTS: ([value for value in model.graph.input if value.name not in weights], len(card.info.channels)),
        OUTPUTS: (list(model.graph.output), card.outputs),
    }
    for name, (values, n_channels) in ends.items():
        if [value.name for value in values] != [name]:
            got = ", ".join(value.name for value in values) or "none"
            raise EngineFileError(f"{path} has the {name} {got}: expected one called '{name}'")
        tensor = values[0].type.tensor_type
        shape = [dim.dim_value if dim.HasField("dim_value") else "?" for dim in tensor.shape.dim]
        if len(shape) != 4 or shape[1] != n_channels or tensor.elem_type != FLOAT32:
            raise EngineFileError(
                f"{path} has {name} of shape {shape} and type {tensor.elem_type}, its card says {n_channels} channels: "
                f"expected (batch, {n_channels}, rows, cols) float32"
            )
