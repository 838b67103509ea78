"""`lowdose pattern list | show | export`: patterns as table, picture and file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdose.config.build import require_memory
from lowdose.config.errors import ConfigError
from lowdose.config.options import pattern_mapping, require_writable
from lowdose.config.registry import make_pattern, plug_in_class
from lowdose.scan_patterns.dose import frame_dose_e_per_a2, visited_dose_e_per_a2
from lowdose.scan_patterns.grid import ScanGrid
from lowdose.scan_patterns.pattern import PATTERNS

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from lowdose.scan_patterns.path import ScanPath

BEAM_CURRENT_PA = 25.0
MAX_SEGMENTS_DRAWN = 400_000


def print_table() -> None:
    """Print every pattern with its parameters and their defaults."""
    from rich.console import Console
    from rich.table import Table

    table = Table("pattern", "parameters", "what it is")
    for name in PATTERNS:
        cls = plug_in_class("pattern", name, local=False)
        parameters = ", ".join(f"{f.name}={_short(f.default)}" for f in dataclasses.fields(cls)) or "-"
        table.add_row(name, parameters, (cls.__doc__ or "").split("\n", 1)[0])
    Console().print(table)


def show(name: str, *, coverage: str | None, true_coverage: str | None, shape: int, seed: int, out: Path) -> None:
    """Draw path and mask of a pattern and print what one frame costs."""
    require_writable(out)
    mapping, path = _first_path(name, coverage, true_coverage, shape, seed, dwell_time_us=1.0)
    _draw(name, path, out)
    for line in _facts(mapping, path):
        print(line)
    print(f"wrote {out}")


def export(
    name: str,
    *,
    coverage: str | None,
    true_coverage: str | None,
    shape: int,
    seed: int,
    dwell_time_us: float,
    out: Path,
) -> None:
    """Write the probe positions as CSV."""
    require_writable(out)
    mapping, path = _first_path(name, coverage, true_coverage, shape, seed, dwell_time_us)
    comments = [*_facts(mapping, path), f"pattern {mapping}, seed {seed}, digest {path.digest}"]
    rows = np.column_stack([path.positions, path.dwell_times_us, path.jumps])
    try:
        with out.open("w", encoding="utf-8") as file:
            file.writelines(f"# {line}\n" for line in comments)
            file.write("row,col,dwell_time_us,jump\n")
            np.savetxt(file, rows, fmt=("%.6g", "%.6g", "%.6g", "%d"), delimiter=",")
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from None
    print(f"wrote {len(path)} positions to {out}")


def _first_path(
    name: str, coverage: str | None, true_coverage: str | None, shape: int, seed: int, dwell_time_us: float
) -> tuple[dict[str, Any], ScanPath]:
    mapping = pattern_mapping({}, name, coverage, true_coverage)
    grid = ScanGrid((shape, shape))
    require_memory(grid)
    pattern = make_pattern(mapping, grid, local=True)
    paths = pattern.paths(grid, dwell_time_us=dwell_time_us, rng=np.random.default_rng(seed))
    nominal = getattr(pattern, "coverage", None)
    return {**mapping, **({} if nominal is None else {"coverage": nominal})}, paths[0]


def _facts(mapping: dict[str, Any], path: ScanPath) -> list[str]:
    nominal = mapping.get("coverage", path.coverage)
    dose, visited = frame_dose_e_per_a2(path, BEAM_CURRENT_PA), visited_dose_e_per_a2(path, BEAM_CURRENT_PA)
    return [
        f"{mapping['name']}: {len(path)} positions on {path.grid.rows} x {path.grid.cols}, "
        f"{int(path.jumps.sum())} jumps",
        f"coverage_nominal {_share(nominal)}, coverage {_share(path.coverage)}",
        f"frame {path.duration_us / 1e3:.4g} ms; at {BEAM_CURRENT_PA:g} pA and {path.grid.pixel_size_nm:g} nm pixels "
        f"{dose:.4g} e-/Å² over the field, {visited:.4g} in a visited pixel",
    ]


def _draw(name: str, path: ScanPath, out: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    figure, (order, hits) = plt.subplots(1, 2, figsize=(13, 6.2), layout="constrained")
    step = max(1, len(path) // MAX_SEGMENTS_DRAWN)
    points = path.positions[::step, ::-1]
    segments = np.stack([points[:-1], points[1:]], axis=1)
    drawn = ~path.jumps[::step][1:]
    lines = LineCollection(list(segments[drawn]), array=np.flatnonzero(drawn) * step, cmap="viridis", linewidths=0.7)
    order.add_collection(lines)
    if _steps_apart(segments):
        order.scatter(*points.T, s=2, c=np.arange(len(points)) * step, cmap="viridis")
    order.set(
        xlim=(-0.5, path.grid.cols - 0.5),
        ylim=(path.grid.rows - 0.5, -0.5),
        aspect="equal",
        title=f"{name}: visiting order",
        xlabel="column [pixel]",
        ylabel="row [pixel]",
    )
    figure.colorbar(lines, ax=order, label="position in the path", shrink=0.85)
    shown = hits.imshow(path.hits, cmap="magma", vmax=max(1, int(path.hits.max())), interpolation="nearest")
    hits.set(title=f"hits: coverage {_share(path.coverage)}", xlabel="column [pixel]")
    figure.colorbar(shown, ax=hits, label="visits", shrink=0.85)
    try:
        figure.savefig(out, dpi=110, format=out.suffix[1:] or "png")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {out}: {error}") from None
    finally:
        plt.close(figure)


def _steps_apart(segments: NDArray[np.float32]) -> bool:
    """Tell whether the positions are single points, more than a pixel from each other."""
    return len(segments) == 0 or float(np.median(np.abs(segments[:, 1] - segments[:, 0]).max(axis=1))) > 1.5


def _share(coverage: float) -> str:
    return f"{coverage:.5g} (1/{1 / coverage:.4g})"


def _short(value: Any) -> str:
    return f"1/{1 / value:.4g}" if isinstance(value, float) and 0 < value < 1 else str(value)
