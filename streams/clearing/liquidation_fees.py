"""Fees of liquidations: what each fill of a command's order costs its account, booked to a pool of the fund."""

from decimal import Decimal, localcontext

from schemas.messages import BookedFees
from streams.clearing.account import AccountState, GroupState
from streams.clearing.journal import Cursor
from streams.clearing.outbox import Outbox
from streams.errors import InputError
from streams.margin.fees import FeeRates, Fees, fees_of_fill
from streams.margin.fixed_point import EXACT, format_decimal
from streams.margin.portfolio import Portfolio

_ZERO = Decimal(0)


class LiquidationFees:
    """Takes the fees of fills out of the groups of one shard, and tells each account of each.

    What the pools have been given is in the journal: ``Cursor.pools``.
    """

    def __init__(self, cursor: Cursor, portfolio: Portfolio, outbox: Outbox) -> None:
        self._cursor = cursor
        self._portfolio = portfolio
        self._outbox = outbox

    def charge(
        self,
        state: AccountState,
        group: GroupState,
        order_id: str,
        fill: tuple[str, str, str],
        rates: FeeRates | None,
    ) -> None:
        """Book the fees of a ``fill`` (symbol, signed quantity, price) that the ledger has; ``rates`` are those that
        the command stated (None: it is not remembered, or stated none, and those in force count). Never refuses: the
        fill is applied already."""
        symbol, quantity, price = fill
        parameters, ledger = self._portfolio.parameters, self._portfolio.ledger
        instrument = parameters.instrument(symbol)
        rates = FeeRates.of(instrument) if rates is None else rates
        if not rates:
            return
        asset = instrument.settle_asset
        fees = self._fees_of(group, symbol, abs(Decimal(quantity)), Decimal(price), rates)
        less = ": the group has no more" if fees.known else ": what the group has is not known"
        why = "" if fees.total == fees.due else less
        if fees.total:
            try:
                ledger.apply_transfer(group.row, asset, f"-{format_decimal(fees.total)}")
            except InputError as error:  # a debt beyond what the ledger holds
                fees, why = Fees(_ZERO, _ZERO, fees.due), f": {error}"
            else:
                self._cursor.give(instrument.fund, asset, fees.total)
        booked = BookedFees(
            order_id=order_id,
            symbol=symbol,
            quantity=quantity,
            price=price,
            asset=asset,
            pool=instrument.fund,
            liquidation_fee=format_decimal(fees.liquidation),
            insurance_fee=format_decimal(fees.insurance),
            due=format_decimal(fees.due),
            after_command=state.liquidation_sequence,
        )
        reason = (
            f"{booked.insurance_fee} {asset} insurance fee and {booked.liquidation_fee} {asset} liquidation fee of "
            f"{booked.due} due to pool {booked.pool}{why}"
        )
        self._outbox.alert(state, group.margin, "liquidation_fee", reason=reason, symbol=symbol, fees=booked)

    def _fees_of(self, group: GroupState, symbol: str, quantity: Decimal, price: Decimal, rates: FeeRates) -> Fees:
        with localcontext(EXACT):
            notional = quantity * price
        view, parameters = self._portfolio.group(group.row), self._portfolio.parameters
        return fees_of_fill(view, self._portfolio.marks, parameters, symbol, notional, rates)
