"""Records that nobody can read in the logs of a shard: whoever takes it goes on with everybody else, and it is told."""

import json
from collections.abc import Iterator
from itertools import count

import pytest

from schemas.partitioning import shard_of
from schemas.topics import ACCOUNTS, JOURNAL
from schemas.types import shard_account
from streams.settings import Settings
from tests.integration.conftest import OWN_SHARDS as SHARDS
from tests.integration.conftest import Pipeline, eventually
from tests.integration.test_audit import command
from tests.integration.test_pipeline import Market, leveraged, one_command


def neighbour(account: str) -> str:
    """Another account of the same shard."""
    return next(name for n in count() if shard_of(name := f"mallory-{n}", SHARDS) == shard_of(account, SHARDS))


@pytest.fixture(scope="module")
def market(own_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    """An engine is killed, garbage is written to its logs, and another takes the shard over."""
    pipeline = Pipeline(own_settings, tmp_path_factory.mktemp("roles"))
    try:
        new_market = leveraged(pipeline)
        pipeline.engine.kill()
        shard = shard_of(new_market.alice, SHARDS)
        pipeline.send(JOURNAL, b'{"kind": "commit"', partition=shard)
        pipeline.send(JOURNAL, b"\xff\xfe", partition=shard)
        pipeline.send(ACCOUNTS, b'{"account": "m"}', key=neighbour(new_market.alice), partition=shard)
        pipeline.send(ACCOUNTS, b"{}", key=b"\xff\xfe", partition=shard)
        pipeline.flush()
        pipeline.engine.restart()
        yield new_market
    finally:
        pipeline.close()


def test_the_shard_is_taken_and_its_accounts_are_liquidated(market: Market, own_settings: Settings) -> None:
    market.price("94")
    assert one_command(market, market.alice)["command_id"] == f"{market.alice}:1"
    market.trade(market.alice, market.bob, "0.5", "94")
    market.wait_for_position(market.alice, "10.5")


def test_it_is_told_what_could_not_be_read(market: Market, own_settings: Settings) -> None:
    told = eventually(
        lambda: alerts if len(alerts := market.alerts.values(kind="unreadable")) >= 2 else None, "what is unreadable"
    )
    assert {alert["account"] for alert in told} == {shard_account(shard_of(market.alice, SHARDS))}
    reasons = " ".join(alert["reason"] for alert in told)
    assert "2 records of the shard's journal could not be read" in reasons
    assert f"account {neighbour(market.alice)}: its row cannot be read" in reasons
    assert market.pipeline.engine.log().count("row_of_nobody") == 1


def test_verify_and_replay_name_it_and_fail(market: Market, own_settings: Settings) -> None:
    verified = command(own_settings, "verify", "--json")
    assert verified.returncode == 1
    report = json.dumps(json.loads(verified.stdout))
    assert f"account {neighbour(market.alice)}: its row cannot be read" in report
    assert "no journal record" in report
    assert command(own_settings, "replay").returncode == 1
    shown = command(own_settings, "account", neighbour(market.alice))
    assert f"suspended: account {neighbour(market.alice)}: its row cannot be read" in shown.stdout
