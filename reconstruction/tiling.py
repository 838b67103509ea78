"""Tiling: pictures larger than an engine's comfortable size, or no multiple of its sizes, go through it in tiles.

Tiles overlap. What an engine makes of a tile's edge is discarded where a neighbour knows better, and the neighbours are
blended beyond that, so that no seam shows. A picture that only needs padding is a tiling of one tile (numpy only).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import Engine, EngineInfo

DISCARDED_PX = 20
"""Of every inner tile edge by default: errors fall until about 20 px from the edge (Ede 2019, arXiv:1910.10467)."""
BLEND_PX = 16
"""Least width over which one tile gives way to the next."""


@dataclass(frozen=True, slots=True)
class AxisTiling:
    """Where the tiles of one axis lie.

    Parameters
    ----------
    length : int
        Of the picture [pixel].
    edge : int
        Of every tile [pixel].
    halo_px : int
        Discarded at each inner edge of a tile; at the picture's own edges nothing is.
    starts : tuple of int
        First pixel of each tile; the last tile ends at or, padded, beyond the picture's end.
    """

    length: int
    edge: int
    halo_px: int
    starts: tuple[int, ...]

    @property
    def padding(self) -> int:
        """Pixels the picture lacks at its end."""
        return self.starts[-1] + self.edge - self.length

    def lay(self, index: int, tile: NDArray[np.float32], onto: NDArray[np.float32], scale: int) -> None:
        """Lay tile number `index` onto those before it, along the last axis.

        Its first `halo_px` pixels are left out, unless it is the first; then it takes over in a linear ramp as long as
        the tile before is to be trusted, and covers what that tile has beyond. Equal values stay exactly equal.

        Parameters
        ----------
        index : int
            Tiles are laid in order.
        tile : (…, scale * edge) float32 ndarray
            What the engine made of it.
        onto : (…, at least scale * length) float32 ndarray
            Changed in place; the tile's end is cut off where this one ends.
        scale : int
            Output pixels per pixel.
        """
        begin = self.starts[index] + self.halo_px * (index > 0)
        trusted = self.starts[index - 1] + self.edge - self.halo_px if index > 0 else begin
        covered = onto[..., scale * begin : scale * (self.starts[index] + self.edge)]
        laid = tile[..., scale * (begin - self.starts[index]) :][..., : covered.shape[-1]]
        n = min(scale * (trusted - begin), covered.shape[-1])
        ramp = (np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(max(1, scale * (trusted - begin)))
        covered[..., :n] += (laid[..., :n] - covered[..., :n]) * ramp
        covered[..., n:] = laid[..., n:]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Where the tiles of a picture lie, by rows and by columns."""

    rows: AxisTiling
    cols: AxisTiling

    @property
    def placements(self) -> list[tuple[int, int]]:
        """(row, col) of every tile's first pixel, row after row."""
        return list(product(self.rows.starts, self.cols.starts))

    @property
    def is_trivial(self) -> bool:
        """The picture is one tile as it is."""
        return len(self.placements) == 1 and self.rows.padding == self.cols.padding == 0


def plan_tiling(
    shape: tuple[int, int], *, tile_px: int | None, halo_px: int = DISCARDED_PX, size_multiple: int = 1
) -> Tiling:
    """Return where the tiles of a picture lie: few, then small, evenly spread, at multiples of `size_multiple`.

    An engine with strides treats a shift by such a multiple alike, so tiles give what the whole picture would.

    Parameters
    ----------
    shape : (rows, cols)
        Of the picture.
    tile_px : int or None
        Longest edge of a tile, a multiple of `size_multiple`; a picture that is shorter along an axis makes one tile,
        padded to the size multiple only. None = the whole picture is one tile.
    halo_px : int
        Discarded at each inner edge of a tile.
    size_multiple : int
        Edges of a tile must be multiples of this.

    Raises
    ------
    ValueError
        If tiles of this size do not reach from halo to halo.

    Examples
    --------
    >>> tiling = plan_tiling((1024, 500), tile_px=512, size_multiple=32)
    >>> tiling.placements, (tiling.rows.edge, tiling.cols.edge), tiling.cols.padding
    ([(0, 0), (320, 0), (640, 0)], (384, 512), 12)
    """
    if min(shape) < 1:
        raise ValueError(f"a picture must have rows and columns, got {shape}")
    if halo_px < 0 or size_multiple < 1:
        raise ValueError(f"halo_px must be >= 0 and size_multiple >= 1, got {halo_px} and {size_multiple}")
    if tile_px is not None and (tile_px < 1 or tile_px % size_multiple):
        raise ValueError(f"tile_px must be a multiple of the engine's {size_multiple}, got {tile_px}")
    rows, cols = (_plan_axis(length, tile_px, halo_px, size_multiple) for length in shape)
    return Tiling(rows, cols)


