from __future__ import annotations

import re
import threading
import time
import uuid
from dataclasses import replace

import numpy as np
import pytest

from lowdose.acquisition.assembly import FrameAssembler
from lowdose.acquisition.messages import SampleBlock, ScanStart
from lowdose.reconstruction import maps
from lowdose.reconstruction.engine import CHANNELS
from lowdose.reconstruction.engines import ENGINES
from lowdose.reconstruction.engines.classical_engine import LinearEngine, NearestEngine
from lowdose.reconstruction.normalise import mean_and_deviation
from lowdose.reconstruction.pipeline import Reconstructor
from lowdose.scan_patterns import ScanGrid
from lowdose.scan_patterns.pattern import load_pattern_class
from lowdose.scan_patterns.spiral import Spiral
from tests.reconstruction.lattices import interlaced_scan

GRID = ScanGrid((64, 64))


def scan_of(pattern=None, channels=("HAADF",), dwell_time_us=1.0):
    paths = (pattern or Spiral(1 / 8)).paths(GRID, dwell_time_us=dwell_time_us, rng=np.random.default_rng(0))
    now = time.monotonic_ns()
    return ScanStart(
        uuid.uuid4().hex, paths, {"name": "spiral"}, channels, dwell_time_us, 25.0, 200.0, 0, None, now, now
    )


def frame_of(start, counts, *, frame_index=0, keep=None, block=50):
    """Assemble one frame of (channels, n) counts, of which only the positions in `keep` arrive."""
    assembler = FrameAssembler(start)
    path = start.path_of(frame_index)
    frames = []
    for first in range(0, len(path), block):
        stop = min(first + block, len(path))
        if keep is None or keep[first]:
            part = np.ascontiguousarray(counts[:, first:stop], np.uint16)
            seq = first // block
            frames += assembler.add(SampleBlock(start.scan_id, path.digest, frame_index, first, part, seq, 1, 2, 3), 4)
    return (frames + assembler.finish())[0]


def wait_for_linear(reconstructor, start):
    reconstructor.prepare(start)
    deadline = time.monotonic() + 20
    while not reconstructor.ready(start):
        assert time.monotonic() < deadline, "the linear map did not get ready"
        time.sleep(0.005)


@pytest.fixture
def linear():
    reconstructor = Reconstructor([LinearEngine()])
    yield reconstructor
    reconstructor.close()


def load_engine(name):
    return load_pattern_class(name, ENGINES)()


# --- the contract of every engine -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENGINES)
def test_engine_gives_mean_and_deviation_of_the_right_shape_and_a_batch_equals_its_pictures(name, rng):
    engine = load_engine(name)
    assert set(engine.info.channels) <= set(CHANNELS)
    inputs = rng.random((3, len(engine.info.channels), 32, 48), dtype=np.float32)
    output = engine.run(inputs)
    assert output.shape == (3, 2, 32 * engine.info.scale, 48 * engine.info.scale)
    assert output.dtype == np.float32
    assert (output[:, 1] >= 0).all()
    np.testing.assert_array_equal(output, engine.run(inputs))
    np.testing.assert_allclose(output, np.concatenate([engine.run(one[None]) for one in inputs]), rtol=1e-5)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("level", [0, 7, 40_000])
def test_constant_in_gives_constant_out(name, level):
    start = scan_of()
    reconstructor = Reconstructor([load_engine(name)])
    wait_for_linear(reconstructor, start)
    frame = reconstructor.complete(frame_of(start, np.full((1, len(start.paths[0])), level)), start)
    reconstructor.close()
    np.testing.assert_allclose(frame.image, level, rtol=1e-4, atol=1e-4)


# --- the reconstructor ----------------------------------------------------------------------------------------------


def test_nearest_is_shown_and_named_until_linear_is_ready(linear, monkeypatch):
    gate, triangulate = threading.Event(), maps.linear_map
    monkeypatch.setattr(maps, "linear_map", lambda *args: (gate.wait(10), triangulate(*args))[1])
    start = scan_of()
    sparse = frame_of(start, np.ones((1, len(start.paths[0]))))
    assert linear.complete(sparse, start).engine == "nearest"
    gate.set()
    wait_for_linear(linear, start)
    assert linear.complete(sparse, start).engine == "linear"


class Watched:
    """Linear infill that counts its runs and can be told to fail."""

    info = LinearEngine().info

    def __init__(self, error=None):
        self.shapes, self.error = [], error

    def run(self, inputs):
        self.shapes.append(inputs.shape)
        if self.error is not None:
            raise self.error
        return LinearEngine().run(inputs)


