from __future__ import annotations

import json

import numpy as np
import pytest

from lowdose.simulator.drift import Motion, read_track

TIMES_S = np.linspace(0, 3, 61)


def moved(motion, times_s=TIMES_S):
    return motion.start().moved_nm(np.asarray(times_s, float))


def test_nothing_moves_by_default():
    assert Motion().still
    assert not moved(Motion()).any()


def test_constant_drift_and_vibration_add_up():
    motion = Motion(drift_nm_per_s=(0.5, -1.0), vibration_nm=(0.0, 0.2), vibration_hz=2.0)
    expected = np.stack([0.5 * TIMES_S, -TIMES_S + 0.2 * np.sin(4 * np.pi * TIMES_S)], axis=1)
    assert moved(motion) == pytest.approx(expected, abs=1e-9)


def test_a_random_walk_spreads_with_the_root_of_time():
    ends = np.array([moved(Motion(walk_nm=0.3, seed=seed), [1.0, 4.0]) for seed in range(300)])
    assert ends.std(axis=(0, 2)) == pytest.approx([0.3, 0.6], rel=0.1)


def test_a_random_walk_is_the_same_in_whatever_order_it_is_asked():
    motion = Motion(walk_nm=0.3, seed=3)
    forward, backward = motion.start(), motion.start()
    ahead = np.concatenate([forward.moved_nm(np.array([t])) for t in TIMES_S * 20])
    back = np.concatenate([backward.moved_nm(np.array([t])) for t in TIMES_S[::-1] * 20])[::-1]
    assert ahead == pytest.approx(back)


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_measured_track_is_followed_and_held_at_its_ends(tmp_path, suffix):
    file = tmp_path / f"track.{suffix}"
    if suffix == "csv":
        file.write_text("row_nm,t_s,col_nm\n0,0,5\n2,1,5\n2,2,9\n", encoding="utf-8")
    else:
        file.write_text(json.dumps({"t_s": [0, 1, 2], "row_nm": [0, 2, 2], "col_nm": [5, 5, 9]}), encoding="utf-8")
    got = moved(Motion(track=str(file)), [-1, 0.5, 1.5, 7])
    assert got.tolist() == [[0, 5], [1, 5], [2, 7], [2, 9]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("no.csv", None, "is no file"),
        ("x.csv", "time,x,y\n1,2,3\n", "the header is 'time,x,y'"),
        ("x.csv", "t_s,row_nm,col_nm\n0,0,0\n0,1,1\n", "t_s increasing"),
        ("x.csv", "t_s,row_nm,col_nm\n0,0,nan\n", "finite"),
        ("x.csv", "t_s,row_nm,col_nm\n0,0\n", "expected columns|expected 3 columns"),
        ("x.csv", "t_s,row_nm,col_nm\n", "expected"),
        ("x.json", "[1, 2]", "expected columns"),
        ("x.json", '{"t_s": [0], "row_nm": [0]}', "expected columns"),
        ("x.json", '{"t_s": ["a"], "row_nm": [0], "col_nm": [0]}', "expected columns"),
        ("x.json", "{", "expected columns"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_a_track_that_cannot_be_read_is_refused_in_words(tmp_path, name, text, message):
    file = tmp_path / name
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_track(file)


@pytest.mark.parametrize(
    "wrong", [{"drift_nm_per_s": (float("nan"), 0)}, {"walk_nm": -1}, {"vibration_hz": 0}, {"walk_nm": float("inf")}]
)
def test_motion_out_of_bounds_is_refused(wrong):
    with pytest.raises(ValueError, match="must be finite"):
        Motion(**wrong)
