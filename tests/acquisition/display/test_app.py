import threading
import time
from contextlib import contextmanager
from functools import partial

import pytest
from PySide6.QtWidgets import QApplication

from lowdose.acquisition.display import app as app_module
from lowdose.acquisition.display import view_model
from lowdose.acquisition.display.app import run_window
from lowdose.acquisition.display.headless import run_headless
from lowdose.acquisition.messages import Reply
from lowdose.acquisition.sockets import ControlServer, Publisher


@contextmanager
def services(make_frame, make_report, *, frames_of_scan=10**9):
    """Publish reports, and frames until the scan is over, and say yes to everything; yields (endpoints, verbs)."""
    stop, asked = threading.Event(), []
    frames, samples = Publisher("tcp://127.0.0.1:0", hwm=2), Publisher("tcp://127.0.0.1:0", hwm=10)
    control = ControlServer("tcp://127.0.0.1:0")

    def serve():
        index = 0
        while not stop.is_set():
            received = control.receive(0.01)
            if received is not None:
                asked.append(received[1].verb)
                control.reply(received[0], Reply(received[1].request_id))
            if index < frames_of_scan:
                frames.publish(make_frame(index))
            state = "scanning" if index < frames_of_scan else "parked"
            samples.publish(make_report(t_ns=time.monotonic_ns(), acquired=index, state=state))
            index += 1

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield (frames.endpoint, samples.endpoint, control.endpoint), asked
    finally:
        stop.set()
        thread.join()
        for socket in (frames, samples, control):
            socket.close()


def test_the_window_ends_after_as_many_frames_as_asked_for(qapp, make_frame, make_report, tmp_path):
    painted = []
    with services(make_frame, make_report) as (endpoints, asked):
        model = run_window(
            *endpoints,
            frames=5,
            hold_lease=False,
            start=True,
            snapshot_folder=tmp_path,
            on_painted=lambda *a: painted.append(a),
        )
    assert model.summary()["frames"] == 5
    assert len(painted) == 5
    assert all(t_painted > t_received for _, t_received, t_painted in painted)
    assert "start" in asked
    assert "take_control" in asked
    QApplication.processEvents()
    assert not any(widget.isVisible() for widget in QApplication.topLevelWidgets())


def test_the_window_ends_when_told(qapp, make_frame, make_report, tmp_path):
    stop = threading.Event()
    with services(make_frame, make_report) as (endpoints, asked):
        run_window(
            *endpoints,
            frames=None,
            hold_lease=False,
            start=False,
            snapshot_folder=tmp_path,
            on_painted=lambda *_: stop.set(),
            stop=stop,
        )
    assert "start" not in asked


@pytest.mark.parametrize("windowed", [True, False])
def test_a_run_of_so_many_frames_ends_with_the_scan(
    windowed, qapp, make_frame, make_report, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(view_model, "OVER_AFTER_NS", 500_000_000)
    run = partial(run_window, snapshot_folder=tmp_path) if windowed else run_headless
    with services(make_frame, make_report, frames_of_scan=30) as (endpoints, _):
        model = run(*endpoints, frames=10**6, hold_lease=False, start=False)
    assert model.frames < 10**6
    assert "the scan is over before all frames were shown" in caplog.text


def test_a_fault_in_the_window_is_told_and_does_not_end_it(
    qapp, make_frame, make_report, tmp_path, monkeypatch, caplog
):
    class Faulty(app_module.Window):
        def _show_titles(self):
            if self.isVisible():
                raise LookupError("no such title")

    monkeypatch.setattr(app_module, "Window", Faulty)
    with services(make_frame, make_report) as (endpoints, _):
        stop = threading.Event()

        def on_painted(*_):
            if "no such title" in caplog.text:
                stop.set()

        model = run_window(
            *endpoints,
            frames=None,
            hold_lease=False,
            start=False,
            snapshot_folder=tmp_path,
            on_painted=on_painted,
            stop=stop,
        )
    assert model.faults > 0
    assert model.frames > 0


def test_headless_receives_as_many_frames_as_asked_for(make_frame, make_report):
    seen = []
    with services(make_frame, make_report) as (endpoints, asked):
        model = run_headless(
            *endpoints, frames=20, hold_lease=True, start=True, on_shown=lambda *a: seen.append(a[0].frame_index)
        )
    assert model.frames == 20
    assert len(seen) == 20
    assert seen == sorted(seen)
    assert model.frame.frame_index == seen[-1]
    assert "start" in asked


@pytest.mark.parametrize("frames", [None, 10_000_000])
def test_headless_ends_when_told(frames, make_frame, make_report):
    stop = threading.Event()
    with services(make_frame, make_report) as (endpoints, _):
        model = run_headless(
            *endpoints, frames=frames, hold_lease=False, start=False, on_shown=lambda *_: stop.set(), stop=stop
        )
    assert model.frames >= 1
