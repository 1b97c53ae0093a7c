"""Running it: probes, status, handing over, an oracle that was replaced, and a Redis that stalls."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer

from schemas import topics
from streams.broker.admin import group_state
from streams.broker.kafka import Kafka
from streams.broker.producer import group_metadata
from streams.broker.reader import LogReader
from streams.errors import BrokerError
from streams.oracle.leadership import Leadership
from streams.settings import Settings, load
from tests.integration.conftest import Pipeline, Role, eventually
from tests.integration.test_pipeline import leveraged, one_command


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Roles:
    """Starts roles that are killed at the end, each with a port for its probes."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self.started: list[Role] = []
        self.ports: dict[int, int] = {}

    def start(self, name: str, **environment: str) -> Role:
        port = free_port()
        log = self._folder / f"{name}-{len(self.started)}.log"
        role = Role(name, self._settings, log, MARGIN_SERVICE__METRICS_PORT=str(port), **environment)
        self.ports[id(role)] = port
        self.started.append(role)
        return role

    def ask(self, role: Role, path: str) -> tuple[int, dict[str, Any]]:
        """Status code and body; 0 as long as nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[id(role)]}{path}", timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)
        except OSError:
            return 0, {}

    def wait_until_ready(self, role: Role) -> None:
        def ready() -> bool:
            role.assert_running()
            return self.ask(role, "/readyz")[0] == 200

        eventually(ready, f"{role.name} to be ready", 30)

    def close(self) -> None:
        for role in self.started:
            if role.process.poll() is None:
                role.kill()


@pytest.fixture
def roles(settings: Settings, tmp_path: Path) -> Iterator[Roles]:
    new_roles = Roles(settings, tmp_path)
    yield new_roles
    new_roles.close()


def status(settings: Settings) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "streams.cli", "status", "--json"],
        env={
            **os.environ,
            "MARGIN_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
            "MARGIN_REDIS__URL": settings.redis.url,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def test_every_role_becomes_ready_and_status_finds_nothing_wrong(
    pipeline: Pipeline, roles: Roles, settings: Settings
) -> None:
    leveraged(pipeline)
    spare = [roles.start(name) for name in ("engine", "router", "oracle")]
    for role in spare:
        roles.wait_until_ready(role)
        assert roles.ask(role, "/livez")[1]["live"]
    _, body = roles.ask(spare[2], "/readyz")
    assert body["conditions"][0]["name"] == "standing_by_age_ms", "one oracle publishes, the other stands by"

    def sound() -> dict[str, Any] | None:
        _, body = status(settings)
        of_tests_before = ("Stale", ".dlq", "in risk.parameters.v1 is refused")
        others = [fault for fault in body["faults"] if not any(text in fault for text in of_tests_before)]
        return None if others else body

    body = eventually(sound, "a status without faults")
    assert {len(body[group]["members"]) for group in ("engines", "routers", "oracles")} == {2}
    workers = {shard["worker"] for shard in body["shards"]}
    assert len(workers) == 2, "the shards are shared"


def owners(settings: Settings) -> dict[int, str]:
    """The shards by the client that owns them; empty while the group is not settled."""
    group = group_state(settings, settings.engine.group_id)
    if group.state != "STABLE":
        return {}
    return {partition: member.client_id for member in group.members for _, partition in member.partitions}


@pytest.mark.parametrize("instance", ["", "engine-that-stays"])
def test_sigterm_hands_the_shards_over_at_once_whatever_the_membership(
    pipeline: Pipeline, roles: Roles, settings: Settings, instance: str
) -> None:
    """A session timeout of 20 s: whoever had to wait for it would be far too late."""
    slow = {"MARGIN_KAFKA__SESSION_TIMEOUT_MS": "20000", "MARGIN_SERVICE__INSTANCE_ID": instance}
    leaving = roles.start("engine", **slow)
    eventually(lambda: len(set(owners(settings).values())) == 2, "both engines to own shards")
    roles.wait_until_ready(leaving)
    assert leaving.stop() == 0
    started = time.monotonic()
    eventually(lambda: len(owners(settings)) == settings.topics.shards and len(set(owners(settings).values())) == 1,
               "the other engine to own everything", 12)  # fmt: skip
    print(f"handed over after {time.monotonic() - started:.2f} s")
    market = leveraged(pipeline)
    market.price("94")
    one_command(market, market.alice)


def test_a_stalled_redis_stops_neither_taking_shards_nor_clearing(
    pipeline: Pipeline, roles: Roles, settings: Settings
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as never_answers:
        url = f"redis://127.0.0.1:{never_answers.getsockname()[1]}/0"
        assert pipeline.engine.stop() == 0
        engine = roles.start("engine", MARGIN_REDIS__URL=url)
        try:
            roles.wait_until_ready(engine)
            market = leveraged(pipeline_with(pipeline, engine))
            market.price("94")
            one_command(market, market.alice)
            assert "no_restore_point" in engine.log()
            assert engine.stop() == 0
        finally:
            pipeline.engine.restart()


def pipeline_with(pipeline: Pipeline, engine: Role) -> Pipeline:
    """The same pipeline, watched with another engine."""
    copied = object.__new__(Pipeline)
    copied.__dict__ |= pipeline.__dict__ | {"engine": engine}
    return copied


def test_a_later_oracle_has_a_higher_epoch_and_a_replaced_one_cannot_claim(settings: Settings) -> None:
    own = load(
        {},
        {
            "kafka.bootstrap_servers": settings.kafka.bootstrap_servers,
            "oracle.app_id": f"oracle-of-{os.getpid()}",
        },
    )
    claimed: list[Any] = []

    def first_membership(consumer: Consumer) -> Any:
        claimed.append(claimed[0] if claimed else group_metadata(consumer))
        return claimed[-1]

    first = Leadership(Kafka(own), first_membership)
    eventually(first.poll, "the first to lead")
    epoch = first.claim()
    first.close()
    second = Leadership(Kafka(own))
    eventually(second.poll, "the second to lead")
    with pytest.raises(BrokerError):
        first.claim()  # as one that was frozen before it claimed, and knows nothing of the second
    assert second.claim() > epoch
    second.close()


def test_every_frame_carries_the_epoch_of_its_oracle(pipeline: Pipeline, settings: Settings) -> None:
    leveraged(pipeline)
    with LogReader(settings.kafka, "test") as reader:
        low, end = reader.watermarks(topics.MARKS, 0)
        messages = list(reader.read_range(topics.MARKS, 0, max(low, end - 50), end))
    frames = [orjson.loads(value) for message in messages if (value := message.value())]
    epochs = {frame["epoch"] for frame in frames if frame["marks"]}
    assert epochs
    with LogReader(settings.kafka, "test") as reader:
        for epoch in epochs:
            (claim,) = list(reader.read_range(topics.MARKS, 0, epoch, epoch + 1))
            assert orjson.loads(claim.value() or b"")["marks"] == [], "an epoch is the offset of an empty frame"
