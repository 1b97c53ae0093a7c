"""A recorded market: the trades and quotes that the demo replays, read from CSV (plain or gzip) and checked in full.

Promises that every row is well-formed and that a market can be made of the whole: each symbol has trades and two-sided
quotes at the same time. When and as whose trades the rows are sent again is left to others.
"""

import csv
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from schemas.types import Identifier, PositiveDecimal, Sequence, Side, Symbol, TimeUs
from streams.demo.errors import RecordingError

CARRIED = Path(__file__).parent / "data" / "market-2024-08-08"
"""The recording that comes with the project; its README says where it is from."""

Row = TypeVar("Row", bound=msgspec.Struct)


class _TradeRow(msgspec.Struct, frozen=True):
    local_time_us: TimeUs
    symbol: Symbol
    trade_id: Sequence
    price: PositiveDecimal
    quantity: PositiveDecimal
    aggressor_side: Side


class _QuoteRow(msgspec.Struct, frozen=True):
    local_time_us: TimeUs
    source: Identifier
    symbol: Symbol
    best_bid: PositiveDecimal
    best_ask: PositiveDecimal


_REASONS = {
    "local_time_us": "must be whole microseconds since the Unix epoch",
    "symbol": "must be letters, digits and ._/- (at most 32)",
    "source": "must be printable ASCII without spaces",
    "trade_id": "must be a whole number",
    "aggressor_side": "must be buy or sell",
} | dict.fromkeys(("price", "quantity", "best_bid", "best_ask"), "must be a decimal number above 0")


@dataclass(frozen=True, slots=True)
class RecordedTrade:
    """A market trade. ``aggressor_side`` is the taker's."""

    time_us: int
    symbol: str
    price: str
    quantity: str
    aggressor_side: Side


@dataclass(frozen=True, slots=True)
class RecordedQuote:
    """The exact middle of one source's best bid and ask."""

    time_us: int
    source: str
    symbol: str
    price: str


@dataclass(frozen=True)
class Recording:
    """Trades and quotes in the order in which the recorder received them."""

    trades: tuple[RecordedTrade, ...]
    quotes: tuple[RecordedQuote, ...]

    @cached_property
    def rows(self) -> tuple[RecordedTrade | RecordedQuote, ...]:
        """Everything in order of time; a quote comes before a trade of the same instant."""
        merged: list[RecordedTrade | RecordedQuote] = [*self.quotes, *self.trades]
        return tuple(sorted(merged, key=lambda row: row.time_us))

    @property
    def first_us(self) -> int:
        return self.rows[0].time_us

    @property
    def seconds(self) -> float:
        """How long the market was recorded."""
        return (self.rows[-1].time_us - self.first_us) / 1_000_000

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        return tuple(sorted({trade.symbol for trade in self.trades}))

    def sources(self, symbol: str) -> tuple[str, ...]:
        """The sources that quote ``symbol``."""
        return tuple(sorted({quote.source for quote in self.quotes if quote.symbol == symbol}))

    def first_seconds(self, seconds: float) -> "Recording":
        """The first ``seconds`` of the market.

        Raises:
            RecordingError: what is left is no market any more.
        """
        end = self.first_us + int(seconds * 1_000_000)
        cut = replace(
            self,
            trades=tuple(trade for trade in self.trades if trade.time_us <= end),
            quotes=tuple(quote for quote in self.quotes if quote.time_us <= end),
        )
        _check(cut, f"the first {seconds:g} s of the recording")
        return cut


def load_recording(trades: Path, quotes: Path) -> Recording:
    """Read a recording in the carried one's format. Further columns are ignored.

    Raises:
        RecordingError: a file cannot be read, a row is bad (file, line and field are named), or no market can be made
            of the rows.
    """
    recording = Recording(
        trades=tuple(sorted(_trades(trades), key=lambda trade: trade.time_us)),
        quotes=tuple(sorted(_quotes(quotes), key=lambda quote: quote.time_us)),
    )
    if not recording.trades:
        raise RecordingError(f"{trades}: it has no trades")
    if not recording.quotes:
        raise RecordingError(f"{quotes}: it has no quotes")
    _check(recording, f"{trades} and {quotes}")
    return recording


