"""Interfaces: crystals grown on one another, strained to fit, in annular dark field (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lowdose.simulator.canvas import Canvas
from lowdose.simulator.crystals import CRYSTALS, PAIRS, rotation
from lowdose.simulator.defects import Columns, column_signals, dislocate
from lowdose.simulator.drawn import Drawn, Span, branches
from lowdose.simulator.lattices import (
    MARGIN_NM,
    ROUGHNESS,
    crystal_share,
    edge_distance,
    foil_image,
    mean_signal,
    peak_sigma,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.simulator.crystals import Crystal


@dataclass(frozen=True, slots=True)
class Interface(Drawn):
    """Layers of two crystals in turn, the second one the substrate: their rows keep step, their heights do not.

    In the plane of the layers all have the substrate's spacing; along the direction of growth each has its own.

    Parameters
    ----------
    seed : int
        Of everything random in it, >= 0.
    pair : str, optional
        A row of `PAIRS`; drawn from them.
    rotation_deg : float, optional
        Of the layers from the fast axis [degree]; drawn from -20 to 20.
    interfaces : int, optional
        Between the layers in the field; drawn from 1 to 4.
    intermixing_nm : float, optional
        Root mean square height over which the crystals mix at an interface [nm]; drawn from 0 to 0.6.
    misfit_dislocations : int, optional
        At the interfaces; drawn from 0 to 2.
    vacancies : float, optional
        Share of the columns that are missing; drawn from 0 to 0.01.
    probe_nm : float, optional
        Full width of the probe at half maximum [nm]; drawn from 0.07 to 0.11.
    """

    SPANS: ClassVar[Mapping[str, Span]] = {
        "rotation_deg": Span(-20, 20, -360, 360),
        "interfaces": Span(1, 4, 1, 50),
        "intermixing_nm": Span(0, 0.6, 0, 10),
        "misfit_dislocations": Span(0, 2, 0, 20),
        "vacancies": Span(0, 0.01, 0, 1),
        "probe_nm": Span(0.07, 0.11, 0.02, 1),
    }
    CHOICES: ClassVar[Mapping[str, Collection[str]]] = {"pair": PAIRS}

    pair: str | None = None
    rotation_deg: float | None = None
    interfaces: int | None = None
    intermixing_nm: float | None = None
    misfit_dislocations: int | None = None
    vacancies: float | None = None
    probe_nm: float | None = None

    def draw(self, grid: ScanGrid, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the specimen as share of full scale, (rows, cols) float32 in [0, 1]."""
        canvas = Canvas(grid)
        layer, substrate = (CRYSTALS[name] for name in PAIRS[self.choice("pair", rng)])
        turn = rotation(self.value("rotation_deg", rng))
        probe_nm, mixing_nm = self.value("probe_nm", rng), self.value("intermixing_nm", rng)
        n_layers, n_cores = self.count("interfaces", rng) + 1, self.count("misfit_dislocations", rng)
        for_stack, for_columns, for_film = branches(rng, 3)
        strained = replace(layer, a_nm=substrate.a_nm)
        stack = Stack((substrate, strained), layer_boundaries(canvas, n_layers, for_stack), turn)
        mean = stack.mean(canvas, probe_nm, mixing_nm)
        share = crystal_share(canvas, substrate, probe_nm)
        signal = np.float32(1 - share) * mean
        if share > 0:
            columns, heights = stack.columns(canvas, for_columns)
            heights += mixing_nm * for_columns.standard_normal(len(heights))
            burgers_nm = substrate.vectors_nm[0] @ turn
            positions = dislocate(columns.positions_nm, stack.cores(canvas, n_cores, for_columns), burgers_nm)
            host = stack.signals[stack.kind(heights), columns.sites] * share
            vacancies = self.value("vacancies", for_columns)
            signals = column_signals(host, host, vacancies=vacancies, dopants=0, roughness=ROUGHNESS, rng=for_columns)
            signal += canvas.peaks(positions, signals, peak_sigma(probe_nm))
        return foil_image(canvas, signal, mean, edge_distance(canvas, 0, for_film), for_film)


