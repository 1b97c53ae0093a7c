"""What this process knows to be secret, and text without it.

The last line of defence: nothing of ours writes a secret on purpose, but a server's answer may quote one back (an old
Redis quotes the arguments of a command that it does not know, AUTH and its password among them). So whatever leaves the
process as text (logs, errors, tracebacks, tables) is passed through :func:`redacted`.
"""

import base64
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from urllib.parse import quote, quote_plus

MASK = "***"
_WHOLE_WORD_BELOW = 8
"""A shorter secret is masked only where it stands by itself: it may be part of a name that is no secret."""

_secrets: set[str] = set()


def hide(secret: str) -> None:
    """Mask ``secret`` from now on, also as it looks when quoted, escaped or encoded."""
    if secret and secret not in _secrets:
        _secrets.add(secret)
        _pattern.cache_clear()


def redacted(text: str) -> str:
    """``text`` with every secret that is known as ``***``."""
    pattern = _pattern()
    return text if pattern is None else pattern.sub(MASK, text)


_SECRET_NAME = re.compile(r"pass|pwd|secret|token|credential|jaas|private|api.?key", re.IGNORECASE)
_URL_CREDENTIALS = re.compile(r"://[^/@\s]*?:(?P<password>[^\s]+)@")
_JAAS_PASSWORD = re.compile(r"password\s*=\s*[\"']?(?P<password>[^\"';\s]+)", re.IGNORECASE)
_QUERY = re.compile(r"[?&](?P<name>[^=&]+)=(?P<value>[^&\s]+)")


def hide_arguments(arguments: Sequence[str]) -> None:
    """Mask what in the arguments of a command may be a secret, so that no complaint about a mistyped one tells it.

    That is what stands behind a name that speaks of a secret: after its ``=`` or ``:``, or as the next argument; the
    password of a URL; and whatever such a name has in a URL's query or in ``sasl.jaas.config``.
    """
    for number, argument in enumerate(arguments):
        name, separator, value = _split(argument)
        if separator and _SECRET_NAME.search(name):
            hide(value.strip("\"' ;"))
            hide(value)
        elif _SECRET_NAME.search(name) and number + 1 < len(arguments):
            hide(arguments[number + 1])
        for pattern in (_URL_CREDENTIALS, _JAAS_PASSWORD):
            for match in pattern.finditer(argument):
                hide(match["password"])
        for match in _QUERY.finditer(argument):
            if _SECRET_NAME.search(match["name"]):
                hide(match["value"])


def _split(argument: str) -> tuple[str, str, str]:
    """An argument at the first ``=`` or ``:`` behind a name that speaks of a secret; without one, it is all name."""
    for match in re.finditer(r"[=:]", argument):
        if _SECRET_NAME.search(argument[: match.start()]):
            return argument[: match.start()], match[0], argument[match.end() :]
    return argument, "", ""


@contextmanager
def apart() -> Iterator[None]:
    """Within, nothing is known but what is hidden within: for whoever loads settings of others, as tests do."""
    kept = set(_secrets)
    _know(set())
    try:
        yield
    finally:
        _know(kept)


def _know(secrets: set[str]) -> None:
    _secrets.clear()
    _secrets.update(secrets)
    _pattern.cache_clear()


@lru_cache(maxsize=1)
def _pattern() -> "re.Pattern[str] | None":
    if not _secrets:
        return None
    forms = {form for secret in _secrets for form in _forms(secret)}
    # The longest first: one may be the beginning of another.
    return re.compile("|".join(_expression(form) for form in sorted(forms, key=lambda form: (-len(form), form))))


def _forms(secret: str) -> set[str]:
    """The secret as it stands in text, in a URL, in JSON, in what ``repr`` gives, and in base64."""
    encoded = secret.encode(errors="surrogateescape")
    return {
        secret,
        quote(encoded, safe=""),
        quote(encoded),
        quote_plus(encoded),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        ascii(secret)[1:-1],
        repr(encoded)[2:-1],
        base64.b64encode(encoded).decode(),
    }


def _expression(form: str) -> str:
    escaped = re.escape(form)
    return rf"(?<![\w.\-]){escaped}(?![\w.\-])" if len(form) < _WHOLE_WORD_BELOW else escaped
