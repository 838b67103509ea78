"""Assembly, by hand for tiny paths and by law for the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowdose.acquisition.assembly import FrameAssembler, Scatter, SequenceCounter
from lowdose.acquisition.messages import ScanStart
from lowdose.scan_patterns import ScanGrid, ScanPath
from tests.strategies import cut_frames, frame_blocks, paths, quick, thorough

GRID = ScanGrid((2, 3))
LINE = ScanPath(GRID, [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]], 1.0)


def scan_of(*cycle, channels=("HAADF",), dwell_time_us=1.0):
    return ScanStart("scan", cycle, {"name": "own"}, channels, dwell_time_us, 25.0, 200.0, 0, None, 0, 0)


def blocks_of(start, counts, frame_index=0, edges=None, seq=0):
    frame = np.atleast_2d(np.asarray(counts, np.uint16))
    return frame_blocks(start, frame, frame_index, edges or [0, frame.shape[1]], seq)


def assembler_of(start):
    return FrameAssembler(start, clock=lambda: 99)


def added(assembler, blocks, t_received_ns=50):
    return [frame for block in blocks for frame in assembler.add(block, t_received_ns)]


def assert_same_picture(a, b):
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.hits, b.hits)
    assert (a.complete, a.samples_used, a.frame_index) == (b.complete, b.samples_used, b.frame_index)


# --- a frame --------------------------------------------------------------------------------------------------------


def test_every_sample_lands_in_its_pixel():
    path = ScanPath(GRID, [[1, 2], [0, 0], [0.6, 1.4]], 1.0)
    start = scan_of(path)
    (frame,) = added(assembler_of(start), blocks_of(start, [5, 7, 9]))
    assert frame.values.tolist() == [[[7, 0, 0], [0, 9, 5]]]
    assert frame.hits.tolist() == [[1, 0, 0], [0, 1, 1]]
    assert frame.values.dtype == np.float32
    assert frame.hits.dtype == np.uint16
    assert frame.complete
    assert frame.samples_used == 3
    assert (frame.scan_id, frame.path_digest, frame.frame_index) == ("scan", path.digest, 0)


def test_pixels_never_visited_are_zero_and_not_measured():
    start = scan_of(ScanPath(GRID, [[0, 0]], 1.0))
    (frame,) = added(assembler_of(start), blocks_of(start, [3]))
    assert frame.mask.tolist() == [[True, False, False], [False, False, False]]


def test_several_hits_give_the_sum_of_counts_over_the_sum_of_dwell_times_nominal():
    path = ScanPath(GRID, [[0, 0], [0, 1], [0.2, -0.3], [0, 0]], [1.0, 2.0, 3.0, 0.5])
    start = scan_of(path, dwell_time_us=2.0)
    (frame,) = added(assembler_of(start), blocks_of(start, [1, 4, 6, 2]))
    assert frame.values[0, 0, :2].tolist() == [pytest.approx((1 + 6 + 2) / 4.5 * 2), 4.0]
    assert frame.hits[0].tolist() == [3, 1, 0]


def test_channels_do_not_mix():
    start = scan_of(LINE, channels=("HAADF", "BF"))
    (frame,) = added(assembler_of(start), blocks_of(start, [[1, 2, 3, 4, 5, 6], [60, 50, 40, 30, 20, 10]]))
    assert frame.values.tolist() == [[[1, 2, 3], [4, 5, 6]], [[60, 50, 40], [30, 20, 10]]]


def test_overscan_never_lands_in_the_image():
    path = ScanPath(GRID, [[-1, 0], [0, 0], [0, 3], [5, 5], [0, -2], [1, 2]], 1.0)
    start = scan_of(path)
    (frame,) = added(assembler_of(start), blocks_of(start, [100, 1, 100, 100, 100, 2]))
    assert frame.values.sum() == 3
    assert frame.hits.sum() == 2
    assert frame.samples_used == 6


def test_a_path_wholly_outside_gives_an_empty_frame():
    start = scan_of(ScanPath(GRID, [[-5, 0], [9, 9]], 1.0))
    whole = added(assembler_of(start), blocks_of(start, [1, 2]))[0]
    holed = assembler_of(start)
    holed.add(blocks_of(start, [1, 2], edges=[0, 1, 2])[0], 0)
    for frame in (whole, *holed.finish()):
        assert not frame.mask.any()
        assert not frame.values.any()


def test_counts_at_the_top_of_their_range_do_not_wrap():
    start = scan_of(ScanPath(GRID, [[0, 0]] * 3, 1.0))
    (frame,) = added(assembler_of(start), blocks_of(start, [65_535] * 3))
    assert frame.values[0, 0, 0] == 65_535


@pytest.mark.parametrize("lost", [0, 1], ids=["whole", "with a hole"])
def test_more_visits_than_hits_can_count_stay_measured(lost):
    n = 65_536 + 1
    start = scan_of(ScanPath(GRID, np.zeros((n, 2)), 1.0))
    assembler = assembler_of(start)
    frames = added(assembler, blocks_of(start, np.ones(n, np.uint16), edges=[0, n - 1, n])[: 2 - lost])
    (frame,) = frames + assembler.finish()
    assert frame.hits[0, 0] == 65_535
    assert frame.values[0, 0, 0] == 1


def test_times_are_those_of_the_first_and_the_last_sample():
    start = scan_of(LINE)
    blocks = blocks_of(start, range(6), edges=[0, 2, 4, 6])
    blocks = [replace(b, t_first_ns=10 * k, t_last_ns=10 * k + 5, t_sent_ns=10 * k + 6) for k, b in enumerate(blocks)]
    assembler = assembler_of(start)
    frames = [assembler.add(blocks[k], 100 + k) for k in (2, 0, 1)]
    assert frames[2][0].times_ns == {
        "first_sample": 0,
        "last_sample": 25,
        "sent": 26,
        "received": 102,
        "assembled": 99,
    }


@quick
@given(paths(), st.data())
def test_a_frame_is_the_plain_sum_over_its_positions(path, data):
    n = len(path)
    counts = data.draw(st.lists(st.integers(0, 65_535), min_size=n, max_size=n))
    received = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    values, hits = Scatter(path, 2.0).frame(np.array([counts], np.uint16), received)
    sums, dwell, visits = (np.zeros(path.grid.shape) for _ in range(3))
    for k in np.flatnonzero(received & path.inside):
        at = tuple(path.pixels[k])
        sums[at] += counts[k]
        dwell[at] += path.dwell_times_us[k]
        visits[at] += 1
    expected = np.divide(2.0 * sums, dwell, out=np.zeros_like(sums), where=dwell > 0)
    np.testing.assert_allclose(values[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(hits, visits)


@quick
@given(paths())
def test_with_all_samples_received_the_short_way_gives_the_same_as_the_long_one(path):
    counts = np.arange(len(path), dtype=np.uint16)[None]
    scatter = Scatter(path, 1.5)
    for short, long in zip(scatter.frame(counts, None), scatter.frame(counts, np.ones(len(path), bool)), strict=True):
        np.testing.assert_array_equal(short, long)


# --- lost, doubled, late --------------------------------------------------------------------------------------------


def test_a_dropped_block_leaves_a_hole_in_hits_and_samples_used():
    start = scan_of(LINE)
    blocks = blocks_of(start, [1, 2, 3, 4, 5, 6], edges=[0, 2, 4, 6])
    assembler = assembler_of(start)
    assert added(assembler, [blocks[0], blocks[2]]) == []
    (frame,) = assembler.add(blocks_of(start, range(6), 1, edges=[0, 3, 6])[0], 0)
    assert frame.hits.tolist() == [[1, 1, 0], [0, 1, 1]]
    assert frame.values.tolist() == [[[1, 2, 0], [0, 5, 6]]]
    assert frame.complete
    assert frame.samples_used == 4
    assert frame.frame_index == 0


def test_a_hole_is_not_filled_with_samples_of_the_frame_before():
    start = scan_of(LINE)
    assembler = assembler_of(start)
    added(assembler, blocks_of(start, [9] * 6))
    assembler.add(blocks_of(start, [1] * 6, 1, edges=[0, 4, 6])[0], 0)
    (frame,) = assembler.finish()
    assert frame.hits.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert frame.samples_used == 4


def test_a_frame_wholly_lost_is_passed_over():
    start = scan_of(LINE)
    assembler = assembler_of(start)
    frames = added(assembler, blocks_of(start, [1] * 6, 0) + blocks_of(start, [3] * 6, 2))
    assert [frame.frame_index for frame in frames] == [0, 2]


def test_a_block_of_one_position_may_both_end_a_frame_and_complete_its_own():
    start = scan_of(ScanPath(GRID, [[0, 0]], 1.0), LINE)
    assembler = assembler_of(start)
    assembler.add(blocks_of(start, [1] * 6, 1, edges=[0, 3, 6])[0], 0)
    frames = assembler.add(blocks_of(start, [7], 2)[0], 0)
    assert [(frame.frame_index, frame.samples_used) for frame in frames] == [(1, 3), (2, 1)]


@thorough
@given(cut_frames(), st.randoms(use_true_random=False))
def test_any_order_of_the_blocks_gives_the_same_frame(cut, random):
    start, _, blocks = cut
    (in_order,) = added(assembler_of(start), blocks)
    random.shuffle(blocks)
    (shuffled,) = added(assembler_of(start), blocks)
    assert_same_picture(shuffled, in_order)
    assert shuffled.times_ns == in_order.times_ns
    np.testing.assert_array_equal(in_order.hits, start.paths[0].hits)


@thorough
@given(cut_frames(), st.data())
def test_doubled_blocks_change_nothing(cut, data):
    start, _, blocks = cut
    (once,) = added(assembler_of(start), blocks)
    doubled = [block for block in blocks for _ in range(data.draw(st.integers(1, 3)))]
    (twice,) = added(assembler_of(start), doubled)
    assert_same_picture(twice, once)


@thorough
@given(cut_frames(), st.data())
def test_whatever_is_lost_the_rest_is_as_if_nothing_were(cut, data):
    start, _, blocks = cut
    (whole,) = added(assembler_of(start), blocks)
    kept = [block for block in blocks if data.draw(st.booleans())] or blocks[:1]
    assembler = assembler_of(start)
    (frame,) = added(assembler, kept) + assembler.finish()
    assert frame.samples_used == sum(block.counts.shape[1] for block in kept)
    assert (frame.hits <= whole.hits).all()
    untouched = frame.hits == whole.hits
    np.testing.assert_array_equal(frame.values[:, untouched], whole.values[:, untouched])
    assert not frame.values[:, frame.hits == 0].any()


@pytest.mark.parametrize(
    "change",
    [
        {"scan_id": "another"},
        {"path_digest": "0" * 32},
        {"first": 5},
        {"first": 2**40},
        {"counts": np.zeros((2, 2), np.uint16)},
        {"counts": np.zeros((1, 0), np.uint16)},
        {"counts": np.zeros((0, 2), np.uint16)},
        {"counts": np.zeros((1, 7), np.uint16)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_block_that_does_not_belong_is_refused_counted_and_changes_nothing(change):
    start = scan_of(LINE)
    assembler = assembler_of(start)
    blocks = blocks_of(start, [1, 2, 3, 4, 5, 6], edges=[0, 2, 6])
    assembler.add(blocks[0], 0)
    assert assembler.add(replace(blocks[0], **change), 0) == []
    assert assembler.refused == 1
    (frame,) = assembler.add(blocks[1], 0)
    assert frame.values.tolist() == [[[1, 2, 3], [4, 5, 6]]]


def test_blocks_of_a_frame_already_handed_out_are_refused_and_counted():
    start = scan_of(LINE)
    assembler = assembler_of(start)
    first, second = (blocks_of(start, [k] * 6, k, edges=[0, 3, 6]) for k in (0, 1))
    added(assembler, [*first, second[0]])
    assert added(assembler, [first[0], first[1]]) == []
    assert assembler.refused == 2
    (frame,) = assembler.add(second[1], 0)
    assert frame.frame_index == 1
    assert assembler.add(second[1], 0) == []
    assert assembler.refused == 3


def test_finish_hands_out_a_frame_once():
    start = scan_of(LINE)
    assembler = assembler_of(start)
    assert not assembler.under_way
    assert assembler.finish() == []
    assembler.add(blocks_of(start, [1] * 6, edges=[0, 3, 6])[0], 0)
    assert assembler.under_way
    assert len(assembler.finish()) == 1
    assert not assembler.under_way
    assert assembler.finish() == []


# --- partial frames and cycles --------------------------------------------------------------------------------------


def test_the_first_partial_frame_shows_only_what_has_come():
    start = scan_of(LINE)
    assembler = assembler_of(start)
    assembler.add(blocks_of(start, [1, 2, 3, 4, 5, 6], edges=[0, 2, 6])[0], 0)
    frame = assembler.frame(complete=False)
    assert frame.hits.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert not frame.complete
    assert frame.samples_used == 2


def test_a_partial_frame_keeps_samples_of_the_frame_before_until_they_are_overwritten():
    start = scan_of(LINE)
    assembler = assembler_of(start)
    added(assembler, blocks_of(start, [1, 2, 3, 4, 5, 6]))
    blocks = blocks_of(start, [11, 12, 13, 14, 15, 16], 1, edges=[0, 2, 4, 6])
    assembler.add(blocks[0], 0)
    frame = assembler.frame(complete=False)
    assert frame.values.tolist() == [[[11, 12, 3], [4, 5, 6]]]
    assert frame.hits.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert (frame.samples_used, frame.frame_index) == (2, 1)
    assembler.add(blocks[1], 0)
    assert assembler.frame(complete=False).values.tolist() == [[[11, 12, 13], [14, 5, 6]]]


def test_a_partial_frame_handed_out_does_not_change_afterwards():
    start = scan_of(LINE)
    assembler = assembler_of(start)
    blocks = blocks_of(start, [1, 2, 3, 4, 5, 6], edges=[0, 2, 6])
    assembler.add(blocks[0], 0)
    partial = assembler.frame(complete=False)
    before = partial.values.copy(), partial.hits.copy()
    assembler.add(blocks[1], 0)
    np.testing.assert_array_equal(partial.values, before[0])
    np.testing.assert_array_equal(partial.hits, before[1])


def test_every_frame_of_a_cycle_uses_its_own_path():
    even, odd = ScanPath(GRID, [[0, 0], [0, 1]], 1.0), ScanPath(GRID, [[1, 0], [1, 1], [1, 2]], 2.0)
    start = scan_of(even, odd)
    blocks = [b for k in range(4) for b in blocks_of(start, [k + 1] * len(start.path_of(k)), k)]
    frames = added(assembler_of(start), blocks)
    assert [frame.path_digest for frame in frames] == [even.digest, odd.digest] * 2
    assert frames[2].values.tolist() == [[[3, 3, 0], [0, 0, 0]]]
    assert frames[3].values.tolist() == [[[0, 0, 0], [2, 2, 2]]]


def test_a_partial_frame_of_a_cycle_keeps_samples_of_the_same_path_only():
    even, odd = ScanPath(GRID, [[0, 0], [0, 1]], 1.0), ScanPath(GRID, [[1, 0], [1, 1]], 1.0)
    start = scan_of(even, odd)
    assembler = assembler_of(start)
    added(assembler, blocks_of(start, [1, 1], 0) + blocks_of(start, [2, 2], 1))
    assembler.add(blocks_of(start, [3, 3], 2, edges=[0, 1, 2])[0], 0)
    assert assembler.frame(complete=False).values.tolist() == [[[3, 1, 0], [0, 0, 0]]]


def test_a_block_with_the_path_of_another_frame_of_the_cycle_is_refused():
    even, odd = ScanPath(GRID, [[0, 0], [0, 1]], 1.0), ScanPath(GRID, [[1, 0], [1, 1]], 1.0)
    start = scan_of(even, odd)
    assembler = assembler_of(start)
    assert added(assembler, [replace(blocks_of(start, [1, 1], 0)[0], frame_index=1)]) == []
    assert assembler.refused == 1


# --- sequence numbers -----------------------------------------------------------------------------------------------


@thorough
@given(st.lists(st.integers(0, 60), min_size=1, max_size=60))
def test_dropped_are_the_numbers_never_seen_between_the_first_and_the_last(seqs):
    counter = SequenceCounter()
    for seq in seqs:
        counter.saw(seq)
    assert counter.dropped == len(set(range(seqs[0], max(seqs) + 1)) - set(seqs))


@quick
@given(st.integers(0, 2**60), st.integers(0, 50_000))
def test_dropped_is_exact_for_one_gap_however_long(first, gap):
    counter = SequenceCounter()
    counter.saw(first)
    counter.saw(first + gap + 1)
    assert counter.dropped == gap


def test_memory_stays_bounded_however_much_is_lost():
    counter = SequenceCounter()
    counter.saw(0)
    for k in range(1, 2_001):
        counter.saw(k * 100)
    assert counter.dropped == 2_000 * 99
    assert len(counter._missing) <= 10_000
    counter.saw(10**15)
    assert counter.dropped == 10**15 - 2_001
    assert len(counter._missing) <= 10_000


def test_nothing_is_dropped_before_anything_came():
    assert SequenceCounter().dropped == 0
