"""Procedural specimens: metal nanoparticles on a carbon film, drawn for any grid (imports numpy and scipy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

VACUUM = 0.05
"""Share of full scale that the detector gives in vacuum: its dark offset."""

FILM = 0.09
"""Share of full scale that a film of mean thickness adds to it."""

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
LATTICE_CONTRAST = 0.45
GRAIN_NM = 0.5
"""Mean wavelength of the film's amorphous grain [nm]."""

PROBE_NM = 0.04
"""Standard deviation of the probe [nm]; drawn between 0.5 and 1.5 pixels wide, so that edges never alias."""

RESOLVED_PX = 3.0
"""Periods below this many pixels are left out, those up to half as long again are faded in."""


@dataclass(frozen=True, slots=True)
class Procedural:
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

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    seed: int = 1

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")

    def open(self, grid: ScanGrid) -> Still:
        """Draw the specimen on the grid; it does not change with time."""
        return Still(draw_specimen(grid, np.random.default_rng(self.seed)))


class Still:
    """A specimen source that shows one image for ever."""

    def __init__(self, image: NDArray[np.float32]) -> None:
        image.setflags(write=False)
        self._image = image

    def frame(self, t_s: float) -> NDArray[np.float32]:
        """Return the image, always the same object, (rows, cols) in [0, 1] of full scale."""
        return self._image


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


