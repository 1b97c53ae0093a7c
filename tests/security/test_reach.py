"""Every role and every tool works through each door: what was set holds for all of their clients."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import redis

from schemas.topics import JOURNAL
from streams.broker.reader import LogReader
from streams.settings import Settings, load
from tests.security.documented import bindings
from tests.security.fleet import ROLES, Exchange, Fleet, eventually, tool
from tests.security.servers import OPERATOR, REDIS_READER, REDIS_USER, Servers

WHO = (*ROLES, "topics", "tools")
SHARDS = {"MARGIN_TOPICS__SHARDS": "2", "MARGIN_TOPICS__PARTITIONS": "2"}


def by_password(servers: Servers, user: str = OPERATOR) -> dict[str, str]:
    return SHARDS | {
        "MARGIN_KAFKA__BOOTSTRAP_SERVERS": servers.scram.address,
        "MARGIN_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "MARGIN_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
        "MARGIN_KAFKA__SASL_USERNAME": user,
        "MARGIN_KAFKA__SASL_PASSWORD_FILE": servers.file("kafka-password", servers.secrets.kafka_password),
        "MARGIN_KAFKA__SSL_CA_LOCATION": str(servers.authority.path),
    }


def by_certificate(servers: Servers) -> dict[str, str]:
    return SHARDS | {
        "MARGIN_KAFKA__BOOTSTRAP_SERVERS": servers.mutual.address,
        "MARGIN_KAFKA__SECURITY_PROTOCOL": "SSL",
        "MARGIN_KAFKA__SSL_CA_LOCATION": str(servers.authority.path),
        "MARGIN_KAFKA__SSL_CERTIFICATE_LOCATION": str(servers.kafka_client.certificate),
        "MARGIN_KAFKA__SSL_KEY_LOCATION": str(servers.kafka_client.key),
        "MARGIN_KAFKA__SSL_KEY_PASSWORD": servers.secrets.kafka_key_password,
    }


def by_certificate_in_options(servers: Servers) -> dict[str, str]:
    properties = {
        "ssl.ca.location": servers.authority.path,
        "ssl.certificate.location": servers.kafka_client.certificate,
        "ssl.key.location": servers.kafka_client.key,
        "ssl.key.password": servers.secrets.kafka_key_password,
        "socket.keepalive.enable": "true",
    }
    return SHARDS | {
        "MARGIN_KAFKA__BOOTSTRAP_SERVERS": servers.mutual.address,
        "MARGIN_KAFKA__SECURITY_PROTOCOL": "SSL",
        "MARGIN_KAFKA__OPTIONS": ",".join(f"{name}={value}" for name, value in properties.items()),
    }


def over_tls(servers: Servers) -> dict[str, str]:
    return {
        "MARGIN_REDIS__URL": servers.redis_url,
        "MARGIN_REDIS__USERNAME": REDIS_USER,
        "MARGIN_REDIS__PASSWORD_FILE": servers.file("redis-password", servers.secrets.redis_password),
        "MARGIN_REDIS__SSL_CA_LOCATION": str(servers.authority.path),
        "MARGIN_REDIS__SSL_CERTIFICATE_LOCATION": str(servers.redis_client.certificate),
        "MARGIN_REDIS__SSL_KEY_LOCATION": str(servers.redis_client.key),
        "MARGIN_REDIS__SSL_KEY_PASSWORD_FILE": servers.file("redis-key", servers.secrets.redis_key_password),
    }


def over_socket(servers: Servers) -> dict[str, str]:
    return {
        "MARGIN_REDIS__URL": f"unix://{servers.socket}?db=0",
        "MARGIN_REDIS__USERNAME": REDIS_USER,
        "MARGIN_REDIS__PASSWORD": servers.secrets.redis_password,
    }


def each_its_own_user(servers: Servers) -> dict[str, dict[str, str]]:
    """Every role under its own name, with what README.md says that it must be allowed, and nothing else."""
    variables = {}
    for who in WHO:
        user = f"the-{who}"
        servers.add_user(user, servers.secrets.kafka_password)
        servers.allow(bindings(who, user))
        variables[who] = by_password(servers, user) | over_tls(servers)
    variables["tools"]["MARGIN_REDIS__USERNAME"] = REDIS_READER
    return variables


DOORS = {
    "each role as its own user with the ACLs of README.md": each_its_own_user,
    "a certificate, and Redis by its socket": lambda s: dict.fromkeys(WHO, by_certificate(s) | over_socket(s)),
    "a certificate in OPTIONS, and Redis over TLS": lambda s: dict.fromkeys(
        WHO, by_certificate_in_options(s) | over_tls(s)
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_role_and_tool_works_through(door: str, servers: Servers, tmp_path: Path) -> None:
    variables = DOORS[door](servers)
    created = tool(variables["topics"], "topics")
    assert created.returncode == 0, created.stdout + created.stderr
    operator = load(by_password(servers) | over_tls(servers))
    exchange = Exchange(operator)
    with Fleet(variables, tmp_path) as fleet:
        fleet.await_ready()
        exchange.list_symbol()
        _trade_until_liquidated(exchange, fleet, variables["tools"])
        _ask_every_tool(exchange, variables["tools"])
        _check_oracle_table(servers, exchange)
        for role in fleet.roles.values():
            assert role.stop() == 0, role.output()[-3000:]
    exchange.close()
    _assert_journalled(operator)


def _trade_until_liquidated(exchange: Exchange, fleet: Fleet, tools: Mapping[str, str]) -> None:
    def seen(status: str) -> bool:
        for role in fleet.roles.values():
            role.assert_running()
        exchange.price("100" if status == "active" else "86")
        shown = tool(tools, "account", exchange.alice, "--json")
        return shown.returncode == 0 and status in shown.stdout

    exchange.price("100")
    exchange.open_positions()
    eventually(lambda: seen(exchange.symbol), f"the position of {exchange.alice} in Redis")
    eventually(lambda: seen(f"{exchange.alice}:1"), "a liquidation command")


def _ask_every_tool(exchange: Exchange, tools: Mapping[str, str]) -> None:
    for arguments in (
        ("topics", "--verify"),
        ("explain", f"{exchange.alice}:1", "--json"),
        ("replay", "--json"),
        ("verify", "--json"),
        ("status", "--json"),
        ("settings", "--json"),
    ):
        done = tool(tools, *arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        if "--json" in arguments:
            json.loads(done.stdout)


def _check_oracle_table(servers: Servers, exchange: Exchange) -> None:
    """The Faust store writes to Redis, too."""
    with redis.Redis(port=servers.valkey.port, username=REDIS_USER, password=servers.secrets.redis_password) as client:
        eventually(lambda: client.hget("faust:{margin-oracle:prices}", exchange.symbol), "the oracle's table in Redis")


def _assert_journalled(settings: Settings) -> None:
    with LogReader(settings.kafka, "test") as reader:
        assert any(reader.watermarks(JOURNAL, shard)[1] for shard in range(2))
