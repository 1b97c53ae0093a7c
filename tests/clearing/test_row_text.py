"""A row that is written as text is, to the byte, what its account's structs are encoded to."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st

from schemas.codec import Decoder, encode
from schemas.messages import (
    DeferredEvent,
    EventFrame,
    FillColumns,
    Hold,
    OwedEvents,
    ParkedTransfer,
    SourceRange,
    Suspension,
    TransferColumns,
    WaitingFill,
)
from schemas.parameters import AssetParameters, PolicyParameters
from schemas.topics import TRADES
from schemas.types import CROSS, GroupStatus
from streams.clearing import row_text
from streams.clearing.account import AccountState, CommandState, GroupState, Liquidation, OrderState, account_row
from streams.clearing.row_text import RowWriter
from streams.clearing.shard import Output
from streams.clearing.transfers import TransferSequences
from streams.clearing.unapplied import Unapplied
from streams.errors import ParameterError
from streams.margin.ledger import Ledger
from streams.margin.parameters import RiskParameters
from tests.clearing.test_held_back import EUR, finer
from tests.clearing.test_reach import RECORDS, Market, instrument
from tests.properties import examples

ACCOUNTS = ("a", "b", 'odd"\\name')
LISTED = ("BTC-PERP", "ETH-PERP", "A", "AB", "B-A", "1", "FINE")
UNLISTED = "SOL-PERP"
DAI = AssetParameters(asset="DAI", decimals=16)
FINE = msgspec.structs.replace(
    instrument("FINE"), settle_asset="DAI", price_increment="0.00000001", quantity_increment="0.00000001"
)
RULES = [*RECORDS, DAI, *map(instrument, LISTED[2:-1]), FINE]
QUANTITIES = ("0.001", "0.1", "1", "2", "7", "300.25", "900000000")
AMOUNTS = ("0.01", "250.5", "100000", "90000000000", "9300000000000")
TIMES = (250, 4000, 11000)
_FRAME = Decoder[EventFrame](EventFrame)

Step = tuple[Any, ...]

of_account = st.sampled_from(ACCOUNTS)
of_margin = st.sampled_from([CROSS, CROSS, CROSS, CROSS, "BTC-PERP", "A"])
of_listed = st.sampled_from(LISTED)
signs = st.sampled_from(["", "-"])
quantities = st.sampled_from(QUANTITIES)
prices = st.integers(1, 300)
fills = st.lists(st.tuples(of_account, of_margin, of_listed, signs, quantities, prices), min_size=1, max_size=6)
ORDINARY: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("fills"), fills, st.booleans()),
    st.tuples(st.just("fills"), fills, st.booleans()),
    st.tuples(st.just("flatten"), of_account, of_margin),
    st.tuples(
        st.just("transfer"),
        of_account,
        of_margin,
        st.sampled_from(["USDC", "BTC", "USDT", "DAI"]),
        signs,
        st.sampled_from(AMOUNTS),
        st.integers(0, 40),
    ),
    st.tuples(st.just("price"), st.sampled_from(["BTC-PERP", "ETH-PERP", "BTC-USD"]), prices),
    st.tuples(st.just("follow"), st.booleans()),
    st.tuples(st.just("time"), st.sampled_from(TIMES)),
    st.tuples(
        st.just("publish"),
        st.sampled_from(
            [
                finer(),
                finer("0.1", "0.00001"),
                finer("0.00001", "0.1"),
                finer("1", "1"),
                msgspec.structs.replace(instrument("A"), quantity_increment="0.0005"),
                PolicyParameters(margin_call_levels=("2.50", "1.1")),
            ]
        ),
    ),
    st.tuples(st.sampled_from(["restart", "look"])),
)
UNUSUAL: st.SearchStrategy[Step] = st.one_of(
    st.tuples(
        st.just("fills"),
        st.lists(
            st.tuples(of_account, of_margin, st.just(UNLISTED), signs, quantities, prices), min_size=1, max_size=2
        ),
        st.booleans(),
    ),
    st.tuples(
        st.just("transfer"),
        of_account,
        of_margin,
        st.just("EUR"),
        signs,
        st.sampled_from(AMOUNTS),
        st.integers(0, 40),
    ),
    st.tuples(st.just("status"), st.sampled_from(["live", "halted"]), st.sampled_from(["BTC-PERP", "BTC-USD"])),
    st.tuples(st.just("suspend"), of_account, st.integers(0, 3)),
    st.tuples(st.just("publish"), st.sampled_from([EUR, instrument(UNLISTED)])),
    st.tuples(st.just("repair")),
)
STEPS = st.builds(
    lambda before, unusual, after: [*before, *unusual, *after],
    st.lists(ORDINARY, min_size=15, max_size=40),
    st.lists(UNUSUAL | ORDINARY, max_size=15),
    st.lists(ORDINARY, max_size=15),
)


class Compared(Market):
    """A market of which every row that is taken is compared with the one that its account's structs make."""

    def __init__(self) -> None:
        super().__init__()
        self.letters: list[bytes] = []
        self.offset = 0
        self.publish(*RULES[len(RECORDS) :])
        self.set_status("live", *LISTED)
        self.marks(250, A="2", AB="3", B_A="4", **{"1": "5"}, FINE="6")
        for account in ACCOUNTS:
            self.transfer(account, "1000000", sequence=0)
            self._fill([(account, CROSS, symbol, "1", 50) for symbol in LISTED[::2]], is_followed=False)

    def commit(self) -> Output:
        output = super().commit()
        self.letters += [letter.frame for letter in output.unapplied]
        for account, row in output.rows.items():
            if row is None:
                assert account not in self.shard.accounts
            else:
                assert row == self.reference(account)
        return output

    def reference(self, account: str) -> bytes | None:
        row = account_row(self.shard.accounts[account], self.shard.portfolio.ledger)
        return None if row is None else encode(row)

    def look(self) -> None:
        for account in self.shard.accounts:
            assert self.shard._accounts.row(account) == self.reference(account)

    # --- steps -------------------------------------------------------------------------------------------------------

    def step(self, step: Step) -> None:
        getattr(self, f"do_{step[0]}")(*step[1:])

    def do_fills(self, drawn: list[tuple[str, str, str, str, str, int]], is_followed: bool) -> None:
        rows = [(*fill[:3], fill[3] + fill[4], fill[5]) for fill in drawn]
        self._fill(rows, is_followed=is_followed)

    def do_flatten(self, account: str, margin: str) -> None:
        state = self.shard.accounts.get(account)
        if state is not None and margin in state.groups:
            held = self.shard.portfolio.positions(state.groups[margin].row)
            negative = [(symbol, f"{-Decimal(quantity)}") for symbol, quantity, _ in held[::2]]
            self._fill([(account, margin, symbol, quantity, 100) for symbol, quantity in negative], is_followed=False)

    def do_follow(self, is_wrong: bool) -> None:
        """The orders of the open commands are filled, or those of others."""
        orders = [order for *_, order in self.shard._commands.orders.values()]
        owners = {order.order_id: state.account for state, _, _, order in self.shard._commands.orders.values()}
        for order in orders[:2]:
            assert order.symbol is not None
            quantity = f"{'-' if order.side == 'sell' else ''}{order.quantity}"
            account = "a" if is_wrong else owners[order.order_id]
            self.fill(account, quantity, self.prices.get(order.symbol, "10"), order_id=order.order_id)

    def do_transfer(self, account: str, margin: str, asset: str, sign: str, amount: str, sequence: int) -> None:
        self.transfer(account, sign + amount, asset=asset, margin=margin, sequence=sequence)

    def do_price(self, symbol: str, price: int) -> None:
        self.marks(250, **{symbol.replace("-", "_"): str(price)})

    def do_status(self, status: str, symbol: str) -> None:
        self.set_status(status, symbol)
        self.marks()

    def do_suspend(self, account: str, offset: int) -> None:
        self.frame(
            suspensions=[Suspension(account=account, topic=TRADES, partition=0, offset=offset, reason='not "it"\n')]
        )

    def do_time(self, milliseconds: int) -> None:
        self.marks(milliseconds)

    def do_publish(self, record: Any) -> None:
        try:
            self.publish(record)
        except ParameterError:  # what is held cannot be held in it
            self.rules = self.shard.parameters
            self.shard.decide_touched(everything=True)
            self.commit()

    def do_repair(self) -> None:
        if self.letters:
            frame = msgspec.structs.replace(_FRAME(self.letters.pop(0)), time=self.time, repaired=True)
            self.shard.apply_events(self.shard.events_next, frame)
            self.shard.decide_touched()
            self.commit()

    def do_restart(self) -> None:
        self.restart()
        self.look()

    def do_look(self) -> None:
        self.look()

    def _fill(self, rows: list[tuple[str, str, str, str, int]], *, is_followed: bool) -> None:
        columns: dict[str, Any] = {
            "account": [row[0] for row in rows],
            "margin": [row[1] for row in rows],
            "symbol": [row[2] for row in rows],
            "quantity": [row[3] for row in rows],
            "price": [str(row[4]) for row in rows],
            "fee": [f"{row[4] / 1000:.3f}" for row in rows],
            "order_id": ["o"] * len(rows),
            "trade_id": list(range(len(rows))),
        }
        sources = []
        if is_followed:
            columns |= {"source": [0] * len(rows), "source_offset": [self.offset + place for place in range(len(rows))]}
            end = self.offset + len(rows)
            sources = [SourceRange(topic=TRADES, topic_id="id", partition=0, first=self.offset, next=end)]
            self.offset = end
        self.frame(fills=FillColumns(**columns), sources=sources)


