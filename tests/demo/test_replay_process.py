"""The demo's replay check: nothing differs, something does, or it could not be done."""

import orjson
import pytest

from streams.demo.replay_process import differences_in

DIFFERENCE = {"topic": "liquidation.commands.v1", "partition": 1, "offset": 7, "what": "a:1: stage must be"}


def printed(*differences: dict[str, object], rows: int = 3) -> bytes:
    return orjson.dumps([{"shard": 0, "differences": list(differences), "counts": {"rows": rows}}])


@pytest.mark.parametrize(
    ("exit_code", "output", "errors", "said"),
    [
        (0, printed(), b"", []),
        (1, printed(DIFFERENCE), b"", ["liquidation.commands.v1[1]@7: a:1: stage must be"]),
        (0, printed(rows=0), b"", ["the replay compared nothing"]),
        (
            2,
            b"",
            b"a log line\nmargin-clearing: no answer\n",
            ["the replay ended with exit code 2: margin-clearing: no answer"],
        ),
    ],
)
def test_what_a_replay_prints_is_understood(exit_code: int, output: bytes, errors: bytes, said: list[str]) -> None:
    assert differences_in(exit_code, output, errors) == said
