"""The messages of the contract, one struct a topic, as they stand in the JSON.

Inputs of the exchange (trades, transfers, prices, reports) carry their constraints in the types: decoding is
validation. Unknown fields are ignored everywhere, so a producer may add some. The internal frames
(``margin.events.v1``, ``margin.marks.v1``) are columns, because a record per fill would cost more than the fill.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta

from schemas.types import (
    CROSS,
    RESERVED_ACCOUNTS,
    AccountId,
    AccountStatus,
    AlertKind,
    Asset,
    CommandStatus,
    DerivedDecimal,
    DerivedId,
    DerivedUnsigned,
    GroupStatus,
    Identifier,
    MarginMode,
    MarkStatus,
    NonZeroDecimal,
    Offset,
    OrderStatus,
    ParameterKey,
    PartNumber,
    PoolName,
    PositionSide,
    PositiveDecimal,
    RecordPlace,
    ReportStatus,
    Sequence,
    ShardCount,
    ShardNumber,
    Side,
    SignedDecimal,
    Stage,
    Symbol,
    Text,
    TimeUs,
    TopicId,
    TopicName,
    Uncounted,
    UnsignedDecimal,
    is_identifier,
)

# --- what the exchange sends -----------------------------------------------------------------------------------------


class TradeSide(msgspec.Struct, frozen=True, kw_only=True):
    """One side of a trade. ``fee`` is in the settle asset; a rebate is negative."""

    account: AccountId
    order_id: DerivedId
    fee: SignedDecimal
    margin: MarginMode = "cross"


class Trade(msgspec.Struct, frozen=True, kw_only=True):
    """``trades.v1``: a match between two accounts. ``trade_id`` rises strictly per symbol."""

    trade_id: Sequence
    symbol: Symbol
    price: PositiveDecimal
    quantity: PositiveDecimal
    aggressor_side: Side
    maker: TradeSide
    taker: TradeSide
    event_time: TimeUs


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """``collateral.transfers.v1``: collateral into (positive) or out of (negative) a margin group of an account.

    ``sequence`` numbers the transfers of an account, each once. They may arrive in any order and any number of times:
    each is applied once. Up to 32 ranges of numbers that have not come yet are remembered for each account; a debit of
    an older number that is not known to have come suspends its account. ``margin`` is ``cross`` or the symbol of an
    isolated position, which must be an instrument of ``risk.parameters.v1``. ``order_id``: the order of a liquidation
    command that sold, or bought, the asset; what it moves is what was filled of it.
    """

    transfer_id: Identifier
    account: AccountId
    asset: Asset
    amount: NonZeroDecimal
    sequence: Sequence
    margin: Symbol = CROSS
    event_time: TimeUs
    order_id: DerivedId | None = None


class OraclePrice(msgspec.Struct, frozen=True, kw_only=True):
    """``oracle.prices.v1``: one source's price of one symbol. ``sequence`` rises per source and symbol."""

    source: Identifier
    symbol: Symbol
    price: PositiveDecimal
    confidence: UnsignedDecimal | None = None
    sequence: Sequence
    publish_time: TimeUs
    signature: Text | None = None


class LiquidationReport(msgspec.Struct, frozen=True, kw_only=True):
    """``liquidation.reports.v1``: what became of one order of a command. ``filled_quantity`` is cumulative."""

    command_id: DerivedId
    order_id: DerivedId
    account: AccountId
    status: ReportStatus
    filled_quantity: UnsignedDecimal = "0"
    average_price: UnsignedDecimal | None = None
    reason: Text | None = None
    event_time: TimeUs


# --- internal: router to engine --------------------------------------------------------------------------------------

FRAME_ROWS_MAX = 4096


_ACCOUNTS_REMEMBERED = 1 << 16


@lru_cache(maxsize=_ACCOUNTS_REMEMBERED)
def _is_account(name: str) -> bool:
    return is_identifier(name) and not name.startswith(RESERVED_ACCOUNTS)


_PLACE_COLUMNS = frozenset({"source", "source_offset"})
"""Say where rows came from: all rows have both, or none has any."""

ROW_KINDS = ("transfers", "fills", "reports")
"""The columns of a frame, in the order in which they are applied."""


def _filled(columns: Any) -> list[str]:
    """The names of ``columns`` that have an entry for every row."""
    has_places = bool(columns.source or columns.source_offset)
    return [
        name
        for name in columns.__struct_fields__
        if (has_places or name not in _PLACE_COLUMNS) and (name not in columns.may_be_empty or getattr(columns, name))
    ]


def _check_columns(columns: Any) -> None:
    """Columns are of one length, and their accounts can be accounts. Those that say where rows came from may be empty.

    Raises:
        ValueError: they are not; a decoder makes a DecodeError of it.
    """
    lengths = {len(getattr(columns, name)) for name in _filled(columns)}
    if len(lengths) != 1:
        raise ValueError(f"columns of different lengths: {sorted(lengths)}")
    accounts: list[str] = columns.account
    if not all(map(_is_account, accounts)):
        wrong = next(name for name in accounts if not _is_account(name))
        raise ValueError(f"{wrong[:60]!r} cannot be an account")


