"""Lattices: crystals along a zone axis with their defects, in annular dark field (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lowdose.simulator.canvas import FWHM, Canvas
from lowdose.simulator.crystals import CRYSTALS, cells_within, rotation
from lowdose.simulator.defects import Columns, column_signals, dislocate, grain_centres, strain_waves, within_grain
from lowdose.simulator.drawn import FILM, VACUUM, Drawn, Span, branches, film_thickness, share_of_full_scale

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.simulator.crystals import Crystal

VIBRATION_NM = 0.03
"""Standard deviation of a column by the vibration of its atoms and the size of the source [nm]."""

FOIL_NM = 12.0
"""Thickness of a foil [nm]: tilted, its columns look as long as its upper end is off its lower."""

ROUGHNESS = 0.04
"""Standard deviation of the thickness of a foil from column to column, relative to it."""

TAILS = 0.5
"""Share of a foil's signal that comes from beside the column the probe is on."""

SEAM = 0.2
"""Empty seam on either side of a grain boundary in units of the distance between lattice planes."""

MARGIN_NM = 1.0
"""Around the field, from where defects may move columns into it [nm]."""


@dataclass(frozen=True, slots=True)
class Lattice(Drawn):
    """A crystal along a zone axis: a foil or a monolayer, perhaps with an edge to the vacuum.

    Columns shine by the atomic number to the power of 1.7 and by thickness. Pixels larger than a third of the
    planes' distance show no lattice.

    Parameters
    ----------
    seed : int
        Of everything random in it, >= 0.
    crystal : str, optional
        A row of `CRYSTALS`; drawn from them.
    rotation_deg : float, optional
        Of the cell's a axis from the fast axis [degree]; drawn from 0 to 90.
    strain : float, optional
        Root mean square of the strain, which varies slowly over the field; drawn from 0 to 0.008.
    tilt_mrad : float, optional
        Off the zone axis, which makes a foil's columns oblong [mrad]; drawn from 0 to 10.
    vacancies : float, optional
        Share of the columns that are missing; drawn from 0 to 0.02.
    dopants : float, optional
        Share of the columns of some sites that are of another element; drawn from 0 to 0.06.
    dislocations : int, optional
        Edge dislocations in the field, Burgers vector a; drawn from 0 to 2.
    grains : int, optional
        Grains in the field, with boundaries between them; drawn from 1 to 3.
    vacuum : float, optional
        Share of the field beyond the crystal's edge; drawn from -0.6 to 0.4, none where negative.
    probe_nm : float, optional
        Full width of the probe at half maximum [nm]; drawn from 0.07 to 0.11.
    """

    SPANS: ClassVar[Mapping[str, Span]] = {
        "rotation_deg": Span(0, 90, -360, 360),
        "strain": Span(0, 0.008, 0, 0.1),
        "tilt_mrad": Span(0, 10, 0, 15),
        "vacancies": Span(0, 0.02, 0, 1),
        "dopants": Span(0, 0.06, 0, 1),
        "dislocations": Span(0, 2, 0, 20),
        "grains": Span(1, 3, 1, 50),
        "vacuum": Span(-0.6, 0.4, 0, 0.9),
        "probe_nm": Span(0.07, 0.11, 0.02, 1),
    }
    CHOICES: ClassVar[Mapping[str, Collection[str]]] = {"crystal": CRYSTALS}

    crystal: str | None = None
    rotation_deg: float | None = None
    strain: float | None = None
    tilt_mrad: float | None = None
    vacancies: float | None = None
    dopants: float | None = None
    dislocations: int | None = None
    grains: int | None = None
    vacuum: float | None = None
    probe_nm: float | None = None

    def draw(self, grid: ScanGrid, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the specimen as share of full scale, (rows, cols) float32 in [0, 1]."""
        canvas, crystal = Canvas(grid), CRYSTALS[self.choice("crystal", rng)]
        probe_nm, vacuum = self.value("probe_nm", rng), self.value("vacuum", rng)
        for_columns, for_signals, for_tilt, for_edge, for_film = branches(rng, 5)
        from_edge = edge_distance(canvas, vacuum, for_edge)
        share = crystal_share(canvas, crystal, probe_nm)
        if share > 0:
            columns = self.columns(canvas, crystal, for_columns)
            signals = self._signals(crystal, columns, for_signals)
            signals *= canvas.sample(from_edge, columns.positions_nm) > 0
            peaks = self._peaks(canvas, crystal, columns.positions_nm, signals, probe_nm, for_tilt)
            signal = lattice_signal(peaks, crystal, share, probe_nm)
        else:
            signal = np.full(canvas.shape, mean_signal(crystal, probe_nm), np.float32)
        if crystal.monolayer:
            return monolayer_image(canvas, signal, from_edge, for_film)
        return foil_image(canvas, signal, np.float32(mean_signal(crystal, probe_nm)), from_edge, for_film)

    def columns(self, canvas: Canvas, crystal: Crystal, rng: np.random.Generator) -> Columns:
        """Return the columns in the field and close around it: of every grain those within its boundaries."""
        turn, strain = self.value("rotation_deg", rng), self.value("strain", rng)
        n_cores, n_grains = self.count("dislocations", rng), self.count("grains", rng)
        for_strain, for_grains, for_cores = branches(rng, 3)
        cores = for_cores.uniform(0.15, 0.85, (n_cores, 2)) * canvas.fov_nm
        centres = grain_centres(canvas, n_grains, for_grains)
        grains = []
        for i, more in enumerate([0.0, *rng.uniform(8, 82, n_grains - 1)]):
            cell = crystal.vectors_nm @ rotation(turn + more)
            grain = place_columns(canvas, crystal, cell, cores, rng, centres_nm=centres, grain=i)
            grains.append(grain.where(within_grain(grain.positions_nm, centres, i, SEAM * crystal.period_nm)))
        positions = np.concatenate([grain.positions_nm for grain in grains])
        positions += strain_waves(canvas, positions, strain, for_strain)
        return Columns(positions, np.concatenate([grain.sites for grain in grains]))

    def _signals(self, crystal: Crystal, columns: Columns, rng: np.random.Generator) -> NDArray[np.float64]:
        vacancies, dopants = self.value("vacancies", rng), self.value("dopants", rng)
        host, doped = crystal.signals[columns.sites], crystal.doped_signals[columns.sites]
        roughness = 0.0 if crystal.monolayer else ROUGHNESS
        return column_signals(host, doped, vacancies=vacancies, dopants=dopants, roughness=roughness, rng=rng)

    def _peaks(
        self,
        canvas: Canvas,
        crystal: Crystal,
        positions_nm: NDArray[np.float64],
        signals: NDArray[np.float64],
        probe_nm: float,
        rng: np.random.Generator,
    ) -> NDArray[np.float32]:
        tilt, towards = self.value("tilt_mrad", rng) / 1000, rng.uniform(0, math.pi)
        # two ends with the variance of the whole line between them
        end = FOIL_NM * math.tan(tilt) / math.sqrt(12) * np.array([math.sin(towards), math.cos(towards)])
        if crystal.monolayer or 2 * np.linalg.norm(end) < canvas.pixel_nm:
            return canvas.peaks(positions_nm, signals, peak_sigma(probe_nm))
        both = np.concatenate([positions_nm - end, positions_nm + end])
        return canvas.peaks(both, np.tile(signals / 2, 2), peak_sigma(probe_nm))


def place_columns(
    canvas: Canvas,
    crystal: Crystal,
    vectors_nm: NDArray[np.float64],
    cores_nm: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    centres_nm: NDArray[np.float64],
    grain: int,
) -> Columns:
    """Return the columns of one grain and close around it, moved by the dislocations."""
    middle, margin = np.array(canvas.fov_nm) / 2, MARGIN_NM + 0.03 * canvas.edge_nm
    reach = (float(middle[0]) + margin, float(middle[1]) + margin)
    corners = cells_within(vectors_nm, reach) + middle + rng.uniform(0, 1, 2) @ vectors_nm
    corners = corners[within_grain(corners, centres_nm, grain, -margin)]
    offsets = crystal.offsets_nm @ np.linalg.solve(crystal.vectors_nm, vectors_nm)
    positions = dislocate((corners[:, None] + offsets).reshape(-1, 2), cores_nm, vectors_nm[0])
    return Columns(positions, np.tile(np.arange(len(offsets)), len(corners)))


def peak_sigma(probe_nm: float) -> float:
    """Return the standard deviation of a column's peak under a probe of that full width [nm]."""
    return math.hypot(probe_nm / FWHM, VIBRATION_NM)


def crystal_share(canvas: Canvas, crystal: Crystal, probe_nm: float) -> float:
    """Return how much of the lattice the pixels and the probe show, 0 to 1."""
    return canvas.resolved(crystal.period_nm) if probe_nm < 2 * crystal.period_nm else 0.0


def mean_signal(crystal: Crystal, probe_nm: float) -> float:
    """Return the mean of a perfect crystal's peaks, in units of its brightest."""
    total = crystal.signals.sum() / crystal.signals.max()
    return float(total * 2 * math.pi * peak_sigma(probe_nm) ** 2 / crystal.area_nm2)


def lattice_signal(peaks: NDArray[np.float32], crystal: Crystal, share: float, probe_nm: float) -> NDArray[np.float32]:
    """Return the peaks in units of the brightest site, faded towards their mean where they are hardly resolved."""
    peaks *= np.float32(share / crystal.signals.max())
    peaks += np.float32((1 - share) * mean_signal(crystal, probe_nm))
    return peaks


def edge_distance(canvas: Canvas, vacuum: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return how far a pixel is inside an uneven edge of the crystal [nm]; nothing is outside when vacuum <= 0."""
    angle, wavelengths = rng.uniform(0, 2 * math.pi), rng.uniform(0.15, 0.8, 8) * canvas.edge_nm
    if vacuum <= 0:
        return np.full(canvas.shape, canvas.edge_nm, np.float32)
    row, col = np.float32(math.sin(angle)) * canvas.row_nm, np.float32(math.cos(angle)) * canvas.col_nm
    low = min(row[0, 0], row[-1, 0]) + min(col[0, 0], col[0, -1])
    high = max(row[0, 0], row[-1, 0]) + max(col[0, 0], col[0, -1])
    flat = row + col - np.float32(low + vacuum * (high - low))
    return np.asarray(flat + np.float32(0.02 * canvas.edge_nm) * canvas.waves(wavelengths, rng))


def foil_image(
    canvas: Canvas,
    signal: NDArray[np.float32],
    mean: NDArray[np.float32] | np.float32,
    from_edge: NDArray[np.float32],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Return a foil, thinner towards its edge, with the amorphous layer that preparation leaves on it.

    Parameters
    ----------
    canvas : Canvas
    signal, mean : (rows, cols) float32 ndarray
        Of the columns and of what is beside them, in units of the brightest column; `signal` is overwritten.
    from_edge : (rows, cols) float32 ndarray
        How far a pixel is inside the crystal's edge [nm].
    rng : numpy.random.Generator

    Returns
    -------
    (rows, cols) float32 ndarray
        Share of full scale.
    """
    level, wedge, layer = rng.uniform([0.6, 0.15, 0.01], [0.9, 1.2, 0.05])
    thickness = np.clip(from_edge / np.float32(wedge * canvas.edge_nm), 0, 1)
    np.sqrt(thickness, out=thickness)
    thickness *= 1 + np.float32(0.08) * canvas.waves(rng.uniform(0.5, 1.5, 6) * canvas.edge_nm, rng)
    signal *= np.float32(1 - TAILS)
    signal += np.float32(TAILS) * mean
    signal *= thickness * np.float32(level / (1 - TAILS + TAILS * np.max(mean)))
    amorphous = canvas.ramp(from_edge + np.float32(layer * canvas.edge_nm), 0.02 * canvas.edge_nm)
    amorphous *= film_thickness(canvas, rng)
    return share_of_full_scale(VACUUM + np.float32(0.6 * FILM) * amorphous + signal)


def monolayer_image(
    canvas: Canvas, signal: NDArray[np.float32], from_edge: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return a monolayer, partly under amorphous contamination."""
    level, clean = rng.uniform([0.3, 0.2], [0.6, 1.4])
    patches = canvas.waves(rng.uniform(0.2, 0.9, 14) * canvas.edge_nm, rng)
    dirt = np.clip(patches - np.float32(clean), 0, 1) * film_thickness(canvas, rng)
    dirt *= canvas.ramp(from_edge, 0.1)
    return share_of_full_scale(VACUUM + np.float32(1.2 * FILM) * dirt + np.float32(level) * signal)
