"""Engine files made for tests with onnx alone: one convolution, weights known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lowdose.reconstruction.engine import EngineInfo
from lowdose.reconstruction.engine_file import Card, EngineFile, digest_of, write_engine_file

if TYPE_CHECKING:
    from pathlib import Path

OPSET = 20


def info_of(**changes: object) -> EngineInfo:
    facts = {
        "name": "smoothing",
        "version": "1",
        "digest": "",
        "precision": "FP32",
        "task": "complete",
        "scale": 1,
        "channels": ("nearest", "mask"),
        "normalisation": "mean_std",
        "target": "sharp",
        "size_multiple": 1,
        "halo_px": 1,
        "keeps_measured": False,
        "uncertainty_kind": "none",
    }
    return EngineInfo(**{**facts, **changes})  # type: ignore[arg-type]


def conv_onnx(weight: np.ndarray, *, opset: int = OPSET, inputs: str = "inputs", outputs: str = "outputs") -> bytes:
    """Return the ONNX file of one convolution without bias, (outputs, inputs, 3, 3), in float32."""
    n_out, n_in = weight.shape[:2]
    node = helper.make_node("Conv", [inputs, "layer.weight"], [outputs], pads=[1, 1, 1, 1])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, "rows", "cols"])
        for name, channels in ((inputs, n_in), (outputs, n_out))
    ]
    weights = [numpy_helper.from_array(weight.astype(np.float32), "layer.weight")]
    graph = helper.make_graph([node], "conv", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString()
    return serialised


def mean_of_3x3(n_out: int = 1, n_in: int = 2) -> np.ndarray:
    """Return the weights of a network that smooths its first channel; further outputs are constant zero."""
    weight = np.zeros((n_out, n_in, 3, 3), np.float32)
    weight[0, 0] = 1 / 9
    return weight


def write_smoothing(folder: Path, *, n_out: int = 1, name: str = "smoothing.onnx", **changes: object) -> EngineFile:
    """Write an engine file that smooths its first channel."""
    info = info_of(**changes)
    onnx_bytes = conv_onnx(mean_of_3x3(n_out, len(info.channels)))
    info = info_of(**{**changes, "digest": digest_of(onnx_bytes)})
    card = Card(info, opset=OPSET, outputs=n_out, gmac_512=0.005)  # type: ignore[arg-type]
    return write_engine_file(folder / name, onnx_bytes, card)
