"""Two implementations that share no line say the same of any book, whatever marks are not live."""

from decimal import Decimal, localcontext

import msgspec
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.parameters import PolicyParameters
from streams.demo.reference import EXACT, ReferenceGroup, ReferencePosition, Rules, evaluate, symbols_needed
from streams.margin import health
from streams.margin.parameters import RiskParameters
from tests.margin.conftest import SYMBOLS, Book, books
from tests.properties import examples

PRICED = [*SYMBOLS, "EUR-USD"]


@settings(max_examples=examples(300))
@given(
    books(positions_min=0),
    st.sets(st.sampled_from(PRICED)),
    st.sets(st.sampled_from(PRICED), max_size=1),
    st.sampled_from(["0.3", "2"]),
)
def test_the_reference_and_the_engine_judge_alike(book: Book, stale: set[str], never: set[str], bound: str) -> None:
    assume(not book.parameters.policy.portfolio_margin_accounts)
    parameters = RiskParameters.build(
        record if isinstance(record, PolicyParameters) else msgspec.structs.replace(record, stale_bound=bound)
        for record in book.parameters.records.values()
    )
    rules = Rules({key: msgspec.to_builtins(record) for key, record in parameters.records.items()})
    held = {p.symbol: ReferencePosition(p.quantity, p.cash) for p in book.group.positions}
    group = ReferenceGroup(dict(book.group.balances), held)
    marks = {symbol: mark for symbol, mark in book.marks.items() if symbol not in never}
    needed = symbols_needed(group, rules, marks)
    assert needed == health.symbols_of(book.group, marks, parameters)
    judged = evaluate(group, marks, rules, stale | never)
    verdict = health.evaluate(book.group, marks, parameters, stale=stale | never)
    assert needed & (stale | never) == verdict.bounds.keys()
    assert judged.bounded == verdict.bounded
    assert judged.liquidatable == verdict.liquidatable
    with localcontext(EXACT):
        assert (judged.equity, judged.maintenance) == (verdict.equity, verdict.maintenance_margin)
        assert (judged.debt, judged.unweighted) == (verdict.debt, verdict.unweighted_equity)
    if verdict.health_ratio is None or abs(verdict.health_ratio) < Decimal(10**18 - 1):
        assert judged.health_ratio == verdict.health_ratio
