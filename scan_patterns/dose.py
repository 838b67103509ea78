"""What a scan costs the specimen: electrons per area (imports numpy only)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowdose.scan_patterns.checks import require_positive

if TYPE_CHECKING:
    from lowdose.scan_patterns.path import ScanPath

ELECTRONS_PER_PA_US = 6.241509
"""Electrons in 1 pA of beam current during 1 µs (1e-18 C / 1.602177e-19 C)."""


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


def frame_dose_e_per_a2(path: ScanPath, beam_current_pa: float) -> float:
    """Return the dose of one frame: all electrons of the unblanked beam over the area of the field [e-/Å^2]."""
    require_positive(beam_current_pa=beam_current_pa)
    return ELECTRONS_PER_PA_US * beam_current_pa * path.duration_us / path.grid.area_a2


def visited_dose_e_per_a2(path: ScanPath, beam_current_pa: float) -> float:
    """Return the mean fluence of one frame in a visited pixel [e-/Å^2]; 0 when all positions are overscan."""
    require_positive(beam_current_pa=beam_current_pa)
    inside_us = float(path.dwell_times_us[path.inside].sum(dtype=np.float64))
    visited_area_a2 = max(1, int(path.mask.sum())) * path.grid.pixel_area_a2
    return ELECTRONS_PER_PA_US * beam_current_pa * inside_us / visited_area_a2
