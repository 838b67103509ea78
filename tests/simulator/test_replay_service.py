"""The replay service in the microscope's place: the reconstruction behind it, a client that asks, and credit."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.session_reader import read_session
from lowdose.acquisition.settings import NetworkSettings
from lowdose.acquisition.sockets import ControlRefusedError, Publisher, Subscriber, free_endpoint
from lowdose.acquisition.status import Event, StatusReport
from lowdose.reconstruction.engines.classical_engine import LinearEngine, NearestEngine
from lowdose.reconstruction.pipeline import Reconstructor
from lowdose.reconstruction.service import ReconstructionService
from lowdose.simulator.credit import Credit
from lowdose.simulator.replay_service import ReplayService
from lowdose.simulator.session_replay import SessionReplay
from tests.simulator.sessions import BLOCK, blocks_of, new_scan, scanned, write_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from lowdose.acquisition.frames import DenseFrame
    from lowdose.acquisition.wire import Message
    from lowdose.reconstruction.engine import Engine

START = new_scan()
N = len(START.paths[0])
PER_FRAME = len(blocks_of(START, 1))


class GatedEngine(NearestEngine):
    """Completes a frame each time it is allowed one."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed = threading.Semaphore(0)

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        assert self.allowed.acquire(timeout=30)
        return super().run(inputs)


class Witness(Reconstructor):
    """Keeps every frame it completes: a listener on a busy machine may miss one."""

    def __init__(self, engine: Engine) -> None:
        super().__init__([engine])
        self.frames: list[DenseFrame] = []

    def complete(self, *arguments: Any, **counts: int) -> DenseFrame | None:
        frame = super().complete(*arguments, **counts)
        assert frame is not None
        self.frames.append(frame)
        return frame


