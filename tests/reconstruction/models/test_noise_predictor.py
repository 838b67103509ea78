"""Noise predictor: counts as published, crops from anywhere in a scan."""

from __future__ import annotations

import pytest
import torch

from lowdose.reconstruction.models.cost import gmac
from lowdose.reconstruction.models.noise_predictor import NoisePredictor, random_crops


@pytest.mark.parametrize(("per_pixel", "count", "cost"), [(False, 23_001, 0.000454), (True, 20_601, 0.01015)])
def test_parameters_and_cost_are_the_published_ones(per_pixel, count, cost):
    predictor, crops = NoisePredictor(per_pixel=per_pixel), torch.zeros(1, 20, 5, 5)
    assert sum(p.numel() for p in predictor.parameters()) == count
    assert gmac(predictor, crops) == pytest.approx(cost, rel=1e-9)


@pytest.mark.parametrize("per_pixel", [False, True])
def test_each_crop_gets_one_prediction(per_pixel):
    predictor, crops = NoisePredictor(per_pixel=per_pixel), torch.randn(3, 20, 5, 5)
    predicted = predictor(crops)
    assert predicted.shape == (3, 20)
    torch.testing.assert_close(predictor(crops[1, 7]), predicted[1, 7])


@pytest.mark.parametrize(("per_pixel", "same"), [(False, False), (True, True)])
def test_only_the_flattened_predictor_sees_the_order_of_pixels(per_pixel, same):
    predictor, crop = NoisePredictor(per_pixel=per_pixel), torch.randn(5, 5)
    assert torch.allclose(predictor(crop), predictor(crop.flip(0)), atol=1e-6) == same


def test_crops_are_pieces_of_their_own_scan_from_edge_to_edge():
    pixel = torch.arange(6 * 7.0).view(6, 7)
    scans = torch.stack([pixel, pixel + 100])[:, None]
    crops = random_crops(scans, generator=torch.Generator().manual_seed(2))
    assert crops.shape == (2, 20, 5, 5)
    one = pixel[:5, :5] - pixel[0, 0]
    assert torch.equal(crops - crops[..., :1, :1], one.expand(2, 20, 5, 5))
    assert set(crops[0, :, 0, 0].tolist()) == {0, 1, 2, 7, 8, 9}
    assert (crops[1] >= 100).all()


def test_a_scan_smaller_than_a_crop_is_refused():
    with pytest.raises(ValueError, match="scans must be at least 5 × 5, got 4 × 9"):
        random_crops(torch.zeros(1, 1, 4, 9))
