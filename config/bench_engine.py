"""`lowdose bench engine`: how fast each runtime runs each engine file, every row in a process of its own."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lowdose.config.errors import ConfigError
from lowdose.config.figures import machine, run_ms, write_json
from lowdose.config.options import require_writable
from lowdose.reconstruction.engine_file import read_engine_file
from lowdose.reconstruction.engines import RUNTIMES
from lowdose.reconstruction.engines.choice import load_engine, matmul_gmac_per_s, path_of, precisions, why_not
from lowdose.reconstruction.parity import relative_rms
from lowdose.reconstruction.shipped import shipped
from lowdose.scan_patterns.checks import nearest_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import Engine, Precision
    from lowdose.reconstruction.engine_file import EngineFile

COMPARED = "two_stage"
"""The network that shipped engines are measured beside by default."""
REFERENCE = ("torch", "FP32")
"""Every other row is compared with it."""
ROW_S = 5.0
MIN_RUNS, MAX_RUNS = 5, 200


@dataclass(frozen=True, slots=True)
class Job:
    """One row: an engine file on a runtime.

    Parameters
    ----------
    path : Path
        Engine file.
    runtime, precision : str
        What runs it.
    batch, size : int
        Pictures in a batch, their edge [pixel].
    output : Path
        Where the reference's output is kept for the others to be compared with.
    row_s : float
        How long it is timed [s].
    """

    path: Path
    runtime: str
    precision: Precision
    batch: int
    size: int
    output: Path
    row_s: float


def run_engine(
    *,
    models: Sequence[str],
    runtimes: Sequence[str],
    batches: Sequence[int],
    sizes: Sequence[int],
    json_file: Path | None,
    row_s: float = ROW_S,
) -> int:
    """Measure every combination, print a table and write the figures.

    Parameters
    ----------
    models : sequence of str
        Engine files (NAME.onnx), names of shipped ones and of reference models; empty = all shipped ones and the
        two-stage network.
    runtimes : sequence of str
        Rows of `RUNTIMES`; empty = all that run here.
    batches, sizes : sequence of int
        Pictures in a batch, their edges [pixel].
    json_file : Path or None
        Where the figures go.
    row_s : float
        How long each combination is timed [s].
    """
    require_writable(json_file)
    _require_runtimes(runtimes)
    files = [_engine_file(name) for name in models or [*shipped(), COMPARED]]
    with tempfile.TemporaryDirectory(prefix="lowdose-bench-") as folder:
        jobs = list(_jobs(files, runtimes or list(RUNTIMES), batches, sizes, Path(folder), row_s))
        rows = [_measured_apart(job) for job in track(jobs, "measuring", console=Console(stderr=True), transient=True)]
    left_out = {name: reason for name in runtimes or RUNTIMES if (reason := why_not(name)) is not None}
    figures = {"rows": rows, "left_out": left_out, "machine": machine()}
    _print(figures)
    if json_file is not None:
        write_json(json_file, figures)
    return 0 if any("ms_p50" in row for row in rows) else 1


def _require_runtimes(names: Sequence[str]) -> None:
    for name in names:
        if name not in RUNTIMES:
            raise ConfigError(f"unknown runtime '{name}': {nearest_name(name, RUNTIMES)}")
        if (reason := why_not(name)) is not None:
            raise ConfigError(f"{name} cannot run here: {reason}")


def _engine_file(name: str) -> EngineFile:
    """Return an engine file given by its path, as a shipped one or as a reference model, which is made when new."""
    try:
        path = path_of(name)
        if path is not None:
            return read_engine_file(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    try:
        from lowdose.training.reference_models import REFERENCE_MODELS, reference_model
    except ImportError as error:
        raise ConfigError(f'a reference model is made with torch: pip install "lowdose[train]" ({error})') from None
    if name not in REFERENCE_MODELS:
        known = [*shipped(), *REFERENCE_MODELS]
        raise ConfigError(f"unknown model '{name}': {nearest_name(name, known)}, or NAME.onnx")
    with Console(stderr=True).status(f"{name}: made once, half a minute and 212 MB in the user's cache"):
        return reference_model(name)


def _jobs(
    files: Sequence[EngineFile],
    runtimes: Sequence[str],
    batches: Sequence[int],
    sizes: Sequence[int],
    folder: Path,
    row_s: float,
) -> Iterator[Job]:
    """Yield the rows; what the others are compared with comes first."""
    usable = [runtime for runtime in runtimes if why_not(runtime) is None]
    for i, (file, size, batch) in enumerate(product(files, sizes, batches)):
        if size % file.info.size_multiple:
            raise ConfigError(
                f"--size must be a multiple of {file.info.size_multiple} for {file.path.name}, got {size}"
            )
        pairs = [(runtime, precision) for runtime in usable for precision in precisions(runtime, file)]
        for runtime, precision in sorted(pairs, key=lambda pair: pair != REFERENCE):
            yield Job(file.path, runtime, precision, batch, size, folder / f"reference-{i}.npy", row_s)


def _measured_apart(job: Job) -> dict[str, Any]:
    """Return a row measured in a process of its own, so that its peak memory is its own and its end no one else's."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure, job).result()
        except BrokenProcessPool:
            return {**_name(job), "error": "the process was ended from outside: probably too little memory"}


