"""Scores of a network on examples it never sees in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from lowdose.training.validation import NORMAL_50, NORMAL_90, ValidationSet, scale_for_share
from tests.training.runs import recipe

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from lowdose.training.settings import RecipeSettings

CPU = torch.device("cpu")


class _Data:
    """Examples of 16 x 16 whose truth reaches from 0 to 2, every second pixel of every second row measured."""

    pattern_names = ("lattice", "spiral")

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        mask = torch.zeros(1, 16, 16, dtype=torch.bool)
        mask[:, ::2, ::2] = True
        truth = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(index))
        truth[0, 0, 0], truth[0, 0, 1] = 0.0, 2.0
        linear = truth + 0.5
        return {
            "inputs": torch.cat([linear, truth * mask, mask, mask]).float(),
            "target": truth,
            "truth": truth,
            "mask": mask,
            "coverage": torch.tensor(0.25),
            "pattern": torch.tensor(index % 2),
        }


class _Off(nn.Module):
    """Puts out the linear infill plus an offset, and a standard deviation."""

    def __init__(self, offset: float, deviation: float | None = None) -> None:
        super().__init__()
        self.offset, self.deviation = offset, deviation

    def forward(self, x: Tensor) -> Tensor:
        mean = x[:, :1] + self.offset
        return mean if self.deviation is None else torch.cat([mean, torch.full_like(mean, self.deviation)], 1)


def scored(folder: Path, network: nn.Module, **options: object):
    settings: RecipeSettings = recipe(folder, "completion", *(f"{key}={value}" for key, value in options.items()))
    return ValidationSet(_Data(), settings, CPU).scores(network)  # type: ignore[arg-type]


def test_linear_infill_has_ratio_one_and_its_error_is_in_units_of_the_range(tmp_path):
    total, *patterns = scored(tmp_path, _Off(0.0))
    assert total.ratio_to_linear == pytest.approx(1)
    assert total.rms_01 == pytest.approx(0.25)  # 0.5 of a range of 2
    assert (total.pattern, total.examples) == ("all", 4)
    assert [(score.pattern, score.examples) for score in patterns] == [("lattice (0)", 2), ("spiral (1)", 2)]


def test_network_that_halves_the_error_has_ratio_one_half(tmp_path):
    assert scored(tmp_path, _Off(-0.25))[0].ratio_to_linear == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("deviation", "shares"), [(0.51 / NORMAL_50, (1, 1)), (0.51 / NORMAL_90, (0, 1)), (0.49 / NORMAL_90, (0, 0))]
)
def test_intervals_hold_the_pixels_nearer_than_their_half_width(deviation, shares, tmp_path):
    score = scored(tmp_path, _Off(0.0, deviation))[0]
    assert (score.interval50, score.interval90) == shares


def test_scale_of_the_deviations_is_what_the_intervals_lack(tmp_path):
    score = scored(tmp_path, _Off(0.0, 0.1))[0]
    assert score.deviation_scale == pytest.approx(0.5 / (NORMAL_90 * 0.1))  # every pixel is off by 0.5


def test_groups_count_alike_in_the_scale():
    narrow, wide = np.full(1000, 1.0), np.linspace(0, 10, 11)
    scale = scale_for_share([narrow, wide], share=0.75)
    assert scale == pytest.approx(5, abs=0.01)  # all of the narrow ones and half of the wide ones


def test_network_of_one_output_has_no_interval(tmp_path):
    score = scored(tmp_path, _Off(0.0))[0]
    assert (score.interval90, score.deviation_scale) == (None, None)


def test_network_is_left_in_training_as_it_was(tmp_path):
    network = nn.Sequential(_Off(0.0), nn.Identity()).train()
    network[1].eval()
    scored(tmp_path, network)
    assert [module.training for module in network.modules()] == [True, True, False]


def test_without_a_linear_channel_the_baseline_is_made_of_the_measured_pixels_of_the_truth(tmp_path):
    settings = recipe(tmp_path, "completion", "objective.loss={pixel: 1}", "data.channels=[nearest]")
    validation = ValidationSet(_Data(), settings, CPU)  # type: ignore[arg-type]
    truth, mask = _Data()[0]["truth"][0], _Data()[0]["mask"][0]
    linear = validation._linear[0, 0]
    assert torch.equal(linear[mask], truth[mask])
    assert float(linear[0, 1]) == pytest.approx(float(truth[0, 0] + truth[0, 2]) / 2)


def test_blank_examples_do_not_count(tmp_path):
    class _Blank(_Data):
        def __getitem__(self, index: int) -> dict[str, Tensor]:
            example = super().__getitem__(index)
            return {**example, "truth": example["truth"] * 0} if index == 0 else example

    total = ValidationSet(_Blank(), recipe(tmp_path, "completion"), CPU).scores(_Off(0.0))[0]  # type: ignore[arg-type]
    assert total.examples == 3
