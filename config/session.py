"""`lowdose session info | verify | recover`: look at recorded sessions, check and repair them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lowdose.acquisition.exporting import as_json
from lowdose.acquisition.session_check import recover, verify
from lowdose.acquisition.session_summary import ScanSummary, SessionSummary, summarise
from lowdose.config.figures import write_json
from lowdose.scan_patterns.checks import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lowdose.acquisition.messages import ScanStart
    from lowdose.acquisition.session_reader import SessionReport


def print_info(path: Path, json_file: Path | None = None) -> int:
    """Print what is in a session, and write the figures as JSON if asked to; return the exit code."""
    summary = summarise(path)
    print(*_info_lines(summary), sep="\n")
    if json_file is not None:
        write_json(json_file, as_json(_info_figures(summary)))
    return 0


def print_verification(path: Path) -> int:
    """Check a session and print the figures; return 0 if it is whole, else 1."""
    report = verify(path)
    print(*_report_lines(report), sep="\n")
    return 0 if report.whole else 1


def print_recovery(path: Path, out: Path) -> int:
    """Copy what can be read of a session to a new file and print what that is; return the exit code."""
    report = recover(path, out)
    print(*_report_lines(report), sep="\n")
    print(f"wrote {printable(str(out))}: {report.messages:,} messages")
    return 0


def _report_lines(report: SessionReport, sound: str = "whole") -> list[str]:
    state = sound if report.whole else "NOT whole"
    return [
        f"{printable(str(report.path))}: {state}, {report.readable_bytes:,} of {report.size_bytes:,} bytes readable",
        f"{report.messages:,} messages in {report.chunks:,} chunks with the right CRC, {report.lost:,} lost between "
        f"them, {report.refused:,} refused",
        *(f"  {printable(line)}" for line in report.damage),
    ]


def _info_lines(summary: SessionSummary) -> list[str]:
    opening = summary.opening
    began = _time_text(opening.get("wall_clock_ns"))
    lines = [
        *_report_lines(summary.report, sound="readable to its end"),  # `verify` alone looks at every byte
        f"recorded {began or 'at an unknown time'} by lowdose {printable(str(opening.get('lowdose', '?')))}",
        ", ".join(f"{n:,} {kind}" for kind, n in summary.messages.items()),
    ]
    for number, scan in enumerate(summary.scans, 1):
        lines += [f"scan {number}: {_scan_line(scan)}", *(f"  {line}" for line in _scan_facts(scan))]
    if summary.homeless_blocks:
        lines.append(f"{summary.homeless_blocks:,} blocks of scans whose start is missing: their place is not known")
    lines += [f"alarm: {printable(event.text)}" for event in summary.alarms]
    lines += [f"note: {printable(event.text)}" for event in summary.notes]
    return lines


def _scan_line(scan: ScanSummary) -> str:
    start = scan.start
    return (
        f"{printable(str(start.pattern.get('name', '?')))} on {start.grid.rows} x {start.grid.cols} pixels of "
        f"{start.grid.pixel_size_nm:g} nm, {', '.join(map(printable, start.channels))}, {start.dwell_time_us:g} µs, "
        f"{start.beam_current_pa:g} pA, {start.energy_kev:g} keV; {printable(start.scan_id)}"
    )


def _scan_facts(scan: ScanSummary) -> Iterator[str]:
    yield (
        f"{_time_text(scan.start.wall_clock_ns) or 'unknown time'}, {scan.duration_s:.4g} s, {scan.frames:,} frames, "
        f"{scan.whole_frames:,} of them whole, {scan.samples:,} samples of coverage {scan.start.paths[0].coverage:.4g}"
    )
    yield f"dose {scan.dose_e_per_a2:.4g} e-/Å² over the field, settling and flyback not counted"
    if scan.gapless:
        yield "no gaps"
    else:
        yield (
            f"gaps: {scan.samples_missing:,} samples missing by index, {scan.blocks_lost:,} blocks by running number, "
            f"{scan.blocks_refused:,} blocks came too late or fit nowhere"
        )
    if scan.dense_frames:
        yield f"{scan.dense_frames:,} completed frames recorded"
    yield f"ended: {printable(scan.end)}" if scan.end is not None else "its end was not recorded"


def _info_figures(summary: SessionSummary) -> dict[str, Any]:
    report = summary.report
    return {
        "session": {
            "path": str(report.path),
            "size_bytes": report.size_bytes,
            "readable_bytes": report.readable_bytes,
            "whole": report.whole,
            "lost": report.lost,
            "refused": report.refused,
            "damage": report.damage,
        },
        "opening": summary.opening,
        "messages": summary.messages,
        "homeless_blocks": summary.homeless_blocks,
        "scans": [_scan_figures(scan) for scan in summary.scans],
        "alarms": [event.text for event in summary.alarms],
        "notes": [event.text for event in summary.notes],
    }


def _scan_figures(scan: ScanSummary) -> dict[str, Any]:
    start = scan.start
    return {
        **scan_metadata(start),
        "frames": scan.frames,
        "frames_whole": scan.whole_frames,
        "frames_completed": scan.dense_frames,
        "samples": scan.samples,
        "samples_missing": scan.samples_missing,
        "blocks": scan.blocks,
        "blocks_lost": scan.blocks_lost,
        "blocks_refused": scan.blocks_refused,
        "duration_s": scan.duration_s,
        "dose_e_per_a2": scan.dose_e_per_a2,
        "end": scan.end,
    }


def scan_metadata(start: ScanStart) -> dict[str, Any]:
    """Return what is known of a scan before its first sample, ready for JSON."""
    return {
        "scan_id": start.scan_id,
        "started": _time_text(start.wall_clock_ns),
        "pattern": start.pattern,
        "paths": len(start.paths),
        "positions": len(start.paths[0]),
        "coverage": start.paths[0].coverage,
        "path_digest": start.paths[0].digest,
        "rows": start.grid.rows,
        "cols": start.grid.cols,
        "pixel_size_nm": start.grid.pixel_size_nm,
        "rotation_deg": start.grid.rotation_deg,
        "channels": list(start.channels),
        "dwell_time_us": start.dwell_time_us,
        "beam_current_pa": start.beam_current_pa,
        "energy_kev": start.energy_kev,
        "area_id": start.area_id,
    }


def _time_text(wall_clock_ns: Any) -> str | None:
    try:
        return datetime.fromtimestamp(wall_clock_ns / 1e9, UTC).isoformat(timespec="milliseconds")
    except (TypeError, ValueError, OverflowError, OSError):
        return None
