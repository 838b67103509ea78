"""Figures of an evaluation (imports matplotlib only when it draws)."""

from __future__ import annotations

from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdose.reconstruction.infill import nearest_map
from lowdose.reconstruction.metrics import root_mean, squared_errors
from lowdose.training.evaluate import EDGE_PX, TARGETS
from lowdose.training.evaluation_rows import NOMINAL_SHARES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import Target
    from lowdose.reconstruction.metrics import Profile
    from lowdose.training.evaluate import PatternResult, Pictures
    from lowdose.training.evaluation_report import Evaluation

DPI = 110
PICTURE_INCH = (3.0, 4.9)
"""Smallest and largest edge of a picture as it is drawn; of 512 pixels each shows."""
TITLE_CHARS = 36
"""Of a line above the smallest picture."""
PANELS_ACROSS = 4
BINS = 24
MIN_SHARE = 1e-3
"""Of the pixels; errors at a distance that fewer have are not drawn."""
FIXED = {"nearest": "#9a9a9a", "linear": "#33658a"}
OTHERS = ("#e07a1f", "#12a150", "#c8372d", "#7b3fa0", "#b59b00")
STYLES: dict[Target, str] = {"blurred_5x5": "-", "sharp": ":"}
DOT = 0.22
"""Radius of a measured pixel as it is drawn, in mean distances of measured pixels."""
UNMEASURED = "#1b2a4a"


def draw_figures(evaluation: Evaluation, folder: Path) -> dict[str, str]:
    """Write all figures into a folder as PNG and return their names with what they show."""
    figures: dict[str, tuple[str, Callable[[], Figure]]] = {
        "histograms.png": ("Errors of single pictures", lambda: _panels(evaluation, _draw_histogram)),
        "error-by-edge.png": ("Error and distance to the edge", lambda: _panels(evaluation, _draw_by_edge)),
        "error-by-distance.png": (
            "Error and distance to the nearest measurement",
            lambda: _panels(evaluation, _draw_by_distance, same_x=False),
        ),
    }
    if any(errors.reliability for result in evaluation.results for errors in result.errors.values()):
        figures["reliability.png"] = ("Reliability of the uncertainty", lambda: _panels(evaluation, _draw_reliability))
    for result in evaluation.results:
        figures |= _of_pattern(result)
    for name, (_, draw) in figures.items():
        draw().savefig(str(folder / name), dpi=DPI)
    return {name: title for name, (title, _) in figures.items()}


def _of_pattern(result: PatternResult) -> dict[str, tuple[str, Callable[[], Figure]]]:
    slug = result.label.replace("1/", "").replace(" ", "-")
    return {
        f"pictures-{slug}.png": (f"Pictures, {result.label}", lambda: _draw_pictures(result)),
        f"error-map-{slug}.png": (f"Error of every pixel, {result.label}", lambda: _draw_error_maps(result)),
    }


def _panels(evaluation: Evaluation, draw: Callable[[Axes, PatternResult], None], *, same_x: bool = True) -> Figure:
    """Return a figure with a panel for each pattern and one legend."""
    from matplotlib.figure import Figure

    n = len(evaluation.results)
    across = min(n, PANELS_ACROSS)
    down = -(-n // across)
    figure = Figure((max(4.2 * across, 6.5), 3.3 * down + 0.7), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex=same_x, sharey=True).ravel()
    for ax, result in zip(axes, evaluation.results, strict=False):
        draw(ax, result)
        ax.set_title(f"{result.label}  ({100 * result.coverage:.3g} % visited)", fontsize=10)
        ax.grid(alpha=0.25)
    for ax in axes[n:]:
        ax.set_axis_off()
    for ax in axes[max(0, n - across) : n]:
        ax.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel(axes[0].get_xlabel(), fontsize=11)
    figure.supylabel(axes[0].get_ylabel(), fontsize=11)
    for ax in axes:
        ax.set(xlabel="", ylabel="")
    axes[0].set_ylim(bottom=0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=max(2, int(figure.get_figwidth() / 2.7)), frameon=False
    )
    return figure


def _colours(result: PatternResult) -> dict[str, str]:
    others = cycle(OTHERS)
    return {engine: FIXED.get(engine) or next(others) for engine in result.errors}


def _draw_histogram(ax: Axes, result: PatternResult) -> None:
    largest = max(max(errors.rmse["blurred_5x5"]) for errors in result.errors.values())
    edges = np.linspace(0, largest * 1.02 or 1, BINS + 1).tolist()
    for engine, colour in _colours(result).items():
        rmse = result.errors[engine].rmse["blurred_5x5"]
        ax.hist(rmse, edges, histtype="stepfilled", color=colour, alpha=0.25)
        ax.hist(rmse, edges, histtype="step", color=colour, linewidth=1.6, label=engine)
    ax.set(xlabel="RMS error of a picture against its blurred truth [share of its range]", ylabel="pictures")
    ax.locator_params(axis="y", integer=True)


def _draw_by_edge(ax: Axes, result: PatternResult) -> None:
    _draw_profiles(ax, result, {engine: errors.by_edge for engine, errors in result.errors.items()})
    ax.set(xlabel=f"distance to the picture's edge [pixel], {EDGE_PX} = so far or further")


def _draw_by_distance(ax: Axes, result: PatternResult) -> None:
    _draw_profiles(ax, result, {engine: errors.by_distance for engine, errors in result.errors.items()})
    ax.set(xlabel="distance to the nearest measured pixel [pixel]")
    ax.locator_params(axis="x", integer=True)


def _draw_profiles(ax: Axes, result: PatternResult, profiles: dict[str, dict[Target, Profile]]) -> None:
    for engine, colour in _colours(result).items():
        for target in TARGETS:
            profile = profiles[engine][target]
            told = np.array(profile.pixels) >= MIN_SHARE * sum(profile.pixels)
            label = f"{engine}, {'blurred' if target == 'blurred_5x5' else 'unblurred'} truth"
            ax.plot(
                np.array(profile.distance_px)[told],
                np.array(profile.rms)[told],
                STYLES[target],
                color=colour,
                linewidth=1.6,
                label=label,
            )
    ax.set(ylabel="RMS error [share of the range]")


def _draw_reliability(ax: Axes, result: PatternResult) -> None:
    ax.plot([0, 1], [0, 1], color="black", linewidth=1, label="calibrated")
    for engine, colour in _colours(result).items():
        found = result.errors[engine].reliability
        if found:
            ax.plot(NOMINAL_SHARES, found, "o-", color=colour, markersize=3.5, linewidth=1.6, label=engine)
    ax.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="share of pixels the uncertainty promises", ylabel="share found")


