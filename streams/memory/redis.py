"""An in-memory Redis with the tables' two scripts written in Python, line for line."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from streams.memory.clients import Rates
from streams.memory.scheduler import EPOCH_US, Process, Scheduler

Hash = dict[bytes, bytes]


class Server:
    """The server: hashes by key. ``on_write`` is told the keys that a command has written."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.hashes: dict[bytes, Hash] = {}
        self.down_until = 0
        self.slow_us = 0
        """How much longer than usual every command takes."""
        self.on_write: Callable[[bytes], None] = lambda _: None
        self.on_token: Callable[[bytes, int, int | None], None] = lambda *_: None
        """Meta key, the token of the writer that was let in, the table's own before."""
        self._snapshot: dict[bytes, Hash] = {}

    def snapshot(self) -> None:
        """Save to disk."""
        self._snapshot = copy.deepcopy(self.hashes)

    def roll_back(self) -> None:
        """Lose what came after the last save."""
        self.hashes = copy.deepcopy(self._snapshot)

    def flush(self) -> None:
        """Lose everything."""
        self.hashes = {}

    def evict(self, random_index: int) -> None:
        """Lose one key."""
        keys = sorted(self.hashes)
        if keys:
            del self.hashes[keys[random_index % len(keys)]]

    # --- commands ----------------------------------------------------------------------------------------------------

    def hset(self, key: bytes, fields: Mapping[bytes, bytes]) -> int:
        fields_held = self.hashes.setdefault(key, {})
        added = sum(name not in fields_held for name in fields)
        fields_held.update(fields)
        return added

    def _hdel(self, key: bytes, *names: bytes) -> None:
        fields_held = self.hashes.get(key)
        if fields_held is not None:
            for name in names:
                fields_held.pop(name, None)
            if not fields_held:
                del self.hashes[key]

    def _hmget(self, key: bytes, *names: bytes) -> list[bytes | None]:
        fields_held = self.hashes.get(key, {})
        return [fields_held.get(name) for name in names]

    def _hlen(self, key: bytes) -> int:
        return len(self.hashes.get(key, {}))

    def open_lua(self, keys: list[bytes], argv: list[bytes]) -> list[bytes]:
        """``open.lua``."""
        token, clear = int(argv[0]), argv[1] == b"1"
        meta = self._hmget(keys[1], b"token", b"stamp", b"as_of", b"cluster", b"topic", b"topic_id", b"shards", b"rows")
        ours = meta[0] is not None and meta[3:7] == argv[2:6]
        if ours and int(meta[0] or b"") > token:
            return [b"fenced", meta[0] or b""]
        self.on_token(keys[1], token, int(meta[0] or b"") if ours else None)
        whole = ours and int(meta[7] or b"-1") == self._hlen(keys[0])
        if whole and not clear:
            self.hset(keys[1], {b"token": argv[0]})
            return [b"opened", meta[1] or b"", meta[2] or b""]
        self.hashes.pop(keys[0], None)
        self.hashes.pop(keys[1], None)
        self.hset(
            keys[1],
            {
                b"token": argv[0],
                b"stamp": b"0",
                b"as_of": b"0",
                b"rows": b"0",
                b"building": b"1",
                b"cluster": argv[2],
                b"topic": argv[3],
                b"topic_id": argv[4],
                b"shards": argv[5],
            },
        )
        return [b"cleared", b"0", b"0"]

    def write_lua(self, keys: list[bytes], argv: list[bytes]) -> bytes:
        """``write.lua``."""
        token, after, stamp = int(argv[0]), int(argv[1]), int(argv[2])
        meta = self._hmget(
            keys[1], b"token", b"stamp", b"writing", b"cluster", b"topic", b"topic_id", b"shards", b"rows", b"part"
        )
        if meta[0] is None:
            return b"lost"
        if meta[3:7] != argv[7:11]:
            return b"fenced"
        if int(meta[0]) > token:
            return b"fenced"
        if int(meta[0]) < token or int(meta[1] or b"") < after:
            return b"lost"
        if int(meta[7] or b"") != self._hlen(keys[0]):
            return b"lost"
        self.on_token(keys[1], token, int(meta[0]))
        updated_at = b"%d" % ((EPOCH_US + self.scheduler.now) // 1000)
        at = int(meta[1] or b"")
        if at >= stamp:
            if at == stamp and argv[5] == b"1":
                self.hset(keys[1], {b"as_of": argv[3], b"updated_at": updated_at})
                self._hdel(keys[1], b"building")
            return b"ignored"
        part = int(argv[6])
        if part > 0 and meta[8] not in (b"%s:%d" % (argv[2], part - 1), b"%s:%d" % (argv[2], part)):
            return b"lost"
        first = 12 + int(argv[11])
        self._hdel(keys[0], *argv[12:first])
        rows = argv[first:]
        if rows:
            self.hset(keys[0], dict(zip(rows[::2], rows[1::2], strict=True)))
        self.hset(keys[1], {b"rows": b"%d" % self._hlen(keys[0]), b"updated_at": updated_at})
        writing = int(meta[2] or b"0")
        if argv[4] == b"1":
            self.hset(keys[1], {b"stamp": argv[2], b"as_of": argv[3]})
            self._hdel(keys[1], b"part")
            if writing <= stamp:
                self._hdel(keys[1], b"writing")
            if argv[5] == b"1":
                self._hdel(keys[1], b"building")
        else:
            self.hset(keys[1], {b"writing": b"%d" % max(writing, stamp), b"part": b"%s:%d" % (argv[2], part)})
        return b"applied"


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


class FakeRedis:
    """``redis.Redis`` as the tables use it; tries once more, as :func:`streams.tables.writer.connect` sets it up."""

    def __init__(self, server: Server, process: Process, rates: Rates) -> None:
        self._server = server
        self._process = process
        self._rates = rates

    def register_script(self, text: str) -> Callable[..., Any]:
        script = self._server.open_lua if text.startswith("-- Take a shard's table") else self._server.write_lua

        def run(keys: list[str], args: list[Any]) -> Any:
            names, arguments = [key.encode() for key in keys], [_bytes(value) for value in args]
            return self._execute(names[1], lambda: script(names, arguments))

        return run

    def hset(self, key: str, *, items: list[str] | None = None, mapping: Mapping[str, bytes] | None = None) -> int:
        pairs = zip(items[::2], items[1::2], strict=True) if items else (mapping or {}).items()
        fields = {_bytes(name): _bytes(value) for name, value in pairs}
        return int(self._execute(key.encode(), lambda: self._server.hset(key.encode(), fields)))

    def hgetall(self, key: str) -> Hash:
        return dict(self._execute(b"", lambda: dict(self._server.hashes.get(key.encode(), {}))))

    def hscan(self, key: str, *, cursor: int, count: int) -> tuple[int, Hash]:
        return 0, self.hgetall(key)

    def close(self) -> None:
        self._process.alive()

    def _execute(self, written: bytes, command: Callable[[], Any]) -> Any:
        server, random = self._server, self._server.scheduler.random
        for attempt in (1, 2):
            self._process.call("redis")
            if server.slow_us:
                server.scheduler.sleep(server.slow_us)
            if server.down_until > server.scheduler.now or self._rates.strikes("redis_error", random.random()):
                if attempt == 2:
                    raise RedisConnectionError("simulated: Redis is away")
                continue
            answer = command()
            if written:
                server.on_write(written)
            if self._rates.strikes("crash_commit", random.random()):
                self._process.crash("redis has answered")
            if self._rates.strikes("redis_answer_lost", random.random()):
                self._process.call("redis does not answer", 1000, 20_000)
                if attempt == 2 or random.random() < 0.5:
                    raise RedisTimeoutError("simulated: no answer")
                continue
            return answer
        raise RedisTimeoutError("simulated: no answer")
