"""What cannot be applied at once: transfers in any order, credits of assets to come, fills ahead of parameters."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st

from schemas.codec import Decoder, encode
from schemas.messages import AccountRow, EventFrame, FillColumns, Mark, MarkFrame, TransferColumns
from schemas.parameters import AssetParameters, InstrumentParameters, MarginTier, Parameter
from streams.clearing.account import PARKED_MAX, WAITING_FILLS_MAX
from streams.clearing.shard import Output, Shard
from streams.clearing.transfers import GAPS_MAX, TransferSequences
from streams.margin.limits import ISOLATED_ASSETS_MAX, ISOLATED_GROUPS_MAX, POSITIONS_MAX
from streams.margin.parameters import RiskParameters
from tests.clearing.test_shard import RULES, Driver, kinds
from tests.properties import examples

ROW = Decoder[AccountRow](AccountRow)
EUR = AssetParameters(asset="EUR", decimals=2)
DOGE = InstrumentParameters(
    symbol="DOGE-PERP",
    settle_asset="USDC",
    price_increment="0.1",
    quantity_increment="1",
    margin_tiers=(MarginTier(notional_floor="0", maintenance_rate="0.05", initial_rate="0.1"),),
)


def finer(price_increment: str = "0.01", quantity_increment: str = "0.001") -> InstrumentParameters:
    return InstrumentParameters(
        symbol="BTC-PERP",
        settle_asset="USDC",
        price_increment=price_increment,
        quantity_increment=quantity_increment,
        margin_tiers=(MarginTier(notional_floor="0", maintenance_rate="0.05", initial_rate="0.1"),),
        liquidation_fee="0.005",
        insurance_fee="0.001",
    )


class Recorder(Driver):
    """A driver that keeps every row, and can be restarted from them."""

    def __init__(self, rules: RiskParameters = RULES) -> None:
        super().__init__(rules)
        self.rules = rules
        self.rows: dict[str, bytes] = {}
        self.alerts: list[tuple[str, str]] = []

    def commit(self) -> Output:
        output = super().commit()
        for account, row in output.rows.items():
            if row is None:
                self.rows.pop(account, None)
            else:
                self.rows[account] = row
        self.alerts += [(alert.account, alert.kind) for alert in output.alerts]
        self.journal = output.journal
        return output

    def publish(self, *records: Parameter) -> Output:
        for record in records:
            self.rules = self.rules.with_record(record)
            self.shard.apply_parameters(self.shard.parameters_next, self.rules)
        self.shard.decide_touched(everything=True)
        return self.commit()

    def restart(self) -> None:
        """The shard is taken anew, from its rows and its last journal record."""
        self.shard = Shard(0, self.rules)
        self.shard.resume(self.journal)
        for account in sorted(self.rows):
            self.shard.restore(account, self.rows[account])

    def row(self, account: str = "a") -> AccountRow:
        return ROW(self.rows[account])

    def balances(self, account: str = "a", margin: str = "cross") -> dict[str, str]:
        return {group.margin: dict(group.balances) for group in self.row(account).groups}.get(margin, {})


@pytest.fixture
def driver() -> Recorder:
    return Recorder()


# --- transfers in any order ------------------------------------------------------------------------------------------


def test_a_transfer_that_was_overtaken_is_applied(driver: Recorder) -> None:
    driver.transfer("a", "1000", sequence=2)
    driver.transfer("a", "9000", sequence=1)
    assert driver.balances() == {"USDC": "10000"}
    driver.transfer("a", "9000", sequence=1)
    driver.transfer("a", "1000", sequence=2)
    assert driver.balances() == {"USDC": "10000"}


def test_the_first_transfer_of_an_account_leaves_all_before_it_open(driver: Recorder) -> None:
    driver.transfer("a", "1", sequence=7)
    assert [(gap.first, gap.next) for gap in driver.row().transfer_gaps] == [(0, 7)]
    for sequence in range(7):
        driver.transfer("a", "1", sequence=sequence)
    assert driver.row().transfer_gaps == ()


def test_a_row_of_an_earlier_version_has_had_every_transfer_up_to_its_last(driver: Recorder) -> None:
    driver.transfer("a", "10", sequence=5)
    old = msgspec.json.decode(driver.rows["a"])
    for name in ("transfer_gaps", "transfer_floor", "parked", "waiting_fills", "told_liquidatable"):
        del old[name]
    driver.rows["a"] = msgspec.json.encode(old)
    driver.restart()
    driver.transfer("a", "10", sequence=4)
    assert not driver.shard.accounts["a"].suspended
    assert driver.shard.portfolio.balances(driver.shard.accounts["a"].groups["cross"].row) == {"USDC": "10"}


sequences = st.permutations(list(range(12))).flatmap(
    lambda order: st.lists(st.sampled_from(order), max_size=12).map(lambda again: order + again)
)


@given(sequences, st.sets(st.integers(0, 23)))
@configure(max_examples=examples(60), deadline=None)
def test_any_order_and_any_repetition_gives_the_same_balances(order: list[int], restarts: set[int]) -> None:
    driver = Recorder()
    for step, sequence in enumerate(order):
        if step in restarts and driver.rows:
            driver.restart()
        driver.transfer("a", str(10**sequence // 7 + 1), sequence=sequence)
    assert driver.balances() == {"USDC": str(sum(10**sequence // 7 + 1 for sequence in range(12)))}
    assert driver.alerts == []


def test_so_many_gaps_are_remembered_and_below_them_nothing_is_known(driver: Recorder) -> None:
    last = 2 * GAPS_MAX + 2
    for sequence in range(2, last + 1, 2):
        driver.transfer("a", "1", sequence=sequence)
    row = driver.row()
    assert (len(row.transfer_gaps), row.transfer_floor) == (GAPS_MAX, 2)
    output = driver.transfer("a", "100", sequence=1)
    assert kinds(output) == ["credit_parked"]
    assert "which have come is known from 2 on" in (output.alerts[0].reason or "")
    assert [letter.account for letter in output.unapplied] == ["a"]
    assert driver.balances() == {"USDC": str(GAPS_MAX + 1)}
    driver.transfer("a", "1", sequence=3)
    assert driver.balances() == {"USDC": str(GAPS_MAX + 2)}
    assert not driver.shard.accounts["a"].suspended
    assert kinds(driver.transfer("a", "-1", sequence=0)) == ["suspended"], "a debit may make the account worse"


@given(st.lists(st.integers(0, 60), max_size=80), st.integers(0, 4))
def test_a_sequence_is_new_once_and_never_taken_for_a_repeat_if_it_is_not(order: list[int], gaps_max: int) -> None:
    counted, come = TransferSequences(), set[int]()
    for sequence in order:
        verdict = counted.count(sequence, gaps_max)
        assert (verdict == "repeat") <= (sequence in come)
        assert (verdict == "new") <= (sequence not in come)
        assert (verdict == "unknown") <= (sequence < counted.floor)
        if verdict == "new":
            come.add(sequence)
        assert len(counted.gaps) <= gaps_max
        kept = TransferSequences(counted.last, counted.floor, counted.gaps[:])
        assert (kept.last, kept.gaps) == (counted.last, counted.gaps)


# --- credits that wait -----------------------------------------------------------------------------------------------


def test_a_credit_of_an_unknown_asset_waits_and_its_account_goes_on(driver: Recorder) -> None:
    driver.long("a")
    output = driver.transfer("a", "500", asset="EUR")
    assert kinds(output) == ["credit_parked"]
    assert output.unapplied == []
    assert "EUR" in (output.alerts[0].reason or "")
    assert not driver.shard.accounts["a"].suspended
    assert output.journal.unreached == {"parked": 1}
    assert len(driver.mark("9450").commands) == 1, "the account is liquidated as ever"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_parked_credit_is_applied_when_its_asset_is_there(driver: Recorder, restarted: bool) -> None:
    driver.transfer("a", "500", asset="EUR")
    driver.transfer("a", "0.5", asset="EUR")
    if restarted:
        driver.restart()
    output = driver.publish(EUR)
    assert kinds(output) == ["credit_applied"] * 2
    assert driver.balances() == {"EUR": "500.5"}
    assert (driver.row().parked, output.journal.unreached) == ((), {})
    assert kinds(driver.publish(EUR)) == []


def test_a_parked_credit_that_comes_again_is_parked_once(driver: Recorder) -> None:
    for _ in range(2):
        driver.transfer("a", "500", asset="EUR", sequence=3)
    assert len(driver.row().parked) == 1


def test_a_debit_that_a_parked_credit_covers_waits_with_it(driver: Recorder) -> None:
    driver.transfer("a", "10", asset="EUR")
    output = driver.transfer("a", "-4", asset="EUR")
    assert kinds(output) == []
    account = driver.shard.accounts["a"]
    assert account.suspended is False
    output = driver.transfer("a", "-7", asset="EUR")
    assert kinds(output) == ["suspended"], "more than the credit"
    account = driver.shard.accounts["a"]
    assert account.suspended
    output = driver.transfer("a", "1", asset="EUR")
    assert kinds(output) == ["credit_parked", "resumed"], "covered again"
    driver.publish(EUR)
    assert driver.balances() == {}
    assert driver.row().parked == ()


def test_a_debit_that_cannot_be_applied_suspends_until_its_asset_is_there(driver: Recorder) -> None:
    driver.long("a")
    assert kinds(driver.transfer("a", "-10", asset="EUR")) == ["suspended"]
    driver.restart()
    assert driver.shard.accounts["a"].suspended
    assert kinds(driver.publish(EUR))[0] == "resumed"
    assert driver.balances()["EUR"] == "-10"


def test_a_credit_to_a_margin_group_that_can_not_be_waits(driver: Recorder) -> None:
    output = driver.transfer("a", "500", margin="DOGE-PERP")
    assert kinds(output) == ["credit_parked"]
    assert driver.row().groups == ()
    assert kinds(driver.publish(DOGE)) == ["credit_applied"]
    assert driver.balances(margin="DOGE-PERP") == {"USDC": "500"}


def test_a_debit_from_a_margin_group_that_can_not_be_suspends(driver: Recorder) -> None:
    assert kinds(driver.transfer("a", "-500", margin="DOGE-PERP")) == ["suspended"]


def test_a_credit_finer_than_its_asset_waits(driver: Recorder) -> None:
    driver.transfer("a", "5")
    assert kinds(driver.transfer("a", "0.0000001")) == ["credit_parked"]
    driver.publish(AssetParameters(asset="USDC", decimals=7))
    assert driver.balances() == {"USDC": "5.0000001"}


def test_credits_beyond_those_that_may_be_parked_wait_in_the_dead_letters_and_shield_nobody(driver: Recorder) -> None:
    for _ in range(PARKED_MAX):
        assert kinds(driver.transfer("a", "1", asset="EUR")) == ["credit_parked"]
    output = driver.transfer("a", "1", asset="EUR", sequence=1000)
    assert kinds(output) == ["credit_parked"]
    assert "in the dead letters" in (output.alerts[0].reason or "")
    assert len(output.unapplied) == 1
    row = driver.row()
    assert (row.status, row.unapplied, row.unapplied_credits) == ("normal", 0, 1)
    repaired = TransferColumns(
        account=["a"], margin=["cross"], asset=["USDC"], amount=["1"], sequence=[1000], transfer_id=["again"]
    )
    driver.frame(repaired=True, transfers=repaired)
    assert (driver.row().unapplied_credits, driver.balances()) == (0, {"USDC": "1"})


def test_a_transfer_with_the_number_of_the_last_and_other_content_is_told(driver: Recorder) -> None:
    def again(amount: str, transfer_id: str) -> Output:
        columns = TransferColumns(
            account=["a"], margin=["cross"], asset=["USDC"], amount=[amount], sequence=[7], transfer_id=[transfer_id]
        )
        return driver.frame(transfers=columns)

    assert kinds(again("1000", "first")) == []
    assert kinds(again("1000", "first")) == [], "a repeat"
    assert kinds(again("900", "second")) == ["credit_parked"]
    output = again("-900", "third")
    assert (kinds(output), len(output.unapplied)) == (["suspended"], 1)
    assert driver.balances() == {"USDC": "1000"}


def test_a_repaired_credit_that_no_longer_covers_a_debit_suspends_and_tells(driver: Recorder) -> None:
    driver.transfer("a", "100", asset="EUR", sequence=1)
    assert kinds(driver.transfer("a", "-80", asset="EUR", sequence=2)) == []
    smaller = TransferColumns(
        account=["a"], margin=["cross"], asset=["EUR"], amount=["50"], sequence=[1], transfer_id=["t1"]
    )
    output = driver.frame(repaired=True, transfers=smaller)
    assert "suspended" in kinds(output)
    assert driver.row().suspended_reason is not None


def test_a_repaired_transfer_takes_the_place_of_the_parked_one(driver: Recorder) -> None:
    driver.transfer("a", "500", asset="EURO", sequence=4)
    repaired = EventFrame(
        time=driver.time,
        repaired=True,
        transfers=TransferColumns(
            account=["a"], margin=["cross"], asset=["USDC"], amount=["500"], sequence=[4], transfer_id=["t4"]
        ),
    )
    driver.shard.apply_events(driver.shard.events_next, repaired)
    driver.shard.decide_touched()
    output = driver.commit()
    assert [str(letter.error) for letter in output.unapplied] == ["a repaired event has taken its place"]
    assert driver.balances() == {"USDC": "500"}
    assert (driver.row().parked, driver.row().unapplied) == ((), 0)


# --- fills that wait -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restarted", [False, True])
def test_a_fill_at_a_finer_tick_waits_for_it_and_the_account_is_whole(driver: Recorder, restarted: bool) -> None:
    driver.mark("50000")
    driver.transfer("a", "5000")
    driver.fill("a", "1", "50000")
    output = driver.fill("a", "0.001", "50000.05")
    assert kinds(output) == ["suspended"]
    assert output.unapplied == []
    assert driver.shard.accounts["a"].suspended
    if restarted:
        driver.restart()
        driver.mark("50000")
    output = driver.publish(finer())
    assert kinds(output)[0] == "resumed"
    (position,) = driver.row().groups[0].positions
    assert (position.quantity, position.cash) == ("1.001", "-50050.00005")
    assert len(driver.mark("40000").commands) == 1


def test_fills_of_one_symbol_keep_their_order_and_others_go_on(driver: Recorder) -> None:
    """Where a position is flat its profit becomes balance: fills that changed places would leave another balance."""
    driver.publish(DOGE)
    driver.transfer("a", "1000")
    driver.fill("a", "1", "100.05")
    driver.fill("a", "-1", "110")
    driver.fill("a", "1", "105")
    driver.fill("a", "3", "0.5", symbol="DOGE-PERP")
    driver.transfer("a", "7")
    row = driver.row()
    assert [fill.price for fill in row.waiting_fills] == ["100.05", "110", "105"]
    assert [held.symbol for held in row.groups[0].positions] == ["DOGE-PERP"]
    assert row.groups[0].balances == {"USDC": "1007"}
    driver.publish(finer())
    (bitcoin, _) = driver.row().groups[0].positions
    assert (bitcoin.quantity, bitcoin.cash) == ("1", "-105")
    assert driver.balances() == {"USDC": "1016.95"}


def test_a_fill_in_an_unknown_symbol_waits_for_it(driver: Recorder) -> None:
    assert kinds(driver.fill("a", "2", "5", symbol="DOGE-PERP")) == ["suspended"]
    assert kinds(driver.publish(EUR)) == [], "other parameters change nothing"
    assert kinds(driver.publish(DOGE)) == ["resumed"]
    assert [held.symbol for held in driver.row().groups[0].positions] == ["DOGE-PERP"]


def test_more_fills_than_an_account_may_hold_back_go_to_the_dead_letters(driver: Recorder) -> None:
    for _ in range(WAITING_FILLS_MAX):
        assert driver.fill("a", "2", "5", symbol="DOGE-PERP").unapplied == []
    output = driver.fill("a", "2", "5", symbol="DOGE-PERP")
    assert len(output.unapplied) == 1
    driver.publish(DOGE)
    assert driver.row().unapplied == 1
    assert driver.shard.accounts["a"].suspended, "the last one is still to be repaired"


def test_what_parameters_admit_and_nothing_makes_right_goes_to_the_dead_letters(driver: Recorder) -> None:
    huge = "9" * 15
    driver.fill("a", "1", "1", symbol="DOGE-PERP")
    driver.fill("a", huge, huge, symbol="DOGE-PERP")
    output = driver.publish(DOGE)
    assert len(output.unapplied) == 1
    letter = msgspec.json.decode(output.unapplied[0].frame, type=EventFrame)
    assert (letter.fills.account, letter.fills.quantity, letter.fills.price) == (["a"], [huge], [huge])
    assert letter.repaired
    assert (driver.row().unapplied, driver.row().waiting_fills) == (1, ())


@pytest.mark.parametrize(
    "fill",
    [{"price": "-5"}, {"price": "0"}, {"quantity": "0"}, {"quantity": "1e3"}, {"price": "NaN"}, {"order_id": ""}],
)
def test_what_the_contract_does_not_hold_does_not_wait(driver: Recorder, fill: dict[str, str]) -> None:
    changed: dict[str, Any] = {"quantity": "1", "price": "5"} | fill
    output = driver.fill("a", **changed, symbol="DOGE-PERP")
    assert (kinds(output), len(output.unapplied)) == (["suspended"], 1)
    assert driver.row().waiting_fills == ()


@pytest.mark.parametrize(
    "transfer",
    [{"amount": "0"}, {"amount": "5E-8"}, {"amount": "NaN"}, {"amount": "many"}, {"asset": "A" * 17}, {"margin": ""}],
)
def test_a_transfer_that_the_contract_does_not_hold_is_not_parked(driver: Recorder, transfer: dict[str, str]) -> None:
    output = driver.transfer("a", **{"amount": "5", "asset": "EUR"} | transfer)  # type: ignore[arg-type]
    assert (kinds(output), len(output.unapplied)) == (["suspended"], 1)
    assert driver.row().parked == ()


def test_a_repaired_fill_takes_the_place_of_the_waiting_one(driver: Recorder) -> None:
    driver.fill("a", "1", "100", symbol="TYPO-PERP", order_id="mine")
    repaired = EventFrame(
        time=driver.time,
        repaired=True,
        fills=FillColumns(
            account=["a"],
            margin=["cross"],
            symbol=["BTC-PERP"],
            quantity=["1"],
            price=["100"],
            fee=["0"],
            order_id=["mine"],
            trade_id=[1],
        ),
    )
    driver.shard.apply_events(driver.shard.events_next, repaired)
    driver.shard.decide_touched()
    output = driver.commit()
    assert "resumed" in kinds(output)
    assert len(output.unapplied) == 1
    assert [held.symbol for held in driver.row().groups[0].positions] == ["BTC-PERP"]


def test_a_suspended_account_that_would_be_liquidated_is_told_once(driver: Recorder) -> None:
    driver.long("a")
    driver.fill("a", "1", "5", symbol="DOGE-PERP")
    assert kinds(driver.mark("9450")) == ["suspended_liquidatable"]
    assert kinds(driver.mark("9000")) == []
    driver.restart()
    driver.mark("9000")
    assert kinds(driver.mark("8000")) == []
    output = driver.publish(DOGE)
    assert "resumed" in kinds(output)
    assert len(output.commands) <= 1


def test_one_suspended_while_it_is_below_its_requirement_is_told_at_once(driver: Recorder) -> None:
    driver.long("a")
    driver.mark("9450")
    assert kinds(driver.fill("a", "1", "5", symbol="DOGE-PERP")) == ["suspended", "suspended_liquidatable"]


# --- limits ----------------------------------------------------------------------------------------------------------


def listing(count: int) -> list[Parameter]:
    return [msgspec.structs.replace(DOGE, symbol=f"S{number}") for number in range(count)]


def test_an_account_has_so_many_isolated_groups() -> None:
    driver = Recorder(RiskParameters.build([*RULES.records.values(), *listing(ISOLATED_GROUPS_MAX + 1)]))
    for number in range(ISOLATED_GROUPS_MAX):
        assert kinds(driver.transfer("a", "1", margin=f"S{number}")) == []
    one_more = f"S{ISOLATED_GROUPS_MAX}"
    assert kinds(driver.transfer("a", "1", margin=one_more)) == ["credit_parked"]
    assert kinds(driver.fill("a", "1", "1", margin=one_more, symbol=one_more)) == ["suspended"]
    assert len(driver.row().groups) == ISOLATED_GROUPS_MAX


@pytest.mark.parametrize("restarted", [False, True])
def test_an_emptied_isolated_group_makes_room(restarted: bool) -> None:
    driver = Recorder(RiskParameters.build([*RULES.records.values(), *listing(ISOLATED_GROUPS_MAX + 1)]))
    for number in range(ISOLATED_GROUPS_MAX):
        driver.transfer("a", "1", margin=f"S{number}")
    driver.transfer("a", "-1", margin="S7")
    if restarted:
        driver.restart()
    assert kinds(driver.transfer("a", "1", margin=f"S{ISOLATED_GROUPS_MAX}")) == []
    assert kinds(driver.transfer("a", "1", margin="S7")) == ["credit_parked"]


def test_an_isolated_group_holds_so_many_assets() -> None:
    assets = [AssetParameters(asset=f"A{number}", decimals=2) for number in range(ISOLATED_ASSETS_MAX + 1)]
    driver = Recorder(RiskParameters.build([*RULES.records.values(), *assets]))
    for number in range(ISOLATED_ASSETS_MAX):
        assert kinds(driver.transfer("a", "1", asset=f"A{number}", margin="BTC-PERP")) == []
    output = driver.transfer("a", "1", asset=f"A{ISOLATED_ASSETS_MAX}", margin="BTC-PERP")
    assert kinds(output) == ["credit_parked"]
    assert kinds(driver.transfer("a", "1", asset="A0", margin="BTC-PERP")) == []
    assert kinds(driver.transfer("a", "1", asset=f"A{ISOLATED_ASSETS_MAX}")) == []


def test_a_margin_group_has_so_many_positions() -> None:
    driver = Recorder(RiskParameters.build([*RULES.records.values(), *listing(POSITIONS_MAX + 1)]))
    symbols = [f"S{number}" for number in range(POSITIONS_MAX + 1)]
    columns: dict[str, Any] = {
        "account": ["a"] * len(symbols),
        "margin": ["cross"] * len(symbols),
        "symbol": symbols,
        "quantity": ["1"] * len(symbols),
        "price": ["1"] * len(symbols),
        "fee": ["0"] * len(symbols),
        "order_id": ["o"] * len(symbols),
        "trade_id": [1] * len(symbols),
    }
    output = driver.frame(fills=FillColumns(**columns))
    assert kinds(output)[0] == "suspended"
    assert len(output.unapplied) == 1
    assert len(driver.row().groups[0].positions) == POSITIONS_MAX


# --- restarts --------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("transfer"), st.sampled_from(["EUR", "USDC", "NOPE"]), st.integers(-5, 9), st.integers(0, 9)),
        st.tuples(st.just("fill"), st.sampled_from(["BTC-PERP", "DOGE-PERP"]), st.integers(-2, 2), st.integers(1, 4)),
        st.tuples(st.just("publish"), st.sampled_from(["EUR", "DOGE", "finer"]), st.just(0), st.just(0)),
        st.tuples(st.just("mark"), st.just(""), st.integers(90, 120), st.just(0)),
    ),
    max_size=25,
)


def play(driver: Recorder, step: tuple[str, str, int, int]) -> Output | None:
    kind, name, number, other = step
    if kind == "transfer":
        return driver.transfer("a", str(number), asset=name, sequence=other) if number else None
    if kind == "fill":
        return driver.fill("a", str(number), f"10{other}.{other}5", symbol=name) if number else None
    if kind == "mark":
        return driver.mark(str(number))
    publishable: dict[str, Parameter] = {"EUR": EUR, "DOGE": DOGE, "finer": finer()}
    return driver.publish(publishable[name])


@given(steps, st.sets(st.integers(0, 24)))
@configure(max_examples=examples(150), deadline=None)
def test_a_shard_that_was_restarted_gives_the_same_bytes(
    walk: list[tuple[str, str, int, int]], restarts: set[int]
) -> None:
    steady, restarted = Recorder(), Recorder()
    mark = "100"
    for driver in (steady, restarted):
        driver.mark(mark)
    for index, step in enumerate(walk):
        if index in restarts:
            marks = restarted.shard.marks_next
            restarted.restart()
            frame = _last_mark(restarted.time, mark)
            restarted.shard.recall_marks(marks - 1, frame)
        outputs = [play(driver, step) for driver in (steady, restarted)]
        if step[0] == "mark":
            mark = str(step[2])
        assert outputs[0] == outputs[1] or _as_bytes(outputs[0]) == _as_bytes(outputs[1])


def _last_mark(time: int, price: str) -> MarkFrame:
    mark = Mark(symbol="BTC-PERP", price=price, status="live", publish_time=time)
    return MarkFrame(time=time, marks=(mark,), full=True)


def _as_bytes(output: Output | None) -> Any:
    if output is None:
        return None
    return (
        output.rows,
        [encode(command) for command in output.commands],
        [encode(alert) for alert in output.alerts],
        [letter.frame for letter in output.unapplied],
        encode(output.journal),
    )


@given(steps)
@configure(max_examples=examples(100), deadline=None)
def test_nothing_that_came_is_lost(walk: list[tuple[str, str, int, int]]) -> None:
    """What is held and what waits is what came in, of each asset that a transfer names."""
    driver, come, seen = Recorder(), dict[str, Decimal](), dict[int, tuple[str, int]]()
    cash, contradicted = Decimal(0), False
    driver.mark("100")
    for step in walk:
        play(driver, step)
        kind, name, number, other = step
        if kind == "transfer" and number:
            contradicted |= seen.get(other, (name, number)) != (name, number)
        if kind == "transfer" and number and other not in seen:
            seen[other] = name, number
            come[name] = come.get(name, Decimal(0)) + number
        if kind == "fill" and number:
            cash -= number * Decimal(f"10{other}.{other}5")
    if "a" not in driver.rows:
        assert not come
        return
    row = driver.row()
    held: dict[str, Decimal] = {}
    for asset, amount in [
        *((asset, amount) for group in row.groups for asset, amount in group.balances.items()),
        *((parked.asset, parked.amount) for parked in row.parked),
        *(("USDC", position.cash) for group in row.groups for position in group.positions),
    ]:
        held[asset] = held.get(asset, Decimal(0)) + Decimal(amount)
    for fill in row.waiting_fills:
        held["USDC"] = held.get("USDC", Decimal(0)) - Decimal(fill.quantity) * Decimal(fill.price)
    come["USDC"] = come.get("USDC", Decimal(0)) + cash
    assert {asset: amount for asset, amount in held.items() if amount} == {
        asset: amount for asset, amount in come.items() if amount
    }
    assert contradicted or not (row.unapplied or row.unapplied_credits)
