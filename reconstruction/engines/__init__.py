"""Exchangeable methods that complete a sparse frame, one file each."""

ENGINES: dict[str, str] = {
    "nearest": "lowdose.reconstruction.engines.classical_engine:NearestEngine",
    "linear": "lowdose.reconstruction.engines.classical_engine:LinearEngine",
}
"""Engines that need no file: name -> "module:Class", imported when it is chosen."""

RUNTIMES: dict[str, str] = {
    "tensorrt": "lowdose.reconstruction.engines.tensorrt_engine:TensorRTEngine",
    "torch_cuda_graph": "lowdose.reconstruction.engines.torch_engine:CudaGraphTorchEngine",
    "openvino": "lowdose.reconstruction.engines.openvino_engine:OpenVinoEngine",
    "torch_compiled": "lowdose.reconstruction.engines.torch_engine:CompiledTorchEngine",
    "torch": "lowdose.reconstruction.engines.torch_engine:TorchEngine",
}
"""What runs an engine file, the fastest first: name -> "module:Class", imported when it is chosen."""

AUTO = "auto"
"""Stands for the best engine installed."""
