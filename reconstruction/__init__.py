"""From sparse frames to completed pictures with uncertainty."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from lowdose.reconstruction.engine import Engine


def complete(
    values: NDArray[Any], mask: NDArray[Any], *, engine: Engine | str | os.PathLike[str] = "auto"
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Complete a sparsely measured picture.

    The default engine estimates the picture blurred 5 x 5 pixels (standard deviation 2.5), also where it was measured;
    "linear" and "nearest" keep what was measured. Pictures measured denser than an engine was trained for are filled
    linearly, and the log says so.

    Parameters
    ----------
    values : (rows, cols) ndarray
        Measured values in any linear unit; only those in the mask are looked at.
    mask : (rows, cols) bool or integer ndarray
        True = measured.
    engine : Engine, str or path
        What completes it: "auto" for the default one, "linear", "nearest", a shipped engine's name, the path of an
        engine file, or an engine of `engine_named`, which saves reading a file of one's own for every picture.

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

    named = engine_named(os.fspath(engine)) if isinstance(engine, str | os.PathLike) else engine
    done = completed(values, mask, engine=named)
    return done.image, done.uncertainty


def engine_named(name: str) -> Engine:
    """Return an engine by its name or the path of its file; its `info` says what it is, wants and estimates.

    One that comes with the package, which takes a while to compile, is made once and kept.

    Raises
    ------
    ValueError
        If there is no such engine, or it cannot run here.

    Examples
    --------
    >>> engine_named("linear").info.target
    'sharp'
    """
    from lowdose.reconstruction.engines import choice
    from lowdose.reconstruction.shipped import shipped

    path = choice.path_of(name)
    return _kept(path) if path in shipped().values() else choice.engine_named(name)


@cache
def _kept(path: Path) -> Engine:
    from lowdose.reconstruction.engines import choice

    return choice.engine_named(str(path))
