"""Whether every unit of money is where the inputs say: shard by shard, or all together where accounts have gone from
one to another, and all shards against the exchange's topics."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal, localcontext

from schemas.messages import JournalRecord
from schemas.topics import ALERTS, EVENTS, PARAMETERS, TRADES, TRANSFERS, dead_letter_topic
from streams.audit.findings import Findings
from streams.audit.money import (
    Flows,
    Sums,
    compare,
    flows_held_back,
    flows_of_exchange,
    flows_of_frames,
    flows_unapplied,
    given_to_pools,
    held_by,
    settle_assets,
    told_of_pools,
)
from streams.audit.progress import Progress
from streams.broker.records import Log
from streams.errors import AuditError
from streams.margin.fixed_point import EXACT, format_decimal


class MoneyCheck:
    """Adds the money up; what is wrong, or cannot be added up, goes to ``findings``.

    In this order: :meth:`read_assets`; :meth:`add_shard` of every shard; :meth:`compare_together`;
    :meth:`compare_with_exchange`.
    """

    def __init__(self, log: Log, findings: Findings, progress: Progress) -> None:
        self._log, self._findings, self._progress = log, findings, progress
        self._assets: dict[str, str] | None = None
        self._held: list[Sums] = []
        self._routed, self._repaired = Flows(), Flows()
        self._applied, self._have_moved = Flows(), False
        self._pools: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
        self._booked: Sums = defaultdict(Decimal)
        """What went to all pools, by asset."""

    def read_assets(self) -> None:
        """Learn what each symbol is settled in; if that is not known, nothing is added up."""
        try:
            self._assets = settle_assets(self._log)
        except AuditError as error:
            self._findings.note(str(error))

    def add_shard(
        self, shard: int, record: JournalRecord | None, rows: Mapping[str, bytes], *, knows_pools: bool
    ) -> None:
        """Compare what the accounts of ``rows`` hold with what the frames that the journal's last ``record`` covers
        moved, less what the shard gave to pools. Without a record it has just been added.

        Accounts may have gone from it to others or come from them; then the sums are compared over all shards together.
        ``knows_pools``: what it gave is known, no record of its journal is gone.
        """
        if self._assets is None:
            return
        events_next, given = (0, {}) if record is None else (record.events.next, given_to_pools(record))
        may_have_moved = record is not None and bool(record.moves)
        if not knows_pools:
            self._findings.note(
                f"records of the journal of shard {shard} are gone, so what it gave to the fund's pools is not known: "
                "its money is not added up, nor is that of all shards together"
            )
            return
        if self._log.watermarks(EVENTS, shard)[0]:
            self._findings.note(f"{EVENTS}[{shard}] does not begin at offset 0 any more: its money is not added up")
            return
        if self._log.watermarks(dead_letter_topic(EVENTS), 0)[0]:
            self._findings.note(
                f"{dead_letter_topic(EVENTS)} has been cut, so what could not be applied is not known any more: the "
                f"money of shard {shard} is not added up"
            )
            return
        self._progress(f"money of shard {shard}", 0, 0)
        try:
            held, _ = held_by(rows.values(), self._assets)
        except KeyError as error:
            self._findings.note(f"{PARAMETERS} names no instrument {error}: money is not added up")
            return
        routed, repaired, waiting = flows_of_frames(self._log, shard, events_next, self._assets)
        applied = Flows()
        applied.add(routed)
        applied.add(repaired)
        applied.add(waiting, -1)
        applied.add(flows_unapplied(self._log, shard, events_next, self._assets), -1)
        applied.add(flows_held_back(rows.values(), self._assets), -1)
        with localcontext(EXACT):
            for (pool, asset), amount in given.items():
                applied.add(Flows(fees={asset: amount}))
                self._pools[pool, asset] += amount
                self._booked[asset] += amount
        if not may_have_moved:
            compare(f"the accounts of shard {shard} hold", applied.held(), held, self._findings)
        self._have_moved = self._have_moved or may_have_moved
        self._applied.add(applied)
        self._held.append(held)
        self._routed.add(routed)
        self._repaired.add(repaired)

    def compare_together(self, shards: int, in_flight: Iterable[bytes], *, moved_meanwhile: bool) -> None:
        """Compare the sums of all ``shards`` where accounts have gone from one to another. ``in_flight`` are the rows
        of accounts that have been sent and are in no other shard yet; ``moved_meanwhile``: accounts went while the
        shards were looked at, so they may be missing or there twice."""
        if self._assets is None or not self._have_moved or len(self._held) < shards:
            return
        if moved_meanwhile:
            self._findings.note("accounts went from shard to shard while their money was added up: it is not compared")
            return
        rows = list(in_flight)
        self._applied.add(flows_held_back(rows, self._assets), -1)
        try:
            held = held_by(rows, self._assets)[0]
        except KeyError as error:
            self._findings.note(f"{PARAMETERS} names no instrument {error}: money is not added up")
            return
        self._held.append(held)
        whole = Flows()
        for sums in self._held:
            whole.add(Flows(transfers=sums))
        compare("the accounts of all shards hold", self._applied.held(), whole.transfers, self._findings)
        self._findings.facts.append(
            "accounts have gone from shard to shard: what they hold is compared over all shards together"
        )

    def compare_with_exchange(self, shards: int, *, resting: bool) -> None:
        """At rest, the frames of all ``shards`` are the exchange's records, and every trade has both its sides.

        What somebody has repaired is in no record of the exchange that could be read, so it is left out, and told.
        """
        if self._assets is None or len(self._held) < shards:
            return
        if not resting:
            self._findings.note(
                "the pipeline is not at rest, so trades may have only one side yet: the money of all shards together "
                "is not compared with the exchange's topics"
            )
            return
        inputs = [(topic, p) for topic in (TRADES, TRANSFERS) for p in range(self._log.partitions(topic))]
        if any(self._log.watermarks(*place)[0] for place in inputs):
            self._findings.note(f"{TRADES} or {TRANSFERS} have been cut: money is not compared with them")
            return
        self._progress("money of the exchange", 0, 0)
        exchange = flows_of_exchange(self._log, self._assets)
        nothing = Flows()
        once = Flows()
        once.add(self._routed)
        once.add(Flows(transfers=self._routed.doubtful), -1)
        compare("transfers that came to the shards", exchange.transfers, once.transfers, self._findings)
        compare("fees that came to the shards", exchange.fees, self._routed.fees, self._findings)
        compare("fills bring and cost together", nothing.cash, self._routed.cash, self._findings)
        for symbol, quantity in sorted(self._routed.quantity.items()):
            if quantity:
                self._findings.differ(f"{symbol}: bought and sold differ by {format_decimal(quantity)}", EVENTS)
        self._compare_pools()
        held = Flows()
        for sums in self._held:
            held.add(Flows(transfers=sums))
        for asset, amount in sorted(held.transfers.items()):
            self._findings.facts.append(
                f"{format_decimal(amount)} {asset} in all accounts: transfers "
                f"{format_decimal(exchange.transfers[asset])} less fees {format_decimal(exchange.fees[asset])}"
                + (f" and less {format_decimal(self._booked[asset])} given to pools" if self._booked[asset] else "")
            )
        for (pool, asset), amount in sorted(self._pools.items()):
            self._findings.facts.append(f"{format_decimal(amount)} {asset} of liquidation fees went to pool {pool}")
        for asset, amount in sorted(self._repaired.held().items()):
            if amount:
                self._findings.facts.append(f"{format_decimal(amount)} {asset} came with repaired events")

    def _compare_pools(self) -> None:
        """What the journals say that pools were given is what the accounts have been told that they paid."""
        told = told_of_pools(self._log)
        if told is None:
            self._findings.note(f"{ALERTS} has been cut: what the fund's pools were given is not compared with it")
            return
        for pool, asset in sorted({*told, *self._pools}):
            given, paid = self._pools[pool, asset], told.get((pool, asset), Decimal(0))
            if given != paid:
                self._findings.differ(
                    f"pool {pool}: the journals gave it {format_decimal(given)} {asset} of fees, accounts have been "
                    f"told of {format_decimal(paid)}",
                    ALERTS,
                )
