"""Records that are routed twice: what the shard has had is dropped, and every audit sees it the same way."""

from schemas.codec import encode
from schemas.messages import EventFrame, FillColumns, SourceRange, TransferColumns
from schemas.topics import ACCOUNTS, JOURNAL, TRADES, TRANSFERS
from streams.audit.money import flows_of_frames
from tests.audit.scripts import Script, alter, value
from tests.clearing.engine_bench import SYMBOL


def deposits(*offsets: int, first: int = 0) -> EventFrame:
    """A deposit of 1000 from each of these offsets."""
    count = len(offsets)
    covered = SourceRange(topic=TRANSFERS, topic_id="a", partition=0, first=first, next=offsets[-1] + 1)
    columns = TransferColumns(
        account=["alice"] * count,
        margin=["cross"] * count,
        asset=["USDC"] * count,
        amount=["1000"] * count,
        sequence=list(offsets),
        transfer_id=[f"t{offset}" for offset in offsets],
        source=[0] * count,
        source_offset=list(offsets),
    )
    return EventFrame(time=1, transfers=columns, sources=[covered])


def fills(*offsets: int, first: int = 0) -> EventFrame:
    """A purchase of 0.1 from each of these offsets: nothing else in the pipeline would know it for a repeat."""
    count = len(offsets)
    covered = SourceRange(topic=TRADES, topic_id="b", partition=2, first=first, next=offsets[-1] + 1)
    columns = FillColumns(
        account=["alice"] * count,
        margin=["cross"] * count,
        symbol=[SYMBOL] * count,
        quantity=["0.1"] * count,
        price=["10000"] * count,
        fee=["0.01"] * count,
        order_id=["o"] * count,
        trade_id=list(offsets),
        source=[0] * count,
        source_offset=list(offsets),
    )
    return EventFrame(time=1, fills=columns, sources=[covered])


def route_twice(script: Script) -> None:
    """Three deposits and five fills, most of them twice, over a hand-over and a restart."""
    for frame in (deposits(0, 1), fills(0, 1, 2), fills(1, 2, first=1)):
        script.events(frame)
    script.settle()
    script.restart()
    for frame in (deposits(0, 1), fills(2, 3, first=2), deposits(1, 5, first=1), fills(3, 4, first=3)):
        script.events(frame)
    script.settle()


def test_each_is_applied_once_over_any_restart(script: Script) -> None:
    route_twice(script)
    (group,) = script.row("alice").groups
    assert group.balances == {"USDC": "2999.95"}
    assert [position.quantity for position in group.positions] == ["0.5"]
    told: dict[str, int] = {}
    for record in script.journal():
        told |= record.sources
    assert told == {f"{TRANSFERS}:0:a": 6, f"{TRADES}:2:b": 5}


def test_the_log_is_replayed_to_the_byte_and_its_money_is_added_up(script: Script) -> None:
    route_twice(script)
    replayed = script.replayed()
    assert not replayed.findings.differences
    flows, _, _ = script.audit(lambda log: flows_of_frames(log, 0, script.committed(), {SYMBOL: "USDC"}))
    assert str(flows.transfers["USDC"]) == "3000"
    assert str(flows.quantity[SYMBOL]) == "0.5"


def test_a_journal_that_cannot_be_read_does_not_apply_them_again(script: Script) -> None:
    script.events(deposits(0, 1))
    script.events(fills(0, 1, 2))
    script.settle()
    for record in script.records(JOURNAL):
        if b'"commit"' in value(record):
            alter(record, b'"kind"', b'"kin"')
    script.restart()
    script.events(fills(1, 2, 3, first=1))
    script.running.cycle_until(lambda: script.committed() == 5, "the third frame is applied")
    assert [position.quantity for position in script.row("alice").groups[0].positions] == ["0.4"]


def test_a_row_that_is_refused_goes_to_the_dead_letters_with_its_source(script: Script) -> None:
    frame = fills(7, 8, first=7)
    frame.fills.price[1] = "1" * 30
    script.events(frame)
    script.settle()
    (letter,) = script.dead_letters("margin.events.v1")
    repaired = fills(8, first=8)
    repaired.fills.price, repaired.repaired, repaired.time = frame.fills.price[1:], True, frame.time
    assert value(letter) == encode(repaired)
    assert script.records(ACCOUNTS)
