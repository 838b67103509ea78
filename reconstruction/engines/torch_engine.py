"""Torch engines: an engine file's network in torch again: eager, compiled or as CUDA graph (imports torch late)."""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowdose.reconstruction.engine import PRECISIONS, Precision
from lowdose.reconstruction.engine_file import EngineFileError, bytes_of, parse_onnx
from lowdose.reconstruction.models import MODELS
from lowdose.scan_patterns.checks import nearest_name

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from lowdose.reconstruction.engine_file import EngineFile, ModelSpec

NAMES_SHOWN = 3
"""Weights an error names before it counts the rest."""
SHAPES_KEPT = 3
"""CUDA graphs: the whole field, a tile, a region."""
WARM_UPS = 3
"""Runs before a capture, in which libraries choose their kernels and take their memory."""


class TorchEngine:
    """Runs an engine file in torch, operation by operation: on the GPU if there is one, else on the CPU.

    Pictures of a batch are run one by one, so that the result cannot depend on what they are run with.

    Parameters
    ----------
    file : EngineFile
        Read and checked; its card names the network.
    precision : "auto", "FP32", "BF16" or "FP16"
        Of weights and arithmetic; "auto" = the file's on a GPU, FP32 on a CPU. FP32 is never TF32; FP16 needs a GPU.
    threads : int
        On the CPU, for all of torch in this process; 0 = as it is.

    Raises
    ------
    EngineFileError
        If the card names no network of `MODELS`, or the file's weights are not those of that network.
    ValueError
        If torch is missing or does not compute in that precision here.
    """

    def __init__(self, file: EngineFile, *, precision: Precision | Literal["auto"] = "auto", threads: int = 0) -> None:
        self._torch = _torch()
        if threads > 0:
            self._torch.set_num_threads(threads)
        self._device = self._torch.device("cuda" if self._torch.cuda.is_available() else "cpu")
        chosen = _chosen(precision, file.info.precision, on_gpu=self._device.type == "cuda")
        self._dtype = _dtype(chosen)
        self.info = replace(file.info, precision=chosen)
        self._outputs = file.card.outputs
        self._network: Any = load_network(file).to(self._device, self._dtype)

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return mean and standard deviation of pictures; see `Engine.run`."""
        batch, _, rows, cols = inputs.shape
        scale = self.info.scale
        out = np.zeros((batch, 2, scale * rows, scale * cols), np.float32)
        flags = self._torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )  # without effect on a CPU
        with self._torch.inference_mode(), flags:
            for picture, result in zip(inputs, out, strict=True):
                uploaded = self._torch.from_numpy(picture[None].copy()).to(self._device, self._dtype)
                output = self._forward(uploaded)
                result[: self._outputs] = output[0].to("cpu", self._torch.float32).numpy()
        return out

    def _forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Run the network on (1, channels, rows, cols)."""
        output: torch.Tensor = self._network(picture)
        return output


class CompiledTorchEngine(TorchEngine):
    """Runs what torch.compile makes of the network: compiled anew for every size of picture when the first one comes.

    The first picture of a size takes a minute or so. A size is compiled as it is: code for any size would be slower.
    After eight sizes torch runs further ones uncompiled, and warns of it.

    Raises
    ------
    ValueError
        As `TorchEngine`, and if the compiler that torch.compile needs is missing.
    """

    def __init__(self, file: EngineFile, *, precision: Precision | Literal["auto"] = "auto", threads: int = 0) -> None:
        super().__init__(file, precision=precision, threads=threads)
        _require_compiler(on_gpu=self._device.type == "cuda")
        self._network = self._torch.compile(self._network, dynamic=False)


