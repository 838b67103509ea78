"""What a controller may do wrong, and the answer to each: counted, shown or blanked, never a wrong picture."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from lowdose.acquisition.assembly import FrameAssembler, SequenceCounter
from lowdose.acquisition.continuity import BlockOrder, block_plan
from lowdose.acquisition.controllers.base import BlankNotConfirmedError, ControllerError, Samples
from lowdose.acquisition.messages import SampleBlock, ScanStart
from lowdose.config.errors import ConfigError
from lowdose.config.registry import make_plug_in
from lowdose.scan_patterns import ScanGrid, ScanPath
from lowdose.simulator.controller import LIMITS, Simulated, VirtualBeam
from lowdose.simulator.faults import EXIT_CODE, NEVER_NS, Faults, InstrumentLog

GRID = ScanGrid((32, 32))
MS = 1_000_000
PATH = ScanPath(GRID, np.indices(GRID.shape).reshape(2, -1).T, 10.0)
"""Four blocks of 256 samples, 2.56 ms each."""


class Flat:
    def frame(self, _t_s):
        return np.full(GRID.shape, 0.5, np.float32)


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self):
        self.now_ns = 1_000 * MS

    def __call__(self):
        return self.now_ns

    def sleep(self, seconds):
        self.now_ns += round(seconds * 1e9)


def controller_with(faults, clock, log=None):
    controller = Simulated(faults=faults, log=log).open(Flat(), channels=("HAADF",), beam_current_pa=25.0)
    controller._clock = controller.beam._clock = clock
    controller._sleep = clock.sleep
    return controller


def scanned(faults, frames=3, clock=None):
    """Return the blocks of so many frames."""
    left = [frames]

    def admit(_scan_id, _path):
        left[0] -= 1
        return left[0] >= 0

    controller = controller_with(faults, clock or Clock())
    controller.prepare("scan", (PATH,))
    controller.start(admit)
    controller.unblank()
    return controller.blocks()


def places(blocks):
    return [4 * block.frame_index + block.first // 256 for block in blocks]


# --- the faults -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (Faults(), [0, 1, 2, 3, 4, 5, 6, 7]),
        (Faults(drop=2), [0, 1, 3, 4, 5, 6, 7]),
        (Faults(duplicate=2), [0, 1, 2, 2, 3, 4, 5, 6, 7]),
        (Faults(reorder=2), [0, 1, 3, 2, 4, 5, 6, 7]),
        (Faults(stall=2), [0, 1]),
        (Faults(drop=1, duplicate=3), [0, 2, 3, 3, 4, 5, 6, 7]),
    ],
    ids=str,
)
def test_blocks_come_as_the_fault_says(faults, expected):
    assert places(scanned(faults, 2)) == expected


def test_a_wrong_count_lacks_one_sample_of_one_block():
    assert [block.counts.shape[1] for block in scanned(Faults(wrong_count=2), 1)] == [256, 256, 255, 256]


def test_a_late_block_is_late_by_as_much_as_configured():
    clock = Clock()
    late_ms = [(clock() - block.t_last_ns) / MS for block in scanned(Faults(late=2, late_ms=30), 2, clock)]
    assert late_ms[:2] == [0, 0]
    assert late_ms[2] == 30


def test_after_a_stall_of_the_host_the_schedule_moves_on_without_a_burst():
    clock = Clock()
    blocks = list(scanned(Faults(late=2, late_ms=50), 3, clock))
    began = [block.t_first_ns for block in blocks]
    assert all(later - earlier >= 2.56 * MS - 1 for earlier, later in pairwise(began))
    assert blocks[-1].t_last_ns - blocks[0].t_first_ns > 12 * 2.56 * MS + 40 * MS


def test_a_driver_that_dies_raises_after_its_blocks():
    blocks = scanned(Faults(die=2))
    assert places([next(blocks), next(blocks)]) == [0, 1]
    with pytest.raises(ControllerError, match="after 2 blocks"):
        next(blocks)


def test_a_driver_may_take_its_process_along():
    code = (
        "from lowdose.simulator.faults import Faults\n"
        "list(Faults(exit=1).disturb(iter('ab'), sleep=None, stick=None, note=print))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == EXIT_CODE


def test_a_stuck_blanker_is_not_confirmed_and_the_beam_stays_on():
    clock = Clock()
    controller = controller_with(Faults(refuse_to_blank=1), clock)
    controller.prepare("scan", (PATH,))
    controller.start(lambda *_: True)
    controller.unblank()
    blocks = controller.blocks()
    next(blocks)
    controller.blank(0.1)
    controller.unblank()
    next(blocks)
    before_ns = clock()
    for verb in (controller.blank, controller.park):
        with pytest.raises(BlankNotConfirmedError):
            verb(0.1)
    assert clock() - before_ns == 200 * MS
    assert controller.beam.on


@pytest.mark.parametrize(
    ("faults", "complaint"),
    [
        ({"stall": -1}, "stall must be >= 0 blocks, got -1"),
        ({"late": 1, "late_ms": 0}, "late_ms must be > 0"),
        ({"explode": 1}, "explode"),
    ],
)
def test_wrong_faults_in_yaml_are_refused(faults, complaint):
    with pytest.raises(ConfigError, match=complaint):
        make_plug_in("controller", {"name": "simulated", "faults": faults}, local=True)


def test_faults_are_read_from_yaml():
    made = make_plug_in("controller", {"name": "simulated", "faults": {"drop": 3, "late_ms": 7}}, local=True)
    assert made.faults == Faults(drop=3, late_ms=7.0)


# --- what the service makes of them ---------------------------------------------------------------------------------


def start_of(scan_id="scan", paths=(PATH,)):
    return ScanStart(scan_id, paths, {"name": "own"}, ("HAADF",), 10.0, 25.0, 200.0, 0, None, 0, 0)


def numbered(blocks):
    """Return what the service passes on, as (number, block), and the order it kept."""
    order = BlockOrder(LIMITS, lambda scan_id: start_of(scan_id))
    passed = [(order.number(block), block) for block in blocks]
    return [(number, block) for number, block in passed if number is not None], order


def frames_of(passed):
    """Return the frames a receiver makes of numbered blocks, and the blocks it missed."""
    assembler, counter, frames = FrameAssembler(start_of()), SequenceCounter(), []
    for number, block in passed:
        counter.saw(number)
        message = SampleBlock(
            "scan", PATH.digest, block.frame_index, block.first, block.counts, number, block.t_first_ns, 0, 0
        )
        frames += assembler.add(message, 0)
    return frames + assembler.finish(), counter.dropped


@pytest.mark.parametrize(
    ("faults", "lost", "refused", "holes"),
    [
        (Faults(), 0, 0, 0),
        (Faults(drop=5), 1, 0, 256),
        (Faults(duplicate=5), 0, 1, 0),
        (Faults(reorder=5), 0, 0, 0),
        (Faults(wrong_count=5), 1, 1, 256),
        (Faults(wrong_count=5, drop=6), 2, 1, 512),
    ],
    ids=str,
)
def test_every_block_lost_is_a_hole_that_is_counted_and_no_frame_is_wrong(faults, lost, refused, holes):
    truth, _ = frames_of(numbered(scanned(Faults()))[0])
    passed, order = numbered(scanned(faults))
    frames, dropped = frames_of(passed)
    assert (order.lost, order.refused, dropped) == (lost, refused, lost)
    assert [int((~frame.mask).sum()) for frame in frames] == [0, holes, 0]
    for frame, true in zip(frames, truth, strict=True):
        np.testing.assert_array_equal(frame.values[0][frame.mask], true.values[0][frame.mask])


def samples(place=0, scan_id="scan", path=PATH, m=256, first=None, dtype=np.uint16, channels=1):
    frame, k = divmod(place, 4)
    return Samples(scan_id, path, frame, 256 * k if first is None else first, np.ones((channels, m), dtype), 0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        samples(1, m=257),
        samples(1, m=0),
        samples(1, first=255),
        samples(1, first=-256),
        samples(1, first=1_024),
        samples(1, dtype=np.uint32),
        samples(1, channels=2),
        samples(1, path=ScanPath(GRID, PATH.positions[::-1], 10.0)),
        samples(-4),
        samples(40_004),
    ],
    ids=range(10),
)
def test_a_block_that_is_not_what_was_asked_for_is_refused_and_the_next_one_taken(wrong):
    order = BlockOrder(LIMITS, start_of)
    assert order.number(samples(0)) == 0
    assert order.number(wrong) is None
    assert order.number(samples(1)) == 1
    assert (order.lost, order.refused) == (0, 1)


def test_numbers_go_on_from_scan_to_scan_and_an_ended_scan_is_over():
    order = BlockOrder(LIMITS, start_of)
    assert [order.number(samples(k, "first")) for k in (0, 1)] == [0, 1]
    assert [order.number(samples(k, "second")) for k in (0, 1)] == [2, 3]
    assert order.number(samples(2, "first")) is None
    assert order.number(samples(2, "second")) == 4


def test_paths_of_a_cycle_are_numbered_in_turn():
    short = ScanPath(GRID, PATH.positions[:300], 10.0)
    order = BlockOrder(LIMITS, lambda scan_id: start_of(scan_id, (PATH, short)))
    assert len(block_plan(short, LIMITS)) == 2
    assert order.number(samples(0)) == 0
    assert order.number(Samples("scan", short, 1, 256, np.ones((1, 44), np.uint16), 0, 0)) == 5
    assert order.number(Samples("scan", PATH, 2, 0, np.ones((1, 256), np.uint16), 0, 0)) == 6
    assert order.lost == 4


def test_however_much_is_lost_memory_is_bounded():
    order = BlockOrder(LIMITS, start_of)
    for k in range(0, 100_000, 5_000):
        assert order.number(samples(k)) == k
    assert order.lost == 95_000 - 19
    assert len(order._missing) <= 10_000


# --- the instrument's own times -------------------------------------------------------------------------------------


def test_the_log_tells_until_when_the_beam_is_on_whoever_reads_it(tmp_path):
    clock = Clock()
    log, other = (InstrumentLog(tmp_path / "log") for _ in range(2))
    beam = VirtualBeam(look_ahead_ns=5 * MS, clock=clock, log=log)
    beam.unblank()
    beam.hand_over(4 * MS)
    assert other.read("on_until") == clock() + 4 * MS
    clock.sleep(0.001)
    beam.blank()
    assert other.read("on_until") == clock()
    beam.stick()
    assert other.read("on_until") == NEVER_NS
    for either in (log, other):
        either.close()
        either.close()


def test_the_log_tells_when_a_fault_came_and_the_last_block_before_it(tmp_path):
    clock, log = Clock(), InstrumentLog(tmp_path / "log")
    controller = controller_with(Faults(stall=2), clock)
    controller._log = log
    controller.prepare("scan", (PATH,))
    controller.start(lambda *_: log.read("fault") == 0)
    controller.unblank()
    last = list(controller.blocks())[-1]
    assert last.t_last_ns <= log.read("delivered") < log.read("fault") <= clock()
    log.close()
