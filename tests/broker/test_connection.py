"""Whether Kafka can be reached is known within seconds, and told with the address and the client's own reason."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any

import pytest
from confluent_kafka import KafkaError
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType
from confluent_kafka.admin import ResourceType as Of

from infra.local.kafka import KafkaServer, Listener
from infra.local.ports import free_port
from schemas.topics import TRADES, all_topics
from streams.broker import admin
from streams.broker.client_log import ClientLog, in_words, last_reasons, reason_of
from streams.broker.connection import ANSWER_S_MAX, require_kafka
from streams.broker.reader import LogReader
from streams.errors import BrokerError, SettingsError
from streams.settings import KafkaSettings, Settings

PATIENCE_S = ANSWER_S_MAX + 10
"""No wait for a server is as long on a machine that is busy with other things."""


@contextmanager
def silent_listener() -> Iterator[str]:
    """An address where connections are accepted and nothing is said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refused(settings: KafkaSettings) -> str:
    began = time.monotonic()
    with pytest.raises(BrokerError) as refusal:
        require_kafka(settings)
    assert time.monotonic() - began < PATIENCE_S
    text = str(refusal.value)
    assert settings.bootstrap_servers in text
    assert not re.search(r"FAIL|thrd:|in state|\d+ms|rdkafka#", text), text
    return text


# --- words -----------------------------------------------------------------------------------------------------------

LINES = [
    (
        "127.0.0.1:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT, "
        "29 identical error(s) suppressed)",
        ("127.0.0.1:1", "Connect to ipv4#127.0.0.1:1 failed: Connection refused"),
    ),
    (
        "sasl_ssl://kafka.example.com:9093/1: SASL authentication error: Authentication failed (after 5ms in state "
        "AUTH_REQ)",
        ("kafka.example.com:9093", "SASL authentication error: Authentication failed"),
    ),
    (
        "ssl://[::1]:9093/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: "
        "(after 3ms in state SSL_HANDSHAKE)",
        ("[::1]:9093", "SSL handshake failed: SSL routines::certificate verify failed"),
    ),
    ("no broker is named here", ("", "no broker is named here")),
]


@pytest.mark.parametrize(("line", "broker_and_reason"), LINES, ids=["refused", "password", "certificate", "none"])
def test_a_line_of_librdkafka_loses_its_noise(line: str, broker_and_reason: tuple[str, str]) -> None:
    assert reason_of(line) == broker_and_reason


def test_what_a_client_said_is_remembered_for_whoever_gives_up_later() -> None:
    ClientLog(None).log(
        40, "%s [%s] %s", "FAIL", "rdkafka#consumer-1", "[thrd:b:7/bootstrap]: b:7/bootstrap: Connection refused"
    )
    assert "b:7: Connection refused" in last_reasons()
    assert "b:7: Connection refused" in in_words(KafkaError(KafkaError._TRANSPORT))


@pytest.mark.parametrize(
    "code",
    [
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    ],
)
def test_what_is_not_authorised_is_said_to_be_that(code: int) -> None:
    assert "not authorised for this" in in_words(KafkaError(code))
    assert "missing" not in in_words(KafkaError(code))


# --- who does not answer ---------------------------------------------------------------------------------------------


def test_a_closed_port_is_told_with_the_address_and_the_reason() -> None:
    assert "Connection refused" in refused(KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}"))


def test_an_unknown_host_is_told() -> None:
    text = refused(KafkaSettings(bootstrap_servers="no-such-host.invalid:9092"))
    assert "Failed to resolve" in text
    assert "MARGIN_KAFKA__BOOTSTRAP_SERVERS" in text


def test_each_of_several_addresses_has_its_reason() -> None:
    closed = f"127.0.0.1:{free_port()}"
    text = refused(KafkaSettings(bootstrap_servers=f"{closed},no-such-host.invalid:9092"))
    assert f"{closed}: Connect" in text
    assert "no-such-host.invalid:9092: Failed to resolve" in text


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL"])
def test_a_listener_that_says_nothing_is_told(protocol: Any) -> None:
    with silent_listener() as address:
        assert "does not answer" in refused(KafkaSettings(bootstrap_servers=address, security_protocol=protocol))


