"""Every command is explained by the logs to the byte, and one that the logs do not give is said to be so."""

import io
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st
from rich.console import Console

from schemas.messages import Mark
from schemas.parameters import InstrumentParameters, MarginTier, PolicyParameters, ScanOffset
from schemas.topics import ACCOUNTS, COMMANDS, EVENTS, JOURNAL, PROGRESS
from streams.audit.explain import Explanation
from streams.audit.show import show_explanation
from streams.errors import AuditError
from tests.audit.scripts import Script, alter, drop, event_id, opened, played, value
from tests.audit.test_replay import STEPS, Step
from tests.clearing.engine_bench import SYMBOL, instrument
from tests.properties import examples


def shown(explanation: Explanation) -> str:
    written = io.StringIO()
    show_explanation(Console(width=200, file=written), explanation)
    return written.getvalue()


def test_a_command_is_explained_term_by_term(liquidation: Script) -> None:
    explanation = liquidation.explained("alice:1")
    assert explanation.passed
    decision = explanation.decision
    assert decision is not None
    assert decision.input == "mark frame margin.marks.v1[0]@2"
    assert [(term.name, term.amount) for term in decision.equity_terms] == [
        ("USDC balance", Decimal("999.99")),
        (f"{SYMBOL} position", Decimal(-550)),
    ]
    (tier,) = decision.maintenance_terms
    assert tier.figures == {"notional": "9450", "tier from": "0", "rate": "0.05", "deduction": "0", "price": "1"}
    assert (decision.equity, decision.maintenance) == (Decimal("449.99"), Decimal("472.5"))
    assert (decision.target, decision.shortage) == (Decimal("491.4"), Decimal("41.41"))
    (mark,) = decision.marks
    assert (mark.price, mark.sources, mark.offset) == ("9450", {"a": "9450"}, 2)
    assert [rule.key for rule in decision.rules] == [
        f"instrument:{SYMBOL}", "asset:USDC", "policy:default", f"oracle:{SYMBOL}",
    ]  # fmt: skip


def test_a_withdrawal_is_explained_by_the_target(liquidation: Script) -> None:
    liquidation.mark("9900")
    liquidation.cycle()
    explanation = liquidation.explained("alice:2")
    assert explanation.passed
    assert explanation.decision is not None
    assert (explanation.decision.stage, explanation.decision.shortage < 0) == ("withdrawn", True)
    assert "alice:1, healthy at its target" in shown(explanation)


def test_a_later_attempt_is_explained_with_its_limits(liquidation: Script) -> None:
    liquidation.mark("9450", after_ms=6000)
    liquidation.cycle()
    explanation = liquidation.explained("alice:2")
    assert explanation.passed
    assert (explanation.command.attempt, "attempt       2" in shown(explanation)) == (1, True)


def test_an_explanation_can_be_read_and_is_plain_json(liquidation: Script) -> None:
    explanation = liquidation.explained("alice:1")
    text = shown(explanation)
    for part in ("alice:1", "449.99", "472.5", "41.41", "a 9450", "9351.1", "byte for byte"):
        assert part in text
    plain = explanation.as_json()
    assert plain["passed"] is True
    assert plain["decision"]["shortage"] == "41.41"
    assert plain["command"]["evidence"]["equity"] == "449.99"


def _hold_portfolio_margin(script: Script) -> None:
    """Alice is long one contract and short another that moves with it, under portfolio margin and scaled rates."""

    def contract(symbol: str, group: str) -> InstrumentParameters:
        tiers = (MarginTier(notional_floor="0", maintenance_rate="0.05", initial_rate="0.1"),)
        return InstrumentParameters(
            symbol=symbol, settle_asset="USDC", price_increment="0.1", quantity_increment="0.001", margin_tiers=tiers,
            scan_group=group, scan_range="0.2", scan_floor_rate="0.01",
        )  # fmt: skip

    offset = ScanOffset(first="BTC", second="ALT", rate="0.5")
    script.parameters(
        contract(SYMBOL, "BTC"),
        contract("BTC-USD", "ALT"),
        PolicyParameters(portfolio_margin_accounts=("alice",), scan_offsets=(offset,)),
    )  # fmt: skip
    script.cycle()
    script.transfer("alice", "2500")
    script.fill("alice", "1", "10000")
    script.fill("alice", "-0.6", "10000", symbol="BTC-USD")
    script.settle()
    script.mark("9000", scales={f"instrument:{SYMBOL}": "1.5"})
    script.settle()


def test_portfolio_margin_is_explained_by_its_worst_scenarios(script: Script) -> None:
    _hold_portfolio_margin(script)
    explanation = script.explained("alice:1")
    assert explanation.differences == []
    decision = explanation.decision
    assert decision is not None
    assert decision.model.startswith("portfolio margin")
    names = [term.name for term in decision.maintenance_terms]
    assert names[0].startswith("BTC with ALT: ")
    assert "3/3 down" in names[0]
    assert sum(term.amount for term in decision.maintenance_terms) == decision.maintenance
    assert {rule.key: rule.scale for rule in decision.rules}[f"instrument:{SYMBOL}"] == "1.5"


