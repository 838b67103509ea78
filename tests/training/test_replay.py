from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdose.training.replay import Replay, StoreThreshold


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def numbered(first, n=1):
    """Return a batch whose examples tell which they are."""
    numbers = torch.arange(first, first + n)
    return {"inputs": numbers.float()[:, None, None, None].expand(n, 1, 2, 2), "mask": numbers[:, None] % 2 == 0}


def run(replay, losses, *, first=0, n=1):
    """Return the numbers trained on and those stored, over steps of n examples."""
    trained, stored = [], []
    for step in range(len(losses) // n):
        batch, fresh = replay.mix(numbered(first + step * n, n))
        numbers = batch["inputs"][:, 0, 0, 0].int().tolist()
        loss = torch.tensor(losses[step * n : (step + 1) * n])
        stored += [numbers[i] for i in replay.store(batch, losses=loss, fresh=fresh)]
        trained += numbers
    return trained, stored


@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
    shape=st.sampled_from(["exponential", "lognormal", "falling"]),
)
@settings(max_examples=12, deadline=None)
def test_about_a_fifth_is_stored_whatever_the_losses(seed, scale, shape):
    rng, n = np.random.default_rng(seed), 8000
    losses = scale * (rng.exponential(1, n) if shape == "exponential" else rng.lognormal(0, 0.5, n))
    if shape == "falling":
        losses *= 1 + 50 * np.exp(-np.arange(n) / 1000)
    threshold, stored = StoreThreshold(share=0.2), []
    for loss in losses.tolist():
        stored.append(threshold.exceeded_by(loss))
        threshold.update(loss, stored=stored[-1])
    assert np.mean(stored[3000:]) == pytest.approx(0.2, abs=0.02)


def test_the_first_examples_fill_the_slots_and_nothing_is_replayed_before():
    trained, stored = run(Replay(generator(), slots=50), [0.0] * 50)
    assert trained == stored == list(range(50))


def test_a_fifth_of_the_steps_replay_a_slot_drawn_evenly():
    replay = Replay(generator(), slots=5)
    run(replay, [1.0] * 5)
    batch, fresh = replay.mix(numbered(100, 5000))
    assert fresh.float().mean().item() == pytest.approx(0.8, abs=0.02)
    replayed = batch["inputs"][~fresh, 0, 0, 0].int().numpy()
    assert np.bincount(replayed) == pytest.approx([200] * 5, abs=50)


def test_hard_examples_are_the_ones_stored():
    losses = np.random.default_rng(0).exponential(1, 4000)
    _, stored = run(Replay(generator()), losses.tolist())
    late = [number for number in stored if number > 500]
    assert losses[late].mean() > 1.5 * losses.mean()


def test_replayed_examples_are_never_stored_again_and_steer_nothing():
    replay = Replay(generator(), slots=2, probability=1.0)
    run(replay, [1.0, 1.0])
    before = copy.deepcopy(replay.state_dict()["threshold"])
    trained, stored = run(replay, [1000.0] * 50, first=10)
    assert set(trained) == {0, 1}
    assert stored == []
    assert replay.state_dict()["threshold"] == before


def test_a_replayed_example_comes_whole_and_the_given_batch_stays_as_it_is():
    replay = Replay(generator(), slots=1, probability=1.0)
    run(replay, [1.0], first=4)
    given_batch = numbered(7, 3)
    batch, fresh = replay.mix(given_batch)
    assert batch["inputs"].unique().tolist() == [4]
    assert batch["mask"].all()
    assert given_batch["inputs"][:, 0, 0, 0].tolist() == [7, 8, 9]
    assert not fresh.any()


def test_the_same_generator_gives_the_same_run():
    losses = np.random.default_rng(1).exponential(1, 300).tolist()
    assert run(Replay(generator()), losses, n=4) == run(Replay(generator()), losses, n=4)
    assert run(Replay(generator()), losses, n=4) != run(Replay(generator(4)), losses, n=4)


def test_a_run_goes_on_from_a_checkpoint_as_if_never_stopped(tmp_path):
    losses = np.random.default_rng(1).exponential(1, 600).tolist()
    whole = Replay(generator(), slots=10)
    run(whole, losses[:300])
    torch.save(whole.state_dict(), tmp_path / "replay.pt")
    resumed = Replay(generator(99), slots=10)
    resumed.load_state_dict(torch.load(tmp_path / "replay.pt", weights_only=True))
    assert run(resumed, losses[300:], first=300) == run(whole, losses[300:], first=300)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_neither_stored_nor_counted(bad):
    replay = Replay(generator(), slots=2)
    before = replay.state_dict()["threshold"]
    assert run(replay, [bad] * 3) == ([0, 1, 2], [])
    assert replay.state_dict()["threshold"] == before


def test_a_state_of_other_slots_or_other_examples_is_refused():
    replay, other = Replay(generator(), slots=2), Replay(generator(), slots=3)
    run(replay, [1.0, 1.0])
    with pytest.raises(ValueError, match="has 3 slots, its state has 2"):
        other.load_state_dict(replay.state_dict())
    with pytest.raises(ValueError, match="go on with the data of the start"):
        replay.mix({"inputs": torch.zeros(1, 1, 4, 4), "mask": torch.zeros(1, 1, dtype=torch.bool)})


def test_impossible_settings_are_refused():
    for options in ({"slots": 0}, {"probability": 1.5}, {"share": -0.1}):
        with pytest.raises(ValueError, match="replay needs slots >= 1"):
            Replay(generator(), **options)
