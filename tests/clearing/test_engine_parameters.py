"""An engine reads the parameters to their end before it applies what those it knows do not admit."""

from collections.abc import Callable

import pytest

from schemas.codec import Decoder
from schemas.messages import Alert
from schemas.parameters import AssetParameters, Parameter
from schemas.topics import ALERTS
from tests.audit.scripts import Script, instrument, opened


@pytest.mark.parametrize(
    ("record", "event"),
    [
        (instrument(price_increment="0.01"), lambda s: s.fill("alice", "0.001", "10000.05")),
        (instrument(symbol="DOGE-PERP"), lambda s: s.fill("alice", "0.001", "10000", symbol="DOGE-PERP")),
        (instrument(symbol="DOGE-PERP"), lambda s: s.transfer("alice", "5", margin="DOGE-PERP")),
        (AssetParameters(asset="EUR", decimals=2), lambda s: s.transfer("alice", "-5", asset="EUR")),
        (AssetParameters(asset="USDC", decimals=7), lambda s: s.transfer("alice", "-0.0000001")),
    ],
)
def test_what_the_known_parameters_do_not_admit_makes_it_read_on(
    record: Parameter, event: Callable[[Script], None]
) -> None:
    script = opened()
    engine = script.running._engine
    engine._parameter_log.poll = list  # its fetch has not brought the newest records yet
    script.running.parameters(record)
    event(script)
    script.cycle()
    state = engine._shards[0].accounts["alice"]
    assert not state.suspended
    assert not state.holds_back
    assert _kinds(script) & {"suspended", "credit_parked"} == set()


def test_what_nothing_admits_yet_waits() -> None:
    script = opened()
    script.fill("alice", "0.001", "10000.05")
    script.cycle()
    assert "suspended" in _kinds(script)
    script.running.parameters(instrument(price_increment="0.01"))
    script.cycle()
    assert "resumed" in _kinds(script)
    assert not script.running._engine._shards[0].accounts["alice"].holds_back


def _kinds(script: Script) -> set[str]:
    decode = Decoder[Alert](Alert)
    return {decode(record.value()).kind for record in script.log.records(ALERTS)}
