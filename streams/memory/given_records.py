"""Records as people write them down: contract messages with times on the scenario's own clock.

Owns what a record from outside may be given as, and makes the contract's record of it: key and partition where they are
left out, microseconds where milliseconds were given. Whether the message in it is any good is for the pipeline to find
out, so nothing here decodes one.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.partitioning import partition_of
from schemas.topics import EVENTS, MARKS, PARAMETERS, PRICES, REPORTS, TRADES, TRANSFERS
from streams.memory.scheduler import EPOCH_US

INPUTS = (PARAMETERS, TRADES, TRANSFERS, REPORTS, PRICES, MARKS, EVENTS)
"""The topics that may be given: those that outsiders write, marks, and event frames, which repair dead letters."""

MS_MAX = 10_000_000_000_000
"""How far from the scenario's beginning a time may be, in milliseconds."""
DEPTH_MAX = 100
"""How deep JSON may be nested here."""
ON_THE_CLOCK = {"publish_time_ms": "publish_time", "event_time_ms": "event_time", "time_ms": "time"}
"""What may stand for a time of the contract, in milliseconds since the scenario's beginning."""
AGE = "age_ms"
"""Stands for the time of its message: so long before the record is given."""
_AGE_OF = {
    TRADES: "event_time",
    TRANSFERS: "event_time",
    REPORTS: "event_time",
    PRICES: "publish_time",
    MARKS: "publish_time",
    EVENTS: "time",
}
_KEY_FIELD = {TRADES: "symbol", PRICES: "symbol", TRANSFERS: "account", REPORTS: "account"}
_PARAMETER_ID = {"instrument": "symbol", "oracle": "symbol", "asset": "asset"}


class FieldError(ValueError):
    """A field cannot be what it is. ``field`` is its path."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class GivenRecord:
    """A record for a topic. ``value`` is None for a tombstone."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    message: Any = None
    """The JSON of ``value``, times converted, if it was given as JSON."""


_ABSENT: Any = object()


def given_record(given: Mapping[str, Any], at_us: int, partitions: Mapping[str, int]) -> GivenRecord:
    """The record that ``given`` (``topic``, ``value`` or ``bytes``, ``key``, ``partition``) says, given at ``at_us``.

    ``partitions`` are the counts by topic; ``at_us`` counts from the scenario's beginning.

    Raises:
        FieldError: a field is missing, contradicts another or cannot be what it is.
    """
    topic = given["topic"]
    if topic not in INPUTS:
        raise FieldError("topic", f"{_shown(topic)} is not written from outside; there are {', '.join(INPUTS)}")
    if ("value" in given) == ("bytes" in given):
        raise FieldError(
            "value", "give either value (JSON) or bytes (text)" + (", not both" if "value" in given else "")
        )
    message = None
    value: bytes | None
    if "bytes" in given:
        value = encoded_text(given["bytes"], "bytes")
    else:
        message = _converted(given["value"], "value", at_us, _AGE_OF.get(topic))
        value = None if message is None else encoded_json(message)
    key = given.get("key", _ABSENT)
    if key is _ABSENT:
        key = _key_of(topic, message)
    elif key is not None and not isinstance(key, str):
        raise FieldError("key", f"must be text or null, got {_shown(key)}")
    encoded = None if key is None else encoded_text(key, "key")
    return GivenRecord(topic, _partition(given, topic, encoded, partitions[topic]), encoded, value, message)


def _partition(given: Mapping[str, Any], topic: str, key: bytes | None, count: int) -> int:
    number = given.get("partition", _ABSENT)
    if number is not _ABSENT:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < count:
            raise FieldError("partition", f"{topic} has the partitions 0 to {count - 1}, got {_shown(number)}")
        return number
    if topic == EVENTS and count > 1:
        raise FieldError("partition", f"{topic} has no keys: give the shard, 0 to {count - 1}")
    return 0 if key is None else partition_of(key, count)


def _key_of(topic: str, message: Any) -> str | None:
    """The contract's key of a message; None if it has none, or what would be it is not there."""
    if not isinstance(message, dict):
        return None
    if topic == PARAMETERS:
        kind = message.get("type")
        if kind == "policy":
            return "policy:default"
        name = message.get(_PARAMETER_ID.get(kind, "")) if isinstance(kind, str) else None
        return f"{kind}:{name}" if isinstance(name, str) else None
    key = message.get(_KEY_FIELD.get(topic, ""))
    return key if isinstance(key, str) else None


# --- times -----------------------------------------------------------------------------------------------------------


def microseconds(value: Any, field: str) -> int:
    """Milliseconds as microseconds.

    Raises:
        FieldError: not a number, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError(field, f"must be a number of milliseconds, got {_shown(value)}")
    if abs(value) > MS_MAX or not math.isfinite(value):
        raise FieldError(field, f"must be within {MS_MAX:,} ms of the scenario's beginning, got {_shown(value)}")
    return round(1000 * value)


def _converted(value: Any, path: str, at_us: int, age_of: str | None) -> Any:
    """``value`` with the contract's times for those on the scenario's clock, at any depth."""
    if isinstance(value, list):
        return [_converted(item, f"{path}[{number}]", at_us, age_of) for number, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    converted: dict[str, Any] = {}
    for name, item in value.items():
        field = f"{path}.{name}"
        if name in ON_THE_CLOCK:
            name, item = ON_THE_CLOCK[name], EPOCH_US + microseconds(item, field)
        elif name == AGE and age_of is not None:
            name, item = age_of, EPOCH_US + at_us - microseconds(item, field)
        else:
            item = _converted(item, field, at_us, age_of)
        if name in converted:
            raise FieldError(field, f"{name} is given twice")
        converted[name] = item
    return converted


# --- text and JSON ---------------------------------------------------------------------------------------------------


def encoded_text(text: Any, field: str) -> bytes:
    """The bytes of ``text`` in UTF-8; the code points U+DC80 to U+DCFF stand for the bytes 80 to FF as they are.

    Raises:
        FieldError: it is not text, or has another half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise FieldError(field, f"must be text, got {_shown(text)}")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise FieldError(field, f"character {error.start} is half of a pair, which no UTF-8 can hold") from None


def encoded_json(value: Any) -> bytes:
    """The JSON bytes of plain values, without spaces; half of a surrogate pair is written as its escape."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(
        "utf-8", "backslashreplace"
    )


def decoded_json(text: str | bytes) -> Any:
    """The plain values of JSON ``text``.

    Raises:
        ValueError: it is not JSON, is nested deeper than ``DEPTH_MAX``, names a field twice, or holds NaN or infinity.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_float, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEPTH_MAX}") from None
    if len(text) > DEPTH_MAX:
        _require_depth(value)
    return value


def _require_depth(value: Any) -> None:
    depth, level = 0, [value]
    while level:
        if (depth := depth + 1) > DEPTH_MAX + 1:
            raise ValueError(f"nested deeper than {DEPTH_MAX}")
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is too large a number")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {_shown(twice)} is given twice")
    return fields


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = repr(type(value))
    return text if len(text) <= 60 else text[:59] + "…"
