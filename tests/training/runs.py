"""Small training runs that tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowdose.training.settings import RecipeSettings, read_recipe

if TYPE_CHECKING:
    from pathlib import Path

COMPLETION = """
name: small_completion
data:
  crop_px: 32
  sources: [{procedural: mixed, reuse: 4}]
  patterns:
    - {pattern: {name: lattice, coverage: [1/16, 1/25]}, n: 2}
    - {pattern: {name: spiral, coverage: 1/10}, n: 1}
  channels: [linear, cubic, sparse, mask, distance]
network: {name: compact, options: {widths: [4, 8], blocks: [1, 1]}}
objective:
  kind: completion
  loss: {relative_mse: 1, nll: 0.1}
  learning_rate: {policy: cosine, lr: 1.0e-3}
  weight_decay: 0.01
steps: 6
batch: 4
ema: 0.99
log_every: 2
validate_every: 4
validation_examples: 4
checkpoint_every: 2
"""
TWO_STAGE = """
name: small_two_stage
data:
  crop_px: 96
  sources: [{procedural: mixed, reuse: 4}]
  patterns:
    - {pattern: {name: lattice, coverage: [1/16, 1/25]}, n: 2}
    - {pattern: {name: spiral, coverage: 1/10}, n: 1}
  channels: [nearest]
  normalisation: dlss
  target: sharp
network: {name: two_stage, options: {width: 0.0625}}
objective:
  kind: two_stage
  expected_error: tracked
  homogenise_noise: true
  replay: {slots: 2, probability: 0.5, share: 0.5}
  adversarial: {width: 0.0625}
steps: 6
batch: 2
ema: 0.99
log_every: 2
validate_every: 4
validation_examples: 4
checkpoint_every: 2
"""
RECIPES = {"completion": COMPLETION, "two_stage": TWO_STAGE}


def recipe_file(folder: Path, name: str) -> Path:
    """Write one of the recipes and return its path."""
    path = folder / f"{name}.yaml"
    path.write_text(RECIPES[name])
    return path


def recipe(folder: Path, name: str, *overrides: str) -> RecipeSettings:
    """Return one of the recipes."""
    return read_recipe(str(recipe_file(folder, name)), overrides)


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Return where two states differ, bit by bit."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [found for key in first for found in differences(first[key], second[key], f"{path}.{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = zip(first, second, strict=True)
        return [found for i, (a, b) in enumerate(pairs) for found in differences(a, b, f"{path}.{i}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) else [path]
    return [] if first == second else [path]
