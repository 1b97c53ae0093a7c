"""Which shard has an account while accounts move, by the journals, and what those wait for that are to leave."""

from bisect import bisect_right
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace

from schemas.messages import Departure, JournalRecord, Range, ShardLayout, ShardMoves, ShardSuspension, Spread
from schemas.partitioning import home_of, moves_at, place_of, steps_of
from streams.feeds.holders import Holder, departure_sentences, has_come, shards_to_ask

NAMES = [f"account-{number}" for number in range(200)]


def version_at(shards: int, target: int, step: int) -> int:
    """Of a layout that is at ``step`` of a change which began with version 5."""
    return 5 + bisect_right(steps_of(Spread(version=5, shards=shards, target=target)), step)


def layout(shards: int, target: int, step: int) -> ShardLayout:
    used, version = max(shards, target), version_at(shards, target, step)
    return ShardLayout(
        shards=shards, time=1, version=version, target=target, step=step, used=used, founded=shards
    )  # fmt: skip


def moves_after(shard: int, shards: int, target: int, step: int, sent: int = 0) -> ShardMoves:
    """What a shard's journal says when the steps up to ``step`` are done; ``sent``: it has sent those of this one."""
    at = max(step, sent)
    spread = Spread(version=version_at(shards, target, at), shards=shards, target=target, step=at)
    pairs = moves_at(sent, spread) if sent else []
    departure = next((Departure(spread=spread, to=new, sources=()) for old, new in pairs if old == shard), None)
    return ShardMoves(spread=spread, left=step, arrived=step, departure=departure, sent=departure is not None)


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_between_steps_every_account_is_in_the_shard_that_the_layout_names(
    shards: int, target: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, max(shards, target) - 1)) if shards != target else 0
    written = layout(shards, target, step)
    holders = [Holder(n, written, moves_after(n, shards, target, step)) for n in range(written.shards_used)]
    for account in NAMES:
        own = [n for n, holder in enumerate(holders) if holder.holding(account) == "own"]
        assert own == [home_of(account, written.spread)]
        assert set(own) <= set(shards_to_ask(account, written))
        assert not any(holder.holding(account) == "kept" for holder in holders)


@given(st.integers(1, 7), st.integers(1, 7), st.data())
def test_what_has_been_sent_is_kept_by_the_old_shard_alone(shards: int, target: int, data: st.DataObject) -> None:
    if shards == target:
        return
    step = data.draw(st.integers(1, max(shards, target) - 1))
    written = layout(shards, target, step)
    for account in NAMES:
        old, new, goes_at = place_of(account, written.spread)
        if goes_at == step:
            holders = {n: Holder(n, written, moves_after(n, shards, target, step - 1, sent=step)) for n in (old, new)}
            assert [holders[n].holding(account) for n in (old, new)] == ["kept", "other"]


def test_a_shard_that_knows_of_no_change_has_those_it_was_founded_with() -> None:
    written = layout(2, 3, 1)
    for account in NAMES:
        own = [n for n in range(3) if Holder(n, written, UNSET).holding(account) == "own"]
        assert own == [place_of(account, written.spread)[0]]


@pytest.mark.parametrize(("arrived", "has"), [(0, False), (1, True), (2, True)])
def test_the_new_shard_has_an_account_once_its_journal_says_so(arrived: int, has: bool) -> None:
    account = next(name for name in NAMES if place_of(name, Spread(version=0, shards=2, target=3))[2] == 1)
    said = replace(moves_after(1, 2, 3, arrived), left=0)
    assert has_come(account, layout(2, 3, 1), said) is has
    assert not has_come(account, layout(2, 3, 1), UNSET)
    assert not has_come(account, layout(2, 4, 1), said), "it speaks of another change"


def _record(moves: ShardMoves, **fields: Any) -> JournalRecord:
    nothing = Range(first=0, next=0)
    ranges: dict[str, Any] = dict.fromkeys(("events", "marks", "parameters"), nothing)
    return JournalRecord(
        kind="commit", shard=0, claim=0, sequence=1, previous=0, **ranges, **fields, moves=moves
    )  # fmt: skip


def test_what_a_departure_waits_for_is_said_with_what_to_do() -> None:
    spread = Spread(version=5, shards=2, target=3, step=1)
    sources = ("trades.v1:0:1", "trades.v1:1:1", "liquidation.reports.v1:0:1")
    moves = ShardMoves(
        spread=spread,
        versions={"trades.v1:1": (5, 4)},
        cuts={"trades.v1:1": (7,)},
        departure=Departure(spread=spread, to=1, sources=sources),
    )
    (unrouted,) = departure_sentences("Shard 0", _record(moves))
    assert unrouted.startswith("Shard 0: the accounts that go to shard 1 with step 1 wait until routers confirm that")
    assert "trades.v1:1:1, liquidation.reports.v1:0:1 by version 5 of the layout, not 0 or 4" in unrouted
    suspension = ShardSuspension(number=1, since=1, reasons=("gone",))
    said = list(departure_sentences("Shard 0", _record(moves, suspension=suspension, missing={"trades.v1:0:1": 9})))
    assert [sentence.split(":")[0] for sentence in said] == [
        "Shard 0 is suspended, and sends nobody away meanwhile", "Shard 0", "Shard 0",
    ]  # fmt: skip
    assert "wait for what is missing of trades.v1:0:1" in said[1]
    (sent,) = departure_sentences("Shard 0", _record(replace(moves, sent=True)))
    assert "has sent the accounts that go to shard 1 with step 1, and shard 1 has not said yet" in sent
    assert list(departure_sentences("Shard 0", _record(replace(moves, departure=None)))) == []
