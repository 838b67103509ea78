"""`lowdose doctor --gpu`: what the GPU's runtimes do with a small network, as figures a user can send back."""

from __future__ import annotations

import tempfile
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lowdose.config.figures import machine, run_ms, write_json
from lowdose.reconstruction.engine import PRECISIONS, EngineInfo, Precision
from lowdose.reconstruction.engine_file import INPUTS, OUTPUTS, Card, digest_of, write_engine_file
from lowdose.reconstruction.engines.choice import load_engine, why_not
from lowdose.reconstruction.parity import MAX_DIFFERENCE, relative_rms

OPSET = 20
WIDTH, LAYERS, SIZE = 32, 4, 256
PACKAGES = ("lowdose", "openvino", "tensorrt", "cupy-cuda13x", "torch", "numpy")
RUNS = 10


def self_test(out: Path) -> int:
    """Run a network on the CPU and on the GPU's runtime, compare them, write the figures; return 1 if they differ."""
    if (reason := why_not("tensorrt")) is not None:
        print(f"gpu self-test: {reason}")
        return 0
    with tempfile.TemporaryDirectory(prefix="lowdose-gpu-") as folder:
        rows = [_row(Path(folder), precision) for precision in PRECISIONS]
    agree = all(_agrees(row) for row in rows)
    versions = {name: _version(name) for name in PACKAGES}
    report = {"machine": machine(), "versions": versions, "rows": rows, "agree": agree}
    write_json(out, report)
    print(f"gpu self-test: {'passed' if agree else 'FAILED'}; figures for a report: {out}")
    return 0 if agree else 1


def small_network(precision: Precision) -> bytes:
    """Return the ONNX file of a chain of convolutions that computes in a precision, between float32 ends."""
    from onnx import TensorProto, helper, numpy_helper

    kinds = {"FP32": TensorProto.FLOAT, "FP16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}
    rng = np.random.default_rng(0)
    widths = [1, *[WIDTH] * (LAYERS - 1), 1]
    weights, nodes, last = [], [helper.make_node("Cast", [INPUTS], ["x0"], to=kinds[precision])], "x0"
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        values = rng.standard_normal((n_out, n_in, 3, 3), dtype=np.float32) / np.sqrt(4.5 * n_in)
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"{i}.weight.float"))
        nodes.append(helper.make_node("Cast", [f"{i}.weight.float"], [f"{i}.weight"], to=kinds[precision]))
        nodes.append(helper.make_node("Conv", [last, f"{i}.weight"], [f"y{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"y{i}"], [last := f"x{i + 1}"]))
    nodes.append(helper.make_node("Cast", [last], [OUTPUTS], to=TensorProto.FLOAT))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, "rows", "cols"])
        for name in (INPUTS, OUTPUTS)
    ]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    serialised: bytes = model.SerializeToString()
    return serialised


def _row(folder: Path, precision: Precision) -> dict[str, Any]:
    """Return how TensorRT runs the network in a precision, compared with OpenVINO in full precision."""
    onnx_bytes = small_network(precision)
    info = EngineInfo(
        name="small",
        version="1",
        digest=digest_of(onnx_bytes),
        precision=precision,
        task="complete",
        scale=1,
        channels=("nearest",),
        normalisation="mean_std",
        target="sharp",
        size_multiple=1,
        halo_px=LAYERS,
        keeps_measured=False,
        uncertainty_kind="none",
    )
    file = write_engine_file(folder / f"{precision}.onnx", onnx_bytes, Card(info, OPSET, outputs=1, gmac_512=0.0))
    inputs = np.random.default_rng(1).standard_normal((1, 1, SIZE, SIZE), dtype=np.float32)
    expected = load_engine(file, runtime="openvino", precision="FP32").run(inputs)
    try:
        engine = load_engine(file, runtime="tensorrt")
        difference = relative_rms(engine.run(inputs)[:, 0], expected[:, 0])
        times_ms = [run_ms(engine, inputs) for _ in range(RUNS)]
    except (ValueError, RuntimeError, OSError, ArithmeticError) as error:
        return {"precision": precision, "error": str(error)}
    return {"precision": precision, "parity": difference, "ms_p50": float(np.median(times_ms))}


def _agrees(row: dict[str, Any]) -> bool:
    return "error" not in row and row["parity"] <= MAX_DIFFERENCE[row["precision"]]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
