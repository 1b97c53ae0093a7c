"""The whole pipeline under load: brokers, table server, two workers of each role, and the exchange.

One broker stands behind a proxy; of three the clients know the addresses, and nothing stands between.

It knows how to see that everything works again, and how to come to rest at the end; it injects nothing and judges
nothing.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import orjson
import redis
from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from infra.local.cluster import KafkaCluster
from infra.local.kafka import KafkaServer
from infra.local.ports import free_port
from infra.local.process import TemporaryFolder
from infra.local.valkey import ValkeyServer
from schemas import topics
from schemas.codec import Decoder
from schemas.messages import ShardLayout
from schemas.partitioning import home_of
from streams.broker import config
from streams.broker.admin import ensure_topics
from streams.settings import Settings, load
from streams.tables.keys import accounts_key, meta_key
from tests.faults.fleet import Fleet, Role
from tests.faults.load import NO_NEWS, Load
from tests.faults.proxy import Proxy
from tests.faults.records import unrouted
from tests.faults.silence import SilenceMeter

SHARDS = 4
NUMBERS_OF_SHARDS = (SHARDS, 7, 16)
"""Those that a run may have, one after the other and round again."""
PARTITIONS = 3
SESSION_TIMEOUT_S = 3.0
TRANSACTION_TIMEOUT_S = 4.0
WATCHDOG_S = 25.0
RECOVERY_S = 120.0
"""Bounds a hang. A member that its group has forgotten ends itself after the watchdog's time and two sessions, 31 s,
and is started again."""
START_S = 120.0
REST_S = 120.0
_SHORT_TIMEOUTS = {
    "MARGIN_KAFKA__SESSION_TIMEOUT_MS": str(int(1000 * SESSION_TIMEOUT_S)),
    "MARGIN_KAFKA__TRANSACTION_TIMEOUT_MS": str(int(1000 * TRANSACTION_TIMEOUT_S)),
    "MARGIN_SERVICE__WATCHDOG_MS": str(int(1000 * WATCHDOG_S)),
}
"""With one broker, so that rounds are short. Three are about how long those of production take to see a failure."""

_LOOK_S = 0.05
_LAYOUT = Decoder[ShardLayout](ShardLayout)


class NotInTime(Exception):
    """What was waited for did not come about."""


class Tail:
    """Every committed record of some topics from the beginning, as it comes; waits out whatever befalls the broker."""

    def __init__(self, settings: Settings, partitions: dict[str, int]) -> None:
        self._consumer = Consumer(
            config.reader(settings.kafka, "faults-tail") | {"enable.partition.eof": False} | NO_NEWS
        )
        self._consumer.assign(
            [TopicPartition(topic, number, 0) for topic, count in partitions.items() for number in range(count)]
        )

    def follow(self, topic: str, partitions: range) -> None:
        """Read these, too, from their beginning."""
        self._consumer.incremental_assign([TopicPartition(topic, number, 0) for number in partitions])

    def read(self, timeout_s: float = 0.0) -> list[Message]:
        return [message for message in self._consumer.consume(5000, timeout=timeout_s) if message.error() is None]

    def close(self) -> None:
        self._consumer.close()


class OneBroker:
    """A broker behind a proxy."""

    def __init__(self, folder: Path) -> None:
        proxy_port = free_port()
        self.server = KafkaServer(folder, proxy_port=proxy_port)
        self.proxy = Proxy(proxy_port, self.server.proxied_port)
        self.bootstrap_servers, self.for_workers = self.server.bootstrap_servers, f"127.0.0.1:{proxy_port}"


class Pipeline:
    """Everything that runs. Use as a context manager; it starts all of it and waits until it works."""

    def __init__(self, folder: Path, seed: int, brokers: int = 1) -> None:
        self.folder = folder
        self._one = OneBroker(folder) if brokers == 1 else None
        self._cluster = KafkaCluster(folder, brokers=brokers) if brokers > 1 else None
        self.valkey = ValkeyServer(folder)
        self.marks_appended = SilenceMeter()
        addresses = self._one or self.cluster
        overrides = {
            "kafka.bootstrap_servers": addresses.bootstrap_servers,
            "redis.url": self.valkey.url,
            "topics.shards": SHARDS,
            "topics.partitions": PARTITIONS,
            "topics.replication_factor": brokers,
        }
        self.settings = load({}, overrides)
        self.environment = {
            "MARGIN_KAFKA__BOOTSTRAP_SERVERS": self._one.for_workers if self._one else addresses.bootstrap_servers,
            "MARGIN_REDIS__URL": self.valkey.url,
        }
        engines = {"MARGIN_REDIS__TIMEOUT_MS": "500", "MARGIN_ENGINE__JOURNAL_INTERVAL_MS": "1000"}
        self.fleet = Fleet(folder, self.environment | engines | (_SHORT_TIMEOUTS if brokers == 1 else {}))
        self._seed = seed
        self._rows: dict[tuple[int, str], tuple[dict[str, Any], bytes]] = {}
        self._beat_us = 0
        self.claims: dict[int, tuple[int, str]] = {}
        self.layout = ShardLayout(shards=SHARDS, time=0)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.fleet.kill()
        self._open.close()

    @property
    def kafka(self) -> KafkaServer:
        """The only broker."""
        assert self._one is not None, "there are several brokers"
        return self._one.server

    @property
    def proxy(self) -> Proxy:
        """What stands before the only broker."""
        assert self._one is not None, "there are several brokers, and no proxy"
        return self._one.proxy

    @property
    def cluster(self) -> KafkaCluster:
        """The brokers, of which there are several."""
        assert self._cluster is not None, "there is one broker only"
        return self._cluster

    def _start_brokers(self) -> None:
        if self._one is not None:
            self._open.enter_context(self._one.server)
            self._open.callback(self._one.server.kill)
            self._open.enter_context(self._one.proxy)
        else:
            self._open.callback(self.cluster.kill)
            self.cluster.start()

    def _start(self) -> None:
        self._open.enter_context(self.valkey)
        self._open.callback(self.valkey.kill)
        self._start_brokers()
        report = ensure_topics(self.settings)
        assert not report.wrong, report.wrong
        self.redis = redis.Redis.from_url(self.valkey.url, socket_timeout=2, socket_connect_timeout=2)
        self._open.callback(self.redis.close)
        self.admin = self._new_admin()
        followed = {topics.ACCOUNTS: SHARDS, topics.JOURNAL: SHARDS, topics.MARKS: 1, topics.LAYOUT: 1}
        self._tail = Tail(self.settings, followed)
        self._open.callback(self._tail.close)
        self.load = Load(self.settings.kafka, NUMBERS_OF_SHARDS, PARTITIONS, self._seed)
        self.load.publish_parameters()
        roles: tuple[Role, ...] = ("router", "oracle", "engine")
        for role in roles:
            self.fleet.add(role, f"{role}-static", "static").start()
            self.fleet.add(role, f"{role}-dynamic", "dynamic").start()
        self.wait(lambda: self._beat_us > 0, "the oracle's heartbeat", START_S)
        self.load.start()
        self.await_recovery(START_S)
        self.load.open()
        self.await_settled(START_S)

    def _new_admin(self) -> AdminClient:
        return AdminClient(config.common(self.settings.kafka, "faults-admin") | NO_NEWS)

    # --- looking -----------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Take in what has been committed, and bring back who has ended."""
        for message in self._tail.read(_LOOK_S):
            value = message.value()
            if message.topic() == topics.LAYOUT:
                self._follow(_LAYOUT(value or b""))
            elif message.topic() == topics.ACCOUNTS:
                place = message.partition() or 0, (message.key() or b"").decode()
                self._rows[place] = (orjson.loads(value), value) if value is not None else ({}, b"")
            elif message.topic() == topics.JOURNAL and value is not None:
                record = orjson.loads(value)
                if record["kind"] == "claim":
                    self.claims[record["shard"]] = message.offset() or 0, record["worker"]
            elif value is not None:
                self.marks_appended.note(message.timestamp()[1] / 1000)
                with contextlib.suppress(orjson.JSONDecodeError):
                    self._beat_us = max(self._beat_us, orjson.loads(value)["time"])
        self.load.check()

    def _follow(self, layout: ShardLayout) -> None:
        """Look at the shards that have been added, too."""
        added = range(self.layout.shards_used, layout.shards_used)
        if added:
            self._tail.follow(topics.ACCOUNTS, added)
            self._tail.follow(topics.JOURNAL, added)
        self.layout = layout

    def wait(
        self, condition: Callable[[], bool], what: str, timeout_s: float = RECOVERY_S, *, bring_back: bool = True
    ) -> None:
        """Look until ``condition`` holds.

        Raises:
            NotInTime: it does not within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self.look()
            if bring_back:
                self.fleet.bring_back()
            if condition():
                return
            if time.monotonic() > deadline:
                raise NotInTime(f"not within {timeout_s:g} s: {what}")

    def await_recovery(self, timeout_s: float = RECOVERY_S) -> None:
        """Wait until a canary sent now is in every shard's changelog and in Redis, and a mark of a later time is out.

        Raises:
            NotInTime: says what is missing.
        """
        number, since_us = self.load.canary(), time.time_ns() // 1000
        try:
            self.wait(lambda: not self._missing(number, since_us), "", timeout_s)
        except NotInTime:
            raise NotInTime(f"not within {timeout_s:g} s: {'; '.join(self._missing(number, since_us))}") from None

    def _missing(self, number: int, since_us: int) -> list[str]:
        missing = [] if self._beat_us > since_us else ["marks"]
        for account in self.load.canaries:
            shard = home_of(account, self.layout.spread)
            row, data = self._rows.get((shard, account), ({}, b""))
            held = {p["symbol"]: p["quantity"] for group in row.get("groups", ()) for p in group["positions"]}
            if row.get("transfer_sequence", -1) < number:
                missing.append(f"the transfer to {account} in shard {shard}")
            elif Decimal(held.get(symbol := self.load.canary_symbols[account], "0")) < self.load.canary_holds(number):
                missing.append(f"the trade of {symbol} in shard {shard}")
            elif self._in_redis(shard, account) != data:
                missing.append(f"shard {shard} in Redis")
        return missing

    def _in_redis(self, shard: int, account: str) -> bytes | None:
        try:
            row: bytes | None = self.redis.hget(accounts_key(shard), account)  # type: ignore[assignment]
            return row
        except redis.RedisError:
            return None

    def has_opened_tables(self) -> bool:
        """Whether every table in Redis is under the token of its shard's last claim."""
        shards = range(self.layout.shards_used)
        tokens = [self.redis.hget(meta_key(shard), "token") for shard in shards]
        return tokens == [str(self.claims[shard][0]).encode() for shard in shards]

    def await_settled(self, timeout_s: float = RECOVERY_S) -> None:
        """Wait until every worker takes orders and is a member of its group at rest, with something to do.

        Raises:
            NotInTime: says which group is not.
        """
        try:
            self.wait(lambda: not self._unsettled(), "", timeout_s)
        except NotInTime:
            raise NotInTime(f"not within {timeout_s:g} s: {'; '.join(self._unsettled())}") from None

    def _unsettled(self) -> list[str]:
        unsettled = [f"{worker.name} up" for worker in self.fleet if not worker.listening]
        kafka, groups = (
            self.settings,
            (("engine", self.settings.engine.group_id), ("router", self.settings.router.group_id)),
        )
        for role, group in (*groups, ("oracle", kafka.oracle.leader_group)):
            members = self._members(group)
            names = {worker.member_name for worker in self.fleet if worker.role == role}
            idle = sum(not works for works in members.values())
            if len(members) != len(names) or not all(
                any(client.endswith(name) for client in members) for name in names
            ):
                unsettled.append(f"{group} has {sorted(members)} and not {sorted(names)}")
            elif idle > (len(names) - 1 if role == "oracle" else 0):
                unsettled.append(f"{group} has members without work: {members}")
        return unsettled

    def _members(self, group: str) -> dict[str, bool]:
        """The members of a group by client id, each with whether it has partitions; none if it is not at rest."""
        try:
            description = self.admin.describe_consumer_groups([group], request_timeout=5)[group].result(timeout=5)
        except (KafkaException, TimeoutError):
            self.admin = self._new_admin()  # it may wait for ever for a coordinator that it knew before
            return {}
        if description.state.name != "STABLE":
            return {}
        return {member.client_id: bool(member.assignment.topic_partitions) for member in description.members}

    # --- the end -----------------------------------------------------------------------------------------------------

    def come_to_rest(self) -> None:
        """Let prices stand still until nothing is on its way, then stop the load and every worker in order.

        Raises:
            NotInTime: commands keep coming, or something is not routed, applied or in Redis.
        """
        self.load.calm_down()
        quiet_since, commands = time.monotonic(), -1

        def quiet() -> bool:
            nonlocal quiet_since, commands
            if self.load.commands_seen != commands:
                commands, quiet_since = self.load.commands_seen, time.monotonic()
            return time.monotonic() - quiet_since > 6.0  # longer than a command lives: what is overdue comes again

        self.wait(quiet, "no more commands at prices that stand still", REST_S)
        self.await_recovery()
        self.load.stop()
        self.await_settled()
        # A router that commits while another leaves may be refused, and what it had not committed is its successor's.
        self.wait(lambda: not unrouted(self.settings), "routers have committed all there is", RECOVERY_S)
        self.exit_codes = self.fleet.stop()


@contextlib.contextmanager
def running(seed: int, brokers: int = 1) -> Iterator[Pipeline]:
    """A pipeline in a temporary folder."""
    with TemporaryFolder("margin-faults-") as folder, Pipeline(folder.path, seed, brokers) as pipeline:
        yield pipeline
