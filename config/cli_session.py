"""Commands that look at recorded sessions: info, verify, recover, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

session_app = typer.Typer(no_args_is_help=True, help="Recorded sessions: look at, check, repair, convert.")

SessionFile = Annotated[Path, typer.Argument(metavar="FILE", help="Session file (.mcap).")]


@session_app.command("info")
def session_info(
    file: SessionFile,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Tell what is in a session: scans, frames, gaps, duration, dose."""
    from lowdose.config.options import require_writable
    from lowdose.config.session import print_info

    require_writable(json_file)
    sys.exit(print_info(file, json_file))


@session_app.command("verify")
def session_verify(file: SessionFile) -> None:
    """Check every byte of a session; code 1 if it is not whole."""
    from lowdose.config.session import print_verification

    sys.exit(print_verification(file))


@session_app.command("recover")
def session_recover(file: SessionFile, out: Annotated[Path, typer.Option(help="New file, never the same.")]) -> None:
    """Copy what can be read of a session to a new, complete file."""
    from lowdose.config.session import print_recovery

    sys.exit(print_recovery(file, out))


@session_app.command("export")
def session_export(
    file: SessionFile,
    form: Annotated[str, typer.Option("--format", help="tiff, hspy, emd or zarr; csv or npy for the measured points.")],
    what: Annotated[
        list[str] | None,
        typer.Option(
            help="sparse, mask, completed or uncertainty; repeat it. The mask always comes along.",
            show_default="sparse and completed",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New file or folder.", show_default="beside FILE")] = None,
    scan: Annotated[int | None, typer.Option(help="Number of the scan, as info lists them.")] = None,
    frames: Annotated[str | None, typer.Option(metavar="A:B", help="Frame A up to, without, frame B.")] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="Completes the samples: an engine, an engine file (NAME.onnx) or "
            "'recorded' for the session's own completed frames."
        ),
    ] = "auto",
) -> None:
    """Convert a scan to files that other programs open; inferred pixels are labelled as such."""
    from lowdose.config.session_export import make_selection, run_export

    sys.exit(run_export(file, form, make_selection(what or [], scan, frames, engine), out))
