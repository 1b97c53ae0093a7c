"""A TCP proxy between Kafka's clients and the broker that reads the headers of requests.

It forwards whole requests and responses. A rule can cut the connection before a request of one kind is forwarded, or
after the broker has answered it and before the client hears of it, or delay either; a partition holds everything of one
client until it is lifted, and then delivers it, late as a network may.
"""

import asyncio
import contextlib
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

T = TypeVar("T")

PRODUCE, FETCH, JOIN_GROUP, HEARTBEAT, INIT_PRODUCER_ID = 0, 1, 11, 12, 22
ADD_OFFSETS_TO_TXN, END_TXN, TXN_OFFSET_COMMIT = 25, 26, 28

_LENGTH = struct.Struct(">i")
_HEADER = struct.Struct(">hhih")
_CORRELATION = struct.Struct(">i")
_FRAME_BYTES_MAX = 64 * 1024 * 1024
_UPSTREAM_ATTEMPT_S = 1.0


@dataclass
class Rule:
    """What happens to the next ``times`` requests of kind ``api`` (None: any), or to their responses.

    Only to clients whose client id holds ``client``. ``delay_s`` of 0 cuts the connection. ``hits`` counts.
    """

    api: int | None
    at: Literal["request", "response"]
    delay_s: float = 0.0
    client: str = ""
    times: int = 1
    hits: int = 0

    def takes(self, at: str, api: int, client: str) -> bool:
        if self.hits >= self.times or self.at != at or self.client not in client or self.api not in (None, api):
            return False
        self.hits += 1
        return True


@dataclass(eq=False)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    upstream_reader: asyncio.StreamReader
    upstream_writer: asyncio.StreamWriter
    client: str = ""
    asked: dict[int, int] = field(default_factory=dict)


class Proxy:
    """Listens on 127.0.0.1:``port`` and forwards to 127.0.0.1:``upstream``, in a thread of its own."""

    def __init__(self, port: int, upstream: int) -> None:
        self.port, self.upstream = port, upstream
        self.rules: list[Rule] = []
        self.held = 0
        self._partitioned: str | None = None
        self._connections: set[_Connection] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._served: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Condition()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=1 << 20))
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, rule: Rule) -> Rule:
        """Put ``rule`` in force until :meth:`clear`."""
        self.rules = [*self.rules, rule]
        return rule

    def clear(self) -> None:
        """No rule is in force any more, and no partition."""
        self.rules = []
        self._run(self._partition(None))

    def partition(self, client: str) -> None:
        """Hold everything of clients whose client id holds ``client``, both ways, until :meth:`clear`."""
        self.held = 0
        self._run(self._partition(client))

    def cut_all(self) -> int:
        """Cut every connection there is; how many."""
        return self._run(self._cut_all())

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=30)

    async def _close(self) -> None:
        self._server.close()
        await self._partition(None)
        await self._cut_all()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in list(self._writers):
            await self._let_go(writer)

    async def _let_go(self, writer: asyncio.StreamWriter) -> None:
        """Cut a connection's end and wait until its socket is closed."""
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self._writers.discard(writer)

    async def _partition(self, client: str | None) -> None:
        async with self._changed:
            self._partitioned = client
            self._changed.notify_all()

    async def _cut_all(self) -> int:
        connections = list(self._connections)
        for connection in connections:
            _cut(connection)
        return len(connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Known from here on, whether or not it is ever served."""
        self._writers.add(writer)
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._served.add(task)
        task.add_done_callback(self._served.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            opening = asyncio.open_connection("127.0.0.1", self.upstream, limit=1 << 20)
            upstream = await asyncio.wait_for(opening, _UPSTREAM_ATTEMPT_S)
        except (OSError, TimeoutError):
            await self._let_go(writer)
            return
        self._writers.add(upstream[1])
        connection = _Connection(reader, writer, *upstream)
        self._connections.add(connection)
        pumps = [asyncio.create_task(self._requests(connection)), asyncio.create_task(self._responses(connection))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connections.discard(connection)
            _cut(connection)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (writer, upstream[1]):
                await self._let_go(end)

    async def _requests(self, connection: _Connection) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await _frame(connection.reader)
                api, _, correlation, length = _HEADER.unpack_from(frame)
                if length > 0:
                    connection.client = frame[_HEADER.size : _HEADER.size + length].decode()
                connection.asked[correlation] = api
                if await self._stopped("request", api, connection):
                    return
                connection.upstream_writer.write(_LENGTH.pack(len(frame)) + frame)
                await connection.upstream_writer.drain()

    async def _responses(self, connection: _Connection) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await _frame(connection.upstream_reader)
                api = connection.asked.pop(_CORRELATION.unpack_from(frame)[0], -1)
                if await self._stopped("response", api, connection):
                    return
                connection.writer.write(_LENGTH.pack(len(frame)) + frame)
                await connection.writer.drain()

    async def _stopped(self, at: str, api: int, connection: _Connection) -> bool:
        """Apply the rules to a request or response; whether the connection is cut here."""
        for rule in self.rules:
            if rule.takes(at, api, connection.client):
                if not rule.delay_s:
                    return True
                await asyncio.sleep(rule.delay_s)
        if self._partitioned is not None and self._partitioned in connection.client:
            self.held += 1
            async with self._changed:
                await self._changed.wait_for(
                    lambda: self._partitioned is None or self._partitioned not in connection.client
                )
        return False


async def _frame(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if not 0 < length <= _FRAME_BYTES_MAX:
        raise ConnectionError(f"a frame of {length} bytes")
    return await reader.readexactly(length)


def _cut(connection: _Connection) -> None:
    for writer in (connection.writer, connection.upstream_writer):
        writer.transport.abort()
