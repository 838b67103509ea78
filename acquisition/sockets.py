"""Sockets: the only door to ZeroMQ. Publish and subscribe, request and reply, record: all with bounded memory.

A socket belongs to one thread; only `Publisher.publish` may be called from any.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import zmq

from lowdose.acquisition.messages import RecordAck, Reply, Request
from lowdose.acquisition.wire import MAX_HEADER_BYTES, MAX_PART_BYTES, Buffer, Message, Topic, WireError, decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

logger = logging.getLogger(__name__)

FIRST_FREE_PORT, FREE_PORTS = 20_000, 10_000
MAX_TRIES = 100
SAMPLES_HWM = 1000
"""2 s of blocks of 2 ms; 300 ms of those of a 16 x 16 field, whose frames last 0.3 ms."""
FRAMES_HWM = 2
STATUS_HWM = 1000
RECORD_HWM = 100
"""Messages in the queues of a record path; the others wait in its ring, where they count."""
SEQ_BYTES = 8
HEARTBEAT_MS = 500
LINGER_MS = 200
ENDPOINTS = "tcp://127.0.0.1:PORT, ipc://PATH or inproc://NAME"

Address = tuple[bytes, int]
"""Where an answer goes: the client's identity on the socket and the number of its request."""


class EndpointError(ValueError):
    """An endpoint cannot be bound as configured."""


class PeerGoneError(ConnectionError):
    """The peer a message was for is not connected any more."""


class ControlRefusedError(RuntimeError):
    """The microscope service refused a request; the message says why."""


class _Socket:
    """A configured socket that closes once.

    No heartbeats where more may come in than is read: libzmq aborts the process when a socket with a full queue misses
    one (#4767). The record path has acknowledgements instead.
    """

    def __init__(
        self, kind: int, *, hwm: int, heartbeats: bool = True, context: zmq.Context[zmq.Socket[bytes]] | None = None
    ) -> None:
        self._socket: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(kind)
        self._socket.set_hwm(hwm)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_PART_BYTES)
        if heartbeats:
            self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 4 * HEARTBEAT_MS)
        self.garbage = 0

    def _bind(self, endpoint: str) -> str:
        try:
            require_loopback(endpoint)
            self._allow_ipv6(endpoint)
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise EndpointError(_bind_advice(endpoint, error)) from None
        except EndpointError:
            self.close()
            raise
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _connect(self, endpoint: str) -> None:
        self._allow_ipv6(endpoint)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise EndpointError(f"cannot connect to {endpoint}: {error.strerror}. Expected {ENDPOINTS}") from None

    def _allow_ipv6(self, endpoint: str) -> None:
        self._socket.setsockopt(zmq.IPV6, endpoint.startswith("tcp://["))

    def _decode(self, buffers: Sequence[zmq.Frame]) -> Message | None:
        try:
            return decode([frame.buffer for frame in buffers])
        except WireError as error:
            self.garbage += 1
            if self.garbage in (1, 10, 100) or self.garbage % 1000 == 0:
                logger.warning("garbage on a socket, %d so far: %s", self.garbage, error)
            return None

    def close(self) -> None:
        """Close the socket; twice is fine."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _are_large(buffers: Sequence[Buffer]) -> bool:
    """Tell whether it pays to let ZeroMQ read the buffers in place."""
    return len(buffers) > 2 and max(len(buffer) for buffer in buffers) > 65_536


class Publisher(_Socket):
    """Sends to whoever listens and never waits: a slow listener loses messages, which it can count.

    Parameters
    ----------
    endpoint : str
        Bound; port 0 takes a free one, see `endpoint`.
    hwm : int
        Messages kept for each listener.
    """

    def __init__(self, endpoint: str, *, hwm: int) -> None:
        super().__init__(zmq.XPUB, hwm=hwm)
        self._lock = threading.Lock()
        self._listened: set[str] = set()
        self.endpoint = self._bind(endpoint)

    def publish(self, message: Message) -> None:
        """Send a message to all listeners of its topic; from any thread."""
        self.send(encode(message))

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Send an encoded message, as `publish` does."""
        with self._lock:
            if not self._socket.closed:
                self._socket.send_multipart(buffers, copy=not _are_large(buffers))

    def has_listener(self, topic: Topic) -> bool:
        """Tell whether anybody has subscribed to a topic."""
        with self._lock:
            while not self._socket.closed and self._socket.poll(0):
                word = self._socket.recv()
                if word[:1] == b"\x01":
                    self._listened.add(word[1:].decode(errors="replace"))
                elif word[:1] == b"\x00":
                    self._listened.discard(word[1:].decode(errors="replace"))
        return topic in self._listened

    def close(self) -> None:
        """Close the socket; twice is fine."""
        with self._lock:
            super().close()


