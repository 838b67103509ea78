"""Sockets on port 0: who may bind, what garbage does, what a listener that does not read does."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import closing, contextmanager

import numpy as np
import pytest
import zmq

from lowdose.acquisition import sockets
from lowdose.acquisition.messages import Reply, Request, SampleBlock, ScanEnd, ScanStart
from lowdose.acquisition.sockets import (
    ControlClient,
    ControlRefusedError,
    ControlServer,
    EndpointError,
    Publisher,
    Subscriber,
    free_endpoint,
    require_loopback,
    wait_any,
)
from lowdose.acquisition.status import Event
from lowdose.acquisition.wire import MAX_HEADER_BYTES, WireError, encode
from lowdose.scan_patterns import ScanGrid, ScanPath

ANY_PORT = "tcp://127.0.0.1:0"
GARBAGE = [
    [b""],
    [b"samples"],
    [b"samples", b""],
    [b"samples", b"\x80"],
    [b"samples", os.urandom(100)],
    [b"status", b"\xdd\x7f\xff\xff\xff"],
    [b"control", b"\x00" * (MAX_HEADER_BYTES - 1)],
    [b"samples"] * 12,
]


def block(seq, n=3):
    return SampleBlock("scan", "digest", 0, 0, np.full((1, n), seq % 65_536, np.uint16), seq, 1, 2, 3)


def scan_start(scan_id):
    path = ScanPath(ScanGrid((2, 2)), [[0, 0]], 1.0)
    return ScanStart(scan_id, (path,), {}, ("HAADF",), 1.0, 25.0, 200.0, 0, None, 0, 0)


@contextmanager
def listening(hwm):
    """Yield a publisher and a subscriber to its samples, each with room for `hwm` messages, once they have met."""
    with Publisher(ANY_PORT, hwm=hwm) as publisher, Subscriber(publisher.endpoint, ["samples"], hwm=hwm) as subscriber:
        wait_until(lambda: publisher.has_listener("samples"))
        yield publisher, subscriber


@contextmanager
def asking():
    """Yield a server nobody serves and a client of it."""
    with ControlServer(ANY_PORT) as server, ControlClient(server.endpoint, "me") as client:
        yield server, client


def wait_until(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.001)


def received(server, timeout_s=5.0):
    """Return the next request, whatever garbage comes before it."""
    deadline = time.monotonic() + timeout_s
    while (got := server.receive(0.05)) is None:
        assert time.monotonic() < deadline, "no request came"
    return got


def raw(kind, endpoint):
    plain = zmq.Context.instance().socket(kind)
    plain.setsockopt(zmq.LINGER, 0)
    plain.connect(endpoint)
    return plain


def raw_bound(kind):
    plain = zmq.Context.instance().socket(kind)
    plain.setsockopt(zmq.LINGER, 0)
    return plain, f"tcp://127.0.0.1:{plain.bind_to_random_port('tcp://127.0.0.1')}"


class Answering(threading.Thread):
    """A service that answers every request with what `answer` returns of it; None answers nothing."""

    def __init__(self, server, answer):
        super().__init__(daemon=True)
        self._server, self._answer, self._over = server, answer, threading.Event()

    def run(self):
        while not self._over.is_set():
            got = self._server.receive(0.01)
            if got is not None:
                for message in self._answer(got[1]) or ():
                    self._server.reply(got[0], message)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join(5)
        self._server.close()


# --- who may bind ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda e: Publisher(e, hwm=2), ControlServer], ids=["publisher", "control"])
@pytest.mark.parametrize("transport", ["tcp", "inproc"])
def test_an_endpoint_in_use_is_named_with_what_to_do_about_it(make, transport):
    with Publisher(ANY_PORT if transport == "tcp" else "inproc://in-use", hwm=2) as first:
        with pytest.raises(EndpointError) as refusal:
            make(first.endpoint)
        assert first.endpoint in str(refusal.value)
        assert "in use by another program: end it, or set another port under network" in str(refusal.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://0.0.0.0:5750",
        "tcp://*:5750",
        "tcp://[::]:5750",
        "tcp://microscope.example:5750",
        "tcp://192.168.1.4:5750",
        "tcp://[fe80::1]:5750",
        "tcp://[::ffff:10.0.0.1]:5750",
        "tcp://eth0:5750",
        "tcp://localhost.example:5750",
        "tcp://127.0.0.1.example:5750",
        "tcp://:5750",
        "tcp://5750",
        "tcp://",
        "tipc://{5560,0,0}",
        "udp://*:5750",
        "",
    ],
)
@pytest.mark.parametrize("make", [lambda e: Publisher(e, hwm=2), ControlServer], ids=["publisher", "control"])
def test_nothing_but_loopback_is_bound(make, endpoint):
    with pytest.raises(EndpointError, match=r"only loopback.*may be bound.*SSH tunnel"):
        make(endpoint)


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://127.0.0.1:0", "tcp://127.1.2.3:0", "tcp://localhost:0", "tcp://[::1]:0", "ipc:///tmp/x", "inproc://x"],
)
def test_loopback_is_fine(endpoint):
    require_loopback(endpoint)


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("transport", ["tcp4", "tcp6", "localhost", "ipc", "inproc"])
def test_requests_travel_over_every_loopback_transport(transport, tmp_path):
    if transport == "tcp6" and not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    endpoint = {
        "tcp4": ANY_PORT,
        "tcp6": "tcp://[::1]:0",
        "localhost": "tcp://localhost:0",
        "ipc": f"ipc://{tmp_path}/c",
        "inproc": "inproc://every-transport",
    }[transport]
    server = ControlServer(endpoint)
    with (
        Answering(server, lambda request: [Reply(request.request_id, result={"verb": request.verb})]),
        ControlClient(server.endpoint, "me") as client,
    ):
        assert client.request("status", {}, 5).result == {"verb": "status"}


def test_an_endpoint_that_makes_no_sense_is_refused_saying_what_is_expected():
    with pytest.raises(EndpointError, match=r"Expected tcp://127.0.0.1:PORT, ipc://PATH or inproc://NAME"):
        Publisher("tcp://127.0.0.1:nonsense", hwm=2)


def test_port_0_takes_a_free_port_and_says_which():
    with Publisher(ANY_PORT, hwm=2) as publisher:
        assert int(publisher.endpoint.rpartition(":")[2]) > 0


def test_free_endpoints_asked_for_one_after_another_differ():
    assert len({free_endpoint() for _ in range(500)}) == 500


def test_a_free_endpoint_can_be_bound():
    with ControlServer(free_endpoint()) as server:
        assert server.endpoint.startswith("tcp://127.0.0.1:")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Publisher(ANY_PORT, hwm=2),
        lambda: Subscriber("tcp://127.0.0.1:9", ["samples"], hwm=2),
        lambda: ControlServer(ANY_PORT),
        lambda: ControlClient("tcp://127.0.0.1:9", "me"),
    ],
    ids=["publisher", "subscriber", "server", "client"],
)
def test_closing_twice_is_fine(make):
    made = make()
    made.close()
    made.close()


def test_publishing_after_closing_does_nothing():
    publisher = Publisher(ANY_PORT, hwm=2)
    publisher.close()
    publisher.publish(block(0))
    assert not publisher.has_listener("samples")


# --- publish and subscribe ------------------------------------------------------------------------------------------


def test_a_listener_gets_what_is_published_under_its_topics_in_order():
    with listening(100) as (publisher, subscriber):
        publisher.publish(Event("microscope", "x", "not for us", "info", 0))
        for seq in range(5):
            publisher.publish(block(seq))
        assert [subscriber.receive(5).seq for _ in range(5)] == [0, 1, 2, 3, 4]
        assert subscriber.receive() is None


def test_large_arrays_arrive_whole_and_read_only():
    sent = block(1, n=100_000)
    with listening(2) as (publisher, subscriber):
        publisher.publish(sent)
        got = subscriber.receive(5)
        np.testing.assert_array_equal(got.counts, sent.counts)
        assert not got.counts.flags.writeable


def test_a_listener_is_known_while_it_is_there():
    with Publisher(ANY_PORT, hwm=2) as publisher:
        assert not publisher.has_listener("samples")
        with Subscriber(publisher.endpoint, ["samples", "status"], hwm=2):
            wait_until(lambda: publisher.has_listener("samples"))
            wait_until(lambda: publisher.has_listener("status"))
            assert not publisher.has_listener("frames")
            with Subscriber(publisher.endpoint, ["samples"], hwm=2) as second:
                wait_until(lambda: publisher.has_listener("samples"))
                second.close()
            assert publisher.has_listener("samples")
        wait_until(lambda: not publisher.has_listener("samples"))
        wait_until(lambda: not publisher.has_listener("status"))


def test_a_listener_that_does_not_read_never_holds_up_the_publisher():
    with listening(2) as (publisher, subscriber):
        large = block(0, n=500_000)
        began_s = time.monotonic()
        for _ in range(200):  # 200 MB, far more than all buffers on the way
            publisher.publish(large)
        assert time.monotonic() - began_s < 5
        for seq in range(1, 1_001):
            publisher.publish(block(seq))
        wait_any([subscriber], 5)
        got = 0
        while subscriber.receive(0.05) is not None:
            got += 1
        assert 0 < got < 1_200
        assert subscriber.garbage == 0


def test_any_thread_may_publish():
    with listening(1_000) as (publisher, subscriber):

        def publish(first):
            for seq in range(first, first + 100):
                publisher.publish(block(seq))

        threads = [threading.Thread(target=publish, args=(100 * k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        seqs = [subscriber.receive(5).seq for _ in range(400)]
    assert sorted(seqs) == list(range(400))
    assert subscriber.garbage == 0


def test_waiting_for_any_of_several_ends_with_the_first():
    with listening(2) as (_, of_a), listening(2) as (b, of_b):
        b.publish(block(4))
        wait_any([of_a, of_b], 5)
        assert of_b.receive().seq == 4
        assert of_a.receive() is None


# --- garbage --------------------------------------------------------------------------------------------------------


def test_garbage_from_a_publisher_is_counted_and_passed_over():
    plain, endpoint = raw_bound(zmq.XPUB)
    with closing(plain), Subscriber(endpoint, ["samples", "status"], hwm=100) as subscriber:
        for _ in range(2):
            assert plain.poll(5_000)
            plain.recv()
        sent = [garbage for garbage in GARBAGE if garbage[0] in (b"samples", b"status")]
        for garbage in sent:
            plain.send_multipart(garbage)
        plain.send_multipart(encode(block(5)))
        assert subscriber.receive(5).seq == 5
        assert subscriber.garbage == len(sent)


def test_garbage_to_the_control_server_is_counted_and_survived():
    with ControlServer(ANY_PORT) as server, closing(raw(zmq.DEALER, server.endpoint)) as plain:
        for garbage in GARBAGE:
            plain.send_multipart(garbage)
        plain.send_multipart(encode(Request("me", 1, "status")))
        assert received(server)[1].verb == "status"
        assert server.garbage == len(GARBAGE)


def test_other_messages_than_requests_are_not_answered():
    with ControlServer(ANY_PORT) as server, closing(raw(zmq.DEALER, server.endpoint)) as plain:
        for message in (Reply(1), ScanEnd("s", 0, "x"), block(0), scan_start("s")):
            plain.send_multipart(encode(message))
        plain.send_multipart(encode(Request("me", 2, "status")))
        assert received(server)[1].request_id == 2


def test_a_request_of_a_megabyte_does_not_reach_the_control_server():
    with ControlServer(ANY_PORT) as server, closing(raw(zmq.DEALER, server.endpoint)) as plain:
        plain.send_multipart([b"control", b"\x00" * 1_000_000])
        plain.send_multipart(encode(Request("me", 2, "status")))  # arrives once ZeroMQ has connected again
        assert received(server)[1].request_id == 2
        assert server.garbage == 0


def test_garbage_to_the_client_is_counted_and_the_answer_still_found():
    plain, endpoint = raw_bound(zmq.ROUTER)
    with closing(plain), ControlClient(endpoint, "me") as client:

        def answer():
            identity, *_ = plain.recv_multipart()
            for garbage in GARBAGE:
                plain.send_multipart([identity, *garbage])
            plain.send_multipart([identity, *encode(Reply(1, result={"a": 1}))])

        thread = threading.Thread(target=answer)
        thread.start()
        assert client.request("status", {}, 5).result == {"a": 1}
        thread.join(5)
        assert client.garbage == len(GARBAGE)


def test_garbage_to_the_publisher_is_survived():
    with Publisher(ANY_PORT, hwm=10) as publisher:
        with closing(raw(zmq.XSUB, publisher.endpoint)) as plain:
            for word in (b"", b"\x01", b"\x00", b"\x01\xff\xfe", b"\x02what", os.urandom(200), b"\x01samples"):
                plain.send(word)
            wait_until(lambda: publisher.has_listener("samples"))
            publisher.publish(block(1))
            assert plain.poll(5_000)
        wait_until(lambda: not publisher.has_listener("samples"))


@pytest.mark.parametrize("kind", ["publisher", "server"])
def test_random_bytes_on_the_port_are_survived(kind):
    make = {"publisher": lambda: Publisher(ANY_PORT, hwm=10), "server": lambda: ControlServer(ANY_PORT)}[kind]
    rng = np.random.default_rng(5)
    with make() as bound:
        port = int(bound.endpoint.rpartition(":")[2])
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
        for sent in (b"GET / HTTP/1.1\r\n\r\n", rng.bytes(5_000), greeting + rng.bytes(500), b"\xff" * 64, b""):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
                plain.sendall(sent)
        if kind == "publisher":
            with Subscriber(bound.endpoint, ["samples"], hwm=10) as subscriber:
                wait_until(lambda: bound.has_listener("samples"))
                bound.publish(block(3))
                assert subscriber.receive(5).seq == 3
        else:
            with closing(raw(zmq.DEALER, bound.endpoint)) as plain:
                plain.send_multipart(encode(Request("me", 1, "status")))
                assert received(bound)[1].verb == "status"


# --- requests -------------------------------------------------------------------------------------------------------


def test_no_answer_in_time_says_who_did_not_answer_what():
    with asking() as (server, client):
        complaint = rf"no answer to 'status' from {server.endpoint} within 0.01 s: is the microscope service up"
        with pytest.raises(TimeoutError, match=complaint):
            client.request("status", {}, 0.01)


def test_a_refusal_is_raised_with_its_reason():
    server = ControlServer(ANY_PORT)
    with (
        Answering(server, lambda request: [Reply(request.request_id, error="not now")]),
        ControlClient(server.endpoint, "me") as client,
        pytest.raises(ControlRefusedError, match="not now"),
    ):
        client.request("start", {}, 5)


def test_no_number_of_requests_to_nobody_ever_blocks():
    with ControlClient(free_endpoint(), "me") as client:
        for _ in range(250):
            with pytest.raises(TimeoutError):
                client.request("status", {}, 0)


def test_a_start_asked_for_before_the_service_was_there_is_never_done():
    endpoint = free_endpoint()
    with ControlClient(endpoint, "me") as client:
        with pytest.raises(TimeoutError):
            client.request("start", {}, 0.01)
        server, asked = ControlServer(endpoint), []
        with Answering(server, lambda request: asked.append(request.verb) or [Reply(request.request_id)]):
            client.request("status", {}, 5)
    assert asked == ["status"]


def test_a_late_reply_to_an_earlier_request_is_not_taken_for_the_later_one():
    server = ControlServer(ANY_PORT)
    late = []

    def answer(request):
        if request.verb == "slow":
            late.append(request)
            return None
        return [Reply(late[0].request_id, error="too late"), Reply(request.request_id, result={"verb": request.verb})]

    with Answering(server, answer), ControlClient(server.endpoint, "me") as client:
        with pytest.raises(TimeoutError):
            client.request("slow", {}, 0.02)
        wait_until(lambda: late)
        assert client.request("quick", {}, 5).result == {"verb": "quick"}


@pytest.mark.parametrize("verb", ["status", "describe_scan"])
def test_a_late_scan_description_is_not_taken_for_a_later_answer(verb):
    with asking() as (server, client):
        with pytest.raises(TimeoutError):
            client.request("describe_scan", {"scan_id": "old"}, 0.02)
        late_to, _ = received(server)

        def answer():
            address, request = received(server)
            server.reply(late_to, scan_start("old"))
            answers = {"status": Reply(request.request_id, result={"a": 1}), "describe_scan": scan_start("new")}
            server.reply(address, answers[verb])

        thread = threading.Thread(target=answer)
        thread.start()
        got = client.request(verb, {}, 5)
        thread.join(5)
    assert got.result == {"a": 1} if verb == "status" else got.scan_id == "new"


def test_a_client_that_has_gone_is_no_error_for_the_server():
    with ControlServer(ANY_PORT) as server:
        with ControlClient(server.endpoint, "me") as client, pytest.raises(TimeoutError):
            client.request("status", {}, 0.02)
        address, request = received(server)
        server.reply(address, Reply(request.request_id))
        server.reply((b"nobody", 1), scan_start("s"))


def test_a_request_too_long_for_a_header_is_refused_by_the_sender():
    with asking() as (_, client), pytest.raises(WireError, match="at most"):
        client.request("configure", {"pattern": {"name": "x" * 70_000}}, 1)


def test_garbage_is_logged_rarely(caplog):
    with ControlServer(ANY_PORT) as server, closing(raw(zmq.DEALER, server.endpoint)) as plain:
        for _ in range(120):
            plain.send_multipart([b"x", b"y"])
        wait_until(lambda: server.receive(0.01) is None and server.garbage == 120)
    said = [record for record in caplog.records if record.name == sockets.__name__]
    assert len(said) == 3


@pytest.mark.parametrize("connect", [lambda e: Subscriber(e, ("frames",), hwm=1), lambda e: ControlClient(e, "x")])
def test_an_endpoint_nobody_can_connect_to_is_named_and_leaves_no_socket_open(connect):
    with pytest.raises(EndpointError, match="cannot connect to tcp://nowhere: "):
        connect("tcp://nowhere")
