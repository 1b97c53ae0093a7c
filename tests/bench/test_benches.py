"""Each bench with tiny numbers, as a person starts it: that it ends well, and what it prints; never how fast it was."""

import json
import subprocess
import sys
from typing import Any

import pytest

TIMEOUT_S = 460

SMALL = ("--accounts", "60", "--symbols", "4", "--trades", "500")


def measured(*arguments: str) -> Any:
    command = [sys.executable, "-m", "streams.cli", "bench", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.long
def test_fills() -> None:
    runs = measured("fills", *SMALL, "--positions", "2", "--drawn", "zipf", "--drawn", "uniform")
    assert [each["drawn"] for each in runs] == ["zipf", "uniform"]
    for each in runs:
        assert (each["shards"], each["engines"]) == (4, 1)
        assert each["accounts_checked"] == 60
        assert each["fills_per_s"] > 0
        assert each["transactions_per_s"] > 0


@pytest.mark.long
def test_fills_over_shards_and_engines() -> None:
    """An engine that would have no shard is not started."""
    shared = ("--shards", "1", "--shards", "3", "--engines", "1", "--engines", "2")
    runs = measured("fills", *SMALL, "--positions", "2", "--drawn", "uniform", *shared)
    assert [(each["shards"], each["engines"]) for each in runs] == [(1, 1), (3, 1), (3, 2)]
    for each in runs:
        assert each["accounts_checked"] == 60
        assert each["fills_per_s"] > 0


@pytest.mark.long
def test_router() -> None:
    (only,) = measured("router", *SMALL)
    assert only["trades_checked"] > 500
    assert only["fills_per_s"] > 0
    assert only["frames"] > 0


@pytest.mark.long
def test_latency() -> None:
    arguments = (*SMALL[:4], "--positions", "2", "--probes", "20", "--probes-per-s", "10", "--trades-per-s", "50")
    by_trade, idle, loaded = measured("latency", *arguments)
    assert (by_trade["cause"], by_trade["commands"], by_trade["price_to_mark"]) == ("trade", 20, None)
    assert 0 < by_trade["total"]["p50"] <= by_trade["total"]["max"]
    assert (idle["trades_per_s"], loaded["trades_per_s"]) == (0, 50)
    for each in (idle, loaded):
        assert each["commands"] == 20
        total = each["total"]
        assert 0 < total["p50"] <= total["p99"] <= total["p999"] <= total["max"]
        assert each["price_to_mark"]["p50"] > 0
        assert each["produced_to_visible"]["max"] > 0


@pytest.mark.long
def test_pipeline() -> None:
    arguments = (*SMALL[:4], "--positions", "2", "--rate", "40", "--seconds", "4", "--backlog-s", "100")
    (only,) = measured("pipeline", *arguments)
    assert only["trades"] == 160
    assert only["is_sustained"]
    assert only["backlog_max"] <= 160
    assert set(only["cpu_s_per_million_trades"]) == {"router", "oracle", "engine", "broker", "valkey"}


@pytest.mark.long
def test_oracle() -> None:
    runs = measured("oracle", "--symbols", "3", "--per-s", "50", "--seconds", "2")
    assert [each["load"] for each in runs] == ["all at once", "50/s"]
    for each in runs:
        assert each["prices"] == 100
        assert 0 < each["marks"] <= 100
        assert 0 < each["p50_ms"] <= each["p99_ms"] <= each["max_ms"]


@pytest.mark.long
def test_rescale() -> None:
    pauses = measured("rescale", "--accounts", "60", "--from", "2", "--to", "3", "--trades-per-s", "20")
    assert {pause["step"] for pause in pauses} == {1, 2}
    assert sum(pause["accounts"] for pause in pauses) <= 60


@pytest.mark.long
def test_restore() -> None:
    runs = measured("restore", "--accounts", "50")
    assert [each["source"] for each in runs] == ["changelog", "Redis"]
    assert all(each["seconds"] > 0 for each in runs)


@pytest.mark.long
def test_peers() -> None:
    """With Faust, which needs no download; it may be left out, with the reason, never wrong."""
    only = measured("peers", *SMALL, "--before", "100", "--peer", "faust")
    assert only["runs"][0]["promise"] == "exactly once"
    assert all(each["fills_per_s"] > 0 and each["records"] > 0 for each in only["runs"])
    assert len(only["runs"]) + len(only["left_out"]) == 2
