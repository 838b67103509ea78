from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdose.acquisition.controllers.base import ControllerError, ControllerLimits, block_edges
from lowdose.scan_patterns import ScanGrid, ScanPath
from lowdose.scan_patterns.raster import Raster
from lowdose.simulator.controller import LIMITS, Simulated, SimulatedController, VirtualBeam
from lowdose.simulator.damage import Damage
from lowdose.simulator.detector import Detector
from lowdose.simulator.microscope import VirtualMicroscope
from lowdose.simulator.specimen import Procedural

GRID = ScanGrid((64, 64))
MS = 1_000_000


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self):
        self.now_ns = 1_000 * MS

    def __call__(self):
        return self.now_ns

    def sleep(self, seconds):
        assert seconds >= 0
        self.now_ns += round(seconds * 1e9)


def controller_on(clock, pacing="real_time"):
    microscope = VirtualMicroscope(
        Procedural(1).open(GRID), [Detector()], beam_current_pa=25.0, rng=np.random.default_rng(0)
    )
    return SimulatedController(microscope, pacing=pacing, clock=clock, sleep=clock.sleep)


def raster(dwell_time_us=1.0):
    return Raster().paths(GRID, dwell_time_us=dwell_time_us, rng=np.random.default_rng(0))


def frames_limit(n):
    left = [n]

    def admit(_scan_id, _path):
        left[0] -= 1
        return left[0] >= 0

    return admit


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["real_time", "as_fast_as_possible"])
def scanning(request, clock):
    controller = controller_on(clock, request.param)
    controller.prepare("scan", raster())
    controller.start(frames_limit(3))
    controller.unblank()
    return controller


def test_every_position_of_every_frame_is_delivered_once_and_in_order(scanning):
    expected = [(frame, i) for frame in range(3) for i in range(GRID.n_pixels)]
    got = [(b.frame_index, b.first + i) for b in scanning.blocks() for i in range(b.counts.shape[1])]
    assert got == expected


def test_real_time_scanning_takes_the_dwell_times_and_nothing_else(clock):
    controller = controller_on(clock)
    controller.prepare("scan", raster())
    controller.start(frames_limit(5))
    controller.unblank()
    blocks = list(controller.blocks())
    assert blocks[-1].t_last_ns - blocks[0].t_first_ns == 5 * GRID.n_pixels * 1_000
    for before, after in pairwise(blocks):
        assert after.t_first_ns == before.t_last_ns


def test_a_block_is_delivered_the_moment_the_beam_has_passed_it(clock):
    controller = controller_on(clock)
    controller.prepare("scan", raster())
    controller.start(frames_limit(2))
    controller.unblank()
    assert all(clock() == block.t_last_ns for block in controller.blocks())


def test_the_beam_blanks_by_itself_when_the_host_stops_asking(clock):
    controller = controller_on(clock)
    controller.prepare("scan", raster())
    controller.start(lambda *_: True)
    controller.unblank()
    next(controller.blocks())
    assert controller.beam.on
    clock.sleep(LIMITS.look_ahead_ms / 1e3)  # the host hangs: nothing is called any more
    assert not controller.beam.on


def test_no_more_than_the_look_ahead_is_ever_handed_over(clock):
    beam = VirtualBeam(look_ahead_ns=5 * MS, clock=clock)
    beam.unblank()
    beam.hand_over(5 * MS)
    with pytest.raises(ControllerError, match="more than"):
        beam.hand_over(1)


def test_a_stalled_host_finds_the_beam_blanked_and_goes_on_later(clock):
    beam = VirtualBeam(look_ahead_ns=5 * MS, clock=clock)
    beam.unblank()
    beam.hand_over(2 * MS)
    clock.sleep(0.050)
    assert not beam.on
    begin, end = beam.hand_over(2 * MS)
    assert (begin, end) == (clock(), clock() + 2 * MS)


@pytest.mark.parametrize("verb", ["blank", "park"])
def test_blank_and_park_turn_the_beam_off_and_end_the_blocks(clock, verb):
    controller = controller_on(clock)
    controller.prepare("scan", raster())
    controller.start(lambda *_: True)
    controller.unblank()
    blocks = controller.blocks()
    next(blocks)
    getattr(controller, verb)(0.1)
    assert not controller.beam.on
    assert controller.beam.parked == (verb == "park")
    assert len(list(blocks)) <= 3  # what the beam had passed already


