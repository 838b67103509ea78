"""Simulator, services and window together: real sockets, real Qt window, nothing replaced."""

from __future__ import annotations

import threading
import time
import uuid

import numpy as np
import psutil
import pytest

from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.display.app import run_window
from lowdose.acquisition.display.headless import run_headless
from lowdose.config.build import build_microscope, build_reconstruction
from lowdose.config.loading import load_settings
from lowdose.reconstruction.shipped import DEFAULT

BUDGET = ("dose={budget_e_per_a2: 200}", "scan.dwell_time_us=20")


class Pipeline:
    """Microscope and reconstruction as threads, and a client that keeps the lease."""

    def __init__(self, *overrides, transport="inproc"):
        name = uuid.uuid4().hex
        endpoints = {
            key: f"inproc://{key}-{name}" if transport == "inproc" else "tcp://127.0.0.1:0"
            for key in ("control", "samples", "record", "frames")
        }
        settings = load_settings(None, [PATIENT, *overrides, *(f"network.{k}={v}" for k, v in endpoints.items())])
        self.microscope = build_microscope(settings)
        network = settings.network.model_copy(update=self.microscope.endpoints)
        self.reconstruction = build_reconstruction(settings.model_copy(update={"network": network}))
        self.endpoints = (
            self.reconstruction.endpoint,
            self.microscope.endpoints["samples"],
            self.microscope.endpoints["control"],
        )
        self._stop = threading.Event()
        self._lease = threading.Thread(target=self._keep_lease, daemon=True)

    def _keep_lease(self):
        with MicroscopeClient(self.endpoints[2], "keeper", timeout_s=5.0) as client:
            while not client.status()["has_listener"]:
                time.sleep(0.01)
            client.renew_lease()
            client.start()
            while not self._stop.wait(0.2):
                client.renew_lease()

    def __enter__(self):
        self.microscope.start()
        self.reconstruction.start()
        self._lease.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._lease.join(10)
        self.microscope.close()
        self.reconstruction.close()


SMALL = ("grid.rows=128", "grid.cols=128", "grid.pixel_size_nm=0.2", "scan.pattern={name: spiral, coverage: 1/8}")
PATIENT = (
    "safety.block_deadline_ms=5000"  # one process, one interpreter lock: how fast it goes is not the question here
)


@pytest.mark.parametrize("transport", ["inproc", "tcp"])
def test_frames_stream_from_the_specimen_to_the_view_model_without_a_drop(transport):
    with Pipeline(*SMALL, transport=transport) as pipeline:
        model = run_headless(*pipeline.endpoints, frames=40, hold_lease=False, start=False)
    summary = model.summary()
    assert summary["frames"] >= 40
    assert summary["dropped"] == summary["gaps"] == 0
    assert summary["pattern"] == "spiral"
    assert model.frame.complete


def test_the_completed_picture_resembles_the_specimen():
    from lowdose.scan_patterns import ScanGrid
    from lowdose.simulator.specimen import Procedural

    with Pipeline(*SMALL, "scan.dwell_time_us=10", "specimen={name: procedural, seed: 2}") as pipeline:
        model = run_headless(*pipeline.endpoints, frames=60, hold_lease=False, start=False)
    truth = Procedural(seed=2).open(ScanGrid((128, 128), pixel_size_nm=0.2)).frame(0.0)
    assert np.corrcoef(model.frame.image[0].ravel(), truth.ravel())[0, 1] > 0.85


