"""What every benchmark says the same way: percentiles, and the machine it ran on (imports numpy and psutil)."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import Engine

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}


def percentiles(values_ms: NDArray[np.float64]) -> dict[str, float]:
    """Return the percentiles of times, by name [ms]."""
    return {name: round(float(np.percentile(values_ms, q)), 3) for name, q in PERCENTILES.items()}


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