def test_warmed_up_the_first_frame_of_the_scan_is_made_as_all_later_ones():
    start, engine = scan_of(channels=("HAADF", "BF")), Watched()
    reconstructor = Reconstructor([engine])
    reconstructor.warm_up(GRID.shape, 2, start.paths[0])
    assert engine.shapes == [(2, len(engine.info.channels), 64, 64)]
    frame = reconstructor.complete(frame_of(start, np.ones((2, len(start.paths[0])))), start)
    reconstructor.close()
    assert frame.engine == "linear"


def test_pictures_that_take_longer_than_a_start_may_are_not_waited_for():
    engine = Watched()
    reconstructor = Reconstructor([engine])
    reconstructor.warm_up((4096, 4096), 1, None)
    reconstructor.close()
    assert not engine.shapes


def test_an_engine_that_fails_is_told_with_the_first_frame_not_before():
    reconstructor = Reconstructor([Watched(RuntimeError("no"))])
    reconstructor.warm_up(GRID.shape, 1, None)
    reconstructor.close()
    assert reconstructor.engine_failures == 0


@pytest.mark.parametrize("shape", [(64, 64), (512, 512)], ids=str)
def test_every_frame_of_an_interlaced_cycle_is_linear_from_the_first_on_and_made_of_its_own_pixels(linear, shape):
    start = interlaced_scan(shape, 5)
    rows, cols = np.indices(shape)
    plane = 2 * rows + 3 * cols
    linear.prepare(start)
    for k in range(25):
        path = start.path_of(k)
        frame = linear.complete(frame_of(start, plane[path.mask][None], frame_index=k, block=100_000), start)
        assert (frame.engine, frame.path_digest) == ("linear", path.digest)
        np.testing.assert_array_equal(frame.hits, path.hits)
        np.testing.assert_array_equal(frame.uncertainty[0] == 0, path.mask)
        a, b = divmod(k, 5)
        inside = np.s_[a : shape[0] - 5, b : shape[1] - 5]
        np.testing.assert_allclose(frame.image[0][inside], plane[inside], rtol=1e-4, atol=1e-2)


def test_an_interlaced_cycle_keeps_no_mask_and_no_hits_of_its_paths(linear):
    start = interlaced_scan(GRID.shape, 5)
    sparse = [frame_of(start, np.ones((1, len(path))), frame_index=k) for k, path in enumerate(start.paths)]
    for path in start.paths:
        path.__dict__.pop("hits", None)
    for frame in sparse:
        linear.complete(frame, start)
    assert not any({"mask", "hits"} & path.__dict__.keys() for path in start.paths)


def test_a_lattice_with_a_lost_block_is_filled_from_what_is_there(linear):
    start = interlaced_scan(GRID.shape, 4)
    n = len(start.paths[6])
    keep = np.ones(n, bool)
    keep[50:100] = False
    frame = linear.complete(frame_of(start, np.full((1, n), 9), frame_index=6, keep=keep), start)
    assert frame.engine == "nearest"
    assert frame.mask.sum() == n - 50
    np.testing.assert_allclose(frame.image, 9, rtol=1e-5)


def test_measured_pixels_keep_their_counts_and_know_no_uncertainty(linear, rng):
    start = scan_of(channels=("HAADF", "BF"))
    wait_for_linear(linear, start)
    sparse = frame_of(start, rng.integers(0, 100, (2, len(start.paths[0]))))
    frame = linear.complete(sparse, start)
    assert frame.engine == "linear"
    assert frame.uncertainty_kind == "placeholder"
    np.testing.assert_allclose(frame.image[:, frame.mask], sparse.values[:, sparse.mask], atol=1e-3)
    assert (frame.uncertainty[:, frame.mask] == 0).all()
    assert (frame.uncertainty[:, ~frame.mask] > 0).all()


def test_the_same_frame_gives_the_same_picture_bit_for_bit(linear, rng):
    start = scan_of()
    wait_for_linear(linear, start)
    counts = rng.integers(0, 100, (1, len(start.paths[0])))
    other = rng.integers(0, 100, (1, len(start.paths[0])))
    first = linear.complete(frame_of(start, counts), start)
    linear.complete(frame_of(start, other, frame_index=1), start)
    again = linear.complete(frame_of(start, counts, frame_index=2), start)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.uncertainty, again.uncertainty)