def test_the_real_window_shows_measured_and_completed_frames(qapp):
    grabbed = []

    def look(frame, _received_ns, _painted_ns):
        if frame.engine == DEFAULT and not grabbed:
            window = next(w for w in qapp.topLevelWidgets() if w.isVisible() and w.width() > 600)
            image = window.grab().toImage().convertToFormat(window.grab().toImage().Format.Format_Grayscale8)
            pixels = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine())
            grabbed.append(pixels[:, : image.width()].copy())

    with Pipeline(*SMALL) as pipeline:
        model = run_window(
            *pipeline.endpoints, frames=80, hold_lease=False, start=False, snapshot_folder=None, on_painted=look
        )
    assert model.summary()["dropped"] == 0
    height, width = grabbed[0].shape
    left, right = (
        grabbed[0][height // 4 : -height // 4, int(a * width) : int(b * width)] for a, b in ((0.05, 0.4), (0.5, 0.85))
    )
    assert np.median(left) < 10  # mostly not measured: black
    assert left.max() > 100
    assert right.std() > 20  # a picture
    assert np.median(right) > 10


def test_a_pattern_chosen_while_live_takes_effect_at_a_frame_edge_without_a_gap():
    with Pipeline(*SMALL) as pipeline:
        seen = []

        def change(frame, *_):
            seen.append(frame)
            if len(seen) == 20:
                threading.Thread(target=reconfigure, daemon=True).start()

        def reconfigure():
            with MicroscopeClient(pipeline.endpoints[2], "keeper") as client:
                client.configure(pattern={"name": "lattice", "coverage": 1 / 16}, dwell_time_us=2.0)

        model = run_headless(*pipeline.endpoints, frames=120, hold_lease=False, start=False, on_shown=change)
    assert len({frame.scan_id for frame in seen}) == 2
    assert all(frame.samples_used in (len_of(seen[0]), 32 * 32) for frame in seen if frame.complete)
    assert model.summary()["gaps"] == model.summary()["dropped"] == 0
    assert model.summary()["pattern"] == "lattice"


def len_of(frame):
    return int(frame.hits.sum())


def test_a_scan_started_again_is_shown_from_its_first_frame_on():
    with Pipeline(*SMALL) as pipeline:
        first = run_headless(*pipeline.endpoints, frames=60, hold_lease=False, start=False)
        seen = []
        with MicroscopeClient(pipeline.endpoints[2], "keeper") as client:
            client.blank()

            def again(frame, *_):
                seen.append(frame)

            restart = threading.Timer(0.3, client.start)
            restart.start()
            run_headless(*pipeline.endpoints, frames=20, hold_lease=False, start=False, on_shown=again)
            restart.join()
    begun_again = [frame for frame in seen if frame.scan_id != first.frame.scan_id]  # the old scan's last may come late
    assert len(begun_again) >= 18
    assert begun_again[0].frame_index < first.frame.frame_index


def test_a_spent_dose_budget_ends_a_headless_run_with_a_word_and_a_parked_beam(caplog):
    with Pipeline(*SMALL, *BUDGET) as pipeline:
        model = run_headless(*pipeline.endpoints, frames=10_000, hold_lease=False, start=False)
        assert pipeline.microscope.guard.state == "parked"
    assert 0 < model.frames < 10_000
    assert pipeline.microscope.guard.area_dose_e_per_a2 <= 200
    assert "dose budget of area 0 is spent" in caplog.text
    assert "the scan is over" in caplog.text


def test_real_micrographs_are_replayed_as_specimens(micrographs):
    path = micrographs / "real" / "ncem_SrTiO3_TEAM.tif"
    with Pipeline(*SMALL, f"specimen={{name: images, path: {path}}}") as pipeline:
        model = run_headless(*pipeline.endpoints, frames=30, hold_lease=False, start=False)
    assert model.summary()["dropped"] == 0
    assert model.frame.image.std() > 0.5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_stays_flat_over_twenty_thousand_frames():
    resident_mib = []

    def note(frame, *_):
        if frame.frame_index % 500 == 0:
            resident_mib.append(psutil.Process().memory_info().rss / 2**20)

    with Pipeline("grid.rows=256", "grid.cols=256", "scan.pattern={name: spiral, coverage: 1/40}") as pipeline:
        model = run_headless(*pipeline.endpoints, frames=20_000, hold_lease=False, start=False, on_shown=note)
    assert model.summary()["frames"] >= 20_000
    settled = resident_mib[len(resident_mib) // 4 :]
    assert max(settled) - min(settled) < 12, resident_mib