class Subscriber(_Socket):
    """Listens to topics of one publisher.

    Parameters
    ----------
    endpoint : str
        Connected to, whether the publisher is there yet or not.
    topics : sequence of str
        What to listen to.
    hwm : int
        Messages kept until they are received.
    """

    def __init__(self, endpoint: str, topics: Sequence[Topic], *, hwm: int) -> None:
        super().__init__(zmq.SUB, hwm=hwm, heartbeats=False)
        for topic in topics:
            self._socket.setsockopt_string(zmq.SUBSCRIBE, topic)
        self._connect(endpoint)

    def receive(self, timeout_s: float = 0.0) -> Message | None:
        """Return the next message, or None if none came in time; garbage is counted and passed over."""
        deadline = time.monotonic() + timeout_s
        while self._socket.poll(max(0, round(1000 * (deadline - time.monotonic())))):
            message = self._decode(self._socket.recv_multipart(copy=False))
            if message is not None:
                return message
        return None


def wait_any(subscribers: Sequence[Subscriber], timeout_s: float) -> None:
    """Return as soon as one of the subscribers has something, or after `timeout_s`."""
    poller = zmq.Poller()
    for subscriber in subscribers:
        poller.register(subscriber._socket, zmq.POLLIN)  # noqa: SLF001 same room
    poller.poll(round(1000 * timeout_s))


class ControlServer(_Socket):
    """The service's side of request and reply."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(zmq.ROUTER, hwm=100)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_HEADER_BYTES)  # a request has no arrays
        self.endpoint = self._bind(endpoint)

    def receive(self, timeout_s: float) -> tuple[Address, Request] | None:
        """Return where the answer goes and the request, or None if none came in time."""
        if not self._socket.poll(round(1000 * timeout_s)):
            return None
        identity, *buffers = self._socket.recv_multipart(copy=False)
        message = self._decode(buffers)
        return ((bytes(identity.buffer), message.request_id), message) if isinstance(message, Request) else None

    def reply(self, address: Address, message: Message) -> None:
        """Answer, whatever else than a `Reply` followed by one; a client that has gone meanwhile is no error."""
        identity, request_id = address
        self._socket.send_multipart([identity, *encode(message)])
        if not isinstance(message, Reply):
            self._socket.send_multipart([identity, *encode(Reply(request_id))])


class ControlClient(_Socket):
    """The client's side of request and reply; for one thread.

    Parameters
    ----------
    endpoint : str
        The service's control endpoint.
    name : str
        Who asks, as shown to people.
    """

    def __init__(self, endpoint: str, name: str) -> None:
        super().__init__(zmq.DEALER, hwm=100)
        self.name = name
        self.endpoint = endpoint
        self._last_id = 0
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # a command never waits for a service that comes up later
        self._connect(endpoint)

    def request(self, verb: str, arguments: dict[str, Any], timeout_s: float) -> Message:
        """Send a request and return its answer.

        Raises
        ------
        TimeoutError
            If none came in time.
        ControlRefusedError
            If the service said no.
        """
        self._last_id += 1
        deadline = time.monotonic() + timeout_s
        if self._socket.poll(round(1000 * timeout_s), zmq.POLLOUT):
            self._socket.send_multipart(encode(Request(self.name, self._last_id, verb, arguments)))
        answer = self._wait_answer(deadline)
        if answer is None:
            raise TimeoutError(
                f"no answer to '{verb}' from {self.endpoint} within {timeout_s:g} s: is the microscope service up?"
            )
        return answer

    def _wait_answer(self, deadline_s: float) -> Message | None:
        """Return the reply to the last request, or what came just before it; late answers are passed over."""
        came: Message | None = None
        while self._socket.poll(max(0, round(1000 * (deadline_s - time.monotonic())))):
            message = self._decode(self._socket.recv_multipart(copy=False))
            if not isinstance(message, Reply):
                came = message
            elif message.request_id != self._last_id:
                came = None
            elif message.error:
                raise ControlRefusedError(message.error)
            else:
                return came or message
        return None


class RecordServer(_Socket):
    """The microscope's side of a record path: numbered messages out, acknowledgements in."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(zmq.ROUTER, hwm=RECORD_HWM, heartbeats=False)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_HEADER_BYTES)  # an acknowledgement has no arrays
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # tells at once that a recorder is gone; not what bounds it
        self.endpoint = self._bind(endpoint)

    def receive(self, timeout_s: float) -> tuple[bytes, RecordAck] | None:
        """Return who acknowledges and what; None if nothing came in time."""
        if not self._socket.poll(round(1000 * timeout_s)):
            return None
        identity, *buffers = self._socket.recv_multipart(copy=False)
        message = self._decode(buffers)
        return (bytes(identity.buffer), message) if isinstance(message, RecordAck) else None

    def send(self, identity: bytes, seq: int, buffers: Sequence[Buffer]) -> bool:
        """Send a message without waiting; False if the queue is full. PeerGoneError if nobody of that identity is."""
        numbered = [identity, seq.to_bytes(SEQ_BYTES), *buffers]
        try:
            self._socket.send_multipart(numbered, zmq.NOBLOCK, copy=not _are_large(buffers))
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            raise PeerGoneError(error.strerror) from None
        return True


