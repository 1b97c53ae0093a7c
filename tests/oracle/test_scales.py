"""What the oracle measures, and how the scales it publishes come of it."""

from decimal import Decimal
from typing import Any

import pytest

from schemas.messages import Mark
from schemas.parameters import AssetParameters, InstrumentParameters, MarginTier, PolicyParameters, Scale
from schemas.types import MarkStatus
from streams.margin.parameters import RiskParameters
from streams.oracle.scales import ScaleBook

T0 = 1_700_000_000_000_000
SECOND_US = 1_000_000


def instrument(**fields: Any) -> InstrumentParameters:
    return InstrumentParameters(
        symbol="X",
        settle_asset="USD",
        price_increment="0.01",
        quantity_increment="1",
        margin_tiers=(MarginTier(notional_floor="0", maintenance_rate="0.1", initial_rate="0.2"),),
        **fields,
    )


class Measuring:
    """A scale book of two shards with a clock that moves by hand; scales are looked at every 10 s."""

    def __init__(
        self, *records: InstrumentParameters | AssetParameters, half_life_ms: int = 60_000, start: int = T0
    ) -> None:
        self.book = ScaleBook(shards=2)
        policy = PolicyParameters(volatility_half_life_ms=half_life_ms, scale_interval_ms=10_000)
        self.book.set_parameters(RiskParameters.build([policy, *records]))
        self.clock = start
        self.up = False
        self.beat("100")

    def beat(self, price: str, seconds: float = 0, status: MarkStatus = "live") -> dict[str, str]:
        self.clock += int(seconds * SECOND_US)
        marks = [Mark(symbol="X", price=price, status=status, publish_time=self.clock)]
        self.book.observe_marks(marks, self.clock)
        self.book.step(marks, self.clock)
        return self.book.scales

    def swing(self, seconds: int, move: float = 0.001) -> dict[str, str]:
        """Up and down by ``move`` every second."""
        for _ in range(seconds):
            self.up = not self.up
            self.beat(f"{100 * (1 + move * self.up):.4f}", 1)
        return self.book.scales


VOLATILE = instrument(volatility_scale=Scale(reference="0.1", cap="3", change_per_minute="6"))
CROWDED = instrument(open_interest_scale=Scale(reference="1000", change_per_minute="60"))


def test_volatility_is_that_of_a_day() -> None:
    """0.1 % a second is 0.001 * sqrt(86,400) = 29.4 % a day: 2.94 times the reference."""
    assert Measuring(VOLATILE).swing(300) == {"instrument:X": "2.94"}


def test_a_calm_market_goes_back_to_the_floor_and_is_not_named_there() -> None:
    measuring = Measuring(VOLATILE)
    measuring.swing(300)
    for _ in range(80):
        scales = measuring.beat("100", 10)
    assert scales == {}


def test_a_scale_moves_no_faster_than_its_rules_say() -> None:
    measuring = Measuring(instrument(volatility_scale=Scale(reference="0.1", change_per_minute="0.6")))
    seen = {second: measuring.swing(1).get("instrument:X", "1") for second in range(1, 91)}
    assert max(Decimal(scale) for scale in seen.values()) > 1
    for second in range(1, 31):
        assert Decimal(seen[second + 60]) - Decimal(seen[second]) <= Decimal("0.6")


def test_rules_slower_than_an_increment_a_step_still_move() -> None:
    """0.03 a minute is one increment in 20 s: two steps of 10 s."""
    measuring = Measuring(instrument(open_interest_scale=Scale(reference="1000", change_per_minute="0.03")))
    for shard in (0, 1):
        measuring.book.observe_open_interest(shard, {"X": "10"})
    assert [measuring.beat("100", 10).get("instrument:X", "1") for _ in range(6)] == [
        "1", "1.01", "1.01", "1.02", "1.02", "1.03",
    ]  # fmt: skip


def test_nothing_is_scaled_before_half_of_the_average_is_measured() -> None:
    measuring = Measuring(VOLATILE, half_life_ms=60_000)
    assert measuring.swing(59) == {}
    assert measuring.swing(11) != {}


def test_only_live_marks_are_measured() -> None:
    measuring = Measuring(VOLATILE)
    for second in range(300):
        measuring.beat(str(100 + second % 2), 1, status="halted")
    assert measuring.book.scales == {}


def test_open_interest_is_the_sum_of_all_shards_at_the_mark() -> None:
    measuring = Measuring(CROWDED)
    measuring.book.observe_open_interest(0, {"X": "10"})
    assert measuring.beat("100", 10) == {}
    measuring.book.observe_open_interest(1, {"Y": "5"})
    assert measuring.beat("100", 10) == {}
    measuring.book.observe_open_interest(1, {"X": "15"})
    assert measuring.beat("100", 10) == {"instrument:X": "2.5"}
    assert measuring.beat("80", 10) == {"instrument:X": "2"}


def test_volatility_and_open_interest_multiply() -> None:
    measuring = Measuring(
        instrument(
            volatility_scale=Scale(reference="0.1", cap="2", change_per_minute="60"),
            open_interest_scale=Scale(reference="1000", cap="1.5", change_per_minute="60"),
        )
    )
    for shard in (0, 1):
        measuring.book.observe_open_interest(shard, {"X": "10"})
    assert measuring.swing(300) == {"instrument:X": "3"}


def test_an_assets_haircut_follows_the_symbol_that_prices_it() -> None:
    asset = AssetParameters(
        asset="COIN", price_symbol="X", volatility_scale=Scale(reference="0.1", cap="2", change_per_minute="60")
    )
    assert Measuring(asset).swing(300) == {"asset:COIN": "2"}


def test_a_restart_goes_on_from_the_scales_published_and_from_what_was_measured() -> None:
    before = Measuring(VOLATILE)
    before.swing(300)
    state = before.book.volatility("X")
    assert state is not None
    after = Measuring(VOLATILE, start=before.clock)
    after.book.restore({"instrument:X": "2.5"})
    after.book.restore_volatility("X", state)
    assert after.swing(9) == {"instrument:X": "2.5"}
    assert after.swing(11)["instrument:X"] == "2.94"


def test_without_rules_rates_are_at_once_what_the_record_says() -> None:
    measuring = Measuring(VOLATILE)
    measuring.swing(300)
    measuring.book.set_parameters(RiskParameters.build([instrument()]))
    assert measuring.beat("100", 10) == {}


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_clock_that_does_not_move_measures_nothing(seconds: int) -> None:
    measuring = Measuring(VOLATILE)
    before = measuring.book.volatility("X")
    measuring.beat("150", seconds)
    assert measuring.book.volatility("X") == before


def test_a_clock_that_was_ahead_and_is_put_right_stops_no_scale() -> None:
    measuring = Measuring(VOLATILE)
    measuring.swing(60)
    measuring.clock -= 86_400 * SECOND_US
    before = measuring.swing(1)
    assert measuring.swing(120, 0.01) != before
