"""MapCache: the infill maps of the paths in use, computed in the background and kept by path digest."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
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


class MapCache:
    """Computes and keeps maps; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, PathMaps] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="infill-maps")

    def get(self, digest: str, mask: NDArray[np.bool_]) -> PathMaps:
        """Return the maps of a path, beginning to compute what is not there yet."""
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                return self._kept[digest]
            nearest, distance = nearest_map(mask)
            maps = PathMaps(nearest, distance, self._pool.submit(linear_map, mask, nearest))
            maps.linear.add_done_callback(_log_failure)
            self._kept[digest] = maps
            while len(self._kept) > MAPS_KEPT:
                self._kept.popitem(last=False)
            return maps

    def close(self) -> None:
        """Stop computing; twice is fine."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _log_failure(future: Future[InfillMap]) -> None:
    if not future.cancelled() and future.exception() is not None:
        logger.error("no linear infill for this path, nearest is used: %s", future.exception())
