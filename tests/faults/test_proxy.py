"""The proxy forwards whole requests and responses, and does to them exactly what a rule says."""

import contextlib
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from infra.local.ports import free_port
from tests.faults.proxy import END_TXN, FETCH, HEARTBEAT, Proxy, Rule


class Broker(socketserver.ThreadingTCPServer):
    """Answers every request with its own bytes after the header, and remembers which kinds came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.seen: list[int] = []
        self.connections: set[socket.socket] = set()
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()  # waits for every connection's thread


class Answering(socketserver.StreamRequestHandler):
    server: Broker

    def handle(self) -> None:
        self.server.connections.add(self.connection)
        try:
            while head := self.rfile.read(4):
                request = self.rfile.read(struct.unpack(">i", head)[0])
                api, _, correlation = struct.unpack_from(">hhi", request)
                self.server.seen.append(api)
                response = struct.pack(">i", correlation) + request[8:]
                self.wfile.write(struct.pack(">i", len(response)) + response)
        except (OSError, struct.error):  # cut
            pass
        finally:
            self.server.connections.discard(self.connection)


class Client:
    """One connection through the proxy."""

    def __init__(self, port: int, client_id: str = "engine-a") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self._id = client_id.encode()
        self._correlation = 0

    def send(self, api: int) -> None:
        self._correlation += 1
        request = struct.pack(">hhih", api, 3, self._correlation, len(self._id)) + self._id + b"body"
        self._socket.sendall(struct.pack(">i", len(request)) + request)

    def receive(self, timeout_s: float = 5.0) -> int | None:
        """The correlation id of the next response, or None: the connection was cut."""
        self._socket.settimeout(timeout_s)
        try:
            head = self._read(8)
            length, correlation = struct.unpack(">ii", head)
            assert self._read(length - 4).endswith(b"body")
        except ConnectionError:
            return None
        return int(correlation)

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self._socket.recv(length - len(data))
            if not part:
                raise ConnectionError
            data += part
        return data

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.close()


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    with Proxy(free_port(), broker.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Client]:
    client = Client(proxy.port)
    yield client
    client.close()


def test_what_no_rule_is_about_goes_through(client: Client, broker: Broker, proxy: Proxy) -> None:
    rule = proxy.add(Rule(END_TXN, "request", client="engine-b"))
    for number, api in enumerate((FETCH, END_TXN, HEARTBEAT), 1):
        client.send(api)
        assert client.receive() == number
    assert broker.seen == [FETCH, END_TXN, HEARTBEAT]
    assert rule.hits == 0


def test_a_request_is_cut_before_the_broker_gets_it(client: Client, broker: Broker, proxy: Proxy) -> None:
    rule = proxy.add(Rule(END_TXN, "request"))
    client.send(FETCH)
    assert client.receive() == 1
    client.send(END_TXN)
    assert client.receive() is None
    assert broker.seen == [FETCH]
    assert rule.hits == 1


def test_a_response_is_cut_after_the_broker_got_the_request(client: Client, broker: Broker, proxy: Proxy) -> None:
    proxy.add(Rule(END_TXN, "response"))
    client.send(END_TXN)
    assert client.receive() is None
    assert broker.seen == [END_TXN]


def test_a_rule_is_used_up_and_can_be_taken_back(client: Client, proxy: Proxy) -> None:
    rule = proxy.add(Rule(FETCH, "response", delay_s=0.01, times=2))
    for number in (1, 2, 3):
        client.send(FETCH)
        assert client.receive() == number
    assert rule.hits == 2
    another = proxy.add(Rule(FETCH, "request"))
    proxy.clear()
    client.send(FETCH)
    assert client.receive() == 4
    assert another.hits == 0


def test_a_delay_holds_one_request(client: Client, proxy: Proxy) -> None:
    proxy.add(Rule(FETCH, "request", delay_s=0.3))
    started = time.monotonic()
    client.send(FETCH)
    assert client.receive() == 1
    assert time.monotonic() - started >= 0.3


def test_a_partition_holds_one_client_and_delivers_late(client: Client, broker: Broker, proxy: Proxy) -> None:
    other = Client(proxy.port, "engine-b")
    proxy.partition("engine-a")
    client.send(END_TXN)
    other.send(FETCH)
    assert other.receive() == 1
    with pytest.raises(TimeoutError):
        client.receive(0.3)
    assert broker.seen == [FETCH]
    assert proxy.held == 1
    proxy.clear()
    assert client.receive() == 1
    assert broker.seen == [FETCH, END_TXN]
    other.close()


def test_every_connection_is_cut_and_new_ones_are_taken(client: Client, proxy: Proxy) -> None:
    client.send(FETCH)
    assert client.receive() == 1
    assert proxy.cut_all() == 1
    assert client.receive() is None
    again = Client(proxy.port)
    again.send(FETCH)
    assert again.receive() == 1
    again.close()


def test_a_broker_that_is_away_is_a_connection_that_is_cut() -> None:
    with Proxy(free_port(), free_port()) as proxy:
        client = Client(proxy.port)
        assert client.receive() is None
        client.close()
