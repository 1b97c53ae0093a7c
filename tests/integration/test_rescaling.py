"""The number of shards changes on real servers, with real processes, while accounts are liquidated."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.partitioning import shard_of
from streams.broker.layout import require_layout
from streams.broker.reader import LogReader
from streams.settings import Settings
from tests.integration.conftest import OWN_SHARDS, Pipeline, Role, eventually
from tests.integration.test_pipeline import leveraged, one_command

pytestmark = pytest.mark.long


def environment(settings: Settings) -> dict[str, str]:
    return os.environ | {
        "MARGIN_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "MARGIN_REDIS__URL": settings.redis.url,
    }


def run(settings: Settings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "streams.cli", *arguments]
    return subprocess.run(command, check=False, env=environment(settings), capture_output=True, text=True, timeout=240)


def test_accounts_move_while_everything_runs(own_settings: Settings, tmp_path: Path) -> None:
    settings = own_settings
    running = Pipeline(settings, tmp_path)
    other = Role("engine", settings, tmp_path / "other.log")
    try:
        markets = [leveraged(running) for _ in range(9)]
        shown = run(settings, "rescale", "--shards", "5")
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert f"from {OWN_SHARDS} to 5 shards" in shown.stdout
        with LogReader(settings.kafka, "test") as reader:
            assert require_layout(reader).shards_used == OWN_SHARDS, "a plan changes nothing"
        done = run(settings, "rescale", "--shards", "5", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "accounts are spread over 5 shards" in done.stdout
        for market in markets[:3]:
            market.price("94")
            assert one_command(market, market.alice)["evidence"]["shard"] == shard_of(market.alice, 5)
        again = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "rescale", "--shards", "3", "--yes"],
            env=environment(settings),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert again.stdout is not None
        while "done in" not in (line := again.stdout.readline()):
            assert line, "it ended"
        again.kill()
        again.wait()
        again.stdout.close()
        running.engine.kill()
        running.engine.restart()
        running.router.kill()
        running.router.restart()
        for market in markets[3:6]:
            market.price("94")
            one_command(market, market.alice)
        refused = run(settings, "rescale", "--shards", "7", "--yes")
        assert refused.returncode == 1
        assert "go on with that first" in refused.stdout
        done = run(settings, "rescale", "--shards", "3", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr
        for market in markets[6:]:
            market.price("94")
            assert one_command(market, market.alice)["evidence"]["shard"] == shard_of(market.alice, 3)
        other.assert_running()
        eventually(lambda: run(settings, "status").returncode == 0, "all to be as it should be", 60)
        for command in ("verify", "replay"):
            audited = run(settings, command)
            assert audited.returncode == 0, audited.stdout + audited.stderr
    finally:
        other.kill()
        running.close()
