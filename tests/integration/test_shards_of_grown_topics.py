"""The topics of the shards get more partitions, on a stack of their own: accounts stay in the shards they are in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka.admin import NewPartitions

from schemas import topics
from schemas.partitioning import shard_of
from streams.broker.admin import admin_client, ensure_topics, group_state
from streams.broker.reader import LogReader
from streams.settings import Settings
from tests.integration.conftest import OWN_SHARDS, Pipeline, eventually
from tests.integration.test_pipeline import Market, leveraged, one_command

pytestmark = pytest.mark.long

GROWN = OWN_SHARDS + 3


def grow(settings: Settings, *names: str) -> None:
    admin = admin_client(settings)  # kept: its requests end with it
    for done in admin.create_partitions([NewPartitions(name, GROWN) for name in names]).values():
        done.result(timeout=10)


def run(settings: Settings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    where = {
        "MARGIN_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "MARGIN_REDIS__URL": settings.redis.url,
    }
    command = [sys.executable, "-m", "streams.cli", *arguments]
    return subprocess.run(command, check=False, env=os.environ | where, capture_output=True, text=True, timeout=120)


def assigned(settings: Settings) -> list[int]:
    members = group_state(settings, settings.engine.group_id).members
    return sorted(partition for member in members for _, partition in member.partitions)


def falls(pipeline: Pipeline, market: Market) -> None:
    """Alice's market falls; the command comes from the shard in which she was."""
    market.price("94")
    command = one_command(market, market.alice)
    assert command["evidence"]["shard"] == shard_of(market.alice, OWN_SHARDS)
    pipeline.assert_running()


def test_accounts_stay_where_they_are(own_settings: Settings, tmp_path: Path) -> None:
    settings = own_settings
    running = Pipeline(settings, tmp_path)
    try:
        before, after = leveraged(running), leveraged(running)
        grow(settings, topics.EVENTS)  # the others have fewer partitions for now
        eventually(lambda: assigned(settings) == list(range(GROWN)), "the group to own the new partitions", 60)
        falls(running, before)
        for role in (running.router, running.oracle, running.engine):
            assert role.stop() == 0
            role.restart()  # with what they find now
        falls(running, after)
        grow(settings, topics.ACCOUNTS, topics.JOURNAL)
        falls(running, leveraged(running))
        eventually(lambda: run(settings, "status").returncode == 0, "all to be as it should be", 60)
        status = json.loads(run(settings, "status", "--json").stdout)
        assert [shard["shard"] for shard in status["shards"]] == list(range(OWN_SHARDS))
        for command in ("verify", "replay"):
            done = run(settings, command)
            assert done.returncode == 0, done.stdout + done.stderr
        with LogReader(settings.kafka, "test") as reader:
            for topic in (topics.EVENTS, topics.ACCOUNTS, topics.JOURNAL):
                assert all(reader.watermarks(topic, partition) == (0, 0) for partition in range(OWN_SHARDS, GROWN))
    finally:
        running.close()


def test_topics_says_what_there_is_and_refuses_another_number(own_settings: Settings) -> None:
    report = ensure_topics(own_settings)
    assert (report.wrong, report.shards) == ([], OWN_SHARDS)
    right, wrong = (run(own_settings, "topics", "--verify", *more) for more in ((), ("--shards", str(GROWN))))
    assert right.returncode == 0, right.stdout
    assert f"accounts are spread over {OWN_SHARDS} shards" in right.stdout
    assert wrong.returncode == 1
    assert f"--shards asks for {GROWN} shards: accounts stay in the shards in which they are" in " ".join(
        wrong.stdout.split()
    )
