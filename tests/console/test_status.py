"""What ``margin-clearing status`` says is wrong: each fault of a deployment in one sentence, nothing of a sound one."""

import io
import json
from dataclasses import replace
from typing import Any, cast

import msgspec
import pytest
from rich.console import Console

from schemas.messages import JournalRecord, LogGap, Range, ShardLayout, ShardSuspension
from schemas.topics import ACCOUNTS, EVENTS, JOURNAL, MARKS, PRICES, TRADES
from streams.broker.admin import ConsumerGroup, GroupMember
from streams.broker.dead_letters import UntoldLetters
from streams.broker.letter_counts import LETTER_TOPICS, OTHER, LetterClass, LetterCounts
from streams.broker.reader import LogReader
from streams.console import status as status_module
from streams.console.judgement import advise, judge
from streams.console.show import show_status
from streams.console.status import Lag, Load, MarksStatus, Moving, ShardStatus, Status, load_of, moving_of
from streams.errors import UnreadableError
from streams.settings import Settings
from streams.tables.reader import TableMeta

SETTINGS = Settings()


def group(name: str, *members: tuple[str, tuple[tuple[str, int], ...]], state: str = "STABLE") -> ConsumerGroup:
    return ConsumerGroup(name, state, tuple(GroupMember(who, "host", owned) for who, owned in members), {})


def shard(number: int, worker: str | None = "a", **fields: Any) -> ShardStatus:
    healthy = ShardStatus(
        shard=number,
        member=f"margin-engine-{worker}",
        worker=worker,
        claim=10,
        sequence=99,
        journal_age_ms=3_000,
        journal_unread=0,
        unreached={},
        unreached_notional={},
        not_live=(),
        not_adopted=None,
        lag=Lag(EVENTS, number, 100, 101, 0),
        table=TableMeta(token=10, stamp=500, building=False, updated_at_ms=0, reach=500),
        table_behind=0,
        table_age_ms=2_000,
    )
    return replace(healthy, **fields)


MARKS_SOUND = MarksStatus(age_ms=200, epoch=17, live=3, stale=(), halted=())
SOUND = Status(
    engines=group("margin-engine", ("margin-engine-a", ((EVENTS, 0),)), ("margin-engine-b", ((EVENTS, 1),))),
    routers=group("margin-router", ("margin-router-a", ((TRADES, 0),))),
    oracles=group("margin-oracle-leader", ("margin-oracle-a", ((MARKS, 0),)), ("margin-oracle-b", ())),
    shards=(shard(0), shard(1, "b")),
    inputs=(Lag(TRADES, 0, 7, 8, 0),),
    marks=MARKS_SOUND,
    refused_parameters={},
    redis_problem=None,
)


FEW = LetterCounts(
    TRADES,
    low=0,
    first=0,
    end=30,
    count=14,
    repeats=3,
    classes=(
        LetterClass("DecodeError", "Object missing required field `price`", 12, 3, 17, 4, 0),
        LetterClass(OTHER, "", 2, 2, 29, 1, 0),
    ),
)
MANY = replace(FEW, low=5_000, first=20_000, end=30_000)
NONE = tuple(LetterCounts(topic, 0, 0, 0) for topic in LETTER_TOPICS)


def with_letters(counts: LetterCounts) -> Status:
    """A sound deployment with dead letters of one topic."""
    return replace(SOUND, letters=tuple(counts if each.topic == counts.topic else each for each in NONE))


def with_shard(**fields: Any) -> Status:
    return replace(SOUND, shards=(replace(SOUND.shards[0], **fields), SOUND.shards[1]))


def test_a_sound_deployment_has_no_faults() -> None:
    assert judge(SOUND, SETTINGS) == []
    quiet = replace(MARKS_SOUND, uncounted={"X": {"a": "silent", "b": "apart", "c": "never", "d": "unsure"}})
    assert judge(replace(SOUND, marks=quiet), SETTINGS) == []


