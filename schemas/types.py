"""The constrained scalar types that every message is made of.

Money, prices and quantities are decimal strings (a JSON number there is refused, because a double cannot hold them);
times are integer microseconds since the Unix epoch; identifiers are printable ASCII without spaces. The patterns are
valid both for Python's ``re`` and for ECMA-262, so the generated JSON Schemas carry them unchanged.
"""

import re
from typing import Annotated, Any, Literal, get_args

from msgspec import Meta

INTEGER_DIGITS_MAX = 18
FRACTION_DIGITS_MAX = 18
TIME_US_MAX = 9_007_199_254_740_991
"""Largest integer that every JSON reader holds exactly (2**53 - 1): the year 2255 in microseconds."""

_UNSIGNED = rf"(?:0|[1-9][0-9]{{0,{INTEGER_DIGITS_MAX - 1}}})(?:\.[0-9]{{1,{FRACTION_DIGITS_MAX}}})?"
# Python's `$` also matches before a trailing newline; the look-ahead closes that door and means nothing to ECMA.
_END = r"$(?!\n)"

SignedDecimal = Annotated[str, Meta(pattern=rf"^-?{_UNSIGNED}{_END}", max_length=40, description="decimal string")]
UnsignedDecimal = Annotated[str, Meta(pattern=rf"^{_UNSIGNED}{_END}", max_length=40, description="decimal string >= 0")]
PositiveDecimal = Annotated[
    str, Meta(pattern=rf"^(?=[0-9.]*[1-9]){_UNSIGNED}{_END}", max_length=40, description="decimal string > 0")
]
NonZeroDecimal = Annotated[
    str, Meta(pattern=rf"^-?(?=[0-9.]*[1-9]){_UNSIGNED}{_END}", max_length=40, description="decimal string, not 0")
]

DERIVED_DIGITS_MAX = 60
"""Digits before the point of a decimal that we compute from the exchange's: a sum, a product, a quotient of them."""
_DERIVED = rf"(?:0|[1-9][0-9]{{0,{DERIVED_DIGITS_MAX - 1}}})(?:\.[0-9]{{1,{FRACTION_DIGITS_MAX}}})?"
DerivedDecimal = Annotated[str, Meta(pattern=rf"^-?{_DERIVED}{_END}", max_length=80, description="decimal string")]
DerivedUnsigned = Annotated[str, Meta(pattern=rf"^{_DERIVED}{_END}", max_length=80, description="decimal string >= 0")]

Identifier = Annotated[str, Meta(pattern=rf"^[!-~]{{1,128}}{_END}", max_length=128, description="printable ASCII id")]
_IDENTIFIER = re.compile(r"[!-~]{1,128}")
DerivedId = Annotated[str, Meta(pattern=rf"^[!-~]{{1,192}}{_END}", max_length=192, description="printable ASCII id")]
"""An id that we make from an account's (``ACCOUNT:7:alert:12``) or that may come back to us as one."""
AccountId = Annotated[
    str,
    Meta(
        pattern=rf"^(?!margin-clearing:)[!-~]{{1,128}}{_END}",
        max_length=128,
        description="printable ASCII id; none may begin with margin-clearing:",
    ),
]
"""The account that a record from outside names (see ``RESERVED_ACCOUNTS``)."""
Symbol = Annotated[str, Meta(pattern=rf"^[A-Za-z0-9][A-Za-z0-9._/\-]{{0,31}}{_END}", max_length=32)]
"""A traded or priced symbol, such as ``BTC-PERP``."""
Asset = Annotated[str, Meta(pattern=rf"^[A-Za-z0-9][A-Za-z0-9._\-]{{0,15}}{_END}", max_length=16)]
PoolName = Annotated[str, Meta(pattern=rf"^[A-Za-z0-9][A-Za-z0-9._\-]{{0,31}}{_END}", max_length=32)]
"""A pool of the insurance fund, such as ``default``."""
ParameterKey = Annotated[str, Meta(pattern=rf"^[!-~]{{1,64}}{_END}", max_length=64, description="type:id")]
"""The key of a record of ``risk.parameters.v1``, such as ``instrument:BTC-PERP``."""
Text = Annotated[str, Meta(max_length=1024)]
TopicName = Annotated[str, Meta(pattern=rf"^[A-Za-z0-9._\-]{{1,249}}{_END}", max_length=249)]
TopicId = Annotated[str, Meta(pattern=rf"^[!-~]{{0,64}}{_END}", max_length=64)]
"""What Kafka tells a topic by from others that have had its name; empty where it is not known."""
RecordPlace = Annotated[
    str,
    Meta(
        pattern=rf"^(?:[A-Za-z0-9._\-]{{1,249}}:[0-9]{{1,10}}:[!-~]{{0,64}}@-?[0-9]{{1,19}})?{_END}",
        max_length=350,
        description="topic:partition:topic id@offset",
    ),
]
"""One record of one topic; empty where it is not known."""

TimeUs = Annotated[int, Meta(ge=0, le=TIME_US_MAX, description="microseconds since the Unix epoch")]
Sequence = Annotated[int, Meta(ge=0, le=2**63 - 1)]
PartNumber = Annotated[int, Meta(ge=1, le=100_000)]
ShardNumber = Annotated[int, Meta(ge=0, le=1023)]
ShardCount = Annotated[int, Meta(ge=1, le=1024)]
Offset = Annotated[int, Meta(ge=-1, le=2**63 - 1)]
DurationMs = Annotated[int, Meta(ge=1, le=86_400_000, description="milliseconds")]
HoldMs = Annotated[int, Meta(ge=0, le=600_000, description="milliseconds")]

