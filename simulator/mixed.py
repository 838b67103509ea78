"""Mixed: every kind of procedural specimen by its name, and one of any kind (imports numpy only)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lowdose.scan_patterns.checks import nearest_name
from lowdose.simulator.biological import Biological
from lowdose.simulator.drawn import Drawn
from lowdose.simulator.interfaces import Interface
from lowdose.simulator.lattices import Lattice
from lowdose.simulator.nanostructures import CoreShell, GoldIslands, Holes, Nanoparticles, SingleAtoms
from lowdose.simulator.specimen import Procedural

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid

KINDS: dict[str, type[Drawn]] = {
    "procedural": Procedural,
    "nanoparticles": Nanoparticles,
    "lattice": Lattice,
    "interface": Interface,
    "core_shell": CoreShell,
    "gold_islands": GoldIslands,
    "single_atoms": SingleAtoms,
    "holes": Holes,
    "biological": Biological,
}
"""Every kind of procedural specimen."""


@dataclass(frozen=True, slots=True)
class Mixed(Drawn):
    """A specimen of any kind, chosen by the seed: what a network is trained on.

    Parameters
    ----------
    seed : int
        Of everything random in it, >= 0.
    kind : str, optional
        A row of `KINDS`; drawn from them.
    """

    CHOICES: ClassVar[Mapping[str, Collection[str]]] = {"kind": KINDS}

    kind: str | None = None

    def draw(self, grid: ScanGrid, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the specimen as share of full scale, (rows, cols) float32 in [0, 1]."""
        return KINDS[self.choice("kind", rng)]().draw(grid, rng)


def draw(kind: str, grid: ScanGrid, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a new specimen with every parameter drawn, for training.

    Parameters
    ----------
    kind : str
        A row of `KINDS`, or "mixed".
    grid : ScanGrid
        Its pixel size says which details show.
    rng : numpy.random.Generator
        Advances, so that the next call draws another specimen.

    Returns
    -------
    (rows, cols) float32 ndarray
        Share of full scale, [0, 1].

    Raises
    ------
    ValueError
        If there is no such kind; the message gives the nearest one.

    Examples
    --------
    >>> import numpy as np
    >>> from lowdose.scan_patterns import ScanGrid
    >>> draw("mixed", ScanGrid((64, 96)), np.random.default_rng(1)).shape
    (64, 96)
    """
    if kind == "mixed":
        return Mixed().draw(grid, rng)
    if kind not in KINDS:
        raise ValueError(f"unknown specimen {kind!r}: {nearest_name(kind, [*KINDS, 'mixed'])}")
    return KINDS[kind]().draw(grid, rng)
