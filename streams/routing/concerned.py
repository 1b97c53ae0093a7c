"""Whom a record concerns that cannot be read: its accounts, taken from the bytes as leniently as it goes.

A trade or transfer that is refused leaves its accounts on a state that is not theirs, so they must be known, whatever
else is wrong with the record. Pure.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson

from schemas.topics import TRADES, TRANSFERS
from schemas.types import AccountId, form_of

_ACCOUNT = re.compile(form_of(AccountId)).fullmatch
_IN_TEXT = re.compile(r'"account"\s*:\s*"([!#-\[\]-~]{1,128})"')
_SIDES = ("maker", "taker")
_WHITESPACE = " \t\n\r"
_DEPTH_MAX = 32


class Concerned(msgspec.Struct, frozen=True, gc=False):
    """The accounts that a record names, sorted. ``complete``: nobody else's state depends on it."""

    accounts: tuple[str, ...]
    complete: bool


def concerned(topic: str, key: bytes | None, value: bytes | None) -> Concerned:
    """Whom a refused record of ``topic`` concerns.

    A trade concerns the accounts of its ``maker`` and ``taker``, a transfer its ``account``, or its key if the value
    names none. A report moves nothing, so it concerns nobody's state, and nobody can be told of it.
    """
    if topic not in (TRADES, TRANSFERS):
        return Concerned((), complete=False)
    wanted = len(_SIDES) if topic == TRADES else 1
    plain = _plain(topic, value or b"")
    if plain is None:
        named = _leniently(topic, value or b"")
    elif len(plain) == wanted and all(map(_is_account, plain)):
        return Concerned(tuple(sorted(set(plain))), complete=True)
    else:
        named = [[account] if _is_account(account) else [] for account in plain]
    if topic == TRANSFERS and not any(named):
        named = [[account] for account in [(key or b"").decode("ascii", "replace")] if _is_account(account)]
    accounts = sorted({account for group in named for account in group})
    return Concerned(tuple(accounts), complete=sum(bool(group) for group in named) >= wanted)


def _leniently(topic: str, value: bytes) -> list[list[str]]:
    """The accounts that a record names, each list for one whom it concerns."""
    text = _text(value)
    try:
        _require_end(text)
        record = _PAIRS.decode(text)
    except (ValueError, RecursionError):
        accounts_named = list(_IN_TEXT.findall(text))
        groups = [[account] for account in accounts_named]
    else:
        groups = list(_by_side(topic, record))
        if not any(groups):
            elsewhere: list[Any] = []
            _collect_anywhere(record, _DEPTH_MAX, elsewhere)
            groups = [[account] for account in elsewhere]
    return [[account for account in group if _is_account(account)] for group in groups]


class _Pairs(list[tuple[str, Any]]):
    """An object with every value of a key that is there more than once."""


def _no(number: str) -> None:
    """A number is no account, however long it is."""


_PAIRS = json.JSONDecoder(object_pairs_hook=_Pairs, parse_int=_no, parse_float=_no, parse_constant=_no, strict=False)


def _text(value: bytes) -> str:
    """The text of ``value``: what is not in its encoding is replaced, and can be in no account."""
    return value.decode(json.detect_encoding(value), "replace").removeprefix("\ufeff")


def _require_end(text: str) -> None:
    """Of a record that was cut off most would be read before it is known.

    Raises:
        ValueError: it begins as an object and does not end as one.
    """
    if text.lstrip(_WHITESPACE).startswith("{") and not text.rstrip(_WHITESPACE).endswith("}"):
        raise ValueError("cut off")


def _plain(topic: str, value: bytes) -> list[Any] | None:
    """What stands for accounts in a record that has each name at most once and accounts nowhere but where the contract
    has them; None if there is none, or it may be otherwise.

    As lenient reading would find, in a quarter of the time: whoever sends many such records must not hold others up.
    """
    if not value.endswith(b"}") or b"\\" in value:
        return None
    if topic == TRADES and (value.count(b'"maker"') > 1 or value.count(b'"taker"') > 1):
        return None
    try:
        record = orjson.loads(value)
        parties = [record.get(side) for side in _SIDES] if topic == TRADES else [record]
        accounts = [party["account"] for party in parties if party and "account" in party]
    except (orjson.JSONDecodeError, AttributeError, TypeError):
        return None
    return accounts if accounts and len(accounts) == value.count(b'"account"') else None


def _by_side(topic: str, record: Any) -> Iterator[list[str]]:
    """The accounts where the contract has them: a list per side."""
    if topic == TRANSFERS:
        yield list(_values(record, "account"))
        return
    for side in _SIDES:
        yield [account for party in _values(record, side) for account in _values(party, "account")]


def _values(record: Any, name: str) -> Iterator[Any]:
    if isinstance(record, _Pairs):
        yield from (value for key, value in record if key == name)


def _collect_anywhere(record: Any, depth: int, elsewhere: list[Any]) -> None:
    """Add the accounts of a record of another shape to ``elsewhere``: a list of trades, an envelope."""
    if isinstance(record, _Pairs):
        for key, value in record:
            if isinstance(value, list):
                if depth > 1:
                    _collect_anywhere(value, depth - 1, elsewhere)
            elif key == "account":
                elsewhere.append(value)
    elif isinstance(record, list):
        for item in record:
            if isinstance(item, list) and depth > 1:
                _collect_anywhere(item, depth - 1, elsewhere)


def _is_account(name: Any) -> bool:
    return isinstance(name, str) and _ACCOUNT(name) is not None
