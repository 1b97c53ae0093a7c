"""A router whose coordinators answer nobody for a while goes on in its process when they do."""

from typing import Any

from schemas.topics import TRADES
from tests.routing.router_bench import RouterBench

SILENCE_MS = 60_000
"""Longer than any call waits, and than the session."""


def test_what_comes_while_the_coordinators_are_silent_is_routed_once_they_answer(records: Any) -> None:
    with RouterBench() as bench:
        router = bench.start()
        bench.publish(TRADES, records.trade(1))
        bench.wait(lambda: bench.committed() == 1, "the first trade is committed")
        router.process.go_silent(cut_us=1000 * SILENCE_MS)
        for group in bench.cluster.groups.values():
            group.watch(router.process)
        bench.publish(TRADES, records.trade(2))
        bench.advance(SILENCE_MS)
        assert router.error is None
        bench.wait(lambda: bench.committed() == 2, "what came meanwhile is committed")
        router.stop()
        assert list(bench.memory().last.values()) == [2]
