"""What the demo plays: recordings are read strictly, and the same seed draws the same people."""

import gzip
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        # Rows that are too short or too long for their header, wherever they stand.
        (
            TRADES + "1,1,X-PERP,1,100.5,2\n",
            QUOTES + A_QUOTE,
            r"line 2, column aggressor_side: missing: 6 values for 7",
        ),
        (TRADES + A_TRADE + "1,1\n", QUOTES + A_QUOTE, r"line 3, column symbol: missing: 2 values for 7"),
        (
            TRADES + "1,1,X-PERP,1,100.5,2,buy,9\n",
            QUOTES + A_QUOTE,
            r"line 2, column 8: '9' is too much: 8 values for 7",
        ),
        (TRADES + "1,1,X-PERP,1,100,5,2,buy\n", QUOTES + A_QUOTE, r"line 2, column 8: 'buy' is too much"),
        (TRADES + A_TRADE, QUOTES + A_QUOTE.strip() + ",\n", r"quotes\.csv line 2, column 7: '' is too much"),
        # Headers.
        ("", QUOTES + A_QUOTE, r"trades\.csv line 1: the file is empty"),
        (" \n\n", QUOTES + A_QUOTE, r"trades\.csv line 1: the file is empty"),
        (
            TRADES.replace("symbol", "price") + A_TRADE,
            QUOTES + A_QUOTE,
            r"trades\.csv line 1, column price: .* 2 times",
        ),
        (TRADES.replace("event_time_us", "local_time_us"), QUOTES, r"line 1, column local_time_us: .* 2 times"),
        (TRADES.replace(",price", ""), QUOTES, r"line 1: no column price; the columns are 'event_time_us, "),
        (TRADES.replace(",", ";"), QUOTES, r"line 1: no column local_time_us, .*separated by commas"),
        # Values.
        (TRADES + "1,1,X-PERP,1,1e3,2,buy\n", QUOTES + A_QUOTE, r"line 2, column price: '1e3' must be a decimal"),
        (TRADES + "1,1,X-PERP,1,NaN,2,buy\n", QUOTES + A_QUOTE, r"line 2, column price: 'NaN' must be a decimal"),
        (TRADES + "1,1,X-PERP,1,100.5,-2,buy\n", QUOTES + A_QUOTE, r"line 2, column quantity: '-2' must be a decimal"),
        (TRADES + "1,1,X-PERP,1,,2,buy\n", QUOTES + A_QUOTE, r"line 2, column price: '' must be a decimal"),
        (TRADES + "1,x,X-PERP,1,1,2,buy\n", QUOTES + A_QUOTE, r"line 2, column local_time_us: 'x' must be whole"),
        (TRADES + "1,-1,X-PERP,1,1,2,buy\n", QUOTES + A_QUOTE, r"line 2, column local_time_us: '-1' must be whole"),
        (TRADES + A_TRADE + A_TRADE, QUOTES + A_QUOTE, r"line 3, column trade_id: 1 of X-PERP stands there twice"),
        (TRADES + A_TRADE, QUOTES + "1,1,venue,X-PERP,2,1\n", r"line 2, column best_bid: 2 is above the best ask 1"),
        # Times.
        (
            TRADES + "1,5,X-PERP,1,1,2,buy\n\n1,4,X-PERP,2,1,2,buy\n",
            QUOTES + A_QUOTE,
            r"trades\.csv line 4, column local_time_us: 4 is before 5 of the row before: sort the rows",
        ),
        # What is no CSV.
        (TRADES + '1,1,"X-PERP,1,1,2,buy\n', QUOTES + A_QUOTE, r"trades\.csv line 2: no CSV"),
        (TRADES + A_TRADE + '2,2,"X"-PERP,1,1,2,buy\n', QUOTES + A_QUOTE, r"trades\.csv line 3: no CSV"),
        (TRADES + A_TRADE + '2,2,"X\n-PERP",2,1,2,buy\n', QUOTES + A_QUOTE, r"trades\.csv line 3, column symbol"),
    ],
)
def test_a_bad_recording_is_refused_with_the_place(tmp_path: Path, trades: str, quotes: str, said: str) -> None:
    with pytest.raises(RecordingError, match=said):
        load_recording(*write(tmp_path, trades, quotes))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv.gz", (TRADES + A_TRADE).encode(), r"t\.csv\.gz: named \.gz and not compressed with gzip"),
        ("t.csv.gz", gzip.compress((TRADES + A_TRADE).encode())[:-9], r"t\.csv\.gz: Compressed file ended"),
        ("t.csv.gz", gzip.compress(b"x") + b"rest", r"t\.csv\.gz: Not a gzipped file"),
        ("t.csv.gz", b"\x1f\x8b\x08\x00garbage garbage", r"t\.csv\.gz: "),
        ("t.csv.gz", gzip.compress(b""), r"t\.csv\.gz line 1: the file is empty"),
        ("t.csv", TRADES.encode() + b"1,1,X-PERP,1,\xff,2,buy\n", r"t\.csv line 2: not UTF-8 text"),
        ("t.csv", (TRADES + A_TRADE).encode("utf-16"), r"t\.csv line 1: not UTF-8 text"),
        ("t.csv", TRADES.encode() + b"1,1,X\0,1,1,2,buy\n", r"t\.csv line 2"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    _, quotes = write(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordingError, match=said):
        load_recording(tmp_path / name, quotes)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text + "\n\n",
        lambda text: "".join(f"{line},more\n" for line in text.splitlines()),
        lambda text: "".join(",".join(f'"{value}"' for value in line.split(",")) + "\n" for line in text.splitlines()),
    ],
    ids=["byte order mark", "windows", "empty lines", "further column", "quoted"],
)
def test_what_means_the_same_is_read_the_same(tmp_path: Path, change: Callable[[str], str]) -> None:
    plain = load_recording(*write(tmp_path))
    paths = write(tmp_path)
    for path in paths:
        path.write_bytes(change(path.read_text()).encode())
    assert load_recording(*paths) == plain