def carried_recording() -> Recording:
    """The recording that comes with the project: 345 s of three venues, two symbols."""
    return load_recording(CARRIED / "trades.csv.gz", CARRIED / "quotes.csv.gz")


def canonical(value: Decimal) -> str:
    """``value`` without an exponent and without trailing zeros."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


# --- rows ------------------------------------------------------------------------------------------------------------


def _trades(path: Path) -> Iterator[RecordedTrade]:
    seen: set[tuple[str, int]] = set()
    for line, row in _rows(path, _TradeRow):
        if (row.symbol, row.trade_id) in seen:
            raise RecordingError(f"{path} line {line}, trade_id: {row.trade_id} of {row.symbol} stands there twice")
        seen.add((row.symbol, row.trade_id))
        price, quantity = canonical(Decimal(row.price)), canonical(Decimal(row.quantity))
        yield RecordedTrade(row.local_time_us, row.symbol, price, quantity, row.aggressor_side)


def _quotes(path: Path) -> Iterator[RecordedQuote]:
    for line, row in _rows(path, _QuoteRow):
        bid, ask = Decimal(row.best_bid), Decimal(row.best_ask)
        if bid > ask:
            raise RecordingError(f"{path} line {line}, best_bid: {bid} is above the best ask {ask}")
        middle = (bid + ask) / 2
        if middle * 2 != bid + ask:
            raise RecordingError(f"{path} line {line}, best_bid: {bid} and {ask} have no exact middle in 28 digits")
        yield RecordedQuote(row.local_time_us, row.source, row.symbol, canonical(middle))


def _rows(path: Path, row_type: type[Row]) -> Iterator[tuple[int, Row]]:
    """Line number and checked row of everything in ``path``."""
    try:
        with _opened(path) as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in row_type.__struct_fields__ if name not in (reader.fieldnames or ())]
            if missing:
                raise RecordingError(f"{path} line 1: no column {', '.join(missing)}")
            for values in reader:
                yield reader.line_num, _row(path, reader.line_num, values, row_type)
    except (OSError, EOFError, zlib.error) as error:
        raise RecordingError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise RecordingError(f"{path}: not UTF-8 text: {error}") from error
    except csv.Error as error:
        raise RecordingError(f"{path}: no CSV: {error}") from error


def _opened(path: Path) -> IO[str]:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    opener: Callable[..., Any] = gzip.open if compressed else open
    opened: IO[str] = opener(path, "rt", encoding="utf-8", newline="")
    return opened


def _row(path: Path, line: int, values: dict[str, Any], row_type: type[Row]) -> Row:
    try:
        return msgspec.convert(values, row_type, strict=False)
    except msgspec.ValidationError as error:
        field = str(error).rpartition("`$.")[2].rstrip("`")
        raise RecordingError(f"{path} line {line}, {field}: {values.get(field)!r} {_REASONS[field]}") from None


# --- the whole -------------------------------------------------------------------------------------------------------


def _check(recording: Recording, what: str) -> None:
    """Whether the rows are a market: both sides of it, at the same time.

    Raises:
        RecordingError: they are not, and why.
    """
    traded, quoted = _spans(recording.trades), _spans(recording.quotes)
    if not traded or not quoted:
        raise RecordingError(f"{what}: no {'quotes' if traded else 'trades'}")
    for symbol in sorted(traded.keys() - quoted.keys()):
        raise RecordingError(f"{what}: {symbol} has trades and no quotes, so it would never have a mark")
    for symbol in sorted(quoted.keys() - traded.keys()):
        raise RecordingError(f"{what}: {symbol} has quotes and no trades, so nobody could hold it")
    for symbol, (first, last) in sorted(traded.items()):
        quotes_first, quotes_last = quoted[symbol]
        if last < quotes_first or quotes_last < first:
            raise RecordingError(f"{what}: the trades and the quotes of {symbol} are of different times")


def _spans(rows: Iterable[RecordedTrade | RecordedQuote]) -> dict[str, tuple[int, int]]:
    """First and last time of each symbol."""
    spans: dict[str, tuple[int, int]] = {}
    for row in chain(rows):
        first, last = spans.get(row.symbol, (row.time_us, row.time_us))
        spans[row.symbol] = (min(first, row.time_us), max(last, row.time_us))
    return spans
