"""What `lowdose bench wire --record` adds: a scan far faster than any real one, recorded whole while others watch.

A real microscope service over a controller that costs nothing, in a process of its own; a real recorder in another;
the view path is listened to here. Afterwards the file is read from end to end: every block must be there.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowdose.acquisition.assembly import SequenceCounter
from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.continuity import block_plan
from lowdose.acquisition.controllers.base import MAX_BLOCK_US, MIN_BLOCK_SAMPLES, ControllerLimits, Samples
from lowdose.acquisition.messages import SampleBlock
from lowdose.acquisition.microscope import MicroscopeService
from lowdose.acquisition.realtime import prepare_process
from lowdose.acquisition.recorder import RecorderService
from lowdose.acquisition.session_reader import read_session
from lowdose.acquisition.settings import BeamSettings, DoseSettings, NetworkSettings, SafetySettings, ScanSettings
from lowdose.acquisition.sockets import SAMPLES_HWM, Subscriber, free_endpoint
from lowdose.config.figures import PERCENTILES, percentiles
from lowdose.config.registry import make_pattern
from lowdose.scan_patterns.grid import ScanGrid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lowdose.scan_patterns.path import ScanPath

RATE_PER_S = 20e6
SAFETY = SafetySettings(lease_s=60.0, block_deadline_ms=5_000.0)
"""Of the service measured: it is the recorder that is to set the pace."""
EDGE_PX = 1024
FULL_SCALE = 16
POOL = 64
"""Different blocks of counts: what is recorded must not be too easy to compress."""
READY_WITHIN_S = 60.0
LOOK_S = 0.02


class SteadyController:
    """Delivers made-up counts at the pace of the path and moves nothing."""

    limits = ControllerLimits(min_dwell_us=0.01, max_positions=1 << 24, look_ahead_ms=5.0, dead_man=True)

    def __init__(self, rate_per_s: float) -> None:
        self._stopped = threading.Event()
        self._scan_id, self._paths = "", tuple[Any, ...]()
        rng = np.random.default_rng(0)
        longest = max(MIN_BLOCK_SAMPLES, round(rate_per_s * MAX_BLOCK_US / 1e6))
        self._pool = [rng.poisson(FULL_SCALE, (1, longest)).astype(np.uint16) for _ in range(POOL)]

    def prepare(self, scan_id: str, paths: Sequence[ScanPath]) -> None:
        """Take the paths."""
        self._scan_id, self._paths = scan_id, tuple(paths)

    def start(self, admit: Callable[[str, Any], bool]) -> None:
        """Begin anew."""
        self._admit = admit
        self._stopped.clear()

    def blocks(self) -> Iterator[Samples]:
        """Yield blocks at their time; one that is late comes at once."""
        plan = block_plan(self._paths[0], self.limits)
        due_ns, frame = time.monotonic_ns(), 0
        while not self._stopped.is_set() and self._admit(self._scan_id, self._paths[0]):
            for k, (first, stop) in enumerate(plan.stops.items()):
                begun_ns, due_ns = due_ns, due_ns + plan.beam_ns[first]
                if self._stopped.wait(max(0, due_ns - time.monotonic_ns()) / 1e9):
                    return
                counts = self._pool[(frame + k) % POOL][:, : stop - first]
                yield Samples(self._scan_id, self._paths[0], frame, first, counts, begun_ns, due_ns)
            frame += 1

    def unblank(self) -> None:
        """There is no beam."""

    def blank(self, timeout_s: float) -> None:
        """There is no beam."""

    def park(self, timeout_s: float) -> None:
        """There is no beam."""

    def new_area(self) -> None:
        """There is no stage."""

    def stop(self) -> None:
        """End `blocks`."""
        self._stopped.set()

    def close(self) -> None:
        """There is nothing to close."""


def serve(network: NetworkSettings, rate_per_s: float, end: Any) -> None:
    """Run a microscope service until told to end."""
    service = MicroscopeService(
        SteadyController(rate_per_s),
        ScanGrid((EDGE_PX, EDGE_PX)),
        ScanSettings(pattern={"name": "raster"}, dwell_time_us=1e6 / rate_per_s),
        BeamSettings(),
        DoseSettings(),
        SAFETY,
        network,
        make_pattern=lambda mapping, grid: make_pattern(mapping, grid, local=True),
        pattern_names=("raster",),
    )
    with service:
        while not end.wait(LOOK_S) and not service.wait(0):
            pass


def record(path: Path, network: NetworkSettings) -> None:
    """Record until the service ends."""
    with RecorderService(path, network, fsync="never") as service:
        while not service.wait(LOOK_S):
            pass


def in_process(target: Callable[..., None], *arguments: Any) -> None:
    """Run it as a service process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prepare_process()
    target(*arguments)