def layer_boundaries(canvas: Canvas, n_layers: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the heights of the interfaces above the middle of the field, ascending [nm]."""
    thickness = rng.uniform(0.5, 1.5, n_layers)
    return np.asarray((np.cumsum(thickness)[:-1] / thickness.sum() - 0.5) * canvas.edge_nm)


@dataclass(frozen=True)
class Stack:
    """Layers of two crystals in turn.

    Parameters
    ----------
    crystals : pair of Crystal
        The first one lies below all boundaries and gives the spacing along the layers.
    boundaries_nm : (n,) float ndarray
        Heights of the interfaces above the middle of the field, ascending [nm].
    turn : (2, 2) float ndarray
        Rotation of the layers; unturned, height counts along the rows.
    """

    crystals: tuple[Crystal, Crystal]
    boundaries_nm: NDArray[np.float64]
    turn: NDArray[np.float64]

    @property
    def signals(self) -> NDArray[np.float64]:
        """(2, n_sites) scattering of the crystals' columns, in units of the brightest."""
        signals = np.stack([crystal.signals for crystal in self.crystals])
        return np.asarray(signals / signals.max())

    def kind(self, heights_nm: NDArray[np.float64] | float) -> NDArray[np.intp]:
        """Return which crystal there is at heights above the middle of the field, 0 or 1."""
        return np.asarray(np.searchsorted(self.boundaries_nm, heights_nm) % 2)

    def mean(self, canvas: Canvas, probe_nm: float, mixing_nm: float) -> NDArray[np.float32]:
        """Return the mean signal of the columns around every pixel, (rows, cols) in units of the brightest."""
        middle = np.array(canvas.fov_nm, np.float32) / 2
        down, right = self.turn[0].astype(np.float32)
        height = (canvas.row_nm - middle[0]) * down + (canvas.col_nm - middle[1]) * right
        low, high = (mean_signal(c, probe_nm) * s.max() for c, s in zip(self.crystals, self.signals, strict=True))
        mean = np.full(canvas.shape, low, np.float32)
        for i, boundary in enumerate(self.boundaries_nm):
            step = canvas.ramp(height - np.float32(boundary), 0.4 + 3 * mixing_nm)
            mean += np.float32((high - low) * (-1) ** i) * step
        return mean

    def columns(self, canvas: Canvas, rng: np.random.Generator) -> tuple[Columns, NDArray[np.float64]]:
        """Return the columns in the field and close around it, and their heights above its middle [nm]."""
        reach = math.hypot(*canvas.fov_nm) / 2 + MARGIN_NM
        rows, a_nm = self._row_heights(reach, float(rng.uniform(0, 1))), self.crystals[0].a_nm
        along = np.arange(-math.ceil(reach / a_nm), math.ceil(reach / a_nm) + 1) * a_nm + rng.uniform(0, a_nm)
        middle = np.array(canvas.fov_nm) / 2
        corners = np.stack(np.meshgrid(rows, along, indexing="ij"), axis=-1).reshape(-1, 2)
        corners = corners[(np.abs(corners @ self.turn) < middle + MARGIN_NM).all(axis=1)]
        offsets = np.stack([crystal.offsets_nm for crystal in self.crystals])
        cells = corners[:, None] + offsets[self.kind(corners[:, 0])]  # (cells, sites, 2)
        flat = cells.reshape(-1, 2)
        return Columns(flat @ self.turn + middle, np.tile(np.arange(cells.shape[1]), len(cells))), flat[:, 0]

    def cores(self, canvas: Canvas, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return where n misfit dislocations lie in the interfaces, (n, 2) as (row, col) [nm]."""
        heights = rng.choice(self.boundaries_nm, n)
        along = rng.uniform(-0.35, 0.35, n) * canvas.edge_nm
        return np.asarray(np.stack([heights, along], axis=1) @ self.turn + np.array(canvas.fov_nm) / 2)

    def _row_heights(self, reach_nm: float, start: float) -> NDArray[np.float64]:
        """Return the heights of the cells' lower edges from -reach to reach: each crystal has its own spacing."""
        heights = [-reach_nm - start * self.crystals[0].b_nm]
        while heights[-1] < reach_nm:
            heights.append(heights[-1] + self.crystals[int(self.kind(heights[-1]))].b_nm)
        return np.array(heights)
