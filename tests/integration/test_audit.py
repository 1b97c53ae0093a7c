"""The audit commands on a real deployment of their own: what it did is replayed, explained and verified."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from schemas.partitioning import shard_of
from schemas.topics import ACCOUNTS, COMMANDS, JOURNAL
from streams.broker.reader import LogReader
from streams.settings import Settings
from tests.integration.conftest import OWN_SHARDS as SHARDS
from tests.integration.conftest import Pipeline, eventually
from tests.integration.test_pipeline import Market, leveraged, one_command


@pytest.fixture(scope="module")
def market(own_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    """A liquidation, a kill of the engine, another liquidation, and everything applied."""
    pipeline = Pipeline(own_settings, tmp_path_factory.mktemp("roles"))
    try:
        new_market = leveraged(pipeline)
        new_market.price("94")
        one_command(new_market, new_market.alice)
        pipeline.engine.kill()
        new_market.trade(new_market.alice, new_market.bob, "0.5", "94")
        pipeline.engine.restart()
        new_market.wait_for_position(new_market.alice, "10.5")
        carol = f"carol-{new_market.alice}"
        new_market.deposit(carol, "100")
        new_market.trade(carol, new_market.bob, "10", "94")
        new_market.wait_for_position(carol, "10")
        new_market.price("88")
        one_command(new_market, carol)
        yield new_market
    finally:
        pipeline.close()


def command(settings: Settings, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "streams.cli", *arguments],
        env={
            **os.environ,
            "MARGIN_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
            "MARGIN_REDIS__URL": settings.redis.url,
            "COLUMNS": "200",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_shard_is_replayed_to_the_byte(market: Market, own_settings: Settings) -> None:
    done = command(own_settings, "replay", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    shards = json.loads(done.stdout)
    assert [shard["shard"] for shard in shards] == list(range(SHARDS))
    counts = [shard["counts"] for shard in shards]
    assert sum(count["commands"] for count in counts) == 2
    assert sum(count["alerts"] for count in counts) >= 2
    with LogReader(own_settings.kafka, "test") as log:
        rows, journal = ([m for p in range(SHARDS) for m in log.read_range(t, p, 0)] for t in (ACCOUNTS, JOURNAL))
    assert sum(count["rows"] for count in counts) == len(rows) >= 3
    assert sum(b'"kind":"claim"' in (record.value() or b"") for record in journal) >= 2 * SHARDS, "the restart"
    shown = command(own_settings, "replay", "--shard", str(shard_of(market.alice, SHARDS)))
    assert shown.returncode == 0
    assert "nothing differs" in shown.stdout


def test_a_command_is_explained(market: Market, own_settings: Settings) -> None:
    done = command(own_settings, "explain", f"{market.alice}:1", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    explanation = json.loads(done.stdout)
    assert explanation["decision"]["equity"] == "39.99"
    assert explanation["decision"]["maintenance"] == "47"
    (mark,) = explanation["decision"]["marks"]
    assert mark["sources"] == {"one": "94", "two": "94"}
    shown = command(own_settings, "explain", f"{market.alice}:1")
    assert "the logs give this command, byte for byte" in shown.stdout
    missing = command(own_settings, "explain", f"{market.alice}:9")
    assert missing.returncode == 2
    assert f"no command {market.alice}:9" in missing.stderr


def test_the_deployment_is_verified_while_it_runs_and_a_changed_table_is_named(
    market: Market, own_settings: Settings
) -> None:
    def at_rest() -> dict[str, Any] | None:
        done = command(own_settings, "verify", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return None if report["notes"] else report

    report = eventually(at_rest, "everything routed and applied")
    assert report["counts"]["accounts"] == report["counts"]["rows in Redis"] == 3
    assert report["counts"][f"records of {COMMANDS}"] == 2
    assert any("USDC in all accounts: transfers 100200 less fees" in fact for fact in report["facts"])
    key = f"margin:{{{shard_of(market.alice, SHARDS)}}}:accounts"
    with redis.Redis.from_url(own_settings.redis.url) as client:
        row = client.hget(key, market.alice)
        assert row is not None
        client.hset(key, market.alice, row.replace(b'"USDC":"', b'"USDC":"1'))
        changed = command(own_settings, "verify")
        client.hset(key, market.alice, row)
    assert changed.returncode == 1
    assert f"account {market.alice} in Redis is not what the changelog holds" in changed.stdout
    assert command(own_settings, "verify").returncode == 0