def draw_specimen(grid: ScanGrid, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the specimen as share of full scale, (rows, cols) float32 in [0, 1]."""
    row_nm, col_nm = (((np.arange(n) + 0.5) * grid.pixel_size_nm).astype(np.float32) for n in grid.shape)
    hole = make_hole(grid, rng)
    film = draw_film(grid, row_nm, col_nm, hole, rng)
    metal = np.zeros(grid.shape, np.float32)
    for particle in make_particles(grid, hole, rng):
        _add_particle(metal, particle, row_nm, col_nm)
    diameter_nm = MEDIAN_DIAMETER * field_edge_nm(grid)
    metal = -np.expm1(-metal / (2.2 * diameter_nm))  # thick metal scatters out of the detector again: it saturates
    film, metal = (gaussian_filter(layer, np.clip(PROBE_NM / grid.pixel_size_nm, 0.5, 1.5)) for layer in (film, metal))
    metal *= (1 - VACUUM - FILM) / max(0.3, float(metal.max()))
    return np.asarray(np.clip(film + metal, 0, 1), np.float32)


def field_edge_nm(grid: ScanGrid) -> float:
    """Return the edge of the square as large as the field [nm]."""
    return math.sqrt(math.prod(grid.fov_nm))


def make_hole(grid: ScanGrid, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return (row, col, radius) of the film's hole [nm], centred near a corner of the field."""
    corner = rng.integers(0, 2, 2) + rng.uniform(-0.12, 0.12, 2)
    row, col = corner * grid.fov_nm
    return float(row), float(col), float(rng.uniform(0.24, 0.32) * min(grid.fov_nm))


def draw_film(
    grid: ScanGrid,
    row_nm: NDArray[np.float32],
    col_nm: NDArray[np.float32],
    hole: tuple[float, float, float],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Return vacuum plus film: slow thickness variations, amorphous grain, thinning towards the hole."""
    edge = field_edge_nm(grid)
    slow = random_waves(row_nm, col_nm, 16, rng.uniform(0.4, 1.2, 16) * edge, rng)
    grain = random_waves(row_nm, col_nm, 96, GRAIN_NM * rng.uniform(0.7, 1.6, 96), rng)
    thickness = 1 + 0.22 * slow + 0.12 * _resolved(GRAIN_NM / grid.pixel_size_nm) * grain
    rim = np.hypot(row_nm[:, None] - hole[0], col_nm[None, :] - hole[1]) - hole[2]
    rim += np.float32(0.04 * edge) * slow  # an irregular outline
    thickness *= np.clip(rim / (0.025 * edge), 0, 1)
    return (VACUUM + FILM * thickness).astype(np.float32)


def random_waves(
    row_nm: NDArray[np.float32],
    col_nm: NDArray[np.float32],
    n: int,
    wavelengths_nm: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Return a smooth random field of about unit variance: n plane waves of random direction and phase.

    A plane wave is the outer product of two, so that all of them are one matrix product.
    """
    angle, phase = rng.uniform(0, 2 * math.pi, (2, n))
    k = 2 * math.pi / wavelengths_nm
    along_rows = np.exp(1j * (np.outer(row_nm, k * np.sin(angle)) + phase)).astype(np.complex64)
    along_cols = np.exp(1j * np.outer(k * np.cos(angle), col_nm)).astype(np.complex64)
    # the real part alone, by two real products
    field = along_rows.real @ along_cols.real - along_rows.imag @ along_cols.imag
    return np.asarray(field * np.float32(math.sqrt(2 / n)), np.float32)


def make_particles(grid: ScanGrid, hole: tuple[float, float, float], rng: np.random.Generator) -> list[Particle]:
    """Return the particles, log-normal in size, on the film or just over its rim."""
    edge = field_edge_nm(grid)
    diameters = MEDIAN_DIAMETER * edge * np.exp(DIAMETER_SIGMA * rng.standard_normal(N_PARTICLES))
    centres = _scatter(np.sort(diameters)[::-1] / 2, grid.fov_nm, hole, rng)
    return [
        _make_particle((float(row), float(col)), float(diameter) / 2, rng)
        for (row, col), diameter in zip(centres, np.sort(diameters)[::-1], strict=True)
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
    bottom = -top
    for (n_row, n_col, n_beam), distance in zip(particle.normals, particle.distances, strict=True):
        steep = math.copysign(max(abs(n_beam), 1e-2), n_beam)
        height = np.float32(distance / steep) - np.float32(n_row / steep) * row - np.float32(n_col / steep) * col
        if steep > 0:
            np.minimum(top, height, out=top)
        else:
            np.maximum(bottom, height, out=bottom)
    return np.asarray(np.maximum(top - bottom, 0), np.float32)


def _make_particle(centre: tuple[float, float], radius: float, rng: np.random.Generator) -> Particle:
    facetted = rng.random() < 0.65
    normals, distances = _wulff_faces() if facetted else _round_faces(24)
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    distances = radius * distances * rng.uniform(0.84, 1.08, len(distances))
    brightness = 1.0 if rng.random() < 0.65 else 0.42  # e.g. platinum beside cobalt
    return Particle(centre, 1.16 * radius, normals @ rotation.T, distances, brightness, _lattice_waves(rng))


def _wulff_faces() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 8 {111} and 6 {100} faces of a truncated octahedron; {100} costs 1.15 times as much energy."""
    octahedron = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(-1, 3) / math.sqrt(3)
    cube = np.concatenate([np.eye(3), -np.eye(3)])
    return np.concatenate([octahedron, cube]), np.repeat([0.9, 0.9 * 1.15], [8, 6])


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
    spacing_nm = rng.choice(PLANE_SPACINGS_NM)
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


def _add_particle(
    metal: NDArray[np.float32], particle: Particle, row_nm: NDArray[np.float32], col_nm: NDArray[np.float32]
) -> None:
    """Add brightness times thickness [nm] of one particle to the layer, in place."""
    rows, cols = (_within(x, c, particle.radius) for x, c in zip((row_nm, col_nm), particle.centre, strict=True))
    row = row_nm[rows, None] - np.float32(particle.centre[0])
    col = col_nm[None, cols] - np.float32(particle.centre[1])
    if row.size and col.size:
        pixel_size_nm = 2 * float(row_nm[0])
        thickness = projected_thickness(row, col, particle)
        metal[rows, cols] += particle.brightness * thickness * _lattice(row, col, particle.waves, pixel_size_nm)


def _within(x_nm: NDArray[np.float32], centre: float, radius: float) -> slice:
    first, end = np.searchsorted(x_nm, [centre - radius, centre + radius])
    return slice(int(first), int(end))


def _lattice(
    row: NDArray[np.float32], col: NDArray[np.float32], waves: NDArray[np.float64], pixel_size_nm: float
) -> NDArray[np.float32] | float:
    """Return the channelling contrast of the lattice, about 1 on average; 1 where it is not resolved."""
    if len(waves) == 0:
        return 1.0
    contrast = LATTICE_CONTRAST * _resolved(1 / float(np.linalg.norm(waves[0])) / pixel_size_nm)
    if contrast == 0:
        return 1.0
    phases = (np.float32(2 * math.pi * k_row) * row + np.float32(2 * math.pi * k_col) * col for k_row, k_col in waves)
    peaks = np.exp(COLUMN_SHARPNESS * sum(np.cos(phase) for phase in phases))
    mean = np.i0(COLUMN_SHARPNESS) ** len(waves)
    return np.asarray(1 + contrast * (peaks / mean - 1), np.float32)


def _resolved(period_px: float) -> float:
    """Return how much of a periodic detail to draw: 0 below RESOLVED_PX, 1 from half as much again."""
    return min(1.0, max(0.0, 2 * (period_px / RESOLVED_PX - 1)))
