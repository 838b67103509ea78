"""Export: a trained network becomes an engine file, and only if the file does what the network does."""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from lowdose.reconstruction.engine_file import INPUTS, OUTPUTS, Card, digest_of, write_engine_file
from lowdose.reconstruction.models.cost import gmac
from lowdose.reconstruction.parity import MAX_DIFFERENCE, relative_rms

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from lowdose.reconstruction.engine import Precision
    from lowdose.reconstruction.engine_file import EngineFile

OPSET = 20
DTYPES: dict[Precision, torch.dtype] = {"FP32": torch.float32, "BF16": torch.bfloat16, "FP16": torch.float16}
PREFIX = "network."
HOT = 400.0
"""Of one pixel, in standard deviations of the measured ones: a single one among 160,000 is as far off."""


@runtime_checkable
class Foldable(Protocol):
    """A network that has a plain one with the same outputs."""

    def folded(self) -> nn.Module:
        """Return it."""
        ...


class ExportError(ValueError):
    """A network cannot become an engine file."""


def export_engine(network: nn.Module, path: Path, draft: Card, *, precision: Precision = "FP16") -> EngineFile:
    """Write a network as an engine file and return it.

    The network is folded, if it has anything to fold, put on the CPU and converted; input and output stay float32.
    Before anything is written the file's outputs are compared with the network's own, on two sizes of picture, one with
    a hot pixel.

    Parameters
    ----------
    network : nn.Module
        Takes (batch, channels, rows, cols), returns (batch, 1 or 2, rows, cols); left as it is.
    path : Path
        NAME.onnx; the card goes beside it.
    draft : Card
        What is known; digest, precision, opset, outputs and cost are filled in.
    precision : "FP32", "BF16" or "FP16"
        Of weights and arithmetic; OpenVINO and torch may compute in another one.

    Raises
    ------
    ExportError
        If the file does something else than the network, the size multiple of the draft is wrong, or its errors were
        found with another file.
    OSError
        If it cannot be written.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    folded: nn.Module = network.folded() if isinstance(network, Foldable) else network
    edge = 64 * -(-max(64, draft.info.size_multiple) // 64)
    examples = [_example(draft, edge, seed=0), _example(draft, edge + draft.info.size_multiple, seed=1)]
    examples[1][..., edge // 2, edge // 2] = HOT
    with torch.inference_mode():
        expected = [network(example).numpy() for example in examples]
    onnx_bytes = _onnx_bytes(folded, examples[0], precision)
    _prove(onnx_bytes, examples, expected, precision)
    digest, n_outputs = digest_of(onnx_bytes), expected[0].shape[1]
    _require_own(draft.errors, digest)
    card = replace(
        draft,
        info=replace(draft.info, digest=digest, precision=precision),
        opset=OPSET,
        outputs=n_outputs,
        gmac_512=round(gmac(folded, _example(draft, edge, seed=0)) * (512 / edge) ** 2, 4),
    )
    try:
        return write_engine_file(path, onnx_bytes, card)
    except OSError as error:
        raise OSError(
            f"cannot write {path}: {error.strerror or error}. Free some space, or choose another folder"
        ) from error


def _require_own(errors: tuple[dict[str, Any], ...], digest: str) -> None:
    """Raise ExportError if errors are those of another engine file; one network gives one file."""
    others = {str(row.get("engine_digest")) for row in errors} - {digest}
    if others:
        raise ExportError(
            f"errors were found with the engine file of digest {', '.join(sorted(others))}, this one has {digest}: "
            "export without them, evaluate that file, then export again with them"
        )


class _WithBorders(torch.nn.Module):
    """A network that computes in one precision and is spoken to in float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = copy.deepcopy(network).to(dtype), dtype

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.network(inputs.to(self.dtype)).to(torch.float32)
        return output


def _example(draft: Card, edge: int, *, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, len(draft.info.channels), edge, edge, generator=generator)


def _onnx_bytes(network: nn.Module, example: torch.Tensor, precision: Precision) -> bytes:
    """Return the ONNX file of a network for any batch, rows and columns; its weights keep their names."""
    dynamic = torch.export.Dim.DYNAMIC
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # it warns of torchvision's absence
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _WithBorders(network, DTYPES[precision]).eval(),
                (torch.cat([example, example]),),  # a batch of one would be taken for a constant
                dynamo=True,
                input_names=[INPUTS],
                output_names=[OUTPUTS],
                dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
                opset_version=OPSET,
                optimize=False,  # it would leave out biases of zero and share equal weights
                verbose=False,
            )
    finally:
        exporter.setLevel(level)
    assert program is not None  # noqa: S101 for the type checker
    model = program.model_proto
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.removeprefix(PREFIX)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = name.removeprefix(PREFIX)
    graph = model.graph
    for told in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del told.metadata_props[:]  # where in which file of whose machine a layer was called
    serialised: bytes = model.SerializeToString()
    return serialised


def _prove(
    onnx_bytes: bytes, examples: list[torch.Tensor], expected: list[NDArray[np.float32]], precision: Precision
) -> None:
    """Raise ExportError unless the file, run in full precision, gives what the network gives."""
    import openvino

    core = openvino.Core()
    model = core.read_model(onnx_bytes)
    for example, reference in zip(examples, expected, strict=True):
        model.reshape(list(example.shape))
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        (output,) = compiled({0: example.numpy()}).values()
        difference = relative_rms(output, reference)
        if not difference <= MAX_DIFFERENCE[precision]:
            raise ExportError(
                f"the exported network differs from the trained one by {difference:.2g} of its standard deviation on "
                f"{tuple(example.shape)}, expected at most {MAX_DIFFERENCE[precision]:g} in {precision}: "
                "nothing was written; try another precision"
            )
