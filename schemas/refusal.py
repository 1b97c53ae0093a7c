"""Why bytes are no valid message, as a person is told it: what was expected, where, and what stood there.

msgspec says the first two, with a regular expression where a text has a form. Here the form is said in words, values
that may only be some words get the list of them, and what stood there is shown. The text is bounded whatever the bytes.
"""

import ast
import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import orjson

from schemas.types import IN_WORDS

TEXT_CHARACTERS_MAX = 700
_VALUE_CHARACTERS_MAX = 60
_PATTERN = re.compile(r"^Expected `str` matching regex (?P<literal>'.*'|\".*\")$", re.DOTALL)
_PLACE = re.compile(r"^(?P<what>.*?) - at (?:`(?P<key>key)` in )?`(?P<path>\$[^`]*)`$", re.DOTALL)
_ENUM = re.compile(r"^Invalid (?:enum )?value (?P<value>.*)$", re.DOTALL)
_STEP = re.compile(r"\.(?P<field>[^.\[\]]+)|\[(?P<index>\d+)\]|(?P<any>\[\.\.\.\])")
_ANY = object()
"""The step into some value of a mapping, of which msgspec does not say the key."""
_CACHED_CHARACTERS_MAX = 300
_CACHED_MAX = 256


def refusal(text: str, message_type: Any, data: bytes) -> str:
    """Msgspec's ``text`` about ``data``, which is no ``message_type``, in words; at most TEXT_CHARACTERS_MAX."""
    match = _PLACE.match(text)
    if match is None:
        return _cut(_expected(text, None), TEXT_CHARACTERS_MAX)
    what, path = match["what"], match["path"]
    pattern = _pattern_of(what)
    steps = list(_steps(path))
    shown, place = "", path
    for place, value in _values(data, steps, whole=path):
        if match["key"]:
            # A key of this mapping: the first that has not the form.
            wrong = next((key for key in value if pattern and not re.search(pattern, key)), None)
            shown, place = ("" if wrong is None else _shown(wrong)), f"{place}` (a key)"
            break
        if pattern is None or not isinstance(value, str) or not re.search(pattern, value):
            shown = _shown(value)
            if _ANY not in steps or pattern is not None:
                break
    if _ANY in steps and pattern is None:  # any of them may be the one
        shown, place = "", path
    where = f"at `{place}" if place.endswith("(a key)") else f"at `{place}`"
    must = "" if pattern is not None or match["key"] else _must(what, message_type, steps)
    return _cut(
        f"{_expected(what, pattern)} - {where}{must and ', which must be ' + must}{shown and ', got ' + shown}",
        TEXT_CHARACTERS_MAX,
    )


def _expected(what: str, pattern: str | None) -> str:
    if pattern is not None:
        return f"Expected {IN_WORDS.get(pattern, 'text of another form')}"
    if (enum := _ENUM.match(what)) is not None and len(what) > _VALUE_CHARACTERS_MAX:
        return f"Invalid enum value {_cut(enum['value'], _VALUE_CHARACTERS_MAX)}"
    return what


def _pattern_of(what: str) -> str | None:
    """The pattern that a text was not of. Msgspec's own words are few, and short where they quote no value."""
    return _parsed_pattern(what) if len(what) <= _CACHED_CHARACTERS_MAX else _parsed_pattern.__wrapped__(what)


@functools.lru_cache(maxsize=_CACHED_MAX)
def _parsed_pattern(what: str) -> str | None:
    match = _PATTERN.match(what)
    if match is None:
        return None
    pattern: str = ast.literal_eval(match["literal"])
    return pattern


def _steps(path: str) -> Iterator[Any]:
    """The steps of msgspec's path ``$.a[0].b[...]``: field names, indices, ``_ANY``."""
    for step in _STEP.finditer(path[1:]):
        if step["any"]:
            yield _ANY
        else:
            yield step["field"] if step["index"] is None else int(step["index"])


def _values(data: bytes, steps: list[Any], whole: str) -> Iterator[tuple[str, Any]]:
    """Every value that ``steps`` may lead to, with its path; none if the bytes cannot be read so."""
    try:
        root = orjson.loads(data)
    except orjson.JSONDecodeError:
        return
    # Of a key that comes twice msgspec may have meant the first: then another place is shown, or none.
    places: list[tuple[str, Any]] = [("$", root)]
    for step in steps:
        further: list[tuple[str, Any]] = []
        for path, value in places:
            if step is _ANY and isinstance(value, dict):
                further += [(f"{path}[{_shown(key)}]", item) for key, item in value.items()]
            elif isinstance(step, int) and isinstance(value, list) and step < len(value):
                further.append((f"{path}[{step}]", value[step]))
            elif isinstance(step, str) and isinstance(value, dict) and step in value:
                further.append((f"{path}.{step}", value[step]))
        places = further
    yield from places


def _shown(value: Any) -> str:
    """JSON of a value, cut; of what contains others only how much."""
    if isinstance(value, dict):
        return f"an object of {len(value)} fields"
    if isinstance(value, list):
        return f"an array of {len(value)}"
    if isinstance(value, str) and len(value) > _VALUE_CHARACTERS_MAX:
        return f"{json.dumps(value[:_VALUE_CHARACTERS_MAX])}… ({len(value)} characters)"
    return _cut(json.dumps(value), 6 * _VALUE_CHARACTERS_MAX)


def _cut(text: str, characters_max: int) -> str:
    return text if len(text) <= characters_max else text[: characters_max - 1] + "…"


def _must(what: str, message_type: Any, steps: list[Any]) -> str:
    """What the type says of the value at ``steps``, where msgspec has not: the words it may be, or its form."""
    is_text = what.startswith("Expected `str")
    if any(isinstance(step, str) and len(step) > _CACHED_CHARACTERS_MAX for step in steps):
        return _said_by_type.__wrapped__(is_text, message_type, tuple(steps))
    return _said_by_type(is_text, message_type, tuple(steps))


@functools.lru_cache(maxsize=_CACHED_MAX)
def _said_by_type(is_text: bool, message_type: Any, steps: tuple[Any, ...]) -> str:
    choice: list[str] = []
    for kind in _types_at(_type_info(message_type), steps):
        if isinstance(kind, msgspec.inspect.LiteralType):
            choice += [str(value) for value in kind.values]
        elif isinstance(kind, msgspec.inspect.StrType) and kind.pattern in IN_WORDS and is_text:
            return IN_WORDS[kind.pattern]
    return f"one of {', '.join(dict.fromkeys(choice))}" if choice else ""


@functools.cache
def _type_info(message_type: Any) -> Any:
    return msgspec.inspect.type_info(message_type)


def _types_at(kind: Any, steps: Sequence[Any]) -> Iterator[Any]:
    if isinstance(kind, msgspec.inspect.Metadata):
        yield from _types_at(kind.type, steps)
    elif isinstance(kind, msgspec.inspect.UnionType):
        for one in kind.types:
            yield from _types_at(one, steps)
    elif not steps:
        yield kind
    elif isinstance(kind, msgspec.inspect.StructType):
        if steps[0] == kind.tag_field and len(steps) == 1:
            yield msgspec.inspect.LiteralType((kind.tag,))
        for field in kind.fields:
            if field.encode_name == steps[0]:
                yield from _types_at(field.type, steps[1:])
    elif isinstance(kind, msgspec.inspect.DictType) and steps[0] is _ANY:
        yield from _types_at(kind.value_type, steps[1:])
    elif isinstance(kind, msgspec.inspect.ListType | msgspec.inspect.VarTupleType) and isinstance(steps[0], int):
        yield from _types_at(kind.item_type, steps[1:])
