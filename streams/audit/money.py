"""Where the money is: what the inputs brought in, asset by asset, against what the accounts hold.

A fill moves ``quantity * price`` from one account's position cash to the other's and takes a fee out of both; one of a
liquidation's order takes the liquidation's fees as well, which its shard gives to a pool. Nothing but transfers brings
money in. So the balances and position cash of a shard, and what is held back until parameters admit it, are what its
frames say, less what it has given to pools, exactly and at every commit; and over all shards, once both sides of every
trade have arrived, transfers less fees and less what the pools have. An account that goes from shard to shard takes its
money along, which no frame of a router says: then the sums hold over all shards together.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal, localcontext

import msgspec

from schemas.codec import DecodeError, Decoder
from schemas.messages import AccountRow, BookedFees, EventFrame, JournalRecord, Trade, Transfer
from schemas.topics import ALERTS, EVENTS, TRADES, TRANSFERS, dead_letter_topic
from streams.audit.findings import Findings
from streams.broker.letter_counts import letter_identity, place_of
from streams.broker.records import Log
from streams.clearing.relocation import rows_in
from streams.clearing.transfers import TransferSequences, Verdict
from streams.errors import AuditError, ContradictionError, RepairError
from streams.feeds.moves import Come, Moves
from streams.feeds.parameters import parameter_steps
from streams.feeds.sources import Sources
from streams.margin.fixed_point import EXACT, format_decimal

_EVENT_FRAME = Decoder[EventFrame](EventFrame)
_ROW = Decoder[AccountRow](AccountRow)
_TRADE = Decoder[Trade](Trade)
_TRANSFER = Decoder[Transfer](Transfer)


class _Told(msgspec.Struct):
    fees: BookedFees | None = None


_TOLD = Decoder[_Told](_Told)

Sums = dict[str, Decimal]


def _sums() -> Sums:
    return defaultdict(Decimal)


@dataclass(slots=True)
class Flows:
    """What moved, by asset: ``transfers`` in (less out), ``fees`` paid, ``cash`` that fills brought (+) or cost (-).

    ``quantity`` is that of all fills by symbol; with both sides of every trade it is 0, and so is ``cash``.
    ``doubtful`` is what of the transfers came again, too late for its account to know that it was a repeat.
    """

    transfers: Sums = field(default_factory=_sums)
    doubtful: Sums = field(default_factory=_sums)
    fees: Sums = field(default_factory=_sums)
    cash: Sums = field(default_factory=_sums)
    quantity: Sums = field(default_factory=_sums)

    def add(self, other: "Flows", sign: int = 1) -> None:
        """Add what ``other`` moved (or take it away)."""
        for name in ("transfers", "doubtful", "fees", "cash", "quantity"):
            mine, theirs = getattr(self, name), getattr(other, name)
            with localcontext(EXACT):
                for key, amount in theirs.items():
                    mine[key] += sign * amount

    def held(self) -> Sums:
        """What accounts hold in the end, by asset."""
        held = _sums()
        with localcontext(EXACT):
            for asset in {*self.transfers, *self.fees, *self.cash}:
                held[asset] = self.transfers[asset] + self.cash[asset] - self.fees[asset]
        return held


def settle_assets(log: Log) -> dict[str, str]:
    """The asset that each symbol is settled in.

    Raises:
        AuditError: a symbol has been settled in two assets, so what moved when is not known.
    """
    assets: dict[str, str] = {}
    for step in parameter_steps(log):
        for symbol, instrument in step.parameters.instruments.items():
            if assets.setdefault(symbol, instrument.settle_asset) != instrument.settle_asset:
                raise AuditError(f"symbol {symbol} has been settled in two assets: money is not added up")
    return assets


def flows_of_frames(log: Log, shard: int, end: int, assets: Mapping[str, str]) -> tuple[Flows, Flows, Flows]:
    """What the frames of ``shard`` below offset ``end`` say was moved: those of routers, those that somebody has
    repaired, and what of the first waits for its accounts, which are still to come from another shard. A repeated
    transfer moves nothing, nor does a row that was there before, or is another shard's.

    A symbol that no parameter record names has no settle asset and is left out.
    """
    routed, repaired, come, sources = Flows(), Flows(), dict[str, _Come](), Sources(moves=Moves(shard))
    refused: set[tuple[int, str, int]] | None = None
    with localcontext(EXACT):
        for message in log.read_range(EVENTS, shard, 0, end):
            try:
                frame = sources.admit(_EVENT_FRAME(message.value()), message.offset())
            except DecodeError:
                continue  # it went to the dead letters as a whole
            if sources.moves.is_due(sources.missing):
                sources.moves.leave()  # whenever it is done: no row of theirs comes to this shard any more
            for accounts in sources.moves.take_come():
                _remember(come, accounts)
                for _, early in accounts.early:
                    _add_fills(routed, early, assets)
                    _add_transfers(routed, early, come)
            _add_fills(repaired if frame.repaired else routed, frame, assets)
            if not frame.repaired:
                _add_transfers(routed, frame, come)
                continue
            _add_transfers(repaired, frame, None)
            refused = _refused_repairs(log, shard) if refused is None else refused
            for account, sequence in zip(frame.transfers.account, frame.transfers.sequence, strict=True):
                if (message.offset(), account, sequence) not in refused:
                    come.setdefault(account, _Come()).count(sequence)
        waiting = Flows()
        for _, early in sources.moves.early_rows:
            _add_fills(waiting, early, assets)
            _add_transfers(waiting, early, {})
    routed.add(waiting)
    return routed, repaired, waiting


def _remember(come: dict[str, "_Come"], accounts: Come) -> None:
    """Which transfers of accounts that come from another shard have come to them there."""
    for part in accounts.parts:
        for account, data in rows_in(part).items():
            row = _ROW(data)
            come[account] = _Come(_sequences(row), _sequences(row))
            for deferred in row.deferred:
                for sequence in deferred.frame.transfers.sequence:
                    come[account].count(sequence)


def _sequences(row: AccountRow) -> TransferSequences:
    """The transfers that an account remembers to have come."""
    gaps = [(gap.first, gap.next) for gap in row.transfer_gaps]
    return TransferSequences(row.transfer_sequence, max(0, row.transfer_floor), gaps)


def _refused_repairs(log: Log, shard: int) -> set[tuple[int, str, int]]:
    """The repaired transfers that moved nothing: the frame's offset, the account and the sequence."""
    refused: set[tuple[int, str, int]] = set()
    for message in log.read_range(dead_letter_topic(EVENTS), 0, 0):
        place = place_of(message)
        if place is None or place[:2] != (EVENTS, shard) or message.header("dlq.error") != RepairError.__name__:
            continue
        with suppress(DecodeError):
            columns = _EVENT_FRAME(message.value()).transfers
            refused.update((place[2], *row) for row in zip(columns.account, columns.sequence, strict=True))
    return refused


