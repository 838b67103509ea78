"""The reconstruction service behind a scripted publisher: what is lost, doubled, late or garbage on the way."""

from __future__ import annotations

import threading
import time
import uuid

import numpy as np
import pytest
import zmq

from lowdose.acquisition.assembly import FrameAssembler
from lowdose.acquisition.frames import DenseFrame
from lowdose.acquisition.messages import Reply, SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.settings import NetworkSettings
from lowdose.acquisition.sockets import SAMPLES_HWM, ControlServer, Publisher, Subscriber
from lowdose.acquisition.wire import decode, encode
from lowdose.reconstruction.engines.classical_engine import LinearEngine, NearestEngine
from lowdose.reconstruction.pipeline import Reconstructor
from lowdose.reconstruction.service import ReconstructionService
from lowdose.scan_patterns import ScanGrid
from lowdose.scan_patterns.raster import Raster
from lowdose.scan_patterns.spiral import Spiral
from tests.reconstruction.lattices import interlaced_scan

GRID = ScanGrid((48, 48))
BLOCK = 64


def new_scan(pattern=None, dwell_time_us=1.0):
    paths = (pattern or Spiral(1 / 6)).paths(GRID, dwell_time_us=dwell_time_us, rng=np.random.default_rng(0))
    now = time.monotonic_ns()
    return ScanStart(uuid.uuid4().hex, paths, {"name": "x"}, ("HAADF",), dwell_time_us, 25.0, 200.0, 0, None, now, now)


def frame_blocks(start, frame_index, seq, value=7, size=BLOCK):
    path = start.path_of(frame_index)
    blocks = []
    for first in range(0, len(path), size):
        m = min(size, len(path) - first)
        counts = np.full((1, m), value, np.uint16)
        now = time.monotonic_ns()
        blocks.append(
            SampleBlock(start.scan_id, path.digest, frame_index, first, counts, seq + len(blocks), now, now, now)
        )
    return blocks


class Rig:
    """A publisher in the microscope's place, the service under test, and a listener to its frames."""

    def __init__(self, engine=None):
        self.publisher = Publisher("tcp://127.0.0.1:0", hwm=SAMPLES_HWM)
        self.control = ControlServer("tcp://127.0.0.1:0")
        self.known = {}
        self.asked = []
        network = NetworkSettings(
            control=self.control.endpoint, samples=self.publisher.endpoint, frames="tcp://127.0.0.1:0"
        )
        self.service = ReconstructionService(Reconstructor([engine or NearestEngine()]), network)
        self.frames = Subscriber(self.service.endpoint, ("frames",), hwm=100)
        self.service.start()
        self._stop = threading.Event()
        self._answering = threading.Thread(target=self._answer, daemon=True)
        self._answering.start()
        self.wait_until(lambda: self.publisher.has_listener("samples"))
        self.wait_until(lambda: self.service._publisher.has_listener("frames"))

    def _answer(self):
        while not self._stop.is_set():
            received = self.control.receive(0.02)
            if received is not None:
                address, request = received
                self.asked.append(request.arguments["scan_id"])
                scan = self.known.get(request.arguments["scan_id"])
                self.control.reply(address, scan or Reply(request.request_id, error="no such scan"))

    @staticmethod
    def wait_until(condition, timeout_s=10.0):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.002)

    def send(self, *messages):
        for message in messages:
            self.publisher.publish(message)

    def next_frame(self, timeout_s=10.0, complete=True):
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            frame = self.frames.receive(left)
            if isinstance(frame, DenseFrame) and (frame.complete or not complete):
                return frame
        raise AssertionError("no frame came")

    def close(self):
        self._stop.set()
        self._answering.join(5)
        self.service.close()
        for socket in (self.publisher, self.control, self.frames):
            socket.close()


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.close()


def test_a_complete_frame_is_completed_and_published(rig):
    start = new_scan()
    rig.send(start, *frame_blocks(start, 0, 0))
    frame = rig.next_frame()
    assert (frame.scan_id, frame.frame_index, frame.dropped, frame.gaps) == (start.scan_id, 0, 0, 0)
    assert frame.samples_used == len(start.paths[0])
    np.testing.assert_allclose(frame.image, 7, rtol=1e-5)


