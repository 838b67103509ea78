"""Lattices and interfaces: spacings, contrast by atomic number, and defects where they should be."""

from __future__ import annotations

import numpy as np
import pytest

from lowdose.scan_patterns import ScanGrid
from lowdose.simulator.canvas import Canvas, blur
from lowdose.simulator.crystals import CRYSTALS, PAIRS, cells_within, rotation, scattering
from lowdose.simulator.defects import column_signals, dislocate, edge_dislocation, grain_centres, within_grain
from lowdose.simulator.interfaces import Interface
from lowdose.simulator.lattices import Lattice

GRID = ScanGrid((512, 512), pixel_size_nm=0.04)
PERFECT = {"strain": 0, "tilt_mrad": 0, "vacancies": 0, "dopants": 0, "dislocations": 0, "grains": 1, "vacuum": 0}


def image_of(grid=GRID, seed=1, **parameters):
    return Lattice(seed, **(PERFECT | parameters)).open(grid).frame(0.0).astype(float)


def columns_of(grid=GRID, **parameters):
    spec = Lattice(**(PERFECT | {"crystal": "srtio3", "rotation_deg": 0} | parameters))
    return spec.columns(Canvas(grid), CRYSTALS[spec.crystal], np.random.default_rng(1))


def power_of(image):
    window = np.outer(*(np.hanning(n) for n in image.shape))
    return np.abs(np.fft.fft2((image - image.mean()) * window, s=(1024, 1024))) ** 2


def strongest_spacing(image, pixel_size_nm, longest_nm):
    """Return the spacing of the strongest planes closer than `longest_nm` [nm]."""
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(1024, pixel_size_nm)] * 2, indexing="ij"))
    power = power_of(image) * (frequency > 1 / longest_nm)
    return 1 / frequency.flat[power.argmax()]


# canvas


def test_peaks_keep_their_height_wherever_they_lie_in_a_pixel():
    canvas = Canvas(ScanGrid((40, 40), pixel_size_nm=1.0))
    for sigma in (0.8, 2.0, 6.0):  # deposited, deposited, outer product
        sums = [
            canvas.peaks(np.array([[20 + shift, 20.3]]), np.array([1.0]), sigma).sum()
            for shift in (0.0, 0.27, 0.5, 0.9)
        ]
        np.testing.assert_allclose(sums, 2 * np.pi * sigma**2, rtol=1e-2)


def test_deposited_and_multiplied_peaks_agree():
    positions, heights = np.random.default_rng(1).uniform(0, 40, (30, 2)), np.ones(30)
    canvas = Canvas(ScanGrid((40, 40), pixel_size_nm=1.0))
    deposited, multiplied = (canvas.peaks(positions, heights, sigma) for sigma in (3.0, 3.0001))
    inner = slice(8, -8)  # the blur mirrors at the rim
    np.testing.assert_allclose(deposited[inner, inner], multiplied[inner, inner], atol=0.02 * multiplied.max())


def test_blur_keeps_the_mean_and_spreads_a_point_as_a_gaussian():
    image = np.zeros((31, 33), np.float32)
    image[15, 16] = 1
    blurred = blur(image, 2.0)
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    assert blurred[15, 18] / blurred[15, 16] == pytest.approx(np.exp(-0.5), rel=1e-3)


# spacing and contrast


@pytest.mark.parametrize(
    ("crystal", "spacing_nm"),
    [("silicon", 0.5431 / 3**0.5), ("gold", 0.4078 / 3**0.5), ("mos2", 0.316 * 3**0.5 / 2), ("graphene", 0.2130)],
)
def test_spacing_of_the_planes_is_that_of_the_crystal(crystal, spacing_nm):
    spacing = strongest_spacing(image_of(crystal=crystal, probe_nm=0.08), 0.04, 1.02 * spacing_nm)
    assert spacing == pytest.approx(spacing_nm, rel=0.01)


def test_rotation_turns_the_lattice():
    straight, turned = (power_of(image_of(crystal="srtio3", rotation_deg=angle)) for angle in (0, 30))
    k = np.fft.fftfreq(1024, 0.04)
    near = (np.hypot(*np.meshgrid(k, k, indexing="ij")) - 1 / 0.2761) ** 2 < 0.01
    angles = [
        np.degrees(np.arctan2(k[i], k[j])) % 90
        for i, j in (np.unravel_index((power * near).argmax(), power.shape) for power in (straight, turned))
    ]
    assert (angles[1] - angles[0]) % 90 in (pytest.approx(30, abs=0.5), pytest.approx(60, abs=0.5))


