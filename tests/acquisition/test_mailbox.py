from __future__ import annotations

import threading

from lowdose.acquisition.mailbox import LatestOnly


def test_the_newest_item_takes_the_place_of_those_nobody_took_and_they_are_counted():
    box = LatestOnly()
    for item in ("a", "b", "c"):
        box.put(item)
    assert (box.take(), box.overwritten) == ("c", 2)


def test_an_item_is_taken_once():
    box = LatestOnly()
    box.put("a")
    assert [box.take(), box.take()] == ["a", None]
    box.put("b")
    assert (box.take(), box.overwritten) == ("b", 0)


def test_an_item_that_is_false_is_an_item():
    box = LatestOnly()
    box.put(0)
    box.put(0)
    assert (box.take(), box.overwritten) == (0, 1)


def test_take_gives_up_after_its_timeout():
    assert LatestOnly().take(timeout_s=0.001) is None


def test_take_is_woken_by_a_put_from_another_thread():
    box, taken = LatestOnly(), []
    taker = threading.Thread(target=lambda: taken.append(box.take(timeout_s=10)))
    taker.start()
    box.put("a")
    taker.join(timeout=5)
    assert taken == ["a"]
