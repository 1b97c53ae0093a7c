"""An engine reads the parameters to their end before it applies what those it knows do not admit."""

from collections.abc import Callable, Iterator

import pytest

from schemas.parameters import AssetParameters, Parameter
from schemas.topics import PARAMETERS
from tests.clearing.engine_bench import Bench, EngineProcess, instrument


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as started:
        yield started


@pytest.fixture
def engine(bench: Bench) -> EngineProcess:
    """The owner of a shard in which Alice has collateral and a position."""
    engine = bench.market().owner()
    bench.transfer("alice", "10000")
    bench.fill("alice", "1")
    engine.settle()
    return engine


@pytest.mark.parametrize(
    ("record", "event"),
    [
        (instrument(price_increment="0.01"), lambda bench: bench.fill("alice", "0.001", "10000.05")),
        (instrument(symbol="DOGE-PERP"), lambda bench: bench.fill("alice", "0.001", symbol="DOGE-PERP")),
        (instrument(symbol="DOGE-PERP"), lambda bench: bench.transfer("alice", "5", margin="DOGE-PERP")),
        (AssetParameters(asset="EUR", decimals=2), lambda bench: bench.transfer("alice", "-5", asset="EUR")),
        (AssetParameters(asset="USDC", decimals=7), lambda bench: bench.transfer("alice", "-0.0000001")),
    ],
)
def test_what_the_known_parameters_do_not_admit_makes_it_read_on(
    bench: Bench, engine: EngineProcess, record: Parameter, event: Callable[[Bench], None]
) -> None:
    engine.late.add(PARAMETERS)
    bench.parameters(record)
    engine.cycle(2)
    before, known = bench.row("alice"), bench.stands().parameters.next
    assert known == bench.partition(PARAMETERS).end - 1, "its fetch has not brought the newest record yet"
    event(bench)
    engine.settle()
    row = bench.row("alice")
    assert row.groups != before.groups
    assert (row.status, row.parked, row.waiting_fills) == ("normal", (), ())
    assert bench.alerts() == []


def test_what_nothing_admits_yet_waits(bench: Bench, engine: EngineProcess) -> None:
    bench.fill("alice", "0.001", "10000.05")
    engine.settle()
    assert bench.row("alice").status == "suspended"
    assert len(bench.row("alice").waiting_fills) == 1
    bench.parameters(instrument(price_increment="0.01"))
    engine.settle()
    assert bench.row("alice").status == "normal"
    assert bench.row("alice").waiting_fills == ()
    assert [alert.kind for alert in bench.alerts()] == ["suspended", "resumed"]
