"""What every network that an engine file can name keeps."""

from __future__ import annotations

import importlib
import json

import pytest
import torch

from lowdose.reconstruction.models import MODELS


def build(name: str, **options: object) -> torch.nn.Module:
    module, _, cls = MODELS[name].partition(":")
    return getattr(importlib.import_module(module), cls)(**options).eval()


SMALL = {
    "two_stage": {"input_channels": 2, "width": 0.0625},
    "one_stage": {"input_channels": 2, "width": 0.0625},
    "compact": {"widths": [4, 8], "blocks": [1, 1]},
}
"""Options of a network that is quick to run."""
ENDS = {"two_stage": (1, 1), "one_stage": (1, 1), "compact": (5, 2)}
"""Channels in and out of the network as published."""


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def pictures(name, batch):
    return torch.randn(batch, 5 if name == "compact" else 2, 64, 32)


def test_built_without_arguments_it_takes_and_gives_the_channels_of_its_publication(name):
    n_in, n_out = ENDS[name]
    with torch.device("meta"):
        assert build(name)(torch.zeros(2, n_in, 64, 96)).shape[:2] == (2, n_out)


def test_its_options_build_it_again(name):
    network = build(name, **SMALL[name])
    again = build(name, **json.loads(json.dumps(network.options)))
    again.load_state_dict(network.state_dict())
    x = pictures(name, 1)
    with torch.no_grad():
        assert torch.equal(again(x), network(x))


def test_a_batch_gives_what_its_pictures_give_one_by_one_every_time(name):
    network, x = build(name, **SMALL[name]), pictures(name, 3)
    with torch.no_grad():
        together = network(x)
        assert torch.equal(network(x), together)
        torch.testing.assert_close(torch.cat([network(picture[None]) for picture in x]), together)


@pytest.mark.parametrize("name", ["two_stage", "one_stage"])
def test_a_width_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match="width must be > 0, got 0"):
        build(name, width=0)