def test_stop_ends_the_blocks_at_once(clock):
    controller = controller_on(clock)
    controller.prepare("scan", raster())
    controller.start(lambda *_: True)
    controller.unblank()
    blocks = controller.blocks()
    next(blocks)
    controller.stop()
    assert list(blocks) == []


def test_new_paths_take_effect_at_the_next_frame_edge(clock):
    controller = controller_on(clock, "as_fast_as_possible")
    controller.prepare("first", raster())
    controller.start(frames_limit(3))
    controller.unblank()
    seen = []
    for block in controller.blocks():
        seen.append((block.scan_id, block.frame_index))
        if len(seen) == 1:
            controller.prepare("second", raster(2.0))
    assert list(dict.fromkeys(seen)) == [("first", 0), ("second", 0), ("second", 1)]


def test_a_cycle_of_paths_is_followed_in_turn(clock):
    paths = tuple(ScanPath(GRID, [[i, j] for j in range(64)], 100.0) for i in range(2))
    controller = controller_on(clock, "as_fast_as_possible")
    controller.prepare("cycle", paths)
    controller.start(frames_limit(5))
    controller.unblank()
    order = dict.fromkeys((b.frame_index, b.path.digest) for b in controller.blocks())
    assert [digest for _, digest in order] == [paths[k % 2].digest for k in range(5)]


def test_limits_refuse_before_the_beam_moves(clock):
    controller = controller_on(clock)
    with pytest.raises(ValueError, match=r"dwell_time_us must be >= 0\.01"):
        controller.prepare("scan", raster(0.001))
    assert controller.beam.parked
    with pytest.raises(ControllerError, match="nothing to scan"):
        controller.start(lambda *_: True)


def test_close_parks_and_twice_is_fine(clock):
    controller = controller_on(clock)
    controller.unblank()
    controller.close()
    controller.close()
    assert controller.beam.parked
    assert controller.beam.blanked


def test_the_simulated_controller_has_a_dead_man():
    assert LIMITS.dead_man
    assert LIMITS.look_ahead_ms <= 5


def test_a_look_ahead_above_five_milliseconds_is_refused():
    with pytest.raises(ValueError, match="look_ahead_ms must be > 0 and <= 5"):
        ControllerLimits(0.1, 100, 6.0, dead_man=True)


@given(n=st.integers(1, 20_000), dwell_us=st.floats(0.02, 20_000))
@settings(max_examples=60, deadline=None)
def test_blocks_end_as_the_house_plan_says(n, dwell_us):
    path = ScanPath(ScanGrid((1, 16_384)), np.zeros((n, 2)), dwell_us)
    edges = block_edges(path.dwell_times_us.cumsum(dtype="f8"))
    assert edges[0] == 0
    assert edges[-1] == n
    sizes = np.diff(edges)
    assert (sizes > 0).all()
    for size in sizes[:-1]:
        beam_us = size * float(np.float32(dwell_us))
        assert size == 1 or beam_us <= 10_000 * (1 + 1e-5)
        assert size >= 256 or beam_us + dwell_us >= 10_000 * (1 - 1e-5)
        assert beam_us >= 2_000 * (1 - 1e-5)


def test_seeded_noise_repeats():
    def first_counts():
        controller = Simulated(pacing="as_fast_as_possible", seed=4).open(
            Procedural(1).open(GRID), channels=("HAADF",), beam_current_pa=25.0
        )
        controller.prepare("scan", raster())
        controller.start(frames_limit(1))
        controller.unblank()
        return np.concatenate([b.counts for b in controller.blocks()], axis=1)

    np.testing.assert_array_equal(first_counts(), first_counts())


def test_a_new_area_has_had_no_dose(clock):
    controller = Simulated(pacing="as_fast_as_possible", damage=Damage(critical_dose_e_per_a2=100.0)).open(
        Procedural(1).open(GRID), channels=("HAADF",), beam_current_pa=25.0
    )
    microscope = controller._microscope
    controller.prepare("scan", raster())
    controller.start(frames_limit(3))
    controller.unblank()
    list(controller.blocks())
    assert microscope._exposure is not None
    controller.new_area()
    assert microscope._exposure is None
