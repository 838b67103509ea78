"""Where the beam goes and what that costs: grids, paths, patterns and dose (imports numpy and scipy only)."""

from lowdose.scan_patterns.grid import ScanGrid
from lowdose.scan_patterns.path import ScanPath
from lowdose.scan_patterns.pattern import PATTERNS, Pattern, parse_coverage

__all__ = ["PATTERNS", "Pattern", "ScanGrid", "ScanPath", "parse_coverage"]