Side = Literal["buy", "sell"]
PositionSide = Literal["long", "short"]
MarginMode = Literal["cross", "isolated"]
MarkStatus = Literal["live", "stale", "halted"]
Uncounted = Literal["never", "silent", "late", "unsure", "repeated", "from_the_future", "apart"]
"""Why a source's price is not in a mark: none came, none came lately, the last was published too long ago, has too wide
a confidence, does not follow the one before it, is from the future, or is too far from the mark."""
Stage = Literal["reduce", "close", "takeover", "deleverage", "withdrawn"]
ReportStatus = Literal["accepted", "rejected", "filled", "cancelled"]
OrderStatus = Literal["issued", "accepted", "partly_filled", "filled", "rejected", "cancelled"]
CommandStatus = Literal[
    "issued", "accepted", "partly_filled", "filled", "rejected", "cancelled", "expired", "withdrawn", "superseded"
]
GroupStatus = Literal["normal", "margin_call", "liquidating", "bankrupt", "undecided", "unsellable", "insolvent"]
AccountStatus = Literal[
    "normal", "margin_call", "liquidating", "bankrupt", "undecided", "unsellable", "insolvent", "suspended"
]
AlertKind = Literal[
    "margin_call",
    "margin_call_cleared",
    "liquidation_started",
    "liquidation_completed",
    "bankrupt",
    "suspended",
    "suspended_liquidatable",
    "resumed",
    "undecided",
    "undecided_cleared",
    "unsellable",
    "insolvent",
    "recovered",
    "fill_mismatch",
    "late_fill",
    "report_mismatch",
    "credit_parked",
    "credit_applied",
    "clock_skew",
    "clock_skew_cleared",
    "unreadable",
    "input_behind",
    "input_behind_cleared",
    "input_missing",
    "input_missing_cleared",
    "input_lost",
    "repair_refused",
    "liquidation_fee",
    "records_gone",
]
RESERVED_ACCOUNTS = "margin-clearing:"
"""No account may begin with this: alerts about a whole shard carry ``margin-clearing:shard:N`` as their account."""

_DIGITS = f"at most {INTEGER_DIGITS_MAX} digits before the point and {FRACTION_DIGITS_MAX} after it, no exponent"
_DERIVED_DIGITS = (
    f"at most {DERIVED_DIGITS_MAX} digits before the point and {FRACTION_DIGITS_MAX} after it, no exponent"
)
_TYPES_IN_WORDS: tuple[tuple[Any, str], ...] = (
    (SignedDecimal, f'a decimal string such as "-1.5", {_DIGITS}'),
    (UnsignedDecimal, f'a decimal string of at least 0 such as "1.5", {_DIGITS}'),
    (PositiveDecimal, f'a decimal string above 0 such as "1.5", {_DIGITS}'),
    (NonZeroDecimal, f'a decimal string other than 0 such as "-1.5", {_DIGITS}'),
    (DerivedDecimal, f'a decimal string such as "-1.5", {_DERIVED_DIGITS}'),
    (DerivedUnsigned, f'a decimal string of at least 0 such as "1.5", {_DERIVED_DIGITS}'),
    (
        AccountId,
        f"an account of 1 to 128 printable ASCII characters without spaces, not beginning with {RESERVED_ACCOUNTS}",
    ),
    (Identifier, "an id of 1 to 128 printable ASCII characters without spaces"),
    (DerivedId, "an id of 1 to 192 printable ASCII characters without spaces"),
    (Symbol, 'a symbol such as "BTC-PERP": 1 to 32 ASCII letters, digits and . _ / -, a letter or a digit first'),
    (Asset, 'an asset such as "USDC": 1 to 16 ASCII letters, digits and . _ -, a letter or a digit first'),
    (PoolName, 'a pool such as "default": 1 to 32 ASCII letters, digits and . _ -, a letter or a digit first'),
    (TopicName, "the name of a topic: 1 to 249 ASCII letters, digits and . _ -"),
    (TopicId, "the id of a topic: at most 64 printable ASCII characters without spaces"),
    (RecordPlace, 'a record such as "trades.v1:0:TOPIC-ID@12"'),
    (ParameterKey, 'a key such as "instrument:BTC-PERP": 1 to 64 printable ASCII characters without spaces'),
)
IN_WORDS: dict[str, str] = {meta.pattern: words for kind, words in _TYPES_IN_WORDS for meta in get_args(kind)[1:]}
"""What each pattern of these types asks for, in words."""


def form_of(kind: Any) -> str:
    """The pattern of one of these types without its ends, to be part of a longer one."""
    pattern: str = next(meta.pattern for meta in get_args(kind)[1:])
    return pattern.removeprefix("^").removesuffix(_END)


def is_identifier(text: str) -> bool:
    """Whether ``text`` is an ``Identifier``."""
    return _IDENTIFIER.fullmatch(text) is not None


def shard_account(shard: int) -> str:
    """What stands for the account in an alert about a whole shard."""
    return f"{RESERVED_ACCOUNTS}shard:{shard}"


CROSS = "cross"
"""The margin group that all of an account's positions share unless one is isolated under its symbol."""
