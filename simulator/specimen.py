"""Procedural specimens: metal nanoparticles on a carbon film, drawn for any grid (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lowdose.simulator.canvas import Canvas, blur
from lowdose.simulator.drawn import FILM, GRAIN_NM, VACUUM, Drawn, share_of_full_scale

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

N_PARTICLES = 36
MEDIAN_DIAMETER = 0.11
"""Of the particles, as a share of the field's edge: any field shows about as many of them."""

DIAMETER_SIGMA = 0.38
"""Standard deviation of the logarithm of the diameter."""

ALLOWED_OVERLAP = 0.8
"""Centres keep this share of the sum of the radii apart while there is room."""

PLANE_SPACINGS_NM = (0.2265, 0.2355)
"""{111} of platinum and gold [nm]."""

PLANE_ANGLE_RAD = math.radians(70.53)
"""Between two {111} planes seen along <110>: with both in focus the columns of atoms show."""

COLUMN_SHARPNESS = 0.8
MEAN_WAVE = float(np.i0(COLUMN_SHARPNESS))
"""Of exp(COLUMN_SHARPNESS * cosine)."""

LATTICE_CONTRAST = 0.45
PROBE_NM = 0.04
"""Standard deviation of the probe [nm]; drawn between 0.5 and 1.5 pixels wide, so that edges never alias."""