def test_a_lost_block_is_filled_from_what_is_there_and_stays_marked_as_not_measured(linear, rng):
    start = scan_of()
    wait_for_linear(linear, start)
    keep = np.ones(len(start.paths[0]), bool)
    keep[100:150] = False
    frame = linear.complete(frame_of(start, rng.integers(50, 60, (1, len(keep))), keep=keep), start)
    lost = np.zeros_like(frame.mask)
    lost[tuple(start.paths[0].pixels[100:150].T)] = True
    assert not frame.mask[lost].any()
    assert (frame.image[0][lost] >= 50).all()
    assert (frame.uncertainty[0][lost] > 0).all()


def test_a_frame_of_which_nothing_came_gives_no_picture(linear):
    start = scan_of()
    empty = frame_of(start, np.ones((1, len(start.paths[0]))))
    empty = replace(empty, hits=np.zeros(GRID.shape, np.uint16), values=np.zeros((1, *GRID.shape), np.float32))
    assert linear.complete(empty, start) is None


class Failing(LinearEngine):
    def run(self, inputs):
        raise RuntimeError("the accelerator fell off the bus")


def test_an_engine_that_fails_is_replaced_by_linear_and_counted(caplog):
    start = scan_of()
    reconstructor = Reconstructor([Failing()])
    wait_for_linear(reconstructor, start)
    frame = reconstructor.complete(frame_of(start, np.full((1, len(start.paths[0])), 9)), start)
    reconstructor.close()
    assert reconstructor.engine_failures == 1
    assert frame.engine == "linear"
    np.testing.assert_allclose(frame.image, 9, rtol=1e-5)
    assert "fell off the bus" in caplog.text


@pytest.mark.parametrize(("most", "used"), [(1.0, "learned"), (0.06, "linear")])
def test_frames_measured_denser_than_an_engine_was_trained_for_are_filled_linearly_which_is_told_once(
    most, used, caplog
):
    engine = LinearEngine()
    engine.info = replace(engine.info, name="learned", most_coverage=most, uncertainty_kind="calibrated")
    start = scan_of(Spiral(1 / 4))
    reconstructor = Reconstructor([engine])
    wait_for_linear(reconstructor, start)
    for _ in range(2):
        frame = reconstructor.complete(frame_of(start, np.full((1, len(start.paths[0])), 9)), start)
        assert frame.engine == used
        assert frame.uncertainty_kind == ("calibrated" if used == "learned" else "placeholder")
    reconstructor.close()
    assert reconstructor.engine_failures == 0
    assert caplog.text.count("was trained for coverages up to 0.06") == (used == "linear")


class NotFinite(LinearEngine):
    def run(self, inputs):
        output = super().run(inputs)
        output[0, 0, 3, 3] = np.nan
        return output


class WrongShape(LinearEngine):
    def run(self, inputs):
        return super().run(inputs)[:, :1]


class NegativeDeviation(LinearEngine):
    def run(self, inputs):
        output = super().run(inputs)
        output[:, 1] -= 9
        return output


@pytest.mark.parametrize(
    ("engine", "text"),
    [
        (NegativeDeviation(), "negative standard deviations"),
        (NotFinite(), "not finite"),
        (WrongShape(), r"\(1, 1, 64, 64\), expected \(1, 2, 64, 64\)"),
    ],
)
def test_what_an_engine_returns_is_looked_at_before_it_is_shown(engine, text):
    start = scan_of()
    reconstructor = Reconstructor([engine])
    wait_for_linear(reconstructor, start)
    frame = reconstructor.complete(frame_of(start, np.full((1, len(start.paths[0])), 9)), start)
    reconstructor.close()
    assert frame.engine == "linear"
    assert np.isfinite(frame.image).all()
    assert re.search(text, reconstructor.engine_error)


class OddFrames(LinearEngine):
    """Fails on every second frame."""

    calls = 0

    def run(self, inputs):
        self.calls += 1
        if self.calls % 2 == 0:
            raise RuntimeError("no memory on the device")
        return super().run(inputs)


def test_an_engine_that_fails_now_and_then_is_tried_again_and_its_error_is_logged_once(caplog):
    start = scan_of()
    engine = OddFrames()
    engine.info = replace(engine.info, name="odd")
    reconstructor = Reconstructor([engine])
    wait_for_linear(reconstructor, start)
    frames = [reconstructor.complete(frame_of(start, np.ones((1, len(start.paths[0])))), start) for _ in range(4)]
    reconstructor.close()
    assert [frame.engine for frame in frames] == ["odd", "linear", "odd", "linear"]
    assert reconstructor.engine_failures == 2
    assert [record.levelname for record in caplog.records].count("ERROR") == 1


