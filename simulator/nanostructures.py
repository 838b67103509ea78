"""Nanostructures: gold islands, particles, single atoms and holes, on films (imports numpy and scipy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy.special import ndtri

from lowdose.simulator.canvas import FWHM, Canvas, blur
from lowdose.simulator.crystals import scattering
from lowdose.simulator.drawn import FILM, VACUUM, Drawn, Span, branches, film_thickness, share_of_full_scale
from lowdose.simulator.specimen import add_particles, draw_film, make_hole, make_particles

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

GOLD_PLANES_NM = 0.2355
"""{111} of gold [nm]."""

FRINGE_CONTRAST = 0.18


@dataclass(frozen=True, slots=True)
class Nanoparticles(Drawn):
    """Facetted metal particles on an amorphous film with a hole, as `Procedural`, in any number and size.

    Parameters
    ----------
    seed : int
        Of everything random in it, >= 0.
    particles : int, optional
        In the field; drawn from 8 to 45.
    diameter : float, optional
        Median diameter as a share of the field's edge; drawn from 0.05 to 0.13.
    """

    SPANS: ClassVar[Mapping[str, Span]] = {"particles": Span(8, 45, 1, 2000), "diameter": Span(0.05, 0.13, 0.005, 1)}

    particles: int | None = None
    diameter: float | None = None

    def draw(self, grid: ScanGrid, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the specimen as share of full scale, (rows, cols) float32 in [0, 1]."""
        canvas = Canvas(grid)
        n, diameter = self.count("particles", rng), self.value("diameter", rng)
        hole = make_hole(canvas, rng)
        film = draw_film(canvas, hole, rng)
        particles = make_particles(canvas, hole, rng, n=n, diameter=diameter)
        return add_particles(canvas, film, particles, diameter * canvas.edge_nm)


