"""TensorRT engine: runs an engine file on an NVIDIA GPU (imports tensorrt, through its plan, and CuPy late).

Never run on hardware: written for TensorRT 10.13 and CuPy 13.6, with no call that TensorRT 11 removed.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from lowdose.reconstruction.assembly_gpu import on_device, on_host
from lowdose.reconstruction.engine_file import INPUTS, OUTPUTS
from lowdose.reconstruction.engines.tensorrt_plan import open_plan, profile_for

if TYPE_CHECKING:
    import numpy as np
    import tensorrt as trt
    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import Precision
    from lowdose.reconstruction.engine_file import EngineFile
    from lowdose.reconstruction.engines.tensorrt_plan import Shape

SHAPES_KEPT = 3
"""CUDA graphs: the whole field, a tile, a region."""
WORKSPACE_SHARE = 0.5
"""Of the free GPU memory, for a single layer while a plan is built."""


@dataclass(frozen=True, slots=True)
class _Recording:
    """A run recorded as CUDA graph, and the arrays on the GPU it reads and writes.

    A recorded graph works in its context's memory: the context is kept and used for nothing else.
    """

    inputs: Any  # (1, channels, rows, cols) float32 cupy.ndarray
    outputs: Any  # (1, 1 or 2, scale * rows, scale * cols) float32 cupy.ndarray
    graph: Any
    context: trt.IExecutionContext


class TensorRTEngine:
    """Runs an engine file on the current NVIDIA GPU, as a CUDA graph recorded for every size of picture.

    The first use of a file builds a plan, which takes minutes; it is kept for the next time. Pictures of a batch are
    run one by one, so that the result cannot depend on what they are run with.

    Parameters
    ----------
    file : EngineFile
        Read and checked.
    precision : "auto", "FP32", "BF16" or "FP16"
        TensorRT computes in the precision a file was exported in: "auto" or that one.
    threads : int
        Of no use here.

    Raises
    ------
    EngineFileError
        If no plan can be made of the file.
    ValueError
        If a library or a GPU is missing, or the file is of another precision.
    """

    def __init__(self, file: EngineFile, *, precision: Precision | Literal["auto"] = "auto", threads: int = 0) -> None:
        if precision not in ("auto", file.info.precision):
            raise ValueError(
                f"{file.path.name} was exported in {file.info.precision} and TensorRT computes in nothing else, got "
                f"precision {precision}: leave it out, or export the file in {precision}"
            )
        self._cupy = _usable_cupy()
        self.info = file.info
        self._outputs = file.card.outputs
        self._profile = profile_for(file.card)
        gpu, capability, free_bytes = _current_gpu(self._cupy)
        self._engine = open_plan(
            file,
            gpu=gpu,
            capability=capability,
            profile=self._profile,
            workspace_bytes=int(WORKSPACE_SHARE * free_bytes),
        )
        self._stream = self._cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be recorded
        self._recordings: dict[Shape, _Recording] = {}  # the oldest first
        self._lock = threading.Lock()  # a recording has one pair of arrays

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return mean and standard deviation of pictures; see `Engine.run`."""
        return on_host(self._cupy, self.run_on_device(on_device(self._cupy, inputs)))

    def run_on_device(self, inputs: Any) -> Any:
        """Do as `run` does with what is on the GPU and stays there.

        Parameters
        ----------
        inputs : (batch, channels, rows, cols) float32 cupy.ndarray
            Made on the current stream, in whose order all happens.

        Returns
        -------
        (batch, 2, scale * rows, scale * cols) float32 cupy.ndarray
            A fresh array; it may not be finished, but is for all that follows on the current stream.
        """
        batch, channels, rows, cols = inputs.shape
        scale = self.info.scale
        out = self._cupy.zeros((batch, 2, scale * rows, scale * cols), self._cupy.float32)
        with self._lock:
            recording = self._recording((1, channels, rows, cols))
            caller = self._cupy.cuda.get_current_stream()
            self._stream.wait_event(caller.record())
            with self._stream:
                for k in range(batch):
                    recording.inputs[0] = inputs[k]
                    recording.graph.launch(self._stream)
                    out[k, : self._outputs] = recording.outputs[0]
            caller.wait_event(self._stream.record())
        return out

    def _recording(self, shape: Shape) -> _Recording:
        """Return what runs pictures of a shape, recorded when it is new."""
        if shape not in self._recordings:
            if not self._profile.covers(shape):
                low, high = self._profile.smallest, self._profile.largest
                raise ValueError(f"the plan takes {low} to {high}, got {shape}: cut the picture into tiles")
            while len(self._recordings) >= SHAPES_KEPT:
                self._stream.synchronize()
                del self._recordings[next(iter(self._recordings))]
            with self._stream:
                self._recordings[shape] = self._recorded(shape)
        return self._recordings[shape]

    def _recorded(self, shape: Shape) -> _Recording:
        context = self._engine.create_execution_context()
        if context is None:
            raise MemoryError(f"TensorRT got no context for {shape}: the GPU has too little memory, end other programs")
        _require(context.set_input_shape(INPUTS, shape), f"the input shape {shape}")
        inputs = self._cupy.zeros(shape, self._cupy.float32)
        _, _, rows, cols = shape
        expected = (1, self._outputs, self.info.scale * rows, self.info.scale * cols)
        _require(context.get_tensor_shape(OUTPUTS) == expected, f"the output shape {expected}")
        outputs = self._cupy.empty(expected, self._cupy.float32)
        for name, array in ((INPUTS, inputs), (OUTPUTS, outputs)):
            _require(context.set_tensor_address(name, array.data.ptr), f"the memory of the {name}")
        # TensorRT prepares for a new shape in the first run, which cannot be recorded
        _require(context.execute_async_v3(self._stream.ptr), "a first run")
        self._stream.synchronize()
        self._stream.begin_capture()
        try:
            recorded = context.execute_async_v3(self._stream.ptr)
        finally:
            graph = self._stream.end_capture()
        _require(recorded, "a recorded run")
        return _Recording(inputs, outputs, graph, context)


