"""What a record of ``risk.parameters.v1`` means once it has been checked: immutable values with their formulas.

Every number is an exact decimal; the columns beside them are the nearest doubles, for the screens. A value made by hand
is checked by nobody: ``parameter_checks`` makes them from records, ``parameters`` keeps those that are in force.
"""

from dataclasses import dataclass
from decimal import Decimal, localcontext

from schemas.types import FRACTION_DIGITS_MAX
from streams.margin.amounts import Floats
from streams.margin.fixed_point import EXACT, divide_floor, fraction_digits

DECIMALS_DEFAULT = 8
"""``decimals`` of an asset whose record does not say. What is realised from its instruments may then be finer."""

HEALTH_RATIO_PLACES = 8
"""Decimal places of a health ratio."""

LEVEL_PLACES_MAX = 6
"""Most decimal places of a margin-call level: with those of the hysteresis no more than a health ratio has, so that a
ratio rounded down is below an edge exactly when the ratio itself is."""

SCENARIOS = 16
"""Scenarios of a scan: price moves of 0, 1, 2 and 3 thirds of the range, up and down, each with volatility up and down,
and an extreme move either way."""

_THIRDS = (0, 0, 1, 1, -1, -1, 2, 2, -2, -2, 3, 3, -3, -3)


@dataclass(frozen=True, slots=True)
class MarginStep:
    """A notional tier with its deductions: from its floor up, margin = notional * rate - deduction."""

    notional_floor: Decimal
    maintenance_rate: Decimal
    initial_rate: Decimal
    maintenance_deduction: Decimal
    initial_deduction: Decimal


@dataclass(frozen=True, slots=True)
class CollateralStep:
    """A quantity tier: up to the next floor, credit = quantity * weight + offset, ``offset`` being what the tiers
    below are worth beyond this tier's weight."""

    quantity_floor: Decimal
    weight: Decimal
    offset: Decimal


@dataclass(frozen=True, slots=True)
class ScanProfile:
    """How a position is scanned: together with those of its ``group``, at least ``floor_rate`` of its notional.

    ``array`` is the profit of a long of notional 1 by scenario; empty where it follows from ``range``.
    """

    group: str
    range: Decimal
    array: tuple[Decimal, ...]
    floor_rate: Decimal


@dataclass(frozen=True, slots=True)
class Scan:
    """How portfolio margin is scanned: the extremes, the groups that offset each other, the initial margin's scale."""

    offsets: tuple[tuple[str, str, Decimal], ...]
    extreme_multiple: Decimal
    extreme_weight: Decimal
    initial_scale: Decimal

    def profits(self, profile: ScanProfile) -> tuple[Decimal, ...]:
        """The profit of a long of notional 1 in each of the 16 scenarios, thirds rounded down at 18 places.

        A linear contract does not depend on volatility; one that does brings its own array.
        """
        if profile.array:
            return profile.array
        third, place = Decimal(3), Decimal(1).scaleb(-FRACTION_DIGITS_MAX)
        with localcontext(EXACT):
            extreme = profile.range * self.extreme_multiple * self.extreme_weight
            moves = tuple(divide_floor(profile.range * part, third, place) for part in _THIRDS)
            return (*moves, extreme, -extreme)


@dataclass(frozen=True, slots=True)
class ScaleRules:
    """A factor follows measure / ``reference`` between ``floor`` and ``cap``, no faster than ``change_per_minute``."""

    reference: Decimal
    floor: Decimal
    cap: Decimal
    change_per_minute: Decimal


