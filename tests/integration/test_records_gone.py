"""Records of our own topics that are gone, with a real broker: nobody is liquidated, until a word lifts that."""

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import TopicPartition

from schemas.partitioning import shard_of
from schemas.topics import EVENTS
from streams.broker.admin import admin_client
from streams.broker.reader import LogReader
from streams.settings import Settings
from tests.integration.conftest import OWN_SHARDS as SHARDS
from tests.integration.conftest import Pipeline, eventually
from tests.integration.test_audit import command
from tests.integration.test_pipeline import Market, leveraged, one_command


@pytest.fixture(scope="module")
def pipeline(own_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    running = Pipeline(own_settings, tmp_path_factory.mktemp("roles"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def market(pipeline: Pipeline, own_settings: Settings) -> Market:
    """Alice closes her position while no engine runs, and the frames of that are deleted before one does."""
    market = leveraged(pipeline)
    pipeline.engine.stop()
    shard = shard_of(market.alice, SHARDS)
    before = end_of(own_settings, shard)
    market.trade(market.bob, market.alice, "11", "100")
    eventually(lambda: end_of(own_settings, shard) > before, "the trade is routed")
    time.sleep(2 * own_settings.router.commit_ms / 1000)  # what the router tells once a second is gone, too
    admin = admin_client(own_settings)
    place = TopicPartition(EVENTS, shard, end_of(own_settings, shard))
    next(iter(admin.delete_records([place]).values())).result(30)
    pipeline.engine.restart()
    return market


def end_of(settings: Settings, shard: int) -> int:
    with LogReader(settings.kafka, "test") as log:
        return log.watermarks(EVENTS, shard)[1]


def test_nobody_is_liquidated_and_the_shard_is_told(market: Market) -> None:
    (told,) = eventually(lambda: market.alerts.values(kind="records_gone"), "what is gone")
    assert EVENTS in told["reason"]
    assert len(eventually(lambda: market.alerts.values(kind="suspended"), "that the shard is suspended")) == 1
    market.price("94")
    eventually(lambda: market.alerts.values(kind="suspended_liquidatable", account=market.alice), "that she would be")
    assert market.commands.values(account=market.alice) == []


def test_status_and_verify_say_so_and_what_to_do(market: Market, own_settings: Settings) -> None:
    status = command(own_settings, "status")
    assert status.returncode == 1
    assert "every account is suspended" in status.stdout
    assert "margin-clearing resume --all" in status.stdout
    verified = command(own_settings, "verify")
    assert verified.returncode == 1
    assert "cannot be known" in verified.stdout + verified.stderr
    assert "suspended with its whole shard" in command(own_settings, "account", market.alice).stdout


def test_replay_begins_behind_what_is_gone(market: Market, own_settings: Settings) -> None:
    replayed = command(own_settings, "replay")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr


def test_a_word_lets_the_shard_be_liquidated_again(market: Market, own_settings: Settings) -> None:
    servers = own_settings.kafka.bootstrap_servers
    resumed = command(own_settings, "resume", "--all", "--reason", "checked", "--bootstrap-servers", servers)
    assert resumed.returncode == 0, resumed.stderr
    assert f"shard {shard_of(market.alice, SHARDS)}, suspension 1: every account" in resumed.stdout
    assert one_command(market, market.alice)["command_id"] == f"{market.alice}:1"
    assert "every account is suspended" not in command(own_settings, "status").stdout