class FillColumns(msgspec.Struct, kw_only=True):
    """Fills of one shard. ``quantity`` is signed (buy positive), ``margin`` is ``cross`` or the isolated symbol.

    ``source`` and ``source_offset`` say of each row, here and in the other columns, which record it came from: the
    number of its source in ``sources`` of the frame, and the offset there. Frames of earlier versions do not say.

    What is not a decimal, an instrument or in its range is refused fill by fill when it is applied.
    """

    may_be_empty: ClassVar[frozenset[str]] = frozenset()

    account: list[str] = msgspec.field(default_factory=list)
    margin: list[str] = msgspec.field(default_factory=list)
    symbol: list[str] = msgspec.field(default_factory=list)
    quantity: list[str] = msgspec.field(default_factory=list)
    price: list[str] = msgspec.field(default_factory=list)
    fee: list[str] = msgspec.field(default_factory=list)
    order_id: list[str] = msgspec.field(default_factory=list)
    trade_id: list[Sequence] = msgspec.field(default_factory=list)
    source: list[int] = msgspec.field(default_factory=list)
    source_offset: list[Offset] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        _check_columns(self)


class TransferColumns(msgspec.Struct, kw_only=True):
    """Collateral transfers of one shard. ``order_id`` has the order of a command that each carries out, or nothing;
    it is not there if none does."""

    may_be_empty: ClassVar[frozenset[str]] = frozenset({"order_id"})

    account: list[str] = msgspec.field(default_factory=list)
    margin: list[Symbol] = msgspec.field(default_factory=list)
    asset: list[Asset] = msgspec.field(default_factory=list)
    amount: list[NonZeroDecimal] = msgspec.field(default_factory=list)
    sequence: list[Sequence] = msgspec.field(default_factory=list)
    transfer_id: list[Identifier] = msgspec.field(default_factory=list)
    order_id: list[str] | msgspec.UnsetType = msgspec.UNSET
    source: list[int] = msgspec.field(default_factory=list)
    source_offset: list[Offset] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        _check_columns(self)


class ReportColumns(msgspec.Struct, kw_only=True):
    """Liquidation reports of one shard."""

    may_be_empty: ClassVar[frozenset[str]] = frozenset()

    account: list[str] = msgspec.field(default_factory=list)
    command_id: list[DerivedId] = msgspec.field(default_factory=list)
    order_id: list[DerivedId] = msgspec.field(default_factory=list)
    status: list[ReportStatus] = msgspec.field(default_factory=list)
    filled_quantity: list[UnsignedDecimal] = msgspec.field(default_factory=list)
    source: list[int] = msgspec.field(default_factory=list)
    source_offset: list[Offset] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        _check_columns(self)


Columns = TypeVar("Columns", FillColumns, TransferColumns, ReportColumns)


def rows_of(columns: Columns, indexes: Iterable[int]) -> Columns:
    """The rows of ``columns`` at ``indexes``, in that order."""
    kept = list(indexes)
    return type(columns)(**{name: [getattr(columns, name)[index] for index in kept] for name in _filled(columns)})


class Suspension(msgspec.Struct, kw_only=True, gc=False):
    """A record of ``topic`` that could not be read names this account: its state is not known until it is repaired."""

    account: AccountId
    topic: TopicName
    partition: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    offset: Offset
    reason: Text


