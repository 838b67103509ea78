"""MapCache: the infill maps of the paths in use, computed in the background and kept by path digest."""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from lowdose.reconstruction.infill import InfillMap, PathMaps, linear_map, nearest_map
from lowdose.reconstruction.lattice_infill import lattice_maps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MAPS_KEPT = 4

_Order = tuple[str, "NDArray[np.bool_]", InfillMap] | None


def maps_at_once(mask: NDArray[np.bool_]) -> PathMaps:
    """Return the maps there are without waiting: all on a lattice, elsewhere no linear one."""
    return lattice_maps(mask) or PathMaps(*nearest_map(mask), None)


class MapCache:
    """Computes and keeps the maps that take time, those of no lattice; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, PathMaps] = OrderedDict()
        self._to_compute: queue.LifoQueue[_Order] = queue.LifoQueue()  # the newest path first
        # a daemon: a triangulation of seconds must not keep the process from ending
        threading.Thread(target=self._compute, name="infill-maps", daemon=True).start()

    def get(self, digest: str, mask: NDArray[np.bool_]) -> PathMaps:
        """Return the maps of a path as far as they are there, beginning to compute what is not."""
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest]
            if (on_lattice := lattice_maps(mask)) is not None:
                return on_lattice
            nearest, distance = nearest_map(mask)
            maps = PathMaps(nearest, distance, None)
            self._kept[digest] = maps
            self._to_compute.put((digest, mask, nearest))
            while len(self._kept) > MAPS_KEPT:
                self._kept.popitem(last=False)
            return maps

    def close(self) -> None:
        """Compute no more maps than the one under way; twice is fine."""
        self._to_compute.put(None)

    def _compute(self) -> None:
        while (order := self._to_compute.get()) is not None:
            digest, mask, nearest = order
            try:
                linear = linear_map(mask, nearest)
            except Exception:  # a frame can always be filled by nearest
                logger.exception("no linear infill for this path: nearest is used")
                continue
            with self._lock:
                if digest in self._kept:
                    self._kept[digest] = replace(self._kept[digest], linear=linear)
