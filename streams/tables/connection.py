"""Clients of Redis from settings: the blocking one of the engine and the tools, and the asyncio one of the oracle.

One place decides address, credentials, TLS and time for both, so what holds for one role holds for every role.
"""

import ssl
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from streams.settings import RedisSettings

_CLIENT_NAME = "margin-clearing"


def connect(settings: RedisSettings, attempts: int = 2) -> redis.Redis:
    """A client with the settings' timeout that tries ``attempts`` times: who calls decides how long to go on.

    Raises:
        SettingsError: the settings do not say where Redis is.
    """
    return redis.Redis(**connection_properties(settings), retry=Retry(NoBackoff(), attempts - 1))


def connect_asyncio(settings: RedisSettings, attempts: int = 2) -> redis.asyncio.Redis:
    """As :func:`connect`, for asyncio."""
    return redis.asyncio.Redis(**connection_properties(settings), retry=AsyncRetry(NoBackoff(), attempts - 1))


def connection_properties(settings: RedisSettings) -> dict[str, Any]:
    """What both of redis-py's clients take.

    Raises:
        SettingsError: the settings do not say where Redis is.
    """
    address, timeout_s = settings.address, settings.timeout_ms / 1000
    properties: dict[str, Any] = {
        "db": address.db,
        "username": address.username or None,
        "password": address.password or None,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "client_name": _CLIENT_NAME,
    }
    if address.scheme == "unix":
        return properties | {"unix_socket_path": address.path}
    properties |= {"host": address.host, "port": address.port}
    files = settings.tls
    if files is None:
        return properties
    properties |= {
        "ssl": True,
        "ssl_cert_reqs": "required" if files.verify else "none",
        "ssl_check_hostname": files.check_hostname and files.verify,
        "ssl_certfile": files.certificate or None,
        "ssl_keyfile": files.key or None,
        "ssl_password": files.key_password or None,
        "ssl_exclude_verify_flags": [ssl.VERIFY_X509_STRICT],  # as for Kafka, see streams.access.tls
    }
    return properties | _trusted(files.ca)


def _trusted(ca: str) -> dict[str, str]:
    if not ca:
        return {}
    return {"ssl_ca_path" if Path(ca).is_dir() else "ssl_ca_certs": ca}
