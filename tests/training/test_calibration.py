from __future__ import annotations

import numpy as np
import pytest
import torch

from lowdose.training.calibration import calibrated_scale, scale_for_share
from lowdose.training.data import TrainingData
from lowdose.training.data_settings import DataSettings


@pytest.fixture
def data():
    settings = DataSettings(
        crop_px=32,
        sources=[{"procedural": "mixed", "reuse": 4}],
        patterns=[{"pattern": {"name": "lattice", "coverage": "1/9"}, "n": 1}, {"pattern": {"name": "random"}, "n": 4}],
        channels=["linear"],
        normalisation="mean_std",
        target="sharp",
        noise={"counts": {"low": 100, "high": 1000}},
    )
    with TrainingData(settings, 0, "validation") as data:
        yield data


class Guess(torch.nn.Module):
    """Linear infill with a standard deviation that is the same everywhere."""

    def __init__(self, deviation):
        super().__init__()
        self.deviation = deviation

    def forward(self, x):
        return torch.cat([x, torch.full_like(x, self.deviation)], 1)


def test_a_scale_times_the_deviation_does_not_depend_on_how_wrong_it_was(data):
    assert calibrated_scale(Guess(0.1), data, examples=8) == pytest.approx(
        5 * calibrated_scale(Guess(0.5), data, examples=8), rel=1e-4
    )


def test_calibrated_intervals_hold_nine_tenths_of_the_pixels(data):
    scale = calibrated_scale(Guess(1.0), data, examples=40)
    shares = {}
    for index in range(40):
        example = data.example(index)
        within = np.abs(example.target[0] - example.inputs[0]) <= 1.645 * scale
        shares.setdefault(example.pattern, []).append(within.mean())
    assert np.mean([np.mean(each) for each in shares.values()]) == pytest.approx(0.9, abs=0.02)


def test_groups_count_alike():
    narrow, wide = np.full(1000, 1, np.float32), np.linspace(0, 10, 11, dtype=np.float32)
    scale = scale_for_share({0: narrow, 1: wide}, share=0.75)
    assert scale == pytest.approx(5, abs=0.01)  # all of the narrow ones and half of the wide ones
