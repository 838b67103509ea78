"""Tiles and padding: what comes out is what the engine would have made of the whole picture, and no seam shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import gaussian_filter

from lowdose.reconstruction.engine import EngineInfo
from lowdose.reconstruction.tiling import BLEND_PX, DISCARDED_PX, plan_tiling, run_tiled
from tests.strategies import quick, thorough

INFO = EngineInfo(
    name="fake",
    version="1",
    digest="",
    precision="FP32",
    task="complete",
    scale=1,
    channels=("nearest", "distance"),
    normalisation="mean_std",
    target="sharp",
    size_multiple=1,
    halo_px=0,
    keeps_measured=False,
    uncertainty_kind="none",
)
SIGMA_PX, SUPPORT_PX = 1.5, 6
"""A Gaussian and how far it reaches."""


class Fake:
    """An engine that makes `make(tile number, tile)` of every tile, (channels, rows, cols), and notes what came."""

    def __init__(self, make, *, scale=1, size_multiple=1, halo_px=0):
        self.info = replace(INFO, scale=scale, size_multiple=size_multiple, halo_px=halo_px)
        self._make = make
        self.batches = []

    def run(self, inputs):
        for edge in inputs.shape[2:]:
            assert edge % self.info.size_multiple == 0
        first = sum(batch[0] for batch in self.batches)
        self.batches.append(inputs.shape)
        return np.stack([self._make(first + i, tile) for i, tile in enumerate(inputs)]).astype(np.float32)


def enlarged(tile, scale):
    return tile.repeat(scale, axis=-2).repeat(scale, axis=-1)


def identity(*, scale=1, **options):
    return Fake(lambda _, tile: enlarged(tile, scale), scale=scale, **options)


def blur(*, scale=1, **options):
    """Smooth along rows and columns: no pixel sees further than SUPPORT_PX."""
    sigma, truncate = (0, scale * SIGMA_PX, scale * SIGMA_PX), SUPPORT_PX / SIGMA_PX - 0.5
    return Fake(
        lambda _, tile: gaussian_filter(enlarged(tile, scale), sigma, mode="reflect", truncate=truncate),
        scale=scale,
        **options,
    )


def from_edge(shape):
    """Return how far every pixel is from the edge of its tile: 0 at the edge."""
    rows, cols = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in shape)
    return np.minimum(rows[:, None], cols)


def inner(shape, margin):
    return from_edge(shape) >= margin


def pictures(rng, shape, n=1):
    return rng.normal(size=(n, 2, *shape)).astype(np.float32)


@st.composite
def plans(draw):
    """Return the arguments of a plan: shape, tile, halo and multiple, the picture up to some tiles long."""
    multiple = draw(st.sampled_from([1, 3, 8, 32]))
    halo_px = draw(st.integers(0, 12))
    least = 2 * halo_px + BLEND_PX + multiple
    tile_px = multiple * draw(st.integers(-(-least // multiple), -(-least // multiple) + 40 // multiple))
    shape = draw(st.tuples(*[st.integers(1, 3 * tile_px)] * 2))
    return shape, {"tile_px": tile_px, "halo_px": halo_px}, multiple


# --- where tiles lie ------------------------------------------------------------------------------------------------


@thorough
@given(plans())
def test_tiles_cover_the_picture_from_trusted_edge_to_trusted_edge(plan):
    shape, options, multiple = plan
    tiling = plan_tiling(shape, **options, size_multiple=multiple)
    for axis, length in zip((tiling.rows, tiling.cols), shape, strict=True):
        assert axis.starts[0] == 0
        assert all(start % multiple == 0 for start in (*axis.starts, axis.edge))
        assert axis.edge <= options["tile_px"]
        assert 0 <= axis.padding < multiple
        assert axis.starts[-1] + axis.edge == length + axis.padding
        steps = np.diff(axis.starts)
        assert (steps > 0).all()
        assert (axis.edge - steps >= 2 * options["halo_px"] + BLEND_PX).all()


@pytest.mark.parametrize(
    ("shape", "placements", "edges"),
    [
        ((512, 512), [(0, 0)], (512, 512)),
        ((100, 512), [(0, 0)], (128, 512)),
        ((512, 513), [(0, 0), (0, 224)], (512, 320)),
        ((960, 512), [(0, 0), (448, 0)], (512, 512)),
        ((961, 512), [(0, 0), (288, 0), (608, 0)], (384, 512)),
    ],
)
def test_tiles_are_few_then_small_and_evenly_spread(shape, placements, edges):
    tiling = plan_tiling(shape, tile_px=512, size_multiple=32)
    assert tiling.placements == placements
    assert (tiling.rows.edge, tiling.cols.edge) == edges


def test_a_tile_too_small_for_its_halo_is_refused_with_the_smallest_that_is_not():
    with pytest.raises(ValueError, match="at least 96 for a halo of 20 px and a blend of 16 px, got 64"):
        plan_tiling((512, 512), tile_px=64, size_multiple=32)
    assert len(plan_tiling((512, 512), tile_px=96, size_multiple=32).placements) == 14**2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tile_px": 100, "size_multiple": 32}, "tile_px must be a multiple of the engine's 32, got 100"),
        ({"tile_px": 0}, "got 0"),
        ({"tile_px": 64, "halo_px": -1}, "halo_px must be >= 0"),
        ({"tile_px": 64, "size_multiple": 0}, "size_multiple >= 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        plan_tiling((200, 200), **options)


def test_an_empty_picture_is_refused():
    with pytest.raises(ValueError, match="must have rows and columns"):
        plan_tiling((0, 10), tile_px=64)


# --- what comes out -------------------------------------------------------------------------------------------------


@quick
@given(plans(), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_an_engine_that_changes_nothing_gives_back_every_picture_exactly(plan, scale, n, batch, seed):
    shape, options, multiple = plan
    inputs = pictures(np.random.default_rng(seed), shape, n)
    outputs = run_tiled(identity(scale=scale, size_multiple=multiple), inputs, batch=batch, **options)
    assert outputs.dtype == np.float32
    np.testing.assert_array_equal(outputs, enlarged(inputs, scale))


@quick
@given(plans(), st.sampled_from([1, 2]))
def test_the_weights_of_all_tiles_sum_to_one_everywhere(plan, scale):
    shape, options, multiple = plan
    inputs = np.zeros((1, 2, *shape), np.float32)
    tiling = plan_tiling(shape, **options, size_multiple=multiple)
    total = np.zeros((2, scale * shape[0], scale * shape[1]))
    for chosen, (row, col) in enumerate(tiling.placements):
        indicator = Fake(
            lambda k, tile, chosen=chosen: np.full_like(enlarged(tile, scale), k == chosen),
            scale=scale,
            size_multiple=multiple,
        )
        weights = run_tiled(indicator, inputs, **options)[0]
        rows = slice(scale * row, scale * (row + tiling.rows.edge))
        cols = slice(scale * col, scale * (col + tiling.cols.edge))
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(weights[:, rows, cols].sum())
        total += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_one_tile_gives_way_to_the_next_in_a_linear_ramp():
    number = Fake(lambda k, tile: np.full_like(tile, k))
    outputs = run_tiled(number, np.zeros((1, 2, 8, 60), np.float32), tile_px=42, halo_px=4)
    ramp = (np.arange(16) + 0.5) / 16  # tiles begin at 0 and 18, are trusted up to 38 and from 22 on
    np.testing.assert_allclose(outputs[0, 0, 0], np.concatenate([np.zeros(22), ramp, np.ones(22)]), atol=1e-6)
    np.testing.assert_array_equal(outputs[0, 1], outputs[0, 0])


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("shape", [(150, 211), (64, 64), (97, 40)])
def test_tiles_give_what_the_whole_picture_gives(rng, shape, scale):
    inputs = pictures(rng, shape, 2)
    engine = blur(scale=scale, size_multiple=8)
    tiled = run_tiled(engine, inputs, tile_px=64, batch=3, halo_px=SUPPORT_PX)
    whole = run_tiled(blur(scale=scale, size_multiple=8), inputs)
    assert tiled.shape == whole.shape == (2, 2, scale * shape[0], scale * shape[1])
    np.testing.assert_allclose(tiled, whole, atol=1e-6)


def test_an_engine_with_strides_sees_the_same_blocks_in_tiles_as_in_the_whole(rng):
    def blocks(_, tile):
        means = tile.reshape(2, tile.shape[1] // 8, 8, tile.shape[2] // 8, 8).mean(axis=(2, 4))
        return enlarged(means, 8)

    inputs = pictures(rng, (203, 150))
    tiled = run_tiled(Fake(blocks, size_multiple=8), inputs, tile_px=64, halo_px=8)
    np.testing.assert_allclose(tiled, run_tiled(Fake(blocks, size_multiple=8), inputs), atol=1e-6)


@quick
@given(plans(), st.sampled_from([1, 2]), st.sampled_from([np.nan, 1e30]))
def test_what_an_engine_spoils_at_a_tiles_edge_is_gone_but_at_the_pictures_own(plan, scale, spoilt):
    shape, options, multiple = plan
    halo_px = options["halo_px"]

    def spoil(_, tile):
        out = enlarged(tile, scale)
        out[:, ~inner(out.shape[1:], scale * halo_px)] = spoilt
        return out

    inputs = np.ones((1, 2, *shape), np.float32)
    outputs = run_tiled(Fake(spoil, scale=scale, size_multiple=multiple), inputs, **options)
    assert (outputs[..., inner(outputs.shape[2:], scale * halo_px)] == 1).all()


def seam_to_elsewhere(halo_px):
    """Return the largest error of a tiled picture over that of a tile's middle, for errors that fall from the edge."""
    engine = Fake(lambda _, tile: np.broadcast_to(1 + np.exp(-from_edge(tile.shape[1:]) / 6), tile.shape))
    errors = run_tiled(engine, np.zeros((1, 2, 600, 600), np.float32), tile_px=256, halo_px=halo_px)[0, 0]
    return errors[100:-100, 100:-100].max() / np.median(errors)


