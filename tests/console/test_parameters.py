"""The parameters in force and those refused, read from the topic alone."""

from decimal import Decimal

from schemas.codec import encode
from schemas.messages import MarkFrame
from schemas.parameters import AssetParameters, InstrumentParameters, MarginTier, PolicyParameters
from schemas.topics import MARKS, PARAMETERS
from streams.console.parameters import read_parameters
from tests.given_log import GivenLog

INSTRUMENT = InstrumentParameters(
    symbol="X",
    settle_asset="USD",
    price_increment="1",
    quantity_increment="1",
    margin_tiers=(MarginTier(notional_floor="0", maintenance_rate="0.1", initial_rate="0.2"),),
)


def test_a_refused_record_is_named_until_a_right_one_follows() -> None:
    log = GivenLog()
    log.append(PARAMETERS, encode(AssetParameters(asset="USD")), key="asset:USD")
    log.append(PARAMETERS, encode(INSTRUMENT), key="instrument:X")
    log.append(PARAMETERS, encode(PolicyParameters(margin_call_levels=("0.5",))), key="policy:default")
    log.append(PARAMETERS, b"{}", key="instrument:X")
    parameters, refused = read_parameters(log)
    assert parameters.instruments["X"].steps[0].maintenance_rate == Decimal("0.1")
    assert refused.keys() == {"policy:default", "instrument:X"}
    assert "offset 2" in refused["policy:default"]
    assert "must be above 1" in refused["policy:default"]
    log.append(PARAMETERS, encode(INSTRUMENT), key="instrument:X")
    assert read_parameters(log)[1].keys() == {"policy:default"}


def test_the_scales_in_force_are_those_of_the_last_full_frame() -> None:
    log = GivenLog()
    log.append(PARAMETERS, encode(INSTRUMENT), key="instrument:X")
    for scale, full in (("2", True), ("1.5", True), ("3", False)):
        frame = MarkFrame(time=1, marks=(), full=full, scales={"instrument:X": scale})
        log.append(MARKS, encode(frame))
    parameters, _ = read_parameters(log)
    assert parameters.instruments["X"].steps[0].maintenance_rate == Decimal("0.15")
