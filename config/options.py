"""Options of the command line laid over settings (imports the schema only)."""

from __future__ import annotations

import os
from itertools import combinations
from typing import TYPE_CHECKING, Any

from lowdose.config.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from lowdose.config.schema import LowdoseSettings


SESSION_MAGIC = b"\x89MCAP0\r\n"
"""With which every session file begins."""


def with_options(
    settings: LowdoseSettings,
    *,
    images: Path | None = None,
    pattern: str | None = None,
    coverage: str | None = None,
    true_coverage: str | None = None,
) -> LowdoseSettings:
    """Return settings with a specimen of images and another pattern or coverage, where given.

    Another pattern begins with that pattern's own defaults.
    """
    if images is not None:
        same = settings.specimen if settings.specimen["name"] == "images" else {"name": "images"}
        settings = settings.model_copy(update={"specimen": {**same, "path": str(images.absolute())}})
    wanted = pattern_mapping(settings.scan.pattern, pattern, coverage, true_coverage)
    return settings.model_copy(update={"scan": settings.scan.model_copy(update={"pattern": wanted})})


def pattern_mapping(
    configured: dict[str, Any], name: str | None, coverage: str | None, true_coverage: str | None
) -> dict[str, Any]:
    """Return a pattern's name and parameters: another name drops the configured parameters."""
    if coverage is not None and true_coverage is not None:
        raise ConfigError("give either --coverage or --true-coverage, not both")
    mapping: dict[str, Any] = dict(configured) if name in (None, configured.get("name")) else {"name": name}
    if coverage is not None or true_coverage is not None:
        mapping = {key: value for key, value in mapping.items() if key not in ("coverage", "true_coverage")}
        mapping["coverage" if coverage is not None else "true_coverage"] = coverage or true_coverage
    return mapping


def require_recordable(path: Path) -> None:
    """Raise ConfigError unless a recording can begin in a new file."""
    if not str(path).isprintable():
        raise ConfigError(f"a recording needs a name of printable characters, got {str(path)!r}")
    if path.exists():
        raise ConfigError(f"{path} exists already, nothing recorded is overwritten: name another file")
    require_writable(path)


def require_writable(*paths: Path | None) -> None:
    """Raise ConfigError unless every file can be written at the end, and none is a session; None is no file."""
    for one, other in combinations(filter(None, paths), 2):
        if one.resolve() == other.resolve():
            raise ConfigError(f"{one} is to hold two different things: name another file for one of them")
    for path in filter(None, paths):
        folder = path.absolute().parent
        if not folder.is_dir():
            raise ConfigError(f"cannot write {path}: there is no folder {folder}")
        if path.is_dir():
            raise ConfigError(f"cannot write {path}: it is a folder, expected the name of a file")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise ConfigError(f"cannot write {path}: no permission, choose another folder")
        if _is_session(path):
            raise ConfigError(f"{path} is a session file, nothing recorded is overwritten: name another file")


def _is_session(path: Path) -> bool:
    if not path.is_file() or not os.access(path, os.R_OK):
        return False
    with path.open("rb") as file:
        return file.read(len(SESSION_MAGIC)) == SESSION_MAGIC
