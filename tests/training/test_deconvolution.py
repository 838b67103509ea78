from __future__ import annotations

import math

import pytest
import tifffile
import torch

from lowdose.training.deconvolution import deconvolve
from lowdose.training.losses import gaussian_blur, mse


@pytest.fixture(autouse=True)
def one_thread():
    """Small pictures are blurred fastest by one thread, the more so when other tests run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def noisy_lattice():
    """Return a lattice of 9 pixels' spacing with noise, range 0 to 1."""
    wave = torch.cos(2 * math.pi * torch.arange(64) / 9)
    noise = 0.1 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    return (0.5 + 0.25 * wave[:, None] * wave + noise).clamp(0, 1)[None, None]


def test_the_residual_all_but_vanishes_while_the_sharp_picture_stays_far(noisy_lattice):
    blurred = gaussian_blur(noisy_lattice)
    found = deconvolve(blurred)
    assert mse(gaussian_blur(blurred), blurred).item() > 5e-4
    assert found.reblur_mse.item() < 1e-5
    before, after = (mse(image, noisy_lattice).item() for image in (blurred, found.images))
    assert 0.2 * before < after < 0.8 * before
    assert after > 1000 * found.reblur_mse.item()


def test_the_residual_reported_is_that_of_the_pictures_returned(noisy_lattice):
    found = deconvolve(gaussian_blur(noisy_lattice))
    expected = mse(gaussian_blur(found.images), gaussian_blur(noisy_lattice))
    torch.testing.assert_close(found.reblur_mse, expected)
    assert not found.images.requires_grad


def test_pictures_of_a_batch_come_out_as_alone_even_where_gradients_are_off(noisy_lattice):
    batch = gaussian_blur(torch.cat([noisy_lattice, noisy_lattice.flip(2)]))
    with torch.no_grad():
        both = deconvolve(batch)
    torch.testing.assert_close(both.images[:1], deconvolve(batch[:1]).images, atol=1e-4, rtol=0)
    assert both.reblur_mse.shape == (2,)


def test_a_smooth_micrograph_moves_away_from_its_truth(micrographs):
    whole = torch.from_numpy(tifffile.imread(micrographs / "partial_stem_examples" / "truth-1.tif"))
    truth = ((whole - whole.min()) / (whole.max() - whole.min()))[None, None, :128, :128]
    blurred = gaussian_blur(truth)
    found = deconvolve(blurred)
    assert found.reblur_mse.item() < 1e-5
    assert mse(found.images, truth).item() > 5 * mse(blurred, truth).item()
