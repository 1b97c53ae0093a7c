"""Collecting a batch: until there are enough records, or the time for one is over."""

from collections.abc import Callable, Collection
from math import inf

from streams.broker.records import Record
from streams.broker.rejoining import RejoiningConsumer
from streams.runtime import Runtime
from streams.settings import RouterSettings

_RECORDS_PER_POLL = 1_000


class Collector:
    """The batch that is being collected."""

    def __init__(self, router: RouterSettings, runtime: Runtime) -> None:
        self._router = router
        self._runtime = runtime
        self._batch: list[Record] = []
        self._batched_at = -inf

    def collect(
        self, group: RejoiningConsumer, wait_s: float, on_end: Callable[[str, int, int], object]
    ) -> list[Record]:
        """Records of ``group`` for one batch; the first of them is waited for for ``wait_s``.

        ``on_end`` is told of each partition that was read to its end.
        """
        router = self._router
        size, left, until = 0, wait_s, self._batched_at + router.linger_ms / 1000
        while True:
            before = len(self._batch)
            room = min(_RECORDS_PER_POLL, router.batch_records_max - before)
            for message in group.poll(left, room, on_end):
                self._batch.append(message)
                size += len(message.value() or b"")
            left = max(0.0, until - (now := self._runtime.monotonic()))
            is_full = len(self._batch) >= router.batch_records_max or size >= 1024 * router.batch_kbytes_max
            if not self._batch or is_full or (not left and len(self._batch) < before + room):
                self._batched_at = now if self._batch else self._batched_at
                batch, self._batch = self._batch, []
                return batch

    def drop(self, places: Collection[tuple[str, int]]) -> None:
        """Forget what has been polled of partitions."""
        self._batch = [message for message in self._batch if (message.topic(), message.partition()) not in places]
