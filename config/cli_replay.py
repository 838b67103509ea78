"""`lowdose replay`: a recorded session through the whole pipeline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lowdose.config.cli_options import (
    ConfigOption,
    Frames,
    IsChild,
    JsonFile,
    Overrides,
    Picture,
    named_by,
    settings_of,
)

replay_app = typer.Typer()


@replay_app.command()
def replay(
    session: Annotated[Path, typer.Argument(metavar="SESSION", help="Session file (.mcap).")],
    speed: Annotated[
        float, typer.Option(help="So many times faster; 0 = as fast as it can be completed, nothing dropped.")
    ] = 1.0,
    start: Annotated[float, typer.Option(metavar="S", help="Begin so many seconds after the first sample.")] = 0.0,
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end.")] = False,
    step: Annotated[
        bool, typer.Option("--step", help="Hold after every frame, until Enter, or Start in the window.")
    ] = False,
    config: ConfigOption = None,
    overrides: Overrides = None,
    headless: Annotated[bool, typer.Option("--headless", help="No window.")] = False,
    frames: Frames = None,
    picture: Picture = None,
    json_file: JsonFile = None,
    child: IsChild = False,
) -> None:
    """Show a recorded session as if the microscope were there; nothing moves."""
    from lowdose.config.replay import ReplayOptions, run_replay, run_replay_service

    settings = settings_of(config, overrides)
    options = ReplayOptions(speed=speed, start_s=start, loop=loop, step=step)
    if child:
        run_replay_service(session, settings, options)
        return
    sys.exit(
        run_replay(
            session,
            settings,
            options,
            headless=headless,
            frames=frames,
            picture=picture,
            json_file=json_file,
            named=named_by(config, overrides),
        )
    )
