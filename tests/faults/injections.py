"""How each kind of fault is done to a running pipeline, and undone.

An injection returns the evidence that the fault happened; without evidence it raises :class:`NotInjected`, which fails
the round. When it returns, whatever it did to servers and network is undone; that everything works again is for the
round to see.
"""

import contextlib
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import redis

from tests.faults.faults import Fault, Kind
from tests.faults.fleet import KILLED, Worker
from tests.faults.pipeline import NotInTime, Pipeline
from tests.faults.points import Orders
from tests.faults.proxy import JOIN_GROUP, Rule
from tests.faults.rescale_strikes import rescale

INJECTED_WITHIN_S = 120.0
TAKEN_OVER_WITHIN_S = 120.0
ZOMBIE_NOTICES_WITHIN_S = 120.0


class NotInjected(Exception):
    """The fault did not happen: its point was not reached, or it left no trace."""


class NotRefused(Exception):
    """A zombie went on and nothing shows that it was refused."""


class Strike:
    """One fault being done to ``pipeline``. ``struck_at`` (monotonic) is when it began."""

    def __init__(self, pipeline: Pipeline, fault: Fault, rng: random.Random) -> None:
        self.pipeline, self.fault, self.rng = pipeline, fault, rng
        self.struck_at = time.monotonic()

    def inject(self) -> str:
        """Do it and undo it; the evidence.

        Raises:
            NotInjected: it did not happen. NotRefused: a zombie was not refused. NotInTime: what follows did not.
        """
        self.struck_at = time.monotonic()
        try:
            return INJECTIONS[self.fault.kind](self)
        finally:
            self.pipeline.proxy.clear()

    def happened(self) -> None:
        """The fault begins now."""
        self.struck_at = time.monotonic()

    def worker(self) -> Worker:
        """Whom it hits."""
        return self.pipeline.fleet.of(self.fault.role, self.fault.membership)[0]

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = INJECTED_WITHIN_S) -> None:
        """Wait for the fault itself; nobody is brought back meanwhile.

        Raises:
            NotInjected: it does not happen.
        """
        try:
            self.pipeline.wait(condition, what, timeout_s, bring_back=False)
        except NotInTime as error:
            raise NotInjected(str(error)) from None

    def ambushed(self, number: signal.Signals) -> tuple[Worker, int]:
        """Lay the ambush for whoever may pass the point; who ran into it, and where its log stood before."""
        fleet, fault = self.pipeline.fleet, self.fault
        # Of the oracles only one passes, and nobody knows which.
        workers = fleet.of("oracle") if fault.role == "oracle" else [self.worker()]
        logs = {worker.name: worker.log_end() for worker in workers}
        for worker in workers:
            worker.ambush(Orders(fault.point, fault.passes, number))
        caught: list[Worker] = []

        def sprung() -> bool:
            caught[:] = [worker for worker in workers if worker.ambushed_since(logs[worker.name])]
            return bool(caught)

        try:
            self.until(sprung, f"{fault.role} at {fault.point}")
        finally:
            for worker in workers:
                if worker not in caught and worker.running:
                    worker.ambush(None)
        self.happened()
        return caught[0], logs[caught[0].name]


def _kill_at_point(strike: Strike) -> str:
    worker, _ = strike.ambushed(signal.SIGKILL)
    return _died(strike, worker)


def _kill_while_starting(strike: Strike) -> str:
    """The worker ends in order and its successor dies at its first passes: while it takes its shards."""
    worker = strike.worker()
    worker.terminate()
    position = worker.log_end()
    worker.start(Orders(strike.fault.point, strike.fault.passes, signal.SIGKILL))
    strike.until(lambda: worker.ambushed_since(position), f"{worker.name} at {strike.fault.point}")
    strike.happened()
    return _died(strike, worker)


def _kill_at_random(strike: Strike) -> str:
    time.sleep(strike.rng.uniform(0, 1))
    worker = strike.worker()
    strike.happened()
    worker.kill()
    return _died(strike, worker)


def _died(strike: Strike, worker: Worker) -> str:
    strike.until(lambda: worker.exit_code == KILLED, f"{worker.name} killed")
    return f"{worker.name} killed"


def _zombie(strike: Strike) -> str:
    """Stopped at a point until others have taken over, then let go on: Kafka or Redis must refuse it."""
    pipeline, fault = strike.pipeline, strike.fault
    if fault.role == "engine":  # else nobody has anything to take over from it
        owner = strike.worker().member_name
        strike.until(lambda: any(each == owner for _, each in pipeline.claims.values()), f"a claim of {owner}")
    worker, position = strike.ambushed(signal.SIGSTOP)
    name = worker.member_name
    strike.until(lambda: worker.stopped, f"{worker.name} standing still")
    try:
        if fault.role == "engine":
            _await_claims_of_others(pipeline, name)
            if fault.refused_by == "table_fenced":  # before the new owner has opened it, a table takes committed rows
                pipeline.wait(pipeline.has_opened_tables, "tables opened by the new owners")
        else:
            pipeline.await_recovery(TAKEN_OVER_WITHIN_S)
    finally:
        worker.signal(signal.SIGCONT)
    _await_refusal(strike, worker, position)
    return f"{worker.name} stopped at {fault.point}, superseded, then {fault.refused_by}"


