from collections import Counter

from lowdose.acquisition.display.keys import KEYS


def test_no_key_means_two_things():
    assert max(Counter(key.lower() for row in KEYS for key in row.keys).values()) == 1


def test_no_action_has_two_rows():
    assert max(Counter(row.action for row in KEYS).values()) == 1


def test_blank_works_everywhere():
    blank = next(row for row in KEYS if row.action == "blank")
    assert blank.keys == ("B", "Esc")
    assert blank.everywhere
