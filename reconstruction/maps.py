"""MapCache: the infill maps of the paths in use, computed in the background and kept by path digest."""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowdose.reconstruction.infill import InfillMap, linear_map, nearest_map

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MAPS_KEPT = 4


@dataclass(frozen=True, slots=True)
class PathMaps:
    """What the infill of one mask needs: the nearest map with its distances, and the linear map once it is there."""

    nearest: InfillMap
    distance: NDArray[np.float32]
    linear: Future[InfillMap]

    @property
    def ready_linear(self) -> InfillMap | None:
        """The linear map, None while it is being computed or if it could not be."""
        if not self.linear.done() or self.linear.exception() is not None:
            return None
        return self.linear.result()


_Order = tuple[PathMaps, "NDArray[np.bool_]"] | None


class MapCache:
    """Computes and keeps maps; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, PathMaps] = OrderedDict()
        self._to_compute: queue.LifoQueue[_Order] = queue.LifoQueue()  # the newest path first
        # a daemon: a triangulation of seconds must not keep the process from ending
        threading.Thread(target=self._compute, name="infill-maps", daemon=True).start()

    def get(self, digest: str, mask: NDArray[np.bool_]) -> PathMaps:
        """Return the maps of a path, beginning to compute what is not there yet."""
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest]
            nearest, distance = nearest_map(mask)
            maps = PathMaps(nearest, distance, Future())
            self._to_compute.put((maps, mask))
            self._kept[digest] = maps
            while len(self._kept) > MAPS_KEPT:
                self._kept.popitem(last=False)
            return maps

    def close(self) -> None:
        """Compute no more maps than the one under way; twice is fine."""
        self._to_compute.put(None)

    def _compute(self) -> None:
        while (order := self._to_compute.get()) is not None:
            maps, mask = order
            try:
                maps.linear.set_result(linear_map(mask, maps.nearest))
            except Exception as error:  # a frame can always be filled by nearest
                logger.exception("no linear infill for this path: nearest is used")
                maps.linear.set_exception(error)
