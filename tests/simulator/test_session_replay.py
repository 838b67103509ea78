"""Replayed sessions: what was measured, when it was measured, and nothing that was not."""

from __future__ import annotations

import dataclasses
import time
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lowdose.acquisition.assembly import FrameAssembler, SequenceCounter
from lowdose.acquisition.messages import SampleBlock, ScanEnd
from lowdose.acquisition.recording import facts
from lowdose.acquisition.session_reader import SessionError, read_session
from lowdose.acquisition.status import Event
from lowdose.reconstruction.engines.choice import load_engine
from lowdose.reconstruction.engines.classical_engine import LinearEngine, NearestEngine
from lowdose.reconstruction.pipeline import Reconstructor
from lowdose.scan_patterns import ScanPath
from lowdose.simulator.replay_timing import MAX_PAUSE_NS
from lowdose.simulator.session_replay import SessionReplay
from tests.reconstruction.engine_files import write_smoothing
from tests.reconstruction.lattices import interlaced_scan
from tests.simulator.sessions import BLOCK, GRID, MS, Clock, blocks_of, new_scan, scanned, write_session

if TYPE_CHECKING:
    from pathlib import Path

    from lowdose.acquisition.controllers.base import ScanController
    from lowdose.acquisition.frames import DenseFrame
    from lowdose.acquisition.messages import ScanStart
    from lowdose.reconstruction.engine import Engine
    from lowdose.simulator.session_replay import ReplayedSamples

START = new_scan()
PER_FRAME = len(blocks_of(START, 1))
FRAME_NS = round(1e3 * START.paths[0].duration_us)


def replay_of(path: Path, clock: Clock | None = None, *, speed: float = 0.0, **options: object) -> SessionReplay:
    """Return a replay that has begun."""
    clock = clock or Clock()
    replay = SessionReplay(read_session(path), speed=speed, clock=clock, sleep=clock.sleep, **options)  # type: ignore[arg-type]
    replay.start(lambda _scan_id, _path: True)
    replay.unblank()
    return replay


def as_block(samples: ReplayedSamples) -> SampleBlock:
    return SampleBlock(
        samples.scan_id,
        samples.path.digest,
        samples.frame_index,
        samples.first,
        samples.counts,
        samples.seq,
        samples.t_first_ns,
        samples.t_last_ns,
        samples.t_last_ns,
    )


@pytest.fixture
def session(tmp_path: Path) -> Path:
    return write_session(tmp_path / "s.mcap", scanned(START, 4))


# --- what was measured ----------------------------------------------------------------------------------------------


def engines(folder: Path) -> dict[str, Engine]:
    return {
        "nearest": NearestEngine(),
        "linear": LinearEngine(),
        "engine file": load_engine(write_smoothing(folder), runtime="openvino", precision="FP32", threads=1),
    }


def completed(
    start: ScanStart, blocks: list[SampleBlock], engine: Engine, *, partial_after: int
) -> tuple[list[DenseFrame], list[DenseFrame]]:
    """Return the complete frames, and a partial one after every so many blocks of the later frames."""
    reconstructor = Reconstructor([engine])
    reconstructor.prepare(start)
    deadline_s = time.monotonic() + 30
    while not reconstructor.ready(start):
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    assembler, whole, partial = FrameAssembler(start), [], []
    for k, block in enumerate(blocks):
        whole += [reconstructor.complete(frame, start) for frame in assembler.add(block, 0)]
        if assembler.under_way and k % partial_after == 0:
            partial.append(reconstructor.complete(assembler.frame(complete=False), start))
    reconstructor.close()
    return whole, partial


def bytes_of(frame: DenseFrame) -> tuple[object, ...]:
    arrays = (frame.image, frame.uncertainty, frame.measured, frame.hits)
    facts = (frame.frame_index, frame.complete, frame.samples_used, frame.engines, frame.path_digest, frame.scale)
    return (*facts, *(array.tobytes() for array in arrays))