@pytest.mark.parametrize(
    ("place", "unknown"),
    [
        (f"{MARKS}[0]", {"marks": None}),
        (f"{JOURNAL}[1]", {"shards": (shard(0), shard(1, worker=None, claim=None, sequence=None))}),
    ],
)
def test_of_what_cannot_be_read_nothing_is_said_but_that(place: str, unknown: dict[str, Any]) -> None:
    """As if there were no marks, or a shard had never been taken: that would be false."""
    why = f"{place} cannot be read at offset 7: damaged"
    said = judge(replace(SOUND, unreadable={place: why}, **unknown), SETTINGS)
    assert said == [f"{why}: see who wrote it; until it can be read nobody knows what is behind it."]


def test_what_a_shard_lacks_is_not_asked_of_a_journal_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: Any) -> Any:
        raise UnreadableError(ACCOUNTS, 2, 7, "damaged")

    told = status_module._Unreadable()
    monkeypatch.setattr(status_module, "gaps_of", unreadable)
    told.places[f"{JOURNAL}[1]"] = "it cannot be read"
    assert status_module._gaps(cast(LogReader, None), 1, None, {}, told) == {}
    assert list(told.places) == [f"{JOURNAL}[1]"]
    assert status_module._gaps(cast(LogReader, None), 2, None, {}, told) == {}
    assert told.places[f"{ACCOUNTS}[2]"] == f"{ACCOUNTS}[2] cannot be read at offset 7: damaged"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (replace(SOUND, engines=group("margin-engine")), "No engine is in the group margin-engine: start"),
        (replace(SOUND, routers=group("margin-router", state="DEAD")), "No router is in the group"),
        (replace(SOUND, oracles=group("margin-oracle-leader")), "No oracle is in the group"),
        (replace(SOUND, engines=replace(SOUND.engines, state="PREPARING_REBALANCE")), "not settled"),
        (
            replace(SOUND, engines=group("margin-engine", ("margin-engine-a", ((EVENTS, 0),)))),
            f"{EVENTS}[1] is assigned to no engine",
        ),
        (
            with_shard(unreached={"insolvent": 2}, unreached_notional={"insolvent": "41.5"}),
            "owe more than they hold and have nothing left that can be sold: 2 (41.5 at stake); cover what they owe",
        ),
        (with_shard(unreached={"suspended": 1}), "suspended accounts, of which nothing is liquidated: 1; their"),
        (with_shard(unreached={"undecided": 3}), "wait for marks that are not live: 3; bring the sources"),
        (with_shard(unreached={"unsellable": 3}), "hold nothing that can be sold: 3; call for collateral"),
        (with_shard(unreached={"parked": 7}), "transfers that wait for parameters that admit them: 7; publish"),
        (with_shard(unreached={"waiting": 7}), "fills that wait for parameters that admit them: 7; publish"),
        (with_shard(unreached={"unapplied": 7}), "events that could not be applied: 7; repair them"),
        (with_shard(not_live=("ETH-PERP",)), "Shard 0 waits for live marks of ETH-PERP"),
        (replace(SOUND, marks=None), "No full mark frame was ever published"),
        (replace(SOUND, marks=replace(MARKS_SOUND, age_ms=7_000)), "is 7.0 s old (at most 5.0 s)"),
        (replace(SOUND, marks=replace(MARKS_SOUND, live=0)), "There are no marks"),
        (replace(SOUND, marks=replace(MARKS_SOUND, stale=("BTC-PERP",))), "Stale: BTC-PERP"),
        (
            replace(SOUND, marks=replace(MARKS_SOUND, stale=("X",), uncounted={"X": {"b": "silent", "a": "unsure"}})),
            "Stale: X (a: unsure, b: silent).",
        ),
        (replace(SOUND, marks=replace(MARKS_SOUND, halted=("ETH-PERP",))), "Halted: ETH-PERP"),
        (
            replace(SOUND, marks=replace(MARKS_SOUND, uncounted={"X": {"a": "late", "b": "silent"}})),
            "1 price sources are not heard (a of X): their prices were published more than max_age_ms before",
        ),
        (replace(SOUND, marks=replace(MARKS_SOUND, uncounted={"X": {"a": "from_the_future"}})), "check their clocks"),
        (replace(SOUND, marks=replace(MARKS_SOUND, uncounted={"X": {"a": "repeated"}})), "sequence does not rise"),
        (
            replace(SOUND, refused_parameters={"policy:default": "offset 7: margin_call_levels must be above 1"}),
            "'policy:default' in risk.parameters.v1 is refused (offset 7: margin_call_levels must be above 1)",
        ),
        (replace(SOUND, inputs=(Lag(TRADES, 0, 0, 200_000, 200_000),)), "200,000 records wait to be routed"),
        (with_shard(worker=None, claim=None, table=None), "Shard 0 was never taken"),
        (with_shard(worker="gone"), "journal was last written by gone: it is being taken"),
        (with_shard(journal_age_ms=90_000), "Shard 0 has journaled nothing for 90.0 s"),
        (with_shard(lag=Lag(EVENTS, 0, 0, 2_000, 1_001)), "Shard 0 is 1,001 frames behind (at most 1,000)"),
        (with_shard(not_adopted=7), "Shard 0 stays on the parameters before offset 7"),
        (replace(SOUND, redis_problem="Redis does not answer: refused"), "Redis does not answer: refused. Clearing"),
        (
            with_shard(skewed={"events": 1_700_000_000_000_000}),
            "Shard 0: the clock of a router was off by more than the policy's clock_skew_ms_max, last seen at "
            "2023-11-14 22:13:20Z",
        ),
        (with_shard(skewed={"marks": 1_700_000_000_000_000}), "Shard 0: the clock of the oracle was off"),
        (
            with_letters(replace(FEW, untold=UntoldLetters(TRADES, 2, 90, 4, 88, "the record has no value"))),
            "2 of the last 90 records of trades.v1.dlq (offsets 4 to 88) concern somebody who could not be read",
        ),
        (
            with_letters(LetterCounts(PRICES, 0, 0, 0, problem="oracle.prices.v1.dlq[0]: no such topic")),
            "oracle.prices.v1.dlq could not be looked at to its end (oracle.prices.v1.dlq[0]: no such topic)",
        ),
        (with_shard(table=None), "The table of shard 0 is missing in Redis"),
        (with_shard(table=TableMeta(10, 5, True, 0, 5), table_behind=495), "is being built, 495 rows are left"),
        (with_shard(table_age_ms=60_000, table_behind=12), "last written or confirmed 60.0 s ago"),
        (with_shard(table=TableMeta(11, 500, False, 0, 500)), "held by claim 11, newer than the journal's 10"),
    ],
)
def test_each_fault_is_said_in_one_sentence_that_names_it(status: Status, said: str) -> None:
    (fault,) = judge(status, SETTINGS)
    assert said in fault
    assert fault.endswith(".")


