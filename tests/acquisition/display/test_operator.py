import threading
from collections import Counter
from contextlib import contextmanager

import pytest

from lowdose.acquisition.display.operator import Operator
from lowdose.acquisition.messages import Reply
from lowdose.acquisition.sockets import ControlServer


class Service:
    """Answers from a script, in a thread: verb -> error text, a function of nothing, or nothing."""

    def __init__(self, **script):
        self.script = script
        self.asked = []
        self._held = []
        self.released = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._server = ControlServer("tcp://127.0.0.1:0")
        self.endpoint = self._server.endpoint

    def count(self, verb):
        return Counter(request.verb for request in list(self.asked))[verb]

    def _run(self):
        while not self._stop.is_set():
            received = self._server.receive(0.02)
            if received is not None:
                self._answer(*received)
            while self.released.is_set() and self._held:
                address, request = self._held.pop()
                self._server.reply(address, Reply(request.request_id))

    def _answer(self, address, request):
        self.asked.append(request)
        answer = self.script.get(request.verb, "")
        if answer is None:
            self._held.append((address, request))
            return
        if isinstance(answer, dict):
            self._server.reply(address, Reply(request.request_id, result=answer))
        else:
            self._server.reply(address, Reply(request.request_id, error=answer))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._server.close()


@contextmanager
def operating(service, **options):
    said = []
    operator = Operator(service.endpoint, "bench display", report=said.append, **options)
    with operator:
        yield operator, said


def test_commands_arrive_with_their_arguments(wait_until):
    with Service(configure={"coverage": 0.045}, new_area={"area_id": 3}) as service, operating(service) as (op, said):
        op.configure(pattern={"name": "spiral", "coverage": 0.05})
        op.configure(dwell_time_us=2.0)
        op.start()
        op.new_area()
        wait_until(lambda: service.count("new_area"))
        wait_until(lambda: len(said) == 4)
    sent = [request for request in service.asked if request.verb == "configure"]
    assert [request.arguments for request in sent] == [
        {"pattern": {"name": "spiral", "coverage": 0.05}},
        {"dwell_time_us": 2.0},
    ]
    assert said[0] == "configured: 4.50 % of the pixels visited"
    assert said[2:] == ["scan started", "new area 3: dose summed from zero"]
    assert {request.client for request in service.asked} == {"bench display"}


def test_a_refused_command_is_reported(wait_until):
    with Service(start="the budget is spent") as service, operating(service) as (op, said):
        op.start()
        wait_until(lambda: said)
    assert said == ["start: the budget is spent"]


def test_blank_does_not_wait_for_a_command_without_answer(wait_until):
    with Service(configure=None) as service, operating(service) as (op, said):
        op.configure(dwell_time_us=1.0)
        wait_until(lambda: service.count("configure"))
        op.start()
        op.blank()
        wait_until(lambda: "blanked" in said, timeout_s=1.0)
        service.released.set()
    assert service.count("start") == 0  # a start still waiting is forgotten


def test_a_blank_without_answer_is_tried_again_and_said_loudly(wait_until):
    with Service(blank=None) as service, operating(service) as (op, said):
        op.blank()
        wait_until(lambda: said)
        assert said[0].startswith("BLANK NOT CONFIRMED: no answer to 'blank'")
        service.script["blank"] = {}
        wait_until(lambda: "blanked" in said)


def test_read_only_while_another_display_holds_control(wait_until):
    with Service(take_control="control is held by lab 2") as service, operating(service) as (op, said):
        wait_until(lambda: op.read_only)
        assert op.read_only == "control is held by lab 2"
        assert said == ["read-only: control is held by lab 2"]
        service.script["take_control"] = {}
        wait_until(lambda: not op.read_only)


@pytest.mark.parametrize("hold_lease", [True, False])
def test_the_lease_is_renewed_after_a_start_if_held_here(hold_lease, wait_until):
    with Service() as service, operating(service, hold_lease=hold_lease) as (op, said):
        op.start()
        wait_until(lambda: "scan started" in said)
        if hold_lease:
            wait_until(lambda: service.count("renew_lease") >= 2)
        else:
            wait_until(lambda: service.count("take_control") >= 2)
    assert (service.count("renew_lease") > 0) is hold_lease


def test_status_is_asked_for_at_both_ends(wait_until):
    reports = []
    with Service(status={"acquired": 5}) as service, operating(service, on_status=reports.append):
        wait_until(lambda: reports)
        service.script["release_control"] = {"acquired": 9}
    assert [report.values["acquired"] for report in reports] == [5, 9]


def test_recording_and_marks_are_asked_for(wait_until):
    with Service() as service, operating(service) as (op, said):
        op.begin_recording()
        op.mark()
        op.end_recording()
        wait_until(lambda: len(said) == 3)
    sent = {r.verb: r.arguments for r in service.asked if r.verb in ("begin_recording", "note", "end_recording")}
    assert list(sent) == ["begin_recording", "note", "end_recording"]
    assert sent["note"]["text"].startswith("marked by bench display at ")
    assert said == ["recording asked for", "marked", "recording ended"]
