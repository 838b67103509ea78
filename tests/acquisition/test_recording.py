"""Session files: recorded as measured, readable up to the last chunk whatever happened to the rest."""

from __future__ import annotations

import dataclasses
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

import mcap.records as mcap_records
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from mcap.data_stream import RecordBuilder
from mcap.opcode import Opcode
from mcap.reader import make_reader
from mcap.writer import MCAP0_MAGIC
from mcap.writer import Writer as McapWriter

from lowdose.acquisition.frames import DenseFrame, EngineStamp
from lowdose.acquisition.messages import Request, SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.recording import (
    CHUNK_NS,
    MAX_CHUNK_BYTES,
    MIN_CHUNK_BYTES,
    PROFILE,
    RECORDED,
    RecordingError,
    SessionWriter,
    chunk_bytes,
    close_chunk,
    facts,
    note,
    packed,
)
from lowdose.acquisition.session_check import recover, verify
from lowdose.acquisition.session_reader import SessionError, SessionReader, read_session
from lowdose.acquisition.session_summary import summarise
from lowdose.acquisition.status import Event, StatusReport
from lowdose.acquisition.wire import MAX_HEADER_BYTES
from lowdose.scan_patterns import ScanGrid, ScanPath
from tests.strategies import MESSAGES, quick

if TYPE_CHECKING:
    from pathlib import Path

GRID = ScanGrid((4, 8), pixel_size_nm=0.1)
PATHS = tuple(ScanPath(GRID, np.argwhere(np.arange(32).reshape(4, 8) % 2 == k), 2.0) for k in (0, 1))
N = len(PATHS[0])


class Clock:
    """Time that only passes when told."""

    def __init__(self) -> None:
        self.now_ns = 5_000_000_000

    def __call__(self) -> int:
        return self.now_ns


def start_of(scan_id: str = "scan", paths: tuple[ScanPath, ...] = PATHS) -> ScanStart:
    return ScanStart(scan_id, paths, {"name": "lattice"}, ("HAADF",), 2.0, 10.0, 200.0, 0, None, 1_700 * 10**15, 1)


def block_of(frame: int, first: int, m: int, seq: int, scan_id: str = "scan") -> SampleBlock:
    counts = np.arange(first, first + m, dtype=np.uint16)[None] + np.uint16(100 * frame)
    t_ns = 1_000 * (100 * frame + first)
    return SampleBlock(scan_id, PATHS[frame % 2].digest, frame, first, counts, seq, t_ns, t_ns + 1_000 * m, t_ns)


def frame_of(frame: int) -> DenseFrame:
    image = np.full((1, *GRID.shape), 1.5, np.float32)
    mask = PATHS[frame % 2].mask
    return DenseFrame(
        grid=GRID,
        image=image,
        uncertainty=image / 8,
        uncertainty_kind="calibrated",
        measured=image * mask,
        hits=mask.astype(np.uint16),
        scale=1,
        scan_id="scan",
        path_digest=PATHS[frame % 2].digest,
        frame_index=frame,
        complete=True,
        samples_used=N,
        channels=("HAADF",),
        engines=(EngineStamp("engine", "", "FP32"),),
        dropped=0,
        gaps=0,
        times_ns={"first_sample": frame},
    )


