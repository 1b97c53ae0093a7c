"""Whether Redis can be reached: found out within seconds, and told with the address and the reason."""

import socket
import ssl
import threading
from typing import Any

import redis

from streams.errors import TableError
from streams.redaction import redacted
from streams.settings import RedisSettings
from streams.tables.connection import connect

ANSWER_S_MAX = 3.0
"""How long Redis may take to answer for the first time. With the start of Python a refusal comes within 5 s."""

_POLL_S = 0.05
_CHECK = "set MARGIN_REDIS__URL or --redis-url to where it is"
_REASON_CHARACTERS_MAX = 400


def require_redis(settings: RedisSettings, timeout_s: float = ANSWER_S_MAX) -> None:
    """Return when Redis has answered a PING. Signals are served while this waits.

    Raises:
        TableError: it has not in ``timeout_s``, or refuses. The text has the address and the reason, never a password.
    """
    client = connect(settings, attempts=1)
    where = address(client)
    failures: list[Exception] = []
    answered = threading.Event()

    def ask() -> None:
        try:
            client.ping()
        except Exception as error:
            failures.append(error)
        answered.set()

    # In a thread of its own: looking up a name has no time limit.
    threading.Thread(target=ask, name="redis-check", daemon=True).start()
    for _ in range(int(timeout_s / _POLL_S)):
        if answered.wait(_POLL_S):
            break
    else:
        raise TableError(f"Redis at {where} does not answer within {timeout_s:g} s; {_CHECK}")
    client.close()
    if failures:
        raise TableError(f"Redis at {where} {why(failures[0], where)}") from failures[0]


def address(client: redis.Redis) -> str:
    """Where ``client`` connects to, without credentials."""
    options: dict[str, Any] = client.connection_pool.connection_kwargs
    if path := options.get("path"):
        return f"unix://{path}"
    secure = issubclass(client.connection_pool.connection_class, redis.SSLConnection)
    scheme = "rediss" if secure else "redis"
    return f"{scheme}://{options.get('host', 'localhost')}:{options.get('port', 6379)}/{options.get('db', 0) or 0}"


def why(error: BaseException, where: str) -> str:
    """What a Redis client's error means and what to do, to follow "Redis at ADDRESS"."""
    causes = _causes(error)
    other = "redis:// if it has no TLS" if where.startswith("rediss:") else "rediss:// if it expects TLS"
    # Masked before it is cut: half a secret would not be known as one.
    text = " ".join(redacted(str(error)).split())[:_REASON_CHARACTERS_MAX]
    if isinstance(error, redis.AuthenticationError) or "WRONGPASS" in text or "NOAUTH" in text:
        return f"refuses the credentials: {text}; check the user and the password of MARGIN_REDIS__URL"
    if isinstance(error, redis.exceptions.NoPermissionError) or text.startswith("NOPERM"):
        return f"does not authorise this client: {text}; grant it by an ACL"
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"shows a certificate that is not trusted: {cause.verify_message}; check the CA and the host name"
        if isinstance(cause, ssl.SSLError):
            return f"and this client do not agree on TLS: {cause.reason or text}; with {other}"
        if isinstance(cause, socket.gaierror):
            return f"cannot be reached: no such host ({cause.strerror}); {_CHECK}"
    if isinstance(error, redis.TimeoutError):
        return f"does not answer: {text}; {_CHECK}, with {other}"
    if isinstance(error, redis.ConnectionError):
        if any(isinstance(cause, ConnectionRefusedError | FileNotFoundError | PermissionError) for cause in causes):
            return f"cannot be reached: {text}; {_CHECK}"
        return f"ends the connection: {text}; {_CHECK}, with {other}"
    return f"refuses: {text}"


def _causes(error: BaseException) -> list[BaseException]:
    causes: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in causes:
        causes.append(current)
        current = current.__cause__ or current.__context__
    return causes
