"""Crystals: unit cells as the beam sees them along an axis, and their atomic columns (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HAADF_EXPONENT = 1.7
"""Of the atomic number: scattering to high angles, between Rutherford's 2 and what screening leaves of it.

Treacy, Microsc. Microanal. 17, 847 (2011), doi:10.1017/S1431927611012074.
"""

DOPED_SHARE = 0.2
"""Share of the atoms that are exchanged in a doped column of a foil."""


def scattering(*atomic_numbers: int) -> float:
    """Return the signal of the atoms of one column, in units of hydrogen.

    Examples
    --------
    >>> round(scattering(79) / scattering(29), 2)
    5.49
    """
    return math.fsum(z**HAADF_EXPONENT for z in atomic_numbers)


@dataclass(frozen=True)
class Site:
    """A column of atoms in a cell.

    Parameters
    ----------
    u, v : float
        Where, in units of the cell's edges.
    atoms : tuple of int
        Atomic numbers in one period along the beam.
    dopant : tuple of int
        Atoms of a doped column; the same number of them.
    """

    u: float
    v: float
    atoms: tuple[int, ...]
    dopant: tuple[int, ...] = ()


@dataclass(frozen=True)
class Crystal:
    """A plane cell.

    Parameters
    ----------
    a_nm, b_nm : float
        Edges of the cell [nm]: b is the direction of growth, a the Burgers vector of dislocations.
    sites : tuple of Site
        Its columns.
    gamma_deg : float
        Angle between the edges [degree].
    monolayer : bool
        One layer of atoms instead of a foil some ten nanometres thick.
    """

    a_nm: float
    b_nm: float
    sites: tuple[Site, ...]
    gamma_deg: float = 90.0
    monolayer: bool = False

    @cached_property
    def vectors_nm(self) -> NDArray[np.float64]:
        """(2, 2) edges of the cell as (row, col) [nm]; a lies along the columns."""
        gamma = math.radians(self.gamma_deg)
        return np.array([[0.0, self.a_nm], [self.b_nm * math.sin(gamma), self.b_nm * math.cos(gamma)]])

    @cached_property
    def offsets_nm(self) -> NDArray[np.float64]:
        """(n_sites, 2) places of the columns in the cell, (row, col) [nm]."""
        return np.array([[site.u, site.v] for site in self.sites]) @ self.vectors_nm

    @cached_property
    def signals(self) -> NDArray[np.float64]:
        """(n_sites,) scattering of the columns."""
        return np.array([scattering(*site.atoms) for site in self.sites])

    @cached_property
    def doped_signals(self) -> NDArray[np.float64]:
        """(n_sites,) scattering of the columns when doped: the whole atom of a monolayer, a share of a foil's."""
        dopant = np.array([scattering(*(site.dopant or site.atoms)) for site in self.sites])
        share = 1.0 if self.monolayer else DOPED_SHARE
        return np.asarray(share * dopant + (1 - share) * self.signals)

    @cached_property
    def area_nm2(self) -> float:
        """Area of the cell [nm^2]."""
        return self.a_nm * self.b_nm * math.sin(math.radians(self.gamma_deg))

    @cached_property
    def period_nm(self) -> float:
        """Distance between the planes along the cell's diagonal [nm]: with them resolved the lattice shows.

        {110} of a square cell, {111} of the dumbbells and of gold along [110], {100} of a honeycomb.
        """
        return self.area_nm2 / float(np.linalg.norm(self.vectors_nm.sum(axis=0)))


def _honeycomb(a_nm: float, first: Site, second: Site) -> Crystal:
    return Crystal(a_nm, a_nm, (first, second), gamma_deg=120.0, monolayer=True)


def _perovskite(a_nm: float, c_nm: float, large: int, small: int, dopant: int, shift: float = 0.0) -> Crystal:
    """Return a cube of large atoms around a small one with oxygen; oxygen alone is too faint to be seen beside them."""
    return Crystal(a_nm, c_nm, (Site(0.0, 0.0, (large,), (dopant,)), Site(0.5, 0.5 + shift, (small, 8))))


def _dumbbells(a_nm: float, first: int, second: int, dopant: int) -> Crystal:
    """Return diamond or zinc blende along [110]; b is [001]."""
    sites = (
        Site(0.0, 0.00, (first,), (dopant,)),
        Site(0.0, 0.25, (second,)),
        Site(0.5, 0.50, (first,), (dopant,)),
        Site(0.5, 0.75, (second,)),
    )
    return Crystal(a_nm / math.sqrt(2), a_nm, sites)


