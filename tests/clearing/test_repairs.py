"""Repaired events: each is applied once, and only in the place of one that its account lacks."""

import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st

from schemas.codec import Decoder
from schemas.messages import EventFrame, FillColumns, SourceRange, Suspension, TransferColumns
from schemas.topics import TRADES, TRANSFERS
from streams.clearing.shard import Output
from streams.clearing.unapplied import PLACES_MAX, Unapplied
from tests.clearing.test_held_back import Recorder
from tests.clearing.test_shard import kinds
from tests.properties import examples

ID = "KafkaTopicId-1"
FRAME = Decoder[EventFrame](EventFrame)


@pytest.fixture
def driver() -> Recorder:
    driver = Recorder()
    driver.mark("100")
    driver.transfer("a", "1000")
    return driver


def source(offset: int, topic: str = TRADES, topic_id: str = ID, next_offset: int | None = None) -> SourceRange:
    following = offset + 1 if next_offset is None else next_offset
    return SourceRange(topic=topic, topic_id=topic_id, partition=0, first=offset, next=following)


def fills(*rows: tuple[int, str], order_id: str = "o", symbol: str = "BTC-PERP", account: str = "a") -> FillColumns:
    """Fills of ``account`` as (offset of the trade, quantity) from the source of a frame that is there alone."""
    count = len(rows)
    return FillColumns(
        account=[account] * count,
        margin=["cross"] * count,
        symbol=[symbol] * count,
        quantity=[quantity for _, quantity in rows],
        price=["100"] * count,
        fee=["0"] * count,
        order_id=[order_id] * count,
        trade_id=[offset for offset, _ in rows],
        source=[0] * count,
        source_offset=[offset for offset, _ in rows],
    )


def transfers(offset: int, amount: str, sequence: int, asset: str = "USDC") -> TransferColumns:
    return TransferColumns(
        account=["a"],
        margin=["cross"],
        asset=[asset],
        amount=[amount],
        sequence=[sequence],
        transfer_id=[f"t{sequence}"],
        source=[0],
        source_offset=[offset],
    )


def refuse(driver: Recorder, offset: int, *, topic_id: str = ID) -> Output:
    """A trade of which the account's fill cannot be applied."""
    return driver.frame(sources=[source(offset, topic_id=topic_id)], fills=fills((offset, "1"), symbol=""))


def repair(driver: Recorder, offset: int, quantity: str = "1", *, topic_id: str = ID, account: str = "a") -> Output:
    return driver.frame(
        repaired=True, sources=[source(offset, topic_id=topic_id)], fills=fills((offset, quantity), account=account)
    )


def refuse_record(driver: Recorder, offset: int, topic: str = TRADES) -> Output:
    """A record that no router could read."""
    suspension = Suspension(account="a", topic=topic, partition=0, offset=offset, reason="`fee` is 5E-8")
    return driver.frame(sources=[source(offset, topic)], suspensions=[suspension])


def held(driver: Recorder) -> int:
    groups = driver.row().groups
    return sum(int(position.quantity) for group in groups for position in group.positions)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_repair_that_is_sent_twice_is_applied_once(driver: Recorder, restarted: bool) -> None:
    (letter,) = refuse(driver, 5).unapplied
    assert driver.row().owed.keys() == {f"{TRADES}:0:{ID}@5"}
    assert FRAME(letter.frame).sources == [source(5)], "a letter says which record it is of"
    assert "resumed" in kinds(repair(driver, 5))
    if restarted:
        driver.restart()
        driver.mark("100")
    output = repair(driver, 5)
    assert (kinds(output), held(driver)) == (["repair_refused"], 1)
    assert [FRAME(letter.frame).fills.quantity for letter in output.unapplied] == [["1"]], "nothing is lost"
    assert (driver.row().unapplied, driver.row().owed, driver.row().status) == (0, {}, "normal")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"offset": 6}, "another record"),
        ({"offset": 5, "topic_id": "made-anew"}, "a topic of the same name"),
        ({"offset": 5, "account": "b"}, "another account"),
    ],
)
def test_a_repair_of_what_is_not_owed_moves_nothing(driver: Recorder, wrong: dict[str, object], why: str) -> None:
    refuse(driver, 5)
    output = repair(driver, **wrong)  # type: ignore[arg-type]
    assert (kinds(output), len(output.unapplied), held(driver)) == (["repair_refused"], 1, 0), why
    assert (driver.row().unapplied, driver.row().status) == (1, "suspended")
    if wrong.get("account") == "b":
        assert driver.row("b").groups == ()