@pytest.mark.parametrize("start", [START, interlaced_scan((40, 48), 2)], ids=["spiral", "interlaced"])
@pytest.mark.parametrize("name", ["nearest", "linear", "engine file"])
def test_frames_made_again_equal_the_live_ones_bit_for_bit(name: str, start: ScanStart, tmp_path: Path) -> None:
    engine, blocks = engines(tmp_path)[name], blocks_of(start, 6)
    live = completed(start, blocks, engine, partial_after=3)
    path = write_session(tmp_path / "s.mcap", [start, *blocks])
    replay = replay_of(path)
    samples = list(replay.blocks())
    again = completed(replay.scan(samples[0].scan_id), [as_block(s) for s in samples], engine, partial_after=3)
    assert [len(frames) for frames in again] == [len(frames) for frames in live]
    assert len(again[0]) == 6
    for frame, made_again in zip([*live[0], *live[1]], [*again[0], *again[1]], strict=True):
        assert bytes_of(made_again) == bytes_of(frame)


def test_every_sample_comes_once_in_order_as_recorded(session: Path) -> None:
    recorded = blocks_of(START, 4)
    samples = list(replay_of(session).blocks())
    assert [(s.frame_index, s.first, s.seq) for s in samples] == [(b.frame_index, b.first, b.seq) for b in recorded]
    for got, was in zip(samples, recorded, strict=True):
        np.testing.assert_array_equal(got.counts, was.counts)
        assert got.path == START.paths[0]


def test_a_replayed_scan_is_a_new_one_that_tells_which_it_was(session: Path) -> None:
    replay = replay_of(session)
    scan = replay.scan(next(replay.blocks()).scan_id)
    assert scan.scan_id != START.scan_id
    assert scan.replay_of == START.scan_id
    assert scan.t_ns == Clock().now_ns
    kept = ("paths", "pattern", "channels", "dwell_time_us", "beam_current_pa", "energy_kev", "area_id")
    assert all(getattr(scan, name) == getattr(START, name) for name in kept)


def test_the_scans_of_a_session_follow_each_other(tmp_path: Path) -> None:
    second = new_scan("second", channels=("ADF",))
    messages = [*scanned(START, 2), *scanned(second, 3, first_seq=2 * PER_FRAME, t_ns=3 * FRAME_NS)]
    replay = replay_of(write_session(tmp_path / "s.mcap", messages))
    samples = list(replay.blocks())
    scans = [replay.scan(scan_id) for scan_id in dict.fromkeys(s.scan_id for s in samples)]
    assert [scan.replay_of for scan in scans] == ["scan", "second"]
    assert [s.seq for s in samples] == list(range(5 * PER_FRAME))
    ends = [(k, s.end) for k, s in enumerate(samples) if s.end is not None]
    assert ends == [(2 * PER_FRAME - 1, "as asked"), (5 * PER_FRAME - 1, "as asked")]


# --- what is missing stays missing ----------------------------------------------------------------------------------


def test_a_hole_stays_a_hole_and_is_counted(tmp_path: Path) -> None:
    blocks = blocks_of(START, 3)
    holed = [block for block in blocks if block.seq not in (PER_FRAME + 1, PER_FRAME + 2)]
    replay = replay_of(write_session(tmp_path / "s.mcap", [START, *holed]))
    samples, counter = list(replay.blocks()), SequenceCounter()
    assembler = FrameAssembler(replay.scan(samples[0].scan_id))
    frames = [frame for s in samples for frame in assembler.add(as_block(s), 0)]
    for s in samples:
        counter.saw(s.seq)
    assert (counter.dropped, replay.lost) == (2, 2)
    n = len(START.paths[0])
    assert [frame.samples_used for frame in frames] == [n, n - 2 * BLOCK, n]
    assert not frames[1].mask[tuple(START.paths[0].pixels[BLOCK : 3 * BLOCK].T)].any()


def test_blocks_whose_scan_start_is_missing_are_left_out_and_counted(tmp_path: Path) -> None:
    lost, kept = new_scan("lost"), scanned(new_scan("kept"), 2, first_seq=3 * PER_FRAME, t_ns=3 * FRAME_NS)
    path = write_session(tmp_path / "s.mcap", [*blocks_of(lost, 3), *kept])
    replay = replay_of(path)
    assert len(list(replay.blocks())) == 2 * PER_FRAME
    assert replay.homeless == 3 * PER_FRAME


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (blocks_of(START, 2), "the start of their scan is missing"),
        ([START, ScanEnd("scan", 0, "")], "there are no samples in it"),
        ([], "there are no samples in it"),
    ],
    ids=["no start", "no block", "empty"],
)
def test_a_session_with_nothing_to_replay_says_why(messages: list[object], why: str, tmp_path: Path) -> None:
    path = write_session(tmp_path / "s.mcap", messages)  # type: ignore[arg-type]
    with pytest.raises(SessionError, match=why):
        list(replay_of(path, loop=True).blocks())