def test_no_seam_shows_of_errors_that_fall_from_the_edge():
    assert seam_to_elsewhere(halo_px=None) <= 1.05
    assert seam_to_elsewhere(halo_px=0) > 1.05


# --- padding, batches, halos ----------------------------------------------------------------------------------------


@quick
@given(hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), st.sampled_from([1, 8, 32]))
def test_a_picture_without_tiles_is_padded_by_reflection_to_the_size_multiple(shape, multiple):
    seen = []
    inputs = np.arange(2 * shape[0] * shape[1], dtype=np.float32).reshape(1, 2, *shape)
    run_tiled(Fake(lambda _, tile: seen.append(tile) or tile, size_multiple=multiple), inputs)
    rows, cols = (-(-n // multiple) * multiple for n in shape)
    expected = np.pad(inputs[0], ((0, 0), (0, rows - shape[0]), (0, cols - shape[1])), mode="reflect")
    np.testing.assert_array_equal(seen, [expected])


def test_a_picture_that_fits_goes_to_the_engine_as_it_is(rng):
    inputs, seen = pictures(rng, (64, 96), 2), []
    engine = identity(size_multiple=32)
    engine.run = lambda given: seen.append(given) or given
    assert run_tiled(engine, inputs, tile_px=96, batch=2) is inputs
    assert seen[0] is inputs


def test_tiles_of_all_pictures_share_batches():
    engine = identity()
    run_tiled(engine, np.zeros((3, 2, 60, 40), np.float32), tile_px=42, batch=4, halo_px=4)
    assert engine.batches == [(4, 2, 42, 40), (2, 2, 42, 40)]


def test_no_more_pictures_than_a_batch_go_to_the_engine_at_a_time():
    engine = identity()
    run_tiled(engine, np.zeros((3, 2, 8, 8), np.float32), batch=2)
    assert engine.batches == [(2, 2, 8, 8), (1, 2, 8, 8)]


@pytest.mark.parametrize(("own", "expected"), [(0, DISCARDED_PX), (33, 33)])
def test_the_halo_is_the_engines_own_but_at_least_what_is_known_of_networks(own, expected):
    number = Fake(lambda k, tile: np.full_like(tile, k), halo_px=own)
    outputs = run_tiled(number, np.zeros((1, 2, 8, 150), np.float32), tile_px=128)[0, 0, 0]
    edge = number.batches[0][3]
    assert np.flatnonzero(outputs > 0)[0] == 150 - edge + expected
    assert np.flatnonzero(outputs < 1)[-1] == edge - expected - 1


def test_an_engine_that_returns_another_size_is_named():
    for shape in ((32, 32), (33, 33)):
        with pytest.raises(ValueError, match=r"engine 'fake' returned \(1, 2, \d+, \d+\), expected \(1, 2, (64|66)"):
            run_tiled(Fake(lambda _, tile: tile, scale=2), np.zeros((1, 2, *shape), np.float32))


def test_no_batch_at_all_is_refused():
    with pytest.raises(ValueError, match="batch must be >= 1, got 0"):
        run_tiled(identity(), np.zeros((1, 2, 8, 8), np.float32), batch=0)