def session_of(path: Path, n_frames: int = 6, per_chunk: int = 3) -> list[object]:
    """Write a session, a new chunk after every few messages; return its messages, the opening aside."""
    clock = Clock()
    blocks = [
        block_of(frame, first, 4, frame * 4 + first // 4) for frame in range(n_frames) for first in range(0, N, 4)
    ]
    messages = [start_of(), *blocks, frame_of(0), note("here", 7), ScanEnd("scan", n_frames - 1, "as asked")]
    with SessionWriter(path, clock=clock) as writer:
        for k, message in enumerate(messages, 1):
            writer.write(message)
            if k % per_chunk == 0:
                clock.now_ns += CHUNK_NS
                writer.tick(clock.now_ns)
    return messages


def chunk_ends(data: bytes) -> list[int]:
    """Return where each chunk of a file ends."""
    ends, at = [], len(MCAP0_MAGIC)
    while at < len(data) - len(MCAP0_MAGIC):
        opcode, length = struct.unpack_from("<BQ", data, at)
        at += 9 + length
        if opcode == Opcode.CHUNK:
            ends.append(at)
    return ends


def all_packed(path: Path) -> tuple[list[bytes], SessionReader]:
    reader = read_session(path)
    return [packed(message) for message in reader], reader


def same(got: object, sent: object) -> bool:
    return type(got) is type(sent) and packed(got) == packed(sent)  # type: ignore[arg-type]


# --- what goes in comes out -----------------------------------------------------------------------------------------


def test_every_message_a_session_holds_is_one_of_the_wire():
    assert set(RECORDED) <= set(MESSAGES)


@quick
@given(messages=st.lists(st.one_of(*(MESSAGES[kind]() for kind in RECORDED)), max_size=6))
def test_every_message_comes_back_as_it_went_in(messages, tmp_path_factory):
    path = tmp_path_factory.mktemp("session") / "session.mcap"
    with SessionWriter(path) as writer:
        numbers = [writer.write(message) for message in messages]
    reader = read_session(path)
    _, *got = reader
    assert all(map(same, got, messages))
    assert len(got) == len(messages)
    assert reader.report.whole
    assert reader.report.readable_bytes == reader.report.size_bytes == path.stat().st_size
    assert numbers == list(range(2, len(messages) + 2))


def test_a_session_opens_with_versions_and_the_wall_clock(tmp_path):
    clock = Clock()
    with SessionWriter(tmp_path / "s.mcap", clock=clock, wall_clock=lambda: 1_700 * 10**15):
        pass
    (opening,) = read_session(tmp_path / "s.mcap")
    assert isinstance(opening, StatusReport)
    assert (opening.source, opening.t_ns) == ("session", clock.now_ns)
    assert opening.values["wall_clock_ns"] == 1_700 * 10**15
    assert {"format", "protocol", "lowdose", "numpy", "mcap", "python"} <= set(opening.values)


def test_notes_settings_and_calibration_are_recorded(tmp_path):
    told = [note("drifting", 1), facts("settings", {"scan": {"dwell_time_us": 1.0}}, 2), facts("beam", {"pa": 25.0}, 3)]
    with SessionWriter(tmp_path / "s.mcap") as writer:
        for message in told:
            writer.write(message)
    assert list(read_session(tmp_path / "s.mcap"))[1:] == told


def test_the_reader_of_the_mcap_library_reads_a_session(tmp_path):
    clock = Clock()
    with SessionWriter(tmp_path / "s.mcap", clock=clock, wall_clock=lambda: 10**18) as writer:
        for message in (start_of(), block_of(0, 0, 4, 0), note("here", 7)):
            clock.now_ns += 1_000
            writer.write(message)
    with (tmp_path / "s.mcap").open("rb") as file:
        reader = make_reader(file, validate_crcs=True)
        found = [
            (channel.topic, channel.message_encoding, m.sequence, m.log_time)
            for _, channel, m in reader.iter_messages()
        ]
    assert found == [
        (topic, "msgpack", k + 1, 10**18 + 1_000 * k)
        for k, topic in enumerate(("StatusReport", "ScanStart", "SampleBlock", "Event"))
    ]


def test_a_message_no_session_holds_is_refused_and_the_next_one_taken(tmp_path):
    with SessionWriter(tmp_path / "s.mcap") as writer:
        with pytest.raises(ValueError, match="got Request"):
            writer.write(Request("me", 1, "status"))
        with pytest.raises(ValueError, match="header"):
            writer.write(note("x" * (MAX_HEADER_BYTES + 1), 0))
        writer.write(note("short", 0))
    assert [message.text for message in read_session(tmp_path / "s.mcap") if isinstance(message, Event)] == ["short"]
    assert verify(tmp_path / "s.mcap").whole


def test_a_closed_file_takes_nothing_more(tmp_path):
    writer = SessionWriter(tmp_path / "s.mcap")
    writer.close()
    writer.close()
    with pytest.raises(RecordingError, match="is closed"):
        writer.write(note("late", 0))
    assert verify(tmp_path / "s.mcap").whole


# --- chunks ---------------------------------------------------------------------------------------------------------


def test_a_chunk_is_written_when_its_time_is_up(tmp_path):
    clock = Clock()
    with SessionWriter(tmp_path / "s.mcap", clock=clock) as writer:
        number = writer.write(start_of())
        writer.tick(clock.now_ns + CHUNK_NS - 1)
        assert writer.written < number
        writer.tick(clock.now_ns + CHUNK_NS)
        assert writer.written == number
        assert sum(1 for _ in read_session(tmp_path / "s.mcap")) == number  # not closed, and yet readable


def test_a_chunk_is_written_by_a_late_message_too(tmp_path):
    clock = Clock()
    with SessionWriter(tmp_path / "s.mcap", clock=clock) as writer:
        writer.write(note("first", 0))
        clock.now_ns += CHUNK_NS
        assert writer.write(note("late", 0)) == writer.written


def test_a_full_chunk_is_written_at_once(tmp_path, rng):
    clock = Clock()
    noise = rng.integers(0, 65_536, (1, MIN_CHUNK_BYTES // 2), np.uint16)
    with SessionWriter(tmp_path / "s.mcap", clock=clock) as writer:
        number = writer.write(SampleBlock("scan", "", 0, 0, noise, 0, 0, 0, 0))
        assert writer.written == number


@pytest.mark.parametrize(
    ("dwell_time_us", "expected"), [(0.05, MAX_CHUNK_BYTES), (1e4, MIN_CHUNK_BYTES), (4.0, 100_000)]
)
def test_a_chunk_holds_200_ms_of_samples_within_bounds(dwell_time_us, expected):
    assert chunk_bytes(start_of(paths=tuple(ScanPath(GRID, p.positions, dwell_time_us) for p in PATHS))) == expected


def test_the_library_still_closes_a_chunk_when_asked():
    output = BytesIO()
    writer = McapWriter(output, chunk_size=1 << 62)
    writer.start()
    channel = writer.register_channel("topic", "msgpack", 0)
    writer.add_message(channel, 0, b"x", 0)
    before = len(output.getvalue())
    close_chunk(writer)
    assert output.getvalue()[before] == Opcode.CHUNK


@pytest.mark.parametrize(("fsync", "expected"), [("never", 0), ("close", 2), ("chunk", 5)])
def test_the_disk_is_waited_for_as_configured(tmp_path, monkeypatch, fsync, expected):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    clock = Clock()
    with SessionWriter(tmp_path / "s.mcap", fsync=fsync, clock=clock) as writer:  # the folder, the opening
        for _ in range(2):
            writer.write(note("", 0))
            writer.tick(clock.now_ns + CHUNK_NS)
    assert len(synced) == expected


# --- one file, one recorder, and a disk that fills up ---------------------------------------------------------------


def test_a_second_recorder_is_refused_and_the_first_goes_on(tmp_path):
    path = tmp_path / "s.mcap"
    with SessionWriter(path) as writer:
        with pytest.raises(RecordingError, match="exists already"):
            SessionWriter(path)
        writer.write(note("still here", 0))
    assert [message.text for message in read_session(path) if isinstance(message, Event)] == ["still here"]


def test_a_file_that_cannot_be_made_is_one_clear_error(tmp_path):
    with pytest.raises(RecordingError, match=r"no-such-folder/s\.mcap: No such file or directory"):
        SessionWriter(tmp_path / "no-such-folder" / "s.mcap")


FILLS_UP = """
import resource, sys
from pathlib import Path
import numpy as np
from lowdose.acquisition.messages import SampleBlock
from lowdose.acquisition.recording import RecordingError, SessionWriter

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
noise = np.random.default_rng(0).integers(0, 65_536, (1, 20_000), np.uint16)
try:
    writer = SessionWriter(Path(sys.argv[1]))
    try:
        for k in range(1_000):
            writer.write(SampleBlock("scan", "digest", 0, 0, noise, k, 0, 0, 0))
    except RecordingError as error:
        print(error)
    try:
        writer.write(SampleBlock("scan", "digest", 0, 0, noise, 0, 0, 0, 0))
    except RecordingError as error:
        print(error)
    writer.close()
    writer.close()
    print(writer.written)
except RecordingError as error:
    print(error)
"""


def fill_up(path: Path, limit: int) -> list[str]:
    run = [sys.executable, "-c", FILLS_UP, str(path), str(limit)]
    return subprocess.run(run, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


def test_a_disk_that_fills_up_is_one_clear_error_and_what_was_written_is_read(tmp_path):
    first, second, written = fill_up(tmp_path / "s.mcap", 500_000)
    assert first == second == f"cannot record to {tmp_path / 's.mcap'}: File too large"
    reader = read_session(tmp_path / "s.mcap")
    assert [m.seq for m in reader if isinstance(m, SampleBlock)] == list(range(int(written) - 1))
    assert int(written) > 5
    assert not reader.report.ended


def test_a_disk_that_is_full_from_the_start_leaves_no_file(tmp_path):
    assert fill_up(tmp_path / "s.mcap", 100) == [f"cannot record to {tmp_path / 's.mcap'}: File too large"]
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from lowdose.acquisition.recording import CHUNK_NS, SessionWriter, note

now_ns = 0
writer = SessionWriter(Path(sys.argv[1]), clock=lambda: now_ns)
for k in range(50):
    writer.write(note(str(k), 0))
    now_ns += CHUNK_NS // 7
print(writer.written, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_recorder_that_is_killed_leaves_all_it_told_to_be_written(tmp_path):
    run = [sys.executable, "-c", KILLED, str(tmp_path / "s.mcap")]
    written = int(subprocess.run(run, capture_output=True, text=True, check=False, timeout=60).stdout)
    assert 40 < written < 51
    reader = read_session(tmp_path / "s.mcap")
    assert [message.text for message in reader if isinstance(message, Event)] == [str(k) for k in range(written - 1)]


# --- cut short and damaged ------------------------------------------------------------------------------------------


def test_a_file_cut_anywhere_is_read_up_to_its_last_whole_chunk(tmp_path, rng):
    session_of(tmp_path / "whole.mcap")
    data = (tmp_path / "whole.mcap").read_bytes()
    everything, _ = all_packed(tmp_path / "whole.mcap")
    ends = chunk_ends(data)
    cuts = {*ends, *(end - 1 for end in ends), *range(1, 80), *rng.integers(1, len(data), 150).tolist(), len(data) - 1}
    cut_file = tmp_path / "cut.mcap"
    seen = []
    for cut in sorted(cuts):
        cut_file.write_bytes(data[:cut])
        got, reader = all_packed(cut_file)
        assert got == everything[: len(got)]
        assert (reader.report.messages, reader.report.chunks) == (len(got), sum(end <= cut for end in ends))
        assert not reader.report.ended
        assert "cut short" in reader.report.damage[-1]
        assert reader.report.lost == reader.report.refused == 0
        seen.append(len(got))
    assert seen == sorted(seen)
    assert seen[-1] == len(everything)


def test_a_flipped_bit_never_changes_what_is_read_and_never_goes_unnoticed(tmp_path, rng):
    session_of(tmp_path / "whole.mcap")
    data = (tmp_path / "whole.mcap").read_bytes()
    everything, _ = all_packed(tmp_path / "whole.mcap")
    path = tmp_path / "flipped.mcap"
    for place in [*range(0, 60), *rng.integers(60, len(data), 150).tolist()]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            report = verify(path)
        except SessionError:
            assert place < 60
            continue
        assert not report.whole, place
        remaining = iter(everything)
        assert all(message in remaining for message in all_packed(path)[0])  # some of them, in order


def test_a_damaged_chunk_is_left_out_and_counted_and_the_rest_is_read(tmp_path):
    session_of(tmp_path / "s.mcap")
    data = bytearray((tmp_path / "s.mcap").read_bytes())
    everything, _ = all_packed(tmp_path / "s.mcap")
    data[chunk_ends(bytes(data))[2] - 5] ^= 1
    (tmp_path / "s.mcap").write_bytes(data)
    got, reader = all_packed(tmp_path / "s.mcap")
    assert got == everything[:4] + everything[7:]
    assert (reader.report.lost, reader.report.ended, reader.report.whole) == (3, True, False)
    assert "left out" in reader.report.damage[0]


def test_a_message_that_is_none_is_refused_and_the_rest_is_read(tmp_path):
    path = tmp_path / "s.mcap"
    bad = [b"", b"\xc1", b"\x80", packed(note("x", 0))[:-1], packed(note("x", 0)).replace(b"Event", b"Evant")]
    bad += [
        packed(note("x", 0)).replace(b"\xa7version\x01", b"\xa7version\x02"),
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 3_000,
    ]
    bad += [packed(block_of(0, 0, 4, 0)).replace(b"\xa6counts\xc4", b"\xa6caunts\xc4")]
    with path.open("xb") as file:
        write_mcap(file, f"{PROFILE}1", [*bad, packed(note("good", 0))])
    reader = read_session(path)
    assert [message.text for message in reader] == ["good"]
    assert reader.report.refused == len(bad)
    assert all(len(line) < 1_000 for line in reader.report.damage)


def write_mcap(file, profile: str, contents: list[bytes]) -> None:
    writer = McapWriter(file)
    writer.start(profile)
    channel = writer.register_channel("Event", "msgpack", 0)
    for number, content in enumerate(contents, 1):
        writer.add_message(channel, number, content, number, number)
    writer.finish()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "no session"), (b"row,col\n1,2\n", "no session"), (b"\x89PNG\r\n\x1a\n", "no session")],
)
def test_what_is_no_session_is_refused(tmp_path, content, expected):
    (tmp_path / "s.mcap").write_bytes(content)
    with pytest.raises(SessionError, match=expected):
        read_session(tmp_path / "s.mcap")


@pytest.mark.parametrize(("profile", "expected"), [("ros2", "no session of lowdose"), (f"{PROFILE}2", "format '2'")])
def test_another_kind_or_version_of_file_is_refused(tmp_path, profile, expected):
    with (tmp_path / "s.mcap").open("xb") as file:
        write_mcap(file, profile, [packed(note("x", 0))])
    with pytest.raises(SessionError, match=expected):
        read_session(tmp_path / "s.mcap")


def test_a_file_that_is_not_there_is_a_session_error(tmp_path):
    with pytest.raises(SessionError, match="No such file"):
        read_session(tmp_path / "s.mcap")


def chunk_record(compression: str, data: bytes, size: int, crc: int) -> bytes:
    builder = RecordBuilder()
    mcap_records.Chunk(compression, data, 0, 0, crc, size).write(builder)
    return builder.end()


BOMB = zstandard.compress(bytes(1 << 28))
TOO_LARGE = [
    chunk_record("zstd", BOMB, 1 << 28, 1)[:-1] + b"x",
    chunk_record("zstd", BOMB, 100, 0),
    chunk_record("zstd", b"", 1 << 62, 0),
    chunk_record("lz4", b"", 1 << 40, 0),
    chunk_record("", b"abc", 4, zlib.crc32(b"abc")),
    chunk_record("", b"abc", 3, 0),
    struct.pack("<BQ", Opcode.CHUNK, 1 << 63),
    struct.pack("<BQ", Opcode.CHUNK, 12) + bytes(12),
    struct.pack("<BQQQQIIQ", Opcode.CHUNK, 40, 0, 0, 1 << 60, 0, 0, 1 << 60),
]


@pytest.mark.parametrize("record", TOO_LARGE[1:], ids=range(1, len(TOO_LARGE)))
def test_sizes_are_checked_before_anything_is_allocated(tmp_path, record):
    with SessionWriter(tmp_path / "s.mcap") as writer:
        writer.write(note("x", 0))
        writer.tick(1 << 62)
        size = writer.size_bytes
    (tmp_path / "s.mcap").write_bytes((tmp_path / "s.mcap").read_bytes()[:size] + record)
    tracemalloc.start()
    got, reader = all_packed(tmp_path / "s.mcap")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(got) == 2
    assert reader.report.damage
    assert peak < 4 << 20


def test_a_chunk_of_more_records_than_any_writer_makes_is_left_out(tmp_path):
    tiny = struct.pack("<BQHIQQ", Opcode.MESSAGE, 22, 0, 1, 0, 0) * 66_000
    chunk = chunk_record("zstd", zstandard.compress(tiny), len(tiny), zlib.crc32(tiny))
    (tmp_path / "s.mcap").write_bytes(session_head() + chunk)
    reader = all_packed(tmp_path / "s.mcap")[1]
    assert (reader.report.messages, reader.report.refused) == (0, 0)
    assert "left out: it holds more than 65,536 records" in reader.report.damage[0]


def session_head() -> bytes:
    builder = RecordBuilder()
    mcap_records.Header(profile=f"{PROFILE}1", library="").write(builder)
    return MCAP0_MAGIC + builder.end()


def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "s.mcap")
    pipe = os.open(tmp_path / "s.mcap", os.O_RDWR)
    os.write(pipe, b"something")
    with pytest.raises(SessionError, match="no regular file"):
        read_session(tmp_path / "s.mcap")
    os.close(pipe)


# --- records whose heads are damaged --------------------------------------------------------------------------------


def second_chunk(data: bytes) -> tuple[int, int]:
    """Return where the last record before the second chunk of a file begins, and where that chunk does."""
    at, begins = chunk_ends(data)[0], []
    while not begins or data[begins[-1]] != Opcode.CHUNK:
        begins.append(at)
        at += 9 + struct.unpack_from("<Q", data, at + 1)[0]
    return begins[-2], begins[-1]


def test_a_flip_in_the_head_of_a_record_costs_its_own_chunk_at_most(tmp_path):
    session_of(tmp_path / "whole.mcap")
    data = (tmp_path / "whole.mcap").read_bytes()
    everything, _ = all_packed(tmp_path / "whole.mcap")  # 1 message in the first chunk, 3 in the second
    index, chunk = second_chunk(data)
    path = tmp_path / "flipped.mcap"
    for begin, least in ((index, everything), (chunk, everything[:1] + everything[4:])):
        for bit in range(72):
            flipped = bytearray(data)
            flipped[begin + bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            got, reader = all_packed(path)
            assert got in (everything, least), (begin, bit)
            assert reader.report.lost == len(everything) - len(got)
            assert reader.report.ended
            assert not verify(path).whole


def test_bytes_that_were_skipped_are_told_and_the_end_of_a_file_cut_short_too(tmp_path):
    session_of(tmp_path / "s.mcap")
    data = bytearray((tmp_path / "s.mcap").read_bytes())
    ends, (index, chunk) = chunk_ends(bytes(data)), second_chunk(bytes(data))
    data[index] = 0x1F  # no record begins so
    (tmp_path / "s.mcap").write_bytes(data[: ends[-1] - 7])
    got, reader = all_packed(tmp_path / "s.mcap")
    assert len(got) > 20
    assert reader.report.damage[0] == (
        f"the records cannot be followed from byte {ends[0]:,} on: {chunk - ends[0]:,} bytes are skipped, "
        "up to the next whole chunk"
    )
    assert "cut short" in reader.report.damage[-1]


def test_a_file_in_which_every_search_leads_to_another_is_given_up(tmp_path):
    chunk, n = chunk_record("zstd", zstandard.compress(b""), 0, 0), 400
    tail = struct.pack("<BQ", 0x80, 0) * 2_000 + bytes(9)  # a long way, at whose end there is no record
    ways = [chunk + struct.pack("<BQ", 0x80, (n - k - 1) * (len(chunk) + 9)) for k in range(n)]  # each leads there
    (tmp_path / "s.mcap").write_bytes(session_head() + b"".join(ways) + tail)
    reader = all_packed(tmp_path / "s.mcap")[1]
    assert 1 < reader.report.chunks < n // 10
    assert "nothing beyond can be read" in reader.report.damage[-1]


# --- verify and recover ---------------------------------------------------------------------------------------------


def test_a_whole_session_verifies(tmp_path):
    messages = session_of(tmp_path / "s.mcap")
    report = verify(tmp_path / "s.mcap")
    assert report.whole
    assert report.messages == len(messages) + 1
    assert report.chunks > 5


def test_a_change_outside_the_chunks_is_found_by_verify_alone(tmp_path):
    session_of(tmp_path / "s.mcap")
    data = bytearray((tmp_path / "s.mcap").read_bytes())
    data[chunk_ends(bytes(data))[1] + 12] ^= 1  # in the index of a chunk's messages
    (tmp_path / "s.mcap").write_bytes(data)
    reader = all_packed(tmp_path / "s.mcap")[1]
    assert reader.report.whole
    assert not verify(tmp_path / "s.mcap").whole


def test_what_is_recovered_is_a_whole_session_with_all_that_could_be_read(tmp_path):
    session_of(tmp_path / "s.mcap")
    data = bytearray((tmp_path / "s.mcap").read_bytes())
    ends = chunk_ends(bytes(data))
    data[ends[2] - 5] ^= 1
    (tmp_path / "cut.mcap").write_bytes(data[: ends[-1] - 7])
    readable, _ = all_packed(tmp_path / "cut.mcap")
    report = recover(tmp_path / "cut.mcap", tmp_path / "out.mcap")
    assert report.messages == len(readable)
    assert (tmp_path / "cut.mcap").read_bytes() == data[: ends[-1] - 7]
    *got, told = read_session(tmp_path / "out.mcap")
    assert [packed(message) for message in got] == readable
    assert isinstance(told, Event)
    assert "left out" in told.text
    again = verify(tmp_path / "out.mcap")
    assert (again.ended, again.whole, again.refused) == (True, False, 0)
    assert again.lost == report.lost == 3  # what is lost stays lost, and known to be
    assert again.damage == ("3 messages were lost before this file was written: it was recovered from another",)
    assert all_packed(tmp_path / "out.mcap")[1].report.readable_bytes == (tmp_path / "out.mcap").stat().st_size


def test_recovering_never_writes_over_a_file(tmp_path):
    session_of(tmp_path / "s.mcap")
    before = (tmp_path / "s.mcap").read_bytes()
    with pytest.raises(RecordingError, match="exists already"):
        recover(tmp_path / "s.mcap", tmp_path / "s.mcap")
    assert (tmp_path / "s.mcap").read_bytes() == before


def test_a_recovery_that_fails_leaves_nothing(tmp_path):
    session_of(tmp_path / "s.mcap")
    (tmp_path / "cut.mcap").write_bytes((tmp_path / "s.mcap").read_bytes()[:70])
    with pytest.raises(SessionError, match="nothing of"):
        recover(tmp_path / "cut.mcap", tmp_path / "out.mcap")
    assert not (tmp_path / "out.mcap").exists()


# --- what is in it --------------------------------------------------------------------------------------------------


def summary_of(path: Path, *messages: object):
    with SessionWriter(path) as writer:
        for message in messages:
            writer.write(message)  # type: ignore[arg-type]
    return summarise(path)


def test_a_summary_tells_scans_frames_duration_and_dose(tmp_path):
    session_of(tmp_path / "s.mcap", n_frames=6)
    summary = summarise(tmp_path / "s.mcap")
    (scan,) = summary.scans
    assert (scan.frames, scan.whole_frames, scan.samples, scan.blocks, scan.dense_frames) == (6, 6, 96, 24, 1)
    assert (scan.gapless, scan.end) == (True, "as asked")
    assert scan.duration_s == pytest.approx(516e-6)  # 1 µs a sample, 100 µs a frame
    # 6 frames of 32 µs at 10 pA over 32 Å^2: 6 * 32 * 10 * 6.241509 / 32
    assert scan.dose_e_per_a2 == pytest.approx(374.49, rel=1e-4)
    assert [event.text for event in summary.notes] == ["here"]
    assert summary.messages == {
        "StatusReport": 1,
        "ScanStart": 1,
        "SampleBlock": 24,
        "DenseFrame": 1,
        "Event": 1,
        "ScanEnd": 1,
    }


@pytest.mark.parametrize("current_pa", [0.0, -1.0, float("nan"), float("inf")])
def test_a_beam_current_that_is_no_number_tells_no_dose(tmp_path, current_pa):
    start = dataclasses.replace(start_of(), beam_current_pa=current_pa)
    (scan,) = summary_of(tmp_path / "s.mcap", start, block_of(0, 0, 16, 0)).scans
    assert (scan.samples, scan.dose_e_per_a2) == (16, 0.0)


def test_gaps_are_told_by_index_and_by_running_number(tmp_path):
    blocks = [block_of(0, 0, 16, 0), block_of(1, 0, 4, 1), block_of(1, 8, 8, 3), block_of(4, 0, 4, 9)]
    (scan,) = summary_of(tmp_path / "s.mcap", start_of(), *blocks).scans
    assert (scan.frames, scan.whole_frames) == (3, 1)
    assert scan.samples_missing == 4 + 2 * N  # a hole in frame 1, frames 2 and 3; frame 4 was broken off
    assert scan.blocks_lost == 1 + 5
    assert scan.end is None


def test_a_recording_that_begins_within_a_scan_misses_nothing_before(tmp_path):
    (scan,) = summary_of(tmp_path / "s.mcap", start_of(), block_of(3, 8, 8, 70), block_of(4, 0, 16, 71)).scans
    assert scan.gapless
    assert (scan.frames, scan.whole_frames, scan.samples) == (2, 1, 24)


def test_blocks_that_fit_nowhere_are_counted(tmp_path):
    (scan,) = summary_of(tmp_path / "s.mcap", start_of(), block_of(0, 14, 4, 0), block_of(0, 0, 16, 1)).scans
    assert (scan.blocks_refused, scan.samples) == (1, 16)


def test_blocks_without_their_scan_start_are_told_of(tmp_path):
    summary = summary_of(tmp_path / "s.mcap", block_of(0, 0, 4, 0), block_of(0, 4, 4, 1))
    assert (summary.scans, summary.homeless_blocks) == ((), 2)


def test_alarms_are_told(tmp_path):
    alarm = Event("microscope", "lease_lost", "the lease is lost", "alarm", 1)
    assert summary_of(tmp_path / "s.mcap", alarm).alarms == (alarm,)
