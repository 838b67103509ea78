"""`lowdose doctor`: what is installed, what would run where, what is missing and the command that fixes it."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import which

import psutil

from lowdose.acquisition.display.qt_checks import DisplayError, has_screen, require_qt, require_xcb_plugin, uses_xcb
from lowdose.reconstruction.engines import ENGINES, RUNTIMES
from lowdose.reconstruction.engines.choice import why_not
from lowdose.reconstruction.shipped import shipped

BASE = [
    *("numpy", "scipy", "pyzmq", "msgpack", "pydantic", "tifffile", "imagecodecs", "pillow", "pyqtgraph"),
    *("PySide6-Essentials", "openvino", "onnx", "mcap", "zstandard", "platformdirs", "matplotlib"),
]
GPU_FIGURES = Path("lowdose-gpu.json")
EXTRAS = {
    "train": ("torch", "onnxscript", "scikit-image", "tensorboard"),
    "gpu": ("tensorrt", "cupy-cuda13x"),
    "export": ("h5py", "zarr"),
    "vendor-formats": ("rosettasciio", "h5py", "sparse"),
}


def examine(*, gpu: bool) -> int:
    """Print what was found; return 1 if something needed is missing, else 0."""
    print(f"lowdose {_version('lowdose')} on Python {platform.python_version()}, {platform.platform()}")
    memory = psutil.virtual_memory()
    print(f"{psutil.cpu_count()} cores, {memory.total / 2**30:.0f} GiB memory ({memory.available / 2**30:.0f} free)")
    missing = [name for name in BASE if _version(name) is None]
    print("base: " + ", ".join(f"{name} {_version(name) or 'MISSING'}" for name in BASE))
    if missing:
        print(f"  fix: pip install {' '.join(missing)}")
    for extra, names in EXTRAS.items():
        absent = [name for name in names if _version(name) is None]
        print(f"extra {extra}: " + (f'not installed ("pip install lowdose[{extra}]")' if absent else "installed"))
    problem = _display_problem()
    print(f"display: {problem or 'a window can be shown'}")
    print(f"priority: {'can be raised' if _may_raise_priority() else 'cannot be raised (limits.conf: nice -10)'}")
    print(f"engines: {', '.join([*ENGINES, *shipped()])}; engine files run on, the fastest first:")
    for runtime in RUNTIMES:
        print(f"  {runtime}: {why_not(runtime) or 'yes'}")
    if gpu:
        print(_gpu_report())
        from lowdose.config.gpu_check import self_test

        return self_test(GPU_FIGURES) or (1 if missing else 0)
    return 1 if missing else 0


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _display_problem() -> str:
    try:
        require_qt()
        if not has_screen():
            return "no screen: `lowdose live` runs without a window and leaves a picture"
        if uses_xcb():
            require_xcb_plugin()
    except DisplayError as error:
        return str(error)
    return ""


def _may_raise_priority() -> bool:
    if not hasattr(os, "geteuid"):
        return True
    import resource

    return os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_NICE)[0] >= 30


def _gpu_report() -> str:
    smi = which("nvidia-smi")
    if smi is None:
        return "gpu: no nvidia-smi, so no NVIDIA driver: everything runs on the processor"
    query = [smi, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)  # noqa: S603
    have = [name for name in ("cupy", "tensorrt", "torch") if importlib.util.find_spec(name) is not None]
    return f"gpu: {found.stdout.strip() or found.stderr.strip()}; libraries: {', '.join(have) or 'none'}"