@pytest.mark.parametrize("scanned", [False, True])
def test_a_command_beside_marks_that_are_not_live_is_explained_by_their_bounds(script: Script, scanned: bool) -> None:
    """A long of the halted symbol, and a little of the coin that it prices: both count the most that they may be."""
    scan: dict[str, Any] = {"scan_range": "0.1", "scan_floor_rate": "0.01"} if scanned else {}
    held = msgspec.structs.replace(instrument(), **scan)
    halted = msgspec.structs.replace(held, symbol="BTC-USD", stale_bound="0.5", scan_group=SYMBOL if scanned else None)
    script.parameters(held, halted, PolicyParameters(portfolio_margin_accounts=("alice",)))
    script.cycle()
    script.transfer("alice", "1500")
    script.transfer("alice", "0.001", asset="BTC")
    script.fill("alice", "1", "10000")
    script.fill("alice", "0.01", "10000", symbol="BTC-USD")
    script.settle()
    script.advance(250)
    script.marks(
        Mark(symbol=SYMBOL, price="8300", status="live", publish_time=script.now_us),
        Mark(symbol="BTC-USD", price="10000", status="halted", publish_time=script.now_us),
        full=True,
    )
    script.settle()
    explanation = script.explained("alice:1")
    assert explanation.differences == []
    decision = explanation.decision
    assert decision is not None
    assert decision.stale_bounds == {"BTC-USD": "9"}
    assert sum(term.amount for term in decision.equity_terms) == decision.equity
    assert sum(term.amount for term in decision.maintenance_terms) == decision.maintenance
    assert {order["symbol"] for order in decision.orders} == {SYMBOL}
    assert [term.name for term in decision.equity_terms if term.name.endswith("at best")] == [
        "BTC balance (at BTC-USD) at best",
        "BTC-USD position at best",
    ]
    assert "BTC-USD (bound 9): anything from nothing" in shown(explanation)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (b'"limit_price":"9', b'"limit_price":"8', "orders[0].limit_price must be"),
        (b'"equity":"449.99"', b'"equity":"449.98"', "equity: the command says 449.98, the logs give 449.99"),
        (b'"marks_offset":2', b'"marks_offset":1', "marks_offset: the command says 1, the logs give 2"),
    ],
)
def test_a_command_that_the_logs_do_not_give_is_said_to_be_so(
    liquidation: Script, old: bytes, new: bytes, named: str
) -> None:
    (command,) = liquidation.records(COMMANDS)
    alter(command, old, new)
    explanation = liquidation.explained("alice:1")
    assert not explanation.passed
    assert any(named in difference for difference in explanation.differences), explanation.differences
    assert "differs" in shown(explanation)


def test_a_changed_input_is_noticed(liquidation: Script) -> None:
    for row in liquidation.records(ACCOUNTS):
        if b'"USDC":"999.99"' in value(row):
            alter(row, b'"USDC":"999.99"', b'"USDC":"999.98"')
    explanation = liquidation.explained("alice:1")
    assert any("equity: the command says 449.99, the logs give 449.98" in d for d in explanation.differences)


def test_a_command_that_waited_for_a_router_is_explained_by_what_the_router_said(script: Script) -> None:
    script.begin()
    script.router_progress(behind=5)
    opened(script)
    script.fill("alice", "1", "10000")
    script.router_progress(behind=5)
    script.cycle()
    assert not script.records(COMMANDS)
    for _ in range(2):
        script.router_progress()
        script.cycle()
    explanation = script.explained("alice:1")
    assert explanation.passed
    assert explanation.decision is not None
    assert explanation.decision.input.startswith(f"progress record {PROGRESS}[0]@")


def test_a_frame_of_a_replaced_oracle_is_no_mark_of_the_decision(script: Script) -> None:
    script.new_oracle()
    script.mark("9450")
    script.mark("9900", epoch=0, full=False)
    script.settle()
    script.transfer("alice", "400")
    script.fill("alice", "1", "9450")
    script.settle()
    explanation = script.explained("alice:1")
    assert explanation.passed
    assert explanation.decision is not None
    (mark,) = explanation.decision.marks
    assert mark.sources == {"a": "9450"}


def test_what_cannot_be_explained_is_said(liquidation: Script) -> None:
    with pytest.raises(AuditError, match="no command alice:9"):
        liquidation.explained("alice:9")
    with pytest.raises(AuditError, match="is no command id"):
        liquidation.explained("alice")
    events = liquidation.partition(EVENTS)
    events.delete_before(events.end)
    explanation = liquidation.explained("alice:1")
    assert explanation.decision is None
    assert "the inputs of the decision are gone" in explanation.notes[0]
    assert "equity 449.99" in shown(explanation)
    for record in liquidation.records(JOURNAL):
        drop(record)
    with pytest.raises(AuditError, match="names no commit of alice:1"):
        liquidation.explained("alice:1")


def test_a_row_that_is_compacted_away_is_said(liquidation: Script) -> None:
    for row in liquidation.records(ACCOUNTS)[:-1]:
        drop(row)
    explanation = liquidation.explained("alice:1")
    assert not explanation.passed
    assert "compacted away" in explanation.notes[0]


def test_a_command_is_found_in_a_long_journal(liquidation: Script) -> None:
    for _ in range(200):
        liquidation.tick(250)
        liquidation.cycle(idle=True)
    assert len(liquidation.records(JOURNAL)) > 200
    assert liquidation.explained("alice:1").passed


@given(st.lists(STEPS, min_size=10, max_size=60))
@configure(max_examples=examples(20), deadline=None)
def test_whatever_an_engine_did_its_commands_are_explained(steps: list[Step]) -> None:
    with played(steps) as script:
        for command in script.records(COMMANDS)[:3]:
            explanation = script.explained(event_id(command))
            assert explanation.differences == []
            assert explanation.decision is not None
