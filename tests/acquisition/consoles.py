"""A microscope service in this process, over the simulated controller or one that fails on demand, and its clients."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from itertools import pairwise

import numpy as np

from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.controllers.base import ControllerLimits, Samples, block_edges
from lowdose.acquisition.messages import ScanEnd
from lowdose.acquisition.microscope import MicroscopeService
from lowdose.acquisition.settings import BeamSettings, DoseSettings, NetworkSettings, SafetySettings, ScanSettings
from lowdose.acquisition.sockets import EndpointError, Publisher, Subscriber
from lowdose.acquisition.status import Event
from lowdose.scan_patterns import ScanGrid
from lowdose.scan_patterns.pattern import load_pattern_class
from lowdose.simulator.controller import Simulated
from lowdose.simulator.faults import Faults

GRID = ScanGrid((32, 32))
RASTER = {"name": "raster"}
LATTICE = {"name": "lattice", "coverage": 1 / 16}
SAFE = ["blank", "stop", "park"]


class Flat:
    """A specimen that looks the same everywhere."""

    def frame(self, t_s):
        return np.full(GRID.shape, 0.5, np.float32)


class FakeController:
    """Scans at once; notes every call; raises what is in `fails` instead."""

    limits = ControllerLimits(min_dwell_us=0.5, max_positions=2_000, look_ahead_ms=5.0, dead_man=True)

    def __init__(self):
        self.calls, self.fails = [], {}
        self.beam_on = False
        self.closed = 0
        self._stopped = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.slow_prepare = threading.Event()
        self.slow_prepare.set()

    def _called(self, name):
        self.calls.append(name)
        if name in self.fails:
            raise self.fails[name]

    def prepare(self, scan_id, paths):
        self.slow_prepare.wait(5)
        self._called("prepare")
        self._prepared = scan_id, paths

    def start(self, admit):
        self._called("start")
        self._admit = admit
        self._stopped.clear()

    def blocks(self):
        scan_id, k = "", 0
        while not self._stopped.is_set():
            if self._prepared[0] != scan_id:
                (scan_id, paths), k = self._prepared, 0
            path = paths[k % len(paths)]
            if not self._admit(scan_id, path):
                return
            self.may_go_on.wait(5)
            self._called("blocks")
            for first, stop in pairwise(block_edges(self.limits.ends_us(path))):
                now = time.monotonic_ns()
                yield Samples(scan_id, path, k, first, np.ones((1, stop - first), np.uint16), now, now)
            k += 1
            self._stopped.wait(0.001)

    def unblank(self):
        self._called("unblank")
        self.beam_on = True

    def blank(self, timeout_s):
        self._called("blank")
        self.beam_on = False

    def new_area(self):
        self._called("new_area")

    def park(self, timeout_s):
        self._called("park")
        self.beam_on = False

    def stop(self):
        self._called("stop")
        self._stopped.set()

    def close(self):
        self.closed += 1


def make_pattern(mapping, grid):
    parameters = dict(mapping)
    return load_pattern_class(parameters.pop("name", ""))(**parameters)


def simulated(pacing="real_time"):
    return Simulated(pacing=pacing).open(Flat(), channels=("HAADF",), beam_current_pa=25.0)


def faulty(**faults):
    return Simulated(faults=Faults(**faults)).open(Flat(), channels=("HAADF",), beam_current_pa=25.0)


class Console:
    """A running service, clients of it by name, and all that it published, as far as anybody listened."""

    def __init__(self, service, controller):
        self.service, self.controller = service, controller
        self.heard = []
        self._clients = {}
        self._ears = Subscriber(service.endpoints["samples"], ["samples", "status"], hwm=10_000)
        wait_until(lambda: self["me"].status()["has_listener"])

    def __getitem__(self, name):
        if name not in self._clients:
            self._clients[name] = MicroscopeClient(self.service.endpoints["control"], name, timeout_s=5)
        return self._clients[name]

    def asks(self, verb, arguments, client="me"):
        return self[client]._socket.request(verb, arguments, 5)

    @property
    def state(self):
        return self["me"].status()["state"]

    def of(self, kind):
        return [message for message in self.heard if isinstance(message, kind)]

    def said(self):
        return [(event.kind, event.severity) for event in self.of(Event)]

    def listen(self, *, until, timeout_s=10.0):
        deadline = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < deadline, f"not heard in time, only {[type(m).__name__ for m in self.heard]}"
            message = self._ears.receive(0.05)
            if message is not None:
                self.heard.append(message)

    def listen_to_the_end(self):
        """Listen until a scan has ended."""
        ended = len(self.of(ScanEnd))
        self.listen(until=lambda: any(end.reason == "stopped" for end in self.of(ScanEnd)[ended:]))

    def close(self):
        for client in self._clients.values():
            client.close()
        self._ears.close()


def service_of(
    controller,
    *,
    pattern=RASTER,
    dwell_time_us=10.0,
    budget=None,
    lease_s=30.0,
    deadline_ms=30_000.0,
    late_ms=30_000.0,
    stall_ms=30_000.0,
    network=None,
):
    """Return a service whose patience outlasts any test on a busy machine, unless a test shortens it."""
    return MicroscopeService(
        controller,
        GRID,
        ScanSettings(pattern=dict(pattern), dwell_time_us=dwell_time_us, seed=3),
        BeamSettings(),
        DoseSettings(budget_e_per_a2=budget),
        SafetySettings(lease_s=lease_s, block_deadline_ms=deadline_ms, late_ms=late_ms, record_stall_ms=stall_ms),
        network or NetworkSettings(**dict.fromkeys(("control", "samples", "record"), "tcp://127.0.0.1:0")),
        make_pattern=make_pattern,
        pattern_names=("raster", "lattice"),
    )


@contextmanager
def running(controller=None, **settings):
    controller = controller or simulated()
    with service_of(controller, **settings) as service:
        console = Console(service, controller)
        try:
            yield console
        finally:
            console.close()


def wait_until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.001)


def assert_free(*endpoints):
    """Wait until the endpoints can be bound: ZeroMQ lets go of them a moment after closing."""

    def all_free():
        try:
            for endpoint in endpoints:
                Publisher(endpoint, hwm=1).close()
        except EndpointError:
            return False
        return True

    wait_until(all_free)


def assert_dark(controller):
    assert controller.beam.blanked
    assert controller.beam.parked
    assert not controller.beam.on
