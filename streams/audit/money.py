"""Where the money is: what the inputs brought in, asset by asset, against what the accounts hold.

A fill moves ``quantity * price`` from one account's position cash to the other's and takes a fee out of both; nothing
but transfers brings money in. So the balances and position cash of a shard are what its frames say, exactly and at
every commit; and over all shards, once both sides of every trade have arrived, transfers less fees.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal, localcontext

from schemas.codec import DecodeError, Decoder
from schemas.messages import AccountRow, EventFrame, Trade, Transfer
from schemas.topics import EVENTS, PARAMETERS, TRADES, TRANSFERS, dead_letter_topic
from streams.audit.findings import Findings
from streams.audit.log import Log, header
from streams.errors import AuditError, InputError
from streams.margin.fixed_point import EXACT, format_decimal
from streams.margin.parameters import RiskParameters

_EVENT_FRAME = Decoder[EventFrame](EventFrame)
_ROW = Decoder[AccountRow](AccountRow)
_TRADE = Decoder[Trade](Trade)
_TRANSFER = Decoder[Transfer](Transfer)

Sums = dict[str, Decimal]


def _sums() -> Sums:
    return defaultdict(Decimal)


@dataclass(slots=True)
class Flows:
    """What moved, by asset: ``transfers`` in (less out), ``fees`` paid, ``cash`` that fills brought (+) or cost (-).

    ``quantity`` is that of all fills by symbol; with both sides of every trade it is 0, and so is ``cash``.
    """

    transfers: Sums = field(default_factory=_sums)
    fees: Sums = field(default_factory=_sums)
    cash: Sums = field(default_factory=_sums)
    quantity: Sums = field(default_factory=_sums)

    def add(self, other: "Flows", sign: int = 1) -> None:
        """Add what ``other`` moved (or take it away)."""
        for name in ("transfers", "fees", "cash", "quantity"):
            mine, theirs = getattr(self, name), getattr(other, name)
            for key, amount in theirs.items():
                mine[key] += sign * amount

    def held(self) -> Sums:
        """What accounts hold in the end, by asset."""
        held = _sums()
        for asset in {*self.transfers, *self.fees, *self.cash}:
            held[asset] = self.transfers[asset] + self.cash[asset] - self.fees[asset]
        return held


def settle_assets(log: Log) -> dict[str, str]:
    """The asset that each symbol is settled in.

    Raises:
        AuditError: a symbol has been settled in two assets, so what moved when is not known.
    """
    assets: dict[str, str] = {}
    rules = RiskParameters.empty()
    for message in log.read_range(PARAMETERS, 0, 0):
        with suppress(DecodeError, InputError):
            rules = rules.with_encoded(message.key(), message.value())
        for symbol, instrument in rules.instruments.items():
            if assets.setdefault(symbol, instrument.settle_asset) != instrument.settle_asset:
                raise AuditError(f"symbol {symbol} has been settled in two assets: money is not added up")
    return assets


def flows_of_frames(log: Log, shard: int, end: int, assets: Mapping[str, str]) -> Flows:
    """What the frames of ``shard`` below offset ``end`` say was moved; a repeated transfer moves nothing.

    A symbol that no rule names has no settle asset and is left out.
    """
    flows, last = Flows(), dict[str, int]()
    with localcontext(EXACT):
        for message in log.read_range(EVENTS, shard, 0, end):
            try:
                frame = _EVENT_FRAME(message.value())
            except DecodeError:
                continue  # it went to the dead letters as a whole
            _add_transfers(flows, frame, last)
            _add_fills(flows, frame, assets)
    return flows


def flows_unapplied(log: Log, shard: int, end: int, assets: Mapping[str, str]) -> Flows:
    """What of those frames is in the dead letters, because an account could not take it."""
    flows = Flows()
    for message in log.read_range(dead_letter_topic(EVENTS), 0, 0):
        place = (header(message, "dlq.topic"), header(message, "dlq.partition"))
        if place != (EVENTS, str(shard)) or int(header(message, "dlq.offset") or end) >= end:
            continue
        with suppress(DecodeError):
            frame = _EVENT_FRAME(message.value())
            _add_transfers(flows, frame, {})
            _add_fills(flows, frame, assets)
    return flows


def flows_of_exchange(log: Log, assets: Mapping[str, str]) -> Flows:
    """What the exchange's own topics say was moved, each trade with both its sides; repeats move nothing."""
    flows = Flows()
    with localcontext(EXACT):
        for partition in range(log.partitions(TRANSFERS)):
            last: dict[str, int] = {}
            for message in log.read_range(TRANSFERS, partition, 0):
                with suppress(DecodeError):
                    transfer = _TRANSFER(message.value())
                    if transfer.sequence > last.get(transfer.account, -1):
                        last[transfer.account] = transfer.sequence
                        flows.transfers[transfer.asset] += Decimal(transfer.amount)
        for partition in range(log.partitions(TRADES)):
            seen: dict[str, int] = {}
            for message in log.read_range(TRADES, partition, 0):
                with suppress(DecodeError):
                    trade = _TRADE(message.value())
                    if trade.trade_id > seen.get(trade.symbol, -1) and trade.symbol in assets:
                        flows.fees[assets[trade.symbol]] += Decimal(trade.maker.fee) + Decimal(trade.taker.fee)
                    seen[trade.symbol] = max(trade.trade_id, seen.get(trade.symbol, -1))
    return flows


def held_by(rows: Iterable[bytes], assets: Mapping[str, str]) -> tuple[Sums, Sums]:
    """What the accounts of ``rows`` hold: balances and position cash by asset, and quantities by symbol."""
    held, quantity = _sums(), _sums()
    with localcontext(EXACT):
        for data in rows:
            for group in _ROW(data).groups:
                for asset, amount in group.balances.items():
                    held[asset] += Decimal(amount)
                for position in group.positions:
                    held[assets[position.symbol]] += Decimal(position.cash)
                    quantity[position.symbol] += Decimal(position.quantity)
    return held, quantity


def compare(what: str, wanted: Sums, found: Sums, findings: Findings) -> None:
    """Say for which assets two sums differ."""
    for asset in sorted({*wanted, *found}):
        if wanted[asset] != found[asset]:
            findings.differ(
                f"{what}: {format_decimal(found[asset])} {asset} where it must be {format_decimal(wanted[asset])}"
            )


def _add_transfers(flows: Flows, frame: EventFrame, last: dict[str, int]) -> None:
    columns = frame.transfers
    for account, asset, amount, sequence in zip(
        columns.account, columns.asset, columns.amount, columns.sequence, strict=True
    ):
        if sequence > last.get(account, -1) or frame.repaired:
            flows.transfers[asset] += Decimal(amount)
        last[account] = max(sequence, last.get(account, -1))


def _add_fills(flows: Flows, frame: EventFrame, assets: Mapping[str, str]) -> None:
    columns = frame.fills
    for symbol, quantity, price, fee in zip(columns.symbol, columns.quantity, columns.price, columns.fee, strict=True):
        asset = assets.get(symbol)
        if asset is not None:
            signed = Decimal(quantity)
            flows.cash[asset] -= signed * Decimal(price)
            flows.fees[asset] += Decimal(fee)
            flows.quantity[symbol] += signed
