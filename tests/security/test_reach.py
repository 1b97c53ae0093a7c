"""Every role and every tool works through each door: what was set holds for all of their clients."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import redis

from schemas.topics import JOURNAL, TRADES
from streams.broker.reader import LogReader
from streams.settings import Settings, load
from tests.security.documented import bindings
from tests.security.fleet import ROLES, Exchange, Fleet, eventually, tool
from tests.security.marks import assert_untold
from tests.security.servers import REDIS_READER, REDIS_USER, Servers
from tests.security.ways import by_certificate, by_certificate_in_options, by_password, over_socket, over_tls

WHO = (*ROLES, "topics", "tools", "accept offset", "rescale")


def each_its_own_user(servers: Servers) -> dict[str, dict[str, str]]:
    """Every role under its own name, with what README.md says that it must be allowed, and nothing else."""
    variables = {}
    for who in WHO:
        user = f"the-{who.replace(' ', '-')}"
        servers.add_user(user, servers.secrets.kafka_password)
        servers.allow(bindings(who, user))
        variables[who] = by_password(servers, user) | over_tls(servers)
    variables["tools"]["MARGIN_REDIS__USERNAME"] = REDIS_READER
    return variables


DOORS: dict[str, Callable[[Servers], Mapping[str, dict[str, str]]]] = {
    "each role as its own user with the ACLs of README.md": each_its_own_user,
    "a certificate, and Redis by its socket": lambda s: dict.fromkeys(WHO, by_certificate(s) | over_socket(s)),
    "a certificate in OPTIONS, and Redis over TLS": lambda s: dict.fromkeys(
        WHO, by_certificate_in_options(s) | over_tls(s)
    ),
}


@pytest.mark.parametrize(
    "door", [door if number == 0 else pytest.param(door, marks=pytest.mark.long) for number, door in enumerate(DOORS)]
)
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
        _await_well(variables["tools"])
        for shards in ("3", "2"):
            moved = tool(variables["rescale"], "rescale", "--shards", shards, "--yes")
            assert moved.returncode == 0, moved.stdout + moved.stderr
            assert_untold(moved.stdout + moved.stderr, "rescale")
        _await_well(variables["tools"])
        _check_oracle_table(servers, exchange)
        for role in fleet.roles.values():
            assert_untold(role.page("/metrics") + role.page("/readyz"), f"the pages of {role.name}")
            assert_untold(role.shown_by_ps(), f"{role.name} in the list of processes")
            assert role.stop() == 0, role.output()[-3000:]
            assert_untold(role.output(), role.name)
    for arguments in (("--all-committed",), (TRADES, "0", "0")):
        done = tool(variables["accept offset"], "accept-offset", *arguments, "--reason", "a test")
        assert done.returncode == 0, done.stdout + done.stderr
        assert_untold(done.stdout + done.stderr, "accept-offset")
    exchange.close()
    _assert_journalled(operator)


def test_who_is_allowed_nothing_gets_nothing(servers: Servers) -> None:
    """The authorizer and the lists of Redis are on: what the tests above were allowed, they needed."""
    assert tool(by_password(servers) | over_tls(servers), "topics").returncode == 0
    servers.add_user("nobody", servers.secrets.kafka_password)
    assert tool(by_password(servers, "nobody") | over_tls(servers), "topics", "--verify").returncode != 0
    for user, key in ((REDIS_READER, "margin:marks"), (REDIS_USER, "another"), ("default", "margin:marks")):
        password = servers.secrets.redis_password
        with (
            redis.Redis(port=servers.valkey.port, username=user, password=password) as client,
            pytest.raises((redis.exceptions.NoPermissionError, redis.exceptions.AuthenticationError)),
        ):
            client.hset(key, "a", "b")


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
        ("settings", "--json"),
    ):
        done = tool(tools, *arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        assert_untold(done.stdout + done.stderr, arguments[0])
        if "--json" in arguments:
            json.loads(done.stdout)


def _await_well(tools: Mapping[str, str]) -> None:
    said = ""

    def is_well() -> bool:
        nonlocal said
        done = tool(tools, "status", "--json")
        said = done.stdout + done.stderr
        return done.returncode == 0

    eventually(is_well, "status finds nothing wrong")
    assert_untold(said, "status")


def _check_oracle_table(servers: Servers, exchange: Exchange) -> None:
    """The Faust store writes to Redis, too."""
    with redis.Redis(port=servers.valkey.port, username=REDIS_USER, password=servers.secrets.redis_password) as client:
        eventually(lambda: client.hget("faust:{margin-oracle:prices}", exchange.symbol), "the oracle's table in Redis")


def _assert_journalled(settings: Settings) -> None:
    with LogReader(settings.kafka, "test") as reader:
        assert any(reader.watermarks(JOURNAL, shard)[1] for shard in range(2))
