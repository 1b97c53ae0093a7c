"""The proxy forwards whole requests and responses, and does to them exactly what a rule says."""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from infra.local.ports import free_port
from tests.faults.proxy import END_TXN, FETCH, HEARTBEAT, Proxy, Rule


class Broker:
    """Answers every request with its own bytes after the header, and remembers which kinds came."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.port = free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (length,) = struct.unpack(">i", await reader.readexactly(4))
                request = await reader.readexactly(length)
                api, _, correlation = struct.unpack_from(">hhi", request)
                self.seen.append(api)
                response = struct.pack(">i", correlation) + request[8:]
                writer.write(struct.pack(">i", len(response)) + response)
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


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
    found = Broker()
    yield found
    found.close()


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    with Proxy(free_port(), broker.port) as found:
        yield found


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Client]:
    found = Client(proxy.port)
    yield found
    found.close()


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
        found = Client(proxy.port)
        assert found.receive() is None
        found.close()
