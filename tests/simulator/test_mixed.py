"""Every kind of procedural specimen: its contract, whatever the seed, the grid and the parameters."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from lowdose.scan_patterns import ScanGrid
from lowdose.simulator.mixed import KINDS, Mixed, draw

GRID = ScanGrid((96, 128), pixel_size_nm=0.05)
TINY = [(1, 1), (1, 50), (50, 1), (7, 5)]
ALL = {**KINDS, "mixed": Mixed}
SPANS = [(kind, name) for kind, cls in KINDS.items() for name in cls.SPANS]


def image_of(kind, grid=GRID, seed=1, **parameters):
    return ALL[kind](seed, **parameters).open(grid).frame(0.0)


def assert_valid(image, shape):
    assert image.shape == shape
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert image.min() >= 0
    assert image.max() <= 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ALL)
def test_image_is_a_finite_share_of_full_scale_and_shows_something(kind, seed):
    image = image_of(kind, seed=seed)
    assert_valid(image, GRID.shape)
    assert image.std() > 0.002
    assert (image == 1).mean() < 0.2


@pytest.mark.parametrize("shape", TINY, ids=str)
@pytest.mark.parametrize("kind", ALL)
def test_tiny_and_oblong_grids_work(kind, shape):
    for pixel_size_nm in (0.01, 0.08, 5.0):
        assert_valid(image_of(kind, ScanGrid(shape, pixel_size_nm)), shape)


@pytest.mark.parametrize("pixel_size_nm", [1e-3, 0.12, 1e3])
@pytest.mark.parametrize("kind", ALL)
def test_any_pixel_size_works(kind, pixel_size_nm):
    assert_valid(image_of(kind, ScanGrid((64, 64), pixel_size_nm)), (64, 64))


@pytest.mark.parametrize("kind", ALL)
def test_frame_is_read_only_and_the_same_for_ever(kind):
    source = ALL[kind]().open(GRID)
    assert source.frame(0.0) is source.frame(1e6)
    with pytest.raises(ValueError, match="read-only"):
        source.frame(0.0)[0, 0] = 1


@pytest.mark.parametrize("kind", ALL)
def test_seed_alone_says_what_is_drawn(kind):
    np.testing.assert_array_equal(image_of(kind, seed=5), image_of(kind, seed=5))
    assert not np.array_equal(image_of(kind, seed=5), image_of(kind, seed=6))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_more_pixels_on_the_same_field_show_the_same_specimen(kind, seed):
    fine = image_of(kind, ScanGrid((512, 512), pixel_size_nm=0.025), seed)
    coarse = image_of(kind, ScanGrid((256, 256), pixel_size_nm=0.05), seed)
    binned = fine.reshape(256, 2, 256, 2).mean(axis=(1, 3))
    assert np.corrcoef(binned.ravel(), coarse.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("kind", ALL)
def test_draw_gives_another_image_with_every_call_and_the_same_ones_again(kind):
    rng, again = np.random.default_rng(7), np.random.default_rng(7)
    images = [draw(kind, GRID, rng) for _ in range(3)]
    assert not np.array_equal(images[0], images[1])
    for image in images:
        np.testing.assert_array_equal(draw(kind, GRID, again), image)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_of_one_kind_is_that_kind(kind):
    assert_valid(Mixed(kind=kind).open(GRID).frame(0.0), GRID.shape)


def test_mixed_draws_every_kind():
    known = list(KINDS)
    drawn = {Mixed().choice("kind", np.random.default_rng(seed)) for seed in range(100)}
    assert drawn == set(known)


def test_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown specimen 'latice': did you mean 'lattice'\?"):
        draw("latice", GRID, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"unknown kind 'hole': did you mean 'holes'\?"):
        Mixed(kind="hole")


@pytest.mark.parametrize("kind", ALL)
def test_negative_seed_is_refused(kind):
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        ALL[kind](seed=-1)


@pytest.mark.parametrize(("kind", "name"), SPANS, ids=str)
def test_parameter_out_of_its_range_is_refused_in_words(kind, name):
    span = KINDS[kind].SPANS[name]
    for value in (span.least - 1, span.most + 1, float("nan")):
        with pytest.raises(ValueError, match=rf"{name} must be .* to .*, got"):
            KINDS[kind](**{name: value})


@pytest.mark.parametrize(("kind", "name"), SPANS, ids=str)
def test_ends_of_every_range_can_be_drawn(kind, name):
    span, small = KINDS[kind].SPANS[name], ScanGrid((40, 40), pixel_size_nm=0.05)
    counted = "int" in str({field.name: field.type for field in dataclasses.fields(KINDS[kind])}[name])
    for value in (max(span.low, span.least), span.high):
        assert_valid(image_of(kind, small, **{name: int(value) if counted else value}), small.shape)


@pytest.mark.parametrize("kind", ALL)
def test_fields_are_the_keys_of_a_settings_file(kind):
    adapter = TypeAdapter(ALL[kind])
    assert adapter.validate_python({"seed": 3}) == ALL[kind](3)
    with pytest.raises(ValidationError, match="colour"):
        adapter.validate_python({"colour": 1})


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_range_or_names(kind):
    fields = {field.name for field in dataclasses.fields(KINDS[kind])} - {"seed"}
    assert fields == {*KINDS[kind].SPANS, *KINDS[kind].CHOICES}
