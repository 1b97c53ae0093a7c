"""No secret in anything that a role or a tool says, whatever goes wrong: logs, errors, pages, the list of processes."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from infra.local.ports import free_port
from tests.security.fleet import DEADLINE_S, ROLES, FleetRole, clean_environment, eventually, page_of, tool
from tests.security.marks import MARK, assert_untold
from tests.security.quoting_redis import QuotingRedis
from tests.security.servers import REDIS_USER, Servers
from tests.security.ways import by_certificate, by_password, over_tls

LOUD = {"MARGIN_SERVICE__LOG_LEVEL": "DEBUG", "MARGIN_KAFKA__OPTIONS": "debug=all"}


# --- Kafka ------------------------------------------------------------------------------------------------------------


def wrong_password(servers: Servers) -> dict[str, str]:
    variables = by_password(servers)
    del variables["MARGIN_KAFKA__SASL_PASSWORD_FILE"]
    return variables | {"MARGIN_KAFKA__SASL_PASSWORD": "wrong-Mrk9Qz,=%'"}


def nobody_there(servers: Servers) -> dict[str, str]:
    return by_password(servers) | {"MARGIN_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}"}


def another_authority(servers: Servers) -> dict[str, str]:
    return by_password(servers) | {"MARGIN_KAFKA__SSL_CA_LOCATION": str(servers.stranger.path)}


def foreign_certificate(servers: Servers) -> dict[str, str]:
    return by_certificate(servers) | {
        "MARGIN_KAFKA__SSL_CERTIFICATE_LOCATION": str(servers.foreign_client.certificate),
        "MARGIN_KAFKA__SSL_KEY_LOCATION": str(servers.foreign_client.key),
    }


WAYS = (wrong_password, nobody_there, another_authority, foreign_certificate)
TOOLS = (("topics",), ("status",), ("verify",), ("account", "a"))


def test_a_kafka_that_lets_nobody_in(servers: Servers, tmp_path: Path) -> None:
    """Every role in every way at once: each mostly waits."""
    with contextlib.ExitStack() as ends:
        roles: list[FleetRole] = []
        tools: list[tuple[str, subprocess.Popen[str]]] = []
        for way, arguments in zip(WAYS, TOOLS, strict=True):
            variables = {**way(servers), **over_tls(servers), **LOUD}
            tools.append((arguments[0], ends.enter_context(_begun(variables, *arguments))))
            for name in ROLES:
                roles.append(role := ends.enter_context(FleetRole(name, variables, tmp_path)))
                assert_untold(role.shown_by_ps(), f"{name} in the list of processes")
        for tool_name, process in tools:
            said, complained = process.communicate(timeout=2 * DEADLINE_S)
            assert process.returncode not in (0, None)
            assert_untold(said + complained, tool_name)
        for role in roles:
            assert role.process.wait(timeout=2 * DEADLINE_S) != 0
            assert role.output()
            assert_untold(role.output(), role.name)


def _begun(variables: Mapping[str, str], *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "streams.cli", *arguments],
        env=clean_environment(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- Redis ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def wrong_redis_password(servers: Servers) -> Iterator[dict[str, str]]:
    variables = over_tls(servers)
    del variables["MARGIN_REDIS__PASSWORD_FILE"]
    yield variables | {"MARGIN_REDIS__PASSWORD": "wrong-Mrk9Qz@:/"}


@contextlib.contextmanager
def no_redis(_: Servers) -> Iterator[dict[str, str]]:
    yield {"MARGIN_REDIS__URL": f"redis://{REDIS_USER}:Mrk9Qz%40%2F%3A@127.0.0.1:{free_port()}/0"}


@contextlib.contextmanager
def redis_without_tls(servers: Servers) -> Iterator[dict[str, str]]:
    yield {"MARGIN_REDIS__URL": f"rediss://{REDIS_USER}:Mrk9Qz/pass@127.0.0.1:{servers.valkey.port}/0"}


@contextlib.contextmanager
def a_redis_that_quotes(_: Servers) -> Iterator[dict[str, str]]:
    with QuotingRedis() as quoting:
        yield {"MARGIN_REDIS__URL": f"redis://{REDIS_USER}:Mrk9Qz%40%27x@127.0.0.1:{quoting.port}/0"}
        assert MARK in quoting.quoted


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(wrong_redis_password, marks=pytest.mark.long),
        pytest.param(no_redis, marks=pytest.mark.long),
        pytest.param(redis_without_tls, marks=pytest.mark.long),
        a_redis_that_quotes,
    ],
)
def test_a_redis_that_lets_nobody_in(
    way: Callable[[Servers], "contextlib.AbstractContextManager[dict[str, str]]"], servers: Servers, tmp_path: Path
) -> None:
    web_port = free_port()
    with way(servers) as redis_variables:
        variables = {**by_password(servers), **redis_variables, **LOUD, "MARGIN_ORACLE__WEB_PORT": str(web_port)}
        assert tool(variables, "topics").returncode == 0
        with FleetRole("oracle", variables, tmp_path) as oracle, FleetRole("engine", variables, tmp_path) as engine:
            eventually(lambda: "faust_store_not_loaded" in oracle.output(), f"a warning\n{oracle.output()[-2000:]}")
            eventually(lambda: "Redis" in engine.output(), f"a warning of the engine\n{engine.output()[-2000:]}")
            for role in (oracle, engine):
                for page in ("/metrics", "/livez", "/readyz"):
                    assert role.page(page)
                    assert_untold(role.page(page), f"{role.name}{page}")
                assert_untold(role.shown_by_ps(), f"{role.name} in the list of processes")
            for page in ("/", "/router/"):
                assert_untold(page_of(web_port, page), f"Faust's page {page}")
            for arguments in (("status", "--json"), ("account", "a")):
                done = tool(variables, *arguments)
                assert_untold(done.stdout + done.stderr, arguments[0])
            for role in (oracle, engine):
                role.assert_running()
                role.stop()
                assert_untold(role.output(), role.name)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["router", "oracle", "engine", "status", "settings"])
def test_a_password_on_the_command_line_is_refused(command: str) -> None:
    done = tool({}, command, "--redis-url", "redis://u:Mrk9Qz@127.0.0.1:1/0")
    assert done.returncode == 2
    assert "MARGIN_REDIS__PASSWORD_FILE" in done.stderr
    assert_untold(done.stdout + done.stderr, command)


def test_settings_show_what_set_a_secret_and_not_the_secret(servers: Servers) -> None:
    variables = by_password(servers) | over_tls(servers)
    for arguments in (("settings",), ("settings", "--json"), ("settings", "--redis-url", "redis://other")):
        done = tool({**variables, "COLUMNS": "300"}, *arguments)
        if "--redis-url" in arguments:  # the files of its TLS would not be used
            assert done.returncode == 2
        else:
            assert done.returncode == 0, done.stderr
            assert "MARGIN_KAFKA__SASL_PASSWORD_FILE" in done.stdout
            assert "***" in done.stdout
        assert_untold(done.stdout + done.stderr, "settings")
