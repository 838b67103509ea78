"""What a scan costs the specimen: electrons per area (imports numpy only)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lowdose.scan_patterns.checks import require_positive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lowdose.scan_patterns.grid import ScanGrid
    from lowdose.scan_patterns.path import ScanPath

ELECTRONS_PER_PA_US = 6.241509
"""Electrons in 1 pA of beam current during 1 µs (1e-18 C / 1.602177e-19 C)."""

BUDGET_STEP = 1e-5
"""Precision to which a dwell time is searched, relative."""

MIN_SCALE = 1e-3
"""Of the dwell times: with shorter ones a frame is nothing but settling."""

BUDGET_MARGIN = 1e-6
"""Share of a budget left unused, so that dwell times rounded to float32 stay within it."""


def fluence_e_per_a2(beam_current_pa: float, dwell_time_us: float, pixel_size_nm: float) -> float:
    """Return the electron fluence one visit deposits in a pixel.

    Parameters
    ----------
    beam_current_pa, dwell_time_us, pixel_size_nm : float
        Probe current [pA], time per probe position [µs], pixel edge [nm].

    Returns
    -------
    float
        Electrons per square ångström [e-/Å^2].

    Examples
    --------
    >>> round(fluence_e_per_a2(beam_current_pa=25, dwell_time_us=1, pixel_size_nm=0.05), 1)
    624.2
    """
    require_positive(beam_current_pa=beam_current_pa, dwell_time_us=dwell_time_us, pixel_size_nm=pixel_size_nm)
    return ELECTRONS_PER_PA_US * beam_current_pa * dwell_time_us / (10 * pixel_size_nm) ** 2


def position_dose_e_per_a2(path: ScanPath, beam_current_pa: float) -> NDArray[np.float32]:
    """Return what each visit deposits in its pixel, (n,) float32 [e-/Å^2]; overscan deposits its own outside."""
    return np.float32(fluence_e_per_a2(beam_current_pa, 1.0, path.grid.pixel_size_nm)) * path.dwell_times_us


def dose_map_e_per_a2(path: ScanPath, beam_current_pa: float) -> NDArray[np.float32]:
    """Return the dose one frame leaves in each pixel, (rows, cols) float32 [e-/Å^2].

    Only the time at positions inside the field is on the map: overscan, settling and flyback are paid for in
    `frame_dose_e_per_a2`.

    Examples
    --------
    >>> from lowdose.scan_patterns import ScanGrid, ScanPath
    >>> path = ScanPath(ScanGrid((1, 3), pixel_size_nm=0.1), [[0, 0], [0, 2], [0, 2]], dwell_time_us=1.0)
    >>> dose_map_e_per_a2(path, beam_current_pa=10).round(1).tolist()
    [[62.400001525878906, 0.0, 124.80000305175781]]
    """
    inside = path.inside
    dose = position_dose_e_per_a2(path, beam_current_pa)[inside]
    summed = np.bincount(path.flat_pixels[inside], weights=dose, minlength=path.grid.n_pixels)
    return summed.astype(np.float32).reshape(path.grid.shape)


def frame_dose_e_per_a2(path: ScanPath, beam_current_pa: float, *, beam_time_us: float | None = None) -> float:
    """Return the dose of one frame: all electrons of the unblanked beam over the area of the field [e-/Å^2].

    Parameters
    ----------
    path : ScanPath
        One frame.
    beam_current_pa : float
        Probe current [pA].
    beam_time_us : float, optional
        Time of the unblanked beam in one frame, settling and flyback included [µs]. Default: the path's duration.
    """
    beam_time_us = path.duration_us if beam_time_us is None else beam_time_us
    require_positive(beam_current_pa=beam_current_pa, beam_time_us=beam_time_us)
    return ELECTRONS_PER_PA_US * beam_current_pa * beam_time_us / path.grid.area_a2


def cumulative_dose_e_per_a2(cycle: Sequence[ScanPath], beam_current_pa: float, n_frames: int) -> NDArray[np.float64]:
    """Return the dose over the field after each of `n_frames` frames of a cycle of paths, (n_frames,) [e-/Å^2]."""
    doses = [frame_dose_e_per_a2(path, beam_current_pa) for path in cycle]
    return np.cumsum(np.resize(doses, n_frames))


def visited_dose_e_per_a2(path: ScanPath, beam_current_pa: float) -> float:
    """Return the mean fluence of one frame in a visited pixel [e-/Å^2]; 0 when all positions are overscan."""
    require_positive(beam_current_pa=beam_current_pa)
    inside_us = float(path.dwell_times_us[path.inside].sum(dtype=np.float64))
    visited_area_a2 = max(1, int(path.mask.sum())) * path.grid.pixel_area_a2
    return ELECTRONS_PER_PA_US * beam_current_pa * inside_us / visited_area_a2


def dose_rate_e_per_a2_s(grid: ScanGrid, beam_current_pa: float) -> float:
    """Return the dose rate while scanning, mean over the field, the same for every path on it [e-/Å^2/s]."""
    require_positive(beam_current_pa=beam_current_pa)
    return 1e6 * ELECTRONS_PER_PA_US * beam_current_pa / grid.area_a2


def budget_dwell_time_us(
    path: ScanPath,
    beam_current_pa: float,
    budget_e_per_a2: float,
    *,
    dwell_time_us: float,
    beam_time_us: Callable[[ScanPath], float] | None = None,
) -> float:
    """Return the nominal dwell time with which a frame stays just within a dose budget [µs].

    Parameters
    ----------
    path : ScanPath
        One frame; all its dwell times scale with the nominal one.
    beam_current_pa, budget_e_per_a2 : float
        Probe current [pA], largest dose of one frame over the field [e-/Å^2].
    dwell_time_us : float
        Nominal dwell time the path was made with [µs].
    beam_time_us : callable, optional
        Time of the unblanked beam in one frame along a path, settling and flyback included, growing with its dwell
        times [µs]. Default: the path's duration.

    Raises
    ------
    ValueError
        If settling alone exceeds the budget.
    """
    require_positive(beam_current_pa=beam_current_pa, budget_e_per_a2=budget_e_per_a2, dwell_time_us=dwell_time_us)
    allowed_us = budget_e_per_a2 * path.grid.area_a2 / (ELECTRONS_PER_PA_US * beam_current_pa) * (1 - BUDGET_MARGIN)
    if beam_time_us is None:
        return dwell_time_us * allowed_us / path.duration_us
    low, high = math.log(MIN_SCALE), math.log(allowed_us / path.duration_us)
    if beam_time_us(path.with_dwell(MIN_SCALE)) > allowed_us:
        raise ValueError(
            f"budget_e_per_a2 {budget_e_per_a2:g} allows {allowed_us:.4g} µs of beam, which settling and flyback alone "
            f"take: raise the budget, lower the current or choose a pattern with fewer jumps"
        )
    while high - low > BUDGET_STEP:
        middle = (low + high) / 2
        fits = beam_time_us(path.with_dwell(math.exp(middle))) <= allowed_us
        low, high = (middle, high) if fits else (low, middle)
    return dwell_time_us * math.exp(low)


def share_of_raster(path: ScanPath, dwell_time_us: float, *, beam_time_us: float | None = None) -> float:
    """Return dose and frame time of a frame over those of the full raster of the same grid and dwell time.

    One number for both: the beam is not blanked within a frame, so the dose goes with the time. The raster counts
    without its flyback.

    Parameters
    ----------
    path : ScanPath
        One frame.
    dwell_time_us : float
        Of the raster, nominally that of the path [µs].
    beam_time_us : float, optional
        Time of the unblanked beam in one frame [µs]. Default: the path's duration.
    """
    require_positive(dwell_time_us=dwell_time_us)
    return (path.duration_us if beam_time_us is None else beam_time_us) / (path.grid.n_pixels * dwell_time_us)