@dataclass(frozen=True, slots=True, eq=False)
class Instrument:
    """A linear contract and its margin rules. Notionals are in the settle asset, rates are fractions of one.

    ``maintenance_rates`` is float64[tiers], the nearest doubles of those of the steps.
    """

    symbol: str
    settle_asset: str
    price_increment: Decimal
    quantity_increment: Decimal
    steps: tuple[MarginStep, ...]
    liquidation_fee: Decimal
    insurance_fee: Decimal
    close_fee_rate: Decimal
    fund: str
    max_order_notional: Decimal | None
    impact_rate: Decimal
    depth_notional: Decimal | None
    version: int
    maintenance_rates: Floats
    scan: ScanProfile | None
    volatility_scale: ScaleRules | None
    open_interest_scale: ScaleRules | None
    min_order_notional: Decimal | None
    stale_bound: Decimal

    @property
    def fees(self) -> Decimal:
        """What a liquidation costs the account, as a fraction of the notional closed."""
        with localcontext(EXACT):
            return self.liquidation_fee + self.insurance_fee + self.close_fee_rate

    @property
    def cash_decimals(self) -> int:
        """Decimal places that hold every price times every quantity."""
        return fraction_digits(self.price_increment) + fraction_digits(self.quantity_increment)

    def step_of(self, notional: Decimal) -> MarginStep:
        """The tier of ``notional`` (>= 0); at a floor the two tiers agree and the lower one is given."""
        for step in reversed(self.steps):
            if notional > step.notional_floor:
                return step
        return self.steps[0]

    def maintenance(self, notional: Decimal) -> Decimal:
        """Maintenance margin of a position of ``notional`` (>= 0): N * r_n - D_n, in the settle asset."""
        step = self.step_of(notional)
        with localcontext(EXACT):
            return notional * step.maintenance_rate - step.maintenance_deduction

    def initial(self, notional: Decimal) -> Decimal:
        """Initial margin of a position of ``notional`` (>= 0), in the settle asset."""
        step = self.step_of(notional)
        with localcontext(EXACT):
            return notional * step.initial_rate - step.initial_deduction


@dataclass(frozen=True, slots=True, eq=False)
class AssetRules:
    """A collateral or settle asset: credit by quantity tiers, debt times ``liability_weight``.

    ``weights`` and ``offsets`` are float64[tiers], the nearest doubles of the steps. ``collateral``: some weight in the
    record is above 0; credit in an asset of which none is counts for nothing, whatever its price, and is not sold.
    """

    asset: str
    decimals: int
    price_symbol: str | None
    steps: tuple[CollateralStep, ...]
    liability_weight: Decimal
    liquidation_fee: Decimal | None
    version: int
    weights: Floats
    offsets: Floats
    volatility_scale: ScaleRules | None
    collateral: bool
    min_order_notional: Decimal | None
    stale_bound: Decimal

    @property
    def decimals_given(self) -> bool:
        """Whether the record fixes the minor unit. One that leaves the default does not."""
        return self.decimals != DECIMALS_DEFAULT

    def weighted(self, quantity: Decimal) -> Decimal:
        """The quantity that counts: debt in full and more, credit tier by tier. Concave in ``quantity``."""
        with localcontext(EXACT):
            if quantity <= 0:
                return quantity * self.liability_weight
            for step in reversed(self.steps):
                if quantity > step.quantity_floor:
                    return quantity * step.weight + step.offset
        raise AssertionError("the first tier starts at 0")

    def weight_below(self, quantity: Decimal) -> Decimal:
        """The slope of :meth:`weighted` to the left of ``quantity``: what the next unit paid out costs."""
        if quantity <= 0:
            return self.liability_weight
        return next(step.weight for step in reversed(self.steps) if quantity > step.quantity_floor)


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for every account. ``margin_call_levels`` are strictly decreasing and above 1, ``limit_ladder`` rises
    to at most 1."""

    liquidation_buffer_rate: Decimal
    margin_call_levels: tuple[Decimal, ...]
    command_ttl_ms: int
    version: int
    portfolio_margin_accounts: frozenset[str]
    scan: Scan
    volatility_half_life_ms: int
    scale_interval_ms: int
    undecided_alert_ms: int
    clock_skew_ms_max: int
    incomplete_hold_ms: int
    stale_input_hold_ms: int
    limit_ladder: tuple[Decimal, ...]
    min_progress_rate: Decimal
    slices_open_max: int
    backstop_rate: Decimal
    retry_ms: int
    command_memory_ms: int