def measure(job: Job) -> dict[str, Any]:
    """Return the row of a job, or why there is none.

    The peak is that of matrix products by the same runtime in the same precision, in the same process.
    """
    file = read_engine_file(job.path)
    try:
        engine = load_engine(file, runtime=job.runtime, precision=job.precision)
        inputs = _inputs(job, len(engine.info.channels))
        begin = time.perf_counter()
        output = engine.run(inputs)
        first_s = time.perf_counter() - begin
        times_ms = _times_ms(engine, inputs, job.row_s)
    except (ValueError, RuntimeError, MemoryError) as error:
        return {**_name(job), "error": str(error).splitlines()[0]}
    peak_mib = _peak_mib()
    p50 = float(np.median(times_ms))
    gmac_per_s = file.card.gmac_512 * (job.size / 512) ** 2 * job.batch / (p50 / 1e3)
    matmul = matmul_gmac_per_s(job.runtime, job.precision)
    return {
        **_name(job),
        "ms_p50": round(p50, 3),
        "ms_p99": round(float(np.percentile(times_ms, 99)), 3),
        "runs": len(times_ms),
        "first_ms": round(1e3 * first_s, 1),
        "gmac_per_s": round(gmac_per_s, 1),
        "peak_fraction": round(gmac_per_s / matmul, 3),
        "parity": _parity(job, output),
        "peak_mib": round(peak_mib),
    }


def _name(job: Job) -> dict[str, Any]:
    return {
        "model": job.path.stem,
        "engine": job.runtime,
        "precision": job.precision,
        "batch": job.batch,
        "size": job.size,
    }


def _inputs(job: Job, n_channels: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((job.batch, n_channels, job.size, job.size), dtype=np.float32)


def _times_ms(engine: Engine, inputs: NDArray[np.float32], row_s: float) -> list[float]:
    """Return how long each of some runs took [ms]; the first one, which compiles, was before."""
    times_ms: list[float] = []
    end = time.perf_counter() + row_s
    while len(times_ms) < MIN_RUNS or (len(times_ms) < MAX_RUNS and time.perf_counter() < end):
        times_ms.append(run_ms(engine, inputs))
    return times_ms


def _parity(job: Job, output: NDArray[np.float32]) -> float | None:
    """Return the difference from the reference; None for the reference itself, and where there is none."""
    if (job.runtime, job.precision) == REFERENCE:
        np.save(job.output, output)
    if not job.output.exists() or (job.runtime, job.precision) == REFERENCE:
        return None
    return float(f"{relative_rms(output, np.load(job.output)):.3g}")


def _peak_mib() -> float:
    """Return the most memory this process has had [MiB]."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would begin with that of the process it was forked from
        return int(status.read_text(encoding="ascii").partition("VmHWM:")[2].split()[0]) / 2**10
    memory = psutil.Process().memory_info()
    return float(getattr(memory, "peak_wset", memory.rss)) / 2**20


def _print(figures: dict[str, Any]) -> None:
    columns = {
        "ms p50": "ms_p50",
        "p99": "ms_p99",
        "GMAC/s": "gmac_per_s",
        "of peak": "peak_fraction",
        "parity": "parity",
        "MiB": "peak_mib",
    }
    table = Table("model", "engine", "precision", "batch", "size", *columns)
    for row in figures["rows"]:
        names = [str(row[key]) for key in ("model", "engine", "precision", "batch", "size")]
        table.add_row(*names, *([row["error"]] if "error" in row else [_shown(row[key]) for key in columns.values()]))
    console = Console(width=130)
    console.print(table)
    for name, reason in figures["left_out"].items():
        console.print(f"{name} left out: {reason}", markup=False)
    console.print(figures["machine"])


def _shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.4g}"
