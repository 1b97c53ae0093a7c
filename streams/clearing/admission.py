"""Whether the parameters in force admit an event: if not, other parameters may, and the event can wait for them.

An event that is refused for another reason (it leaves the ledger, its account is at a limit, it is of quantity 0) is
admitted here: no parameters make it right.
"""

from schemas.messages import EventFrame
from schemas.types import CROSS
from streams.errors import InputError
from streams.margin.fixed_point import fraction_digits, from_units, is_decimal, parse_units, to_units
from streams.margin.parameters import RiskParameters


class _Grid:
    """The multiples of one increment."""

    __slots__ = ("digits", "step", "text")

    def __init__(self, increment_units: int, digits: int) -> None:
        self.step, self.digits = increment_units, digits
        self.text = from_units(increment_units, digits)

    def holds(self, text: str) -> bool:
        """Whether ``text`` is a multiple. What is no decimal string at all is refused elsewhere."""
        point = text.find(".")
        if self.step == 1 and (point < 0 or len(text) - point - 1 <= self.digits):
            return True
        try:
            return not parse_units(text, self.digits) % self.step
        except InputError:
            return not is_decimal(text)


class _Grids:
    """What prices, quantities and fees of one symbol must be multiples of."""

    __slots__ = ("fee", "price", "quantity", "settle_asset")

    def __init__(self, symbol: str, parameters: RiskParameters) -> None:
        instrument = parameters.instruments[symbol]
        settle = parameters.assets.get(instrument.settle_asset)
        price_digits = fraction_digits(instrument.price_increment)
        quantity_digits = fraction_digits(instrument.quantity_increment)
        self.settle_asset = instrument.settle_asset
        self.price = _Grid(to_units(instrument.price_increment, price_digits), price_digits)
        self.quantity = _Grid(to_units(instrument.quantity_increment, quantity_digits), quantity_digits)
        self.fee = None if settle is None else _Grid(1, settle.decimals)


class Admission:
    """What the parameters in force admit."""

    def __init__(self, parameters: RiskParameters) -> None:
        self.set_parameters(parameters)

    def set_parameters(self, parameters: RiskParameters) -> None:
        """From now on these are in force."""
        self._parameters = parameters
        self._spot = {rules.price_symbol for rules in parameters.assets.values()} - parameters.instruments.keys()
        self._grids: dict[str, _Grids] = {}

    def is_spot(self, symbol: str) -> bool:
        """Whether this is a market on which an asset is bought and sold: what trades there is moved by transfers."""
        return symbol in self._spot

    def refuses_fill(self, symbol: str, quantity: str, price: str, fee: str) -> str | None:
        """Why these parameters do not admit a fill, None if they do."""
        grids = self._grids_of(symbol)
        if grids is None and self.is_spot(symbol):
            return None
        if grids is None:
            return f"symbol {symbol}: no instrument of that name in risk.parameters.v1"
        if grids.fee is None:
            return f"asset {grids.settle_asset}: no asset of that name in risk.parameters.v1"
        for name, text, grid in (("price", price, grids.price), ("quantity", quantity, grids.quantity)):
            if not grid.holds(text):
                return f"symbol {symbol}: a fill of {quantity} at {price}: the {name} is not a multiple of {grid.text}"
        if not grids.fee.holds(fee):
            return f"symbol {symbol}: a fee of {fee} is finer than the {grids.fee.digits} decimals of its asset"
        return None

    def refuses_transfer(self, margin: str, asset: str, amount: str) -> str | None:
        """Why these parameters do not admit a transfer, None if they do."""
        if (reason := self.refuses_margin(margin)) is not None:
            return reason
        rules = self._parameters.assets.get(asset)
        if rules is None:
            return f"asset {asset}: no asset of that name in risk.parameters.v1"
        if not _Grid(1, rules.decimals).holds(amount):
            return f"asset {asset}: {amount} is finer than {rules.decimals} decimals"
        return None

    def refuses_margin(self, margin: str) -> str | None:
        """Why there can be no such margin group: it is ``cross`` or named like an instrument."""
        if margin == CROSS or margin in self._parameters.instruments:
            return None
        return f"margin {margin}: neither {CROSS} nor an instrument of risk.parameters.v1"

    def admits(self, frame: EventFrame) -> bool:
        """Whether all of a frame is admitted."""
        fills, transfers = frame.fills, frame.transfers
        fitting: dict[str, _Grids] = {}
        for symbol in set(fills.symbol):
            grids = self._grids_of(symbol)
            if grids is None and self.is_spot(symbol):
                continue
            if grids is None or grids.fee is None:
                return False
            fitting[symbol] = grids
        for symbol, quantity, price, fee in zip(fills.symbol, fills.quantity, fills.price, fills.fee, strict=True):
            grids = fitting.get(symbol)
            if grids is None:
                continue
            if not (grids.price.holds(price) and grids.quantity.holds(quantity)):
                return False
            if grids.fee is None or not grids.fee.holds(fee):
                return False
        return all(
            self.refuses_transfer(margin, asset, amount) is None
            for margin, asset, amount in zip(transfers.margin, transfers.asset, transfers.amount, strict=True)
        )

    def _grids_of(self, symbol: str) -> _Grids | None:
        grids = self._grids.get(symbol)
        if grids is None and symbol in self._parameters.instruments:
            grids = self._grids[symbol] = _Grids(symbol, self._parameters)
        return grids
