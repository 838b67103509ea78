"""Lattices to test with: masks, and the cycle of paths that measures every pixel once."""

from __future__ import annotations

import uuid

import numpy as np

from lowdose.acquisition.messages import ScanStart
from lowdose.scan_patterns import ScanGrid, ScanPath


def lattice_mask(shape, spacing, offset):
    mask = np.zeros(shape, bool)
    mask[offset[0] :: spacing[0], offset[1] :: spacing[1]] = True
    return mask


def interlaced_scan(shape, d, channels=("HAADF",)):
    grid = ScanGrid(shape)
    offsets = [(a, b) for a in range(d) for b in range(d)]
    paths = tuple(ScanPath(grid, np.argwhere(lattice_mask(shape, (d, d), offset)), 1.0) for offset in offsets)
    return ScanStart(uuid.uuid4().hex, paths, {"name": "cycle"}, channels, 1.0, 25.0, 200.0, 0, None, 0, 0)
