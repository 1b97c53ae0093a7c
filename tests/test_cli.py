"""The command line: it teaches, it refuses in one line, and it never shows a traceback for a user's mistake."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from streams import cli, logs
from streams.settings import Settings

SERVERS = "MARGIN_KAFKA__BOOTSTRAP_SERVERS"
COMMANDS = [
    "router", "oracle", "engine", "topics", "accept-offset", "resume", "rescale", "account",
    "status", "replay", "explain",
    "verify",
    "evaluate", "demo", "scenario", "local", "settings", "bench",
]  # fmt: skip


def run(*arguments: str, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "streams.cli", *arguments],
        input=stdin,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_command() -> None:
    shown = run("--help").stdout
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_its_options(command: str) -> None:
    done = run(command, "--help", COLUMNS="200")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 5


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("settings",), {"MARGIN_KAFKA__BOOTSTRAP": "x"}, "MARGIN_KAFKA__BOOTSTRAP"),
        (("settings",), {"MARGIN_TOPICS__SHARDS": "many"}, "MARGIN_TOPICS__SHARDS"),
        (("settings",), {"MARGIN_REDIS__URL": "localhost"}, "MARGIN_REDIS__URL"),
        (("demo", "--speed", "0"), {}, "--speed"),
        (("evaluate", "/nowhere.json"), {}, "/nowhere.json"),
        (("bench", "ticks", "--positions", "5", "--symbols", "3"), {}, "not 3"),
        (("bench", "fills", "--shards", "2", "--engines", "3"), {}, "--engines 3"),
        (("replay", "--from", "3"), {}, "--shard"),
        (("replay", "--shard", "-1"), {}, "--shard"),
        (("local", "--kafka-port", "99999"), {}, "--kafka-port"),
        (("local", "--redis-port", "-1"), {}, "--redis-port"),
        (("local", "--kafka-port", "5000", "--redis-port", "5000"), {}, "port 5000"),
        (("local", "--kafka-port", "5000", "--redis-port", "5002", "--brokers", "3"), {}, "port 5002"),
        (("local", "--brokers", "0"), {}, "--brokers"),
        (("bench", "ticks", "--seed", "-1"), {}, "--seed"),
        (("bench", "ticks", "--accounts", "100000000000"), {}, "--accounts"),
        (("demo", "--seconds", "inf"), {}, "--seconds"),
        (("accept-offset", "trades.v1", "0", "1"), {}, "--reason"),
        (("accept-offset", "trades.v1", "0", "x", "--reason", "r"), {}, "OFFSET"),
        (("accept-offset", "trades.v1", "0", "1", "--reason", "r"), {}, "--bootstrap-servers or MARGIN_KAFKA__BOOT"),
        (("accept-offset", "--reason", "r"), {SERVERS: "127.0.0.1:1"}, "or --all-committed"),
        (("accept-offset", "trades.v1", "0", "--reason", "r"), {SERVERS: "127.0.0.1:1"}, "or --all-committed"),
        (("accept-offset", "trades.v1", "--all-committed", "--reason", "r"), {SERVERS: "127.0.0.1:1"}, "leave TOPIC,"),
        (("accept-offset", "--all-committed", "--reason", "r"), {SERVERS: "127.0.0.1:1"}, "Kafka at 127.0.0.1:1"),
        (("demo", "--engines", "17"), {}, "--engines"),
        (("demo", "--summary", "/"), {}, "--summary"),
        (("demo", "--setting", "MARGIN_ENGINE__NOPE=1"), {}, "MARGIN_ENGINE__NOPE: no such setting"),
        (("demo", "--redis-url", "nonsense"), {}, "MARGIN_REDIS__URL must begin with"),
    ],
)
def test_a_mistake_of_flags_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    environment: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: the command is refused before it starts or reaches anything."""
    monkeypatch.setattr(sys, "argv", ["margin-clearing", *arguments])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(logs, "guard_output", lambda: None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("settings",), {"MARGIN_TOPICS__SHARDS": "many"}, "MARGIN_TOPICS__SHARDS"),
        (("router",), {"MARGIN_ROUTER__GROUP_ID": "margin-engine"}, "must differ"),
        (("engine",), {"MARGIN_KAFKA__SASL_MECHANISM": "PLAIN"}, "SASL_MECHANISM"),
        (("replay", "--shard", "-1"), {}, "--shard"),
        (("local", "--keep-data", "/dev/null"), {}, "choose one that can be written"),
        (("demo", "--redis-url", "redis://127.0.0.1:1/0"), {}, "Redis at redis://127.0.0.1:1/0 cannot be reached"),
        (("demo", "--bootstrap-servers", "127.0.0.1:1"), {}, "Kafka at 127.0.0.1:1 (PLAINTEXT) "),
        # Where to write is said, never assumed; what only reads may look at this machine.
        (("topics",), {}, "--bootstrap-servers or MARGIN_KAFKA__BOOTSTRAP_SERVERS"),
        (("router",), {"MARGIN_REDIS__URL": "redis://127.0.0.1:1/0"}, "MARGIN_KAFKA__BOOTSTRAP_SERVERS"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    done = run(*arguments, **environment)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("role", ["oracle", "engine"])
def test_a_role_with_tables_is_told_where_they_are(role: str, settings: Settings) -> None:
    done = run(role, "--bootstrap-servers", settings.kafka.bootstrap_servers)
    assert done.returncode == 2
    assert "--redis-url or MARGIN_REDIS__URL" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("margin.events.v1", "0", "0"), "'margin.events.v1' is no topic that a router reads: trades.v1, "),
        (("trades.v1", "3", "0"), "trades.v1 has no partition 3: it has the partitions 0 to 2"),
        (("trades.v1", "0", "1000000"), "trades.v1[0] holds the offsets 0 to "),
    ],
)
def test_an_offset_that_no_router_can_go_on_at_is_refused(
    settings: Settings, arguments: tuple[str, ...], said: str
) -> None:
    done = run("accept-offset", *arguments, "--reason", "r", "--bootstrap-servers", settings.kafka.bootstrap_servers)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_settings_are_shown_without_secrets() -> None:
    done = run(
        "settings",
        MARGIN_KAFKA__SECURITY_PROTOCOL="SASL_SSL",
        MARGIN_KAFKA__SASL_MECHANISM="PLAIN",
        MARGIN_KAFKA__SASL_USERNAME="me",
        MARGIN_KAFKA__SASL_PASSWORD="hunter2",
        MARGIN_REDIS__URL="redis://user:hunter3@host:1/0",
        COLUMNS="200",
    )
    assert done.returncode == 0
    assert "hunter" not in done.stdout
    assert "***" in done.stdout


