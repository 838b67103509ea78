"""What every test shares: an offscreen Qt, and the folder of real micrographs if there is one."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
hypothesis.settings.register_profile("lowdose", derandomize=True, deadline=None)
hypothesis.settings.load_profile("lowdose")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def micrographs() -> Path:
    folder = os.environ.get("LOWDOSE_DATA")
    if not folder:
        pytest.skip("LOWDOSE_DATA is not set: no real micrographs to test on")
    return Path(folder)
