"""What an engine computes for a fill and for the row of the account that it changes, and how that is divided.

``python -m streams.bench.rows [accounts]`` applies fills, uniformly drawn, to accounts of 1, 3 and 10 positions over 50
symbols, in this process and without a broker: a frame is decoded, applied and decided, and its rows are taken, as for
one commit. Printed is CPU time; beside the rows as the engine makes them stands what the same rows cost as structs that
are then encoded. Every row is compared with those bytes.
"""

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.codec import Decoder, encode
from schemas.messages import EventFrame, FillColumns, Mark, MarkFrame, TransferColumns
from schemas.parameters import AssetParameters
from streams.bench.market import parameters
from streams.clearing.account import account_row
from streams.clearing.shard import Shard
from streams.errors import MarginClearingError
from streams.margin.parameters import RiskParameters

SYMBOLS = tuple(f"S{number}-PERP" for number in range(50))
FRAME_FILLS = 1_000
FRAMES = 40
POSITIONS = (1, 3, 10)
_T0 = 1_700_000_000_000_000
_FRAME = Decoder[EventFrame](EventFrame)


@dataclass(slots=True)
class RowCosts:
    """Microseconds of CPU: of a fill to be decoded, applied and decided; of a row as it is taken, as structs, and as
    structs that are encoded."""

    accounts: int
    positions: int
    fills: int = 0
    rows: int = 0
    decode_us: float = 0.0
    apply_us: float = 0.0
    decide_us: float = 0.0
    take_us: float = 0.0
    struct_us: float = 0.0
    encode_us: float = 0.0

    def __str__(self) -> str:
        fill, row = 1 / max(self.fills, 1), 1 / max(self.rows, 1)
        reference = self.struct_us + self.encode_us
        return (
            f"{self.accounts:,} accounts of {self.positions:>2} positions: a fill "
            f"{self.decode_us * fill:.2f} us to decode, {self.apply_us * fill:.2f} to apply, "
            f"{self.decide_us * fill:.2f} to decide; a row {self.take_us * row:.2f} to take, "
            f"beside {self.struct_us * row:.2f} as structs and {self.encode_us * row:.2f} to encode them "
            f"({reference / max(self.take_us, 1e-9):.1f} times as much)"
        )


class _Clock:
    """CPU time of this thread between two calls, in microseconds."""

    def __init__(self) -> None:
        self._last = time.thread_time_ns()

    def lap(self) -> float:
        now = time.thread_time_ns()
        passed, self._last = now - self._last, now
        return passed / 1e3


def bench_rows(accounts: int, positions: int, seed: int = 1, frames: int = FRAMES) -> RowCosts:
    """Measure ``frames`` frames of fills, a commit each, once every account has its positions.

    Raises:
        MarginClearingError: a row is not what its account's structs are encoded to.
    """
    drawn = random.Random(seed)
    held = [drawn.sample(SYMBOLS, positions) for _ in range(accounts)]
    shard = _shard(held)
    costs = RowCosts(accounts, positions)
    for _ in range(frames):
        chosen = [drawn.randrange(accounts) for _ in range(FRAME_FILLS)]
        fills = [(account, drawn.choice(held[account])) for account in chosen]
        _measure(shard, encode(EventFrame(time=_T0, fills=_fills(fills, drawn))), costs)
    return costs


def _measure(shard: Shard, frame: bytes, costs: RowCosts) -> None:
    clock = _Clock()
    decoded = _FRAME(frame)
    costs.decode_us += clock.lap()
    shard.apply_events(shard.events_next, decoded)
    costs.apply_us += clock.lap()
    shard.decide_touched()
    costs.decide_us += clock.lap()
    taken = shard.take().rows
    costs.take_us += clock.lap()
    structs = [account_row(shard.accounts[account], shard.portfolio.ledger) for account in taken]
    costs.struct_us += clock.lap()
    expected = [None if row is None else encode(row) for row in structs]
    costs.encode_us += clock.lap()
    if list(taken.values()) != expected:
        raise MarginClearingError("a row is not what its account's structs are encoded to")
    costs.fills += len(decoded.fills.account)
    costs.rows += len(taken)


def _shard(held: Sequence[Sequence[str]]) -> Shard:
    """A shard in which every account has collateral and a position in each of its symbols."""
    rules = RiskParameters.build([*parameters(SYMBOLS), AssetParameters(asset="USDT", decimals=6)])
    shard, drawn, count = Shard(0, rules), random.Random(0), len(held)
    marks = tuple(Mark(symbol=symbol, price="100", status="live", publish_time=_T0) for symbol in SYMBOLS)
    shard.apply_marks(0, MarkFrame(time=_T0, marks=marks, full=True))
    deposits = TransferColumns(
        account=[_name(number) for number in range(count)],
        margin=["cross"] * count,
        asset=["USDC"] * count,
        amount=[f"{1_000_000 + number}.25" for number in range(count)],
        sequence=[0] * count,
        transfer_id=["t"] * count,
    )
    opened = [(number, symbol) for number, symbols in enumerate(held) for symbol in symbols]
    for frame in (
        EventFrame(time=_T0, transfers=deposits),
        EventFrame(time=_T0, fills=_fills(opened, drawn)),
    ):
        shard.apply_events(shard.events_next, frame)
        shard.decide_touched()
        shard.take()
    return shard


def _fills(chosen: Sequence[tuple[int, str]], drawn: random.Random) -> FillColumns:
    count = len(chosen)
    return FillColumns(
        account=[_name(number) for number, _ in chosen],
        margin=["cross"] * count,
        symbol=[symbol for _, symbol in chosen],
        quantity=[f"{drawn.choice(('', '-'))}{drawn.randint(1, 5_000) / 1_000}" for _ in chosen],
        price=[f"{100 + drawn.randint(-50, 50) / 10}" for _ in chosen],
        fee=[f"{drawn.randint(-1_000, 400_000) / 1e6:.6f}" for _ in chosen],
        order_id=[f"order-{number}" for number in range(count)],
        trade_id=list(range(count)),
    )


def _name(number: int) -> str:
    return f"account-{number:07d}"


if __name__ == "__main__":
    for number in POSITIONS:
        print(bench_rows(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000, number))
