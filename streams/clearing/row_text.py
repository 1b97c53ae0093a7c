"""The changelog rows of accounts, written as text straight from the columns: they are most of what a commit costs.

What is written is, byte for byte, ``encode(account_row(state, ledger))``. An account with anything suspended, waiting,
refused or commanded goes that way; every other one is written here. Of a group's positions those alone are written
anew that have changed since they were last written: the text of all is kept with the slots (``SlotTable.texts``), of
as many groups as are traded at a time.
"""

from itertools import islice
from operator import attrgetter

from schemas.codec import encode
from schemas.types import AccountStatus
from streams.clearing.account import SEVERITY, AccountState, GroupState, account_row
from streams.margin.fixed_point import format_decimal
from streams.margin.ledger import Ledger

TEXTS_BYTES_MAX = 32_000_000
"""How much is kept of a shard's positions as text; beyond it that of the half that was written first is dropped."""

_HOLDING_BYTES = 200
"""What it takes to keep a text, beside the text."""

KEPT_FROM = 3
"""Positions that a group has at least for their text to be kept: of one or two, what has changed is most of it."""

_MARGIN = attrgetter("margin")
_SYMBOL_AT = len('{"symbo')
_BEFORE_SYMBOL = 'l":'
"""What is in the text of a position before its symbol and nowhere else: short, so that it is found soon."""


class RowWriter:
    """Writes the rows of the accounts of one shard. ``kept``: bytes of text that are kept, or more."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.kept = 0

    def row(self, state: AccountState) -> bytes | None:
        """The row of an account; None if nothing about it needs to be remembered."""
        text = self._account(state) if state.is_ordinary else None
        if text is None:
            for group in state.groups.values():  # it would only gather what changes meanwhile
                self._ledger.slots.texts.pop(group.row, None)
            row = account_row(state, self._ledger)
            return None if row is None else encode(row)
        return text.encode() if text else None

    def _account(self, state: AccountState) -> str | None:
        """The row of an ordinary account, empty if there is none; None: one of its groups remembers a liquidation."""
        written: list[str] = []
        status: AccountStatus = "normal"
        groups = state.groups.values()
        for group in groups if len(groups) == 1 else sorted(groups, key=_MARGIN):
            if group.liquidation is not None:
                return None
            if text := self._group(group):
                written.append(text)
                if SEVERITY[group.status] > SEVERITY[status]:
                    status = group.status
        transfers = state.transfers
        if not written and transfers.last < 0 and not (state.liquidation_sequence or state.alert_sequence):
            return ""
        return (
            f'{{"account":{encode(state.account).decode()},"status":"{status}","groups":[{",".join(written)}],'
            f'"liquidation_sequence":{state.liquidation_sequence},"transfer_sequence":{transfers.last},'
            f'"alert_sequence":{state.alert_sequence},"unapplied":0,"suspended_reason":null,'
            f'"told_liquidatable":{"true" if state.told_liquidatable else "false"},"parked":[],'
            f'"transfer_gaps":{encode(transfers.gaps).decode() if transfers.gaps else "[]"},'
            f'"transfer_floor":{transfers.floor},"waiting_fills":[],"unread":null,"unapplied_credits":0,'
            f'"transfer_digest":{state.transfer_digest},"refused":{{}},"owed":{{}},"touched":{state.touched},'
            '"held":null,"deferred":[]}'
        )

    def _group(self, group: GroupState) -> str:
        """A group without a liquidation; empty if nothing about it needs to be remembered."""
        row, status = group.row, group.status
        positions = self._positions(row)
        balances = ",".join([f'"{asset}":"{text}"' for asset, text in self._ledger.balances(row).items()])
        if not (positions or balances or status != "normal" or group.is_watched):
            return ""
        level = "null" if group.level is None else f'"{format_decimal(group.level)}"'
        return (
            f'{{"margin":"{group.margin}","status":"{status}","balances":{{{balances}}},"positions":[{positions}],'
            f'"margin_call_level":{level},"command":null,'
            f'"told_undecided":{"true" if group.told_undecided else "false"},'
            f'"liquidation_started":{"true" if group.started else "false"}}}'
        )

    # --- positions ---------------------------------------------------------------------------------------------------

    def _positions(self, row: int) -> str:
        """The positions of ``row``, in order of symbol."""
        table = self._ledger.slots
        known = table.texts.get(row)
        if known is None:
            written = sorted(map(self._position, table.chain(row)))
            text = ",".join([each for _, each in written])
            if len(written) >= KEPT_FROM:
                table.texts[row] = [text]
                self._make_room(len(text) + _HOLDING_BYTES)
            return text
        kept: str = known[0]
        if len(known) == 2:
            symbol, position = self._position(known.pop())
            first = kept.index(f'{_BEFORE_SYMBOL}"{symbol}"') - _SYMBOL_AT
            known[0] = kept = kept[:first] + position + kept[kept.index("}", first) + 1 :]
        elif len(known) > 2:
            kept = self._renewed(kept, set(known[1:]))
            known[:] = [kept]
        return kept

    def _position(self, slot: int) -> tuple[str, str]:
        """The symbol of a position, and its text."""
        symbol, quantity, cash = self._ledger.position(slot)
        return symbol, f'{{"symbol":"{symbol}","quantity":"{quantity}","cash":"{cash}"}}'

    def _renewed(self, text: str, changed: set[int]) -> str:
        """``text`` with the positions in the slots ``changed`` as they are now: one pass, however many they are."""
        parts: list[str] = []
        end = 0
        for symbol, position in sorted(map(self._position, changed)):
            first = text.index(f'{_BEFORE_SYMBOL}"{symbol}"', end) - _SYMBOL_AT
            parts += text[end:first], position
            end = text.index("}", first) + 1
        parts.append(text[end:])
        return "".join(parts)

    def _make_room(self, more: int) -> None:
        """Count a text of so many bytes; drop some if they are too many. Those that are gone already still count."""
        self.kept += more
        if self.kept > TEXTS_BYTES_MAX:
            texts = self._ledger.slots.texts
            for row in list(islice(texts, len(texts) // 2)):
                del texts[row]
            self.kept = sum(len(text) + _HOLDING_BYTES for text, *_ in texts.values())
