from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowdose.scan_patterns.dose import ELECTRONS_PER_PA_US
from lowdose.simulator.detector import USUAL_DETECTORS, Detector, Readout
from tests.strategies import quick

N = 200_000


def numbers(detector, expected, *, seed=0, waits_us=None, dwell_us=1.0, first=0):
    expected = np.asarray(expected, np.float32)
    waits = np.zeros(len(expected)) if waits_us is None else waits_us
    readout = Readout(detector, np.random.default_rng(seed))
    return readout.read(expected, np.full(len(expected), dwell_us, np.float32), waits, first).astype(float)


@pytest.mark.parametrize("mean", [0.5, 4.0, 30.0])
def test_counting_noise_has_the_variance_of_its_mean(mean):
    counts = numbers(Detector(), np.full(N, mean))
    assert counts.mean() == pytest.approx(mean, rel=0.01)
    assert counts.var() == pytest.approx(mean, rel=0.02)


def test_gain_and_read_noise_are_recovered_from_the_photon_transfer_curve():
    detector = Detector(gain=7.0, offset=100.0, read_noise=12.0)
    means, variances = zip(
        *((n.mean(), n.var()) for n in (numbers(detector, np.full(N, m)) for m in (5, 20, 80, 300))), strict=True
    )
    gain, at_zero = np.polyfit(means, variances, 1)
    assert gain == pytest.approx(7.0, rel=0.02)
    assert at_zero + gain * 100.0 == pytest.approx(12.0**2, rel=0.15)  # variance = gain (mean - offset) + noise^2


def test_without_poisson_the_image_itself_is_replayed():
    assert numbers(Detector(poisson=False), [0.0, 1.2, 3.7, 200.0]).tolist() == [0, 1, 4, 200]


@pytest.mark.parametrize(("bits", "most"), [(8, 255), (16, 65_535)])
def test_what_the_converter_cannot_tell_saturates(bits, most):
    assert numbers(Detector(bits=bits), [1e6, 1e6]).tolist() == [most, most]


def test_noise_below_zero_is_cut_off():
    assert numbers(Detector(read_noise=50.0), np.zeros(1000)).min() == 0


def test_afterglow_is_recovered_from_the_trail_of_a_bright_line():
    detector = Detector(poisson=False, afterglow=0.3, afterglow_us=10.0, gain=100.0)
    trail = numbers(detector, [600.0] + [0.0] * 60)
    decay_us = -1 / np.polyfit(np.arange(1, 30), np.log(trail[1:30]), 1)[0]
    assert decay_us == pytest.approx(10.0, rel=0.01)
    late = trail[1:].sum() / trail.sum()
    assert late == pytest.approx(0.3 * 10 * (1 - np.exp(-0.1)), rel=0.01)  # 5 % of it came within its own dwell
    assert trail.sum() == pytest.approx(60_000, rel=0.003)  # nothing is lost


def test_afterglow_goes_on_from_block_to_block():
    whole = numbers(Detector(poisson=False, afterglow=0.3, gain=100.0), [50.0, 0, 0, 0, 20.0, 0])
    readout = Readout(Detector(poisson=False, afterglow=0.3, gain=100.0), np.random.default_rng(0))
    one = np.ones(3, np.float32)
    parts = [readout.read(np.array(p, np.float32), one, np.zeros(3), 0) for p in ([50.0, 0, 0], [0, 20.0, 0])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_afterglow_fades_unseen_while_nothing_is_read():
    detector = Detector(poisson=False, afterglow=0.5, afterglow_us=10.0, gain=1000.0)
    without, waiting = (numbers(detector, [50.0, 0.0], waits_us=np.array([0.0, wait]))[1] for wait in (0.0, 20.0))
    assert waiting / without == pytest.approx(np.exp(-2), rel=0.01)


def test_interleaved_converters_draw_every_second_column():
    counts = numbers(Detector(poisson=False, interleave=0.1), np.full(100, 1000.0), first=6)
    assert counts[::2].mean() == 950
    assert counts[1::2].mean() == 1050


@given(share=st.floats(0, 1))
@quick
def test_bright_field_sees_what_the_others_do_not(share):
    share = np.array([share], np.float32)
    bf, adf, haadf = (USUAL_DETECTORS[name].signal(share)[0] for name in ("BF", "ADF", "HAADF"))
    assert bf == pytest.approx(1 - 0.8 * haadf, abs=1e-6)
    assert adf >= haadf - 1e-6


def test_expected_electrons_follow_current_dwell_and_efficiency():
    mean = Detector(0.2).expected_electrons(np.ones(2, np.float32), np.array([1.0, 3.0], np.float32), 10.0)
    assert mean == pytest.approx(0.2 * 10 * ELECTRONS_PER_PA_US * np.array([1, 3]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"efficiency": 0.0}, "efficiency must be > 0"),
        ({"kind": "edx"}, "kind must be"),
        ({"bits": 12}, "bits must be 8 or 16"),
        ({"read_noise": -1.0}, "read_noise >= 0"),
        ({"afterglow": 1.0}, "afterglow must be >= 0 and < 1"),
        ({"afterglow_us": 0.0}, "afterglow_us must be > 0"),
        ({"interleave": 2.0}, "interleave must be between"),
        ({"gain": float("nan")}, "gain must be > 0"),
    ],
)
def test_a_detector_out_of_bounds_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Detector(**wrong)
