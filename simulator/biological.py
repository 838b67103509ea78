"""Biological specimens: membranes, vesicles, filaments and proteins of low contrast (imports numpy only)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lowdose.simulator.canvas import Canvas
from lowdose.simulator.drawn import Drawn, Span, branches, share_of_full_scale

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid


@dataclass(frozen=True, slots=True)
class Biological(Drawn):
    """Stained or frozen biological matter: details of some per cent on a background of electrons.

    Sizes follow the field of view.

    Parameters
    ----------
    seed : int
        Of everything random in it, >= 0.
    scene : "vesicles", "tissue" or "proteins", optional
        Vesicles among filaments, a stained section of cells, or one kind of ring-shaped molecule from all sides;
        drawn.
    background : float, optional
        Mean share of full scale; drawn from 0.15 to 0.35.
    contrast : float, optional
        Of the details, relative to the background; drawn from 0.15 to 0.45.
    """

    SPANS: ClassVar[Mapping[str, Span]] = {"background": Span(0.15, 0.35, 0, 0.9), "contrast": Span(0.15, 0.45, 0, 2)}
    CHOICES: ClassVar[Mapping[str, Collection[str]]] = {"scene": ("vesicles", "tissue", "proteins")}

    scene: str | None = None
    background: float | None = None
    contrast: float | None = None

    def draw(self, grid: ScanGrid, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the specimen as share of full scale, (rows, cols) float32 in [0, 1]."""
        canvas, scene = Canvas(grid), SCENES[self.choice("scene", rng)]
        background, contrast = self.value("background", rng), self.value("contrast", rng)
        for_scene, for_ice = branches(rng, 2)
        image = np.float32(contrast) * scene(canvas, for_scene)
        image += 1 + np.float32(0.1) * canvas.waves(for_ice.uniform(0.5, 1.5, 8) * canvas.edge_nm, for_ice)
        texture = canvas.waves(for_ice.uniform(0.012, 0.04, 64) * canvas.edge_nm, for_ice)
        image += np.float32(0.03 * canvas.resolved(0.02 * canvas.edge_nm)) * texture
        image *= np.float32(background)
        return share_of_full_scale(image)


