"""`lowdose bench safety`: every reason to blank is made to happen, and the beam's own clock says when it went off.

Two figures for each. Detection: the fault occurs → the service knows (the stamp of its event). Blanking: the condition
is true, that is the fault occurred and its patience has run out → the beam is off, as the simulated instrument itself
noted in a file that outlives a killed or frozen host. Orders and signals count from before they are sent.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import psutil

from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.continuity import block_plan
from lowdose.acquisition.realtime import prepare_process
from lowdose.acquisition.record_path import RING_S
from lowdose.acquisition.recording import CHUNK_NS
from lowdose.acquisition.settings import NetworkSettings
from lowdose.acquisition.sockets import STATUS_HWM, ControlRefusedError, Subscriber, free_endpoint
from lowdose.acquisition.status import Event
from lowdose.config.bench_processes import (
    WAIT_S,
    RecorderOrder,
    be_parent,
    be_recorder,
    busy_cores,
    end_service,
    hold_lease,
    spawned,
    start_service,
)
from lowdose.config.build import build_microscope, make_paths
from lowdose.config.figures import machine, write_json
from lowdose.config.loading import dump_settings
from lowdose.config.options import require_writable
from lowdose.scan_patterns.dose import frame_dose_e_per_a2
from lowdose.simulator.controller import LIMITS
from lowdose.simulator.faults import NEVER_NS, InstrumentLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from lowdose.config.schema import LowdoseSettings

AFTER_BLOCKS = 12
SLOW_SHARE = 3
"""Of faults that take the service along, or wait for something, there are so many times fewer trials."""
DISK_BYTES = 64 * 1024
SLOW_WRITE_S = 0.02
"""Ten times what the samples of a block take to be measured."""
FRAMES_IN_BUDGET = 10
LEASE_S = 0.3
PERCENTILES = {"p50": 50, "p99": 99, "max": 100}
Place = Literal["in-process", "two processes"]


@dataclass(frozen=True)
class Trial:
    """One fault: when it occurred, when its condition was true, when it was known, when the beam was off [ns]."""

    fault_ns: int
    condition_ns: int
    known_ns: int
    off_ns: int
    alarm: bool


@dataclass
class Site:
    """A microscope service in this process or in one of its own, the instrument's log, and what the service tells."""

    settings: LowdoseSettings
    place: Place
    folder: Path
    stack: ExitStack
    pid: int = 0

    def open(self, *, parent: bool) -> None:
        """Start the service, with a parent of its own if asked for, and scan nothing yet."""
        path = self.folder / "instrument.log"
        path.unlink(missing_ok=True)
        self.log = InstrumentLog(path)
        self.stack.callback(self.log.close)
        network = NetworkSettings(**{name: free_endpoint() for name in NetworkSettings.model_fields})
        controller = {**self.settings.controller, "log": str(path)}
        self.settings = self.settings.model_copy(update={"network": network, "controller": controller})
        if self.place == "in-process":
            self.stack.enter_context(build_microscope(self.settings))
        else:
            self._start_process(parent)
        self.events = self.stack.enter_context(Subscriber(network.samples, ("status",), hwm=STATUS_HWM))
        self.client = self.stack.enter_context(MicroscopeClient(network.control, "bench", timeout_s=WAIT_S))
        self.wait(lambda: self.events.receive(0.05), "the service to be heard")

    def _start_process(self, parent: bool) -> None:
        config = self.folder / "resolved.yaml"
        config.write_text(dump_settings(self.settings), encoding="utf-8")
        if parent:
            self.parent, self.words = self.stack.enter_context(spawned(be_parent, str(config)))
            self.pid = self.words.recv()
        else:
            service = start_service(str(config))
            self.pid = service.pid
            self.stack.callback(end_service, service)

    def scan(self) -> None:
        """Scan until something happens, or the frames of a budget are done."""
        self.wait(lambda: self.client.status()["state"] != "scanning", "the scan before to end")
        self.client.new_area()
        while self.events.receive() is not None:
            pass
        self.log.note("fault", 0)
        self.wait(self._started, "a start")

    def _started(self) -> bool:
        """Start; False where the end of the scan before came in between, and a start must be asked for again."""
        try:
            self.client.start()
        except ControlRefusedError as error:
            if "start again" in str(error):
                return False
            raise
        return True

    def wait_on(self, frames: int = 2) -> None:
        """Wait until the beam is on and more frames than that were scanned."""
        begun = self.client.status()["acquired"]
        self.wait(lambda: self.client.status()["acquired"] > begun + frames, "frames")

    @contextmanager
    def recorded(self, **disk: Any) -> Iterator[tuple[BaseProcess, Connection]]:
        """Record in a process of its own, from the beginning of a scan; yield it and what it sends."""
        self.wait(lambda: not self.client.status()["recorder"], "the recording before to end")
        path = self.folder / f"{time.monotonic_ns()}.mcap"
        with spawned(be_recorder, RecorderOrder(path, self.settings.network, **disk)) as (recorder, words):
            words.recv()
            self.wait(lambda: self.client.status()["recorder"], "a recorder")
            self.scan()
            yield recorder, words

    def event(self, *kinds: str) -> tuple[Event, bool]:
        """Wait for an event of one of these kinds; return it, and whether an alarm came up to then."""
        alarm, deadline_s = False, time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            message = self.events.receive(0.05)
            if isinstance(message, Event):
                alarm |= message.severity == "alarm"
                if message.kind in kinds:
                    return message, alarm
        raise RuntimeError(f"the service did not tell '{' or '.join(kinds)}' within {WAIT_S:g} s")

    def off_ns(self) -> int:
        """Return when the beam went off, once it has [ns]."""
        self.wait(lambda: self.log.read("on_until") in range(time.monotonic_ns()) or self.stuck, "the beam to be off")
        return self.log.read("on_until")

    @property
    def stuck(self) -> bool:
        """The blanker does not move any more."""
        return self.log.read("on_until") == NEVER_NS

    def trial(self, kind: str, fault_ns: int, condition_ns: int | None = None) -> Trial:
        """Return the figures of a fault that ends in an event of a kind."""
        event, alarm = self.event(kind)
        return Trial(fault_ns, fault_ns if condition_ns is None else condition_ns, event.t_ns, self.off_ns(), alarm)

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until a condition holds."""
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"waited {WAIT_S:g} s in vain for {what}")
            time.sleep(0.005)


# --- faults ---------------------------------------------------------------------------------------------------------


def _stop(site: Site) -> Trial:
    site.scan()
    site.wait_on()
    now = time.monotonic_ns()
    site.client.stop()
    return site.trial("stopped", now)


def _lose_lease(site: Site) -> Trial:
    """Kill the process that renews the lease."""
    with spawned(hold_lease, site.settings.network.control) as (holder, _):
        site.scan()
        site.wait_on()
        now = time.monotonic_ns()
        holder.kill()
        event, alarm = site.event("lease_lost")
        return Trial(now, site.client.status()["lease_until_ns"], event.t_ns, site.off_ns(), alarm)


def _spend_budget(site: Site) -> Trial:
    """Scan until a frame would break the budget: the fault is that it is refused."""
    site.scan()
    event, alarm = site.event("budget_spent")
    return Trial(event.t_ns, event.t_ns, event.t_ns, site.off_ns(), alarm)


def _stall(site: Site) -> Trial:
    """Scan on with nothing delivered: the patience is the deadline, from the last block on."""
    site.scan()
    event, alarm = site.event("block_deadline")
    safety = site.settings.safety
    longest_ms = max(block_plan(path, LIMITS).longest_ns for path in make_paths(site.settings)) / 1e6
    patience_ms = max(safety.block_deadline_ms, safety.block_deadline_blocks * longest_ms)
    condition_ns = site.log.read("delivered") + round(1e6 * patience_ms)
    return Trial(site.log.read("fault"), condition_ns, event.t_ns, site.off_ns(), alarm)


def _die(site: Site) -> Trial:
    site.scan()
    event, alarm = site.event("exception")
    return Trial(site.log.read("fault"), site.log.read("fault"), event.t_ns, site.off_ns(), alarm)


def _refuse(site: Site) -> Trial:
    site.scan()
    site.wait_on(AFTER_BLOCKS)  # a frame has a block at least
    now = time.monotonic_ns()
    site.client.stop()
    return site.trial("blank_not_confirmed", now)


def _terminate(site: Site) -> Trial:
    site.scan()
    site.wait_on()
    now = time.monotonic_ns()
    os.kill(site.pid, signal.SIGTERM)
    return site.trial("service_ended", now)


def _orphan(site: Site) -> Trial:
    """Kill the parent; a process that is killed while the cores are busy takes its time to be gone."""
    site.scan()
    site.wait_on()
    now = time.monotonic_ns()
    site.parent.kill()
    site.words.poll(WAIT_S)  # its end closes when the parent is gone, as the service's standard input does
    return site.trial("service_ended", now, time.monotonic_ns())


def _freeze(site: Site) -> Trial:
    """Freeze the process: nobody but the instrument can know, so its own blank is both figures."""
    site.scan()
    site.wait_on()
    now = time.monotonic_ns()
    os.kill(site.pid, signal.SIGSTOP)
    site.wait(lambda: psutil.Process(site.pid).status() == psutil.STATUS_STOPPED, "the host to freeze")
    off_ns = site.off_ns()
    os.kill(site.pid, signal.SIGCONT)
    site.client.stop()
    return Trial(now, now, off_ns, off_ns, alarm=False)


def _kill_recorder(site: Site) -> Trial:
    with site.recorded() as (recorder, _):
        site.wait_on()
        now = time.monotonic_ns()
        recorder.kill()
        event, alarm = site.event("recorder_lost", "record_stalled")
        return Trial(now, now, event.t_ns, site.off_ns(), alarm)


def _freeze_recorder(site: Site) -> Trial:
    """Freeze the recorder: the patience is how long it may be silent."""
    with site.recorded() as (recorder, _):
        site.wait_on()
        now = time.monotonic_ns()
        os.kill(int(recorder.pid or 0), signal.SIGSTOP)
        event, alarm = site.event("record_stalled", "record_too_slow")
        patience_ns = round(1e6 * site.settings.safety.record_stall_ms)
        return Trial(now, now + patience_ns, event.t_ns, site.off_ns(), alarm)


def _fill_disk(site: Site) -> Trial:
    """Record to a disk that is full: the fault is the write that fails."""
    with site.recorded(disk_bytes=DISK_BYTES) as (_, words):
        event, alarm = site.event("record_failed")
        full_ns = words.recv()
        return Trial(full_ns, full_ns, event.t_ns, site.off_ns(), alarm)


def _slow_disk(site: Site) -> Trial:
    """Record so slowly that samples pile up: the patience is what the ring holds, after the chunk under way."""
    with site.recorded(pause_s=SLOW_WRITE_S) as (_, words):
        slow_ns = words.recv()
        event, alarm = site.event("record_too_slow")
        return Trial(slow_ns, slow_ns + round(1e9 * RING_S) + CHUNK_NS, event.t_ns, site.off_ns(), alarm)


@dataclass(frozen=True)
class Fault:
    """A row of the table: how it is made, with what settings, where, and whether it takes the service along.

    What takes long is tried `share` times less often.
    """

    name: str
    make: Callable[[Site], Trial]
    controller: dict[str, int] = field(default_factory=dict)
    two_processes_only: bool = False
    ends_service: bool = False
    parent: bool = False
    share: int = 1


FAULTS = (
    Fault("stop command", _stop),
    Fault("lease lost", _lose_lease, share=SLOW_SHARE),
    Fault("dose budget", _spend_budget),
    Fault("block deadline", _stall, {"stall": AFTER_BLOCKS}),
    Fault("exception in the driver", _die, {"die": AFTER_BLOCKS}, ends_service=True, share=SLOW_SHARE),
    Fault("refuses to blank", _refuse, {"refuse_to_blank": AFTER_BLOCKS}, ends_service=True, share=SLOW_SHARE),
    Fault("SIGTERM", _terminate, two_processes_only=True, ends_service=True, share=SLOW_SHARE),
    Fault("parent killed", _orphan, two_processes_only=True, ends_service=True, parent=True, share=SLOW_SHARE),
    Fault("host frozen", _freeze, two_processes_only=True),
    Fault("recorder killed", _kill_recorder, share=SLOW_SHARE),
    Fault("recorder frozen", _freeze_recorder, share=SLOW_SHARE),
    Fault("recorder's disk full", _fill_disk, share=SLOW_SHARE),
    Fault("recorder too slow", _slow_disk, share=2 * SLOW_SHARE),
)


# --- running --------------------------------------------------------------------------------------------------------


def run_safety(settings: LowdoseSettings, *, trials: int, json_file: Path | None) -> int:
    """Make every fault in every setup, and print a table of how fast it was known and the beam off."""
    require_writable(json_file)
    if os.name != "posix":
        raise RuntimeError("bench safety kills and freezes processes with POSIX signals, which this system lacks")
    prepare_process()
    logging.disable()  # hundreds of alarms, all of them expected
    rows = []
    for busy in (False, True):
        with busy_cores() if busy else ExitStack():
            for place in ("in-process", "two processes"):
                for fault in FAULTS:
                    if place == "two processes" or not fault.two_processes_only:
                        rows.append(_row(settings, fault, place, busy=busy, trials=trials))  # noqa: PERF401
    figures = {"rows": rows, "lease_s": LEASE_S, "block_deadline_ms": settings.safety.block_deadline_ms}
    figures |= {"look_ahead_ms": LIMITS.look_ahead_ms, "machine": machine()}
    _print(figures)
    if json_file is not None:
        write_json(json_file, figures)
    return 0


def _row(settings: LowdoseSettings, fault: Fault, place: Place, *, busy: bool, trials: int) -> dict[str, Any]:
    trials = max(1, trials // fault.share)
    made = _made(_settings_for(settings, fault), fault, place, trials)
    row = row_of(fault.name, f"{place}, {'busy' if busy else 'idle'}", made)
    print(".", end="", flush=True, file=sys.stderr)
    return row


def _made(settings: LowdoseSettings, fault: Fault, place: Place, trials: int) -> list[Trial]:
    made: list[Trial] = []
    while len(made) < trials:
        with tempfile.TemporaryDirectory(prefix="lowdose-bench-") as folder, ExitStack() as stack:
            site = Site(settings, place, Path(folder), stack)
            site.open(parent=fault.parent)
            made += [fault.make(site) for _ in range(1 if fault.ends_service else trials)]
    return made


def _settings_for(settings: LowdoseSettings, fault: Fault) -> LowdoseSettings:
    """Return settings in which nothing but this fault happens."""
    controller = {**settings.controller, "faults": fault.controller}
    patient = {"lease_s": 60.0, "block_deadline_ms": 60_000.0}
    if fault.make is _lose_lease:
        patient["lease_s"] = LEASE_S
    elif fault.make is _stall:
        patient["block_deadline_ms"] = settings.safety.block_deadline_ms
    safety = settings.safety.model_copy(update=patient)
    dose = settings.dose
    if fault.make is _spend_budget:
        one_frame = frame_dose_e_per_a2(make_paths(settings)[0], settings.beam.current_pa)
        dose = dose.model_copy(update={"budget_e_per_a2": (FRAMES_IN_BUDGET + 0.5) * one_frame})
    return settings.model_copy(update={"controller": controller, "safety": safety, "dose": dose})


def row_of(fault: str, setup: str, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return a row of figures; what was off before its condition was true counts as 0 ms."""
    never = any(trial.off_ns == NEVER_NS for trial in trials)
    return {
        "fault": fault,
        "setup": setup,
        "n": len(trials),
        "detect_ms": _percentiles([trial.known_ns - trial.fault_ns for trial in trials]),
        "blank_ms": None if never else _percentiles([trial.off_ns - trial.condition_ns for trial in trials]),
        "alarm": all(trial.alarm for trial in trials),
    }


def _percentiles(values_ns: Sequence[int]) -> dict[str, float]:
    values_ms = np.maximum(0, np.array(values_ns)) / 1e6
    return {name: round(float(np.percentile(values_ms, q)), 3) for name, q in PERCENTILES.items()}


def _print(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = [f"{figure} {name}" for figure in ("detect", "blank") for name in PERCENTILES]
    table = Table("fault [ms]", "setup", "n", *columns, "alarm", title="fault → service knows; condition → beam off")
    for row in figures["rows"]:
        values = [row[key][name] if row[key] else None for key in ("detect_ms", "blank_ms") for name in PERCENTILES]
        cells = ["never" if value is None else f"{value:.2f}" for value in values]
        table.add_row(row["fault"], row["setup"], str(row["n"]), *cells, "yes" if row["alarm"] else "")
    console = Console(width=150)
    console.print(table)
    console.print(
        f"lease {figures['lease_s']:g} s, block deadline {figures['block_deadline_ms']:g} ms, look-ahead "
        f"{figures['look_ahead_ms']:g} ms; busy: a matrix product on every core. p99 of so few trials is nearly the max"
    )
    console.print(figures["machine"])
