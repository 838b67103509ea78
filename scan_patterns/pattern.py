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

MAX_TRIES = 30
MIN_INTERVAL = 1e-4
"""Of the logarithm of the nominal coverage."""
MAX_MISS = 0.25
"""A coverage that is missed by a larger share of itself is refused."""


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
        If the pattern has no coverage to choose, `true_coverage` lies outside (0, 1], or the nearest the pattern can do
        is off by more than a quarter.
    """
    require_coverage(true_coverage)
    if not hasattr(pattern, "coverage"):
        raise ValueError(f"{type(pattern).__name__} has no coverage to choose: it visits what it visits")

    def achieved(nominal: float) -> float:
        wanted = replace(pattern, coverage=nominal)
        try:
            path = wanted.paths(grid, dwell_time_us=1.0, rng=np.random.default_rng(seed))
        except ValueError:  # too little for this field
            return 0.0
        return float(path[0].coverage)

    highest = math.log(getattr(pattern, "MAX_COVERAGE", 1.0))
    low, high = math.log(max(true_coverage / 8, 1e-6)), highest
    nominal = min(math.log(true_coverage), highest)  # many patterns mean the true one
    best = (math.inf, nominal, 0.0)
    for _ in range(MAX_TRIES):
        got = achieved(math.exp(nominal))
        best = min(best, (abs(got / true_coverage - 1), nominal, got))
        low, high = (nominal, high) if got < true_coverage else (low, nominal)
        if best[0] <= COVERAGE_TOLERANCE / 4 or high - low < MIN_INTERVAL:
            break
        nominal = (low + high) / 2
    if best[2] == 0:  # nothing worked: the pattern itself says why
        replace(pattern, coverage=true_coverage).paths(grid, dwell_time_us=1.0, rng=np.random.default_rng(seed))
    if best[0] > MAX_MISS:
        raise ValueError(
            f"coverage {true_coverage:.4g} cannot be met in a field of {grid.rows} x {grid.cols} px: the nearest this "
            f"pattern can do is {best[2]:.4g}"
        )
    return replace(pattern, coverage=math.exp(best[1]))