@dataclass(frozen=True, slots=True)
class GoldIslands(Drawn):
    """Evaporated gold on carbon: islands of many grains, which join to a film as their coverage grows.

    Parameters
    ----------
    seed : int
        Of everything random in it, >= 0.
    coverage : float, optional
        Share of the field under gold; drawn from 0.3 to 0.75. Islands join at about one half.
    width : float, optional
        Distance between islands as a share of the field's edge; drawn from 0.05 to 0.14.
    """

    SPANS: ClassVar[Mapping[str, Span]] = {"coverage": Span(0.3, 0.75, 0.01, 0.99), "width": Span(0.05, 0.14, 0.01, 1)}

    coverage: float | None = None
    width: float | None = None

    def draw(self, grid: ScanGrid, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the specimen as share of full scale, (rows, cols) float32 in [0, 1]."""
        canvas = Canvas(grid)
        coverage, width_nm = self.value("coverage", rng), self.value("width", rng) * canvas.edge_nm
        for_shape, for_grains, for_film = branches(rng, 3)
        level = rng.uniform(0.55, 0.85)
        height = canvas.waves(width_nm * for_shape.uniform(0.7, 1.4, 64), for_shape)
        height -= np.float32(ndtri(1 - coverage))
        np.clip(height, 0, None, out=height)
        rounded = np.sqrt(-np.expm1(np.float32(-2.2) * height))  # steep at its rim, flat on its top
        gold = rounded * gold_grains(canvas, 0.85 * width_nm, for_grains)
        film = np.float32(FILM) * film_thickness(canvas, for_film)
        film += np.float32(VACUUM)
        film += np.float32(level) * blur(gold, 0.6)
        return share_of_full_scale(film)


def gold_grains(canvas: Canvas, size_nm: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the brightness of a film of grains, about 1: by orientation, with fringes and dark boundaries.

    Grains are the cells of a Voronoi diagram of a jittered lattice of about `size_nm`.
    """
    nearest = np.full(canvas.shape, 4 * size_nm**2, np.float32)
    second, image = 2 * nearest, np.ones(canvas.shape, np.float32)
    fringes = np.float32(FRINGE_CONTRAST * canvas.resolved(GOLD_PLANES_NM))
    centres = jittered(canvas, size_nm, rng, jitter=0.75)
    draws = rng.uniform([0.72, 0, 0], [1.05, math.pi, 1], (len(centres), 3))
    for centre, (shine, angle, tilted) in zip(centres, draws, strict=True):
        index, row, col = canvas.patch(centre, 1.25 * size_nm)
        distance, first = row**2 + col**2, nearest[index]
        closer = distance < first
        np.minimum(second[index], np.maximum(distance, first), out=second[index])
        np.minimum(first, distance, out=first)
        brightness: NDArray[np.float32] | np.float32 = np.float32(shine)
        if fringes > 0 and tilted < 0.5:
            k = 2 * math.pi / GOLD_PLANES_NM
            phase = np.float32(k * math.sin(angle)) * row + np.float32(k * math.cos(angle)) * col
            brightness = brightness * (1 + fringes * np.cos(phase))
        image[index] = np.where(closer, brightness, image[index])
    groove = np.sqrt(second) - np.sqrt(nearest)
    image *= 0.8 + np.float32(0.2) * canvas.ramp(groove - np.float32(0.05 * size_nm), 0.1 * size_nm)
    return image


def jittered(
    canvas: Canvas, spacing_nm: float, rng: np.random.Generator, *, jitter: float = 1.0
) -> list[tuple[float, float]]:
    """Return points all over the field and just around it, one in every square of a lattice, (row, col) [nm].

    They lie anywhere in the middle of their square, `jitter` times as wide as it.
    """
    n_rows, n_cols = (max(1, round(n / spacing_nm)) + 2 for n in canvas.fov_nm)
    corners = np.stack(np.meshgrid(np.arange(n_rows) - 1, np.arange(n_cols) - 1, indexing="ij"), axis=-1)
    points = (corners + 0.5 + jitter * rng.uniform(-0.5, 0.5, corners.shape)).reshape(-1, 2) * spacing_nm
    return [(float(row), float(col)) for row, col in points]


@dataclass(frozen=True, slots=True)
class CoreShell(Drawn):
    """Round or cubic particles with a core of another metal than their shell, or a void, on an amorphous film.

    Parameters
    ----------
    seed : int
        Of everything random in it, >= 0.
    shape : "round" or "cubic", optional
        Drawn.
    core_z, shell_z : int, optional
        Atomic numbers, 0 for a void; drawn from gold in silver or palladium, palladium in gold, silver in
        silica, iron in platinum, platinum round a void.
    diameter : float, optional
        Median outer diameter as a share of the field's edge; drawn from 0.08 to 0.22.
    shell_share : float, optional
        Thickness of the shell as a share of the outer radius; drawn from 0.15 to 0.5.
    """

    SPANS: ClassVar[Mapping[str, Span]] = {
        "core_z": Span(0, 79, 0, 98),
        "shell_z": Span(14, 79, 1, 98),
        "diameter": Span(0.08, 0.22, 0.01, 1),
        "shell_share": Span(0.15, 0.5, 0.01, 0.99),
    }
    CHOICES: ClassVar[Mapping[str, Collection[str]]] = {"shape": ("round", "cubic")}
    METALS: ClassVar[tuple[tuple[int, int], ...]] = ((79, 47), (79, 46), (46, 79), (47, 14), (26, 78), (0, 78))

    shape: str | None = None
    core_z: int | None = None
    shell_z: int | None = None
    diameter: float | None = None
    shell_share: float | None = None

    def draw(self, grid: ScanGrid, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the specimen as share of full scale, (rows, cols) float32 in [0, 1]."""
        canvas, cubic = Canvas(grid), self.choice("shape", rng) == "cubic"
        diameter_nm, shell = self.value("diameter", rng) * canvas.edge_nm, self.value("shell_share", rng)
        core_z, shell_z = self.METALS[int(rng.integers(len(self.METALS)))]
        core_z = core_z if self.core_z is None else self.core_z
        shell_z = shell_z if self.shell_z is None else self.shell_z
        for_particles, for_film = branches(rng, 2)
        level = rng.uniform(0.6, 0.9)
        core, whole = scattering(core_z), scattering(shell_z)
        signal = np.zeros(canvas.shape, np.float32)
        for centre in scatter(canvas, 1.15 * diameter_nm, for_particles):
            radius = diameter_nm / 2 * math.exp(0.12 * for_particles.standard_normal())
            inner = radius * (1 - shell * for_particles.uniform(0.8, 1.2))
            row, col = centre + 0.15 * (radius - inner) * for_particles.standard_normal(2)
            turn = for_particles.uniform(0, 2 * math.pi)
            add_solid(canvas, signal, centre, radius, turn, whole, cubic=cubic)
            add_solid(canvas, signal, (float(row), float(col)), inner, turn, core - whole, cubic=cubic)
        edge_on = 0.85 if cubic else math.sqrt(shell * (2 - shell))  # the way through the shell beside the core
        densest = max(core * (1 - shell) + whole * shell, whole * edge_on)
        signal = np.maximum(signal, 0) * np.float32(-1.1 / (diameter_nm * densest))
        film = np.float32(FILM) * film_thickness(canvas, for_film)
        film += np.float32(VACUUM)
        film -= np.float32(1.3 * level) * blur(np.expm1(signal), 0.6)  # thick metal saturates
        return share_of_full_scale(film)


def scatter(canvas: Canvas, spacing_nm: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Return centres (row, col) [nm] about `spacing_nm` apart or more: some places stay empty."""
    filled = rng.uniform(0.5, 1)
    return [centre for centre in jittered(canvas, 1.4 * spacing_nm, rng, jitter=0.5) if rng.random() < filled]


def add_solid(
    canvas: Canvas,
    image: NDArray[np.float32],
    centre_nm: tuple[float, float],
    radius_nm: float,
    turn_rad: float,
    density: float,
    *,
    cubic: bool,
) -> None:
    """Add density times thickness of a ball, or of a cube with rounded edges lying on the film, in place."""
    index, row, col = canvas.patch(centre_nm, 1.3 * radius_nm)
    if not cubic:
        thickness = 2 * np.sqrt(np.maximum(np.float32(radius_nm**2) - row**2 - col**2, 0))
    else:
        cos, sin = np.float32(math.cos(turn_rad) / radius_nm), np.float32(math.sin(turn_rad) / radius_nm)
        x, y = (cos * row - sin * col) ** 2, (sin * row + cos * col) ** 2
        x, y = x * x * x / np.float32(0.36), y * y * y / np.float32(0.36)  # a superellipse of power six
        thickness = np.float32(1.7 * radius_nm) * np.maximum(1 - x - y, 0) ** np.float32(0.25)
    image[index] += np.float32(density) * thickness


@dataclass(frozen=True, slots=True)
class SingleAtoms(Drawn):
    """Heavy atoms, some in clusters, on an amorphous film: a catalyst, dots little brighter than the film's grain.

    Parameters
    ----------
    seed : int
        Of everything random in it, >= 0.
    per_nm2 : float, optional
        Atoms per area; drawn from 0.15 to 1.5. Pixels above 0.15 nm show none.
    clusters : float, optional
        Share of the atoms that stand in clusters; drawn from 0 to 0.6.
    probe_nm : float, optional
        Full width of the probe at half maximum [nm]; drawn from 0.08 to 0.16.
    """

    SPANS: ClassVar[Mapping[str, Span]] = {
        "per_nm2": Span(0.15, 1.5, 0, 20),
        "clusters": Span(0, 0.6, 0, 1),
        "probe_nm": Span(0.08, 0.16, 0.02, 1),
    }

    per_nm2: float | None = None
    clusters: float | None = None
    probe_nm: float | None = None

    def draw(self, grid: ScanGrid, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the specimen as share of full scale, (rows, cols) float32 in [0, 1]."""
        canvas = Canvas(grid)
        per_nm2, clustered, probe_nm = (self.value(name, rng) for name in ("per_nm2", "clusters", "probe_nm"))
        level, carbon = rng.uniform([0.3, 0.12], [0.6, 0.25])
        for_atoms, for_film = branches(rng, 2)
        image = np.float32(carbon) * film_thickness(canvas, for_film)
        image += np.float32(VACUUM)
        shown = canvas.resolved(ATOM_PERIOD_NM)
        if shown > 0:
            atoms = place_atoms(canvas, per_nm2, clustered, for_atoms)
            heights = level * shown * for_atoms.uniform(0.7, 1.1, len(atoms))  # some out of focus
            image += canvas.peaks(atoms, heights, probe_nm / FWHM)
        return share_of_full_scale(image)


ATOM_PERIOD_NM = 0.45
"""Single atoms are drawn where a period of this length would be [nm]."""


def place_atoms(canvas: Canvas, per_nm2: float, clustered: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return where the atoms are, (n, 2) as (row, col) [nm]: anywhere, or in clusters of about ten."""
    n = round(per_nm2 * math.prod(canvas.fov_nm))
    n_clustered = round(clustered * n)
    centres = rng.uniform(0, 1, (max(1, n_clustered // 10), 2)) * canvas.fov_nm
    around = rng.standard_normal((n_clustered, 2)) * rng.uniform(0.2, 0.6, (n_clustered, 1))
    clusters = centres[rng.integers(0, len(centres), n_clustered)] + around
    return np.concatenate([rng.uniform(0, 1, (n - n_clustered, 2)) * canvas.fov_nm, clusters])


@dataclass(frozen=True, slots=True)
class Holes(Drawn):
    """A holey or lacey carbon film: vacuum in holes of all sizes, thicker rims, perhaps some particles.

    Parameters
    ----------
    seed : int
        Of everything random in it, >= 0.
    spacing : float, optional
        Mean distance of the holes as a share of the field's edge; drawn from 0.14 to 0.5.
    fill : float, optional
        Diameter of the largest holes over their distance; drawn from 0.6 to 1.05. Near 1 the film is lacey.
    """

    SPANS: ClassVar[Mapping[str, Span]] = {"spacing": Span(0.14, 0.5, 0.02, 2), "fill": Span(0.6, 1.05, 0, 1.5)}

    spacing: float | None = None
    fill: float | None = None

    def draw(self, grid: ScanGrid, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the specimen as share of full scale, (rows, cols) float32 in [0, 1]."""
        canvas = Canvas(grid)
        spacing_nm, fill = self.value("spacing", rng) * canvas.edge_nm, self.value("fill", rng)
        level, rim_width, rim_height = rng.uniform([0.15, 0.04, 0.2], [0.45, 0.1, 1.2])
        for_holes, for_film, for_dust = branches(rng, 3)
        depth = rim_distance(canvas, spacing_nm, fill, for_holes)
        film = film_thickness(canvas, for_film)
        film *= 1 + np.float32(rim_height) * np.exp(depth * np.float32(-1 / (rim_width * spacing_nm)))
        film *= canvas.ramp(depth, 0.01 * spacing_nm)
        film *= np.float32(level)
        film += np.float32(VACUUM)
        add_dust(canvas, film, depth, for_dust)
        return share_of_full_scale(film)


def rim_distance(canvas: Canvas, spacing_nm: float, fill: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return how far a pixel is from the nearest hole [nm], negative in one."""
    depth = np.full(canvas.shape, spacing_nm, np.float32)
    wobble = np.float32(0.03 * spacing_nm) * canvas.waves(spacing_nm * rng.uniform(0.3, 1.2, 10), rng)
    for centre in jittered(canvas, spacing_nm, rng):
        radius, squeeze = spacing_nm / 2 * fill * rng.uniform(0.35, 1), rng.uniform(0.8, 1.25)
        index, row, col = canvas.patch(centre, radius + spacing_nm)
        distance = np.sqrt(row**2 * np.float32(squeeze) + col**2 / np.float32(squeeze)) - np.float32(radius)
        np.minimum(depth[index], distance, out=depth[index])
    depth += wobble
    return depth


def add_dust(canvas: Canvas, image: NDArray[np.float32], depth: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Add a few small bright particles on the film, in place."""
    for row, col in rng.uniform(0, 1, (int(rng.integers(0, 25)), 2)) * canvas.fov_nm:
        radius, bright = canvas.edge_nm * rng.uniform(0.004, 0.02), rng.uniform(0.1, 0.45)
        if canvas.sample(depth, np.array([[row, col]]))[0] > 0:
            index, dr, dc = canvas.patch((float(row), float(col)), 1.2 * radius)
            ball = np.sqrt(np.maximum(1 - (dr**2 + dc**2) / np.float32(radius**2), 0))
            image[index] += np.float32(bright) * ball