def _require(accepted: bool, what: str) -> None:
    if not accepted:
        raise RuntimeError(f"TensorRT refused {what}: its own words are in the log; use runtime openvino")


def _usable_cupy() -> Any:
    """Return the module cupy; raise ValueError, saying what to do, if there is no GPU to use it with."""
    if missing := [name for name in ("tensorrt", "cupy") if find_spec(name) is None]:
        raise ValueError(f'{" and ".join(missing)} not installed: pip install "lowdose[gpu]"')
    try:
        import cupy  # pyright: ignore[reportMissingImports] it has no stubs

        cupy.cuda.runtime.getDeviceCount()
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"no NVIDIA GPU can be used ({error}): install its driver, or use runtime openvino") from None
    return cupy


def _current_gpu(cupy: Any) -> tuple[str, str, int]:
    """Return name, compute capability and free memory [byte] of the current GPU."""
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    free_bytes, _ = runtime.memGetInfo()
    return properties["name"].decode(), f"{properties['major']}.{properties['minor']}", free_bytes


def matmul_gmac_per_s(precision: Precision, edge: int = 8192, runs: int = 5) -> float:
    """Return what the GPU does at most: square matrix products, the fastest of some [1e9 multiply-accumulates/s].

    CuPy has no bfloat16: half precision, which is as fast, stands for it.
    """
    cupy = _usable_cupy()
    operand = cupy.full((edge, edge), 0.5, cupy.float32 if precision == "FP32" else cupy.float16)
    times_s = []
    for _ in range(runs):
        begin = time.perf_counter()
        float((operand @ operand)[0, 0])  # waits for the GPU
        times_s.append(time.perf_counter() - begin)
    return float(edge**3 / 1e9 / min(times_s))
