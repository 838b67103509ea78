import os
import time

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import numpy as np
import pytest

from lowdose.acquisition.frames import DenseFrame, EngineStamp
from lowdose.acquisition.status import StatusReport
from lowdose.scan_patterns import ScanGrid

STATUS = {
    "state": "scanning",
    "alarm": "",
    "acquired": 7,
    "scan_id": "scan-a",
    "pattern": "spiral",
    "pattern_parameters": {"coverage": 0.05, "overscan": "keep"},
    "patterns": ("raster", "lattice", "spiral", "jittered"),
    "coverage": 0.045,
    "coverage_nominal": 0.05,
    "dwell_time_us": 1.0,
    "dose_e_per_a2": 28.3,
    "dose_visited_e_per_a2": 624.2,
    "dose_area_e_per_a2": 100.0,
    "area_id": 1,
    "dead_man": True,
}


def build_frame(
    index=0, *, scan_id="scan-a", complete=True, samples=100, shape=(64, 64), left=0.0, right=100.0, dropped=0, gaps=0
):
    """Make a picture dark on the left and bright on the right, every fourth row measured."""
    image = np.full((1, *shape), left, np.float32)
    image[..., shape[1] // 2 :] = right
    hits = np.zeros(shape, np.uint16)
    hits[::4] = 1
    return DenseFrame(
        grid=ScanGrid(shape, pixel_size_nm=0.1),
        image=image,
        uncertainty=np.ones_like(image),
        uncertainty_kind="placeholder",
        measured=image * (hits > 0),
        hits=hits,
        scale=1,
        scan_id=scan_id,
        path_digest="0" * 32,
        frame_index=index,
        complete=complete,
        samples_used=samples,
        channels=("HAADF",),
        engines=(EngineStamp("nearest", "", "fp32"),),
        dropped=dropped,
        gaps=gaps,
        times_ns={"last_sample": 1_000_000_000},
    )


@pytest.fixture
def make_frame():
    return build_frame


@pytest.fixture
def make_report():
    def make(t_ns=0, source="microscope", **values):
        return StatusReport(source, t_ns, {**STATUS, **values} if source == "microscope" else values)

    return make


@pytest.fixture
def wait_until():
    def wait(condition, timeout_s=5.0):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.002)

    return wait


class FakeOperator:
    """Remembers what it was asked to do."""

    def __init__(self):
        self.read_only = ""
        self.asked = []

    def configure(self, *, pattern=None, dwell_time_us=None):
        self.asked.append(("configure", pattern, dwell_time_us))

    def __getattr__(self, verb):
        return lambda: self.asked.append((verb,))


@pytest.fixture
def fake_operator():
    return FakeOperator()
