"""Verify passes a deployment that is as it must be, at rest or not, and names the one thing that is changed in it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st

from schemas import headers
from schemas.codec import encode
from schemas.messages import EventFrame, ShardLayout, SourceRange, Transfer, TransferColumns
from schemas.partitioning import shard_of
from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, EVENTS, JOURNAL, PARAMETERS, PRICES, TRADES, TRANSFERS
from streams.audit.findings import Findings
from streams.audit.verify import layout_faults, verify
from streams.broker.dead_letters import is_untold
from streams.broker.records import Log
from streams.errors import BrokerError
from streams.memory.log import LogRecord
from streams.tables.reader import Layout, TableMeta
from tests.audit.scripts import Market, Script, alter, drop, played, value
from tests.audit.test_replay import STEPS, Step
from tests.properties import examples

SHARDS = 2
ACCOUNTS_HELD = ("alice", "bob", "carol", "dave")


@dataclass
class ChangelogTables:
    """Tables that are what the changelog holds, unless they are changed."""

    script: Script
    changed: dict[str, bytes | None] = field(default_factory=dict)
    behind: int = 0
    building: bool = False
    first_looks: dict[int, TableMeta | None] = field(default_factory=dict)

    def table_meta(self, shard: int) -> TableMeta | None:
        if shard in self.first_looks:
            return self.first_looks.pop(shard)
        claims = [record.offset for record in self.script.records(JOURNAL, shard) if b'"claim"' in value(record)[:20]]
        if not claims:
            return None
        stamp = self.script.partition(ACCOUNTS, shard).end - self.behind
        return TableMeta(claims[-1], stamp, self.building, 0, stamp)

    def accounts(self, shard: int) -> Iterator[tuple[str, bytes]]:
        rows: dict[str, bytes | None] = {}
        changelog, shards = self.script.partition(ACCOUNTS, shard), len(self.script.shards)
        for record in changelog.committed(end=changelog.end - self.behind):
            rows[(record.key or b"").decode()] = record.value
        rows |= {account: row for account, row in self.changed.items() if shard_of(account, shards) == shard}
        yield from ((account, row) for account, row in rows.items() if row is not None)


@dataclass
class Groups:
    """Offsets as the engine committed them; the router is at the end."""

    script: Script
    router_behind: int = 0

    def router(self, topic: str) -> list[int]:
        return [log.end - self.router_behind for log in self.script.cluster.topics[topic]]

    def engine(self) -> list[int]:
        return [self.script.committed(shard) for shard in self.script.shards]


@dataclass
class Deployment:
    market: Market
    tables: ChangelogTables
    groups: Groups

    def verify(self, topic_faults: Sequence[str] = ()) -> Findings:
        return self.market.audit(lambda log: verify(log, self.tables, self.groups, topic_faults, tables_timeout_s=0))

    def differences(self) -> list[str]:
        return [f"{finding.place} {finding.what}".strip() for finding in self.verify().differences]

    def first(self, topic: str, holding: bytes = b"") -> LogRecord:
        return next(record for record in self.market.records(topic) if holding in value(record))


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    """Four accounts on two shards, a liquidation that was filled, and an engine that was restarted."""
    with Market(shards=SHARDS) as market:
        market.begin()
        _liquidate(market)
        assert {shard_of(account, SHARDS) for account in ACCOUNTS_HELD} == {0, 1}
        assert len(market.records(COMMANDS)) >= 1
        yield Deployment(market, ChangelogTables(market), Groups(market))


def _liquidate(market: Market) -> None:
    for account, amount in zip(ACCOUNTS_HELD, ("1000", "100000", "500.5", "70"), strict=True):
        market.deposit(account, amount)
    market.cycle()
    market.trade("alice", "bob", "1", "10000")
    market.cycle()
    market.trade("carol", "bob", "0.25", "10000.3")
    market.cycle()
    market.mark("9450")
    market.cycle()
    market.trade("bob", "alice", "0.096", "9450", order_id="alice:1:0")
    market.settle()
    market.restart()
    market.settle()


def test_a_deployment_as_it_must_be_passes(deployment: Deployment) -> None:
    findings = deployment.verify()
    assert findings.differences == []
    assert findings.notes == []
    assert findings.counts["accounts"] == findings.counts["rows in Redis"] == len(ACCOUNTS_HELD)
    assert findings.counts["journal records"] == len(deployment.market.records(JOURNAL))
    # 0.096 * 9450 = 907.2: 0.5 % liquidation fee and 0.1 % insurance fee, beside the exchange's own fees
    held = "101564.9968 USDC in all accounts: transfers 101570.5 less fees 0.06 and less 5.4432 given to pools"
    assert held in findings.facts
    assert "5.4432 USDC of liquidation fees went to pool default" in findings.facts


def test_one_that_moves_passes_and_says_how_far_it_is(deployment: Deployment) -> None:
    deployment.market.trade("alice", "bob", "0.001", "9450")
    deployment.groups.router_behind = 1
    findings = deployment.verify()
    assert findings.differences == []
    assert any(fact.startswith("event frames to apply: shard") for fact in findings.facts)
    assert any(note.startswith("the pipeline is not at rest") for note in findings.notes)


def test_topic_faults_are_differences(deployment: Deployment) -> None:
    findings = deployment.verify(["margin.marks.v1 has 2 partitions"])
    assert [difference.what for difference in findings.differences] == ["margin.marks.v1 has 2 partitions"]


Change = Callable[[Deployment], None]


def replaced(topic: str, old: bytes, new: bytes, holding: bytes = b"") -> Change:
    def change(deployment: Deployment) -> None:
        alter(deployment.first(topic, holding or old), old, new)

    return change


def dropped(topic: str, holding: bytes = b"") -> Change:
    return lambda deployment: drop(deployment.first(topic, holding))


def repeated(topic: str) -> Change:
    def change(deployment: Deployment) -> None:
        record = deployment.first(topic)
        deployment.market.cluster.append(topic, record.key, record.value, headers=record.headers)

    return change


def _last_row_of_alice_changed(deployment: Deployment) -> None:
    row = [record for record in deployment.market.records(ACCOUNTS) if record.key == b"alice"][-1]
    alter(row, b'"USDC":"9', b'"USDC":"8')


def _redis_changed(deployment: Deployment) -> None:
    deployment.tables.changed["bob"] = b"{}"


def _redis_lacks_one(deployment: Deployment) -> None:
    deployment.tables.changed["carol"] = None


def _redis_has_one_more(deployment: Deployment) -> None:
    deployment.tables.changed["eve"] = b"{}"


def _redis_behind(deployment: Deployment) -> None:
    deployment.tables.behind = 2


def _offset_moved(deployment: Deployment) -> None:
    market = deployment.market
    market.cluster.offsets[market.settings.engine.group_id][EVENTS, 0] -= 1


def _transfer_not_routed(deployment: Deployment) -> None:
    record = Transfer(
        transfer_id="x", account="alice", asset="USDC", amount="3", sequence=1_000, event_time=deployment.market.now_us
    )
    deployment.market.cluster.append(TRANSFERS, b"alice", encode(record))


def _last_journal_gives_more(deployment: Deployment) -> None:
    given = b'"USDC":"5.4432"'
    record = [each for each in deployment.market.records(JOURNAL) if given in value(each)][-1]
    alter(record, given, b'"USDC":"6.4432"')


def _one_side_of_a_trade(deployment: Deployment) -> None:
    deployment.market.fill("alice", "0.001", "9450", shard=shard_of("alice", SHARDS))
    deployment.market.settle()


CHANGES: dict[str, tuple[Change, str]] = {
    "a command is gone": (dropped(COMMANDS), "the journal names command alice:1, the topic ends at 0"),
    "a command is there twice": (repeated(COMMANDS), "alice:1: a repeat"),
    "a command is another's": (replaced(COMMANDS, b'"alice:1"', b'"alice:9"'), "the value is not that of alice:1"),
    "an alert is gone": (
        dropped(ALERTS, b"alice:alert:1"),
        "alice:alert:2: the first of its account, and not number 1",
    ),
    "an alert is there twice": (repeated(ALERTS), "a repeat"),
    "a journal record is gone": (dropped(JOURNAL, b'"alice:1"'), "it follows sequence"),
    "a journal record names another command": (
        replaced(JOURNAL, b'"alice:1"', b'"alice:2"'),
        "command alice:2: the first of its account",
    ),
    "a journal's range begins elsewhere": (
        replaced(JOURNAL, b'"parameters":[5,5]', b'"parameters":[4,5]', b'"commit"'),
        "its parameters begin at 4, those of the record before end at 5",
    ),
    "a journal record names another claim": (replaced(JOURNAL, b'"claim":0', b'"claim":7'), "written under claim 7"),
    "a row is changed": (_last_row_of_alice_changed, "the accounts of shard"),
    "a row is gone": (dropped(ACCOUNTS, b'"account":"dave"'), "the accounts of shard"),
    "a row in Redis is changed": (_redis_changed, "account bob in Redis is not what the changelog holds"),
    "a row in Redis is gone": (_redis_lacks_one, "account carol in Redis"),
    "a row in Redis is of nobody": (_redis_has_one_more, "account eve in Redis"),
    "Redis stays behind": (_redis_behind, "in Redis stands at"),
    "a committed offset is moved": (_offset_moved, "the engines' committed offset is"),
    "a pool was given more": (_last_journal_gives_more, "the accounts of shard"),
    "an account was told of less": (
        replaced(ALERTS, b'"insurance_fee":"0.9072"', b'"insurance_fee":"0.9"'),
        "the journals gave it 5.4432 USDC of fees, accounts have been told of 5.436",
    ),
    "a transfer never came to its shard": (_transfer_not_routed, "transfers that came to the shards"),
    "a trade has one side": (_one_side_of_a_trade, "bought and sold differ by 0.001"),
}


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES)
def test_what_is_changed_is_named(deployment: Deployment, change: Change, named: str) -> None:
    change(deployment)
    differences = deployment.differences()
    assert any(named in difference for difference in differences), differences


def test_a_table_may_hold_whatever_the_changelog_held_while_it_was_read(deployment: Deployment) -> None:
    tables, shard = deployment.tables, shard_of("alice", SHARDS)
    stood = tables.table_meta(shard)
    before = dict(tables.accounts(shard))["alice"]
    deployment.market.deposit("alice", "1")
    deployment.market.cycle()
    tables.changed["alice"] = before
    assert "account alice in Redis" in str(deployment.differences()), "the table stands after the deposit"
    tables.first_looks[shard] = stood
    assert deployment.differences() == [], "the table moved past the deposit while it was read"
    tables.first_looks[shard] = stood
    tables.changed["alice"] = b"{}"
    assert "account alice in Redis" in str(deployment.differences()), "it never was that"


def test_a_table_that_is_being_built_is_named(deployment: Deployment) -> None:
    deployment.tables.building = True
    assert any("it is being built" in difference for difference in deployment.differences())


def test_money_is_not_added_up_over_events_that_are_gone(deployment: Deployment) -> None:
    deployment.market.partition(EVENTS).delete_before(1)
    findings = deployment.verify()
    assert findings.differences == []
    assert any("does not begin at offset 0" in note for note in findings.notes)


def test_an_event_that_could_not_be_applied_is_no_money(deployment: Deployment) -> None:
    market = deployment.market
    market.fill("alice", "0.5", "0.12345", shard=shard_of("alice", SHARDS))
    market.settle()
    assert any(b"suspended" in value(alert) for alert in deployment.market.records(ALERTS))
    assert [d for d in deployment.differences() if "the accounts of shard" in d] == []


def test_money_in_the_dead_letters_counts_once_whatever_else_is_there(deployment: Deployment) -> None:
    market = deployment.market
    market.fill("alice", "0.5", "1" * 30, shard=shard_of("alice", SHARDS))
    market.settle()
    (letter,) = market.dead_letters(EVENTS)
    market.cluster.append("margin.events.v1.dlq", letter.key, letter.value, headers=letter.headers)
    for name, text in (("dlq.offset", b"one"), ("dlq.offset", b"\xff"), ("dlq.partition", b""), ("dlq.topic", b"")):
        about = dict(letter.headers or ()) | {name: text}
        market.cluster.append("margin.events.v1.dlq", letter.key, letter.value, headers=list(about.items()))
    market.cluster.append("margin.events.v1.dlq", None, None)
    assert [d for d in deployment.differences() if "the accounts of shard" in d] == []


def test_repairs_are_added_up_once_and_are_no_difference(deployment: Deployment) -> None:
    market, shard = deployment.market, shard_of("alice", SHARDS)
    market.router_progress()
    before = market.row("alice").groups[0].positions[0].quantity
    market.fee = "0"
    market.fill("alice", "9" * 15, "9" * 15, shard=shard)
    market.suspend("alice", 7, shard)
    for _ in range(2):
        market.repair("alice", 7, "0.5", shard=shard)
    columns = TransferColumns(
        account=["alice"],
        margin=["cross"],
        asset=["USDC"],
        amount=["3"],
        sequence=[market.sequence + 1],
        transfer_id=["t"],
        source=[0],
        source_offset=[0],
    )
    source = SourceRange(topic=TRANSFERS, topic_id="1", partition=0, first=0, next=1)
    market.events(EventFrame(time=market.now_us, repaired=True, transfers=columns, sources=[source]), shard=shard)
    market.deposit("alice", "3")
    market.settle()
    letters = [dict(letter.headers or ())["dlq.error"] for letter in market.dead_letters(EVENTS)]
    assert letters == [b"InputError", b"RepairError", b"RepairError"]
    findings = deployment.verify()
    assert [d.what for d in findings.differences if "the accounts of shard" in d.what] == []
    assert [d.what for d in findings.differences if "fees that came" in d.what] == []
    row = deployment.market.row("alice")
    assert (row.unapplied, len(row.owed)) == (1, 1)
    assert Decimal(row.groups[0].positions[0].quantity) == Decimal(before) + Decimal("0.5")


def test_what_liquidation_does_not_reach_fails_and_is_no_difference(deployment: Deployment) -> None:
    market = deployment.market
    market.deposit("dave", "-100")
    market.transfer("carol", "5", asset="NOPE", shard=shard_of("carol", SHARDS))
    market.fill("bob", "1", "10000.05", shard=shard_of("bob", SHARDS))
    market.settle()
    findings = deployment.verify()
    assert [d for d in findings.differences if "the accounts of shard" in d.what] == []
    assert not findings.passed
    said = "\n".join(findings.unreached)
    for part in (
        "margin groups that owe more than they hold and have nothing left that can be sold: 1; cover",
        "suspended accounts, of which nothing is liquidated: 1; ",
        "transfers that wait for parameters that admit them: 1; publish",
        "fills that wait for parameters that admit them: 1; publish",
    ):
        assert part in said
    assert findings.as_json()["unreached"] == findings.unreached


@pytest.mark.parametrize(("lost", "said"), [(False, "go on at 3, beyond what it has had"), (True, "3 records of")])
def test_what_a_shard_was_not_told_fails_and_is_no_difference(deployment: Deployment, lost: bool, said: str) -> None:
    market = deployment.market
    market.router_progress()
    market.input_gap(lost=lost)
    market.settle()
    findings = deployment.verify()
    assert findings.differences == []
    assert not findings.passed
    assert sum(said in sentence for sentence in findings.unreached) == SHARDS
    market.input_again()
    market.settle()
    assert deployment.verify().passed is not lost, "what is lost does not come"


def test_a_journal_that_counts_otherwise_than_the_rows_is_named(deployment: Deployment) -> None:
    deployment.market.deposit("dave", "-100")
    deployment.market.settle()
    shard = shard_of("dave", SHARDS)
    record = deployment.market.records(JOURNAL, shard)[-1]
    alter(record, b'"insolvent":1', b'"insolvent":2')
    (named,) = [text for text in deployment.differences() if "out of reach" in text]
    assert "{'insolvent': 2} out of reach, the rows {'insolvent': 1}" in named


def test_transfers_count_once_in_whatever_order_and_partition_they_come(deployment: Deployment) -> None:
    market = deployment.market
    market.deposit("alice", "10")
    first = deployment.first(TRANSFERS, f'"t{market.sequence}"'.encode()).value
    market.sequence -= 2
    market.deposit("alice", "20")
    market.transfer("alice", "10", sequence=market.sequence + 1, shard=shard_of("alice", SHARDS))
    market.cluster.append(TRANSFERS, None, first, 0)
    market.cluster.append(TRANSFERS, None, first, 1)
    market.settle()
    findings = deployment.verify()
    assert findings.differences == []
    assert any("transfers 101600.5 less" in fact for fact in findings.facts)


def test_parameters_that_name_no_instrument_are_noted(deployment: Deployment) -> None:
    drop(deployment.first(PARAMETERS, b'"instrument"'))
    assert any("names no instrument" in note for note in deployment.verify().notes)


def _refused(deployment: Deployment, topic: str, offset: int, *, told: bool = True, error: str = "DecodeError") -> None:
    about = headers.dead_letter(topic, 0, offset, 5, error, "the record has no value")
    letter = about + headers.told(["alice"], all_told=told)
    deployment.market.cluster.append(f"{topic}.dlq", b"k", None, headers=letter)


def test_dead_letters_are_counted_and_are_no_difference(deployment: Deployment) -> None:
    for offset in (4, 5, 5):
        _refused(deployment, TRADES, offset)
    _refused(deployment, PRICES, 1)
    deployment.market.cluster.append("risk.parameters.v1.dlq", None, b"not ours")
    findings = deployment.verify()
    assert findings.passed
    facts = "\n".join(findings.facts)
    assert "trades.v1.dlq: 2 dead letters, all that are there; 1 repeats left out" in facts
    assert "  DecodeError: the record has no value (2), offsets 0 to 1, 1 accounts told" in facts
    assert "  DecodeError: the record has no value (1), offsets 0 to 0\n" in facts
    assert "  no dlq.error (1), offsets 0 to 0" in facts
    assert "no dead letters in collateral.transfers.v1.dlq, liquidation.reports.v1.dlq, margin.events.v1.dlq" in facts
    assert [counts["count"] for counts in findings.as_json()["letters"]] == [2, 0, 1, 1, 0, 0, 0, 0]


def test_letters_that_concern_somebody_unknown_are_told_once(deployment: Deployment) -> None:
    for offset in (4, 4, 6):
        _refused(deployment, TRADES, offset, told=False)
    findings = deployment.verify()
    assert findings.passed
    assert "2 records of trades.v1.dlq concern somebody who could not be read from them" in findings.facts


def test_a_frame_that_is_none_is_a_difference_once(deployment: Deployment) -> None:
    for offset in (4, 4):
        _refused(deployment, EVENTS, offset)
    _refused(deployment, EVENTS, 5, error="InputError")
    assert deployment.differences() == [
        "margin.events.v1.dlq[0]@0 a record of margin.events.v1 that is no frame (the record has no value): what it "
        "says is in no account"
    ]


class WithoutTopic:
    """A log that a topic is gone from."""

    def __init__(self, log: Log, topic: str) -> None:
        self._log, self._topic = log, topic
        self.partitions, self.read_range = log.partitions, log.read_range

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        if topic == self._topic:
            raise BrokerError(f"{topic}[{partition}]: no such topic")
        return self._log.watermarks(topic, partition)


def test_dead_letters_that_cannot_be_looked_at_are_not_passed(deployment: Deployment) -> None:
    tables, groups = deployment.tables, deployment.groups

    def verified(log: Log) -> Findings:
        return verify(WithoutTopic(log, "oracle.prices.v1.dlq"), tables, groups, [], tables_timeout_s=0)

    (difference,) = deployment.market.audit(verified).differences
    assert difference.topic == "oracle.prices.v1.dlq"
    assert "could not be looked at to the end: oracle.prices.v1.dlq[0]: no such topic" in difference.what


@given(st.lists(STEPS, min_size=10, max_size=60))
@configure(max_examples=examples(30), deadline=None)
def test_whatever_an_engine_did_passes(steps: list[Step]) -> None:
    with played(steps) as script:
        script.cluster.append(TRANSFERS, b"alice", b"not routed yet")
        groups = Groups(script, router_behind=1)
        findings = script.audit(lambda log: verify(log, ChangelogTables(script), groups, [], tables_timeout_s=0))
        garbage = [letter for letter in script.dead_letters(EVENTS) if is_untold(EVENTS, letter.headers)]
        assert [d.offset for d in findings.differences if "is no frame" in d.what] == [r.offset for r in garbage]
        assert len(findings.differences) == len(garbage)
        assert findings.counts["accounts"] >= 2


def test_redis_says_where_accounts_are_as_kafka_does_soon_after_it_has_changed() -> None:
    moving = ShardLayout(shards=2, time=1, version=3, target=3, step=1, used=3, founded=2)
    old, new = Layout(2, 2, 2, ACCOUNTS, "c"), Layout(2, 3, 3, ACCOUNTS, "c")
    looks = iter([old, new])
    assert layout_faults(lambda: next(looks), lambda: moving, "c") == []
    (fault,) = layout_faults(lambda: old, lambda: moving, "c", patience_s=0)
    assert fault == f"Redis says where accounts are by {old}; it must be {new}"
