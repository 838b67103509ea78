from __future__ import annotations

import numpy as np
import pytest

from lowdose.scan_patterns import ScanGrid
from lowdose.simulator.changing import Changing
from lowdose.simulator.nanostructures import GoldIslands

GRID = ScanGrid((64, 64))


def test_gold_islands_grow_and_then_stay():
    source = Changing(duration_s=10.0, steps=11).open(GRID)
    bright = [float((source.frame(t) > 0.3).mean()) for t in (0.0, 5.0, 10.0, 99.0)]
    assert bright[0] < bright[1] < bright[2] == bright[3]
    assert source.frame(3.2) is source.frame(3.9)


def test_everything_else_stays_as_the_seed_has_it():
    source = Changing(start=0.3, stop=0.6, seed=4).open(GRID)
    np.testing.assert_array_equal(source.frame(0.0), GoldIslands(4, coverage=0.3).open(GRID).frame(0.0))
    np.testing.assert_array_equal(source.frame(1e9), GoldIslands(4, coverage=0.6).open(GRID).frame(0.0))


def test_the_frame_before_the_first_is_the_first():
    source = Changing(steps=3).open(GRID)
    assert source.frame(-1.0) is source.frame(0.0)
    assert not source.frame(0.0).flags.writeable


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "gold"}, "did you mean 'gold_islands'"),
        ({"parameter": "covrage"}, "did you mean 'coverage'"),
        ({"stop": 2.0}, "coverage must be"),
        ({"steps": 1}, "steps must be 2"),
        ({"duration_s": 0}, "duration_s must be > 0"),
        ({"seed": -1}, "seed must be >= 0"),
    ],
)
def test_what_cannot_change_so_is_refused_in_words(wrong, message):
    with pytest.raises(ValueError, match=message):
        Changing(**wrong)
