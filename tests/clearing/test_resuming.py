"""An operator's word that accounts are suspended with their shard no longer: which shard is told."""

from collections.abc import Iterator

import pytest

from schemas.topics import EVENTS
from streams.clearing.resuming import Resumed, resume
from streams.errors import OperatorError
from streams.memory.kafka import MemoryKafka
from streams.memory.scheduler import Process
from tests.audit.moving import MovingMarket, accounts_going

GOES = accounts_going(0, 2, 1)[0]


@pytest.fixture
def market() -> Iterator[MovingMarket]:
    with MovingMarket() as made:
        made.begin()
        made.router_progress()
        made.deposit(GOES, "1000")
        made.settle()
        yield made


def resumed(market: MovingMarket, account: str | None) -> Resumed:
    process = Process(market.scheduler, "operator")
    kafka = MemoryKafka(market.settings, market.cluster, process)
    return market.do(process, lambda: resume(kafka, account, "looked at"))


def test_the_shard_of_an_account_is_the_one_to_which_it_has_moved(market: MovingMarket) -> None:
    assert resumed(market, GOES).needless == ["shard 0 is not suspended"]
    market.rescale(3)
    assert resumed(market, GOES).needless == ["shard 2 is not suspended"]


def test_while_accounts_move_one_is_refused_and_all_are_not(market: MovingMarket) -> None:
    market.change(target=3)
    market.running.cycle(5)
    market.input_gap(lost=True)
    market.settle()
    ends = [market.partition(EVENTS, shard).end for shard in market.shards]
    with pytest.raises(OperatorError, match=f"accounts are moving from 2 to 3 shards, and {GOES} may be in either"):
        resumed(market, GOES)
    assert ends == [market.partition(EVENTS, shard).end for shard in market.shards], "nothing was written"
    said = resumed(market, None)
    assert [line.split(",")[0] for line in said.told] == ["shard 0", "shard 1"]
    assert said.needless == ["shard 2 is not suspended"]
