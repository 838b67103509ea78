"""Options that several commands share, and settings made of them (imports typer only)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Config = Annotated[str | None, typer.Argument(help="Name of a preset, or path of a YAML file.")]
ConfigOption = Annotated[str | None, typer.Option("--config", help="Name of a preset, or path of a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=VALUE", help="Override a setting.")]
Images = Annotated[Path | None, typer.Option(help="Image file or folder to use as the specimen.")]
PatternName = Annotated[str | None, typer.Option("--pattern", help="Name of a scan pattern.")]
Coverage = Annotated[str | None, typer.Option(help="Published nominal coverage, 0.05 or 1/20.")]
TrueCoverage = Annotated[str | None, typer.Option(help="Visited share of all pixels, solved for.")]
Frames = Annotated[int | None, typer.Option(min=1, help="End after so many frames shown.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]
Picture = Annotated[Path | None, typer.Option(help="Write measured and completed picture here at the end (PNG).")]
Record = Annotated[Path | None, typer.Option("--record", metavar="FILE", help="Record everything measured here.")]
IsChild = Annotated[bool, typer.Option("--child", hidden=True, help="End when standard input ends.")]


def settings_of(config: str | None, overrides: list[str] | None, **options: Any) -> Any:
    """Return settings with the options of the command line on top."""
    from lowdose.config.loading import load_settings
    from lowdose.config.options import with_options

    return with_options(load_settings(config, overrides or []), **options)


def named_by(config: str | None, overrides: list[str] | None) -> Any:
    """Return a test of whether the user named an endpoint."""
    from lowdose.config.loading import named_endpoints

    names = named_endpoints(config, overrides or [])
    return names.__contains__