def test_lattice_is_left_out_when_not_resolved():
    image = image_of(ScanGrid((256, 256), pixel_size_nm=0.2), crystal="srtio3")
    assert np.abs(np.diff(image, axis=1)).max() < 0.01


def test_signal_goes_with_the_atomic_number_to_the_power_of_1_7():
    assert scattering(74) / scattering(42) == pytest.approx((74 / 42) ** 1.7)
    fine, keys = ScanGrid((256, 256), pixel_size_nm=0.01), {"crystal": "wse2", "probe_nm": 0.07, "seed": 6}
    pure, doped = (image_of(fine, dopants=share, **keys) for share in (0, 0.1))  # molybdenum for tungsten
    at = np.unravel_index((pure - doped).argmax(), pure.shape)
    dark = np.quantile(pure, 0.02)
    assert (doped[at] - dark) / (pure[at] - dark) == pytest.approx((42 / 74) ** 1.7, rel=0.05)


def test_columns_of_a_perovskite_have_two_brightnesses_by_their_atoms():
    canvas = Canvas(ScanGrid((400, 400), pixel_size_nm=0.01))
    crystal = CRYSTALS["srtio3"]
    columns = columns_of(ScanGrid((400, 400), pixel_size_nm=0.01))
    image = canvas.peaks(columns.positions_nm, crystal.signals[columns.sites], 0.04)
    inside = columns.where(((columns.positions_nm > 0.3) & (columns.positions_nm < 3.7)).all(axis=1))
    seen = canvas.sample(image, inside.positions_nm)
    ratio = seen[inside.sites == 0].mean() / seen[inside.sites == 1].mean()
    assert ratio == pytest.approx(38**1.7 / (22**1.7 + 8**1.7), rel=0.02)


# defects


def test_vacancy_is_a_column_less():
    fine = ScanGrid((256, 256), pixel_size_nm=0.02)
    whole, holed = (image_of(fine, crystal="mos2", vacancies=v, probe_nm=0.07) for v in (0, 0.03))
    missing = whole - holed
    at = np.unravel_index(missing.argmax(), missing.shape)
    assert missing.min() > -1e-6
    assert holed[at] < 0.3 * whole[at]
    assert 0 < (missing > 0.5 * missing.max()).mean() < 0.03


def test_shares_of_vacancies_and_dopants_are_met():
    host = np.ones(20_000)
    signals = column_signals(host, 2 * host, vacancies=0.1, dopants=0.3, roughness=0, rng=np.random.default_rng(0))
    assert (signals == 0).mean() == pytest.approx(0.1, abs=0.01)
    assert (signals == 2).mean() == pytest.approx(0.27, abs=0.01)


def test_burgers_circuit_around_a_dislocation_misses_by_its_vector():
    burgers = np.array([0.0, 0.39])
    angle = np.radians(np.linspace(-179.999, 179.999, 2001))
    circuit = 5 * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    moved = edge_dislocation(circuit, burgers)
    np.testing.assert_allclose(moved[-1] - moved[0], burgers, atol=1e-4)
    assert np.abs(np.diff(moved, axis=0)).max() < 0.01  # nowhere else a jump


def test_dislocation_ends_an_extra_half_plane():
    a = CRYSTALS["srtio3"].vectors_nm
    perfect = cells_within(a, (8.0, 8.0)) + a.sum(axis=0) / 2
    moved = dislocate(perfect, np.array([[0.0, 0.0]]), a[0])
    counts = [
        ((np.abs(moved[:, 0] - row) < 0.5 * a[1, 0]) & (np.abs(moved[:, 1]) < 6)).sum()
        for row in (-4 * a[1, 0], 4 * a[1, 0])
    ]
    assert abs(counts[0] - counts[1]) == 1


def test_crystal_stays_whole_behind_a_dislocation():
    a = CRYSTALS["srtio3"].vectors_nm
    moved = dislocate(cells_within(a, (8.0, 8.0)) + a.sum(axis=0) / 2, np.array([[0.0, 0.0]]), a[0])
    far = moved[(np.abs(moved) < 6).all(axis=1) & (np.hypot(*moved.T) > 1.5)]
    nearest = np.sort(np.linalg.norm(far[:, None] - moved, axis=-1), axis=1)[:, 1]
    assert nearest.min() > 0.8 * 0.3905
    assert nearest.max() < 1.2 * 0.3905