CRYSTALS: dict[str, Crystal] = {
    "srtio3": _perovskite(0.3905, 0.3905, large=38, small=22, dopant=57),
    "lamno3": _perovskite(0.3905, 0.3940, large=57, small=25, dopant=38),
    "pbtio3": _perovskite(0.3905, 0.4156, large=82, small=22, dopant=38, shift=0.07),
    "silicon": _dumbbells(0.5431, 14, 14, dopant=33),
    "germanium": _dumbbells(0.5658, 32, 32, dopant=51),
    "gaas": _dumbbells(0.5653, 31, 33, dopant=49),
    "inp": _dumbbells(0.5869, 49, 15, dopant=31),
    "gold": Crystal(0.2884, 0.4078, (Site(0.0, 0.0, (79,), (29,)), Site(0.5, 0.5, (79,), (29,)))),
    "ni3al": Crystal(
        0.3570,
        0.3570,
        (Site(0.0, 0.0, (13,), (41,)), Site(0.5, 0.5, (28,)), Site(0.5, 0.0, (28,)), Site(0.0, 0.5, (28,))),
    ),
    "rutile": Crystal(0.4594, 0.4594, (Site(0.0, 0.0, (22,), (41,)), Site(0.5, 0.5, (22,), (41,)))),
    "ybco": Crystal(
        0.3886,
        1.168,
        (
            Site(0.0, 0.0, (29,)),
            Site(0.5, 0.184, (56,), (38,)),
            Site(0.0, 0.355, (29, 8)),
            Site(0.5, 0.5, (39,), (58,)),
            Site(0.0, 0.645, (29, 8)),
            Site(0.5, 0.816, (56,), (38,)),
        ),
    ),
    "graphene": _honeycomb(0.2460, Site(1 / 3, 2 / 3, (6,), (14,)), Site(2 / 3, 1 / 3, (6,))),
    "boron_nitride": _honeycomb(0.2504, Site(1 / 3, 2 / 3, (5,), (6,)), Site(2 / 3, 1 / 3, (7,), (8,))),
    "mos2": _honeycomb(0.3160, Site(1 / 3, 2 / 3, (42,), (74,)), Site(2 / 3, 1 / 3, (16, 16), (34, 16))),
    "wse2": _honeycomb(0.3280, Site(1 / 3, 2 / 3, (74,), (42,)), Site(2 / 3, 1 / 3, (34, 34), (34,))),
}
"""Along [001] (perovskites, ni3al, rutile, layers), [110] (the dumbbells and gold) and [100] (ybco).

Lattice parameters at room temperature from Wyckoff, Crystal Structures (Wiley, 1963); perovskites as grown on SrTiO3.
"""

PAIRS: dict[str, tuple[str, str]] = {
    "lamno3_srtio3": ("lamno3", "srtio3"),
    "pbtio3_srtio3": ("pbtio3", "srtio3"),
    "germanium_silicon": ("germanium", "silicon"),
    "inp_gaas": ("inp", "gaas"),
}
"""Crystals that grow on one another: the same sites in other atoms."""


def cells_within(vectors_nm: NDArray[np.float64], reach_nm: tuple[float, float]) -> NDArray[np.float64]:
    """Return the corners of all cells in a rectangle about the origin.

    Parameters
    ----------
    vectors_nm : (2, 2) float ndarray
        Edges of the cell, (row, col) [nm].
    reach_nm : (row, col)
        Half the edges of the rectangle [nm].

    Returns
    -------
    (n, 2) float64 ndarray
        (row, col) [nm].
    """
    inverse = np.abs(np.linalg.inv(vectors_nm))
    n_a, n_b = (math.ceil(n) for n in np.asarray(reach_nm) @ inverse)
    index = np.stack(np.meshgrid(np.arange(-n_a, n_a + 1), np.arange(-n_b, n_b + 1), indexing="ij"), axis=-1)
    corners = index.reshape(-1, 2) @ vectors_nm
    return np.asarray(corners[(np.abs(corners) <= reach_nm).all(axis=1)])


def rotation(angle_deg: float) -> NDArray[np.float64]:
    """Return the matrix that turns (row, col) vectors on its left from the columns' axis towards the rows'."""
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return np.array([[cos, -sin], [sin, cos]])
