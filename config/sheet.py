"""The sheet of `lowdose pattern show`: one path in six panels (imports matplotlib only when it draws)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter

from lowdose.acquisition.display.qt_checks import DisplayError, has_screen
from lowdose.acquisition.display.qt_checks import require_window as require_qt_window
from lowdose.config.errors import ConfigError
from lowdose.scan_patterns.dose import dose_map_e_per_a2

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from lowdose.config.patterns import PathReport
    from lowdose.scan_patterns.path import ScanPath

SIZE_INCH = (16.5, 10.0)
DPI = 150
MAX_DRAWN = 60_000
"""Longer paths are drawn by some of their positions."""
MAX_CELLS = 512
"""Larger maps are drawn as means over square cells, so that every pixel counts on the screen."""
STEP, JUMP, MEDIAN, MAX = "#33658a", "#e07a1f", "#222222", "#c8372d"
MISSED = "#12a150"
MAX_TITLE = 130
MAX_LINE = 190
SHORTEST_STEP_PX = 0.01


def write_sheet(report: PathReport, out: Path) -> None:
    """Draw the sheet into a file; its suffix chooses the format."""
    from matplotlib.figure import Figure

    figure = Figure(SIZE_INCH, layout="constrained")
    draw_sheet(report, figure)
    try:
        figure.savefig(out, dpi=DPI, format=out.suffix[1:] or "png")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {out}: {error}") from None


def show_sheet(report: PathReport) -> None:
    """Draw the sheet into a window and return when it is closed."""
    import matplotlib as mpl

    mpl.use("qtagg")
    import matplotlib.pyplot as plt

    figure = plt.figure(report.mapping["name"], SIZE_INCH, layout="constrained")
    draw_sheet(report, figure)
    plt.show()


def require_window() -> None:
    """Raise ConfigError unless a window can be opened."""
    if not has_screen():
        raise ConfigError("--window needs a screen, there is none here: use --out FILE")
    try:
        require_qt_window()
    except DisplayError as error:
        raise ConfigError(f"--window cannot be opened, {error}; or use --out FILE") from None


def draw_sheet(report: PathReport, figure: Figure) -> None:
    """Draw all panels: maps above, distributions below."""
    import matplotlib as mpl

    head, body = figure.subfigures(2, 1, height_ratios=(1.25, 12.5), squeeze=False)[:, 0]
    facts = [fact.removeprefix(f"{report.mapping['name']}: ") for fact in report.facts]
    title = _shortened(report.title, MAX_TITLE)
    head.text(0.01, 0.8, title, fontsize=15, fontweight="bold", va="center", parse_math=False)
    lines = (f"{facts[0]}  ·  {facts[1]}", f"{facts[2]}  ·  {facts[3]}", report.deflection_fact)
    head.text(0.01, 0.2, "\n".join(_shortened(line, MAX_LINE) for line in lines), fontsize=10.5, va="center")
    with mpl.rc_context({"axes.titlesize": 11}):
        axes = body.subplots(2, 3, height_ratios=(1.45, 1), gridspec_kw={"wspace": 0.06})
    _draw_path(axes[0, 0], report.path)
    _mark_unreached(axes[0, 0], report)
    _draw_hits(axes[0, 1], report.path)
    _draw_dose(axes[0, 2], report)
    _draw_distances(axes[1, 0], report.distances_px)
    _draw_steps(axes[1, 1], report)
    _draw_slews(axes[1, 2], report.slews_px_per_us)


def drawn_positions(path: ScanPath) -> NDArray[np.int64]:
    """Return which positions of a long path to draw: every k-th, and all ends of its strokes between jumps.

    A path of more than `MAX_DRAWN` jumps keeps every k-th only.
    """
    keep = np.zeros(len(path), bool)
    keep[:: -(-len(path) // MAX_DRAWN)] = True
    if _has_strokes(path):
        keep |= path.jumps
        keep[:-1] |= path.jumps[1:]
        keep[-1] = True
    return np.flatnonzero(keep)


def cell_means(image: NDArray[Any], cell_px: int) -> NDArray[np.float64]:
    """Return the means over square cells; those at the lower and right edge may be smaller.

    Examples
    --------
    >>> cell_means(np.array([[1, 3, 5], [5, 7, 5]]), 2).tolist()
    [[4.0, 5.0]]
    """
    if cell_px == 1:
        return image.astype(np.float64)
    starts = [np.arange(0, n, cell_px) for n in image.shape]
    sums = np.add.reduceat(image, starts[1], axis=1, dtype=np.float64)
    sums = np.add.reduceat(sums, starts[0], axis=0)
    rows, cols = (np.diff(start, append=n) for start, n in zip(starts, image.shape, strict=True))
    return np.asarray(sums / np.outer(rows, cols))


def _has_strokes(path: ScanPath) -> bool:
    return int(path.jumps.sum()) <= MAX_DRAWN


def _draw_path(ax: Axes, path: ScanPath) -> None:
    from matplotlib.collections import LineCollection

    drawn = drawn_positions(path)
    points, order = path.positions[drawn, ::-1], drawn / max(1, len(path) - 1)
    line = ~path.jumps[drawn[1:]] & _has_strokes(path)
    alone = ~np.logical_or(np.append(line, False), np.append(False, line))
    edge = max(path.grid.shape)
    segments = np.stack([points[:-1], points[1:]], axis=1)[line]
    lines = LineCollection(list(segments), array=order[1:][line], cmap=_order_colours(), linewidths=_width(edge))
    lines.set(clim=(0, 1), capstyle="projecting", snap=False)
    ax.add_collection(lines)
    if alone.any():
        size = np.clip(5e4 / max(alone.sum(), edge), 1, 40)
        dots = points[alone]
        ax.scatter(dots[:, 0], dots[:, 1], s=size, c=order[alone], cmap=_order_colours(), vmin=0, vmax=1, linewidths=0)
    some = "" if len(drawn) == len(path) else f"; {len(drawn):,} of {len(path):,} positions"
    some += "" if path.inside.all() else f"; {np.count_nonzero(~path.inside):,} outside the field"
    _frame_map(ax, path, f"path without its jumps{some}")
    bar = _colour_bar(ax, lines, "visiting order")
    bar.set_ticks([0, 0.5, 1], labels=["first", "half", "last"])


def _mark_unreached(ax: Axes, report: PathReport) -> None:
    """Mark what the deflector misses, with the smaller dots the more it is."""
    if isinstance(report.deflection, str):
        return
    missed = np.flatnonzero(report.deflection.unreached)
    if len(missed):
        drawn = missed[:: -(-len(missed) // MAX_DRAWN)]
        col, row = report.path.positions[drawn, 1], report.path.positions[drawn, 0]
        size = np.clip(3e3 / len(drawn), 0.8, 9)
        ax.scatter(col, row, s=size, color=MISSED, linewidths=0, zorder=3, label=f"{len(missed):,} not reached")
        ax.legend(loc="upper right", framealpha=0.85, edgecolor="none", markerscale=3 / np.sqrt(size))


def _draw_hits(ax: Axes, path: ScanPath) -> None:
    from matplotlib.colors import PowerNorm

    cell_px = -(-max(path.grid.shape) // MAX_CELLS)
    visits = cell_means(path.hits, cell_px)
    shown = _show_map(ax, path, visits, cell_px, "magma")
    _frame_map(ax, path, f"coverage: visits, {_over(cell_px)}")
    if visits.max() > 2 * np.median(visits[visits > 0]):  # a few crossings must not hide what is visited once
        shown.set_norm(PowerNorm(0.5, 0, visits.max()))
    _colour_bar(ax, shown, "visits per pixel")


def _draw_dose(ax: Axes, report: PathReport) -> None:
    path = report.path
    cell_px = -(-max(path.grid.shape) // MAX_CELLS)
    dose = dose_map_e_per_a2(path, report.beam_current_pa)
    means = cell_means(dose, cell_px)
    # three times the mean distance blurs turns and lattices away and leaves where the dose is higher
    blur_px = min(3 * float(report.distances_px.mean()), max(path.grid.shape) / 24)
    if path.coverage < 1 and blur_px > cell_px:
        blur = partial(gaussian_filter, sigma=blur_px / cell_px, mode="constant")
        means = blur(means) / blur(np.ones_like(means))  # of what lies inside the field
        over = f"local mean (Gaussian, σ {blur_px:.3g} px)"
    else:
        over = _over(cell_px)
    shown = _show_map(ax, path, means, cell_px, "inferno")
    _frame_map(ax, path, f"dose of one frame, {over}")
    _colour_bar(ax, shown, f"dose [e-/Å²], at most {dose.max():.4g} in a pixel")


def _draw_distances(ax: Axes, distances_px: NDArray[np.float64]) -> None:
    mean, largest = float(distances_px.mean()), float(distances_px.max())
    ax.set(title="distance to the nearest measurement", xlabel="distance [pixel]", ylabel="share of all pixels [%]")
    if largest == 0:
        _say(ax, "every pixel is measured")
        return
    width = max(1.0, np.ceil(largest / 40))
    edges = np.arange(-width / 2, largest + width, width)
    counts, _ = np.histogram(distances_px, edges)
    ax.bar(edges[:-1], 100 * counts / distances_px.size, width, align="edge", color=STEP)
    ax.locator_params(axis="x", integer=True)
    _mark(ax, {f"mean {mean:.3g} px": (mean, MEDIAN), f"max {largest:.3g} px": (largest, MAX)})


def _draw_steps(ax: Axes, report: PathReport) -> None:
    steps, jumps = report.steps_px, report.path.jumps[1:]
    ax.set(title="step lengths", xlabel="step [pixel]", ylabel="number of steps")
    if len(steps) == 0:
        _say(ax, "one position, no step")
        return
    ends = np.log10(np.maximum((float(steps.min()), float(steps.max())), SHORTEST_STEP_PX))
    low, high = np.floor(ends[0]), np.floor(ends[1]) + 1
    edges = np.logspace(low, high, 1 + 16 * int(high - low)).tolist()
    if steps.min() < edges[0]:
        ax.set(xlabel=f"step [pixel], shorter ones at {edges[0]:g}")
    kinds = {"scanned": (steps[~jumps], STEP), "jumps": (steps[jumps], JUMP)}
    for name, (lengths, colour) in kinds.items():
        if len(lengths):
            ax.hist(
                lengths.clip(edges[0], edges[-1]), edges, color=colour, alpha=0.85, label=f"{len(lengths):,} {name}"
            )
    ax.set(xscale="log", yscale="log", ylim=(0.5, None))
    _add_legend(ax)


def _draw_slews(ax: Axes, slews: NDArray[np.float32]) -> None:
    ax.set(title="slew needed", xlabel="step / dwell time [pixel/µs]", ylabel="number of steps")
    if len(slews) == 0:
        _say(ax, "no step that is not a jump")
        return
    median, largest = float(np.median(slews)), float(slews.max())
    ax.hist(slews, np.linspace(0, 1.1 * largest or 1, 60).tolist(), color=STEP)
    ax.set(title=f"slew needed: up to {largest:.4g} px/µs", yscale="log", ylim=(0.5, None))
    _mark(ax, {f"median {median:.4g} px/µs": (median, MEDIAN), f"max {largest:.4g} px/µs": (largest, MAX)})


def _show_map(ax: Axes, path: ScanPath, values: NDArray[np.float64], cell_px: int, colours: str) -> Any:
    right, bottom = (n * cell_px - 0.5 for n in values.shape[::-1])
    return ax.imshow(values, colours, vmin=0, vmax=values.max() or 1, extent=(-0.5, right, bottom, -0.5))


def _frame_map(ax: Axes, path: ScanPath, title: str) -> None:
    rows, cols = path.grid.shape
    ax.set(xlim=(-0.5, cols - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal", title=title)
    ax.set(xlabel="column [pixel]", ylabel="row [pixel]")


def _colour_bar(ax: Axes, shown: ScalarMappable, label: str) -> Colorbar:
    return ax.figure.colorbar(shown, cax=ax.inset_axes((1.03, 0, 0.045, 1)), label=label)


def _mark(ax: Axes, marks: dict[str, tuple[float, str]]) -> None:
    for label, (x, colour) in marks.items():
        ax.axvline(x, color=colour, linestyle="--", linewidth=1.2, label=label)
    _add_legend(ax)


def _add_legend(ax: Axes) -> None:
    """Add a legend above the bars."""
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom, top * (10 if ax.get_yscale() == "log" else 1.25))
    ax.legend(loc="upper right", framealpha=0.85, edgecolor="none")


def _say(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="grey")
    ax.set(xticks=[], yticks=[])


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _over(cell_px: int) -> str:
    return "every pixel" if cell_px == 1 else f"mean over {cell_px} × {cell_px} px"


def _order_colours() -> Any:
    """Return plasma without its yellow end, which white swallows."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["plasma"](np.linspace(0, 0.88, 256)))


def _width(edge_px: int) -> float:
    """Return a line width that lets neighbouring lines stay apart in small fields [point]."""
    return float(np.clip(150 / edge_px, 0.8, 3))
