from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from lowdose.training.data_settings import DataSettings, ImageSource, ProceduralSource, Range
from lowdose.training.pattern_choice import drawn_parameters, make_pattern, n_choices

SPIRAL = {"pattern": {"name": "spiral", "coverage": "1/20"}, "n": 1}


def test_sources_are_told_apart_by_their_keys() -> None:
    settings = DataSettings.model_validate({"patterns": [SPIRAL], "sources": [{"images": "x"}, {"weight": 2}]})
    assert [type(source) for source in settings.sources] == [ImageSource, ProceduralSource]


def test_settings_survive_being_written_and_read() -> None:
    settings = DataSettings.model_validate(
        {
            "patterns": [SPIRAL],
            "sources": [{"images": "x", "where": {"licence": ["MIT", "BSD"], "noise_over_range": {"at_most": 0.1}}}],
            "noise": {"counts": {"low": 2, "high": 20}, "kinds": ["haadf", "bf"]},
        }
    )
    assert DataSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"noise": "publishd"}, "'none' or 'published'"),
        ({"noise": {"count": 3}}, "Extra inputs"),
        ({"noise": {"counts": {"low": 3, "high": 2}}}, "low must not be above high"),
        ({"noise": {}, "normalisation": "dlss"}, "for pictures between -1 and 1, not for counts"),
        ({"sources": [{"procedural": "mixd"}]}, "did you mean 'mixed'"),
        ({"sources": [{"images": "x", "wher": 1}]}, "Extra inputs"),
        ({"sources": [{"edge_px": 100}]}, "edge_px must be at least crop_px, 128, got 100"),
        ({"patterns": [SPIRAL | {"field_px": 64}]}, "field_px must be at least crop_px, 128, got 64"),
        ({"patterns": [{"pattern": {}}]}, "needs a name"),
        ({"patterns": [{"pattern": {"name": "spirall"}}]}, "did you mean 'spiral'"),
        ({"patterns": [{"pattern": {"name": "spiral", "coverag": 1}}]}, "did you mean 'coverage'"),
        ({"patterns": [{"pattern": {"name": "spiral", "speed": "x"}}]}, "'angular' or 'linear'"),
        ({"patterns": [{"pattern": {"name": "spiral", "coverage": []}}]}, "lists no values"),
        ({"patterns": [{"pattern": {"name": "spiral", "coverage": {"low": 2, "high": 3}}}]}, "coverage must be > 0"),
        ({"patterns": [{"pattern": {"name": "jittered", "amplitude_px": {"low": [], "high": 3}}}]}, "must be numbers"),
        ({"patterns": [{"pattern": {"name": "spiral", "coverage": {"from": 1}}}]}, "{low, high}"),
        ({"patterns": [{"pattern": {"name": "spiral", "coverage": [0.1, 0.2]}, "n": 1}]}, "2 combinations"),
        ({"bin_by_2": 0.6, "decimate_by_2": 0.6}, "must be <= 1"),
        ({"inputs": "lattice"}, "needs one lattice"),
    ],
    ids=str,
)
def test_mistakes_are_refused_with_what_to_do(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        DataSettings.model_validate({"patterns": [SPIRAL], "crop_px": 128} | wrong)
    assert message in str(error.value)


def test_listed_values_come_by_turns_in_every_combination(rng: np.random.Generator) -> None:
    mapping = {"name": "jittered", "coverage": ["1/10", "1/20"], "amplitude_px": [1, 2, 3]}
    drawn = [drawn_parameters(mapping, index, rng) for index in range(n_choices(mapping))]
    assert len({(p["coverage"], p["amplitude_px"]) for p in drawn}) == 6


def test_a_parameter_that_is_a_list_itself_is_no_choice(rng: np.random.Generator) -> None:
    assert n_choices({"name": "lattice", "offset": [0, 1]}) == 1
    assert drawn_parameters({"name": "lattice", "offset": [[0, 1], [2, 3]]}, 1, rng)["offset"] == [2, 3]


def test_ranges_are_drawn_evenly_in_their_logarithm(rng: np.random.Generator) -> None:
    drawn = [drawn_parameters({"coverage": {"low": "1/100", "high": 1}}, 0, rng)["coverage"] for _ in range(2000)]
    assert min(drawn) >= 0.01
    assert max(drawn) <= 1
    assert np.median(drawn) == pytest.approx(0.1, rel=0.1)
    assert 2 <= Range(low=2, high=3).draw(rng) <= 3


def test_patterns_can_be_turned() -> None:
    assert make_pattern({"name": "line_hop", "coverage": "1/20", "rotation_deg": 30}).coverage == 0.05  # type: ignore[attr-defined]