def test_it_is_shown_with_every_shard_and_every_fault() -> None:
    console = Console(width=200, record=True, file=None, quiet=False)
    status = with_shard(worker="gone")
    with console.capture() as shown:
        show_status(console, status, judge(status, SETTINGS))
    text = shown.get()
    assert "margin-engine-a (1), margin-engine-b (1)" in text
    assert "3 live, 0 stale, 0 halted, last full frame 0.2 s ago, epoch 17" in text
    assert "gone" in text
    assert "wrong" in text
    with console.capture() as shown:
        show_status(console, SOUND, [])
    assert "all is as it should be" in shown.get()


def shown(status: Status) -> str:
    console = Console(width=80)
    with console.capture() as text:
        show_status(console, status, judge(status, SETTINGS), advise(status, SETTINGS))
    return text.get()


@pytest.mark.parametrize("counts", [FEW, MANY])
def test_dead_letters_are_no_fault_and_are_told_with_how_to_look_at_them(counts: LetterCounts) -> None:
    status = with_letters(counts)
    assert judge(status, SETTINGS) == []
    text = shown(status)
    assert "  DecodeError: Object missing required field `price` (12), offsets 3 to 17, 4 accounts told\n" in text
    assert "  other (2), offsets 2 to 29, 1 accounts told\n" in text
    assert "no dead letters in collateral.transfers.v1.dlq, oracle.prices.v1.dlq, risk.parameters.v1.dlq" in text
    (advice, *more) = advise(status, SETTINGS)
    assert "--bootstrap-server localhost:9092 --topic trades.v1.dlq --partition 0 --offset 2 " in advice
    assert advice in text
    assert len(more) == (counts is MANY)