def _await_claims_of_others(pipeline: Pipeline, name: str) -> None:
    """Wait until no shard's last claim is that of the engine ``name``; an heir that ends meanwhile is started again."""
    pipeline.wait(
        lambda: all(owner != name for _, owner in pipeline.claims.values()),
        f"the claims of others on the shards of {name}",
        TAKEN_OVER_WITHIN_S,
    )


def _await_refusal(strike: Strike, worker: Worker, position: int) -> None:
    words = strike.fault.refused_by
    with contextlib.suppress(NotInTime):
        strike.pipeline.wait(
            lambda: f'"{words}"' in worker.log_since(position), words, ZOMBIE_NOTICES_WITHIN_S, bring_back=False
        )
        return
    raise NotRefused(f"{worker.name} went on and its log does not say {words}")


def _zombie_oracle(strike: Strike) -> str:
    """The leader stands still until the other publishes; when it goes on it must stand by, having published nothing."""
    pipeline = strike.pipeline
    worker, position = strike.ambushed(signal.SIGSTOP)
    strike.until(lambda: worker.stopped, f"{worker.name} standing still")
    try:
        pipeline.await_recovery(TAKEN_OVER_WITHIN_S)
    finally:
        worker.signal(signal.SIGCONT)
    with contextlib.suppress(NotInTime):
        pipeline.wait(
            lambda: '"oracle_replaced"' in worker.log_since(position), "", ZOMBIE_NOTICES_WITHIN_S, bring_back=False
        )
        return f"{worker.name} stopped at {strike.fault.point}, superseded, stands by"
    raise NotRefused(f"{worker.name} goes on as if it led")


def _churn(strike: Strike) -> str:
    """Workers come and go: in order and by kill -9, before the group has come to rest from the last one."""
    fleet, role = strike.pipeline.fleet, strike.fault.role
    static, dynamic = fleet.of(role, "static")[0], fleet.of(role, "dynamic")[0]
    came = went = 0
    for number in range(strike.fault.times):
        guest = fleet.add(role, f"{role}-guest-{number}", "dynamic")
        guest.start()
        strike.until(lambda: guest.listening, f"{guest.name} up")  # noqa: B023
        time.sleep(strike.rng.uniform(0, 1.0))
        leaver = (static, dynamic)[number % 2]
        if strike.rng.random() < 0.5:
            leaver.kill()
        else:
            leaver.signal(signal.SIGTERM)
        time.sleep(strike.rng.uniform(0, 1.0))
        guest.kill() if strike.rng.random() < 0.5 else guest.terminate()
        leaver.wait()
        leaver.start()
        fleet.remove(guest)
        came, went = came + 2, went + 2
    return f"{came} came, {went} went"


def _partition(strike: Strike) -> str:
    """A worker runs but reaches nobody, beyond all timeouts; then all that it has sent arrives, late."""
    worker = strike.worker() if strike.fault.role != "oracle" else _leader(strike)
    strike.happened()
    strike.pipeline.proxy.partition(worker.member_name)
    time.sleep(strike.fault.seconds)
    if strike.fault.role == "engine":
        _await_claims_of_others(strike.pipeline, worker.member_name)
    held = strike.pipeline.proxy.held
    if not held:
        raise NotInjected(f"nothing of {worker.name} was held")
    return f"{held} requests and responses of {worker.name} held for {strike.fault.seconds:g} s"


def _leader(strike: Strike) -> Worker:
    group = strike.pipeline.settings.oracle.leader_group
    description = strike.pipeline.admin.describe_consumer_groups([group])[group].result(timeout=10)
    leading = [member.client_id for member in description.members if member.assignment.topic_partitions]
    for worker in strike.pipeline.fleet.of("oracle"):
        if leading and leading[0].endswith(worker.member_name):
            return worker
    raise NotInjected("no oracle leads")


def _cut(strike: Strike) -> str:
    """Cut the connection on which the next requests of one kind go, before or after the broker gets them."""
    fault = strike.fault
    if fault.api == JOIN_GROUP:  # a group at rest has none
        next(worker for worker in strike.pipeline.fleet.of(fault.role) if worker is not strike.worker()).kill()
    rule = strike.pipeline.proxy.add(
        Rule(fault.api, fault.at, fault.seconds, client=strike.worker().member_name, times=fault.times)
    )
    strike.until(lambda: rule.hits > 0, f"a {fault.at} of kind {fault.api}")
    strike.happened()
    time.sleep(fault.seconds)
    return f"{rule.hits} x {fault.at} {'delayed' if fault.seconds else 'cut'}"