def test_what_does_not_speak_kafkas_protocol_is_told() -> None:
    class Page(BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with ThreadingTCPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        text = refused(KafkaSettings(bootstrap_servers=f"127.0.0.1:{server.server_address[1]}"))
        server.shutdown()
    assert "does not speak Kafka's protocol" in text or "Disconnected" in text


def test_a_broker_that_answers_is_enough(settings: Settings) -> None:
    require_kafka(settings.kafka)
    one_away = f"127.0.0.1:{free_port()},{settings.kafka.bootstrap_servers}"
    require_kafka(KafkaSettings(bootstrap_servers=one_away))


def test_tls_to_a_broker_without_it_is_told(settings: Settings) -> None:
    plain = settings.kafka.bootstrap_servers
    text = refused(KafkaSettings(bootstrap_servers=plain, security_protocol="SSL"))
    # Whether the broker says no or hangs up first is a matter of timing.
    assert "SSL handshake failed" in text or "SSL connection closed by peer" in text
    assert "MARGIN_KAFKA__SECURITY_PROTOCOL" in text


def test_a_missing_file_of_certificates_is_a_wrong_setting() -> None:
    settings = KafkaSettings(security_protocol="SSL", ssl_ca_location="/nowhere/ca.pem")
    with pytest.raises(SettingsError, match=r"ssl\.ca\.location"):
        require_kafka(settings)


def test_brokers_that_give_addresses_where_nobody_is_are_told(tmp_path: Path) -> None:
    with KafkaServer(tmp_path, proxy_port=free_port()) as server:
        text = refused(KafkaSettings(bootstrap_servers=f"127.0.0.1:{server.proxied_port}"))
    assert f"127.0.0.1:{server.proxy_port}" in text
    assert "advertised.listeners" in text


def test_a_read_that_gives_up_says_why() -> None:
    address = f"127.0.0.1:{free_port()}"
    told = rf"{TRADES}\[0\].*{address}: Connect to .* Connection refused"
    with (
        LogReader(KafkaSettings(bootstrap_servers=address), "test", timeout_s=0.5) as reader,
        pytest.raises(BrokerError, match=told),
    ):
        reader.watermarks(TRADES, 0)


# --- who is not let in -----------------------------------------------------------------------------------------------

USERS = {"operator": "right-1", "stranger": "right-2"}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a node listens for SASL PLAIN. It asks an authorizer; who comes by its other address may do everything."""
    users = " ".join(f'user_{name}="{password}"' for name, password in USERS.items())
    login = f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
    clients = Listener(
        "CLIENTS", "SASL_PLAINTEXT", {"sasl.enabled.mechanisms": "PLAIN", "plain.sasl.jaas.config": login}
    )
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS;User:operator",
    }
    with KafkaServer(tmp_path_factory.mktemp("secured"), listeners=[clients], properties=properties):
        yield clients.address


def as_user(address: str, name: str, password: str) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=address,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_username=name,
        sasl_password=password,
    )


def test_a_wrong_password_is_told_at_once_and_not_shown(secured: str) -> None:
    text = refused(as_user(secured, "operator", "wrong-secret"))
    assert "uthentication" in text
    assert "MARGIN_KAFKA__SASL_PASSWORD" in text
    assert "wrong-secret" not in text


def test_a_client_without_credentials_is_told(secured: str) -> None:
    assert "does not answer" in refused(KafkaSettings(bootstrap_servers=secured))


def test_who_may_not_see_a_topic_is_told_that_and_not_that_it_is_missing(secured: str) -> None:
    operator = Settings(kafka=as_user(secured, "operator", USERS["operator"]))
    stranger = Settings(kafka=as_user(secured, "stranger", USERS["stranger"]))
    require_kafka(operator.kafka)
    assert admin.ensure_topics(operator).wrong == []
    require_kafka(stranger.kafka)
    report = admin.ensure_topics(stranger, create=True)
    assert len(report.wrong) == len(all_topics())
    assert all("not authorised" in fault and "missing" not in fault for fault in report.wrong)
    with pytest.raises(BrokerError, match=f"{TRADES}.*not authorised"):
        admin.partition_counts(admin.admin_client(stranger), 10)
    with LogReader(stranger.kafka, "test") as reader, pytest.raises(BrokerError, match="not authorised"):
        reader.partitions(TRADES)
    with pytest.raises(BrokerError, match="not authorised for this consumer group"):
        admin.group_state(stranger, "margin-engine")
    describe = AclBinding(
        *(Of.TOPIC, TRADES, ResourcePatternType.LITERAL, "User:stranger", "*"),
        *(AclOperation.DESCRIBE, AclPermissionType.ALLOW),
    )
    client = admin.admin_client(operator)  # kept: its requests end with it
    for future in client.create_acls([describe]).values():
        future.result(timeout=30)
    deadline = time.monotonic() + 30
    while (faults := faults_of_trades(stranger)) != [
        f"{TRADES}: its configuration cannot be read: {in_words(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))}"
    ]:  # the broker takes a moment to know a new ACL
        assert time.monotonic() < deadline, faults


def faults_of_trades(settings: Settings) -> list[str]:
    report = admin.ensure_topics(settings, create=False)
    return [fault for fault in report.wrong if fault.startswith(f"{TRADES}:")]
