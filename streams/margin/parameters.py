"""The rules in force: what the records of ``risk.parameters.v1`` mean, checked in full before any of it is used.

A set of parameters is immutable; taking in a record gives a new set or a ParameterError, never half of one. What holds
between records (an instrument and its settle asset) is checked as soon as both are known, so their order is free.
Reading the topic, and what to do with a refused record, is left to the caller.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import TypeVar

from schemas.codec import Decoder
from schemas.parameters import AssetParameters, InstrumentParameters, OracleParameters, Parameter, PolicyParameters
from streams.errors import InputError, ParameterError
from streams.margin.limits import ASSETS_MAX
from streams.margin.parameter_checks import (
    asset_of,
    check_bound,
    check_pools,
    check_scaled_by_open_interest,
    check_settlement,
    instrument_of,
    oracle_of,
    policy_of,
)
from streams.margin.rules import AssetRules, Instrument, Policy

_RECORD = Decoder[Parameter](Parameter)

Rules = TypeVar("Rules")


def _frozen(rules: Mapping[str, Rules]) -> MappingProxyType[str, Rules]:
    """``rules`` as nobody can change them; those of another set are shared, because a copy costs what they are many."""
    return rules if isinstance(rules, MappingProxyType) else MappingProxyType(dict(rules))


class RiskParameters:
    """An immutable, checked set of parameter records.

    ``records`` are those in force by key; ``instruments``, ``assets`` and ``oracle`` map a symbol or asset to its
    rules. An instrument whose settle asset is not known yet is there; whoever needs the asset raises InputError.
    ``scales`` maps a record's key to the scale at which its rates or haircuts are in force; what is not in it is at 1.
    """

    __slots__ = ("assets", "instruments", "oracle", "policy", "records", "scales")

    records: MappingProxyType[str, Parameter]
    instruments: MappingProxyType[str, Instrument]
    assets: MappingProxyType[str, AssetRules]
    oracle: MappingProxyType[str, OracleParameters]
    policy: Policy
    scales: MappingProxyType[str, Decimal]

    def __init__(
        self,
        records: Mapping[str, Parameter],
        instruments: Mapping[str, Instrument],
        assets: Mapping[str, AssetRules],
        oracle: Mapping[str, OracleParameters],
        policy: Policy,
        scales: Mapping[str, Decimal],
    ) -> None:
        """Use :meth:`empty`, :meth:`build` and :meth:`with_record` instead: they check."""
        self.records = _frozen(records)
        self.instruments = _frozen(instruments)
        self.assets = _frozen(assets)
        self.oracle = _frozen(oracle)
        self.policy = policy
        self.scales = _frozen(scales)

    @classmethod
    def empty(cls) -> "RiskParameters":
        """No instrument, no asset, the default policy."""
        return cls({}, {}, {}, {}, policy_of(PolicyParameters()), {})

    @classmethod
    def build(cls, records: Iterable[Parameter]) -> "RiskParameters":
        """The set that ``records`` form; of several with one key the last counts.

        Raises:
            ParameterError: a record breaks a rule, or two of them contradict each other.
        """
        parameters = cls.empty()
        for record in {record.key: record for record in records}.values():
            parameters = parameters.with_record(record)
        return parameters

    def with_record(self, record: Parameter) -> "RiskParameters":
        """The set with ``record`` in force in place of the one with its key. ``self`` stays as it is.

        Raises:
            ParameterError: the record breaks a rule or contradicts another; the text says which and why.
        """
        making = ParametersInTheMaking(self)
        making.put(record)
        return making.parameters

    def with_encoded(self, key: bytes | None, value: bytes | None) -> "RiskParameters":
        """The set after a record of ``risk.parameters.v1`` as it is in the log; no value removes what is at the key.

        Raises:
            DecodeError: the value is no parameter record.
            InputError: the key is not the record's, or the record breaks a rule or contradicts another.
        """
        making = ParametersInTheMaking(self)
        making.put_encoded(key, value)
        return making.parameters

    def with_scales(self, scales: Mapping[str, Decimal]) -> "RiskParameters":
        """The set with the margin rates of instruments, and the haircuts of assets, times their scales.

        ``scales`` maps record keys (``instrument:SYMBOL``, ``asset:ASSET``) to factors above 0; others go back to 1.
        Scaled rates stay below 1 and weights at or above 0. Records that come later are scaled as well.

        Raises:
            ParameterError: a scale is not above 0.
        """
        for key, scale in scales.items():
            if not scale.is_finite() or scale <= 0:
                raise ParameterError(f"{key}: a scale of {scale} is not above 0")
        changed = [key for key in {**self.scales, **scales} if scales.get(key) != self.scales.get(key)]
        if not changed:
            return self
        scaled = RiskParameters(self.records, self.instruments, self.assets, self.oracle, self.policy, scales)
        for key in changed:
            if key in self.records:
                scaled = scaled.with_record(self.records[key])
        return scaled

    def without(self, key: str) -> "RiskParameters":
        """The set without the record of ``key`` (``type:id``), as a tombstone leaves it; a policy falls back to the
        default one. An unknown key changes nothing."""
        making = ParametersInTheMaking(self)
        making.remove(key)
        return making.parameters

    def instrument(self, symbol: str) -> Instrument:
        """The rules of ``symbol``.

        Raises:
            InputError: there are none.
        """
        try:
            return self.instruments[symbol]
        except KeyError:
            raise InputError(f"symbol {symbol}: no instrument of that name in risk.parameters.v1") from None

    def asset(self, asset: str) -> AssetRules:
        """The rules of ``asset``.

        Raises:
            InputError: there are none.
        """
        try:
            return self.assets[asset]
        except KeyError:
            raise InputError(f"asset {asset}: no asset of that name in risk.parameters.v1") from None

    def cash_decimals(self, asset: str) -> int:
        """Decimal places that transfers, fees and fills of ``asset`` can bring about: its own, or more if an instrument
        settled in it needs them (which is refused when the record fixes its decimals)."""
        settled = (rules.cash_decimals for rules in self.instruments.values() if rules.settle_asset == asset)
        return max(self.asset(asset).decimals, *settled, 0)


class ParametersInTheMaking:
    """A set that records are put into one after the other, each checked against those before, without a copy of all.

    ``parameters`` is the set as it is now; it stays as it is when more is put in. ``begun`` is the set at first.
    """

    def __init__(self, begun: RiskParameters) -> None:
        self._made: RiskParameters | None = begun
        self._records = dict(begun.records)
        self._instruments = dict(begun.instruments)
        self._assets = dict(begun.assets)
        self._oracle = dict(begun.oracle)
        self._policy = begun.policy
        self._scales = begun.scales
        self._scaled = sum(rules.open_interest_scale is not None for rules in self._instruments.values())
        self._pools = Counter(rules.fund for rules in self._instruments.values())
        self._priced_by: dict[str, set[str]] = {}
        for record in self._records.values():
            self._note_price(record)

    @property
    def parameters(self) -> RiskParameters:
        """The set as it is now."""
        if self._made is None:
            self._made = RiskParameters(
                self._records, self._instruments, self._assets, self._oracle, self._policy, self._scales
            )
        return self._made

    def put_encoded(self, key: bytes | None, value: bytes | None) -> None:
        """As :meth:`RiskParameters.with_encoded`; whatever it raises, nothing has changed."""
        if value is None:
            self.remove((key or b"").decode("utf-8", "replace"))
            return
        record = _RECORD(value)
        if key != record.key.encode():
            raise InputError(f"the key is {key!r} and must be {record.key!r}")
        self.put(record)

    def put(self, record: Parameter) -> None:
        """Put ``record`` in force in place of the one with its key.

        Raises:
            ParameterError: the record breaks a rule or contradicts another; nothing has changed.
        """
        match record:
            case InstrumentParameters():
                self._put_instrument(record)
            case AssetParameters():
                self._put_asset(record)
            case PolicyParameters():
                self._policy = policy_of(record)
            case OracleParameters():
                rules = oracle_of(record)
                for key in sorted(self._priced_by.get(record.symbol, ())):
                    other = self._records[key]
                    if isinstance(other, (InstrumentParameters, AssetParameters)):
                        check_bound(other, record.symbol, {record.symbol: rules})
                self._oracle[record.symbol] = rules
        self._forget_price(record.key)
        self._records[record.key] = record
        self._note_price(record)
        self._made = None

    def remove(self, key: str) -> None:
        """Leave the set without the record of ``key``; an unknown key changes nothing."""
        if key not in self._records:
            return
        self._forget_price(key)
        del self._records[key]
        kind, _, name = key.partition(":")
        if kind == "instrument":
            removed = self._instruments.pop(name)
            self._scaled -= removed.open_interest_scale is not None
            self._pools -= Counter([removed.fund])
        elif kind == "asset":
            del self._assets[name]
        elif kind == "oracle":
            del self._oracle[name]
        elif kind == "policy":
            self._policy = policy_of(PolicyParameters())
        self._made = None

    def _put_instrument(self, record: InstrumentParameters) -> None:
        instrument = instrument_of(record, self._scale(record))
        before = self._instruments.get(record.symbol)
        check_bound(record, record.symbol, self._oracle)
        scaled = self._scaled + (instrument.open_interest_scale is not None)
        scaled -= before is not None and before.open_interest_scale is not None
        check_scaled_by_open_interest(scaled)
        pools = self._pools - Counter([] if before is None else [before.fund]) + Counter([instrument.fund])
        check_pools(len(pools))
        if instrument.settle_asset in self._assets:
            check_settlement(instrument, self._assets[instrument.settle_asset])
        self._instruments[record.symbol], self._scaled, self._pools = instrument, scaled, pools

    def _put_asset(self, record: AssetParameters) -> None:
        if record.asset not in self._assets and len(self._assets) >= ASSETS_MAX:
            raise ParameterError(f"{record.key}: there are {ASSETS_MAX} assets already, the most there may be")
        asset = asset_of(record, self._scale(record))
        check_bound(record, record.price_symbol, self._oracle)
        for instrument in self._instruments.values():
            if instrument.settle_asset == asset.asset:
                check_settlement(instrument, asset)
        self._assets[record.asset] = asset

    def _scale(self, record: Parameter) -> Decimal:
        return self._scales.get(record.key, Decimal(1))

    def _note_price(self, record: Parameter) -> None:
        if (symbol := _priced_by(record)) is not None:
            self._priced_by.setdefault(symbol, set()).add(record.key)

    def _forget_price(self, key: str) -> None:
        record = self._records.get(key)
        if record is not None and (symbol := _priced_by(record)) is not None:
            self._priced_by[symbol].discard(key)


def _priced_by(record: Parameter) -> str | None:
    """The symbol whose price is that of what ``record`` is about."""
    if isinstance(record, InstrumentParameters):
        return record.symbol
    return record.price_symbol if isinstance(record, AssetParameters) else None