def test_a_lost_block_leaves_a_hole_is_counted_and_the_next_frame_is_whole(rig):
    start = new_scan()
    first = frame_blocks(start, 0, 0)
    second = frame_blocks(start, 1, len(first))
    rig.send(start, *first[:2], *first[3:], second[0])
    holed = rig.next_frame()
    assert (holed.gaps, holed.dropped) == (1, 1)
    lost = start.paths[0].pixels[2 * BLOCK : 3 * BLOCK]
    assert not holed.mask[tuple(lost.T)].any()
    rig.send(*second[1:])
    whole = rig.next_frame()
    assert whole.mask.sum() == start.paths[0].mask.sum()
    assert (whole.gaps, whole.dropped) == (1, 1)


def test_doubled_and_shuffled_blocks_give_the_same_frame_and_no_drop(rig):
    start = new_scan()
    blocks = frame_blocks(start, 0, 0)
    rig.send(start, *reversed(blocks[:-1]), blocks[0], blocks[0], blocks[-1])
    frame = rig.next_frame()
    assert frame.samples_used == len(start.paths[0])
    assert frame.gaps == 0


def test_leftovers_of_an_ended_scan_are_dropped_and_counted(rig):
    old, new = new_scan(), new_scan(Spiral(1 / 4))
    blocks = frame_blocks(old, 0, 0)
    rig.send(old, *blocks[:1], ScanEnd(old.scan_id, 0, "stopped"), new, blocks[1], *frame_blocks(new, 0, 2))
    rig.wait_until(lambda: rig.service.dropped >= 1)
    while (frame := rig.next_frame()).scan_id != new.scan_id:
        assert frame.scan_id == old.scan_id
    assert frame.samples_used == len(new.paths[0])


def test_a_frame_broken_off_by_the_end_of_the_scan_is_shown_as_far_as_it_came_and_is_no_gap(rig):
    start = new_scan()
    blocks = frame_blocks(start, 0, 0, value=3)
    broken = frame_blocks(start, 1, len(blocks), value=8)[:2]
    rig.send(start, *blocks, *broken, ScanEnd(start.scan_id, 1, "stopped"))
    while (frame := rig.next_frame(complete=False)).frame_index == 0:
        assert frame.complete
    assert not frame.complete
    assert frame.gaps == 0
    assert frame.samples_used == 2 * BLOCK
    assert frame.mask.sum() == start.paths[0].mask.sum()  # the frame before fills the rest


def test_a_scan_joined_in_the_middle_is_asked_for(rig):
    start = new_scan()
    rig.known[start.scan_id] = start
    rig.send(*frame_blocks(start, 4, 40))
    frame = rig.next_frame()
    assert rig.asked == [start.scan_id]
    assert frame.frame_index == 4
    assert frame.dropped == 0


def test_blocks_of_a_scan_nobody_knows_are_dropped_and_asked_for_at_most_twice_a_second(rig):
    stray, start = new_scan(), new_scan(Spiral(1 / 4))
    rig.send(*frame_blocks(stray, 0, 0))
    rig.wait_until(lambda: rig.service.dropped == len(frame_blocks(stray, 0, 0)))
    assert len(rig.asked) == 1
    rig.send(start, *frame_blocks(start, 0, len(frame_blocks(stray, 0, 0))))
    assert rig.next_frame().scan_id == start.scan_id


def test_garbage_on_the_samples_socket_is_survived(rig):
    start = new_scan()
    with rig.publisher._lock:
        for garbage in (
            [b"samples"],
            [b"samples", b"\xff" * 50],
            [b"samples", b"x", b"y", b"z"],
            [b"samples" + b"\0" * 99],
        ):
            rig.publisher._socket.send_multipart(garbage)
    rig.send(start, *frame_blocks(start, 0, 0))
    assert rig.next_frame().frame_index == 0


def test_blocks_that_do_not_fit_the_path_never_reach_a_frame(rig):
    start = new_scan()
    blocks = frame_blocks(start, 0, 0)
    wrong = SampleBlock(start.scan_id, "0" * 32, 0, 0, np.full((1, 10), 999, np.uint16), 0, 1, 2, 3)
    beyond = SampleBlock(start.scan_id, start.paths[0].digest, 0, 10**9, np.full((1, 10), 999, np.uint16), 0, 1, 2, 3)
    rig.send(start, wrong, beyond, *blocks)
    frame = rig.next_frame()
    np.testing.assert_allclose(frame.image, 7, rtol=1e-5)