def flows_held_back(rows: Iterable[bytes], assets: Mapping[str, str]) -> Flows:
    """What the accounts of ``rows`` hold back, until parameters admit it or until they are decided."""
    flows = Flows()
    with localcontext(EXACT):
        for data in rows:
            row = _ROW(data)
            for parked in row.parked:
                flows.transfers[parked.asset] += Decimal(parked.amount)
            for fill in row.waiting_fills:
                _add_fill(flows, assets, fill.symbol, fill.quantity, fill.price, fill.fee)
            come = {row.account: _Come(_sequences(row))}
            for deferred in row.deferred:
                _add_transfers(flows, deferred.frame, come)
                _add_fills(flows, deferred.frame, assets)
    return flows


def flows_unapplied(log: Log, shard: int, end: int, assets: Mapping[str, str]) -> Flows:
    """What of those frames is in the dead letters, because an account could not take it."""
    flows = Flows()
    counted: set[int | None] = set()
    for message in log.read_range(dead_letter_topic(EVENTS), 0, 0):
        place = place_of(message)
        if place is None or place[:2] != (EVENTS, shard) or place[2] >= end:
            continue
        if (letter := letter_identity(message)) in counted:
            continue  # written again
        counted.add(letter)
        if message.header("dlq.error") == ContradictionError.__name__:
            continue  # its number was another's, and that one is counted
        with suppress(DecodeError), localcontext(EXACT):
            frame = _EVENT_FRAME(message.value())
            _add_transfers(flows, frame, None)
            _add_fills(flows, frame, assets)
    return flows


