"""Session files checked and repaired: `verify` and `recover`."""

from __future__ import annotations

import dataclasses
import os
import struct
import time
import zlib
from typing import TYPE_CHECKING

from mcap.opcode import Opcode
from mcap.writer import MCAP0_MAGIC

from lowdose.acquisition.recording import MAX_CHUNK_BYTES, ChunkedFile, packed
from lowdose.acquisition.session_reader import RECORD_HEAD, SessionError, SessionReader, SessionReport
from lowdose.acquisition.status import Event

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

MAX_NOTE = 2_000


def verify(path: Path) -> SessionReport:
    """Read a whole session and check the CRCs of data section and summary as well, which cover every byte of it.

    Raises
    ------
    SessionError
        If it is no session.
    """
    reader = SessionReader(path)
    for _ in reader:
        pass
    report = reader.report
    if not report.ended:
        return report
    damage = report.damage + _wrong_sections(path)
    if report.lost and not damage:
        damage = (f"{report.lost:,} messages were lost before this file was written: it was recovered from another",)
    return dataclasses.replace(report, damage=damage)


_FOOTER_BYTES = RECORD_HEAD.size + 20
_DATA_END_BYTES = RECORD_HEAD.size + 4


def _wrong_sections(path: Path) -> tuple[str, ...]:
    """Return what is wrong with the two large CRCs of a file that has its footer."""
    with path.open("rb") as file:
        footer_at = file.seek(-len(MCAP0_MAGIC) - _FOOTER_BYTES, os.SEEK_END)
        footer = file.read(_FOOTER_BYTES)
        summary_at, _, summary_crc = struct.unpack("<QQI", footer[RECORD_HEAD.size :])
        data_end_at = summary_at - _DATA_END_BYTES
        if not len(MCAP0_MAGIC) <= data_end_at <= footer_at:
            return ("the footer points to no summary",)
        file.seek(0)
        data_crc = _crc_of(file, data_end_at)
        data_end = file.read(_DATA_END_BYTES)
        found_crc = zlib.crc32(footer[:-4], _crc_of(file, footer_at - summary_at))
    wrong = []
    if data_end != RECORD_HEAD.pack(Opcode.DATA_END, 4) + struct.pack("<I", data_crc):
        wrong.append("the CRC of the data section is wrong: something outside the chunks was changed")
    if found_crc != summary_crc:
        wrong.append("the CRC of the summary is wrong; it is not needed for reading")
    return tuple(wrong)


def _crc_of(file: BinaryIO, length: int) -> int:
    crc = 0
    for begin in range(0, length, MAX_CHUNK_BYTES):
        crc = zlib.crc32(file.read(min(MAX_CHUNK_BYTES, length - begin)), crc)
    return crc


def recover(path: Path, out: Path) -> SessionReport:
    """Copy what can be read of a session to a new, complete file, with a note of where it comes from.

    Times and running numbers stay as they were, so that what is missing can still be counted. Nothing is left behind
    if it fails.

    Parameters
    ----------
    path, out : Path
        The session, which stays as it is, and a file that does not exist yet.

    Returns
    -------
    SessionReport
        Of the session.

    Raises
    ------
    SessionError
        If it is no session, or nothing of it can be read.
    RecordingError
        If `out` exists or cannot be written.
    """
    reader = SessionReader(path)
    file = ChunkedFile(out, "close")
    try:
        _copy(reader, file)
        file.finish()
    except BaseException:
        file.discard()
        raise
    return reader.report


def _copy(reader: SessionReader, file: ChunkedFile) -> None:
    log_time_ns = number = 0
    for message, record in reader.records():
        log_time_ns, number = record.log_time, record.sequence
        file.add(type(message).__name__, record.data, log_time_ns, number)
        if file.pending_bytes >= MAX_CHUNK_BYTES:
            file.close_chunk()
    report = reader.report
    if report.messages == 0:
        raise SessionError(f"nothing of {reader.path} can be read")
    told = f"{report.messages:,} messages recovered from a file of {report.size_bytes:,} bytes"
    event = Event("recover", "recovered", "; ".join((told, *report.damage))[:MAX_NOTE], "info", time.monotonic_ns())
    file.add("Event", packed(event), log_time_ns, number + 1)