def vesicles(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return round membranes with their contents, small dots, and filaments."""
    edge = canvas.edge_nm
    image = filaments(canvas, int(rng.integers(2, 9)), rng)
    for _ in range(int(rng.integers(8, 26))):
        centre = rng.uniform(-0.05, 1.05, 2) * canvas.fov_nm
        radius = 0.06 * edge * math.exp(0.5 * rng.standard_normal())
        membrane = max(0.006 * edge, 2 * canvas.pixel_nm)
        content, squeeze, angle = rng.uniform([-0.1, 0.85, 0], [0.5, 1.0, math.pi])
        index, row, col = canvas.patch((float(centre[0]), float(centre[1])), 1.25 * radius + membrane)
        along = np.float32(math.cos(angle)) * row + np.float32(math.sin(angle)) * col
        across = np.float32(math.cos(angle)) * col - np.float32(math.sin(angle)) * row
        r2 = np.asarray(along**2 * np.float32(squeeze) + across**2 / np.float32(squeeze), np.float32)
        shell = _ball(r2, radius + membrane / 2) - _ball(r2, radius - membrane / 2)
        image[index] += shell * np.float32(0.45 / math.sqrt(2 * radius * membrane))
        image[index] += _ball(r2, radius) * np.float32(content / (2 * radius))
    return image + ribosomes(canvas, int(rng.integers(50, 300)), rng)


def filaments(canvas: Canvas, n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return n filaments across the field, which bend a little."""
    step, width = 0.004 * canvas.edge_nm, 0.005 * canvas.edge_nm
    n_steps = 500
    turns = np.cumsum(0.045 * rng.standard_normal((n, n_steps)), axis=1)  # a worm-like chain
    turns += rng.uniform(0, 2 * math.pi, (n, 1))
    paths = np.cumsum(np.stack([np.sin(turns), np.cos(turns)], axis=-1) * step, axis=1)
    paths += (rng.uniform(0.2, 0.8, (n, 1, 2)) * canvas.fov_nm) - paths[:, n_steps // 2, None]
    height = 0.8 * step / (math.sqrt(2 * math.pi) * width)
    return canvas.peaks(paths.reshape(-1, 2), np.full(n * n_steps, height), width)


def ribosomes(canvas: Canvas, n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return n small dots in loose groups."""
    groups = rng.uniform(0, 1, (8, 2))[rng.integers(0, 8, n)] + 0.09 * rng.standard_normal((n, 2))
    return canvas.peaks(groups * canvas.fov_nm, rng.uniform(0.3, 0.8, n), 0.006 * canvas.edge_nm)


def tissue(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a section: dark membranes between cells, mitochondria with their folds, grainy cytoplasm."""
    edge = canvas.edge_nm
    cells = canvas.waves(rng.uniform(0.3, 0.8, 24) * edge, rng)
    image = np.float32(0.9) * _contour(canvas, cells, 0.005 * edge)
    image += np.float32(0.2) * np.clip(6 * cells - 5, 0, 1)
    cytoplasm = canvas.waves(rng.uniform(0.02, 0.06, 48) * edge, rng)
    image += np.float32(0.12 * canvas.resolved(0.03 * edge)) * cytoplasm
    bend = canvas.waves(rng.uniform(0.06, 0.15, 16) * edge, rng)
    for _ in range(int(rng.integers(2, 9))):
        _add_mitochondrion(canvas, image, bend, rng)
    return image + ribosomes(canvas, int(rng.integers(80, 400)), rng)


def proteins(canvas: Canvas, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return molecules of one kind, rings stacked to a barrel, seen from above and from the side."""
    edge = canvas.edge_nm
    size, n_units, n_rings = edge * rng.uniform(0.018, 0.04), int(rng.integers(6, 13)), int(rng.integers(1, 5))
    n = int(0.25 * (edge / (3 * size)) ** 2) + 1
    angle = 2 * math.pi * np.arange(n_units) / n_units
    heights = (np.arange(n_rings) - (n_rings - 1) / 2) * 0.55
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(n_units)], axis=1)
    units = (ring + np.array([0, 0, 1]) * heights[:, None, None]).reshape(-1, 3) * size
    turns = np.linalg.qr(rng.standard_normal((n, 3, 3)))[0]
    upright = rng.random(n) < 0.4
    turns[upright] = np.eye(3)
    centres = np.array(_apart(canvas, 2.6 * size, n, rng))
    positions = (units @ turns)[..., :2] + centres[:, None]
    return canvas.peaks(positions.reshape(-1, 2), np.full(positions[..., 0].size, 0.35), 0.24 * size)


SCENES: dict[str, Callable[[Canvas, np.random.Generator], NDArray[np.float32]]] = {
    "vesicles": vesicles,
    "tissue": tissue,
    "proteins": proteins,
}


def _ball(r2: NDArray[np.float32], radius: float) -> NDArray[np.float32]:
    """Return the thickness of a ball at squared distances from its centre."""
    return np.asarray(2 * np.sqrt(np.maximum(np.float32(max(radius, 0) ** 2) - r2, 0)))


def _contour(canvas: Canvas, field: NDArray[np.float32], width_nm: float) -> NDArray[np.float32]:
    """Return lines of even width where a smooth field is zero, 1 on them."""
    width = np.float32(max(width_nm, canvas.pixel_nm) / canvas.pixel_nm)
    slope = np.full(field.shape, 1e-12, np.float32)
    slope[1:] += np.diff(field, axis=0) ** 2
    slope[:, 1:] += np.diff(field, axis=1) ** 2
    return np.asarray(np.exp(-(field**2) / (slope * width**2)))


def _add_mitochondrion(
    canvas: Canvas, image: NDArray[np.float32], bend: NDArray[np.float32], rng: np.random.Generator
) -> None:
    """Add an oblong body of dense matrix, its membrane and its folds, in place."""
    centre, angle = rng.uniform(0, 1, 2) * canvas.fov_nm, rng.uniform(0, math.pi)
    long, short = canvas.edge_nm * rng.uniform([0.08, 0.045], [0.16, 0.07])
    index, row, col = canvas.patch((float(centre[0]), float(centre[1])), 1.2 * long)
    along = np.float32(math.cos(angle)) * row + np.float32(math.sin(angle)) * col
    across = np.float32(math.cos(angle)) * col - np.float32(math.sin(angle)) * row
    depth = (1 - np.sqrt((along / np.float32(long)) ** 2 + (across / np.float32(short)) ** 2)) * np.float32(short)
    inside = canvas.ramp(depth, 0.0)
    width = np.float32(max(0.004 * canvas.edge_nm, canvas.pixel_nm))
    membrane = np.exp(-((depth / width) ** 2))
    folds = np.cos(along * np.float32(2 * math.pi / (0.022 * canvas.edge_nm)) + np.float32(1.2) * bend[index])
    matrix = np.float32(0.3) + np.float32(0.4) * np.clip(2 * folds - np.float32(0.6), 0, 1)
    image[index] *= 1 - inside
    image[index] += inside * matrix + np.float32(0.6) * membrane


def _apart(canvas: Canvas, distance_nm: float, n: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Return n places, most of them at least `distance_nm` apart, (row, col) [nm]."""
    places = rng.uniform(0, 1, (1, 2)) * canvas.fov_nm
    for trials in rng.uniform(0, 1, (n - 1, 6, 2)) * canvas.fov_nm:
        gaps = np.linalg.norm(trials[:, None] - places, axis=-1).min(axis=1)
        places = np.vstack([places, trials[int(np.argmax(gaps > distance_nm))]])
    return [(float(row), float(col)) for row, col in places]