def test_a_repair_that_does_not_say_its_record_is_refused_where_it_is_known_what_is_owed(driver: Recorder) -> None:
    refuse(driver, 5)
    columns = fills((5, "1"))
    columns.source, columns.source_offset = [], []
    assert kinds(driver.frame(repaired=True, fills=columns)) == ["repair_refused"]
    assert held(driver) == 0


@pytest.mark.parametrize("said", [ID, ""])
def test_whoever_repairs_need_not_know_the_id_of_the_topic(driver: Recorder, said: str) -> None:
    refuse(driver, 5, topic_id="" if said else ID)
    repair(driver, 5, topic_id=said)
    assert (held(driver), driver.row().owed) == (1, {})


def test_a_refused_repair_of_a_transfer_does_not_use_up_its_sequence(driver: Recorder) -> None:
    driver.frame(repaired=True, sources=[source(3, TRANSFERS)], transfers=transfers(3, "7", 40))
    assert driver.balances() == {"USDC": "1000"}
    driver.frame(sources=[source(0, TRANSFERS, next_offset=4)], transfers=transfers(3, "7", 40))
    assert driver.balances() == {"USDC": "1007"}


def test_a_repair_that_cannot_be_applied_leaves_what_is_owed(driver: Recorder) -> None:
    refuse(driver, 5)
    again = driver.frame(repaired=True, sources=[source(5)], fills=fills((5, "1"), order_id="", symbol="DOGE-PERP"))
    assert (len(again.unapplied), driver.row().unapplied) == (1, 1)
    assert "resumed" in kinds(repair(driver, 5))
    assert (held(driver), driver.row().unapplied) == (1, 0)


# --- records that could not be read ----------------------------------------------------------------------------------


def test_a_trade_that_could_not_be_read_is_repaired_with_all_that_the_account_has_in_it(driver: Recorder) -> None:
    refuse_record(driver, 8)
    output = driver.frame(repaired=True, sources=[source(8)], fills=fills((8, "3"), (8, "-1")))
    assert (kinds(output), held(driver), driver.row().owed) == (["resumed"], 2, {})
    output = driver.frame(repaired=True, sources=[source(8)], fills=fills((8, "3"), (8, "-1")))
    assert (kinds(output), held(driver)) == (["repair_refused"] * 2, 2)


def test_a_trade_has_two_sides_at_most(driver: Recorder) -> None:
    refuse_record(driver, 8)
    output = driver.frame(repaired=True, sources=[source(8)], fills=fills((8, "3"), (8, "-1"), (8, "5")))
    assert (sorted(kinds(output)), held(driver)) == (["repair_refused", "resumed"], 2)


def test_of_a_repaired_trade_the_side_that_cannot_be_applied_stays_owed(driver: Recorder) -> None:
    refuse_record(driver, 8)
    columns = fills((8, "3"), (8, "-1"))
    columns.order_id[1] = columns.symbol[1] = ""
    driver.frame(repaired=True, sources=[source(8)], fills=columns)
    assert (held(driver), driver.row().unapplied, driver.row().status) == (3, 1, "suspended")
    assert kinds(repair(driver, 8, "-1")) == ["resumed"]
    assert (held(driver), driver.row().unapplied) == (2, 0)


def test_a_transfer_that_could_not_be_read_is_repaired(driver: Recorder) -> None:
    refuse_record(driver, 2, TRANSFERS)
    for wanted in ("993", "993"):
        driver.frame(repaired=True, sources=[source(2, TRANSFERS)], transfers=transfers(2, "-7", 9))
        assert driver.balances() == {"USDC": wanted}


# --- what waits for parameters ---------------------------------------------------------------------------------------