def test_a_block_that_is_not_on_its_scans_path_is_refused(tmp_path: Path) -> None:
    blocks = blocks_of(START, 1)
    beyond = dataclasses.replace(blocks[-1], first=len(START.paths[0]) - 1)
    elsewhere = dataclasses.replace(blocks[0], path_digest="0" * 32)
    other = dataclasses.replace(blocks[1], counts=blocks[1].counts[:1])
    replay = replay_of(write_session(tmp_path / "s.mcap", [START, beyond, elsewhere, other, *blocks]))
    assert len(list(replay.blocks())) == PER_FRAME
    assert replay.refused == 3


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_session_is_replayed_as_far_as_it_can_be_read(share: float, tmp_path: Path) -> None:
    path = write_session(tmp_path / "s.mcap", scanned(START, 20), chunk_of=lambda k: k % 5 == 4)
    path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)])
    samples = list(replay_of(path).blocks())
    assert 0 < len(samples) < 20 * PER_FRAME
    assert [s.seq for s in samples] == list(range(len(samples)))


def test_a_flipped_bit_costs_a_chunk_and_whatever_follows_is_replayed(tmp_path: Path) -> None:
    path = write_session(tmp_path / "s.mcap", scanned(START, 20), chunk_of=lambda k: k % 5 == 4)
    data, n_replayed = path.read_bytes(), []
    for at in range(len(data) // 4, len(data), len(data) // 23):  # behind the scan's start
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        replay = replay_of(path)
        samples = list(replay.blocks())
        assert len(samples) + replay.lost + replay.homeless <= 20 * PER_FRAME
        n_replayed.append(len(samples))
    assert min(n_replayed) > 0
    assert 20 * PER_FRAME - 5 in n_replayed


def test_blocks_that_came_late_or_twice_are_replayed_as_they_came(tmp_path: Path) -> None:
    blocks = blocks_of(START, 3)
    order = [*blocks[:PER_FRAME], blocks[PER_FRAME + 1], blocks[PER_FRAME], blocks[PER_FRAME], *blocks[PER_FRAME + 2 :]]
    samples = list(replay_of(write_session(tmp_path / "s.mcap", [START, *order]), speed=1.0).blocks())
    assert [s.seq for s in samples] == [block.seq for block in order]


# --- when -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [1.0, 4.0, 0.5])
def test_blocks_come_when_they_were_measured_or_so_many_times_faster(session: Path, speed: float) -> None:
    clock, recorded = Clock(), blocks_of(START, 4)
    begin_ns = clock()
    for samples, was in zip(replay_of(session, clock, speed=speed).blocks(), recorded, strict=True):
        assert clock() - begin_ns == pytest.approx(was.t_last_ns / speed, abs=1_000)
        assert samples.t_last_ns == pytest.approx(clock(), abs=1_000)
        assert samples.t_last_ns - samples.t_first_ns == pytest.approx((was.t_last_ns - was.t_first_ns) / speed, abs=2)


def test_at_speed_0_nothing_waits(session: Path) -> None:
    clock = Clock()
    samples = list(replay_of(session, clock, speed=0.0).blocks())
    assert clock.slept_ns == 0
    assert {s.t_last_ns for s in samples} == {clock()}


def test_the_pause_between_two_scans_is_kept(tmp_path: Path) -> None:
    pause_ns = 700 * MS
    second = scanned(new_scan("second"), 1, first_seq=PER_FRAME, t_ns=FRAME_NS + pause_ns)
    path, clock = write_session(tmp_path / "s.mcap", [*scanned(START, 1), *second]), Clock()
    samples = list(replay_of(path, clock, speed=1.0).blocks())
    between = samples[PER_FRAME].t_first_ns - samples[PER_FRAME - 1].t_last_ns
    assert between == pytest.approx(pause_ns, abs=1_000)


@pytest.mark.parametrize(("t_ns", "silence_ns"), [(3_600 * 10**9, MAX_PAUSE_NS), (-(10**15), 0), (2**62, MAX_PAUSE_NS)])
def test_times_that_jump_cost_no_more_than_a_minute(t_ns: int, silence_ns: int, tmp_path: Path) -> None:
    # a microscope that was started anew, hours later, or a file that says so
    second = [
        dataclasses.replace(m, t_first_ns=m.t_first_ns + t_ns, t_last_ns=m.t_last_ns + t_ns)
        if isinstance(m, SampleBlock)
        else m
        for m in scanned(new_scan("second"), 2)
    ]
    path, clock = write_session(tmp_path / "s.mcap", [*scanned(START, 2), *second]), Clock()
    samples = list(replay_of(path, clock, speed=1.0).blocks())
    assert [s.seq for s in samples] == list(range(4 * PER_FRAME))  # the second count from 0 goes on with the first
    assert clock.slept_ns == pytest.approx(4 * FRAME_NS + silence_ns, abs=MS)


def test_a_start_time_begins_with_a_whole_frame(session: Path) -> None:
    first = next(replay_of(session, start_s=1.2 * FRAME_NS / 1e9).blocks())
    assert (first.frame_index, first.first, first.seq) == (2, 0, 0)
    with pytest.raises(SessionError, match=r"no frame begins 9 s after the first, it lasts 0\.0"):
        list(replay_of(session, start_s=9.0).blocks())


def test_in_a_loop_every_pass_is_a_scan_of_its_own_and_numbers_go_on(session: Path) -> None:
    samples = list(islice(replay_of(session, loop=True).blocks(), 12 * PER_FRAME))
    assert [s.seq for s in samples] == list(range(12 * PER_FRAME))
    assert len({s.scan_id for s in samples}) == 3


def test_single_steps_hold_after_every_frame_the_last_one_too(session: Path) -> None:
    clock = Clock()
    held = []

    def look(seconds: float) -> None:
        clock.sleep(seconds)
        if replay.held:
            held.append(got[-1].frame_index)
            clock.now_ns += 10_000 * MS
            replay.unblank()

    replay = SessionReplay(read_session(session), speed=1.0, step=True, clock=clock, sleep=look)
    replay.start(lambda _scan_id, _path: True)
    replay.unblank()
    got: list[ReplayedSamples] = []
    for samples in replay.blocks():
        assert samples.t_last_ns <= clock()
        got.append(samples)
    assert held == [0, 1, 2, 3]
    assert len(got) == 4 * PER_FRAME


def test_a_held_recording_goes_on_where_it_was_without_the_time_it_was_held(session: Path) -> None:
    clock = Clock()
    replay = replay_of(session, clock, speed=1.0)
    blocks = replay.blocks()
    before = next(blocks)
    replay.blank(0.1)
    held_ns = 5_000 * MS

    def look(seconds: float) -> None:
        clock.now_ns += held_ns
        replay.unblank()
        replay._sleep = clock.sleep

    replay._sleep = look
    after = next(blocks)
    assert after.first == before.first + BLOCK
    assert after.t_first_ns == before.t_last_ns + held_ns
    following = [after, *blocks]
    assert all(b.t_first_ns == pytest.approx(a.t_last_ns, abs=2) for a, b in pairwise(following))


# --- the contract of every controller -------------------------------------------------------------------------------


def test_a_replay_is_a_scan_controller_that_asks_before_each_frame(session: Path) -> None:
    controller: ScanController = SessionReplay(read_session(session), speed=0.0)
    asked: list[tuple[str, ScanPath]] = []

    def admit(scan_id: str, path: ScanPath) -> bool:
        asked.append((scan_id, path))
        return len(asked) <= 2

    controller.start(admit)
    controller.unblank()
    samples = list(controller.blocks())
    assert [s.frame_index for s in samples if s.ends_frame] == [0, 1]
    assert asked == [(samples[0].scan_id, START.paths[0])] * 3
    controller.new_area()
    controller.close()
    controller.close()


def test_it_moves_along_no_other_path_than_the_recorded_one(session: Path) -> None:
    replay = replay_of(session)
    scan_id = next(replay.blocks()).scan_id
    replay.prepare(scan_id, START.paths)
    with pytest.raises(ValueError, match="has the paths it was recorded along"):
        replay.prepare(scan_id, (ScanPath(GRID, [[0, 0]], 1.0),))
    with pytest.raises(ValueError, match="no scan 'x' is known here"):
        replay.scan("x")


@pytest.mark.parametrize("verb", ["stop", "close"])
def test_stop_and_close_end_the_blocks_at_once(session: Path, verb: str) -> None:
    replay = replay_of(session, speed=1.0)
    blocks = replay.blocks()
    next(blocks)
    getattr(replay, verb)()
    assert list(blocks) == []


@pytest.mark.parametrize(
    "options",
    [{"speed": -1.0}, {"speed": float("nan")}, {"speed": 1e-4}, {"start_s": -1.0}, {"start_s": 1e300}],
    ids=str,
)
def test_a_speed_or_a_start_that_cannot_be_waited_for_is_refused(session: Path, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be 0.*, got"):
        SessionReplay(read_session(session), **options)  # type: ignore[arg-type]


# --- nothing in a session is trusted --------------------------------------------------------------------------------


def test_labels_of_a_session_are_shown_never_obeyed_nor_imported(tmp_path: Path) -> None:
    pattern = {"name": "os:system\x1b[2J" + "x" * 900, "coverage": (1, 2), "path": "/etc/passwd", "deep": ((((1,),),),)}
    hostile = new_scan("\x07" * 300, pattern=pattern, channels=("A\x1b", "B"))
    replay = replay_of(write_session(tmp_path / "s.mcap", scanned(hostile, 1)))
    scan = replay.scan(next(replay.blocks()).scan_id)
    name = str(scan.pattern["name"])
    assert name.startswith("os:system?[2Jx")
    assert len(name) == 200
    assert scan.pattern["path"] == "/etc/passwd"  # a label like any other
    assert "coverage" not in scan.pattern
    assert scan.pattern["deep"] == "…"
    assert scan.channels == ("A?", "B")
    assert scan.replay_of == "?" * 200


@pytest.mark.parametrize("dwell_time_us", [float("inf"), 1e9])
def test_a_scan_whose_counts_make_no_finite_picture_is_left_out(
    dwell_time_us: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = new_scan("wrong", dwell_time_us=dwell_time_us)
    path = write_session(tmp_path / "s.mcap", [*scanned(wrong, 1), *scanned(START, 1, first_seq=PER_FRAME)])
    replay = replay_of(path)
    assert len(list(replay.blocks())) == PER_FRAME
    assert replay.homeless == PER_FRAME
    assert "scan wrong of the session is left out: dwell_time_us must be at most" in caplog.text


def test_a_scan_that_does_not_fit_is_left_out_and_the_others_are_replayed(tmp_path: Path) -> None:
    def require(start: ScanStart) -> None:
        if len(start.channels) == 1:
            raise ValueError("too large")

    messages = [*scanned(new_scan("large", channels=("A",)), 1), *scanned(START, 1, first_seq=PER_FRAME)]
    replay = replay_of(write_session(tmp_path / "s.mcap", messages), require=require)
    assert {replay.scan(s.scan_id).replay_of for s in replay.blocks()} == {"scan"}


def test_running_numbers_from_nowhere_do_not_grow_beyond_the_wire(tmp_path: Path) -> None:
    blocks = blocks_of(START, 2)
    blocks[3] = dataclasses.replace(blocks[3], seq=2**64 - 1)
    samples = list(islice(replay_of(write_session(tmp_path / "s.mcap", [START, *blocks]), loop=True).blocks(), 500))
    assert all(0 <= s.seq < 2**50 for s in samples)


def test_everything_else_in_a_session_is_passed_over(tmp_path: Path) -> None:
    alarm = Event("microscope", "blank_not_confirmed", "BLANK BY HAND", "alarm", 5)
    messages = [facts("settings", {"controller": {"name": "os:system"}}, 1), alarm, *scanned(START, 1), alarm]
    assert len(list(replay_of(write_session(tmp_path / "s.mcap", messages)).blocks())) == PER_FRAME