class CudaGraphTorchEngine(TorchEngine):
    """Runs the network as a CUDA graph, recorded for every size of picture when the first one comes.

    Raises
    ------
    ValueError
        As `TorchEngine`, and if there is no GPU.
    """

    def __init__(self, file: EngineFile, *, precision: Precision | Literal["auto"] = "auto", threads: int = 0) -> None:
        if not _torch().cuda.is_available():
            raise ValueError("torch_cuda_graph needs an NVIDIA GPU that torch can use, found none: use runtime torch")
        super().__init__(file, precision=precision, threads=threads)
        self._graphs: dict[tuple[int, ...], tuple[Any, torch.Tensor, torch.Tensor]] = {}  # the oldest first
        self._lock = threading.Lock()  # a graph reads and writes its own tensors

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return mean and standard deviation of pictures; see `Engine.run`."""
        with self._lock:
            return super().run(inputs)

    def _forward(self, picture: torch.Tensor) -> torch.Tensor:
        shape = tuple(picture.shape)
        if shape not in self._graphs:
            while len(self._graphs) >= SHAPES_KEPT:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[shape] = self._recorded(picture)
        graph, graph_input, graph_output = self._graphs[shape]
        graph_input.copy_(picture)
        graph.replay()
        return graph_output

    def _recorded(self, picture: torch.Tensor) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """Return the graph of a size of picture, and the tensors it reads and writes."""
        graph_input = picture.clone()
        side = self._torch.cuda.Stream()
        side.wait_stream(self._torch.cuda.current_stream())
        with self._torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._network(graph_input)
        self._torch.cuda.current_stream().wait_stream(side)
        graph = self._torch.cuda.CUDAGraph()
        with self._torch.cuda.graph(graph):
            graph_output = self._network(graph_input)
        return graph, graph_input, graph_output


def load_network(file: EngineFile) -> nn.Module:
    """Return the network of an engine file with the file's weights, on the CPU, in FP32, for inference.

    Only rows of `MODELS` are imported. The network is first built without memory and compared with the file, so that
    a card cannot ask for more memory than its weights take.

    Raises
    ------
    EngineFileError
        If the network cannot be built, or has other weights than the file.
    """
    if (spec := file.card.model) is None:
        raise EngineFileError(
            f"the card of {file.path.name} names no network, torch needs one: use runtime openvino or tensorrt"
        )
    torch = _torch()
    weights = _weights(file)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in _built(spec, file).state_dict().items()}
    _require_same_weights(shapes, weights, file, spec)
    network = _built(spec, file)
    network.load_state_dict({name: torch.from_numpy(weights[name]) for name in shapes})
    return network.requires_grad_(False)


def _built(spec: ModelSpec, file: EngineFile) -> nn.Module:
    if spec.name not in MODELS:
        raise EngineFileError(f"{file.path.name} holds the unknown network '{spec.name}': {_known(spec.name)}")
    module, _, name = MODELS[spec.name].partition(":")
    try:
        network = getattr(import_module(module), name)(**spec.options).eval()
    except (TypeError, ValueError, RuntimeError) as error:
        raise EngineFileError(
            f"the network '{spec.name}' of {file.path.name} cannot be built with {spec.options}: {error}"
        ) from None
    folded: nn.Module = network.folded().eval() if hasattr(network, "folded") else network
    return folded


def _known(name: str) -> str:
    return f"{nearest_name(name, MODELS)}; get the version of lowdose that wrote it"


def _weights(file: EngineFile) -> dict[str, NDArray[np.float32]]:
    """Return the file's weights by name, as float32."""
    from onnx import numpy_helper

    initializers = parse_onnx(bytes_of(file), file.path).graph.initializer
    return {tensor.name: np.array(numpy_helper.to_array(tensor), np.float32) for tensor in initializers}


def _require_same_weights(
    shapes: dict[str, tuple[int, ...]], weights: dict[str, NDArray[np.float32]], file: EngineFile, spec: ModelSpec
) -> None:
    """Raise EngineFileError unless the file has every weight of the network and no other.

    The parameters of a network's layers have a dot in their names; constants of the ONNX exporter have none.
    """
    wrong = {
        "lacks": [name for name in shapes if name not in weights],
        "has the unexpected": [name for name in weights if "." in name and name not in shapes],
        "has other shapes of": [
            f"{name} {weights[name].shape} for {shape}"
            for name, shape in shapes.items()
            if name in weights and weights[name].shape != shape
        ],
    }
    if said := [f"{verb} {_listed(names)}" for verb, names in wrong.items() if names]:
        raise EngineFileError(
            f"{file.path.name} is not the network '{spec.name}' with {spec.options or 'its own options'}: it "
            f"{', '.join(said)}; expected its {len(shapes)} weights: export it again"
        )


def _listed(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _chosen(precision: Precision | Literal["auto"], of_file: str, *, on_gpu: bool) -> Precision:
    # FP16 on a CPU took 40 times as long as FP32: 51 s for a picture of 256 x 256 that FP32 did in 1.25 s
    usable = PRECISIONS if on_gpu else tuple(name for name in PRECISIONS if name != "FP16")
    if precision == "auto":
        return next((name for name in usable if on_gpu and name == of_file), "FP32")
    if precision not in usable:
        raise ValueError(f"torch computes in {' or '.join(usable)} here, got precision {precision}: leave it out")
    return precision


def _require_compiler(*, on_gpu: bool) -> None:
    if on_gpu and find_spec("triton") is None:
        raise ValueError("torch_compiled needs triton on a GPU, found none: pip install triton, or use runtime torch")
    compiler = os.environ.get("CXX", "g++")
    if not on_gpu and shutil.which(compiler) is None:
        raise ValueError(
            f"torch_compiled needs a C++ compiler on a CPU, found no '{compiler}': install g++ (or set CXX to yours), "
            "or use runtime torch"
        )


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ValueError(f'torch cannot be imported ({error}): pip install "lowdose[train]"') from None
    return torch


def precisions() -> tuple[Precision, ...]:
    """Return the precisions in which torch computes fast enough to be of use, the fastest last."""
    return ("FP32", "BF16", "FP16") if _torch().cuda.is_available() else ("FP32", "BF16")


def matmul_gmac_per_s(precision: Precision, edge: int = 2048, runs: int = 5) -> float:
    """Return what torch does here at most: square matrix products, the fastest of some [1e9 multiply-accumulates/s]."""
    torch = _torch()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _dtype(precision)
    edge = 4 * edge if device.type == "cuda" else edge
    operand = torch.full((edge, edge), 0.5, dtype=dtype, device=device)
    times_s = []
    for _ in range(runs):
        begin = time.perf_counter()
        float((operand @ operand)[0, 0])  # waits for a GPU
        times_s.append(time.perf_counter() - begin)
    return float(edge**3 / 1e9 / min(times_s))


def _dtype(precision: Precision) -> Any:
    torch = _torch()
    return {"FP32": torch.float32, "BF16": torch.bfloat16, "FP16": torch.float16}[precision]
