"""What Faust is told: the same servers, credentials and limits as every other client, and no secret that it prints."""

import ssl
import tomllib
from pathlib import Path
from typing import Any

import faust
import pytest

from streams import redaction
from streams.oracle import faust_store
from streams.oracle.faust_app import faust_app
from streams.settings import RedisSettings, load

SASL = {
    "MARGIN_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
    "MARGIN_KAFKA__SASL_USERNAME": "me",
    "MARGIN_KAFKA__SASL_PASSWORD": "Mrk9Qz",
}


def app(**variables: str) -> Any:
    with redaction.apart():
        return faust_app(load({f"MARGIN_{name}": value for name, value in variables.items()}))


@pytest.mark.parametrize(
    ("protocol", "kind", "tls"),
    [
        ("PLAINTEXT", type(None), False),
        ("SSL", faust.SSLCredentials, True),
        ("SASL_PLAINTEXT", faust.SASLCredentials, False),
        ("SASL_SSL", faust.SASLCredentials, True),
    ],
)
def test_each_protocol_has_its_credentials(protocol: str, kind: type, tls: bool) -> None:
    given = {name.removeprefix("MARGIN_"): value for name, value in SASL.items()} if "SASL" in protocol else {}
    credentials = app(KAFKA__SECURITY_PROTOCOL=protocol, **given).conf.broker_credentials
    assert isinstance(credentials, kind)
    if isinstance(credentials, faust.SSLCredentials | faust.SASLCredentials):
        assert credentials.protocol.value == protocol
        context = credentials.context if isinstance(credentials, faust.SSLCredentials) else credentials.ssl_context
        assert isinstance(context, ssl.SSLContext) is tls
    if isinstance(credentials, faust.SASLCredentials):
        assert (credentials.username, credentials.password, credentials.mechanism.value) == (
            "me",
            "Mrk9Qz",
            "SCRAM-SHA-512",
        )
        assert "Mrk9Qz" not in repr(credentials)


def test_addresses_and_limits_are_those_of_every_client() -> None:
    conf = app(
        KAFKA__BOOTSTRAP_SERVERS="a,[::1]:7",
        KAFKA__SESSION_TIMEOUT_MS="120000",
        KAFKA__OPTIONS="max.partition.fetch.bytes=12345,socket.timeout.ms=20000,client.rack=r",
        SERVICE__WATCHDOG_MS="300000",
    ).conf
    assert [str(url) for url in conf.broker] == ["aiokafka://a:9092", "aiokafka://[::1]:7"]
    assert conf.consumer_max_fetch_size == 12_345
    assert conf.broker_session_timeout == 120
    assert conf.broker_request_timeout >= conf.broker_session_timeout  # else Faust refuses to start
    assert conf.producer_request_timeout == 20


def test_the_store_is_told_by_options_where_redis_is() -> None:
    where = RedisSettings(url="rediss://u:Mrk9Qz@h/3")
    table = app(REDIS__URL=where.url).Table("prices", options={faust_store.OPTION: where})
    assert isinstance(table.data, faust_store.Store)
    for shown in (repr(table.data), table.data.label, str(table.info()), str(table.app.conf.store)):
        assert "Mrk9Qz" not in shown


def test_the_store_is_ours_whatever_another_package_calls_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(faust.stores.STORES.aliases, "redis", "another.package:Store")
    table = app().Table("prices", options={faust_store.OPTION: RedisSettings()})
    assert isinstance(table.data, faust_store.Store)


def test_the_store_is_where_the_package_says_that_it_is() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    store = faust_store.Store
    assert project["entry-points"]["faust.stores"]["redis"] == f"{store.__module__}:{store.__name__}"
