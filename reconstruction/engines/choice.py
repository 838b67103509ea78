"""Which runtime runs an engine file here, and why (imports nothing heavy)."""

from __future__ import annotations

import logging
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lowdose.reconstruction.engine import PRECISIONS
from lowdose.reconstruction.engine_file import read_engine_file
from lowdose.reconstruction.engines import AUTO, ENGINES, RUNTIMES
from lowdose.reconstruction.shipped import DEFAULT, shipped
from lowdose.reconstruction.tiling import Tiled
from lowdose.scan_patterns.checks import nearest_name

if TYPE_CHECKING:
    from types import ModuleType

    from lowdose.reconstruction.engine import Engine, Precision
    from lowdose.reconstruction.engine_file import EngineFile

logger = logging.getLogger(__name__)

NEEDS: dict[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "cupy"),
    "torch_cuda_graph": ("torch",),
    "openvino": ("openvino",),
    "torch_compiled": ("torch",),
    "torch": ("torch",),
}
"""The packages of every runtime."""

EXTRAS = {"tensorrt": "gpu", "torch_cuda_graph": "train", "torch_compiled": "train", "torch": "train"}
"""What installs them, where the base installation does not."""

NEED_GPU = ("tensorrt", "torch_cuda_graph")


def why_not(runtime: str) -> str | None:
    """Return what keeps a runtime from running here, None if nothing does."""
    if runtime in NEED_GPU and shutil.which("nvidia-smi") is None:
        return "no NVIDIA GPU here"
    missing = [package for package in NEEDS[runtime] if find_spec(package) is None]
    if missing:
        remedy = f'pip install "lowdose[{EXTRAS[runtime]}]"' if runtime in EXTRAS else "install lowdose again"
        return f"{' and '.join(missing)} not installed: {remedy}"
    return None


def path_of(name: str) -> Path | None:
    """Return the engine file of a name: a shipped one, the default for "auto", or a path; None if it names no file.

    Raises
    ------
    ValueError
        If the default engine is missing from the installation.
    """
    if name == AUTO and DEFAULT not in shipped():
        raise ValueError(f"{DEFAULT}.onnx is missing from this installation: install lowdose again, or name 'linear'")
    name = DEFAULT if name == AUTO else name
    return shipped().get(name) or (Path(name).expanduser() if name.endswith(".onnx") else None)


def unknown_engine(name: str) -> str:
    """Return what to tell of a name that stands for no engine."""
    return f"unknown engine '{name}': {nearest_name(name, [*ENGINES, *shipped(), AUTO])}, or NAME.onnx"


def engine_named(name: str) -> Engine:
    """Return an engine for pictures of any size, by "auto", a row of `ENGINES`, a shipped engine file, or a path.

    Raises
    ------
    ValueError
        If there is no such engine, or it cannot run here.
    """
    if (path := path_of(name)) is not None:
        return Tiled(load_engine(read_engine_file(path)))
    target = ENGINES.get(name)
    if target is None:
        raise ValueError(unknown_engine(name))
    module, _, cls = target.partition(":")
    made: Engine = getattr(import_module(module), cls)()
    return made


def load_engine(
    file: EngineFile, *, runtime: str = AUTO, precision: str = AUTO, threads: int = 0, streams: int = 1
) -> Engine:
    """Return an engine that runs an engine file.

    Parameters
    ----------
    file : EngineFile
        Read and checked.
    runtime : str
        A row of `RUNTIMES`; "auto" = the first of them that runs here, told in the log with what kept the faster ones.
    precision : "auto", "FP32", "BF16" or "FP16"
        Of the arithmetic.
    threads : int
        0 = one for every core.
    streams : int
        Pictures that OpenVINO runs side by side; the other runtimes run one at a time.

    Raises
    ------
    ValueError
        If the runtime does not run here or does not compute in that precision.
    """
    if runtime != AUTO:
        if (reason := why_not(runtime)) is not None:
            raise ValueError(f"{runtime} cannot run {file.path.name}: {reason}")
        return _made(runtime, file, precision, threads, streams)
    passed: list[str] = []
    for name in RUNTIMES:
        reason = why_not(name)
        try:
            engine = None if reason else _made(name, file, precision, threads, streams)
        except (ValueError, RuntimeError, ImportError, OSError) as error:
            engine, reason = None, str(error)
        if engine is not None:
            logger.info("%s runs on %s: %s", file.path.name, name, "; ".join(passed) or "the fastest there is")
            return engine
        passed.append(f"{name}: {reason}")
    raise ValueError(f"nothing here can run {file.path.name}: {'; '.join(passed)}")


def precisions(runtime: str, file: EngineFile) -> tuple[Precision, ...]:
    """Return the precisions in which a runtime that runs here can run a file, the fastest last."""
    if runtime == "tensorrt":  # computes in the precision a file was exported in
        return tuple(known for known in PRECISIONS if known == file.info.precision)
    found: tuple[Precision, ...] = _module(runtime).precisions()
    return found


def matmul_gmac_per_s(runtime: str, precision: Precision) -> float:
    """Return the peak of a runtime: square matrix products [1e9 multiply-accumulates/s]."""
    peak: float = _module(runtime).matmul_gmac_per_s(precision)
    return peak


def _module(runtime: str) -> ModuleType:
    return import_module(RUNTIMES[runtime].partition(":")[0])


def _made(runtime: str, file: EngineFile, precision: str, threads: int, streams: int) -> Engine:
    make = getattr(_module(runtime), RUNTIMES[runtime].partition(":")[2])
    own = {"streams": streams} if runtime == "openvino" else {}
    engine: Engine = make(file, precision=precision, threads=threads, **own)
    return engine
