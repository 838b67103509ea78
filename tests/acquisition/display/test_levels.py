import numpy as np
import pytest

from lowdose.acquisition.display.levels import Levels, measured_to_uint8, percentile_levels, to_uint8

RAMP = np.linspace(0, 1000, 10_000, dtype=np.float32).reshape(100, 100)


def test_levels_map_to_black_and_white_and_clip_beyond():
    image = np.array([[-5, 0, 50, 100, 900]], np.float32)
    assert to_uint8(image, 0, 100).tolist() == [[0, 0, 128, 255, 255]]


def test_unvisited_pixels_are_black_and_visited_ones_never():
    measured = np.array([[0, 0, 100]], np.float32)
    hits = np.array([[0, 1, 2]], np.uint16)
    assert measured_to_uint8(measured, hits, 0, 100).tolist() == [[0, 1, 255]]


def test_nan_is_shown_as_black():
    assert to_uint8(np.array([[np.nan]], np.float32), 0, 1).tolist() == [[0]]


def test_percentiles_of_a_large_image_come_close_from_few_pixels():
    large = np.tile(RAMP, (10, 10))
    np.testing.assert_allclose(percentile_levels(large), (5, 995), atol=3)


def test_a_flat_or_empty_image_has_levels_apart():
    assert percentile_levels(np.full((4, 4), np.nan, np.float32)) == (0.0, 1.0)
    low, high = percentile_levels(np.full((4, 4), 7, np.float32))
    assert low < high


def test_always_follows_every_image():
    levels = Levels()
    levels.follow(RAMP)
    levels.follow(RAMP * 2)
    assert levels.high == pytest.approx(1990, rel=0.01)


def test_once_follows_the_next_image_only():
    levels = Levels()
    levels.choose("once")
    levels.follow(RAMP)
    levels.follow(RAMP * 2)
    assert levels.high == pytest.approx(995, rel=0.01)


def test_manual_levels_stay():
    levels = Levels()
    levels.set_manual(10, 20)
    levels.follow(RAMP)
    assert (levels.mode, levels.low, levels.high) == ("manual", 10, 20)


def test_manual_levels_never_meet():
    levels = Levels()
    levels.set_manual(10, 10)
    assert levels.high > levels.low


def test_modes_come_round():
    levels = Levels()
    assert [levels.cycle() for _ in range(3)] == ["once", "manual", "always"]


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="contrast mode must be one of"):
        Levels().choose("never")
