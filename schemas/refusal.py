"""Why bytes are no valid message, as a person is told it: what was expected, where, and what stood there.

msgspec says the first two, with a regular expression where a text has a form. Here the form is said in words, values
that may only be some words get the list of them, and what stood there is shown. The text is bounded whatever the bytes.
"""

import ast
import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import orjson

from schemas.types import IN_WORDS

TEXT_CHARACTERS_MAX = 700
_VALUE_CHARACTERS_MAX = 60
_PATTERN = re.compile(r"^Expected `str` matching regex (?P<literal>'.*'|\".*\")$", re.DOTALL)
_PLACE = re.compile(r"^(?P<what>.*?) - at (?:`(?P<key>key)` in )?`(?P<path>\$[^`]*)`$", re.DOTALL)
_QUOTING = "Invalid "
"""What msgspec says begins so if it quotes a value."""
_ENUM = re.compile(r"^Invalid (?:enum )?value (?P<value>.*)$", re.DOTALL)
_STEP = re.compile(r"\.(?P<field>[^.\[\]]+)|\[(?P<index>\d+)\]|(?P<any>\[\.\.\.\])")
_ANY = object()
"""The step into some value of a mapping, of which msgspec does not say the key."""
_CACHED_CHARACTERS_MAX = 300
_CACHED_MAX = 256


class _Said(NamedTuple):
    """What msgspec said: ``what`` it expected, the pattern in that, the same in words, and where, if it says where."""

    what: str
    pattern: re.Pattern[str] | None
    expected: str
    path: str | None
    steps: tuple[Any, ...]
    is_key: bool


def refusal(text: str, message_type: Any, data: bytes) -> str:
    """Msgspec's ``text`` about ``data``, which is no ``message_type``, in words; at most TEXT_CHARACTERS_MAX."""
    # Msgspec's own words are few, and short, where they quote no value.
    is_own = len(text) <= _CACHED_CHARACTERS_MAX and not text.startswith(_QUOTING)
    said = _said(text) if is_own else _said.__wrapped__(text)
    path, pattern, steps = said.path, said.pattern, said.steps
    if path is None:
        return _cut(said.expected, TEXT_CHARACTERS_MAX)
    is_any = _ANY in steps
    shown, where = "", f"at `{path}`"
    for place, value in _values(data, path, steps):
        where = f"at `{place}`"
        if said.is_key:
            # A key of this mapping: the first that has not the form.
            wrong = next((key for key in value if pattern and not pattern.search(key)), None)
            shown, where = ("" if wrong is None else _shown(wrong)), f"{where} (a key)"
            break
        if pattern is None or not isinstance(value, str) or not pattern.search(value):
            shown = _shown(value)
            if not is_any or pattern is not None:
                break
    if is_any and pattern is None:  # any of them may be the one
        shown, where = "", f"at `{path}`"
    must = "" if pattern is not None or said.is_key else _must(said.what, message_type, steps)
    return _cut(
        f"{said.expected} - {where}{must and ', which must be ' + must}{shown and ', got ' + shown}",
        TEXT_CHARACTERS_MAX,
    )


@functools.lru_cache(maxsize=_CACHED_MAX)
def _said(text: str) -> _Said:
    match = _PLACE.match(text)
    if match is None:
        return _Said(text, None, _expected(text, None), None, (), is_key=False)
    what, path = match["what"], match["path"]
    pattern = _pattern_of(what)
    compiled = None if pattern is None else re.compile(pattern)
    steps = _steps(path) if len(path) <= _CACHED_CHARACTERS_MAX else _steps.__wrapped__(path)
    return _Said(what, compiled, _expected(what, pattern), path, steps, match["key"] is not None)


def _expected(what: str, pattern: str | None) -> str:
    if pattern is not None:
        return f"Expected {IN_WORDS.get(pattern, 'text of another form')}"
    if (enum := _ENUM.match(what)) is not None and len(what) > _VALUE_CHARACTERS_MAX:
        return f"Invalid enum value {_cut(enum['value'], _VALUE_CHARACTERS_MAX)}"
    return what


def _pattern_of(what: str) -> str | None:
    """The pattern that a text was not of."""
    match = _PATTERN.match(what)
    if match is None:
        return None
    pattern: str = ast.literal_eval(match["literal"])
    return pattern


@functools.lru_cache(maxsize=_CACHED_MAX)
def _steps(path: str) -> tuple[Any, ...]:
    """The steps of msgspec's path ``$.a[0].b[...]``: field names, indices, ``_ANY``."""
    return tuple(
        _ANY if step["any"] else step["field"] if step["index"] is None else int(step["index"])
        for step in _STEP.finditer(path[1:])
    )


def _values(data: bytes, path: str, steps: Sequence[Any]) -> Sequence[tuple[str, Any]]:
    """Every value that ``steps`` may lead to, with its path; none if the bytes cannot be read so."""
    try:
        root = orjson.loads(data)
    except orjson.JSONDecodeError:
        return ()
    # Of a key that comes twice msgspec may have meant the first: then another place is shown, or none.
    if _ANY not in steps:
        return _value(root, path, steps)
    places: list[tuple[str, Any]] = [("$", root)]
    for step in steps:
        further: list[tuple[str, Any]] = []
        for before, value in places:
            if step is _ANY:
                items = value.items() if isinstance(value, dict) else ()
                further += [(f"{before}[{_shown(key)}]", item) for key, item in items]
            else:
                further += _value(value, f"{before}.{step}" if isinstance(step, str) else f"{before}[{step}]", (step,))
        places = further
    return places


def _value(value: Any, path: str, steps: Sequence[Any]) -> Sequence[tuple[str, Any]]:
    """The value that ``steps``, none of them ``_ANY``, lead to, with its path; none if there is none."""
    for step in steps:
        if not isinstance(value, dict if isinstance(step, str) else list):
            return ()
        try:
            value = value[step]
        except LookupError:
            return ()
    return ((path, value),)


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


def _must(what: str, message_type: Any, steps: tuple[Any, ...]) -> str:
    """What the type says of the value at ``steps``, where msgspec has not: the words it may be, or its form."""
    is_text = what.startswith("Expected `str")
    if any(isinstance(step, str) and len(step) > _CACHED_CHARACTERS_MAX for step in steps):
        return _said_by_type.__wrapped__(is_text, message_type, steps)
    return _said_by_type(is_text, message_type, steps)


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
