"""A replay gives the bytes that were committed, and names whatever is not as the journal says."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st

from schemas.messages import EventFrame
from schemas.parameters import AssetParameters, PolicyParameters
from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, EVENTS, JOURNAL, MARKS, PARAMETERS
from streams.audit.replay import Replayed
from streams.errors import AuditError
from tests.audit.scripts import Script, alter, drop, event_id, played, value
from tests.clearing.engine_bench import instrument
from tests.properties import examples


def differences_of(result: Replayed) -> list[str]:
    return [f"{difference.place} {difference.what}" for difference in result.findings.differences]


def test_what_was_committed_follows_from_the_journal(liquidation: Script) -> None:
    result = liquidation.replayed(0)
    assert differences_of(result) == []
    assert result.findings.counts["commands"] == len(liquidation.records(COMMANDS)) == 1
    assert result.findings.counts["alerts"] == len(liquidation.records(ALERTS)) > 0
    assert result.findings.counts["rows"] == len(liquidation.records(ACCOUNTS)) > 4
    assert result.findings.counts["journal records"] == len(liquidation.records(JOURNAL)) - 1, (
        "the first claim is given"
    )


def test_a_changed_byte_of_a_command_is_named_with_its_field(liquidation: Script) -> None:
    (command,) = liquidation.records(COMMANDS)
    alter(command, b'"limit_price":"9', b'"limit_price":"8')
    (difference,) = differences_of(liquidation.replayed(0))
    assert difference.startswith(f"{liquidation.place_of(COMMANDS, command)} alice:1: orders[0].limit_price must be")


def test_a_changed_alert_is_named(liquidation: Script) -> None:
    alert = liquidation.records(ALERTS)[0]
    alter(alert, b'"account":"alice"', b'"account":"alicf"')
    (difference,) = differences_of(liquidation.replayed(0))
    assert difference.startswith(f'{liquidation.place_of(ALERTS, alert)} alice:alert:1: account must be "alice"')


def test_a_changed_row_is_named(liquidation: Script) -> None:
    row = next(row for row in liquidation.records(ACCOUNTS) if row.key == b"bob" and b"99999.99" in value(row))
    alter(row, b'"USDC":"99999.99"', b'"USDC":"99999.98"')
    (difference,) = differences_of(liquidation.replayed(0))
    assert difference.startswith(f"{liquidation.place_of(ACCOUNTS, row)} account bob, commit ")
    assert 'balances.USDC must be "99999.99" and is "99999.98"' in difference


@pytest.mark.parametrize("topic", [COMMANDS, ALERTS])
def test_a_lost_record_is_named(liquidation: Script, topic: str) -> None:
    lost = liquidation.records(topic)[0]
    drop(lost)
    name = event_id(lost)
    assert differences_of(liquidation.replayed(0)) == [f"{topic} {name} is not in the topic"]


def test_a_lost_last_row_is_named_and_one_that_is_compacted_away_is_counted(liquidation: Script) -> None:
    rows = [row for row in liquidation.records(ACCOUNTS) if row.key == b"alice"]
    drop(rows[0])
    result = liquidation.replayed(0)
    assert differences_of(result) == []
    assert result.findings.counts["rows compacted away"] == 1
    drop(rows[-1])
    (difference,) = differences_of(liquidation.replayed(0))
    assert "account alice: the row of commit" in difference
    assert "none follows" in difference


def test_a_lost_journal_record_is_named_with_what_it_did(liquidation: Script) -> None:
    lost = next(record for record in liquidation.records(JOURNAL) if b'"alice:1"' in value(record))
    drop(lost)
    differences = differences_of(liquidation.replayed(0))
    assert any(f"record {sequence} is missing" in d for d in differences for sequence in range(2, 20))
    assert any(ACCOUNTS in d and "gives none by the journal" in d for d in differences)


def test_a_changed_journal_record_is_named(liquidation: Script) -> None:
    record = next(record for record in liquidation.records(JOURNAL) if b'"alice:1"' in value(record))
    alter(record, b'"alice:1"', b'"alice:2"')
    (difference,) = differences_of(liquidation.replayed(0))
    assert difference.startswith(liquidation.place_of(JOURNAL, record))
    assert 'commands[0] must be "alice:1" and is "alice:2"' in difference


def test_a_command_that_nobody_decided_is_named(liquidation: Script) -> None:
    (command,) = liquidation.records(COMMANDS)
    renamed = value(command).replace(b"alice:1", b"alice:2")
    stray = liquidation.cluster.append(COMMANDS, b"alice", renamed, headers=[("ce_id", b"alice:2")])
    again = liquidation.cluster.append(COMMANDS, b"alice", command.value, headers=command.headers)
    assert sorted(differences_of(liquidation.replayed(0))) == sorted(
        [
            f"{liquidation.place_of(COMMANDS, again)} alice:1 is there twice, first at offset {command.offset}",
            f"{liquidation.place_of(COMMANDS, stray)} alice:2 does not follow from the journal",
        ]
    )


def test_an_event_that_is_gone_is_named(liquidation: Script) -> None:
    gone = liquidation.records(EVENTS)[-1]
    drop(gone)
    differences = differences_of(liquidation.replayed(0))
    assert differences[0].startswith(f"{liquidation.place_of(EVENTS, gone)} the record that commit")


def test_a_part_of_the_journal_is_compared_alone(liquidation: Script) -> None:
    record = next(record for record in liquidation.records(JOURNAL) if b'"alice:1"' in value(record))
    sequence = next(s for s in range(99) if f'"sequence":{s},'.encode() in value(record))
    (command,) = liquidation.records(COMMANDS)
    alter(command, b'"limit_price":"9', b'"limit_price":"8')
    assert differences_of(liquidation.replayed(0, last=sequence - 1)) == []
    assert differences_of(liquidation.replayed(0, first=sequence + 1)) == []
    assert len(differences_of(liquidation.replayed(0, first=sequence, last=sequence))) == 1


def test_a_journal_without_its_beginning_is_replayed_from_the_changelog(liquidation: Script) -> None:
    event = liquidation.records(EVENTS)[2]
    liquidation.partition(EVENTS).delete_before(event.offset - 1)  # just after the deposits and the marker behind them
    result = liquidation.replayed(0)
    assert differences_of(result) == []
    assert result.findings.notes
    assert result.findings.counts["commands"] == 1
    assert result.findings.counts["rows not comparable"] == 1, "carol's first row: she may have had one before"
    (command,) = liquidation.records(COMMANDS)
    alter(command, b'"limit_price":"9', b'"limit_price":"8')
    assert len(differences_of(liquidation.replayed(0))) == 1


def test_an_account_whose_row_is_compacted_away_is_left_out_until_its_next_one(liquidation: Script) -> None:
    event = liquidation.records(EVENTS)[2]
    liquidation.partition(EVENTS).delete_before(event.offset - 1)  # just after the deposits and the marker behind them
    deposits = [row for row in liquidation.records(ACCOUNTS) if row.key == b"alice"]
    drop(deposits[0])
    result = liquidation.replayed(0)
    assert differences_of(result) == []
    assert result.findings.counts["commands"] == 1
    assert result.findings.counts["rows not comparable"] == 2


def test_what_pools_have_is_taken_as_it_is_while_accounts_are_not_known(liquidation: Script) -> None:
    """The fill that paid is gone with the events before it, and the row before with compaction."""
    gone = liquidation.records(EVENTS)[-1].offset
    liquidation.fill("alice", "-0.096", "9450", order_id="alice:1:0")
    liquidation.settle()
    liquidation.transfer("carol", "5")
    liquidation.settle()
    assert any(b'"pools":{"default":{"USDC":' in value(record) for record in liquidation.records(JOURNAL))
    assert differences_of(liquidation.replayed(0)) == []
    liquidation.partition(EVENTS).delete_before(gone + 1)
    for row in [row for row in liquidation.records(ACCOUNTS) if row.key == b"alice"][:-1]:
        drop(row)
    result = liquidation.replayed(0)
    assert differences_of(result) == []
    assert result.findings.counts["rows not comparable"]


def test_what_cannot_be_replayed_is_said(liquidation: Script) -> None:
    with pytest.raises(AuditError, match="there is no shard 7"):
        liquidation.replayed(7)
    with pytest.raises(AuditError, match="nothing to compare"):
        liquidation.replayed(0, first=10_000)
    with pytest.raises(AuditError, match="comes after"):
        liquidation.replayed(0, first=3, last=2)
    marks = liquidation.partition(MARKS)
    marks.delete_before(marks.end)
    with pytest.raises(AuditError, match=rf"margin\.marks\.v1 at {marks.end}\b"):
        liquidation.replayed(0)
    with Script() as empty, pytest.raises(AuditError, match="holds no records"):
        empty.replayed(0)


def test_rules_that_are_compacted_away_are_noted(script: Script) -> None:
    script.transfer("alice", "1000")
    script.settle()
    script.parameters(instrument("0.06"))
    script.settle()
    script.parameters(instrument("0.06", version=2))
    script.settle()
    drop(next(record for record in script.records(PARAMETERS) if b'"0.06"' in value(record)))
    result = script.replayed(0)
    assert any(PARAMETERS in note for note in result.findings.notes)
    assert differences_of(result) == [], "what it said was said again later, and decided nothing in between"


# --- whatever happens ------------------------------------------------------------------------------------------------

ACCOUNTS_DRAWN = st.sampled_from(["alice", "bob", "carol"])
PRICES = st.sampled_from(["9000", "9450", "9600", "9800", "10000", "10400", "11000"])
QUANTITIES = st.sampled_from(["1", "-1", "0.5", "-0.25", "0.123", "-2"])

Step = Callable[[Script], None]


def _fill_a_command(script: Script, quantity: str) -> None:
    """Trade the last command, in full or in part, as an execution service does."""
    rows = script.records(COMMANDS)
    if rows:
        account = (rows[-1].key or b"").decode()
        order = f"{event_id(rows[-1])}:0"
        script.fill(account, quantity, "9500", order_id=order)
        script.report(account, order, "cancelled", quantity.lstrip("-"))


def _frame_of_nothing(script: Script, after_ms: float) -> None:
    script.advance(after_ms)
    script.events(EventFrame(time=script.now_us))


def _garbage(script: Script) -> None:
    script.cluster.append(MARKS, None, b"no frame")
    script.cluster.append(EVENTS, None, b"no frame")
    script.cluster.append(PARAMETERS, b"policy:default", b"no record")


STEPS: st.SearchStrategy[Step] = st.one_of(
    st.builds(
        lambda account, amount, asset: lambda s: s.transfer(account, amount, asset=asset),
        ACCOUNTS_DRAWN,
        st.sampled_from(["900", "2000", "-150", "0.000001"]),
        st.sampled_from(["USDC", "USDC", "BTC", "NOPE"]),
    ),
    st.builds(
        lambda account, amount, sequence: lambda s: s.transfer(account, amount, sequence=sequence),
        ACCOUNTS_DRAWN,
        st.sampled_from(["30", "-20", "-5000"]),
        st.integers(0, 12),
    ),
    st.builds(
        lambda account, quantity, price: lambda s: s.fill(account, quantity, price), ACCOUNTS_DRAWN, QUANTITIES, PRICES
    ),
    st.builds(
        lambda account, quantity, held: lambda s: s.fill(account, quantity, held[1], symbol=held[0]),
        ACCOUNTS_DRAWN,
        QUANTITIES,
        st.sampled_from([("BTC-PERP", "10000.05"), ("DOGE-PERP", "5")]),
    ),
    st.builds(
        lambda record: lambda s: s.parameters(record),
        st.sampled_from(
            [
                AssetParameters(asset="NOPE", decimals=6),
                instrument(symbol="DOGE-PERP"),
                instrument(price_increment="0.01"),
                PolicyParameters(undecided_alert_ms=500, command_ttl_ms=500),
            ]
        ),
    ),
    st.builds(lambda account, quantity: lambda s: s.fill(account, quantity, "10000", margin="BTC-PERP"),
              ACCOUNTS_DRAWN, QUANTITIES),
    st.builds(lambda quantity: lambda s: _fill_a_command(s, quantity), QUANTITIES),
    st.builds(
        lambda price, after, full, status: lambda s: s.mark(price, after_ms=after, full=full, status=status),
        PRICES,
        st.sampled_from([1, 250, 1200]),
        st.booleans(),
        st.sampled_from(["live", "live", "live", "halted"]),
    ),
    st.builds(lambda price, scale: lambda s: s.mark(price, scales={"instrument:BTC-PERP": scale}), PRICES,
              st.sampled_from(["1.5", "2"])),
    st.builds(lambda lost: lambda s: s.input_gap(lost=lost), st.booleans()),
    st.just(Script.input_again),
    st.builds(lambda behind: lambda s: s.router_progress(behind), st.sampled_from([0, 0, 10, 25])),
    st.builds(lambda after: lambda s: s.tick(after), st.sampled_from([100, 1500, 4000])),
    st.builds(lambda rate: lambda s: s.parameters(instrument(rate)), st.sampled_from(["0.05", "0.08", "0.02"])),
    st.builds(
        lambda levels: lambda s: s.parameters(
            PolicyParameters(margin_call_levels=levels, command_ttl_ms=500),
            AssetParameters(asset="USDC", decimals=7 if len(levels) == 1 else 6),
        ),
        st.sampled_from([("1.5", "1.2"), ("2",)]),
    ),
    st.builds(lambda commit, idle: lambda s: s.cycle(commit=commit, idle=idle), st.booleans(), st.booleans()),
    st.builds(lambda commit, idle: lambda s: s.cycle(commit=commit, idle=idle), st.booleans(), st.booleans()),
    st.builds(lambda after: lambda s: _frame_of_nothing(s, after), st.sampled_from([0, 2_000])),
    st.builds(
        lambda off, stamped: lambda s: s.events(EventFrame(time=s.now_us + off), stamped=stamped),
        st.sampled_from([0, 3_000_000, -90_000_000, 365 * 86_400_000_000]),
        st.sampled_from([True, True, True, False]),
    ),
    st.builds(
        lambda price, off, stamped: lambda s: s.mark(price, off_us=off, stamped=stamped),
        PRICES,
        st.sampled_from([3_000_000, -90_000_000, 365 * 86_400_000_000]),
        st.sampled_from([True, True, True, False]),
    ),
    st.builds(
        lambda account, offset: lambda s: s.suspend(account, offset), ACCOUNTS_DRAWN, st.sampled_from([-1, 3, 4, 9])
    ),
    st.builds(
        lambda account, offset, quantity: lambda s: s.repair(account, offset, quantity),
        ACCOUNTS_DRAWN,
        st.sampled_from([3, 4, 9]),
        QUANTITIES,
    ),
    st.just(lambda s: s.restart()),
    st.just(lambda s: s.new_oracle()),
    st.builds(lambda price: lambda s: s.mark(price, epoch=s.epoch - 1), PRICES),
    st.just(lambda s: s.running.rates.once("abortable")),
    st.just(_garbage),
)  # fmt: skip


@given(st.lists(STEPS, min_size=5, max_size=60), st.integers(2, 40))
@configure(max_examples=examples(60), deadline=None)
def test_whatever_an_engine_did_is_replayed_to_the_byte(steps: list[Step], first: int) -> None:
    with played(steps) as script:
        result = script.replayed(0)
        assert differences_of(result) == []
        assert result.findings.counts["rows"] == len(script.records(ACCOUNTS))
        assert result.findings.counts["commands"] == len(script.records(COMMANDS))
        assert result.findings.counts["alerts"] == len(script.records(ALERTS))
        second_half = min(first, result.last)
        script.partition(JOURNAL).delete_before(script.records(JOURNAL)[second_half - 2].offset)
        assert differences_of(script.replayed(0)) == [], "begun from the changelog"
