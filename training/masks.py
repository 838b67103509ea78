"""Masks of a pattern with all that filling them in needs, worked out once (imports numpy and scipy)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lowdose.reconstruction.infill import InfillMap, PathMaps, linear_map, nearest_map
from lowdose.reconstruction.lattice_infill import lattice_maps
from lowdose.scan_patterns.grid import ScanGrid
from lowdose.scan_patterns.spiral import blurred_mask
from lowdose.training.data_store import DataError, entry_name
from lowdose.training.pattern_choice import drawn_parameters, make_pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lowdose.scan_patterns.path import ScanPath
    from lowdose.training.data_settings import PatternMix
    from lowdose.training.data_store import Store

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of the stored arrays; a change makes them anew."""
MIN_MEASURED = 4
"""Pixels; crops of a wide spiral with fewer are drawn again."""
MAX_TRIES = 100


@dataclass(frozen=True, slots=True)
class Samples:
    """The probe positions that fall into a mask's field, in order.

    Parameters
    ----------
    positions : (m, 2) float32 ndarray
        (row, col) [pixel], sub-pixel.
    dwell : (m,) float32 ndarray
        Dwell time over the nominal one.
    measured : (m,) intp ndarray
        Which of the measured pixels each falls into.
    """

    positions: NDArray[np.float32]
    dwell: NDArray[np.float32]
    measured: NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Mask:
    """Where a picture is measured.

    Parameters
    ----------
    maps : PathMaps
        How the rest is filled; `linear` is None where it was not asked for.
    dwell : (v,) float32 ndarray
        Visits of each measured pixel or, of a blurred mask, its share of the signal.
    samples : Samples
        How it was measured.
    coverage : float
        Nominal, 1 if the pattern has none.
    """

    maps: PathMaps
    dwell: NDArray[np.float32]
    samples: Samples
    coverage: float

    @property
    def visited(self) -> NDArray[np.intp]:
        """(v,) flat indices of the measured pixels, ascending."""
        return self.maps.nearest.visited

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the picture."""
        return self.maps.distance.shape[0], self.maps.distance.shape[1]


class MaskPool:
    """The masks of a pattern.

    Parameters
    ----------
    mix : PatternMix
        Pattern, and how many.
    edge_px : int
        Of the picture [pixel].
    entropy : tuple of int
        Seeds all of them.
    store : Store
        Keeps them.
    linear : bool
        Whether linear infill is needed; it takes 30 ms for a mask of 128 x 128 px.
    blurred : bool
        The published masks of short dwell times instead of measured-or-not.

    Raises
    ------
    DataError
        If the pattern does not fit the field.
    """

    def __init__(
        self, mix: PatternMix, edge_px: int, entropy: tuple[int, ...], store: Store, *, linear: bool, blurred: bool
    ) -> None:
        self._mix, self._edge_px, self._entropy = mix, edge_px, entropy
        self._linear, self._blurred, self._store = linear, blurred, store
        described = (sorted(mix.pattern.items()), mix.n, mix.field_px, edge_px, linear, blurred, entropy)
        self._entry = entry_name("masks", FORMAT, version("lowdose"), described, _changed_ns(mix.pattern.get("path")))
        self._on_lattice: dict[int, PathMaps] = {}
        self._arrays()  # built now, not with the first example

    def __len__(self) -> int:
        return self._mix.n

    def __getitem__(self, index: int) -> Mask:
        if not 0 <= index < len(self):
            raise IndexError(f"mask {index} of {len(self)}")
        arrays = self._arrays()
        own = {name: _part(arrays, name, index) for name in ("visited", "dwell", "positions", "dwells", "measured")}
        samples = Samples(own["positions"], own["dwells"], own["measured"])
        return Mask(self._maps(arrays, index, own["visited"]), own["dwell"], samples, float(arrays["coverage"][index]))

    @property
    def coverages(self) -> list[float]:
        """Nominal coverage of every mask."""
        return [float(coverage) for coverage in self._arrays()["coverage"]]

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return self._store.get(self._entry, self._make)

    def _maps(self, arrays: dict[str, NDArray[Any]], index: int, visited: NDArray[np.intp]) -> PathMaps:
        row, shape = int(arrays["row"][index]), (self._edge_px, self._edge_px)
        if row < 0:
            if index not in self._on_lattice:
                self._on_lattice[index] = cast("PathMaps", lattice_maps(_scattered(visited, shape)))
            return self._on_lattice[index]
        nearest = InfillMap(visited, arrays["nearest"][row], None, shape)
        linear = InfillMap(visited, arrays["sources"][row], arrays["weights"][row], shape) if self._linear else None
        return PathMaps(nearest, arrays["distance"][row], linear)

    def _make(self) -> Iterator[tuple[str, NDArray[Any]]]:
        logger.info("making %d masks of %s", self._mix.n, self._mix.pattern)
        made = [self._one(index) for index in range(self._mix.n)]
        for name in ("visited", "dwell", "positions", "dwells", "measured"):
            parts = [mask[name] for mask in made]
            yield name, np.concatenate(parts)
            yield f"{name}_first", np.cumsum([0, *(len(part) for part in parts)])
        yield "coverage", np.array([mask["coverage"] for mask in made])
        scattered = [mask for mask in made if "nearest" in mask]
        rows = np.cumsum(["nearest" in mask for mask in made]) - 1
        yield "row", np.where(["nearest" in mask for mask in made], rows, -1)
        for name in ("nearest", "distance", *(("sources", "weights") if self._linear else ())):
            if scattered:
                yield name, np.stack([mask[name] for mask in scattered])

    def _one(self, index: int) -> dict[str, Any]:
        """Return the arrays of a mask; without infill maps if it is a lattice, whose own are made in no time."""
        made = self._laid_out(index)
        mask = _scattered(made["visited"], (self._edge_px, self._edge_px))
        if lattice_maps(mask) is not None:
            return made
        nearest, made["distance"] = nearest_map(mask)
        kind = np.uint16 if mask.size <= 1 << 16 else np.int32  # a quarter of the memory of an index
        made["nearest"] = nearest.sources.astype(kind)
        if self._linear:
            linear = linear_map(mask, nearest)
            weights = np.ones((1, mask.size), np.float32) if linear.weights is None else linear.weights
            missing = [(0, 3 - len(weights)), (0, 0)]  # all on one line: one source instead of three
            made["sources"] = np.pad(linear.sources, missing).astype(kind)
            made["weights"] = np.pad(weights, missing)
        return made

    def _laid_out(self, index: int) -> dict[str, Any]:
        """Return one crop of a path of the pattern, with enough in it to make a picture of."""
        rng = np.random.default_rng([*self._entropy, index])
        field_px = self._mix.field_px or self._edge_px
        pattern = make_pattern(drawn_parameters(self._mix.pattern, index, rng))
        try:
            cycle = pattern.paths(ScanGrid((field_px, field_px)), dwell_time_us=1.0, rng=rng)
        except ValueError as error:
            raise DataError(f"pattern {self._mix.pattern} on {field_px} x {field_px} px: {error}") from None
        path = cycle[int(rng.integers(len(cycle)))]
        for _ in range(MAX_TRIES):
            corner = rng.integers(0, field_px - self._edge_px + 1, 2)
            made = self._cropped(path, corner)
            if len(made["visited"]) >= MIN_MEASURED:
                return {**made, "coverage": getattr(pattern, "coverage", 1.0)}
        raise DataError(
            f"pattern {self._mix.pattern} measures fewer than {MIN_MEASURED} pixels of a crop of {self._edge_px} px: "
            "use a higher coverage or a larger crop"
        )

    def _cropped(self, path: ScanPath, corner: NDArray[np.int64]) -> dict[str, Any]:
        window = tuple(slice(first, first + self._edge_px) for first in corner)
        shown = (blurred_mask(path.mask) if self._blurred else path.hits)[window].reshape(-1)
        visited = np.flatnonzero(shown)
        rank = np.cumsum(shown > 0) - 1
        pixels = path.pixels - corner
        inside = ((pixels >= 0) & (pixels < self._edge_px)).all(axis=1)
        return {
            "visited": visited,
            "dwell": shown[visited].astype(np.float32),
            "positions": path.positions[inside] - corner.astype(np.float32),
            "dwells": path.dwell_times_us[inside],
            "measured": rank[pixels[inside] @ (self._edge_px, 1)],
        }


def _part(arrays: dict[str, NDArray[Any]], name: str, index: int) -> NDArray[Any]:
    first, stop = arrays[f"{name}_first"][index : index + 2]
    return arrays[name][first:stop]


def _scattered(visited: NDArray[np.intp], shape: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, np.bool_)
    mask.reshape(-1)[visited] = True
    return mask


def _changed_ns(path: object) -> int:
    """Return when a file of points, if that is what a pattern reads, was changed: its masks are made anew then."""
    file = Path(path).expanduser() if isinstance(path, str) else None
    return file.stat().st_mtime_ns if file is not None and file.is_file() else 0
