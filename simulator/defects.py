"""Defects of crystals: dislocations, strain, grains, vacancies and dopants of atomic columns (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowdose.simulator.canvas import Canvas

POISSON_RATIO = 0.3
"""Of the dislocations' elastic field; that of most oxides, semiconductors and metals is 0.2 to 0.4."""


@dataclass(frozen=True)
class Columns:
    """Atomic columns of a crystal.

    Parameters
    ----------
    positions_nm : (n, 2) float ndarray
        (row, col) from the corner of the field [nm].
    sites : (n,) int ndarray
        Which site of the crystal's cell each is.
    """

    positions_nm: NDArray[np.float64]
    sites: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.sites)

    def where(self, keep: NDArray[np.bool_]) -> Columns:
        """Return the columns for which `keep` is True."""
        return Columns(self.positions_nm[keep], self.sites[keep])


def edge_dislocation(offsets_nm: NDArray[np.float64], burgers_nm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the displacements around an edge dislocation in an isotropic solid.

    Hirth and Lothe, Theory of Dislocations (Wiley, 2nd ed., 1982), section 3-4. The displacement jumps by one
    Burgers vector across the half of the glide plane behind the core, which a lattice does not see.

    Parameters
    ----------
    offsets_nm : (n, 2) float ndarray
        Of the perfect crystal's columns from the core, (row, col) [nm].
    burgers_nm : (2,) float ndarray
        Burgers vector, (row, col) [nm].

    Returns
    -------
    (n, 2) float64 ndarray
        (row, col) [nm].
    """
    b = float(np.linalg.norm(burgers_nm))
    along = burgers_nm / b
    across = np.array([along[1], -along[0]])
    x, y = offsets_nm @ along, offsets_nm @ across
    r2 = np.maximum(x**2 + y**2, (0.3 * b) ** 2)  # linear elasticity fails in the core
    stiff = 4 * (1 - POISSON_RATIO)
    u_x = b / (2 * math.pi) * (np.arctan2(y, x) + 2 * x * y / (stiff * r2))
    u_y = -b / (2 * math.pi) * ((1 - 2 * POISSON_RATIO) / stiff * np.log(r2 / b**2) + (x**2 - y**2) / (stiff * r2))
    return np.asarray(u_x[:, None] * along + u_y[:, None] * across)


def dislocate(
    positions_nm: NDArray[np.float64], cores_nm: NDArray[np.float64], burgers_nm: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the positions (n, 2) of columns around dislocations at `cores_nm`, (m, 2); signs alternate."""
    moved = positions_nm.copy()
    for i, core in enumerate(cores_nm):
        moved += (-1) ** i * edge_dislocation(positions_nm - core, burgers_nm)
    return moved


def strain_waves(
    canvas: Canvas, positions_nm: NDArray[np.float64], strain: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the displacements (n, 2) that make a slowly varying strain, as (row, col) [nm].

    Parameters
    ----------
    canvas : Canvas
    positions_nm : (n, 2) float ndarray
        (row, col) from the corner of the field [nm].
    strain : float
        Root mean square of the displacement's gradient.
    rng : numpy.random.Generator
    """
    wavelengths = rng.uniform(0.4, 1.0, (2, 5)) * canvas.edge_nm
    amplitude = strain * 0.65 * canvas.edge_nm / (2 * math.pi)
    components = [canvas.sample(canvas.waves(w, rng), positions_nm) for w in wavelengths]
    return np.asarray(amplitude * np.stack(components, axis=1), np.float64)


def grain_centres(canvas: Canvas, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return points well apart, (n, 2) as (row, col) [nm]: a grain is what is nearest to one of them."""
    centres = rng.uniform(0.1, 0.9, (1, 2))
    while len(centres) < n:
        trials = rng.uniform(0, 1, (12, 2))
        gaps = np.linalg.norm(trials[:, None] - centres, axis=-1).min(axis=1)
        centres = np.vstack([centres, trials[gaps.argmax()]])
    return np.asarray(centres * canvas.fov_nm)


def within_grain(
    positions_nm: NDArray[np.float64], centres_nm: NDArray[np.float64], grain: int, gap_nm: float
) -> NDArray[np.bool_]:
    """Return which positions are in a grain and at least `gap_nm` inside all its boundaries, (n,)."""
    inside = np.ones(len(positions_nm), bool)
    own = centres_nm[grain]
    for other in np.delete(centres_nm, grain, axis=0):
        across = (other - own) / np.linalg.norm(other - own)
        inside &= ((own + other) / 2 - positions_nm) @ across > gap_nm
    return inside


def column_signals(
    host: NDArray[np.float64],
    doped: NDArray[np.float64],
    *,
    vacancies: float,
    dopants: float,
    roughness: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the scattering of every column.

    Parameters
    ----------
    host, doped : (n,) float64 ndarray
        Of the column as it should be, and of it with another element.
    vacancies, dopants : float
        Share of the columns that are missing, and that are doped.
    roughness : float
        Standard deviation of the thickness from column to column, relative to it.
    rng : numpy.random.Generator

    Returns
    -------
    (n,) float64 ndarray
    """
    lots, height = rng.random((2, len(host))), rng.standard_normal(len(host))
    signals = np.where(lots[0] < dopants, doped, host) * (lots[1] >= vacancies)
    return np.asarray(signals * np.clip(1 + roughness * height, 0.8, 1.2))
