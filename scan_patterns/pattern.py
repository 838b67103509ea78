"""Pattern: a few numbers that make a path; the table of all of them, and what coverage means (numpy only)."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from lowdose.scan_patterns.checks import nearest_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.scan_patterns.path import ScanPath

PATTERNS: dict[str, str] = {
    "raster": "lowdose.scan_patterns.raster:Raster",
    "lattice": "lowdose.scan_patterns.lattice:Lattice",
    "interlaced": "lowdose.scan_patterns.lattice:Interlaced",
    "spiral": "lowdose.scan_patterns.spiral:Spiral",
    "fermat": "lowdose.scan_patterns.curves:Fermat",
    "lissajous": "lowdose.scan_patterns.curves:Lissajous",
    "jittered": "lowdose.scan_patterns.jitter:Jittered",
    "line_hop": "lowdose.scan_patterns.line_hop:LineHop",
    "random": "lowdose.scan_patterns.sparse:Random",
    "poisson_disc": "lowdose.scan_patterns.sparse:PoissonDisc",
    "points": "lowdose.scan_patterns.points:Points",
}
"""Every pattern: name -> "module:Class", imported when it is chosen."""

READ_FILES = ("points",)
"""Patterns that open a file: never at the word of a socket or a session file."""

COVERAGE_TOLERANCE = 0.02
"""`true_coverage` is met within this share of itself where the counts of a pattern allow it."""


class Pattern(Protocol):
    """A rule that makes paths: a frozen dataclass whose fields are its YAML keys."""

    def paths(self, grid: ScanGrid, *, dwell_time_us: float, rng: np.random.Generator) -> tuple[ScanPath, ...]:
        """Return the cycle of paths: frame k follows ``paths[k % len(paths)]``.

        Called once for every scan, off the hot path. The same seed must give the same paths; every position lies
        in the grid or is overscan.
        """
        ...


def parse_coverage(value: float | str) -> float:
    """Return a coverage given as a number or as a fraction of one.

    Raises
    ------
    ValueError
        If it cannot be read or lies outside (0, 1].

    Examples
    --------
    >>> parse_coverage("1/20"), parse_coverage(0.04)
    (0.05, 0.04)
    """
    try:
        numerator, _, denominator = value.partition("/") if isinstance(value, str) else (value, "", "")
        coverage = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError, TypeError, OverflowError):
        raise ValueError(f"coverage must be a number or a fraction such as 1/20, got {value!r}") from None
    return require_coverage(coverage)


def require_coverage(coverage: float, *, at_most: float = 1.0) -> float:
    """Return the coverage, or raise ValueError unless it lies in (0, at_most]."""
    if not (math.isfinite(coverage) and 0 < coverage <= at_most):
        raise ValueError(f"coverage must be > 0 and <= {at_most:g} (0.05 or 1/20), got {coverage:g}")
    return coverage


def load_pattern_class(name: str, table: Mapping[str, str] = PATTERNS) -> type:
    """Import the class a table names.

    Raises
    ------
    ValueError
        If the name is unknown; the message gives the nearest one.
    """
    if name not in table:
        raise ValueError(f"unknown pattern '{name}': {nearest_name(name, table)}")
    module, _, attribute = table[name].partition(":")
    return cast("type", getattr(import_module(module), attribute))


def solve_true_coverage(pattern: Any, grid: ScanGrid, true_coverage: float, *, seed: int = 0) -> Any:
    """Return the pattern with the nominal coverage whose path visits the asked share of all pixels.

    Bisection on the nominal coverage, for patterns with a field `coverage`; where the counts of a pattern jump
    (a lattice) the nearest it can do is returned.

    Parameters
    ----------
    pattern : Pattern
        A frozen dataclass with a field ``coverage``.
    grid : ScanGrid
        The field to cover.
    true_coverage : float
        Visited pixels / all pixels wanted, (0, 1].
    seed : int
        Of random patterns.

    Raises
    ------
    ValueError
        If the pattern has no coverage to choose, or `true_coverage` lies outside (0, 1].
    """
    require_coverage(true_coverage)
    if not hasattr(pattern, "coverage"):
        raise ValueError(f"{type(pattern).__name__} has no coverage to choose: it visits what it visits")

    def achieved(nominal: float) -> float:
        path = replace(pattern, coverage=nominal).paths(grid, dwell_time_us=1.0, rng=np.random.default_rng(seed))
        return float(path[0].coverage)

    low, high = math.log(max(true_coverage / 8, 1e-6)), math.log(getattr(pattern, "MAX_COVERAGE", 1.0))
    best = (math.inf, high)
    for _ in range(40):
        middle = (low + high) / 2
        got = achieved(math.exp(middle))
        best = min(best, (abs(got / true_coverage - 1), middle))
        if best[0] <= COVERAGE_TOLERANCE / 4:
            break
        low, high = (middle, high) if got < true_coverage else (low, middle)
    return replace(pattern, coverage=math.exp(best[1]))
