from __future__ import annotations

import pytest
import torch

from lowdose.reconstruction.models.compact import (
    CHANNELS,
    FAR_DEVIATION,
    LEAST_CONTRAST,
    LEAST_DEVIATION,
    CompactGenerator,
)
from lowdose.reconstruction.models.cost import gmac


def inputs(rows=64, cols=96, batch=2):
    return torch.randn(batch, len(CHANNELS), rows, cols, generator=torch.Generator().manual_seed(0))


def small():
    torch.manual_seed(0)
    return CompactGenerator((4, 8, 8), (1, 1, 1)).eval()


def trained():
    """Return a small network whose last layers do not stand at zero any more."""
    network = small()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    return network


def test_untrained_it_is_linear_infill():
    pictures = inputs()
    pictures[:, 0] = torch.linspace(-1, 2, 96)
    output = small()(pictures)
    assert output.shape == (2, 2, 64, 96)
    torch.testing.assert_close(output[:, :1, :, 4:-4], pictures[:, :1, :, 4:-4])


def test_stripes_finer_than_its_target_can_hold_are_gone():
    pictures = inputs()
    pictures[:, 0] = torch.tensor([1.0, -1.0]).repeat(48)
    assert small()(pictures)[:, 0, :, 4:-4].abs().max() < 0.02


def test_far_from_everything_measured_it_knows_only_how_much_measured_values_differ():
    pictures = torch.zeros(1, len(CHANNELS), 64, 256)
    pictures[:, 4] = torch.arange(256.0)
    deviation = trained()(pictures)[0, 1]
    assert (deviation[:, 64:] >= FAR_DEVIATION).all()
    assert (deviation[:, :32] < 0.01).all()


def test_it_fits_what_two_cores_can_do_live():
    with torch.device("meta"):
        network = CompactGenerator()
        assert gmac(network, torch.zeros(1, 5, 512, 512)) <= 6.5
    assert sum(parameter.numel() for parameter in network.parameters()) <= 3e6


def test_a_hot_pixel_does_not_overflow_half_precision():
    pictures = torch.zeros(1, len(CHANNELS), 64, 64)
    pictures[0, :3, 30:34, 30:34] = 2000
    with torch.inference_mode():
        assert torch.isfinite(trained().half()(pictures.half())).all()


def test_the_deviation_is_never_below_its_floor():
    for scale in (0, 1, -100):
        output = trained()(scale * inputs())
        assert (output[:, 1] >= LEAST_DEVIATION * LEAST_CONTRAST).all()


def test_brightness_and_contrast_of_a_picture_change_nothing_but_their_own():
    network, pictures = trained(), inputs()
    pictures[:, 3] = pictures[:, 3] > 0.5
    pictures[:, 2] *= pictures[:, 3]
    first = network(pictures)
    pictures[:, :2], pictures[:, 2:3] = 0.1 * pictures[:, :2] - 2, 0.1 * pictures[:, 2:3] - 2 * pictures[:, 3:4]
    again = network(pictures)
    torch.testing.assert_close(again[:, :1], 0.1 * first[:, :1] - 2, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(again[:, 1:], 0.1 * first[:, 1:], rtol=1e-3, atol=1e-3)


def test_a_picture_does_not_depend_on_what_it_is_run_with():
    network, pictures = trained(), inputs()
    one_by_one = torch.cat([network(picture[None]) for picture in pictures])
    torch.testing.assert_close(network(pictures), one_by_one)


def test_distances_beyond_the_farthest_say_no_more_of_the_picture():
    network, near, far = trained(), inputs(), inputs()
    near[:, 4], far[:, 4] = 32.0, 90.0
    assert torch.equal(network(near)[:, 0], network(far)[:, 0])


def test_it_is_built_again_from_its_options():
    network = CompactGenerator((4, 8), (1, 2))
    again = CompactGenerator(**network.options)
    assert [p.shape for p in again.parameters()] == [p.shape for p in network.parameters()]
    assert again.size_multiple == 16


@pytest.mark.parametrize("blocks", [[65], [1] * 9])
def test_a_network_larger_than_any_of_use_is_refused_before_it_is_built(blocks):
    with pytest.raises(ValueError, match="at most 8 levels and 64 blocks"):
        CompactGenerator([4] * len(blocks), blocks)


def test_widths_and_blocks_must_agree():
    with pytest.raises(ValueError, match="one length"):
        CompactGenerator((4, 8), (1,))