def test_nothing_is_called_well_that_was_not_looked_at() -> None:
    text = shown(with_letters(FEW))
    assert "trades.v1.dlq: 14 dead letters, all that are there; 3 repeats left out\n" in text
    assert text.endswith("all is as it should be\n")
    text = shown(with_letters(MANY))
    assert "14 dead letters at the last 10,000 offsets; the 15,000 offsets before them were not looked at" in text
    assert "trades.v1.dlq: `margin-clearing verify` counts those that were not looked at, too." in text
    assert text.endswith("all that was looked at is as it should be; not all of trades.v1.dlq was\n")


def test_what_is_in_a_letter_does_not_change_how_it_is_shown() -> None:
    odd = replace(FEW, classes=(LetterClass("[red]", "[/bold] [link=x]", 1, 2, 2, 0, 0),))
    assert "  [red]: [/bold] [link=x] (1), offsets 2 to 2" in shown(with_letters(odd))


def test_its_json_is_plain() -> None:
    untold = UntoldLetters(TRADES, 2, 90, 4, 88, "the record has no value")
    plain = msgspec.json.decode(msgspec.json.encode(with_letters(replace(FEW, untold=untold)).as_json()))
    assert [letters["topic"] for letters in plain["letters"]] == list(LETTER_TOPICS)
    assert plain["letters"][0]["classes"][0]["count"] == 12
    assert [letters["count"] for letters in plain["untold"]] == [2]
    assert plain["shards"][1]["worker"] == "b"
    assert plain["marks"]["epoch"] == 17


def test_what_liquidation_does_not_reach_is_added_up_over_the_shards() -> None:
    shards = (
        shard(0, unreached={"insolvent": 2, "suspended": 1}, unreached_notional={"insolvent": "40.5"}),
        shard(1, "b", unreached={"insolvent": 1}, unreached_notional={"insolvent": "1"}),
    )
    console = Console(width=200, record=True)
    show_status(console, replace(SOUND, shards=shards), [])
    assert "out of reach: 3 insolvent (41.5 at stake), 1 suspended" in console.export_text()


def test_a_suspended_shard_is_said_with_what_to_do_until_it_is_lifted() -> None:
    suspension = ShardSuspension(number=2, since=1, reasons=("events were deleted",))
    (fault,) = judge(replace(SOUND, shards=(shard(0, suspension=suspension), shard(1, "b"))), SETTINGS)
    assert fault.startswith("Shard 0: every account is suspended, nobody is liquidated (events were deleted)")
    assert "margin-clearing resume --all --reason TEXT" in fault
    lifted = ShardSuspension(number=2, since=1, lifted="checked")
    assert judge(replace(SOUND, shards=(shard(0, suspension=lifted), shard(1, "b"))), SETTINGS) == []


def test_what_is_gone_is_said_before_an_engine_has_found_it() -> None:
    gaps = {EVENTS: LogGap(kind="deleted", first=5, next=9), ACCOUNTS: LogGap(kind="made_anew")}
    rows, events = judge(replace(SOUND, shards=(shard(0, gaps=gaps), shard(1, "b"))), SETTINGS)
    assert rows.startswith("Shard 0: margin.accounts.v1 is not what it was")
    assert "margin-clearing accept-offset margin.accounts.v1" in rows
    assert events.startswith(
        "Shard 0: the records 5 to 8 of margin.events.v1[0] were deleted before this shard had them"
    )