def test_settings_show_what_set_each_of_them(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2\n")
    variables = {"MARGIN_REDIS__PASSWORD_FILE": str(secret), "MARGIN_ROUTER__LINGER_MS": "20", "COLUMNS": "300"}
    settings = json.loads(run("settings", "--shards", "9", "--json", **variables).stdout)
    assert settings["MARGIN_REDIS__PASSWORD"] == {"value": "***", "set_by": f"MARGIN_REDIS__PASSWORD_FILE ({secret})"}
    assert settings["MARGIN_ROUTER__LINGER_MS"] == {"value": 20, "set_by": "MARGIN_ROUTER__LINGER_MS"}
    assert settings["MARGIN_TOPICS__SHARDS"] == {"value": 9, "set_by": "--shards"}
    assert settings["MARGIN_ORACLE__APP_ID"] == {"value": "margin-oracle", "set_by": "default"}
    shown = run("settings", "--shards", "9", **variables).stdout
    assert "set by" in shown
    assert all(each["set_by"] in shown for each in settings.values())


REQUEST = {
    "parameters": [
        {"type": "asset", "asset": "USDC", "decimals": 6},
        {
            "type": "instrument",
            "symbol": "BTC-PERP",
            "settle_asset": "USDC",
            "price_increment": "0.1",
            "quantity_increment": "0.001",
            "margin_tiers": [{"notional_floor": "0", "maintenance_rate": "0.1", "initial_rate": "0.2"}],
        },
    ],
    "marks": {"BTC-PERP": "50000"},
    "account": {
        "account": "a",
        "balances": {"USDC": "499"},
        "positions": [{"symbol": "BTC-PERP", "quantity": "0.1", "entry_price": "50000"}],
    },
}


def test_evaluate_reads_a_file_or_standard_input(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(REQUEST))
    from_file, from_input = run("evaluate", str(path)), run("evaluate", stdin=json.dumps(REQUEST))
    assert from_file.stdout == from_input.stdout
    (group,) = json.loads(from_file.stdout)["groups"]
    assert group["liquidatable"] is True
    assert group["equity"] == "499"
    assert group["plan"]["orders"][0]["symbol"] == "BTC-PERP"
    assert isinstance(json.loads(run("evaluate", stdin=json.dumps([REQUEST])).stdout), list)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_standard_files_are_no_bug(closed: tuple[int, ...]) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    done = subprocess.run(
        [sys.executable, "-m", "streams.cli", "evaluate"],
        preexec_fn=close,
        input=None if 0 in closed else b"{}",
        stdout=None if 1 in closed else subprocess.PIPE,
        stderr=None if 2 in closed else subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert b"Traceback" not in (done.stderr or b"")


def test_evaluate_refuses_bad_input_in_one_line() -> None:
    done = run("evaluate", stdin='{"parameters": []}')
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_bench_of_ticks_says_what_it_covered_and_what_it_looked_at() -> None:
    arguments = ("bench", "ticks", "--accounts", "300", "--positions", "2", "--symbols", "5", "--calm-ticks", "50")
    measured = json.loads(run(*arguments, "--json").stdout)
    assert (measured["accounts"], measured["positions"], measured["symbols"], measured["calm_ticks"]) == (300, 2, 5, 50)
    assert 0 < measured["calm_rows_per_tick"] < measured["symbol_crash_rows"] < measured["market_crash_rows"] <= 300
    assert measured["accounts_covered_per_s"] > measured["rows_evaluated_per_s"] > 0
    shown = run(*arguments, COLUMNS="120")
    assert "crash of the market" in shown.stdout
    assert "drawing 300 accounts" in shown.stderr


def test_topics_says_what_is_right_and_what_is_wrong(settings: Settings) -> None:
    where = {
        "MARGIN_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "MARGIN_TOPICS__SHARDS": str(settings.topics.shards),
    }
    right = run("topics", "--verify", **where)
    assert right.returncode == 0
    assert "wrong" not in right.stdout
    wrong = run("topics", "--verify", "--shards", "64", **where)
    assert wrong.returncode == 1
    assert "--shards asks for 64 shards" in " ".join(wrong.stdout.split())


def test_kafka_away_is_said() -> None:
    done = run("topics", MARGIN_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert done.returncode == 2
    assert "MARGIN_KAFKA__BOOTSTRAP_SERVERS" in done.stderr


def test_the_version_is_the_packages() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"margin-clearing {version('margin-clearing')}\n")
