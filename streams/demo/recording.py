"""A recorded market: the trades and quotes that the demo replays, read from CSV (plain or gzip) and checked in full.

Promises that every row is well-formed and that a market can be made of the whole: each symbol has trades and two-sided
quotes at the same time. When and as whose trades the rows are sent again is left to others.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TypeVar

import msgspec

from schemas.types import Identifier, PositiveDecimal, Sequence, Side, Symbol, TimeUs
from streams.demo.errors import RecordingError

CARRIED = Path(__file__).parent / "data" / "market-2024-08-08"
"""The recording that comes with the project; its README says where it is from."""

Row = TypeVar("Row", bound=msgspec.Struct)

_TIME = "local_time_us"
_GZIP = b"\x1f\x8b"
_SHOWN_MAX = 120


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
} | dict.fromkeys(("price", "quantity", "best_bid", "best_ask"), "must be a decimal number above 0, such as 61800.95")


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
    """Read a recording in the carried one's format: UTF-8 with or without a byte order mark, in order of time.

    Further columns and lines without anything are ignored.

    Raises:
        RecordingError: a file cannot be read, a row is bad (file, line and column are named), or no market can be made
            of the rows.
    """
    recording = Recording(tuple(_trades(trades)), tuple(_quotes(quotes)))
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
            raise _refused(path, line, "trade_id", f"{row.trade_id} of {row.symbol} stands there twice")
        seen.add((row.symbol, row.trade_id))
        price, quantity = canonical(Decimal(row.price)), canonical(Decimal(row.quantity))
        yield RecordedTrade(row.local_time_us, row.symbol, price, quantity, row.aggressor_side)


def _quotes(path: Path) -> Iterator[RecordedQuote]:
    for line, row in _rows(path, _QuoteRow):
        bid, ask = Decimal(row.best_bid), Decimal(row.best_ask)
        if bid > ask:
            raise _refused(path, line, "best_bid", f"{bid} is above the best ask {ask}")
        middle = (bid + ask) / 2
        if middle * 2 != bid + ask:
            raise _refused(path, line, "best_bid", f"{bid} and {ask} have no exact middle in 28 digits")
        yield RecordedQuote(row.local_time_us, row.source, row.symbol, canonical(middle))


def _rows(path: Path, row_type: type[Row]) -> Iterator[tuple[int, Row]]:
    """Line number and checked row of everything in ``path``, in order of ``local_time_us``.

    A row's line is the one it begins in: a quoted value may hold line ends.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    line = 1
    try:
        header = next(reader, [])
        places = _places(path, header, row_type)
        latest = 0
        line = reader.line_num + 1
        for values in reader:
            if values:  # a line without anything is none
                row = _row(path, line, header, places, values, row_type)
                time_us: int = getattr(row, _TIME)
                if time_us < latest:
                    raise _refused(path, line, _TIME, f"{time_us} is before {latest} of the row before: sort the rows")
                latest = time_us
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise RecordingError(f"{path} line {line}: no CSV: {error}") from error


def _text(path: Path) -> str:
    """The content of ``path``, unpacked if it is compressed, without a byte order mark."""
    try:
        data = path.read_bytes()
        if data[:2] == _GZIP:
            data = gzip.decompress(data)
        elif path.suffix == ".gz" and data:
            raise RecordingError(f"{path}: named .gz and not compressed with gzip: name it .csv, or compress it")
    except (OSError, EOFError, zlib.error) as error:
        raise RecordingError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not data.strip():
        raise RecordingError(f"{path} line 1: the file is empty; its first line must name the columns")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RecordingError(f"{path} line {line}: not UTF-8 text: {error.reason}") from error


def _places(path: Path, header: list[str], row_type: type[Row]) -> dict[str, int]:
    """Where each column that is read stands in a row."""
    doubled = [name for number, name in enumerate(header) if name and name in header[:number]]
    if doubled:
        raise RecordingError(f"{path} line 1, column {doubled[0]}: it stands there {header.count(doubled[0])} times")
    missing = [name for name in row_type.__struct_fields__ if name not in header]
    if missing:
        shown = ", ".join(header)[:_SHOWN_MAX]
        raise RecordingError(
            f"{path} line 1: no column {', '.join(missing)}; the columns are {shown!r}, separated by commas"
        )
    return {name: header.index(name) for name in row_type.__struct_fields__}


def _row(
    path: Path, line: int, header: list[str], places: dict[str, int], values: list[str], row_type: type[Row]
) -> Row:
    if len(values) < len(header):
        raise _refused(path, line, header[len(values)], f"missing: {len(values)} values for {len(header)} columns")
    if len(values) > len(header):
        beyond = values[len(header)][:_SHOWN_MAX]
        raise RecordingError(
            f"{path} line {line}, column {len(header) + 1}: {beyond!r} is too much: {len(values)} values for "
            f"{len(header)} columns"
        )
    named = {name: values[place] for name, place in places.items()}
    try:
        return msgspec.convert(named, row_type, strict=False)
    except msgspec.ValidationError as error:
        field = str(error).rpartition("`$.")[2].rstrip("`")
        raise _refused(path, line, field, f"{named[field][:_SHOWN_MAX]!r} {_REASONS[field]}") from None


def _refused(path: Path, line: int, column: str, what: str) -> RecordingError:
    return RecordingError(f"{path} line {line}, column {column}: {what}")


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