class Rig:
    """A replay, a reconstruction behind it, and a display that only listens."""

    def __init__(self, path: Path, engine: Engine, *, speed: float = 0.0, **options: Any) -> None:
        self.network = NetworkSettings(**{name: free_endpoint() for name in NetworkSettings.model_fields})
        self.replay = SessionReplay(read_session(path), speed=speed, **options)
        self.service = ReplayService(self.replay, self.network, name=path.name, waits=speed == 0)
        witness = Witness(engine)
        self.frames = witness.frames
        self.reconstruction = ReconstructionService(witness, self.network)
        self.client = MicroscopeClient(self.network.control, "test", timeout_s=5.0)
        self.told: list[Message] = []
        self._stop = threading.Event()
        self._listening = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        with (
            Subscriber(self.network.frames, ("frames",), hwm=2) as frames,
            Subscriber(self.network.samples, ("status",), hwm=1000) as told,
        ):
            while not self._stop.is_set():
                frames.receive()
                if (word := told.receive(0.005)) is not None:
                    self.told.append(word)

    def begin(self) -> None:
        self.wait_until(lambda: self.client.status()["has_listener"])
        self.client.start()

    def wait_over(self) -> None:
        self.wait_until(lambda: self.service.wait(0.0))
        self.service.maybe_raise()

    @staticmethod
    def wait_until(condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, "waited in vain"
            time.sleep(0.005)  # between two looks

    def __enter__(self) -> Rig:
        self.service.start()
        self.reconstruction.start()
        self._listening.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._listening.join(5)
        self.client.close()
        self.reconstruction.close()
        self.service.close()
        self.service.close()


@pytest.fixture
def session(tmp_path: Path) -> Path:
    second = new_scan("second", channels=("ADF",))
    return write_session(tmp_path / "s.mcap", [*scanned(START, 25), *scanned(second, 10, first_seq=25 * PER_FRAME)])


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[tuple[Rig, GatedEngine]]:
    engine = GatedEngine()
    with Rig(write_session(tmp_path / "s.mcap", scanned(START, 12)), engine) as rig:
        yield rig, engine
        for _ in range(100):
            engine.allowed.release()


def acquired(rig: Rig) -> int:
    return int(rig.client.status()["acquired"])


# --- from the first frame to the last -------------------------------------------------------------------------------


def test_at_speed_0_every_frame_of_every_scan_is_completed_and_nothing_is_dropped(session: Path) -> None:
    with Rig(session, LinearEngine()) as rig:
        rig.begin()
        rig.wait_over()
    scans = list(dict.fromkeys(frame.scan_id for frame in rig.frames))
    assert [rig.replay.scan(scan_id).replay_of for scan_id in scans] == ["scan", "second"]
    assert [frame.frame_index for frame in rig.frames] == [*range(25), *range(10)]
    assert {(frame.complete, frame.dropped, frame.gaps) for frame in rig.frames} == {(True, 0, 0)}
    assert {frame.engine for frame in rig.frames} == {"linear"}  # from the first one on
    assert rig.service.over


def test_nothing_begins_before_somebody_asks_and_looks(session: Path) -> None:
    with Rig(session, NearestEngine()) as rig:
        rig.wait_until(lambda: rig.client.status()["has_listener"])
        status = rig.client.status()
        assert (status["state"], status["acquired"], status["replay"]) == ("parked", 0, "s.mcap")
        assert not rig.service.wait(0.1)


def test_the_reconstruction_is_never_more_than_two_frames_behind(gated: tuple[Rig, GatedEngine]) -> None:
    rig, engine = gated
    rig.begin()
    for done in range(8):
        rig.wait_until(lambda done=done: acquired(rig) == done + 2)  # one under way, one that waits for its turn
        assert not rig.service.wait(0.1)
        assert acquired(rig) == done + 2
        engine.allowed.release()
    for _ in range(12):
        engine.allowed.release()
    rig.wait_over()


def test_a_replay_is_not_over_before_the_reconstruction_has_taken_the_last_frame(tmp_path: Path) -> None:
    path = write_session(tmp_path / "s.mcap", scanned(START, 3))
    network = NetworkSettings(**{name: free_endpoint() for name in NetworkSettings.model_fields})
    service = ReplayService(SessionReplay(read_session(path), speed=1.0), network, name="s", waits=False)
    with (
        Publisher(network.frames, hwm=100) as reconstruction,
        MicroscopeClient(network.control, "test", timeout_s=5.0) as client,
    ):

        def say(**values: Any) -> dict[str, Any]:
            reconstruction.publish(report(**values))
            return client.status()

        service.start()
        Rig.wait_until(lambda: reconstruction.has_listener("status"))
        client.start()
        Rig.wait_until(lambda: client.status()["replay_of"])
        scan_id = client.describe_scan().scan_id
        Rig.wait_until(lambda: say(prepared=scan_id)["acquired"] == 3)
        for _ in range(5):
            say(busy=False, taken=(scan_id, 1))
        assert not service.wait(0.1)
        assert not service.over
        Rig.wait_until(lambda: say(busy=False, taken=(scan_id, 2)) and service.over)
        service.close()


def test_a_frame_with_a_hole_is_counted_and_holds_nothing_up(tmp_path: Path) -> None:
    # a hole in the middle, one at the end of a frame, and one at the end of all
    gone = {(2, BLOCK), (4, BLOCK * (PER_FRAME - 1)), (9, BLOCK * (PER_FRAME - 1))}
    kept = [block for block in blocks_of(START, 10) if (block.frame_index, block.first) not in gone]
    path = write_session(tmp_path / "s.mcap", [START, *kept])
    with Rig(path, NearestEngine()) as rig:
        rig.begin()
        rig.wait_over()
    assert [frame.frame_index for frame in rig.frames if frame.samples_used < N] == [2, 4, 9]
    assert (rig.frames[-1].dropped, rig.frames[-1].gaps) == (2, 2)  # of the last nobody can know a number
    assert not rig.frames[-1].complete


def test_at_its_own_pace_a_replay_takes_as_long_as_the_recording(tmp_path: Path) -> None:
    path = write_session(tmp_path / "s.mcap", scanned(START, 40))
    with Rig(path, NearestEngine(), speed=0.5) as rig:
        rig.begin()
        rig.wait_over()
    first, last = rig.frames[0].times_ns, rig.frames[-1].times_ns
    frames = 1 + rig.frames[-1].frame_index - rig.frames[0].frame_index
    assert last["last_sample"] - first["first_sample"] == pytest.approx(2e3 * frames * START.paths[0].duration_us, 1e-3)
    assert rig.frames[-1].dropped == 0


# --- what an operator can do ----------------------------------------------------------------------------------------


def test_blank_holds_the_recording_and_start_lets_it_go_on(tmp_path: Path) -> None:
    path = write_session(tmp_path / "s.mcap", scanned(START, 5))
    with Rig(path, NearestEngine(), speed=1.0, loop=True) as rig:
        rig.begin()
        rig.wait_until(lambda: acquired(rig) > 10)
        assert rig.client.status()["state"] == "replay"
        rig.client.blank()
        rig.wait_until(lambda: rig.client.status()["state"] == "paused")
        rig.service.wait(0.05)
        held = acquired(rig)
        assert not rig.service.wait(0.1)
        assert acquired(rig) == held
        rig.client.start()
        rig.wait_until(lambda: acquired(rig) > held + 5)


def test_every_start_is_a_step_when_single_steps_are_wanted(tmp_path: Path) -> None:
    path = write_session(tmp_path / "s.mcap", scanned(START, 3))
    with Rig(path, NearestEngine(), step=True) as rig:
        rig.begin()
        for k in range(3):
            rig.wait_until(lambda k=k: [f.frame_index for f in rig.frames] == list(range(k + 1)))
            rig.wait_until(lambda: rig.client.status()["state"] == "paused")
            assert not rig.service.wait(0.05)
            rig.client.start()
        rig.wait_over()


@pytest.mark.parametrize(
    "ask", [lambda c: c.configure(dwell_time_us=1.0), lambda c: c.new_area(), lambda c: c.begin_recording()]
)
def test_nothing_about_a_recording_can_be_changed(session: Path, ask: Callable[[MicroscopeClient], Any]) -> None:
    refused = pytest.raises(ControlRefusedError, match="this is a recording, nothing can be changed about it")
    with Rig(session, NearestEngine()) as rig, refused:
        ask(rig.client)


def test_it_answers_what_a_display_and_a_supervisor_ask_of_a_microscope(session: Path) -> None:
    with Rig(session, NearestEngine(), speed=1.0, loop=True) as rig:
        with pytest.raises(ControlRefusedError, match="no scan"):
            rig.client.describe_scan()
        rig.begin()
        rig.client.take_control()
        rig.client.renew_lease()
        rig.client.clear_alarm()
        rig.wait_until(lambda: acquired(rig) > 0)
        scan = rig.client.describe_scan()
        assert scan.replay_of in ("scan", "second")
        assert rig.client.describe_scan(scan.scan_id).paths == START.paths
        values = rig.client.release_control()
        assert (values["pattern"], values["replay_of"], values["dead_man"]) == ("spiral", scan.replay_of, True)
        assert values["coverage"] == START.paths[0].coverage
        assert values["dose_e_per_a2"] > 0
    reports = [word for word in rig.told if isinstance(word, StatusReport)]
    assert {report.source for report in reports} == {"microscope"}
    events = [word.text for word in rig.told if isinstance(word, Event)]
    assert events == ["replay of s.mcap: the beam is a recorded one, nothing moves"]


@pytest.mark.parametrize("current_pa", [0.0, -1.0, float("nan"), float("inf")])
def test_a_beam_current_that_was_not_recorded_tells_no_dose(current_pa: float, tmp_path: Path) -> None:
    start = new_scan(beam_current_pa=current_pa)
    with Rig(write_session(tmp_path / "s.mcap", scanned(start, 2)), NearestEngine(), loop=True) as rig:
        rig.begin()
        rig.wait_until(lambda: acquired(rig) > 0)
        values = rig.client.status()
    assert (values["dose_e_per_a2"], values["dose_visited_e_per_a2"]) == (None, None)
    assert values["coverage"] == START.paths[0].coverage


# --- credit ---------------------------------------------------------------------------------------------------------


def report(t_ns: int = 0, **values: Any) -> StatusReport:
    return StatusReport("reconstruction", t_ns or time.monotonic_ns(), values)


def waiting(wait: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("taken", [None, ("scan", 3), ("other", 9), "scan", ("scan",), (1, 2)])
def test_room_is_there_when_the_frame_or_a_later_one_was_taken(taken: object) -> None:
    credit = Credit(threading.Event())
    waiter = waiting(lambda: credit.wait_taken("scan", 4))
    credit.saw(report(taken=taken, frames=1))
    waiter.join(0.1)
    assert waiter.is_alive()
    credit.saw(report(taken=("scan", 5), frames=2))
    waiter.join(5)
    assert not waiter.is_alive()


def test_nobody_waits_for_a_reconstruction_that_was_started_again() -> None:
    credit = Credit(threading.Event())
    credit.saw(report(taken=("scan", 3), frames=7))
    waiter = waiting(lambda: credit.wait_taken("scan", 4))
    waiter.join(0.05)
    assert waiter.is_alive()
    credit.saw(report(taken=None, frames=0))
    waiter.join(5)
    assert not waiter.is_alive()


def test_patience_ends_when_nothing_changes_any_more(caplog: pytest.LogCaptureFixture) -> None:
    credit = Credit(threading.Event(), patience_s=0.05)
    credit.wait_taken("scan", 4)
    assert "did not take a frame for 0.05 s: going on" in caplog.text


def test_the_end_waits_until_the_last_frame_was_taken_and_nothing_is_left_to_do() -> None:
    credit = Credit(threading.Event())
    credit.saw(report(busy=False, taken=("scan", 4)))
    waiter = waiting(lambda: credit.wait_done(("scan", 4)))
    waiter.join(0.05)
    idle, busy = {"busy": False, "taken": ("scan", 4)}, {"busy": True, "taken": ("scan", 4)}
    before = {"busy": False, "taken": ("scan", 3)}
    for values in (before, before, before, busy, idle, busy, idle):
        credit.saw(report(**values))
        waiter.join(0.02)
        assert waiter.is_alive()
    credit.saw(report(**idle))
    waiter.join(5)
    assert not waiter.is_alive()


@pytest.mark.parametrize(("frame", "reports"), [(None, 2), (("scan", 4), 10)], ids=["no last frame", "a lost one"])
def test_the_end_does_not_wait_for_a_frame_that_was_lost(frame: tuple[str, int] | None, reports: int) -> None:
    credit = Credit(threading.Event())
    waiter = waiting(lambda: credit.wait_done(frame))
    waiter.join(0.05)
    for _ in range(reports):
        assert waiter.is_alive()
        credit.saw(report(busy=False, taken=("scan", 3)))
        waiter.join(0.02)
    waiter.join(5)
    assert not waiter.is_alive()


def test_a_stop_ends_every_wait() -> None:
    stopping = threading.Event()
    waiter = waiting(lambda: Credit(stopping).wait_prepared("scan"))
    stopping.set()
    waiter.join(5)
    assert not waiter.is_alive()