def test_a_repair_takes_the_place_of_what_waits_and_the_letter_of_that_is_worth_nothing(driver: Recorder) -> None:
    driver.frame(sources=[source(0, TRANSFERS)], transfers=transfers(0, "-50", 7, asset="EURO"))
    (parked,) = driver.row().parked
    assert parked.place == f"{TRANSFERS}:0:{ID}@0"
    output = driver.frame(repaired=True, sources=[source(0, TRANSFERS)], transfers=transfers(0, "-50", 8))
    (letter,) = output.unapplied
    assert (driver.balances(), driver.row().parked, driver.row().owed) == ({"USDC": "950"}, (), {})
    replayed = FRAME(letter.frame)
    assert replayed.sources == [source(0, TRANSFERS)]
    driver.frame(repaired=True, sources=replayed.sources, transfers=replayed.transfers)
    assert (driver.balances(), driver.row().parked, driver.row().unapplied) == ({"USDC": "950"}, (), 0)


def test_of_two_fills_of_a_trade_that_wait_each_is_repaired_once(driver: Recorder) -> None:
    driver.frame(sources=[source(4)], fills=fills((4, "3"), (4, "-1"), symbol="DOGE-PERP"))
    assert len(driver.row().waiting_fills) == 2
    for wanted in (3, 6, 6):
        driver.frame(repaired=True, sources=[source(4)], fills=fills((4, "3")))
        assert held(driver) == wanted
    assert (driver.row().waiting_fills, driver.row().unapplied, driver.row().status) == ((), 0, "normal")


# --- what is not known -----------------------------------------------------------------------------------------------


def test_what_earlier_versions_counted_without_its_record_is_repaired_as_often(driver: Recorder) -> None:
    refuse(driver, 5)
    driver.rows["a"] = driver.rows["a"].replace(f'"{TRADES}:0:{ID}@5":{{"events":1}}'.encode(), b"")
    driver.restart()
    driver.mark("100")
    assert (driver.row().unapplied, driver.row().owed) == (1, {})
    repair(driver, 77)
    assert "repair_refused" in kinds(repair(driver, 78))
    assert (held(driver), driver.row().owed) == (1, {})


def test_a_repair_that_is_sent_twice_does_not_settle_what_is_counted_without_its_record(driver: Recorder) -> None:
    columns = fills((5, "1"), symbol="")
    columns.source, columns.source_offset = [], []
    driver.frame(fills=columns)
    refuse(driver, 5)
    for sent in range(4):
        repair(driver, 5)
        assert held(driver) == 1, sent
    repair(driver, 6)
    repair(driver, 6)
    assert (held(driver), driver.row().unapplied, driver.row().owed) == (2, 0, {})


def test_records_beyond_those_that_are_remembered_are_counted() -> None:
    owed = Unapplied()
    for offset in range(PLACES_MAX + 2):
        owed.add(f"{TRADES}:0:{ID}@{offset}")
    assert (owed.events, len(owed.by_place)) == (PLACES_MAX + 2, PLACES_MAX)
    for _ in range(2):
        assert owed.owes(f"{TRADES}:0:{ID}@{PLACES_MAX}")
        owed.settle(f"{TRADES}:0:{ID}@{PLACES_MAX}", credit=False)
    assert not owed.owes(f"{TRADES}:0:{ID}@{PLACES_MAX}")
    assert owed.owes(f"{TRADES}:0:{ID}@0")


@given(st.lists(st.tuples(st.sampled_from(["refuse", "record", "repair", "repair", "restart"]), st.integers(0, 4))))
@configure(max_examples=examples(150), deadline=None)
def test_whatever_is_sent_how_often_each_event_is_applied_once(steps: list[tuple[str, int]]) -> None:
    driver = Recorder()
    driver.mark("100")
    driver.transfer("a", "1000")
    come, owed, repaired = 0, set[int](), set[int]()
    offsets: dict[int, int] = {}
    for kind, number in steps:
        if kind == "restart":
            driver.restart()
            driver.mark("100")
        elif kind == "repair":
            offset = offsets.get(number, 100 + number)
            repair(driver, offset, str(2**number))
            if offset in owed:
                owed.remove(offset)
                repaired.add(number)
        elif number not in offsets:
            offsets[number], come = come, come + 1
            (refuse if kind == "refuse" else refuse_record)(driver, offsets[number])
            owed.add(offsets[number])
    assert held(driver) == sum(2**number for number in repaired)
    assert driver.row().unapplied == len(owed)
    assert (driver.row().status == "suspended") == bool(owed)
