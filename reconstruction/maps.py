"""MapCache: the infill maps of the paths in use, computed in the background and kept by path digest."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lowdose.reconstruction.infill import InfillMap, PathMaps, linear_map, nearest_map
from lowdose.reconstruction.lattice_infill import lattice_maps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

PIXELS_KEPT = 24 << 20
"""Of all maps together, at some 50 bytes each: the 64 paths of a rotated interlaced cycle at 512 x 512, and more."""


def maps_at_once(mask: NDArray[np.bool_]) -> PathMaps:
    """Return the maps there are without waiting: all on a lattice, elsewhere no linear one."""
    return lattice_maps(mask) or PathMaps(*nearest_map(mask), None)


@dataclass(frozen=True, slots=True)
class _Kept:
    """The maps of a path as far as they are there, and what the linear one is to be computed of, if it still is."""

    maps: PathMaps
    order: _Order | None


_Order = tuple["NDArray[np.bool_]", InfillMap]


class MapCache:
    """Computes and keeps the maps that take time, those of no lattice; from any thread.

    The paths used last are kept, `PIXELS_KEPT` in all; those of a longer cycle are filled by nearest.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # the one used last comes last
        self._closed = False
        # a daemon: a triangulation of seconds must not keep the process from ending
        threading.Thread(target=self._compute, name="infill-maps", daemon=True).start()

    def get(self, digest: str, mask: NDArray[np.bool_]) -> PathMaps:
        """Return the maps of a path as far as they are there, beginning to compute what is not."""
        with self._changed:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest].maps
        if (on_lattice := lattice_maps(mask)) is not None:
            return on_lattice
        nearest, distance = nearest_map(mask)
        maps = PathMaps(nearest, distance, None)
        with self._changed:
            self._kept.setdefault(digest, _Kept(maps, (mask, nearest)))
            while len(self._kept) > 1 and sum(kept.maps.distance.size for kept in self._kept.values()) > PIXELS_KEPT:
                self._kept.popitem(last=False)
            self._changed.notify_all()
        return maps

    def wait(self, digest: str, mask: NDArray[np.bool_], timeout_s: float) -> PathMaps:
        """Return the maps of a path once all are there, or after a time as far as they are."""
        deadline_s = time.monotonic() + timeout_s
        while (maps := self.get(digest, mask)).linear is None and (left_s := deadline_s - time.monotonic()) > 0:
            with self._changed:
                if digest in self._kept and self._kept[digest].maps.linear is None:
                    self._changed.wait(left_s)
        return maps

    def close(self) -> None:
        """Compute no more maps than the one under way; twice is fine."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _compute(self) -> None:
        while (missing := self._wait_for_missing()) is not None:
            digest, maps, (mask, nearest) = missing
            try:
                maps = replace(maps, linear=linear_map(mask, nearest))
            except Exception:  # a frame can always be filled by nearest
                logger.exception("no linear infill for this path: nearest is used")
            with self._changed:
                if digest in self._kept:
                    self._kept[digest] = _Kept(maps, None)
                self._changed.notify_all()

    def _wait_for_missing(self) -> tuple[str, PathMaps, _Order] | None:
        """Return the path used last whose linear map is missing, when there is one; None at the end."""
        with self._changed:
            while not self._closed:
                for digest, kept in reversed(self._kept.items()):
                    if kept.order is not None:
                        return digest, kept.maps, kept.order
                self._changed.wait()
        return None