class Resumption(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An operator's word that what suspends a shard suspends this account, or every account (""), no longer.

    ``suspension`` is the number of the suspension that is lifted: the word is void if there has been another since.
    """

    account: Text = ""
    suspension: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    reason: Annotated[str, Meta(min_length=1, max_length=1024)]
    time: TimeUs


class SourceRange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Records ``[first, next)`` of a partition of an input topic, which its id tells from another of its name.

    ``lost`` is an operator's word: why what lies before ``first`` and was not told before will never be.
    """

    topic: TopicName
    topic_id: TopicId
    partition: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    first: Offset
    next: Offset
    lost: Text = ""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Over which shards accounts are spread, as of the ``version``-th record of ``margin.layout.v1``.

    With ``shards`` equal to ``target``, the shard of an account is ``murmur2(account) % shards``. Else accounts are on
    their way from ``old = murmur2(account) % shards`` to ``new = murmur2(account) % target``. Those that differ move in
    order of their distance ``(new - old) % max(shards, target)``, and those of one distance in ``parts``, by
    ``murmur2(account) // (shards * target) % parts``: those that move at ``step`` or before belong to ``new``, all
    others to ``old`` still (:func:`schemas.partitioning.place_of`).
    """

    version: Sequence
    shards: ShardCount
    target: ShardCount
    step: Offset = 0
    parts: ShardCount = 1


class Departure(msgspec.Struct, frozen=True, kw_only=True):
    """To a shard: those of its accounts that ``spread`` has moved last go to shard ``to``, once every one of
    ``sources`` (``topic:partition:topic id``) is routed by it."""

    spread: Spread
    to: ShardNumber
    sources: tuple[Text, ...]


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """From shard ``origin``: those of its accounts that ``spread`` has moved last, with their rows; one of ``parts``.

    Before ``floors``, by source, its rows are in these accounts; from there on they are the new shard's. ``beyond`` are
    those of accounts that have more, because somebody who had been replaced had told it before. The accounts
    were last decided on the marks below ``marks``, at the shard's time ``clock``. ``incomplete`` are those to which
    something that was acknowledged before their last event may not have come. ``rows`` are the values of
    ``margin.accounts.v1`` by account, ``packed`` the long ones of them (zlib, base64).
    """

    spread: Spread
    origin: ShardNumber
    part: Offset
    parts: Offset
    floors: dict[Text, Offset]
    beyond: dict[Text, dict[Text, Offset]] = {}
    marks: Offset
    clock: TimeUs
    incomplete: tuple[Text, ...] = ()
    rows: dict[Text, str] = {}
    packed: dict[Text, str] = {}


class Arrived(msgspec.Struct, frozen=True, kw_only=True):
    """From shard ``shard``: it has the accounts that ``spread`` has moved last."""

    spread: Spread
    shard: ShardNumber


class EventFrame(msgspec.Struct, kw_only=True):
    """``margin.events.v1``: up to ``FRAME_ROWS_MAX`` events of one shard, applied suspensions first, then transfers,
    fills, reports.

    ``time`` is the router's clock when it built the frame; with the marks' time and the time at which Kafka appended
    them it is the only clock the engine knows. ``repaired`` marks a replayed dead letter, which is applied once and
    only for an event that its account still lacks. ``sources`` are the records that the frame covers: all that they
    hold for the shard is in this frame or in one before it. A row from below the offset that the shard has had of its
    source is a repeat. ``resumptions`` are words of an operator, applied after all else. ``spread`` says by which
    layout the rows were routed, if there has been more than one. ``confirmed``: from here on whoever owns ``sources``
    routes them by it or a later one, as the owner says in a transaction of its group. ``departure``, ``arrival`` and
    ``arrived`` move accounts from shard to shard.
    """

    time: TimeUs
    repaired: bool = False
    transfers: TransferColumns = msgspec.field(default_factory=TransferColumns)
    fills: FillColumns = msgspec.field(default_factory=FillColumns)
    reports: ReportColumns = msgspec.field(default_factory=ReportColumns)
    suspensions: list[Suspension] = msgspec.field(default_factory=list)
    sources: list[SourceRange] = msgspec.field(default_factory=list)
    resumptions: tuple[Resumption, ...] | msgspec.UnsetType = msgspec.UNSET
    spread: Spread | msgspec.UnsetType = msgspec.UNSET
    confirmed: bool | msgspec.UnsetType = msgspec.UNSET
    departure: Departure | msgspec.UnsetType = msgspec.UNSET
    arrival: Arrival | msgspec.UnsetType = msgspec.UNSET
    arrived: Arrived | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        count = len(self.sources)
        for columns in (self.transfers, self.fills, self.reports):
            if len(columns.source) != (len(columns.account) if count else 0):
                raise ValueError("rows of a frame with sources, and no others, say which they came from")
            if count and columns.source and not 0 <= min(columns.source) <= max(columns.source) < count:
                raise ValueError(f"a row came from a source that is not one of the frame's {count}")


class TopicProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a router is in its partitions of an input topic, and where all of the topic's end.

    ``next`` names partitions with the offset below which every record has been told to the shards. ``ends`` is the
    offset at which each partition ended, by number; -1: its leader did not say.
    """

    topic: TopicName
    topic_id: TopicId
    next: list["PartitionOffset"]
    ends: list[Offset]


class PartitionOffset(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A place in a partition."""

    partition: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    offset: Offset


class RouterProgress(msgspec.Struct, frozen=True, kw_only=True):
    """``margin.progress.v1``: how far one router is.

    ``router`` is one process: its worker's name and when it began, in microseconds; ``time`` is its clock.
    ``frames`` is the offset of its last frame by shard (-1: it has written none), acknowledged before ``ends`` of the
    topics were asked for; ``next`` holds as of then, too. So whatever Kafka had acknowledged before a record in one of
    those frames was published lies below the ends. A router asks only after its last record here was acknowledged.
    """

    router: Text
    time: TimeUs
    topics: list[TopicProgress]
    frames: list[Offset]


class AcceptedOffset(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``margin.router.v1``, partition 0, under ``accepted:TOPIC:PARTITION``: an operator's word that the router goes on
    at ``offset`` of the topic with that id, whatever its group has committed.

    ``reason`` says why what lies before and was not routed is given up. ``routed``: the operator says that a router of
    an earlier version committed this offset, with the memory of trade ids that is there. The commit that first covers
    the place deletes the record.
    """

    offset: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    topic_id: Annotated[str, Meta(min_length=1, max_length=100)]
    reason: Annotated[str, Meta(min_length=1, max_length=1024)]
    time: TimeUs
    routed: bool = False


# --- the shards ------------------------------------------------------------------------------------------------------


class ShardLayout(msgspec.Struct, frozen=True, kw_only=True):
    """``margin.layout.v1``, under ``layout``: over how many shards accounts are spread.

    The shard of an account is ``murmur2(account) % shards``. Partition *n* of ``margin.events.v1``,
    ``margin.accounts.v1`` and ``margin.journal.v1`` is shard *n*'s; partitions from ``used`` on are not used.

    Where the number has been changed, ``version`` counts the records, ``founded`` is the first number of shards and
    ``used`` the highest that there has been. While it is being changed, ``target`` is the number to come and ``step``,
    of ``parts`` for each distance, how far that is (:class:`Spread`).
    """

    shards: ShardCount
    time: TimeUs
    version: Sequence | msgspec.UnsetType = msgspec.UNSET
    target: ShardCount | msgspec.UnsetType = msgspec.UNSET
    step: Offset | msgspec.UnsetType = msgspec.UNSET
    parts: ShardCount | msgspec.UnsetType = msgspec.UNSET
    used: ShardCount | msgspec.UnsetType = msgspec.UNSET
    founded: ShardCount | msgspec.UnsetType = msgspec.UNSET

    @property
    def spread(self) -> Spread:
        """Over which shards accounts are spread."""
        return Spread(
            version=self.version or 0,
            shards=self.shards,
            target=self.target or self.shards,
            step=self.step or 0,
            parts=self.parts or 1,
        )

    @property
    def shards_used(self) -> int:
        """How many partitions of the shards' topics are in use: those of shards that have ever had accounts."""
        return max(self.used or 0, self.shards, self.target or 0)

    @property
    def is_moving(self) -> bool:
        """Whether accounts are on their way to another number of shards."""
        return bool(self.target) and self.target != self.shards


# --- oracle to engine ------------------------------------------------------------------------------------------------


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """The validated price of one symbol. ``publish_time`` is that of the newest source price in it.

    ``sources`` are the source prices it was formed from; ``price`` of a mark that is not live is the last live one.
    """

    symbol: Symbol
    price: PositiveDecimal
    status: MarkStatus
    publish_time: TimeUs
    sources: dict[str, str] = msgspec.field(default_factory=dict)


class FramePart(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of a full mark frame this is: ``number`` 1 to ``of``."""

    number: PartNumber
    of: PartNumber


class MarkFrame(msgspec.Struct, frozen=True, kw_only=True):
    """``margin.marks.v1``: the marks that changed, or all of them when ``full`` (every heartbeat is).

    ``scales`` of a full frame multiply, from here on, the margin rates and haircuts of the parameter records with these
    keys; what is not named is at 1. ``epoch`` is the offset at which the oracle that published the frame claimed the
    right to: a frame of a lower epoch than one before it is void. ``uncounted`` of a full frame says, by symbol and
    source, which configured sources are not in its mark, and why.

    Where there are too many marks for one record, a full frame comes in parts: frames with a ``part``, of one ``time``
    and ``epoch``, in the order of their numbers, none of them ``full``. Each may be taken like any other frame;
    together, when the last has come, they are the full frame: ``scales`` and ``uncounted`` are those of all of them.
    """

    time: TimeUs
    marks: tuple[Mark, ...]
    full: bool = False
    scales: dict[ParameterKey, PositiveDecimal] = {}
    epoch: Offset = -1
    uncounted: dict[Symbol, dict[str, Uncounted]] = {}
    part: FramePart | msgspec.UnsetType = msgspec.UNSET


# --- what the engine publishes ---------------------------------------------------------------------------------------


class CommandOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One order of a command. ``limit_price`` is the worst price: never beyond that at which the close would cost the
    fund something. ``liquidation_fee`` and ``insurance_fee`` are the rates that its fills pay, if they pay any: the
    pipeline books them, and the exchange must not."""

    order_id: DerivedId
    symbol: Symbol
    position_side: PositionSide
    order_side: Side
    quantity: PositiveDecimal
    reduce_only: bool
    limit_price: DerivedDecimal
    mark_price: PositiveDecimal
    liquidation_fee: UnsignedDecimal | msgspec.UnsetType = msgspec.UNSET
    insurance_fee: UnsignedDecimal | msgspec.UnsetType = msgspec.UNSET


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Why a command was issued: the figures and the exact place in the logs from which anybody can recompute them.

    ``debt`` is the weighted sum of the negative balances, ``unweighted_equity`` counts every balance at weight 1.
    ``stale_bounds`` names the symbols whose marks are not live, with the bound they were given (its mark is worth at
    most 1 + bound times what ``marks`` says, at least nothing): equity, debt and maintenance_margin are then those of
    the corner that is best for the account, below its requirement even so. ``left_out`` names the sources
    (``topic:partition:topic id``) that stood still for so long that the command was not kept back for them, and those
    of which rows of the account came to the shard that it is about to go to.
    ``deferred`` names the account's events (``topic:partition:topic id:offset``) of frames up to ``events_offset`` that
    were applied after the command, because they were sent later than what it follows from.
    """

    equity: DerivedDecimal
    maintenance_margin: DerivedUnsigned
    health_ratio: DerivedDecimal
    shard: Annotated[int, Meta(ge=0)]
    events_offset: Offset
    marks_offset: Offset
    parameters_version: Offset
    marks: dict[str, str]
    reason: str
    scales: dict[str, str] = {}
    debt: DerivedUnsigned = "0"
    unweighted_equity: DerivedDecimal | None = None
    stale_bounds: dict[str, str] = {}
    left_out: tuple[Text, ...] = ()
    deferred: tuple[Text, ...] = ()


class LiquidationCommand(msgspec.Struct, frozen=True, kw_only=True):
    """``liquidation.commands.v1``: ``command_id`` is ``account:sequence``, a pure function of the inputs.

    One with the stage ``withdrawn`` has no orders: the group is healthy again, and nothing more is to be filled of the
    command that it ``supersedes``. ``attempt`` counts the commands before it of which next to nothing was filled, if
    there are any: the more they are, the wider are the limits of its orders.
    """

    command_id: DerivedId
    account: Identifier
    margin: Symbol
    sequence: Sequence
    stage: Stage
    supersedes: DerivedId | None
    cancel_open_orders: bool
    issued_at: TimeUs
    expires_at: TimeUs
    orders: tuple[CommandOrder, ...]
    evidence: Evidence
    attempt: Sequence | msgspec.UnsetType = msgspec.UNSET


class BookedFees(msgspec.Struct, frozen=True, kw_only=True):
    """What one fill of a command's order has cost the account: two amounts of ``asset`` that went from its margin group
    to ``pool``. ``due`` is what the rates make; the group paid less if its unweighted equity was less, and
    nothing if that was not known.

    ``after_command`` is the number of the account's last command before it.
    """

    order_id: DerivedId
    symbol: Symbol
    quantity: SignedDecimal
    price: PositiveDecimal
    asset: Asset
    pool: PoolName
    liquidation_fee: DerivedUnsigned
    insurance_fee: DerivedUnsigned
    due: DerivedUnsigned
    after_command: Sequence


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """``margin.alerts.v1``: what an account's owner or the risk desk is told. ``level`` is the margin-call level.

    What concerns a whole shard (a symbol without a live mark, a clock that is off) has the account
    ``margin-clearing:shard:N``. ``symbol`` is the one it is about, if it is about one. ``fees``: of the kind
    ``liquidation_fee``, what was booked.
    """

    alert_id: DerivedId
    account: Identifier
    margin: Symbol
    kind: AlertKind
    level: SignedDecimal | None
    health_ratio: DerivedDecimal | None
    equity: DerivedDecimal | None
    maintenance_margin: DerivedUnsigned | None
    marks_offset: Offset
    event_time: TimeUs
    reason: Text | None = None
    symbol: Symbol | None = None
    fees: BookedFees | msgspec.UnsetType = msgspec.UNSET


class PositionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A position in the ledger: signed ``quantity`` and the ``cash`` paid (-) or received (+) for it, fees apart."""

    symbol: Symbol
    quantity: SignedDecimal
    cash: SignedDecimal


class OpenOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order of a command: ``filled`` sums the fills seen, ``final`` is what its last report says.

    A fill counts only for its ``symbol`` and ``order_side``; rows of earlier versions do not have them, nor a
    ``status`` and a ``mark_price``. ``traded`` and ``transferred`` are what trades and what transfers say was sold or
    bought of collateral: ``filled`` is the greater of the two. ``liquidation_fee`` and ``insurance_fee`` are the rates
    that the command stated.
    """

    order_id: DerivedId
    quantity: PositiveDecimal
    filled: DerivedUnsigned = "0"
    final: UnsignedDecimal | None = None
    symbol: Symbol | None = None
    order_side: Side | None = None
    status: OrderStatus | msgspec.UnsetType = msgspec.UNSET
    mark_price: PositiveDecimal | msgspec.UnsetType = msgspec.UNSET
    traded: DerivedUnsigned | msgspec.UnsetType = msgspec.UNSET
    transferred: DerivedUnsigned | msgspec.UnsetType = msgspec.UNSET
    liquidation_fee: UnsignedDecimal | msgspec.UnsetType = msgspec.UNSET
    insurance_fee: UnsignedDecimal | msgspec.UnsetType = msgspec.UNSET


class OpenCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A command of a group: the outstanding one, or one that has ended and is remembered until ``forgotten_at``.

    ``status`` says how far it is, or how it ended. ``withdrawn_by`` is the command that withdraws it.
    """

    command_id: DerivedId
    stage: Stage
    expires_at: TimeUs
    orders: tuple[OpenOrder, ...]
    status: CommandStatus | msgspec.UnsetType = msgspec.UNSET
    withdrawn_by: DerivedId | msgspec.UnsetType = msgspec.UNSET
    forgotten_at: TimeUs | msgspec.UnsetType = msgspec.UNSET


class ParkedTransfer(msgspec.Struct, frozen=True, kw_only=True):
    """A transfer of the frame at ``offset`` that could not be applied and waits for parameters that admit it.

    ``place`` is the exchange's record. A credit can only make its account better. As long as those of a group and asset
    do not add up to a debit, the account's verdict holds without them.
    """

    transfer_id: Identifier
    sequence: Sequence
    margin: Symbol
    asset: Asset
    amount: NonZeroDecimal
    offset: Offset
    place: RecordPlace = ""
    order_id: DerivedId | msgspec.UnsetType = msgspec.UNSET


class WaitingFill(msgspec.Struct, frozen=True, kw_only=True):
    """A fill of the frame at ``offset`` that waits for parameters that admit it, or for one that does.

    ``place`` is the exchange's record.
    """

    trade_id: Sequence
    order_id: DerivedId
    margin: Symbol
    symbol: Symbol
    quantity: NonZeroDecimal
    price: PositiveDecimal
    fee: SignedDecimal
    offset: Offset
    place: RecordPlace = ""


class OwedEvents(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Events of one record that are in the dead letters: ``credits`` can only make the account better.

    ``whole``: the record could not be read, and how many events of the account are in it is not known.
    """

    events: Sequence = 0
    credits: Sequence = 0
    whole: bool = False


class DeferredEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of the frame at ``offset``, as a frame of one row, that is applied once its account is decided."""

    offset: Offset
    frame: EventFrame


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    """An account whose verdict waits until all is in that Kafka had acknowledged before the frame at ``frame`` was
    written, and before ``after``; or, of a verdict that a mark caused, by the record of progress at ``progress``.

    ``since`` is the shard's time at which the wait began.
    """

    frame: Offset
    after: TimeUs = 0
    progress: Offset = -1
    since: TimeUs = 0


class GroupRow(msgspec.Struct, frozen=True, kw_only=True):
    """One margin group of an account: ``margin`` is ``cross`` or the symbol of the isolated position.

    ``told_undecided``: it has been alerted that the group waits for marks that are not live. ``liquidation_started``:
    that has been alerted, its completion has not; None in rows of earlier versions, whose ``status`` says it.
    ``attempt`` counts the commands of which next to nothing was filled since it was last healthy at its target.
    ``retry_at``: nothing was filled of its last command, and before then there is no other. ``ended`` are its last
    commands, as long as they are remembered: what comes late for them is told.
    """

    margin: Symbol
    status: GroupStatus
    balances: dict[str, SignedDecimal]
    positions: tuple[PositionRow, ...]
    margin_call_level: SignedDecimal | None = None
    command: OpenCommand | None = None
    told_undecided: bool = False
    liquidation_started: bool | None = None
    attempt: Sequence | msgspec.UnsetType = msgspec.UNSET
    retry_at: TimeUs | msgspec.UnsetType = msgspec.UNSET
    ended: tuple[OpenCommand, ...] | msgspec.UnsetType = msgspec.UNSET


class AccountRow(msgspec.Struct, frozen=True, kw_only=True):
    """``margin.accounts.v1``, and the value of the account in Redis.

    ``status`` is the worst of the groups' or ``suspended``; the sequences are those of the last command issued,
    transfer applied and alert raised, which is how a repeat is known. ``unapplied`` counts the events in the dead
    letters that could not be applied; the account is suspended until they are repaired and replayed.
    ``told_liquidatable``: it has been alerted that the suspended account would be liquidated. ``parked`` are transfers
    and ``waiting_fills`` fills that wait to be applied, in the order of the log: fills, and transfers that add up to a
    debit, suspend the account meanwhile. ``transfer_gaps`` are the sequences below ``transfer_sequence`` that have not
    come, others below ``transfer_floor`` are not known. ``unread`` is the row before this one (zlib, base64) if it
    could not be read: nothing of it is lost, and it is read again whenever the shard is taken or parameters change.
    ``unapplied_credits`` counts the credits in the dead letters: they suspend nobody. ``transfer_digest`` is the CRC-32
    of what the transfer did that has ``transfer_sequence``: another one with its number contradicts it. ``refused``
    holds, by ``topic:partition``, the offset of the last record there that could not be read and named this account.
    ``owed`` says of which records the unapplied events are: a repair is applied once, and for one of these only.
    ``touched`` is the last frame that changed the account. ``held``: the account is below its requirement, and nothing
    is done before what was acknowledged before is in;
    ``deferred`` are the events that came later, in the order of the log. ``resumed`` is the number of the last
    suspension of its shard that an operator has lifted for this account alone.
    """

    account: Identifier
    status: AccountStatus
    groups: tuple[GroupRow, ...]
    liquidation_sequence: Sequence
    transfer_sequence: Offset
    alert_sequence: Sequence = 0
    unapplied: Sequence = 0
    suspended_reason: Text | None = None
    told_liquidatable: bool = False
    parked: tuple[ParkedTransfer, ...] = ()
    transfer_gaps: tuple["Range", ...] = ()
    transfer_floor: Offset = 0
    waiting_fills: tuple[WaitingFill, ...] = ()
    unread: str | None = None
    unapplied_credits: Sequence = 0
    transfer_digest: Sequence = 0
    refused: dict[Text, Offset] = {}
    owed: dict[RecordPlace, OwedEvents] = {}
    touched: Offset = -1
    held: Hold | None = None
    deferred: tuple[DeferredEvent, ...] = ()
    resumed: Sequence | msgspec.UnsetType = msgspec.UNSET


class Range(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Offsets ``[first, next)``: ``next`` is the first offset not included."""

    first: Offset
    next: Offset


class Turn(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Of one commit: the marks below ``marks`` were walked before, and the others after, the progress below
    ``progress``."""

    marks: Offset
    progress: Offset


class Batch(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Of one commit: parameters and events that were decided together, those below ``parameters`` and ``events``, once
    the marks below ``marks`` and the progress below ``progress`` had been walked."""

    marks: Offset
    progress: Offset
    parameters: Offset
    events: Offset


class Behind(msgspec.Struct, frozen=True, kw_only=True):
    """A source that others wait for: how far it is (``next``) and since when it has not moved, by the shard's clock.

    ``left_out``: nobody waits for it any more, until it moves.
    """

    next: Offset
    since: TimeUs
    left_out: bool = False


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """Records of a source that a shard was never told and never will be: how many are known of, and what the operator
    said who let it go on without them, the last time."""

    records: Sequence
    reason: Text


class LogSeen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A topic as the shard knows it: its id, and the first offset of the partition that the shard reads."""

    topic_id: TopicId
    first: Offset = 0


class LogGap(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Records of a topic of ours that a shard needed and that are gone: it goes on at ``next`` instead of ``first``.

    ``deleted``: what lay between is gone (retention or DeleteRecords). ``cut_off``: the log ended before ``first``.
    ``made_anew``: the topic is another one of that name. ``absent``: there are accounts, and not what should be there.
    """

    kind: Literal["deleted", "cut_off", "made_anew", "absent"]
    first: Offset = 0
    next: Offset = 0
    accepted: Text = ""


class ShardSuspension(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why no account of a shard is liquidated, since when by the shard's clock, and the number of the last reason.

    ``lifted`` is what the operator said who ended it; it stands as long as that is empty.
    """

    number: Sequence
    since: TimeUs
    reasons: tuple[Text, ...] = ()
    lifted: Text = ""


class Early(msgspec.Struct, frozen=True, kw_only=True):
    """That a shard has had rows of accounts that are still to come to it: in frames from ``offset`` on.

    ``next``, ``missing`` and ``moves`` are what it knew before that frame.
    """

    offset: Offset
    next: dict[Text, Offset]
    missing: dict[Text, Offset] = {}
    moves: "ShardMoves"


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """Offsets ``next``, by source, below which rows of some accounts are in them already.

    Of those that ``came`` to a shard by ``spread``, of those that were ``here`` before it, or of ``account`` alone.
    """

    kind: Literal["came", "here"]
    spread: Spread
    account: Text = ""
    next: dict[Text, Offset]


class ShardMoves(msgspec.Struct, frozen=True, kw_only=True):
    """Where a shard is with the moving of accounts. ``spread`` is the newest that its frames have named; ``versions``
    is by which each source is confirmed to be routed (``topic:topic id``, by partition; -1: by none that is known), and
    ``cuts`` up to where it had been told when that was confirmed, of those of the newest. The accounts of steps up to
    ``left`` are other shards' (those of ``departure`` as soon as they are ``sent``; until the new shard has them their
    rows are kept), those of steps up to ``arrived`` have come. ``floors`` are those that have not been passed yet,
    ``cut_floors`` those that were beyond a cut when it was made."""

    spread: Spread
    versions: dict[Text, tuple[Offset, ...]] = {}
    cuts: dict[Text, tuple[Offset, ...]] = {}
    left: Offset = 0
    arrived: Offset = 0
    departure: Departure | None = None
    sent: bool = False
    early: Early | None = None
    floors: tuple[Floor, ...] = ()
    cut_floors: tuple[Floor, ...] = ()


class JournalRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``margin.journal.v1``: what one commit of one shard did, and in which order (parameters, events, marks).

    ``claim`` is the offset of the shard's claim record (a claim's own is -1, its offset is the token); ``sequence``
    rises by one per record; ``previous`` is the offset of the record before. The order of a commit is: the marks below
    ``marks_before``, the parameters, the events, then the rest of the marks; or, if there were more, one ``batches``
    after the other, each after the marks that it names. ``marks_full`` is the offset of the last
    full mark frame before ``marks.next``: where the marks must be read from to know every price as of this record.
    ``clock`` is the shard's time after it: the latest seen on marks and events.
    ``open_interest``, now and then, is the quantity of the shard's long positions by symbol. ``rules_next``: the
    parameters in force after it are those of the records below this offset; it is less than ``parameters.next`` while
    the ledger cannot be held in newer ones. ``commands`` names the first commands, ``command_count`` counts them all
    (-1: ``commands`` names all). ``alert_sequence`` counts the alerts about the shard as a whole; ``not_live`` says
    since when the symbols that somebody in the shard needs have had no live mark, ``told_not_live`` which of them have
    been alerted. ``skewed`` names the clocks that have been alerted to be off (``events``: the routers', ``marks``: the
    oracle's) and when the broker last saw each so. ``unread``, of a claim, is how many records of the journal before
    it could not be read: the shard stands at the marks of the claim, and every account is decided anew. ``unreached``
    counts what liquidation does not reach: groups that are ``undecided``, ``unsellable`` or ``insolvent``, accounts
    that are ``suspended``, the transfers ``parked`` and fills ``waiting``, and the events ``unapplied``; what is not in
    it is 0. ``unreached_notional`` is what those groups and accounts hold in positions and owe, at the last prices, in
    the unit of account, as of the last record that tells the open interest. ``sources`` is the next offset of each
    source (``topic:partition:topic id``) that moved; of every one of them in a claim and now and then.
    ``sources_told_at`` is the offset of the last record that tells of every one; -1: this one does.
    ``progress`` is what was walked of ``margin.progress.v1``, that below ``progress_before`` before the events;
    ``turns`` says how marks and progress took turns where it matters. ``marks_now``, of a claim, is the first mark that
    is walked when it comes; those before it were there. ``behind`` are the sources that the shard waits
    for, or has ceased to wait for, by name; a claim forgets all else that was known of progress. ``held`` counts the
    accounts whose verdict waits. ``missing`` names the sources whose frames go on, at this offset, beyond what the
    shard has had; ``lost`` those of which an operator has said that what was missing will not come. ``logs`` are the
    topics that the shard knows, in a claim and where every source is told; ``gone``, of a claim, is what it had to do
    without of topics of ours. ``suspension`` is the last one of the shard, there once there has been one; ``moves``
    are there once the number of shards has been changed. ``pools`` is what the shard's accounts have paid to each pool
    of the fund ever since, by asset, once they have.
    """

    kind: Literal["claim", "commit"]
    shard: Annotated[int, Meta(ge=0)]
    claim: Offset
    sequence: Sequence
    previous: Offset
    events: Range
    marks: Range
    parameters: Range
    marks_before: Offset = -1
    marks_full: Offset = -1
    clock: TimeUs = 0
    rules_next: Offset = -1
    accounts: int = 0
    commands: tuple[str, ...] = ()
    open_interest: dict[Symbol, DerivedUnsigned] | None = None
    worker: Text = ""
    command_count: Offset = -1
    alert_sequence: Sequence = 0
    not_live: dict[Symbol, TimeUs] = {}
    told_not_live: tuple[Symbol, ...] = ()
    skewed: dict[Text, TimeUs] = {}
    unread: Sequence = 0
    unreached: dict[str, Sequence] = {}
    unreached_notional: dict[str, DerivedUnsigned] = {}
    sources: dict[Text, Offset] = {}
    sources_told_at: Offset = -1
    progress: Range = Range(first=0, next=0)
    progress_before: Offset = -1
    turns: tuple[Turn, ...] = ()
    batches: tuple[Batch, ...] = ()
    marks_now: Offset = -1
    behind: dict[Text, Behind] = {}
    held: Sequence = 0
    missing: dict[Text, Offset] = {}
    lost: dict[Text, Lost] = {}
    logs: dict[Text, LogSeen] | msgspec.UnsetType = msgspec.UNSET
    gone: dict[Text, LogGap] | msgspec.UnsetType = msgspec.UNSET
    suspension: ShardSuspension | msgspec.UnsetType = msgspec.UNSET
    moves: ShardMoves | msgspec.UnsetType = msgspec.UNSET
    pools: dict[PoolName, dict[Asset, DerivedUnsigned]] | msgspec.UnsetType = msgspec.UNSET