@given(STEPS, st.integers(1, 4), st.sampled_from([400, 8_000_000, 8_000_000]))
@configure(max_examples=examples(400), deadline=None)
def test_a_row_is_what_its_structs_are_encoded_to(steps: list[Step], kept_from: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(row_text, "KEPT_FROM", kept_from)
        patched.setattr(row_text, "TEXTS_BYTES_MAX", most)
        market = Compared()
        for step in steps:
            market.step(step)
        market.look()
        market.look()


# --- states that nobody leads to -------------------------------------------------------------------------------------

_FILLS = FillColumns(
    account=["a"], margin=[CROSS], symbol=["A"], quantity=["1"], price=["1"], fee=["0"], order_id=["o"], trade_id=[1]
)
PARKED = ParkedTransfer(transfer_id="t", sequence=1, margin=CROSS, asset="EUR", amount="1", offset=3, place="")
WAITING = WaitingFill(trade_id=1, order_id='"', margin=CROSS, symbol="X", quantity="1", price="1", fee="0", offset=2)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "liquidation_sequence": st.integers(0, 2**63 - 1),
    "transfers": st.builds(
        TransferSequences,
        st.integers(-1, 50),
        st.integers(0, 9),
        st.lists(st.tuples(st.integers(0, 9), st.integers(10, 20)), max_size=3),
    ),
    "alert_sequence": st.integers(0, 3),
    "unapplied": st.builds(
        Unapplied,
        st.integers(0, 2),
        st.integers(0, 2),
        st.dictionaries(st.sampled_from(["t:0:i@1", "t:0:i@2"]), st.just(OwedEvents(events=1, whole=True)), max_size=2),
    ),
    "transfer_digest": st.integers(0, 2**32 - 1),
    "suspended_reason": st.sampled_from([None, "", 'a "reason"\té']),
    "unread": st.sampled_from([None, b"", b"row"]),
    "refused": st.dictionaries(st.sampled_from(["t:1", "t:0"]), st.integers(0, 9), max_size=2),
    "told_liquidatable": st.booleans(),
    "parked": st.lists(st.just(PARKED), max_size=2),
    "waiting_fills": st.lists(st.just(WAITING), max_size=2),
    "touched": st.integers(-1, 2**63 - 1),
    "held": st.sampled_from([None, Hold(frame=-1), Hold(frame=5, since=9)]),
    "deferred": st.lists(
        st.builds(DeferredEvent, offset=st.just(1), frame=st.just(EventFrame(time=1, fills=_FILLS))), max_size=2
    ),
}
STATES = st.lists(st.sampled_from(sorted(FIELDS)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: FIELDS[name] for name in names})
)
STATUSES: list[GroupStatus] = [
    "normal", "margin_call", "liquidating", "bankrupt", "undecided", "unsellable", "insolvent",
]  # fmt: skip
GROUPS = st.lists(
    st.tuples(
        st.sampled_from([CROSS, *LISTED[:2]]),
        st.sampled_from(STATUSES),
        st.sampled_from([None, Decimal("1.50"), Decimal(3)]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.dictionaries(st.sampled_from(["USDC", "BTC", "USDT"]), st.sampled_from(["-0.5", "0", "7.000001"])),
        st.dictionaries(st.sampled_from(LISTED), st.sampled_from(["-12", "1", "30"])),
    ),
    max_size=3,
    unique_by=lambda group: group[0],
)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=9), STATES, GROUPS)
@configure(max_examples=examples(400), deadline=None)
def test_so_is_that_of_any_state(name: str, fields: dict[str, Any], groups: list[tuple[Any, ...]]) -> None:
    ledger = Ledger(RiskParameters.build(RULES))
    state = AccountState(name)
    for field, value in fields.items():
        setattr(state, field, value)
    for margin, status, level, started, told, is_commanded, balances, positions in groups:
        row = ledger.open_group(name, margin)
        ledger.load_group(row, balances, [(symbol, quantity, "-0.125") for symbol, quantity in positions.items()])
        command = CommandState(f"{name}:1", "reduce", 5, [OrderState(f"{name}:1:0", Decimal("1.50"), "A", "buy")])
        state.groups[margin] = GroupState(
            row,
            margin,
            status,
            level,
            Liquidation(command) if is_commanded else None,
            started=started,
            told_undecided=told,
        )
    writer = RowWriter(ledger)
    expected = account_row(state, ledger)
    assert [writer.row(state), writer.row(state)] == [None if expected is None else encode(expected)] * 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("liquidation_sequence", 3),
        ("transfers", TransferSequences(4, 1, [(2, 3)])),
        ("alert_sequence", 2),
        ("unapplied", Unapplied(1)),
        ("unapplied", Unapplied(0, 1)),
        ("unapplied", Unapplied(0, 0, {"t:0:i@1": OwedEvents()})),
        ("transfer_digest", 7),
        ("suspended_reason", ""),
        ("unread", b""),
        ("refused", {"t:1": 5}),
        ("told_liquidatable", True),
        ("parked", [PARKED]),
        ("waiting_fills", [WAITING]),
        ("touched", 8),
        ("held", Hold(frame=1)),
        ("deferred", [DeferredEvent(offset=1, frame=EventFrame(time=1, fills=_FILLS))]),
    ],
)
def test_nothing_that_an_account_has_is_left_out(name: str, value: Any) -> None:
    ledger = Ledger(RiskParameters.build(RULES))
    row = ledger.open_group("a", CROSS)
    ledger.apply_fill(row, "BTC-PERP", "1", "100", "0")
    state = AccountState("a")
    state.groups[CROSS] = GroupState(row, CROSS)
    usual = RowWriter(ledger).row(state)
    setattr(state, name, value)
    written = RowWriter(ledger).row(state)
    assert written == encode(account_row(state, ledger)) != usual


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_the_texts_of_positions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_text, "TEXTS_BYTES_MAX", 5_000)
    ledger = Ledger(RiskParameters.build(RULES))
    writer = RowWriter(ledger)
    states = [AccountState(f"account-{number}") for number in range(200)]
    for state in states:
        row = ledger.open_group(state.account, CROSS)
        state.groups[CROSS] = GroupState(row, CROSS)
        for symbol in LISTED:
            ledger.apply_fill(row, symbol, "1", "100", "0")
    for state in states * 2:
        writer.row(state)
        kept = sum(len(text) for text, *_ in ledger.slots.texts.values())
        assert kept <= writer.kept <= 5_000
    assert ledger.slots.texts


