from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch

from lowdose.reconstruction.engines.classical_engine import LinearEngine
from lowdose.training.deconvolution import DeconvolvedEngine, deconvolve
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


class Blurred:
    """Knows the blurred truth."""

    info = replace(LinearEngine().info, name="blurred", target="blurred_5x5", channels=("linear",))

    def run(self, inputs):
        mean = gaussian_blur(torch.from_numpy(inputs)).numpy()
        return np.concatenate([mean, np.ones_like(mean)], axis=1)


def test_an_engine_of_blurred_pictures_is_sharpened_whatever_their_unit():
    engine = DeconvolvedEngine(Blurred())
    truth = np.random.default_rng(0).random((2, 1, 48, 48), dtype=np.float32)
    output = engine.run(truth)
    assert engine.info.target == "sharp"
    assert not output[:, 1].any()
    blurred = Blurred().run(truth)[:, :1]
    assert np.square(output[:, :1] - truth).mean() < 0.9 * np.square(blurred - truth).mean()
    np.testing.assert_allclose(engine.run(1000 * truth)[:, :1], 1000 * output[:, :1], rtol=0.02, atol=10)


def test_an_engine_of_sharp_pictures_is_left_alone():
    with pytest.raises(ValueError, match="estimates sharp, expected blurred_5x5"):
        DeconvolvedEngine(LinearEngine())