def _plan_axis(length: int, tile_px: int | None, halo_px: int, multiple: int) -> AxisTiling:
    padded = _rounded_up(length, multiple)
    if tile_px is None or padded <= tile_px:
        return AxisTiling(length, padded, halo_px, (0,))
    overlap = 2 * halo_px + BLEND_PX
    longest_step = _rounded_down(tile_px - overlap, multiple)
    if longest_step < multiple:
        least = _rounded_up(overlap + multiple, multiple)
        raise ValueError(
            f"tile_px must be at least {least} for a halo of {halo_px} px and a blend of {BLEND_PX} px, got {tile_px}"
        )
    n_steps = -(-(padded - tile_px) // longest_step)
    edge = next(  # 3 tiles of 384 do for 1024 px what 3 of 512 do
        edge
        for edge in range(_rounded_up(padded // (n_steps + 1), multiple), tile_px + 1, multiple)
        if edge + n_steps * _rounded_down(edge - overlap, multiple) >= padded
    )
    way = (padded - edge) // multiple
    return AxisTiling(length, edge, halo_px, tuple(multiple * (i * way // n_steps) for i in range(n_steps + 1)))


def _rounded_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _rounded_down(length: int, multiple: int) -> int:
    return length // multiple * multiple


def run_tiled(
    engine: Engine,
    inputs: NDArray[np.float32],
    *,
    tile_px: int | None = None,
    batch: int = 1,
    halo_px: int | None = None,
) -> NDArray[np.float32]:
    """Return what an engine makes of pictures of any size.

    Parameters
    ----------
    engine : Engine
        Its `size_multiple` and `scale` are kept to.
    inputs : (batch, channels, rows, cols) float32 ndarray
        Any rows and cols: what is missing to the size multiple is reflected at the last row and column.
    tile_px : int or None
        Longest edge of a tile, see `plan_tiling`; None = no tiles, padding only.
    batch : int
        Tiles, of all pictures, given to the engine at a time.
    halo_px : int or None
        Discarded at each inner edge of a tile; None = the engine's own halo, at least 20 px.

    Returns
    -------
    (batch, 2, scale * rows, scale * cols) float32 ndarray
        Mean and standard deviation, blended with the same weights (a weighted mean of deviations: errors of
        neighbouring tiles come from the same measured values, so they do not average out).

    Raises
    ------
    ValueError
        If the tiles are too small for the halo, or the engine returns another shape than it promises.
    """
    if batch < 1:
        raise ValueError(f"batch must be >= 1, got {batch}")
    info = engine.info
    rows, cols = inputs.shape[2:]
    halo_px = max(DISCARDED_PX, info.halo_px) if halo_px is None else halo_px
    tiling = plan_tiling((rows, cols), tile_px=tile_px, halo_px=halo_px, size_multiple=info.size_multiple)
    if tiling.is_trivial and len(inputs) <= batch:
        return _run(engine, inputs)
    pictures = np.empty((len(inputs), 2, info.scale * rows, info.scale * cols), np.float32)
    outputs = _tile_outputs(engine, inputs, tiling, batch)
    strip = np.empty((2, info.scale * tiling.rows.edge, info.scale * cols), np.float32)
    for picture in pictures:
        for i in range(len(tiling.rows.starts)):
            for j in range(len(tiling.cols.starts)):
                tiling.cols.lay(j, next(outputs), strip, info.scale)
            tiling.rows.lay(i, strip.swapaxes(1, 2), picture.swapaxes(1, 2), info.scale)
    return pictures


def _tile_outputs(
    engine: Engine, inputs: NDArray[np.float32], tiling: Tiling, batch: int
) -> Iterator[NDArray[np.float32]]:
    """Yield (2, scale * edge, scale * edge) of every tile, picture after picture, running `batch` tiles at a time."""
    edges = (tiling.rows.edge, tiling.cols.edge)
    padded = np.pad(inputs, ((0, 0), (0, 0), (0, tiling.rows.padding), (0, tiling.cols.padding)), mode="reflect")
    places = [(picture, row, col) for picture in padded for row, col in tiling.placements]
    for first in range(0, len(places), batch):
        some = places[first : first + batch]
        tiles = np.stack([picture[:, row : row + edges[0], col : col + edges[1]] for picture, row, col in some])
        yield from _run(engine, tiles)


def _run(engine: Engine, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    outputs, scale = engine.run(tiles), engine.info.scale
    expected = (len(tiles), 2, scale * tiles.shape[2], scale * tiles.shape[3])
    if outputs.shape != expected:
        raise ValueError(f"engine '{engine.info.name}' returned {outputs.shape}, expected {expected}")
    return outputs


def require_tiles(info: EngineInfo, tile_px: int | None) -> None:
    """Raise ValueError if an engine cannot have tiles of this size, before the first picture comes."""
    if tile_px is not None:
        edge, halo_px = tile_px + 1, max(DISCARDED_PX, info.halo_px)
        plan_tiling((edge, edge), tile_px=tile_px, halo_px=halo_px, size_multiple=info.size_multiple)


class Tiled:
    """An engine for pictures of any size: pads them to its size multiple, and cuts large ones into tiles.

    Parameters
    ----------
    engine : Engine
        Runs the tiles.
    tile_px : int or None
        Longest edge of a tile; None = pictures are only padded.

    Raises
    ------
    ValueError
        If the engine cannot have tiles of this size.
    """

    def __init__(self, engine: Engine, *, tile_px: int | None = None) -> None:
        self.info, self._engine, self._tile_px = engine.info, engine, tile_px
        require_tiles(engine.info, tile_px)

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return mean and standard deviation of pictures; see `Engine.run`."""
        return run_tiled(self._engine, inputs, tile_px=self._tile_px, batch=len(inputs))

    def whole(self, shape: tuple[int, ...]) -> Engine | None:
        """Return the engine itself if pictures of this shape go through it as they are, else None."""
        multiple = self.info.size_multiple
        fits = not any(length % multiple for length in shape)
        return self._engine if fits and (self._tile_px is None or max(shape) <= self._tile_px) else None
