import threading

import pytest

from lowdose.acquisition.display.receiver import Receiver
from lowdose.acquisition.display.view_model import ViewModel
from lowdose.acquisition.sockets import Publisher
from lowdose.acquisition.status import Event


@pytest.fixture
def publishers():
    with Publisher("tcp://127.0.0.1:0", hwm=10) as frames, Publisher("tcp://127.0.0.1:0", hwm=10) as samples:
        yield frames, samples


@pytest.fixture
def running(publishers, wait_until):
    frames, samples = publishers
    model, woken = ViewModel(), threading.Event()
    with Receiver(frames.endpoint, samples.endpoint, model=model, wake=woken.set) as receiver:
        wait_until(lambda: frames.has_listener("frames") and frames.has_listener("status"))
        wait_until(lambda: samples.has_listener("status"))
        yield model, receiver, woken


def test_frames_reports_and_events_arrive(publishers, running, make_frame, make_report, wait_until):
    (frames, samples), (model, _, woken) = publishers, running
    frames.publish(make_frame(3))
    frames.publish(make_report(source="reconstruction", engine="linear"))
    samples.publish(make_report(state="blanked"))
    samples.publish(Event("microscope", "fault", "coil current", "alarm", 1))
    wait_until(lambda: model.microscope and model.reconstruction and model.reports.alarm)
    assert model.take().frame.frame_index == 3
    assert model.microscope["state"] == "blanked"
    assert woken.is_set()


def test_garbage_is_counted_and_passed_over(publishers, running, make_frame, wait_until):
    (frames, _), (model, receiver, _) = publishers, running
    with frames._lock:
        frames._socket.send_multipart([b"frames", b"\xc1 no msgpack", b"\x00" * 8])
        frames._socket.send_multipart([b"frames"])
    frames.publish(make_frame(1))
    wait_until(lambda: receiver.garbage == 2)
    wait_until(lambda: model.seconds_without_frame() is not None)


def test_an_error_in_the_thread_is_raised_by_close(publishers, make_report, wait_until):
    frames, samples = publishers

    def broken():
        raise LookupError("wake failed")

    receiver = Receiver(frames.endpoint, samples.endpoint, model=ViewModel(), wake=broken)
    receiver.start()
    wait_until(lambda: samples.has_listener("status"))
    samples.publish(make_report())
    wait_until(lambda: receiver.error is not None)
    with pytest.raises(LookupError, match="wake failed"):
        receiver.close()
    receiver.close()