def test_of_accounts_of_one_position_nothing_is_kept() -> None:
    ledger = Ledger(RiskParameters.build(RULES))
    row = ledger.open_group("a", CROSS)
    ledger.apply_fill(row, "BTC-PERP", "1", "100", "0")
    state = AccountState("a")
    state.groups[CROSS] = GroupState(row, CROSS)
    assert RowWriter(ledger).row(state) is not None
    assert ledger.slots.texts == {}


def test_of_accounts_that_are_written_as_structs_nothing_is_kept() -> None:
    ledger = Ledger(RiskParameters.build(RULES))
    row = ledger.open_group("a", CROSS)
    for symbol in LISTED:
        ledger.apply_fill(row, symbol, "1", "100", "0")
    state, writer = AccountState("a"), RowWriter(ledger)
    state.groups[CROSS] = GroupState(row, CROSS)
    writer.row(state)
    assert row in ledger.slots.texts
    state.refused = {"t:1": 5}
    writer.row(state)
    assert ledger.slots.texts == {}


def test_a_transfer_that_has_been_overtaken_is_in_the_text() -> None:
    market = Compared()
    columns: dict[str, Any] = {"account": ["a"], "margin": [CROSS], "asset": ["USDC"], "amount": ["1"]}
    output = market.frame(transfers=TransferColumns(**columns, sequence=[7], transfer_id=["t"]))
    assert b'"transfer_gaps":[[1,7]]' in (output.rows["a"] or b"")
