"""MicroscopeClient against a service of a few lines: what is asked, what comes back, what is raised."""

from __future__ import annotations

import threading

import pytest

from lowdose.acquisition.client import MicroscopeClient
from lowdose.acquisition.messages import Reply, ScanStart
from lowdose.acquisition.sockets import ControlRefusedError, ControlServer, free_endpoint
from lowdose.scan_patterns import ScanGrid, ScanPath

START = ScanStart("s1", (ScanPath(ScanGrid((2, 2)), [[0, 0]], 1.0),), {}, ("BF",), 1.0, 25.0, 200.0, 0, None, 0, 0)


class Service(threading.Thread):
    """Notes what is asked and answers with what `answers` holds under the verb: a dict, an error or a message."""

    def __init__(self, **answers):
        super().__init__(daemon=True)
        self._server = ControlServer("tcp://127.0.0.1:0")
        self.endpoint = self._server.endpoint
        self.answers, self.asked = answers, []
        self._over = threading.Event()

    def run(self):
        while not self._over.is_set():
            got = self._server.receive(0.01)
            if got is None:
                continue
            address, request = got
            self.asked.append((request.client, request.verb, request.arguments))
            answer = self.answers.get(request.verb, {})
            if isinstance(answer, str):
                answer = Reply(request.request_id, error=answer)
            elif isinstance(answer, dict):
                answer = Reply(request.request_id, result=answer)
            self._server.reply(address, answer)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join(5)
        self._server.close()


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        (lambda c: c.status(), ("status", {})),
        (lambda c: c.take_control(), ("take_control", {})),
        (lambda c: c.configure(), ("configure", {})),
        (lambda c: c.configure(dwell_time_us=2), ("configure", {"dwell_time_us": 2.0})),
        (lambda c: c.configure(pattern={"name": "raster"}), ("configure", {"pattern": {"name": "raster"}})),
        (lambda c: c.start(), ("start", {})),
        (lambda c: c.start(frames=3), ("start", {"frames": 3})),
        (lambda c: c.stop(), ("stop", {})),
        (lambda c: c.blank(), ("blank", {})),
        (lambda c: c.park(), ("park", {})),
        (lambda c: c.clear_alarm(), ("clear_alarm", {})),
        (lambda c: c.renew_lease(), ("renew_lease", {})),
        (lambda c: c.begin_recording(), ("begin_recording", {})),
        (lambda c: c.end_recording(), ("end_recording", {})),
        (lambda c: c.end_recording("abc"), ("end_recording", {"token": "abc"})),
        (lambda c: c.note("drifted"), ("note", {"text": "drifted"})),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_every_verb_asks_for_what_it_says_in_the_clients_name(call, asked):
    with Service() as service, MicroscopeClient(service.endpoint, "lab 1", timeout_s=5) as client:
        call(client)
    assert service.asked == [("lab 1", *asked)]


def test_answers_come_back():
    with (
        Service(
            status={"state": "parked"},
            new_area={"area_id": 4},
            describe_scan=START,
            attach_recorder={"token": "abc"},
            renew_lease={"record_wanted": True},
        ) as service,
        MicroscopeClient(service.endpoint, "me", timeout_s=5) as client,
    ):
        assert client.status() == {"state": "parked"}
        assert client.new_area() == 4
        assert client.attach_recorder() == "abc"
        assert client.renew_lease() == {"record_wanted": True}
        assert client.describe_scan("s1").scan_id == "s1"
    assert service.asked[-1] == ("me", "describe_scan", {"scan_id": "s1"})


def test_a_refusal_says_why():
    with (
        Service(start="a scan is running: stop it first") as service,
        MicroscopeClient(service.endpoint, "me", timeout_s=5) as client,
        pytest.raises(ControlRefusedError, match="a scan is running"),
    ):
        client.start()


def test_a_description_that_is_none_is_refused():
    with (
        Service(describe_scan={"scan_id": "s1"}) as service,
        MicroscopeClient(service.endpoint, "me", timeout_s=5) as client,
        pytest.raises(TypeError, match="must be answered by a ScanStart, got Reply"),
    ):
        client.describe_scan()


def test_without_a_service_every_verb_times_out():
    with MicroscopeClient(free_endpoint(), "me", timeout_s=0.01) as client:
        for call in (client.status, client.blank, client.start, client.describe_scan):
            with pytest.raises(TimeoutError, match="is the microscope service up"):
                call()
        client.close()
