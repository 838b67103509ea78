"""Engine files that come with the package, by name (imports nothing heavy)."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

WEIGHTS = files("lowdose.reconstruction") / "weights"
DEFAULT = "live_default"
"""What "auto" stands for."""


@cache
def shipped() -> dict[str, Path]:
    """Return the engine files in `weights`, name -> path."""
    found = sorted(Path(str(WEIGHTS)).glob("*.onnx"))
    return {path.stem: path for path in found}
