"""Two-stage generator: counts and costs as published, sizes, folding."""

from __future__ import annotations

import pytest
import torch

from lowdose.reconstruction.models.cost import gmac
from lowdose.reconstruction.models.layers import ConvLayer, freeze_running_means
from lowdose.reconstruction.models.two_stage import InnerTrainer, TwoStageGenerator, halve


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def on_meta(**options: object) -> TwoStageGenerator:
    with torch.device("meta"):
        return TwoStageGenerator(**options)  # type: ignore[arg-type]


def small(**options: object) -> TwoStageGenerator:
    """Return a network whose gains, biases and running means are no round numbers."""
    network = TwoStageGenerator(width=0.125, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, ConvLayer) and layer.gain is not None:
                layer.gain.uniform_(0.5, 1.5)
                layer.bias.normal_()
                if layer.running_mean is not None:
                    layer.running_mean.normal_()
    return network


def published(**options: object) -> tuple[int, float]:
    network = on_meta(**options)
    return parameters(network), gmac(network, torch.zeros(1, options.get("input_channels", 1), 512, 512, device="meta"))


@pytest.mark.parametrize(
    ("options", "count", "cost"),
    [
        ({}, 106_140_994, 60.4861),
        ({"variant": "paper"}, 106_140_994, 60.4861),
        ({"input_channels": 2}, 106_143_394, 60.8006),
        ({"plain": True}, 106_123_745, 60.4861),
    ],
    ids=str,
)
def test_parameters_and_cost_are_the_published_ones(options, count, cost):
    assert published(**options) == (count, pytest.approx(cost, abs=5e-5))


def test_the_inner_and_outer_networks_and_the_trainer_have_the_published_sizes():
    network = on_meta()
    with torch.device("meta"):
        trainer, features = InnerTrainer(), torch.zeros(1, 64, 256, 256)
    assert [parameters(n) for n in (network.inner, network.outer, trainer)] == [105_760_576, 380_418, 37_570]
    assert gmac(trainer, features) == pytest.approx(2.4537, abs=5e-5)
    assert gmac(network.inner, features[:, :1]) == pytest.approx(33.6257, abs=5e-5)


@pytest.mark.parametrize(("variant", "means"), [("A", 1_088), ("paper", 17_248)])
def test_only_the_centred_layers_of_a_variant_have_running_means(variant, means):
    assert sum(b.numel() for b in on_meta(variant=variant).buffers()) == means


@pytest.mark.parametrize(("rows", "cols"), [(32, 32), (96, 160), (512, 512), (2048, 1024)])
def test_every_multiple_of_32_keeps_its_size(rows, cols):
    x = torch.zeros(1, 1, rows, cols, device="meta")
    completed, features = on_meta().forward_with_features(x)
    assert completed.shape == x.shape
    assert features.shape == (1, 64, rows // 2, cols // 2)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 96, 100), "rows and columns must be multiples of 32, got 96 × 100: pad them"),
        ((1, 2, 96, 96), r"inputs must be \(batch, 1, rows, cols\), got \(1, 2, 96, 96\)"),
    ],
)
def test_other_inputs_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        on_meta()(torch.zeros(shape, device="meta"))


@pytest.mark.parametrize("option", ["variant", "half_size", "mean_source"])
def test_unknown_choices_are_refused(option):
    with pytest.raises(ValueError, match=rf"{option} must be one of \w+, \w+, got 'B'"):
        on_meta(**{option: "B"})


def test_half_size_is_every_second_pixel_or_the_mean_of_four():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert halve(x, "decimate").flatten().tolist() == [0, 2, 8, 10]
    assert halve(x, "average").flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


@pytest.mark.parametrize("variant", ["A", "paper"])
@pytest.mark.parametrize("half_size", ["decimate", "average"])
def test_the_folded_network_gives_the_same_and_its_names_are_plain(variant, half_size):
    network = small(variant=variant, half_size=half_size, input_channels=2).eval()
    folded, x = network.folded(), torch.randn(2, 2, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network(x), rtol=1e-5, atol=1e-5 * network(x).abs().max().item())
    assert {name.rpartition(".")[2] for name in folded.state_dict()} == {"weight", "bias"}
    assert {"inner.encode.0.weight", "inner.blocks.5.2.bias", "outer.decode.2.weight"} <= set(folded.state_dict())


def test_a_folded_network_is_built_from_its_options_and_weights_alone():
    folded, x = small().eval().folded(), torch.randn(1, 1, 32, 32)
    again = on_meta(**folded.options)
    again.load_state_dict(folded.state_dict(), assign=True)
    assert torch.equal(again(x), folded(x))


def test_folding_a_folded_network_changes_nothing():
    folded = small().eval().folded()
    again = folded.folded().state_dict()
    assert all(torch.equal(again[name], value) for name, value in folded.state_dict().items())


def test_folding_shares_nothing_with_the_network_in_training():
    network = small()
    folded = network.folded()
    before = {name: value.clone() for name, value in folded.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in folded.state_dict().items())


@pytest.mark.slow
def test_the_published_network_folds_at_full_size():
    network, x = TwoStageGenerator().eval(), torch.randn(1, 1, 512, 512)
    with torch.inference_mode():
        expected = network(x)
        torch.testing.assert_close(network.folded()(x), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_frozen_training_gives_what_inference_gives():
    network, x = small(), torch.randn(2, 1, 64, 64)
    expected = network.eval()(x)
    freeze_running_means(network)
    assert torch.equal(network.train()(x), expected)


def test_both_losses_reach_the_inner_network_in_one_pass():
    network, trainer = small().train(), InnerTrainer(width=0.125)
    completed, features = network.forward_with_features(torch.randn(1, 1, 64, 64))
    assert trainer(features).shape == (1, 1, 32, 32)
    (completed.square().mean() + trainer(features).square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (*network.parameters(), *trainer.parameters()))
