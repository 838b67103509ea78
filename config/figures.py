"""What every command says the same way: percentiles, the machine, figures as JSON (imports numpy and psutil)."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from lowdose.reconstruction.engine_file import write_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import Engine

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}


def percentiles(values_ms: NDArray[np.float64]) -> dict[str, float]:
    """Return the percentiles of times, by name [ms]."""
    return {name: round(float(np.percentile(values_ms, q)), 3) for name, q in PERCENTILES.items()}


def write_json(path: Path, figures: Any) -> None:
    """Write figures to a file, which appears when it is whole; what is no file, as /dev/stdout, is written to.

    Raises
    ------
    RuntimeError
        If it cannot be written, with its name.
    """
    content = (json.dumps(figures, indent=2, allow_nan=False) + "\n").encode()
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            write_whole(path, content)
    except OSError as error:
        raise RuntimeError(f"cannot write {path}: {error.strerror or error}") from None


def machine() -> str:
    """Return processor, cores, memory and system in one line."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    memory_gib = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{model}, {psutil.cpu_count()} cores, {memory_gib:.0f} GiB, {system}"


def run_ms(engine: Engine, inputs: NDArray[np.float32]) -> float:
    """Return how long an engine takes for a batch [ms]."""
    begin = time.perf_counter()
    engine.run(inputs)
    return 1e3 * (time.perf_counter() - begin)