def measure_recorded(transport: str, seconds: float, *, rate_per_s: float = RATE_PER_S) -> dict[str, Any]:
    """Return the figures of one recorded scan.

    Parameters
    ----------
    transport : "tcp", "ipc" or "inproc"
        Over it; inproc: recorder and microscope are threads of this process.
    seconds : float
        How long is scanned [s].
    rate_per_s : float
        Samples per second of one channel.
    """
    with tempfile.TemporaryDirectory(prefix="lowdose-bench-") as folder:
        path, network = Path(folder) / "session.mcap", _network(transport, folder)
        with (
            _services(transport, path, network, rate_per_s),
            Subscriber(network.samples, ("samples",), hwm=SAMPLES_HWM) as samples,
            MicroscopeClient(network.control, "bench", timeout_s=1.0) as client,
        ):
            _wait_for(client, "recorder", "has_listener")
            client.start()
            view = _watch(client, samples, seconds)
        return {"transport": transport, "asked_per_s": rate_per_s, **_figures(path, view, seconds)}


def _network(transport: str, folder: str) -> NetworkSettings:
    if transport == "tcp":
        return NetworkSettings(**{name: free_endpoint() for name in NetworkSettings.model_fields})
    return NetworkSettings(**{name: f"{transport}://{folder}/{name}" for name in NetworkSettings.model_fields})


@contextmanager
def _services(transport: str, path: Path, network: NetworkSettings, rate_per_s: float) -> Iterator[None]:
    """Run microscope and recorder; at the end the recording is closed, and both are gone."""
    context = multiprocessing.get_context("spawn")
    end: Any = threading.Event() if transport == "inproc" else context.Event()
    running: list[Any] = []
    for target, arguments in ((serve, (network, rate_per_s, end)), (record, (path, network))):
        if transport == "inproc":
            running.append(threading.Thread(target=target, args=arguments, daemon=True))
        else:
            running.append(context.Process(target=in_process, args=(target, *arguments), daemon=True))
        running[-1].start()
    try:
        yield
    finally:
        end.set()
        for each in running:
            each.join(READY_WITHIN_S)


def _wait_for(client: MicroscopeClient, *names: str) -> None:
    deadline_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline_s:
        with suppress(TimeoutError):
            status = client.status()
            if all(status[name] for name in names):
                return
    raise RuntimeError(f"the services did not get ready within {READY_WITHIN_S:g} s")


@dataclass
class View:
    """What a listener to the view path saw, how long messages waited to be written, how the scan was at the end."""

    sequence: SequenceCounter = field(default_factory=SequenceCounter)
    waiting_ms: list[float] = field(default_factory=list)
    ended: str = "scanning"


def _watch(client: MicroscopeClient, samples: Subscriber, seconds: float) -> View:
    view = View()
    end_s, look_s = time.monotonic() + seconds, 0.0
    while time.monotonic() < end_s and view.ended == "scanning":
        message = samples.receive(0.1)
        if isinstance(message, SampleBlock):
            view.sequence.saw(message.seq)
        if time.monotonic() > look_s:
            look_s = time.monotonic() + LOOK_S
            trouble = client.renew_lease()["record_trouble"]
            status = client.status()
            view.waiting_ms.append(status["record_waiting_ms"])
            view.ended = trouble or status["state"]
    return view


def _figures(path: Path, view: View, seconds: float) -> dict[str, Any]:
    reader, sequence, blocks, n_samples, times_ns = read_session(path), SequenceCounter(), 0, 0, [0, 0]
    for message in reader:
        if isinstance(message, SampleBlock):
            sequence.saw(message.seq)
            times_ns = [times_ns[0] or message.t_first_ns, message.t_last_ns]
            blocks += 1
            n_samples += message.counts.size
    return {
        "samples_per_s": round(1e9 * n_samples / max(1, times_ns[1] - times_ns[0])),
        "seconds": seconds,
        "blocks": blocks,
        "lost": sequence.dropped + (not reader.report.whole),
        "view_lost": view.sequence.dropped,
        "waiting_ms": percentiles(np.array(view.waiting_ms)),
        "size_bytes": path.stat().st_size,
        "ended": view.ended,
    }


def print_recorded(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table of recorded scans."""
    from rich.console import Console
    from rich.table import Table

    columns = (
        "samples/s",
        "s",
        "blocks",
        "lost",
        "lost to the view",
        *(f"{p} [ms]" for p in PERCENTILES),
        "GB",
        "ended",
    )
    table = Table("transport", *columns, title="recorded: age of the oldest block not known to be written")
    for row in rows:
        waiting = (f"{row['waiting_ms'][name]:.1f}" for name in PERCENTILES)
        counts = (f"{row['blocks']:,}", str(row["lost"]), str(row["view_lost"]))
        ends = (f"{row['size_bytes'] / 1e9:.3f}", row["ended"])
        table.add_row(row["transport"], f"{row['samples_per_s']:,}", f"{row['seconds']:g}", *counts, *waiting, *ends)
    Console(width=150).print(table)
