"""Nanostructures and biological specimens: what makes each of them what it is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label

from lowdose.scan_patterns import ScanGrid
from lowdose.simulator import nanostructures
from lowdose.simulator.biological import SCENES, Biological
from lowdose.simulator.canvas import Canvas
from lowdose.simulator.nanostructures import (
    CoreShell,
    GoldIslands,
    Holes,
    Nanoparticles,
    SingleAtoms,
    add_solid,
    gold_grains,
    place_atoms,
)

GRID = ScanGrid((256, 256), pixel_size_nm=0.1)


def image_of(spec, grid=GRID):
    return spec.open(grid).frame(0.0)


@pytest.mark.parametrize("coverage", [0.3, 0.5, 0.7])
def test_gold_covers_its_share_of_the_field(coverage):
    image = image_of(GoldIslands(2, coverage=coverage, width=0.06))
    assert (image > 0.25).mean() == pytest.approx(coverage, abs=0.1)


def test_islands_join_as_their_coverage_grows():
    def largest(coverage):
        islands, _ = label(image_of(GoldIslands(2, coverage=coverage, width=0.06)) > 0.25)
        return np.bincount(islands.ravel())[1:].max() / np.count_nonzero(islands)

    assert largest(0.3) < 0.3
    assert largest(0.7) > 0.9


def test_gold_has_grains_of_different_brightness_and_fringes_only_when_resolved():
    fine, coarse = (gold_grains(Canvas(ScanGrid((128, 128), px)), 2.0, np.random.default_rng(1)) for px in (0.05, 0.2))
    assert np.isfinite(fine).all()
    assert coarse.std() > 0.05
    assert np.abs(np.diff(fine, axis=1)).mean() > np.abs(np.diff(coarse, axis=1)).mean()


@pytest.mark.parametrize(("core_z", "shell_z", "core_brighter"), [(79, 14, True), (79, 47, True), (0, 78, False)])
@pytest.mark.parametrize("shape", ["round", "cubic"])
def test_core_or_rim_is_bright_by_the_atomic_numbers(shape, core_z, shell_z, core_brighter, monkeypatch):
    monkeypatch.setattr(nanostructures, "scatter", lambda canvas, spacing_nm, rng: [(12.8, 12.8)])
    spec = CoreShell(3, shape, core_z=core_z, shell_z=shell_z, diameter=0.5, shell_share=0.3)
    line = image_of(spec)[124:132].mean(axis=0) - 0.14  # vacuum and film
    rim = round(12.8 / 0.1 - 0.84 * np.count_nonzero(line > 0.05) / 2)
    assert line[rim] > 0.02
    assert (line[128] > 1.15 * line[rim]) == core_brighter
    assert (line[128] < 0.85 * line[rim]) != core_brighter


def test_ball_is_as_thick_as_wide():
    canvas, image = Canvas(GRID), np.zeros(GRID.shape, np.float32)
    add_solid(canvas, image, (12.85, 12.85), 5.0, 0.0, 2.0, cubic=False)
    assert image.max() == pytest.approx(20, rel=1e-3)
    assert (image > 0).sum() * 0.01 == pytest.approx(25 * np.pi, rel=0.02)


def test_atoms_are_as_many_as_asked_and_stay_dots():
    canvas = Canvas(GRID)
    atoms = place_atoms(canvas, 0.5, 0.4, np.random.default_rng(1))
    assert len(atoms) == round(0.5 * 25.6**2)
    without, with_atoms = (
        image_of(SingleAtoms(1, per_nm2=n, clusters=0, probe_nm=0.1), ScanGrid((256, 256), 0.03)) for n in (0, 0.5)
    )
    dots, n = label(with_atoms - without > 0.05)
    assert n == pytest.approx(0.5 * 7.68**2, rel=0.3)
    assert 0.002 < (dots > 0).mean() < 0.1


def test_holes_are_vacuum_and_fuller_films_have_more_of_it():
    open_shares = [(image_of(Holes(3, spacing=0.25, fill=fill)) < 0.0501).mean() for fill in (0.0, 0.7, 1.05)]
    assert open_shares[0] < 0.02
    assert open_shares[0] < open_shares[1] < open_shares[2] < 0.9


def test_particles_are_of_the_size_asked_for():
    small, large = (image_of(Nanoparticles(1, particles=20, diameter=d)) for d in (0.05, 0.13))
    assert 3 * (small > 0.25).mean() < (large > 0.25).mean()


@pytest.mark.parametrize("scene", SCENES)
def test_biological_matter_is_of_low_contrast_about_its_background(scene):
    image = image_of(Biological(1, scene=scene, background=0.25, contrast=0.2))
    assert image.mean() == pytest.approx(0.25, rel=0.25)
    assert 0.005 < image.std() < 0.06


def test_details_grow_with_their_contrast():
    plain, faint, strong = (image_of(Biological(1, scene="vesicles", contrast=c)) for c in (0, 0.1, 0.4))
    np.testing.assert_allclose(strong - plain, 4 * (faint - plain), atol=1e-5)
    assert (strong - plain).max() > 0.02


def test_unknown_scene_is_refused():
    with pytest.raises(ValueError, match="unknown scene 'tissues': did you mean 'tissue'"):
        Biological(scene="tissues")
