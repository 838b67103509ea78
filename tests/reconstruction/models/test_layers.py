"""Layers: sizes, normalisation, initialisation from an example, folding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowdose.reconstruction.models.layers import (
    ConvLayer,
    ResidualBlock,
    folded_state,
    freeze_running_means,
    initialise_from_example,
    uniform_example,
)

EVERY_SHAPE = [
    pytest.param({"kernel": 5}, id="5x5"),
    pytest.param({"stride": 2}, id="strided"),
    pytest.param({"stride": 2, "transposed": True}, id="transposed"),
]


def layer_with_numbers(**options: object) -> ConvLayer:
    layer = ConvLayer(3, 4, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for number in (layer.gain, layer.bias, layer.running_mean):
            if number is not None:
                number.uniform_(0.5, 2.0)
    return layer


@pytest.mark.parametrize(
    ("options", "size"), [({"kernel": 5}, 8), ({"stride": 2}, 4), ({"stride": 2, "transposed": True}, 16)]
)
def test_strides_halve_and_double_sizes_exactly(options, size):
    assert ConvLayer(3, 4, **options)(torch.zeros(2, 3, 8, 8)).shape == (2, 4, size, size)


def test_a_transposed_layer_is_the_adjoint_of_the_strided_one():
    down, up = ConvLayer(3, 4, stride=2, plain=True), ConvLayer(4, 3, stride=2, transposed=True, plain=True)
    up.weight = down.weight
    x, y = torch.randn(1, 3, 8, 8), torch.randn(1, 4, 4, 4)
    assert torch.vdot(down(x).flatten(), y.flatten()).item() == pytest.approx((x * up(y)).sum().item(), rel=1e-4)


def test_a_strided_layer_looks_where_decimation_does():
    layer = ConvLayer(1, 1, stride=2, plain=True)
    with torch.no_grad():
        layer.weight.zero_()[..., 1, 1] = 1
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(layer(x), x[..., ::2, ::2])


@pytest.mark.parametrize("options", EVERY_SHAPE)
def test_the_length_of_what_makes_an_output_channel_does_not_matter(options):
    layer, x = layer_with_numbers(**options), torch.randn(1, 3, 8, 8)
    before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(torch.tensor([1.0, 2.0, 3.0, 4.0]).view((1, 4, 1, 1) if layer.transposed else (4, 1, 1, 1)))
    torch.testing.assert_close(layer(x), before)


def test_training_subtracts_the_batch_s_mean_and_lets_the_running_mean_follow():
    layer, x = ConvLayer(3, 4, centred=True), torch.randn(2, 3, 8, 8) + 1
    plain_mean = ConvLayer.eval(layer)(x).mean((0, 2, 3))  # the running mean is still 0
    in_training = layer.train()(x)
    torch.testing.assert_close(in_training.mean((0, 2, 3)), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(layer.running_mean, 0.01 * plain_mean)


def test_a_frozen_layer_keeps_and_uses_its_running_mean_in_training():
    layer, x = layer_with_numbers(centred=True), torch.randn(2, 3, 8, 8)
    expected, mean = layer.eval()(x), layer.running_mean.clone()
    freeze_running_means(layer)
    assert torch.equal(layer.train()(x), expected)
    assert torch.equal(layer.running_mean, mean)
    freeze_running_means(layer, frozen=False)
    assert not torch.equal(layer(x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_current_means_are_each_picture_s_own(training):
    layer = layer_with_numbers(centred=True, mean_source="current").train(training)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(layer(x).mean((2, 3)), layer.bias.expand(2, 4))
    torch.testing.assert_close(layer(x)[1:], layer(x[1:]))


@pytest.mark.parametrize("options", EVERY_SHAPE)
@pytest.mark.parametrize("centred", [True, False])
def test_a_folded_layer_gives_the_same(options, centred):
    layer = layer_with_numbers(**options, centred=centred, slope=0.01).eval()
    plain = ConvLayer(3, 4, **options, slope=0.01, plain=True)
    plain.load_state_dict({name.removeprefix("."): value for name, value in folded_state(layer).items()})
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(plain(x), layer(x), rtol=1e-5, atol=1e-6)


def test_a_mean_of_each_picture_cannot_be_folded():
    with pytest.raises(ValueError, match=r'0 subtracts the mean of each picture: only mean_source="running"'):
        folded_state(nn.Sequential(ConvLayer(1, 1, centred=True, mean_source="current")))


@pytest.mark.parametrize("mean_source", ["running", "current"])
@pytest.mark.parametrize("training", [True, False])
def test_initialisation_gives_every_channel_mean_0_and_variance_1(mean_source, training):
    network = nn.Sequential(
        ConvLayer(1, 8, kernel=5, slope=0.1, centred=True, mean_source=mean_source),
        ConvLayer(8, 8, stride=2, slope=0.01),
        ResidualBlock(ConvLayer(8, 8, slope=0.01), ConvLayer(8, 8, slope=0.01)),
        ConvLayer(8, 8, stride=2, transposed=True, slope=0.01, centred=True, mean_source=mean_source),
        ConvLayer(8, 1),
    ).train(training)
    example = uniform_example(size=64)
    initialise_from_example(network, example)
    layers = [m for m in network.modules() if isinstance(m, ConvLayer)]
    for layer in layers:
        layer.slope = 1.0  # what comes before the activation
        seen: list[torch.Tensor] = []
        with layer.register_forward_hook(lambda layer, args, y, seen=seen: seen.append(y)):
            network(example)
        layer.slope = 0.1 if layer is layers[0] else 0.01
        variance, mean = torch.var_mean(seen[0], (0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
        torch.testing.assert_close(variance, torch.ones_like(variance), atol=1e-3, rtol=0)


def test_the_uniform_example_spans_the_published_range_and_repeats():
    example = uniform_example(2, size=64, generator=torch.Generator().manual_seed(1))
    assert example.shape == (1, 2, 64, 64)
    assert example.amin() == pytest.approx(-0.8, abs=0.01)
    assert example.amax() == pytest.approx(0.8, abs=0.01)
    assert torch.equal(example, uniform_example(2, size=64, generator=torch.Generator().manual_seed(1)))


def test_a_plain_network_is_not_initialised():
    with pytest.raises(ValueError, match="initialise the network it was folded from"):
        initialise_from_example(ConvLayer(1, 1, plain=True), torch.zeros(1, 1, 8, 8))


def test_means_are_followed_in_mixed_precision_too():
    layer = ConvLayer(3, 4, centred=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.ones(1, 3, 8, 8))
    assert layer.running_mean.dtype == torch.float32
    assert layer.running_mean.abs().sum() > 0
