"""The router's loop beside its partitions: how large a batch may grow, and what it says of itself."""

from typing import Any, cast

import pytest

from schemas.topics import TRADES, TRANSFERS
from streams.broker import records
from streams.routing import router as router_module
from streams.routing.router import Router
from streams.settings import load


class Record:
    """A record of so many bytes."""

    def __init__(self, size: int) -> None:
        self._value = b"x" * size

    def value(self) -> bytes:
        return self._value


def collected(monkeypatch: pytest.MonkeyPatch, sizes: list[int], **changes: int) -> list[records.Record]:
    """The batch that a router collects of records of these sizes, all of which have arrived."""
    waiting = [Record(size) for size in sizes]

    def poll_batch(consumer: object, timeout_s: float, records_max: int) -> list[Record]:
        found = waiting[:records_max]
        del waiting[:records_max]
        return found

    settings = load({}, {"router.linger_ms": 1_000} | {f"router.{name}": value for name, value in changes.items()})
    router = Router(settings, cast(Any, None))
    router._consumer = cast(Any, None)
    monkeypatch.setattr(router_module, "poll_batch", poll_batch)
    return router._collect()


def test_a_batch_ends_at_its_most_records(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(collected(monkeypatch, [10] * 5_000, batch_records_max=2_500)) == 2_500


def test_a_batch_ends_at_its_most_bytes_but_for_one_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collected(monkeypatch, [1_000] * 20_000, batch_kbytes_max=2_000)
    assert 2_000 * 1024 <= sum(len(message.value() or b"") for message in batch) < 2_000 * 1024 + 1_000 * 1_000


def test_it_is_ready_in_its_group_with_little_to_route() -> None:
    router = Router(load({}, {"router.ready_lag_records_max": 10}), cast(Any, None))
    router._ownership = cast(Any, type("Owns", (), {"places": lambda _: [(TRADES, 0), (TRANSFERS, 1)]})())

    def conditions() -> dict[str, bool]:
        return {condition.name: condition.holds for condition in router.readiness()}

    assert not conditions()["is_in_group"]
    router._joined = True
    assert conditions() == {"is_in_group": True, "inputs_lag_records": False}, "its lag is not known yet"
    place = '{"partitions":{"%d":{"app_offset":%d,"ls_offset":20}}}'
    for consumed, ready in ((14, False), (15, True)):
        topics = f'"{TRADES}":{place % (0, 15)},"{TRANSFERS}":{place % (1, consumed)}'
        router._group.note(f'{{"topics":{{{topics}}}}}')
        assert conditions()["inputs_lag_records"] is ready
