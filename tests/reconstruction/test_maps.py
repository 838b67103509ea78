from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from lowdose.reconstruction import maps
from lowdose.reconstruction.infill import InfillMap
from lowdose.reconstruction.maps import MapCache, maps_at_once
from tests.reconstruction.lattices import interlaced_scan


@pytest.fixture
def gate(monkeypatch):
    """Hold back every triangulation until the gate is set; count them."""
    gate, real = threading.Event(), maps.linear_map
    gate.asked = []

    def held_back(mask, nearest):
        gate.asked.append(mask)
        gate.wait(10)
        return real(mask, nearest)

    monkeypatch.setattr(maps, "linear_map", held_back)
    yield gate
    gate.set()


@pytest.fixture
def cache(gate):
    cache = MapCache()
    yield cache
    gate.set()
    cache.close()


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def random_mask(seed=0):
    return np.random.default_rng(seed).random((24, 30)) < 0.1


def test_a_cycle_of_1024_lattices_has_all_its_maps_without_waiting_and_fills_no_cache(cache, gate):
    for path in interlaced_scan((64, 64), 32).paths:
        found = cache.get(path.digest, path.mask)
        assert found.linear is not None
        np.testing.assert_array_equal(found.linear.visited, np.flatnonzero(path.mask))
    assert not cache._kept
    assert not gate.asked


def test_lattices_push_no_other_map_out(cache):
    kept = cache.get("irregular", random_mask())
    for path in interlaced_scan((24, 24), 4).paths:
        cache.get(path.digest, path.mask)
    assert cache.get("irregular", random_mask()) is kept


def test_an_irregular_mask_is_triangulated_in_the_background_once(cache, gate):
    assert cache.get("irregular", random_mask()).linear is None
    gate.set()
    wait_until(lambda: cache.get("irregular", random_mask()).linear is not None)
    found = cache.get("irregular", random_mask())
    assert isinstance(found.linear, InfillMap)
    assert found.linear.weights is not None
    assert len(gate.asked) == 1


def test_maps_may_be_waited_for_and_not_for_ever(cache, gate):
    assert cache.wait("irregular", random_mask(), timeout_s=0.01).linear is None
    gate.set()
    assert cache.wait("irregular", random_mask(), timeout_s=10).linear is not None
    assert len(gate.asked) == 1


def test_a_triangulation_that_fails_leaves_nearest(cache, monkeypatch, caplog):
    monkeypatch.setattr(maps, "linear_map", lambda mask, nearest: 1 / 0)
    cache.get("irregular", random_mask())
    wait_until(lambda: "no linear infill" in caplog.text)
    assert cache.get("irregular", random_mask()).linear is None


def test_only_the_newest_irregular_maps_are_kept_as_many_as_have_room(cache, monkeypatch):
    monkeypatch.setattr(maps, "PIXELS_KEPT", 4 * random_mask().size)
    for k in range(7):
        cache.get(str(k), random_mask(k))
    assert list(cache._kept) == [str(k) for k in range(3, 7)]


def test_a_single_path_larger_than_the_room_is_kept(cache, monkeypatch):
    monkeypatch.setattr(maps, "PIXELS_KEPT", 1)
    assert cache.get("large", random_mask()) is cache.get("large", random_mask())


def test_every_path_of_a_long_irregular_cycle_gets_its_linear_map_once(cache, gate):
    gate.set()
    cycle = {str(k): random_mask(k) for k in range(16)}
    wait_until(lambda: all(cache.get(digest, mask).linear is not None for digest, mask in cycle.items()))
    assert len(gate.asked) == 16


def test_what_is_pushed_out_before_its_turn_is_not_computed(cache, gate, monkeypatch):
    monkeypatch.setattr(maps, "PIXELS_KEPT", random_mask().size)
    cache.get("first", random_mask(0))
    wait_until(lambda: len(gate.asked) == 1)
    cache.get("second", random_mask(1))
    cache.get("third", random_mask(2))
    gate.set()
    wait_until(lambda: cache.get("third", random_mask(2)).linear is not None)
    assert len(gate.asked) == 2


def test_a_mask_with_a_hole_has_no_linear_map_at_once():
    mask = interlaced_scan((20, 20), 4).paths[5].mask.copy()
    assert maps_at_once(mask).linear is not None
    mask.reshape(-1)[np.flatnonzero(mask)[7]] = False
    assert maps_at_once(mask).linear is None
    np.testing.assert_array_equal(maps_at_once(mask).nearest.visited, np.flatnonzero(mask))
