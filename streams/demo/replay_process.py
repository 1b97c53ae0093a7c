"""The demo's last check: every shard's journal run again from the logs, in a process beside the other checks.

Unlike those it uses the engine's own code: they say that what was committed is right, this one that the logs alone
give it again, byte for byte.
"""

import subprocess
import sys
from collections.abc import Mapping

import orjson

from infra.local.stack import child_environment
from streams.demo.checks import Differences

NAME = "replay_gives_the_same_bytes"
TIMEOUT_S = 120.0


class ReplayProcess:
    """``margin-clearing replay`` of every shard, begun at once; :meth:`differences` waits for it."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", "replay", "--json"],
            env=child_environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def differences(self) -> Differences:
        """What differs, or why it cannot be said."""
        try:
            output, errors = self._process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return [f"the replay did not end within {TIMEOUT_S:g} s"]
        finally:
            self.stop()
        return differences_in(self._process.returncode, output, errors)

    def stop(self) -> None:
        """End the process if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def differences_in(exit_code: int, output: bytes, errors: bytes) -> Differences:
    """The differences that a replay printed as JSON; one that ended otherwise is one."""
    if exit_code not in (0, 1):
        *_, reason = errors.decode("utf-8", "replace").strip().splitlines() or [""]
        return [f"the replay ended with exit code {exit_code}: {reason}"]
    shards = orjson.loads(output)
    differences = [
        f"{difference['topic']}[{difference['partition']}]@{difference['offset']}: {difference['what']}"
        for shard in shards
        for difference in shard["differences"]
    ]
    rows = sum(shard["counts"]["rows"] for shard in shards)
    return differences if differences or rows else ["the replay compared nothing"]