def _draw_error_maps(result: PatternResult) -> Figure:
    from matplotlib.figure import Figure

    n = len(result.errors)
    edge = _edge_inch(result)
    figure = Figure((edge * n + 0.9, edge + 0.6), layout="constrained")
    axes = figure.subplots(1, n, squeeze=False)[0]
    brightest = max(float(np.percentile(errors.error_map, 99.5)) for errors in result.errors.values())
    for ax, (engine, errors) in zip(axes, result.errors.items(), strict=True):
        shown = ax.imshow(errors.error_map, "magma", vmin=0, vmax=brightest or 1, interpolation="nearest")
        mean = float(np.sqrt(np.mean(np.square(errors.error_map, dtype=np.float64))))
        ax.set_title(fill(f"{engine}: {mean:.4f} over all pixels", TITLE_CHARS), fontsize=11)
        ax.set(xticks=[], yticks=[])
    label = "RMS error against the blurred truth [share of the range]"
    figure.colorbar(shown, ax=axes, label=label, fraction=0.05, pad=0.01)
    return figure


def _draw_pictures(result: PatternResult) -> Figure:
    """Return the sheet: sampled, every engine, truth and the uncertainty of the last engine that has one."""
    from matplotlib.figure import Figure

    engine = next(reversed([name for pictures in result.shown for name in pictures.deviations]), None)
    n_columns = len(result.shown[0].images) + 2 + (engine is not None)
    edge = _edge_inch(result)
    size = (edge * n_columns, (edge + 0.3) * len(result.shown))
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(len(result.shown), n_columns, squeeze=False)
    for line, pictures in zip(axes, result.shown, strict=True):
        _draw_line(line, pictures, result.label)
        if engine is not None and engine in pictures.deviations:
            shown = line[-1].imshow(pictures.deviations[engine], "viridis", vmin=0, interpolation="nearest")
            line[-1].set_title(f"uncertainty of {engine}", fontsize=11)
            figure.colorbar(shown, ax=line[-1], fraction=0.045, pad=0.01)
        for ax in line:
            ax.set(xticks=[], yticks=[])
    return figure


def _edge_inch(result: PatternResult) -> float:
    return float(np.clip(1.05 * len(result.shown[0].truth) / DPI, *PICTURE_INCH))


def _draw_line(line: NDArray[Any], pictures: Pictures, label: str) -> None:
    from matplotlib import colormaps

    grey = colormaps["gray"].with_extremes(bad=UNMEASURED)
    low, high = np.percentile(pictures.truth, (0.5, 99.5)).tolist()
    columns = {f"sampled, {label}": _enlarged(pictures.sampled)}
    for engine, image in pictures.images.items():
        rms = root_mean(squared_errors(image, pictures.truth))
        columns[f"{engine}: RMS error {rms:.4f}"] = image
    columns[f"truth: {pictures.name}"] = pictures.truth
    for ax, (title, image) in zip(line, columns.items(), strict=False):
        ax.imshow(image, grey, vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")
        ax.set_title(fill(title, TITLE_CHARS), fontsize=11)


def _enlarged(sampled: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what was measured with its pixels drawn larger the fewer they are, so that they can be seen."""
    mask = np.isfinite(sampled)
    nearest, distance = nearest_map(mask)
    drawn = nearest.apply(sampled[mask][None])[0]
    return np.where(distance <= DOT * np.sqrt(mask.size / np.count_nonzero(mask)), drawn, np.float32(np.nan))