@dataclass(frozen=True, slots=True)
class Procedural(Drawn):
    """Facetted metal particles, some with atomic columns or lattice fringes, on an amorphous film with a hole.

    Particle sizes follow the field of view, atomic spacings are physical: large pixels show no lattice. The same
    seed and field of view give the same specimen, whatever the number of pixels.

    Parameters
    ----------
    seed : int
        Of everything random in it, >= 0.

    Examples
    --------
    >>> from lowdose.scan_patterns import ScanGrid
    >>> Procedural(seed=3).open(ScanGrid((64, 96))).frame(t_s=0.0).shape
    (64, 96)
    """

    def draw(self, grid: ScanGrid, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the specimen as share of full scale, (rows, cols) float32 in [0, 1]."""
        canvas = Canvas(grid)
        hole = make_hole(canvas, rng)
        film = draw_film(canvas, hole, rng)
        return add_particles(canvas, film, make_particles(canvas, hole, rng), MEDIAN_DIAMETER * canvas.edge_nm)


@dataclass(frozen=True, slots=True)
class Particle:
    """A convex polyhedron, its faces given as planes; lengths in nm.

    Parameters
    ----------
    centre : (row, col)
        In the field [nm].
    radius : float
        Of the sphere that rounds the corners off [nm].
    normals : (n, 3) float ndarray
        Outward unit normals of the faces, (row, col, beam axis).
    distances : (n,) float ndarray
        Of the faces from the centre [nm].
    brightness : float
        Signal per thickness relative to the heaviest metal.
    waves : (0 to 2, 2) float ndarray
        Wave vectors of the lattice planes that show [1/nm]: two give columns, one gives fringes.
    """

    centre: tuple[float, float]
    radius: float
    normals: NDArray[np.float64]
    distances: NDArray[np.float64]
    brightness: float
    waves: NDArray[np.float64]


def add_particles(
    canvas: Canvas, film: NDArray[np.float32], particles: list[Particle], diameter_nm: float
) -> NDArray[np.float32]:
    """Return the film with the particles on it as the probe sees them, (rows, cols) float32 in [0, 1].

    Metal about twice as thick as `diameter_nm` scatters out of the detector again: its signal saturates.
    """
    metal = np.zeros(canvas.shape, np.float32)
    for particle in particles:
        _add_particle(canvas, metal, particle)
    metal *= np.float32(-1 / (2.2 * diameter_nm))
    sigma_px = float(np.clip(PROBE_NM / canvas.pixel_nm, 0.5, 1.5))
    film, metal = blur(film, sigma_px), blur(-np.expm1(metal, out=metal), sigma_px)
    metal *= np.float32((1 - VACUUM - FILM) / max(0.3, float(metal.max())))
    metal += film
    return share_of_full_scale(metal)


def make_hole(canvas: Canvas, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return (row, col, radius) of the film's hole [nm], centred near a corner of the field."""
    corner = rng.integers(0, 2, 2) + rng.uniform(-0.12, 0.12, 2)
    row, col = corner * canvas.fov_nm
    return float(row), float(col), float(rng.uniform(0.24, 0.32) * min(canvas.fov_nm))


def draw_film(canvas: Canvas, hole: tuple[float, float, float], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return vacuum plus film: slow thickness variations, amorphous grain, thinning towards the hole."""
    edge = canvas.edge_nm
    slow = canvas.waves(rng.uniform(0.4, 1.2, 16) * edge, rng)
    grain = canvas.waves(GRAIN_NM * rng.uniform(0.7, 1.6, 96), rng)
    thickness = 1 + np.float32(0.22) * slow + np.float32(0.12 * canvas.resolved(GRAIN_NM)) * grain
    rim = np.sqrt((canvas.row_nm - np.float32(hole[0])) ** 2 + (canvas.col_nm - np.float32(hole[1])) ** 2)
    rim -= np.float32(hole[2])
    rim += np.float32(0.04 * edge) * slow  # an irregular outline
    thickness *= np.clip(rim / np.float32(0.025 * edge), 0, 1)
    return (VACUUM + FILM * thickness).astype(np.float32)


def make_particles(
    canvas: Canvas,
    hole: tuple[float, float, float],
    rng: np.random.Generator,
    *,
    n: int = N_PARTICLES,
    diameter: float = MEDIAN_DIAMETER,
) -> list[Particle]:
    """Return n particles, log-normal in size, on the film or just over its rim.

    Their median diameter is a share of the field's edge.
    """
    diameters = np.sort(diameter * canvas.edge_nm * np.exp(DIAMETER_SIGMA * rng.standard_normal(n)))[::-1]
    centres = _scatter(diameters / 2, canvas.fov_nm, hole, rng)
    shapes = [_draw_shape(rng) for _ in range(n)]
    rotations, _ = np.linalg.qr(np.stack([shape.axes for shape in shapes]))
    return [
        Particle(
            centre=(float(row), float(col)),
            radius=1.16 * radius,
            normals=shape.normals @ rotation.T,
            distances=radius * shape.distances,
            brightness=shape.brightness,
            waves=shape.waves,
        )
        for (row, col), radius, shape, rotation in zip(centres, diameters / 2, shapes, rotations, strict=True)
    ]


def projected_thickness(row: NDArray[np.float32], col: NDArray[np.float32], particle: Particle) -> NDArray[np.float32]:
    """Return the length of the beam's way through a particle [nm].

    Every face with an upward normal bounds the way from above, every other from below; a sphere rounds the corners.

    Parameters
    ----------
    row, col : (rows, 1) and (1, cols) float32 ndarray
        Coordinates from the particle's centre [nm].
    particle : Particle
        The polyhedron.

    Returns
    -------
    (rows, cols) float32 ndarray
        0 outside.
    """
    top = np.sqrt(np.maximum(np.float32(particle.radius**2) - row**2 - col**2, 0))
    bottom, height = -top, np.empty_like(top)
    n_row, n_col, n_beam = particle.normals.T
    steep = np.copysign(np.maximum(np.abs(n_beam), 1e-2), n_beam)
    by_row = (particle.distances / steep).astype(np.float32) - (n_row / steep).astype(np.float32) * row
    by_col = (n_col / steep).astype(np.float32)[:, None] * col
    for face, upward in enumerate(steep > 0):
        np.subtract(by_row[:, face, None], by_col[face], out=height)
        if upward:
            np.minimum(top, height, out=top)
        else:
            np.maximum(bottom, height, out=bottom)
    return np.asarray(np.maximum(top - bottom, 0), np.float32)


class _Shape(NamedTuple):
    """A particle of radius 1, before it is rotated to the axes made from `axes`."""

    normals: NDArray[np.float64]
    distances: NDArray[np.float64]
    axes: NDArray[np.float64]
    brightness: float
    waves: NDArray[np.float64]


def _draw_shape(rng: np.random.Generator) -> _Shape:
    normals, distances = _wulff_faces() if rng.random() < 0.65 else _round_faces(24)
    axes = rng.standard_normal((3, 3))
    distances = distances * rng.uniform(0.84, 1.08, len(distances))
    brightness = 1.0 if rng.random() < 0.65 else 0.42  # e.g. platinum beside cobalt
    return _Shape(normals, distances, axes, brightness, _lattice_waves(rng))


@cache
def _wulff_faces() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 8 {111} and 6 {100} faces of a truncated octahedron; {100} costs 1.15 times as much energy."""
    octahedron = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(-1, 3) / math.sqrt(3)
    cube = np.concatenate([np.eye(3), -np.eye(3)])
    return np.concatenate([octahedron, cube]), np.repeat([0.9, 0.9 * 1.15], [8, 6])


@cache
def _round_faces(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return n faces spread evenly over a sphere (Fibonacci spiral)."""
    z = 1 - (2 * np.arange(n) + 1) / n
    angle = math.pi * (3 - math.sqrt(5)) * np.arange(n)
    ring = np.sqrt(1 - z**2)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1), np.ones(n)


def _lattice_waves(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the planes that show: two in 45 % of the particles, one in 35 %, none in those tilted off any axis."""
    n_waves = 2 - int(np.searchsorted([0.45, 0.80], rng.random()))
    angle = rng.uniform(0, 2 * math.pi) + PLANE_ANGLE_RAD * np.arange(n_waves)
    spacing_nm = PLANE_SPACINGS_NM[int(rng.integers(len(PLANE_SPACINGS_NM)))]
    return np.asarray(np.stack([np.sin(angle), np.cos(angle)], axis=1) / spacing_nm)


def _scatter(
    radii: NDArray[np.float64],
    fov_nm: tuple[float, float],
    hole: tuple[float, float, float],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return a centre for every radius: the first of 16 trials off the hole and not too much over its neighbours."""
    centres = np.zeros((len(radii), 2))
    for i, radius in enumerate(radii):
        trials = rng.uniform(-0.03, 1.03, (16, 2)) * fov_nm
        gaps = np.linalg.norm(trials[:, None] - centres[:i], axis=-1) - ALLOWED_OVERLAP * (radii[:i] + radius)
        off_rim = np.linalg.norm(trials - hole[:2], axis=-1) - hole[2] - 0.5 * radius
        centres[i] = trials[np.argmax(np.minimum(gaps.min(axis=1, initial=0), off_rim.clip(max=0)))]
    return centres


def _add_particle(canvas: Canvas, metal: NDArray[np.float32], particle: Particle) -> None:
    """Add brightness times thickness [nm] of one particle to the layer, in place."""
    index, row, col = canvas.patch(particle.centre, particle.radius)
    if row.size and col.size:
        thickness = projected_thickness(row, col, particle)
        metal[index] += np.float32(particle.brightness) * thickness * _lattice(canvas, row, col, particle.waves)


def _lattice(
    canvas: Canvas, row: NDArray[np.float32], col: NDArray[np.float32], waves: NDArray[np.float64]
) -> NDArray[np.float32] | float:
    """Return the channelling contrast of the lattice, about 1 on average; 1 where it is not resolved."""
    if len(waves) == 0:
        return 1.0
    contrast = LATTICE_CONTRAST * canvas.resolved(1 / float(np.linalg.norm(waves[0])))
    if contrast == 0:
        return 1.0
    factors = []
    for k_row, k_col in waves:
        phase = np.float32(2 * math.pi * k_row) * row + np.float32(2 * math.pi * k_col) * col
        factors.append(np.cos(phase, out=phase))
    peaks = np.exp(np.float32(COLUMN_SHARPNESS) * sum(factors))
    mean = MEAN_WAVE ** len(waves)
    return np.asarray(np.float32(1 - contrast) + np.float32(contrast / mean) * peaks)