@given(data=st.data())
def test_whatever_the_file_is_it_is_read_or_refused_with_its_place(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes of any file, and files that are right but for one place, give a recording or one error that names it."""
    lines = [TRADES, A_TRADE, "2,2,X-PERP,2,100.5,2,sell\n"]
    number = data.draw(st.integers(0, 2))
    lines[number] = data.draw(
        st.text(max_size=40)
        | st.just(lines[number]).map(lambda line: line.replace(",", ",,", 1))
        | st.permutations(lines[number].strip().split(",")).map(lambda values: ",".join(values) + "\n")
    )
    text = "".join(lines).encode("utf-8", "surrogatepass")
    content = data.draw(st.just(text) | st.just(gzip.compress(text)) | st.binary(max_size=60))
    trades, quotes = write(tmp_path_factory.mktemp("recording"))
    trades.write_bytes(content)
    try:
        recording = load_recording(trades, quotes)
    except RecordingError as error:
        refusal = str(error)
    else:
        refusal = f"none of {trades}"
        assert [row.time_us for row in recording.trades] == sorted(row.time_us for row in recording.trades)
        assert all(Decimal(row.price) > 0 < Decimal(row.quantity) for row in recording.trades)
    assert str(trades) in refusal


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
        (DemoOptions(speed=float("inf")), "--speed"),
        (DemoOptions(seconds=-1), "--seconds"),
        (DemoOptions(seconds=float("inf")), "--seconds"),
        (DemoOptions(accounts=0), "--accounts"),
        (DemoOptions(engines=0), "--engines"),
        (DemoOptions(summary=Path("/nowhere/at/all.json")), "--summary"),
        (DemoOptions(summary=Path("/")), "--summary /: is a folder"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: DemoOptions, said: str) -> None:
    with pytest.raises(DemoError, match=said):
        options.check()
