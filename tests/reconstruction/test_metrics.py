"""Metrics: golden values by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lowdose.reconstruction.metrics import (
    INTERVAL50,
    INTERVAL90,
    edge_distance,
    error_profile,
    root_mean,
    root_std,
    shares_within,
    squared_errors,
)


def test_root_mean_and_root_std_are_those_of_the_mean_squared_errors():
    mse = [0.04, 0.0, 0.02]
    assert root_mean(mse) == pytest.approx(np.sqrt(0.02))
    assert root_std(mse) == pytest.approx(np.sqrt(np.sqrt((0.02**2 + 0.02**2) / 3)))


def test_squared_errors_leave_the_picture_alone():
    image, truth = np.float32([[3, 1]]), np.float32([[1, 1]])
    assert squared_errors(image, truth).tolist() == [[4, 0]]
    assert image.tolist() == [[3, 1]]


def test_normally_distributed_errors_are_covered_by_90_and_50_percent_intervals(rng):
    deviation = np.full((300, 300), 0.1, np.float32)
    image = rng.normal(0, 0.1, deviation.shape).astype(np.float32)
    shares = shares_within(image, np.zeros_like(image), deviation, [INTERVAL50, INTERVAL90])
    assert shares == pytest.approx([0.5, 0.9], abs=0.01)


def test_a_measured_pixel_without_uncertainty_counts_as_covered_in_spite_of_rounding():
    image = np.full((2, 2), 0.3, np.float32)
    nothing = np.zeros_like(image)
    assert shares_within(image + np.float32(1e-7), image, nothing, [INTERVAL50]).tolist() == [1.0]
    assert shares_within(image + np.float32(1e-3), image, nothing, [INTERVAL50]).tolist() == [0.0]


def test_profile_tells_the_error_at_every_distance_to_the_edge():
    mean_squared = np.ones((5, 5))
    mean_squared[2, 2] = 16
    profile = error_profile(mean_squared, edge_distance((5, 5)))
    assert profile.distance_px == (0, 1, 2)
    assert profile.rms == (1.0, 1.0, 4.0)
    assert profile.pixels == (16, 8, 1)
