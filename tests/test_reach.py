"""Every role and every tool says within seconds which server it cannot reach and why, and ends when it is told to.

What is closed, silent or unknown is the same for all of them, so they are started side by side.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import redis

from infra.local.ports import free_port
from infra.local.valkey import ValkeyServer
from streams.broker.connection import ANSWER_S_MAX
from streams.errors import TableError
from streams.settings import RedisSettings, Settings
from streams.tables.reach import require_redis

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "router": ("router",),
    "oracle": ("oracle",),
    "engine": ("engine",),
    "topics": ("topics",),
    "account": ("account", "a"),
    "status": ("status",),
    "replay": ("replay",),
    "explain": ("explain", "a:1"),
    "verify": ("verify",),
    "demo": ("demo",),
}
NEED_REDIS = ("account", "verify", "demo")
PATIENCE_S = 120.0
"""Ten processes start at the same time, on a machine that may be busy; alone each takes less than five seconds."""
NOWHERE = {"MARGIN_REDIS__URL": "redis://127.0.0.1:1/0"}
"""Oracle and engine must be told a Redis before anything is asked of Kafka."""
NOISE = re.compile(r"FAIL|thrd:|in state|rdkafka#|Traceback|%\d\|")


def start(name: str, *flags: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "streams.cli", *COMMANDS[name], *flags],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]", timeout_s: float = PATIENCE_S) -> str:
    """What it has said on standard error. The time bounds a hang, not a machine that is busy."""
    try:
        return process.communicate(timeout=timeout_s)[1]
    finally:
        process.kill()


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A listener that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        yield server


def address_of(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("where", ["closed", "unknown"])
def test_every_command_says_which_kafka_and_why(where: str) -> None:
    closed = where == "closed"
    address = f"127.0.0.1:{free_port()}" if closed else "no-such-host.invalid:9092"
    reason = "Connection refused" if closed else "Failed to resolve 'no-such-host.invalid:9092'"
    began = time.monotonic()
    started = {name: start(name, "--bootstrap-servers", address, **NOWHERE) for name in COMMANDS}
    for name, process in started.items():
        said = ended(process)
        assert process.returncode == 2, (name, said)
        assert address in said, name
        assert reason in said or (not closed and "may not resolve" in said), said  # a resolver may take its time
        assert not NOISE.search(said), said
        assert len(said.strip().splitlines()) == 1, said
    assert time.monotonic() - began < PATIENCE_S


def test_every_command_that_needs_redis_says_which_and_why(settings: Settings) -> None:
    url = f"redis://user:marker-of-a-secret@127.0.0.1:{free_port()}/0"
    kafka = {"MARGIN_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers}
    flags = {
        "demo": (
            "--bootstrap-servers",
            settings.kafka.bootstrap_servers,
            "--redis-url",
            url.replace("user:marker-of-a-secret@", ""),
        )
    }
    for name in NEED_REDIS:
        process = start(name, *flags.get(name, ()), **kafka, MARGIN_REDIS__URL=url)
        said = ended(process)
        assert process.returncode == 2, (name, said)
        assert url.rpartition("@")[2] in said
        assert "Connection refused" in said
        assert "marker-of-a-secret" not in said
        assert not NOISE.search(said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_every_command_ends_when_it_is_told_to_while_it_waits_for_kafka(number: int, silent: socket.socket) -> None:
    held = []
    for name in COMMANDS:
        process = start(name, "--bootstrap-servers", address_of(silent), **NOWHERE)
        held.append(silent.accept())  # it waits for the answer now
        process.send_signal(number)
        said = ended(process, ANSWER_S_MAX + 10)
        # Had it waited to the end it would have said so, with exit code 2.
        assert process.returncode == 128 + number, (name, said)
        assert not NOISE.search(said), said
    for connection, _ in held:
        connection.close()


WAITING = """
from confluent_kafka import Consumer
from streams.interruption import prompt
with prompt():
    Consumer({"bootstrap.servers": "%s", "group.id": "g", "log_level": 0}).list_topics(timeout=120)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_whose_main_thread_is_in_a_library(number: int, silent: socket.socket) -> None:
    """librdkafka waits two minutes here, and Python would run no handler before."""
    process = subprocess.Popen([sys.executable, "-c", WAITING % address_of(silent)], stderr=subprocess.PIPE, text=True)
    connection, _ = silent.accept()
    process.send_signal(number)
    assert ended(process) == ""
    assert process.returncode == 128 + number
    connection.close()


def test_an_ignored_signal_stays_ignored(silent: socket.socket) -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + WAITING % address_of(silent)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    connection, _ = silent.accept()
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.0)
    process.send_signal(signal.SIGTERM)
    ended(process)
    assert process.returncode == 128 + signal.SIGTERM
    connection.close()


def test_a_role_starts_without_redis_and_says_so(settings: Settings) -> None:
    address = f"127.0.0.1:{free_port()}"
    process = start(
        "engine",
        MARGIN_KAFKA__BOOTSTRAP_SERVERS=settings.kafka.bootstrap_servers,
        MARGIN_REDIS__URL=f"redis://{address}/0",
        MARGIN_ENGINE__GROUP_ID="test-without-redis",
    )
    assert process.stderr is not None
    try:
        lines = iter(process.stderr.readline, "")
        line = next(line for line in lines if "redis_unreachable" in line)
        assert address in line
        assert "Connection refused" in line
        assert '"level":"ERROR"' in line
        assert any("shard_taken" in line for line in lines)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
    finally:
        process.kill()


# --- Redis -----------------------------------------------------------------------------------------------------------


def refused(url: str, **further: Any) -> str:
    began = time.monotonic()
    with pytest.raises(TableError) as refusal:
        require_redis(RedisSettings(url=url, **further))
    assert time.monotonic() - began < PATIENCE_S
    return str(refusal.value)


def test_a_redis_that_is_away_or_unknown_is_told_without_the_password() -> None:
    port = free_port()
    text = refused(f"redis://me:secret@127.0.0.1:{port}/3")
    assert f"redis://127.0.0.1:{port}/3" in text
    assert "Connection refused" in text
    assert "secret" not in text
    assert "no such host" in refused("redis://no-such-host.invalid:6379/0")
    assert "No such file" in refused("unix:///nowhere/redis.sock")


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_redis_that_says_nothing_is_told(scheme: str, silent: socket.socket) -> None:
    text = refused(f"{scheme}://{address_of(silent)}/0", timeout_ms=60_000)
    assert "does not answer" in text
    assert address_of(silent) in text


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A Valkey with a password, and a user who may not do anything."""
    with ValkeyServer(tmp_path_factory.mktemp("guarded")) as server:
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("ACL", "SETUSER", "nobody", "on", ">pass", "-@all")
            client.execute_command("CONFIG", "SET", "requirepass", "right")
        yield server


def test_wrong_credentials_are_told_as_that(guarded: ValkeyServer) -> None:
    where = f"127.0.0.1:{guarded.port}/0"
    require_redis(RedisSettings(url=f"redis://:right@{where}"))
    wrong = refused(f"redis://:not-it@{where}")
    assert "refuses the credentials" in wrong
    assert "not-it" not in wrong
    assert "refuses the credentials" in refused(f"redis://{where}")
    assert "does not authorise" in refused(f"redis://nobody:pass@{where}")


def test_tls_to_a_redis_without_it_is_told(guarded: ValkeyServer) -> None:
    text = refused(f"rediss://:right@127.0.0.1:{guarded.port}/0")
    assert "TLS" in text
    assert "redis://" in text
