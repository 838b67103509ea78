"""`lowdose compile`: an engine file made ready for this machine, ahead of the first frame."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdose.config.engines import build_engine
from lowdose.config.figures import run_ms
from lowdose.config.loading import checked
from lowdose.config.schema import StageSettings

if TYPE_CHECKING:
    from pathlib import Path


RUNS = 5


def compile_engine(file: Path, *, size: int, **wanted: Any) -> int:
    """Load an engine file with a runtime, run pictures of a size through it and tell how long that took.

    What a runtime keeps between sessions (TensorRT its plans, torch its compiled code) is there afterwards.

    Parameters
    ----------
    file : Path
        NAME.onnx.
    size : int
        Edge of the pictures [pixel].
    **wanted
        `runtime` and `precision`, as in a stage's settings.
    """
    stage = checked(StageSettings, {"complete": str(file), **wanted}, "compile")
    begin = time.perf_counter()
    engine = build_engine(stage)
    inputs = np.zeros((1, len(engine.info.channels), size, size), np.float32)
    engine.run(inputs)
    ready_s = time.perf_counter() - begin
    runs_ms = [run_ms(engine, inputs) for _ in range(RUNS)]
    print(
        f"{engine.info.name} {engine.info.version} in {engine.info.precision}, {size} x {size}: ready after "
        f"{ready_s:.1f} s, then {np.median(runs_ms):.1f} ms per picture"
    )
    return 0