def flows_of_exchange(log: Log, assets: Mapping[str, str]) -> Flows:
    """What the exchange's own topics say was moved, each trade with both its sides; repeats move nothing."""
    flows = Flows()
    with localcontext(EXACT):
        come: dict[str, TransferSequences] = {}
        for partition in range(log.partitions(TRANSFERS)):
            for message in log.read_range(TRANSFERS, partition, 0):
                with suppress(DecodeError):
                    transfer = _TRANSFER(message.value())
                    sequences = come.setdefault(transfer.account, TransferSequences())
                    if sequences.count(transfer.sequence, None) == "new":
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


def given_to_pools(record: JournalRecord) -> dict[tuple[str, str], Decimal]:
    """What the shard of a journal's ``record`` has given to pools up to it, by pool and asset."""
    pools = record.pools or {}
    return {(pool, asset): Decimal(amount) for pool, held in pools.items() for asset, amount in held.items()}


def told_of_pools(log: Log) -> dict[tuple[str, str], Decimal] | None:
    """What accounts have been told that they paid to pools, by pool and asset; None if alerts are gone."""
    told: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    with localcontext(EXACT):
        for partition in range(log.partitions(ALERTS)):
            if log.watermarks(ALERTS, partition)[0]:
                return None
            for message in log.read_range(ALERTS, partition, 0):
                if b'"fees":{' not in (message.value() or b""):
                    continue
                with suppress(DecodeError):
                    if (fees := _TOLD(message.value()).fees) is not None:
                        told[fees.pool, fees.asset] += Decimal(fees.liquidation_fee) + Decimal(fees.insurance_fee)
    return {place: amount for place, amount in told.items() if amount}


def compare(what: str, wanted: Sums, actual: Sums, findings: Findings) -> None:
    """Say for which assets two sums differ."""
    for asset in sorted({*wanted, *actual}):
        if wanted[asset] != actual[asset]:
            findings.differ(
                f"{what}: {format_decimal(actual[asset])} {asset} where it must be {format_decimal(wanted[asset])}"
            )


class _Come:
    """The transfers of one account that have come: all of them, and as its account remembers them."""

    __slots__ = ("every", "remembered")

    def __init__(self, remembered: TransferSequences | None = None, every: TransferSequences | None = None) -> None:
        self.every, self.remembered = every or TransferSequences(), remembered or TransferSequences()

    def count(self, sequence: int) -> tuple[bool, Verdict]:
        """Whether it has never come before, and what its account thinks."""
        return self.every.count(sequence, None) == "new", self.remembered.count(sequence)


def _add_transfers(flows: Flows, frame: EventFrame, come: dict[str, _Come] | None) -> None:
    """``come`` None: every transfer of the frame moves something, whatever came before."""
    columns = frame.transfers
    for account, asset, amount, sequence in zip(
        columns.account, columns.asset, columns.amount, columns.sequence, strict=True
    ):
        if come is None:
            flows.transfers[asset] += Decimal(amount)
            continue
        is_new, verdict = come.setdefault(account, _Come()).count(sequence)
        if verdict != "repeat":
            flows.transfers[asset] += Decimal(amount)
            if verdict == "unknown" and not is_new:
                flows.doubtful[asset] += Decimal(amount)


def _add_fills(flows: Flows, frame: EventFrame, assets: Mapping[str, str]) -> None:
    columns = frame.fills
    for fill in zip(columns.symbol, columns.quantity, columns.price, columns.fee, strict=True):
        _add_fill(flows, assets, *fill)


def _add_fill(flows: Flows, assets: Mapping[str, str], symbol: str, quantity: str, price: str, fee: str) -> None:
    asset = assets.get(symbol)
    if asset is not None:
        signed = Decimal(quantity)
        flows.cash[asset] -= signed * Decimal(price)
        flows.fees[asset] += Decimal(fee)
        flows.quantity[symbol] += signed