def test_a_long_frame_is_shown_while_it_is_being_scanned(rig):
    start = new_scan(Raster(), dwell_time_us=100.0)  # 230 ms
    blocks = frame_blocks(start, 0, 0)
    rig.send(start, *blocks[: len(blocks) // 2])
    partial = rig.next_frame(complete=False)
    assert not partial.complete
    assert 0 < partial.samples_used < len(start.paths[0])
    assert partial.mask.sum() == partial.samples_used


def test_partial_frames_keep_the_frame_before_until_overwritten():
    start = new_scan(Raster(), dwell_time_us=100.0)
    assembler = FrameAssembler(start)
    for block in frame_blocks(start, 0, 0, value=5):
        assembler.add(block, 0)
    half = frame_blocks(start, 1, 0, value=9)[: len(start.paths[0]) // BLOCK // 2]
    for block in half:
        assembler.add(block, 0)
    partial = assembler.frame(complete=False)
    assert partial.mask.all()
    assert sorted(np.unique(partial.values).tolist()) == [5, 9]
    assert (partial.values == 9).sum() == partial.samples_used == len(half) * BLOCK


def test_a_frame_survives_the_wire():
    rig_start = new_scan()
    assembler = FrameAssembler(rig_start)
    frames = [frame for block in frame_blocks(rig_start, 0, 0) for frame in assembler.add(block, 0)]
    reconstructor = Reconstructor([NearestEngine()])
    frame = reconstructor.complete(frames[0], rig_start)
    reconstructor.close()
    back = decode([bytes(buffer) for buffer in encode(frame)])
    for name in ("image", "uncertainty", "measured", "hits"):
        np.testing.assert_array_equal(getattr(back, name), getattr(frame, name))


def test_a_slow_engine_skips_frames_and_drops_no_block():
    rig = Rig()
    try:
        gate = threading.Event()
        engine = rig.service._reconstructor._stages[0]
        run = engine.run
        engine.run = lambda inputs: (gate.wait(10), run(inputs))[1]
        start = new_scan()
        n = len(frame_blocks(start, 0, 0))
        rig.send(start)
        for k in range(20):
            rig.send(*frame_blocks(start, k, k * n))
            rig.wait_until(lambda k=k: rig.service._assembler is not None and rig.service._assembler.frame_index >= k)
        gate.set()
        frame = rig.next_frame()
        rig.wait_until(lambda: rig.service._frames >= 2)
        assert frame.dropped == frame.gaps == rig.service.dropped == 0
        assert rig.service._frames < 20
    finally:
        rig.close()


@pytest.mark.parametrize("shape", [(64, 64), (512, 512)], ids=str)
def test_two_rounds_of_an_interlaced_cycle_come_in_order_each_frame_with_its_own_path(shape):
    rig = Rig(LinearEngine())
    try:
        start = interlaced_scan(shape, 5)
        rig.send(start)
        seq = 0
        for k in range(50):
            blocks = frame_blocks(start, k, seq, value=k + 1, size=2000)
            seq += len(blocks)
            rig.send(*blocks)
            frame, path = rig.next_frame(), start.path_of(k)
            assert (frame.frame_index, frame.path_digest, frame.engine) == (k, path.digest, "linear")
            np.testing.assert_array_equal(frame.hits, path.hits)
            np.testing.assert_array_equal(frame.measured[0], (k + 1) * path.mask)
            np.testing.assert_allclose(frame.image, k + 1, rtol=1e-5)
        assert frame.dropped == frame.gaps == 0
    finally:
        rig.close()


def test_a_taken_endpoint_is_named():
    with zmq.Context.instance().socket(zmq.PUB) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        reconstructor = Reconstructor([NearestEngine()])
        with pytest.raises(ValueError, match=f"{port} is in use"):
            ReconstructionService(reconstructor, NetworkSettings(frames=f"tcp://127.0.0.1:{port}"))
        reconstructor.close()
