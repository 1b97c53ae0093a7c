"""A Redis URL taken apart, once, for the blocking and the asyncio client alike.

``redis://[[user]:password@]host[:port][/db]``, the same with ``rediss`` for TLS, ``unix://[[user]:password@]/path[?db=n]``.
Errors never show the URL: half a password must not be told either.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import parse_qsl, unquote

from streams.errors import SettingsError
from streams.redaction import MASK

Scheme = Literal["redis", "rediss", "unix"]
_SCHEMES: dict[str, Scheme] = {"redis": "redis", "rediss": "rediss", "unix": "unix"}
_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_SETTING_FOR = {
    "ssl_ca_certs": "SSL_CA_LOCATION",
    "ssl_ca_path": "SSL_CA_LOCATION",
    "ssl_certfile": "SSL_CERTIFICATE_LOCATION",
    "ssl_keyfile": "SSL_KEY_LOCATION",
    "ssl_password": "SSL_KEY_PASSWORD",
    "username": "USERNAME",
    "password": "PASSWORD",
    "socket_timeout": "TIMEOUT_MS",
    "socket_connect_timeout": "TIMEOUT_MS",
    "timeout": "TIMEOUT_MS",
}
_OPTIONS = {"db", "ssl_cert_reqs", "ssl_check_hostname"}
_TOLD = r"(db=\d{0,5}|ssl_cert_reqs=(none|required)|ssl_check_hostname=(true|false|yes|no|0|1))"
_TELLABLE = re.compile(rf"{_TOLD}(&{_TOLD})*", re.IGNORECASE)
"""What may be told of what stands behind the question mark."""
PORT = 6379


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where Redis is. ``path`` is a socket's, with ``unix``. ``verify`` and ``check_hostname`` concern TLS."""

    scheme: Scheme
    host: str = ""
    port: int = PORT
    path: str = ""
    db: int = 0
    username: str = ""
    password: str = ""
    verify: bool = True
    check_hostname: bool = True


def parse_url(url: str, name: str) -> RedisAddress:
    """The parts of ``url``; ``name`` is the setting's, for what is said when it is wrong.

    Raises:
        SettingsError: it is no such URL.
    """
    scheme_text, separator, rest = url.partition("://")
    scheme = _SCHEMES.get(scheme_text.lower())
    if not separator or scheme is None:
        raise SettingsError(f"{name} must begin with redis://, rediss:// or unix://")
    # The last @ ends the credentials: a password may hold any character, though / ? # and % are better encoded.
    credentials, _, place = rest.rpartition("@")
    place, _, query = place.partition("?")
    if "#" in place or "#" in query:
        raise SettingsError(f"{name} holds a # behind the credentials: write it as %23")
    username, colon, password = credentials.partition(":")
    options = _options(query, scheme, name)
    address = RedisAddress(
        scheme,
        username=unquote(username),
        password=unquote(password) if colon else "",
        verify=options.verify,
        check_hostname=options.check_hostname,
    )
    if scheme == "unix":
        if not place.startswith("/"):
            raise SettingsError(f"{name} must name the socket's path: unix:///run/redis.sock")
        return replace(address, path=unquote(place), db=options.db or 0)
    host, port, db = _place(place, name)
    if options.db is not None and db is not None and options.db != db:
        raise SettingsError(f"{name} names two databases, one in its path and one in ?db=")
    return replace(address, host=host, port=port, db=db if db is not None else options.db or 0)


def masked_url(url: str) -> str:
    """``url`` without credentials and without what stands behind a question mark, to be shown."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return MASK if "@" in url else url
    _, at, place = rest.rpartition("@")
    place, question, query = place.partition("?")
    if question and not _TELLABLE.fullmatch(query):
        query = MASK
    return f"{scheme}://{MASK + '@' if at else ''}{place}{question}{query}"


def with_credentials(address: RedisAddress, username: str, password: str) -> RedisAddress:
    """``address`` with another user and password."""
    return replace(address, username=username, password=password)


def secrets_of(url: str) -> set[str]:
    """What in ``url`` is, or may be, a secret, as it stands there and decoded. Never fails."""
    rest = url.partition("://")[2] or url
    credentials, _, place = rest.rpartition("@")
    secrets = {credentials.partition(":")[2]}
    secrets |= {value for option, value in parse_qsl(place.partition("?")[2]) if option not in _OPTIONS}
    return {form for secret in secrets for form in (secret, unquote(secret)) if form}


def holds_password(url: str) -> bool:
    """Whether ``url`` holds a password, or something that may be one."""
    credentials = url.partition("://")[2].rpartition("@")[0]
    return bool(credentials.partition(":")[2]) or masked_url(url).endswith(f"?{MASK}")


@dataclass(frozen=True, slots=True)
class _Options:
    db: int | None = None
    verify: bool = True
    check_hostname: bool = True


def _options(query: str, scheme: Scheme, name: str) -> _Options:
    db: int | None = None
    verify = check_hostname = True
    for option, value in parse_qsl(query, keep_blank_values=True):
        if option == "db" and re.fullmatch(r"\d{1,5}", value):
            db = int(value)
        elif option == "ssl_cert_reqs" and scheme == "rediss" and value in ("none", "required"):
            verify = value == "required"
        elif option == "ssl_check_hostname" and scheme == "rediss" and value.lower() in _TRUTHS:
            check_hostname = _TRUTHS[value.lower()]
        elif option in _OPTIONS:
            raise SettingsError(
                f"{name}: ?{option}= must be a number for db, none or required for ssl_cert_reqs, true or false for "
                "ssl_check_hostname; the last two need rediss://"
            )
        elif option in _SETTING_FOR:
            prefix = name.removesuffix("URL")
            raise SettingsError(f"{name}: ?{option}= is a setting of its own, {prefix}{_SETTING_FOR[option]}")
        else:
            raise SettingsError(
                f"{name}: what stands behind the ? may be db, ssl_cert_reqs and ssl_check_hostname; a ? in a password "
                "must be written as %3F"
            )
    return _Options(db, verify, check_hostname)


def _place(place: str, name: str) -> tuple[str, int, int | None]:
    """(host, port, database if named) of ``host[:port][/db]``."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:/\s]*)(?::(\d{1,5}))?(?:/(\d{0,5}))?", place)
    if match is None:
        raise SettingsError(
            f"{name} must be like redis://user:password@host:6379/0; a : / ? # % or @ in a user or password must be "
            "percent-encoded, or give USERNAME and PASSWORD by themselves"
        )
    host, port, db = match.groups()
    if port is not None and not 0 < int(port) < 65536:
        raise SettingsError(f"{name}: there is no such port")
    return unquote(host.strip("[]")) or "localhost", int(port or PORT), int(db) if db else None