class Forgetful(LinearEngine):
    """Says that it keeps measured values, and does not."""

    def run(self, inputs):
        return super().run(inputs) + np.float32(0.3)


def test_measured_values_are_put_back_where_an_engine_promises_to_keep_them(rng):
    start = scan_of()
    reconstructor = Reconstructor([Forgetful()])
    wait_for_linear(reconstructor, start)
    frame = reconstructor.complete(frame_of(start, rng.integers(20, 60, (1, len(start.paths[0])))), start)
    reconstructor.close()
    np.testing.assert_array_equal(frame.image[0][frame.mask], frame.measured[0][frame.mask])


class Extremes(LinearEngine):
    """Notes the range of the measured values it is given."""

    def __init__(self):
        super().__init__()
        self.info = replace(self.info, normalisation="min_max")

    def run(self, inputs):
        self.seen = (float(inputs[:, 0].min()), float(inputs[:, 0].max()))
        return super().run(inputs)


def test_measured_values_are_normalised_by_the_rule_the_engine_was_trained_with(rng):
    start = scan_of()
    engine = Extremes()
    reconstructor = Reconstructor([engine])
    wait_for_linear(reconstructor, start)
    counts = rng.integers(20, 60, (1, len(start.paths[0])))
    frame = reconstructor.complete(frame_of(start, counts), start)
    reconstructor.close()
    assert engine.seen == pytest.approx((-1, 1))
    np.testing.assert_allclose(frame.image[0][frame.mask], frame.measured[0][frame.mask], rtol=1e-4)


class Twice:
    info = replace(LinearEngine().info, name="twice", task="super_resolve", scale=2, channels=("linear",))

    def run(self, inputs):
        mean = inputs.repeat(2, axis=2).repeat(2, axis=3)
        return np.concatenate([mean, np.full_like(mean, 0.5)], axis=1)


def test_a_second_stage_refines_the_picture_of_the_first(rng):
    start = scan_of()
    reconstructor = Reconstructor([LinearEngine(), Twice()])
    wait_for_linear(reconstructor, start)
    frame = reconstructor.complete(frame_of(start, rng.integers(0, 50, (1, len(start.paths[0])))), start)
    reconstructor.close()
    assert frame.scale == 2
    assert frame.image.shape == (1, 128, 128)
    assert frame.hits.shape == GRID.shape
    assert frame.grid.pixel_size_nm == GRID.pixel_size_nm / 2
    assert frame.engine == "linear + twice"
    assert (frame.uncertainty[0, ~frame.mask.repeat(2, 0).repeat(2, 1)] > 0).all()


def test_the_first_stage_must_complete():
    with pytest.raises(ValueError, match="first stage must complete"):
        Reconstructor([Twice()])


def test_normalisation_is_undone_exactly(rng):
    values = rng.random((2, 500), dtype=np.float32) * 300
    normalisation = mean_and_deviation(values)
    normalised = normalisation.apply(values)
    np.testing.assert_allclose(normalised.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(normalised.std(axis=1), 1, atol=1e-4)
    normalisation.undo(normalised, out=normalised)
    np.testing.assert_allclose(normalised, values, rtol=1e-5, atol=1e-3)


def test_linear_beats_nearest_on_the_procedural_specimen():
    from lowdose.simulator.specimen import Procedural

    grid = ScanGrid((256, 256), pixel_size_nm=0.1)
    (path,) = Spiral(1 / 16).paths(grid, dwell_time_us=1.0, rng=np.random.default_rng(0))
    truth = 1000 * Procedural(seed=3).open(grid).frame(0.0)
    now = time.monotonic_ns()
    start = ScanStart("phantom", (path,), {"name": "spiral"}, ("HAADF",), 1.0, 25.0, 200.0, 0, None, now, now)
    counts = truth[tuple(path.pixels.T)][None].round()
    errors = {}
    for engine in (LinearEngine(), NearestEngine()):
        reconstructor = Reconstructor([engine])
        wait_for_linear(reconstructor, start)
        picture = reconstructor.complete(frame_of(start, counts), start)
        reconstructor.close()
        errors[engine.info.name] = np.square(picture.image[0] - truth).mean()
    assert errors["linear"] < 0.85 * errors["nearest"]