def _cut_all(strike: Strike) -> str:
    cut = 0
    for _ in range(strike.fault.times):
        cut += strike.pipeline.proxy.cut_all()
        time.sleep(strike.rng.uniform(0.05, 0.5))
    if not cut:
        raise NotInjected("there was no connection")
    return f"{cut} connections cut"


def _kafka_kill(strike: Strike) -> str:
    kafka = strike.pipeline.kafka
    before = kafka.process.pid
    kafka.kill()
    kafka.start()
    return f"broker {before} killed, {kafka.process.pid} started"


def _kafka_pause(strike: Strike) -> str:
    kafka = strike.pipeline.kafka
    kafka.pause()
    try:
        if kafka.healthy(1.0):
            raise NotInjected("the broker answers while it is paused")
        time.sleep(strike.fault.seconds)
    finally:
        kafka.resume()
    return f"broker paused for {strike.fault.seconds + 1:g} s"


def _redis_kill(strike: Strike) -> str:
    """It comes back empty."""
    valkey = strike.pipeline.valkey
    valkey.kill()
    (valkey.folder / "valkey" / "dump.rdb").unlink(missing_ok=True)
    time.sleep(strike.rng.uniform(0, 2.0))
    valkey.start()
    return "killed and back, empty"


def _redis_flush(strike: Strike) -> str:
    keys = strike.pipeline.redis.dbsize()
    strike.pipeline.redis.flushall()
    if not keys:
        raise NotInjected("there was nothing to flush")
    return f"{keys} keys flushed"


def _redis_old_dump(strike: Strike) -> str:
    """It comes back with what it held some seconds ago."""
    valkey, client = strike.pipeline.valkey, strike.pipeline.redis
    client.save()
    strike.pipeline.await_recovery()  # the tables move on
    strike.happened()
    valkey.kill()
    valkey.start()
    (valkey.folder / "valkey" / "dump.rdb").unlink()
    if not client.dbsize():
        raise NotInjected("the dump was not loaded")
    return f"back with {client.dbsize()} keys of an old dump"


def _redis_full(strike: Strike) -> str:
    return _with_memory_of_one(strike, "noeviction", lambda info: info.get("errorstat_OOM", {}).get("count", 0))


def _redis_evicts(strike: Strike) -> str:
    return _with_memory_of_one(strike, "allkeys-random", lambda info: info["evicted_keys"])


def _with_memory_of_one(strike: Strike, policy: str, count: Callable[[dict[str, Any]], int]) -> str:
    """Redis may use one byte for a while: it refuses writes or throws keys away, according to ``policy``."""
    client = strike.pipeline.redis
    before = count({**client.info("stats"), **client.info("errorstats")})
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory", 1)
    try:
        time.sleep(strike.fault.seconds)
        after = count({**client.info("stats"), **client.info("errorstats")})
    finally:
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
    if after <= before:
        raise NotInjected(f"Redis did nothing under {policy}")
    return f"{after - before} times under {policy}"


def _redis_stall(strike: Strike) -> str:
    logs = _engine_logs(strike)
    strike.pipeline.valkey.pause()
    try:
        time.sleep(strike.fault.seconds)
    finally:
        strike.pipeline.valkey.resume()
    return _felt(strike, logs)


def _redis_client_pause(strike: Strike) -> str:
    logs = _engine_logs(strike)
    strike.pipeline.redis.client_pause(int(1000 * strike.fault.seconds), all=True)
    with contextlib.suppress(redis.RedisError):  # it is answered once the pause is over, or not at all
        strike.pipeline.redis.ping()
    return _felt(strike, logs)


def _engine_logs(strike: Strike) -> dict[Worker, int]:
    return {worker: worker.log_end() for worker in strike.pipeline.fleet.of("engine")}


def _felt(strike: Strike, logs: dict[Worker, int]) -> str:
    felt = [worker.name for worker, at in logs.items() if "tables_not_written" in worker.log_since(at)]
    if not felt:
        raise NotInjected("no engine noticed")
    return f"noticed by {', '.join(felt)}"


INJECTIONS: dict[Kind, Callable[[Strike], str]] = {
    "kill_at_point": _kill_at_point,
    "kill_while_starting": _kill_while_starting,
    "kill_at_random": _kill_at_random,
    "zombie": _zombie,
    "zombie_oracle": _zombie_oracle,
    "churn": _churn,
    "partition": _partition,
    "kafka_kill": _kafka_kill,
    "kafka_pause": _kafka_pause,
    "redis_kill": _redis_kill,
    "redis_flush": _redis_flush,
    "redis_old_dump": _redis_old_dump,
    "redis_full": _redis_full,
    "redis_evicts": _redis_evicts,
    "redis_stall": _redis_stall,
    "redis_client_pause": _redis_client_pause,
    "cut": _cut,
    "cut_all": _cut_all,
    "delay": _cut,
    "rescale": rescale,
}
