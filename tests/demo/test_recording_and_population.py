"""What the demo plays: recordings are read strictly, and the same seed draws the same people."""

import gzip
from decimal import Decimal
from pathlib import Path

import pytest

from streams.demo.errors import DemoError, RecordingError
from streams.demo.market import market_of
from streams.demo.population import draw_population
from streams.demo.recording import Recording, carried_recording, load_recording
from streams.demo.run import DemoOptions
from streams.margin.parameters import RiskParameters

TRADES = "event_time_us,local_time_us,symbol,trade_id,price,quantity,aggressor_side\n"
QUOTES = "event_time_us,local_time_us,source,symbol,best_bid,best_ask\n"
A_TRADE = "1,1,X-PERP,1,100.5,2,buy\n"
A_QUOTE = "1,1,venue,X-PERP,100,101\n"


def write(folder: Path, trades: str = TRADES + A_TRADE, quotes: str = QUOTES + A_QUOTE) -> tuple[Path, Path]:
    paths = folder / "trades.csv", folder / "quotes.csv"
    paths[0].write_text(trades)
    paths[1].write_text(quotes)
    return paths


@pytest.fixture(scope="module")
def recording() -> Recording:
    return carried_recording()


def test_the_carried_recording_is_whole(recording: Recording) -> None:
    assert (len(recording.trades), len(recording.quotes)) == (35_389, 2_774)
    assert recording.symbols == ("BTC-PERP", "ETH-PERP")
    assert recording.sources("BTC-PERP") == ("binance-coinm", "binance-spot", "binance-usdm")
    times = [row.time_us for row in recording.rows]
    assert times == sorted(times)


def test_a_quote_is_the_exact_middle(tmp_path: Path) -> None:
    assert load_recording(*write(tmp_path)).quotes[0].price == "100.5"


def test_a_plain_and_a_compressed_file_are_the_same(tmp_path: Path) -> None:
    trades, quotes = write(tmp_path)
    packed = tmp_path / "trades.csv.gz"
    packed.write_bytes(gzip.compress(trades.read_bytes()))
    assert load_recording(packed, quotes) == load_recording(trades, quotes)


@pytest.mark.parametrize(
    ("trades", "quotes", "said"),
    [
        (TRADES + "1,1,X-PERP,1,abc,2,buy\n", QUOTES + A_QUOTE, r"trades\.csv.*2.*price"),
        (TRADES + A_TRADE + "1,1,X-PERP,2,100,0,buy\n", QUOTES + A_QUOTE, r"trades\.csv.*3.*quantity"),
        (TRADES + "1,1,X-PERP,1,1,1,both\n", QUOTES + A_QUOTE, "aggressor_side"),
        (TRADES + A_TRADE, QUOTES + "1,1,venue,X-PERP,-1,1\n", r"quotes\.csv.*2.*best_bid"),
        (TRADES, QUOTES + A_QUOTE, "trades"),
        (TRADES + A_TRADE, QUOTES, "quotes"),
        ("a,b\n1,2\n", QUOTES + A_QUOTE, r"trades\.csv"),
        (TRADES + A_TRADE, QUOTES + "1,1,venue,Y-PERP,1,1\n", "X-PERP"),
    ],
)
def test_a_bad_recording_is_refused_with_the_place(tmp_path: Path, trades: str, quotes: str, said: str) -> None:
    with pytest.raises(RecordingError, match=said):
        load_recording(*write(tmp_path, trades, quotes))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="nowhere"):
        load_recording(tmp_path / "nowhere.csv", tmp_path / "nowhere.csv")


def test_the_market_of_the_recording_is_accepted_by_the_pipeline(recording: Recording) -> None:
    rules = RiskParameters.build(market_of(recording).parameters)
    assert set(rules.instruments) == {"BTC-PERP", "ETH-PERP"}


def test_an_unknown_symbol_gets_generic_parameters(tmp_path: Path) -> None:
    market = market_of(load_recording(*write(tmp_path)))
    assert "X-PERP" in RiskParameters.build(market.parameters).instruments
    assert market.contracts["X-PERP"].price_increment == Decimal("0.1")


def test_the_same_seed_draws_the_same_people(recording: Recording) -> None:
    market = market_of(recording)
    prices = {"BTC-PERP": Decimal(60000), "ETH-PERP": Decimal(2600)}

    def drawn(seed: int) -> tuple[object, object]:
        people = draw_population(market, prices, size=200, seed=seed, prefix="p-")
        return people.deposits, people.openings

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_everybody_has_a_deposit_and_a_position_in_whole_increments(recording: Recording) -> None:
    market = market_of(recording)
    prices = {"BTC-PERP": Decimal(60000), "ETH-PERP": Decimal(2600)}
    people = draw_population(market, prices, size=500, seed=3, prefix="p-")
    assert {deposit.account for deposit in people.deposits} == set(people.accounts)
    assert {opening.account for opening in people.openings} == set(people.traders)
    for opening in people.openings:
        assert opening.quantity % market.contracts[opening.symbol].quantity_increment == 0
    assert all(deposit.amount > 0 for deposit in people.deposits)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (DemoOptions(trades=Path("x")), "--quotes"),
        (DemoOptions(speed=0), "--speed"),
        (DemoOptions(speed=float("nan")), "--speed"),
        (DemoOptions(seconds=-1), "--seconds"),
        (DemoOptions(accounts=0), "--accounts"),
        (DemoOptions(engines=0), "--engines"),
        (DemoOptions(summary=Path("/nowhere/at/all.json")), "--summary"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: DemoOptions, said: str) -> None:
    with pytest.raises(DemoError, match=said):
        options.check()