MOVING = Moving(shards=4, target=7, step=2, steps=6, age_ms=500)


def test_accounts_that_move_are_said_with_what_goes_on_with_it_and_what_they_wait_for() -> None:
    status = replace(SOUND, moving=MOVING, shards=(shard(0, departing=("Shard 0: they wait.",)), shard(1, "b")))
    assert "accounts are moving from 4 to 7 shards: step 2 of 6\n" in shown(status)
    advice, waits = advise(status, SETTINGS)
    assert "`margin-clearing rescale --shards 7 --yes` goes on with it" in advice
    assert waits == "Shard 0: they wait."
    assert judge(status, SETTINGS) == []


def test_a_step_that_stands_is_a_fault() -> None:
    status = replace(SOUND, moving=replace(MOVING, age_ms=SETTINGS.service.stands_ms + 1))
    (fault,) = judge(status, SETTINGS)
    assert "step 2 of 6 began" in fault
    assert advise(status, SETTINGS) == []


def test_how_far_a_change_is_counts_the_steps_in_which_anybody_moves() -> None:
    change = ShardLayout(shards=4, time=1_000_000, version=3, target=6, step=2, used=6, founded=4)
    assert moving_of(change, now_ms=1_500) == Moving(4, 6, 1, 2, 500)
    assert moving_of(ShardLayout(shards=4, time=1), now_ms=5) is None


def _journal(clock_ms: int, events: int, accounts: int, **fields: Any) -> JournalRecord:
    values: dict[str, Any] = {"kind": "commit", "shard": 0, "claim": 0, "sequence": 1, "previous": 0} | fields
    nothing = Range(first=0, next=0)
    return JournalRecord(
        events=Range(first=0, next=events), marks=nothing, parameters=nothing, clock=1000 * clock_ms,
        accounts=accounts, **values,
    )  # fmt: skip


def test_the_load_of_a_shard_is_what_its_last_commits_did() -> None:
    records = [
        _journal(1_000, 10, 99),
        _journal(1_500, 40, 20, commands=("a:1",)),
        _journal(2_000, 40, 0, kind="claim"),
        _journal(3_000, 110, 30, commands=("a:2",), command_count=400),
    ]
    load = load_of(records)
    assert load == Load(seconds=2.0, events=100, rows=50, commands=401)
    assert load.events_per_s == 50
    assert load_of(records[:1]) is None
    assert load_of([records[0], _journal(1_001, 900, 5)]) is None, "too close together to say"
    assert " 50 " in shown(replace(SOUND, shards=(shard(0, load=load), shard(1, "b"))))


def test_its_json_says_what_shards_do_and_what_suspends_them() -> None:
    suspension = ShardSuspension(number=2, since=1, reasons=("events were deleted",))
    first = shard(0, load=Load(2.0, 100, 50, 1), suspension=suspension)
    plain = json.loads(json.dumps(replace(SOUND, moving=MOVING, shards=(first, shard(1, "b"))).as_json()))
    assert plain["moving"] == {"shards": 4, "target": 7, "step": 2, "steps": 6, "age_ms": 500}
    assert plain["shards"][0]["load"]["events"] == 100
    assert plain["shards"][0]["suspension"]["reasons"] == ["events were deleted"]


def test_what_all_shards_have_given_to_a_pool_is_one_sum() -> None:
    shards = (
        shard(0, pools={"default": {"USDC": "5.4432", "USDT": "1"}}),
        shard(1, "b", pools={"alts": {"USDC": "2"}, "default": {"USDC": "0.000000000000000001"}}),
    )
    console = Console(width=200, record=True, file=io.StringIO())
    show_status(console, replace(SOUND, shards=shards), [])
    shown = console.export_text()
    assert "liquidation fees in pools: 2 USDC in alts, 5.443200000000000001 USDC in default, 1 USDT in default" in shown
    show_status(console, SOUND, [])
    assert "pools" not in console.export_text(), "nothing is said where nothing was given"
