"""OpenVINO engine: runs an engine file on the CPU (the only file that imports openvino)."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowdose.reconstruction.engine import PRECISIONS, Precision
from lowdose.reconstruction.engine_file import EngineFileError, bytes_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.reconstruction.engine_file import EngineFile

HINTS: dict[Precision, str] = {"FP32": "f32", "BF16": "bf16", "FP16": "f16"}
SHAPES_KEPT = 3
"""Compiled networks: the whole field, a tile, a region."""


class OpenVinoEngine:
    """Runs an engine file on the CPU, compiled anew for every size of picture when the first one comes.

    Pictures of a batch are run each by itself: a CPU gains nothing by batches, and the result cannot depend on them.

    Parameters
    ----------
    file : EngineFile
        Read and checked.
    precision : "auto", "FP32", "BF16" or "FP16"
        Of the arithmetic; "auto" = BF16 where the processor has it, else FP32.
    threads : int
        0 = one for every core.
    streams : int
        Pictures of a batch that run side by side, sharing the threads; one is fastest for a single picture.

    Raises
    ------
    EngineFileError
        If OpenVINO cannot read the network.
    ValueError
        If the processor does not compute in the precision asked for.
    """

    def __init__(
        self, file: EngineFile, *, precision: Precision | Literal["auto"] = "auto", threads: int = 0, streams: int = 1
    ) -> None:
        import openvino

        self._openvino, self._core = openvino, openvino.Core()
        self._model = _read(self._core, file)
        available = precisions(self._core)
        if precision != "auto" and precision not in available:
            raise ValueError(
                f"openvino computes in {' or '.join(available)} on this processor, got precision {precision}: "
                "leave it out to take the fastest"
            )
        chosen = available[-1] if precision == "auto" else precision
        self.info = replace(file.info, precision=chosen)
        self._outputs = file.card.outputs
        self._properties: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[chosen],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
        }
        self._streams = streams
        self._compiled: dict[tuple[int, ...], list[Any]] = {}  # shape of a picture -> infer requests, the oldest first
        self._lock = threading.Lock()  # an infer request serves one thread at a time

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return mean and standard deviation of pictures; see `Engine.run`."""
        batch, _, rows, cols = inputs.shape
        scale = self.info.scale
        out = np.zeros((batch, 2, scale * rows, scale * cols), np.float32)
        with self._lock:
            requests = self._requests(inputs.shape[1:])
            for first in range(0, batch, self._streams):
                running = list(zip(requests, range(first, batch), strict=False))
                for request, k in running:
                    picture = np.ascontiguousarray(inputs[k : k + 1])
                    request.start_async({0: self._openvino.Tensor(picture, shared_memory=True)}, share_inputs=True)
                for request, k in running:
                    request.wait()
                    out[k, : self._outputs] = request.get_output_tensor(0).data[0]
        return out

    def _requests(self, shape: tuple[int, ...]) -> list[Any]:
        """Return what runs pictures of a shape, compiled when it is new."""
        if shape not in self._compiled:
            model = self._model.clone()
            model.reshape([1, *shape])
            compiled = self._core.compile_model(model, "CPU", self._properties)
            while len(self._compiled) >= SHAPES_KEPT:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[shape] = [compiled.create_infer_request() for _ in range(self._streams)]
        return self._compiled[shape]


def precisions(core: Any = None) -> tuple[Precision, ...]:
    """Return the precisions in which the CPU computes, the fastest last."""
    if core is None:
        import openvino

        core = openvino.Core()
    fastest = core.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
    return PRECISIONS[:1] + tuple(name for name in PRECISIONS[1:] if HINTS[name] == fastest)


def _read(core: Any, file: EngineFile) -> Any:
    onnx_bytes = bytes_of(file)
    try:
        return core.read_model(onnx_bytes)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise EngineFileError(f"openvino cannot read {file.path}: {reason}") from None


def matmul_gmac_per_s(precision: Precision, edge: int = 2048, runs: int = 5) -> float:
    """Return what the CPU does at most: square matrix products, the fastest of some [1e9 multiply-accumulates/s]."""
    import openvino
    from openvino import opset13

    operands = [opset13.parameter([edge, edge], np.float32) for _ in range(2)]
    model = openvino.Model([opset13.matmul(*operands, False, False)], operands)
    properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision]}
    request = openvino.Core().compile_model(model, "CPU", properties).create_infer_request()
    values = [np.full((edge, edge), 0.5, np.float32)] * 2
    times_s = []
    for _ in range(runs):
        begin = time.perf_counter()
        request.infer(values, share_inputs=True, share_outputs=True)
        times_s.append(time.perf_counter() - begin)
    return edge**3 / 1e9 / min(times_s)