def test_grains_fill_the_field_but_for_their_seams():
    one, three = (columns_of(grains=n) for n in (1, 3))
    assert 0.93 * len(one) < len(three) < len(one)
    gaps = np.sort(np.linalg.norm(three.positions_nm[:500, None] - three.positions_nm, axis=-1), axis=1)[:, 1]
    assert gaps.min() > 0.09


def test_every_position_is_in_one_grain():
    centres = grain_centres(Canvas(GRID), 4, np.random.default_rng(0))
    positions = np.random.default_rng(1).uniform(0, 20, (1000, 2))
    owners = sum(within_grain(positions, centres, i, 0.0).astype(int) for i in range(4))
    assert (owners == 1).all()


def test_strain_moves_columns_smoothly():
    still, moved = columns_of(), columns_of(strain=0.01)
    shift = moved.positions_nm - still.positions_nm
    assert 0.01 < np.abs(shift).max() < 0.15
    near = np.linalg.norm(still.positions_nm[:-1] - still.positions_nm[1:], axis=1) < 0.6
    assert np.abs(np.diff(shift, axis=0))[near].max() < 0.06 * 0.6


def test_tilt_makes_columns_oblong_and_keeps_their_sum():
    fine = ScanGrid((256, 256), pixel_size_nm=0.02)
    upright, tilted = (image_of(fine, crystal="gold", tilt_mrad=tilt, probe_nm=0.07) for tilt in (0, 12))
    assert tilted.max() < 0.95 * upright.max()
    assert tilted.mean() == pytest.approx(upright.mean(), rel=0.01)


def test_vacuum_is_dark_and_takes_its_share():
    image = image_of(crystal="graphene", vacuum=0.4)
    blurred = blur(image.astype(np.float32), 5)
    assert 0.15 < (blurred < 0.06).mean() < 0.55


def test_wide_probe_shows_no_lattice():
    image = image_of(crystal="srtio3", probe_nm=0.9)
    assert np.abs(np.diff(image, axis=1)).max() < 0.03


def test_cells_cover_the_rectangle_they_are_asked_for():
    vectors = CRYSTALS["graphene"].vectors_nm @ rotation(17)
    cells = cells_within(vectors, (3.0, 5.0))
    assert len(cells) == pytest.approx(60 / CRYSTALS["graphene"].area_nm2, rel=0.03)
    assert (np.abs(cells) <= (3.0, 5.0)).all()


def test_unknown_crystal_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown crystal 'silicone': did you mean 'silicon'\?"):
        Lattice(crystal="silicone")


def test_fixing_one_parameter_changes_no_other():
    drawn = Lattice(3, crystal="srtio3").open(GRID).frame(0.0)
    rng = np.random.default_rng(3)
    Lattice().choice("crystal", rng)
    probe_nm = Lattice().value("probe_nm", rng)
    np.testing.assert_array_equal(Lattice(3, crystal="srtio3", probe_nm=probe_nm).open(GRID).frame(0.0), drawn)


# interfaces


@pytest.mark.parametrize("pair", PAIRS)
def test_layers_of_a_stack_differ_in_brightness(pair):
    image = Interface(2, pair=pair, rotation_deg=0, interfaces=1, intermixing_nm=0, misfit_dislocations=0).open(GRID)
    rows = np.convolve(image.frame(0.0).mean(axis=1), np.ones(32) / 32, mode="valid")
    assert rows.max() > 1.08 * rows.min()


def test_layers_keep_step_along_and_have_their_own_spacing_across():
    spec = Interface(4, pair="pbtio3_srtio3", rotation_deg=0, interfaces=1, intermixing_nm=0, misfit_dislocations=0)
    image = spec.open(ScanGrid((1024, 512), pixel_size_nm=0.02)).frame(0.0).astype(float)
    spectrum = [np.abs(np.fft.rfft(part.mean(axis=1) - part.mean(), 8192)) for part in (image[:300], image[-300:])]
    peaks = sorted(8192 * 0.02 / (200 + s[200:600].argmax()) for s in spectrum)
    assert peaks == [pytest.approx(0.3905, rel=0.02), pytest.approx(0.4156, rel=0.02)]
    along = [
        np.abs(np.fft.rfft(part.mean(axis=0) - part.mean(), 8192))[200:600].argmax()
        for part in (image[:300], image[-300:])
    ]
    assert abs(along[0] - along[1]) <= 2


def test_unknown_pair_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown pair 'gaas_inp': did you mean 'inp_gaas'\?"):
        Interface(pair="gaas_inp")
