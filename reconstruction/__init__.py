"""From sparse frames to completed pictures with uncertainty."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import Engine


def complete(
    values: NDArray[Any], mask: NDArray[Any], *, engine: Engine | str = "auto"
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Complete a sparsely measured picture.

    Parameters
    ----------
    values : (rows, cols) ndarray
        Measured values in any linear unit; only those in the mask are looked at.
    mask : (rows, cols) bool ndarray
        True = measured.
    engine : Engine or str
        What completes it: "auto" for the default one, "linear", "nearest", a shipped engine's name, the path of an
        engine file, or an engine.

    Returns
    -------
    image, uncertainty : (rows, cols) float32 ndarray
        In the unit of the values. Nine tenths of the true pixels are expected within 1.645 uncertainties of the image;
        what "true" means says the engine's `info.target`, and what the expectation is worth its `uncertainty_kind`.

    Raises
    ------
    ValueError
        If values or mask cannot be used, or there is no such engine.
    RuntimeError
        If the engine fails.

    Examples
    --------
    >>> import numpy as np
    >>> mask = np.zeros((64, 64), bool)
    >>> mask[::4, ::4] = True
    >>> image, uncertainty = complete(np.add.outer(np.arange(64), np.arange(64)), mask, engine="linear")
    >>> round(float(image[30, 30]))
    60
    """
    from lowdose.reconstruction.completion import completed

    return completed(values, mask, engine=_named(engine) if isinstance(engine, str) else engine)


def _named(name: str) -> Engine:
    """Return the engine of a name; one that comes with the package, which takes a while to compile, is kept."""
    from lowdose.reconstruction.engines.choice import engine_named, path_of
    from lowdose.reconstruction.shipped import shipped

    return _kept(name) if path_of(name) in shipped().values() else engine_named(name)


@cache
def _kept(name: str) -> Engine:
    from lowdose.reconstruction.engines.choice import engine_named

    return engine_named(name)