class RecordClient(_Socket):
    """The recorder's side of a record path; for one thread.

    Parameters
    ----------
    endpoint : str
        The microscope's.
    """

    def __init__(self, endpoint: str) -> None:
        # of its own, so that closing it waits until its last words are out; inproc has them delivered at once
        self._context = None if endpoint.startswith("inproc://") else zmq.Context()
        super().__init__(zmq.DEALER, hwm=RECORD_HWM, heartbeats=False, context=self._context)
        self._connect(endpoint)

    def close(self) -> None:
        """Close the socket once what was sent is on its way, or after 200 ms; twice is fine."""
        super().close()
        if self._context is not None:
            self._context.term()

    def receive(self, timeout_s: float) -> tuple[int, Message] | None:
        """Return the next message and its running number; None if none came in time. WireError for anything else."""
        if not self._socket.poll(round(1000 * timeout_s)):
            return None
        seq, *buffers = (frame.buffer for frame in self._socket.recv_multipart(copy=False))
        if len(seq) != SEQ_BYTES:
            raise WireError(f"a message of the record path begins with {SEQ_BYTES} bytes, got {len(seq)}")
        return int.from_bytes(seq), decode(buffers)

    def acknowledge(self, ack: RecordAck) -> None:
        """Send an acknowledgement; one that does not get through is followed by another."""
        with suppress(zmq.Again):
            self._socket.send_multipart(encode(ack), zmq.NOBLOCK)


def require_loopback(endpoint: str) -> None:
    """Raise EndpointError unless nobody on another machine can reach the endpoint.

    Examples
    --------
    >>> require_loopback("tcp://127.0.0.1:5750")
    """
    if endpoint.startswith(("ipc://", "inproc://")):
        return
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise EndpointError(
            f"refusing to bind {endpoint}: only loopback (127.0.0.1) may be bound, since whoever reaches the "
            "port could steer the beam. Use an SSH tunnel: ssh -L 5750:127.0.0.1:5750 …"
        )


_given: deque[int] = deque(maxlen=1000)


def free_endpoint() -> str:
    """Return a loopback TCP endpoint whose port is free now, and was not among the last thousand returned.

    Of ports that no system gives to outgoing connections: one of those could take it before the service binds it. A
    plain socket looks, because a ZeroMQ one closes a little later: a client that meets it in between never connects
    again.

    Raises
    ------
    EndpointError
        If none of many is free.
    """
    for _ in range(MAX_TRIES):
        port = FIRST_FREE_PORT + secrets.randbelow(FREE_PORTS)
        if port in _given:  # of another service, which has yet to bind it
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.append(port)
            return f"tcp://127.0.0.1:{port}"
    raise EndpointError(f"no free port from {FIRST_FREE_PORT} to {FIRST_FREE_PORT + FREE_PORTS - 1} on this machine")


def _bind_advice(endpoint: str, error: zmq.ZMQError) -> str:
    if error.errno == zmq.EADDRINUSE:
        return (
            f"{endpoint} is in use by another program: end it, or set another port under network in the configuration"
        )
    return f"cannot bind {endpoint}: {error.strerror}. Expected {ENDPOINTS}"
