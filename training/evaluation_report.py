"""Reports of an evaluation: tables for markdown and terminal, JSON with stable names (imports numpy and scipy)."""

from __future__ import annotations

import dataclasses
import json
import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lowdose.training.evaluate import BASELINE_NAMES
from lowdose.training.evaluation_images import why_left_out
from lowdose.training.evaluation_rows import NOMINAL_SHARES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lowdose.reconstruction.engine import Target
    from lowdose.training.evaluate import PatternResult
    from lowdose.training.evaluation_images import ImageSet
    from lowdose.training.evaluation_rows import PrecisionRow, Row
    from lowdose.training.evaluation_scan import Noise

RANGE_UNITS = "Errors are shares of each picture's own range: the darkest pixel of its truth is 0, the brightest 1."
CELLS = "A cell is the root of the mean of the pictures' mean squared errors / the root of their standard deviation."
TARGET_NAMES: dict[Target, str] = {
    "blurred_5x5": "blurred truth (5 x 5 px, sigma 2.5)",
    "blurred_3x3": "slightly blurred truth (3 x 3 px, sigma 1.5)",
    "sharp": "unblurred truth",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found, and of what.

    Parameters
    ----------
    images : ImageSet
        What was looked at.
    results : tuple of PatternResult
        One for each pattern.
    noise : "none" or "counts"
        Of what was measured.
    seed : int
        Of random patterns and noise.
    """

    images: ImageSet
    results: tuple[PatternResult, ...]
    noise: Noise
    seed: int

    @property
    def rows(self) -> list[Row]:
        """All of them, pattern by pattern."""
        return [row for result in self.results for row in result.rows]

    @property
    def targets(self) -> tuple[Target, ...]:
        """What pictures were compared with."""
        return tuple(dict.fromkeys(row.target for row in self.rows))

    @property
    def summary(self) -> str:
        """What was looked at, for people."""
        skipped = ", ".join(f"{n} {reason}" for reason, n in self.images.skipped.items() if n)
        sources = len({file.source for file in self.images.files})
        return (
            f"{len(self.images.files)} images of {sources} {'source' if sources == 1 else 'sources'}, the middle "
            f"{self.images.crop_px} x {self.images.crop_px} px of each; noise {self.noise}; "
            f"left out: {skipped or 'none'}"
        )

    @property
    def failures(self) -> list[str]:
        """A sentence for each engine that failed, for people; its cells are marked."""
        rows: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.target == "sharp":
                rows.setdefault(row.engine, []).append(row)
        counts = {engine: (sum(r.failures for r in own), sum(r.images for r in own)) for engine, own in rows.items()}
        return [
            f"* {_shown_name(engine)} failed on {failures} of {images} pictures: those are linear infill"
            for engine, (failures, images) in counts.items()
            if failures
        ]


def to_json(evaluation: Evaluation) -> str:
    """Return everything but the pictures as JSON; what is not known is null."""
    curves = [
        {
            "engine": engine,
            "pattern": result.name,
            "coverage": result.coverage,
            "target": target,
            "rmse": errors.rmse[target],
            "edge": dataclasses.asdict(errors.by_edge[target]),
            "measurement": dataclasses.asdict(errors.by_distance[target]),
        }
        for result in evaluation.results
        for engine, errors in result.errors.items()
        for target in errors.rmse
    ]
    reliability = [
        {
            "engine": engine,
            "pattern": result.name,
            "coverage": result.coverage,
            "expected": NOMINAL_SHARES,
            "found": errors.reliability,
        }
        for result in evaluation.results
        for engine, errors in result.errors.items()
        if errors.reliability
    ]
    found: dict[str, Any] = {
        "version": version("lowdose"),
        "units": "share of each picture's own range",
        "crop_px": evaluation.images.crop_px,
        "noise": evaluation.noise,
        "seed": evaluation.seed,
        "images": [{"file": str(file.path), "source": file.source} for file in evaluation.images.files],
        "skipped": evaluation.images.skipped,
        "skipped_files": [
            {"file": str(left.file.path), "reason": left.reason, "why": left.why} for left in evaluation.images.left_out
        ],
        "rows": [dataclasses.asdict(row) for row in evaluation.rows],
        "precision": [dataclasses.asdict(row) for result in evaluation.results for row in result.precision],
        "curves": curves,
        "reliability": reliability,
    }
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def to_markdown(evaluation: Evaluation, figures: Mapping[str, str]) -> str:
    """Return the report as markdown, with links to the figures: file name -> what it shows."""
    left_out = "\n".join(f"- {why}" for why in why_left_out(evaluation.images))
    failures = "\n".join(f"- \\{failure}" for failure in evaluation.failures)
    parts = ["# Evaluation", evaluation.summary, left_out, f"{RANGE_UNITS} {CELLS}", failures]
    for target in evaluation.targets:
        parts += [f"## Error against the {TARGET_NAMES[target]}", _table(evaluation, target, error_cell)]
    parts += [
        "## Compared with linear infill",
        "RMS error over that of linear infill, against the blurred truth: of all pictures / averaged with equal weight "
        "per source / of the worst picture. Biharmonic infill: of its own smaller crops.",
        _table(evaluation, "blurred_5x5", _ratio),
    ]
    if any(row.interval90 is not None for row in evaluation.rows):
        parts += [
            "## Uncertainty",
            "Share of pixels [%] within 1.645 / 0.674 times the uncertainty of the engine's own target; normally "
            "distributed errors would give 90 / 50. Those of nearest and linear are placeholders.",
            *(_table(evaluation, target, _intervals, only=_has_interval) for target in evaluation.targets),
        ]
    parts += ["## Precision of the input", _precision(evaluation)]
    parts += [f"## {title}\n\n![{title}]({name})" for name, title in figures.items()]
    return "\n\n".join(filter(None, parts)) + "\n"


def write_report(evaluation: Evaluation, folder: Path, draw: Callable[[Evaluation, Path], Mapping[str, str]]) -> None:
    """Write evaluation.json, the figures as `draw` does, and report.md into a folder."""
    (folder / "evaluation.json").write_text(to_json(evaluation), encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(evaluation, draw(evaluation, folder)), encoding="utf-8")


def columns(evaluation: Evaluation) -> list[str]:
    """Return the heads of the patterns' columns."""
    return [result.label for result in evaluation.results]


def cells(
    evaluation: Evaluation,
    target: Target,
    text: Callable[[Row], str],
    only: Callable[[Row], bool] = lambda row: True,
) -> list[list[str]]:
    """Return a table with a line for each engine and a column for each pattern, the engine's name first."""
    found = [
        {row.engine: _marked(row, text(row)) for row in result.rows if row.target == target and only(row)}
        for result in evaluation.results
    ]
    engines = dict.fromkeys(engine for column in found for engine in column)
    return [[_shown_name(engine), *(column.get(engine, "") for column in found)] for engine in engines]


def _shown_name(engine: str) -> str:
    return engine.replace("_", " ") if engine in BASELINE_NAMES else engine


def _marked(row: Row | PrecisionRow, text: str) -> str:
    """Return what is told of a row whose engine may have failed."""
    if row.failures == row.images:
        return "failed*"
    return f"{text}*" if row.failures else text


def error_cell(row: Row | PrecisionRow) -> str:
    """Return RMS error and spread of a row, in the papers' digits."""
    return f"{_short(row.rms)}/{_short(row.rms_std)}"


def _short(error: float) -> str:
    return f"{error:.4f}".removeprefix("0")


def _ratio(row: Row) -> str:
    ratios = (row.ratio_to_linear, row.ratio_by_source, row.worst_ratio)
    return " / ".join("-" if ratio is None or not math.isfinite(ratio) else f"{ratio:.3f}" for ratio in ratios)


def _has_interval(row: Row) -> bool:
    return row.interval90 is not None


def _intervals(row: Row) -> str:
    return f"{100 * (row.interval90 or 0):.1f} / {100 * (row.interval50 or 0):.1f}"


def _table(
    evaluation: Evaluation,
    target: Target,
    text: Callable[[Row], str],
    only: Callable[[Row], bool] = lambda row: True,
) -> str:
    lines = cells(evaluation, target, text, only)
    return _markdown(["engine", *columns(evaluation)], lines) if lines else ""


def _precision(evaluation: Evaluation) -> str:
    rows = [row for result in evaluation.results for row in result.precision]
    by_engine: dict[str, dict[int, str]] = {}
    for row in rows:
        by_engine.setdefault(row.engine, {})[row.bits] = _marked(row, error_cell(row))
    lines = [[engine, *(texts[bits] for bits in (8, 16, 32))] for engine, texts in by_engine.items()]
    label = next(result.label for result in evaluation.results if result.precision)
    return (
        f"{label}, against the blurred truth; measured values as 256 levels of their range (none overflows), half and "
        f"single precision.\n\n{_markdown(['engine', '8 bits', '16 bits', '32 bits'], lines)}"
    )


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))
