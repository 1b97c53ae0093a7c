"""Marks that are given instead of prices: each is published when it is given, all of them again with every heartbeat.

A heartbeat repeats prices and statuses as they were given and their publish times with them, so marks grow old between
givings as they do when sources fall silent, and the pipeline's clock goes on.
"""

from typing import Any

import msgspec

from schemas.codec import DecodeError, Decoder, encode
from schemas.messages import Mark, MarkFrame
from schemas.topics import MARKS
from streams.memory.brokers import VisibleCluster
from streams.memory.given_records import GivenRecord, encoded_json
from streams.memory.scheduler import EPOCH_US

_FRAME = Decoder[MarkFrame](MarkFrame)


class GivenMarks:
    """Publishes what it is given, and a full frame every ``heartbeat_us`` from :meth:`start` on."""

    def __init__(self, cluster: VisibleCluster, heartbeat_us: int) -> None:
        self._cluster = cluster
        self._heartbeat_us = heartbeat_us
        self._marks: dict[str, Mark] = {}
        self._last = MarkFrame(time=0, marks=())

    def start(self) -> None:
        """Publish a heartbeat now and go on with them."""
        self._beat()

    def give(self, record: GivenRecord) -> None:
        """Publish a record. What is no frame is published as it is, and repeated by no heartbeat."""
        value = record.value if record.message is None else encoded_json(self._completed(record.message))
        try:
            frame = _FRAME(value)
        except DecodeError:
            self._cluster.append(MARKS, record.key, value, 0)
            return
        if frame.full:
            self._last = frame
        self._marks |= {mark.symbol: mark for mark in frame.marks}
        self._cluster.append(MARKS, record.key, encode(frame), 0)

    def _completed(self, message: Any) -> Any:
        """``message`` with what a mark and a frame may leave away: time, status, publish time."""
        if not isinstance(message, dict):
            return message
        marks = message.get("marks")
        if isinstance(marks, list):
            given = {"status": "live", "publish_time": self._now_us}
            marks = [given | mark if isinstance(mark, dict) else mark for mark in marks]
            message = message | {"marks": marks}
        return {"time": self._now_us} | message

    @property
    def _now_us(self) -> int:
        return EPOCH_US + self._cluster.scheduler.now

    def _beat(self) -> None:
        marks = tuple(mark for _, mark in sorted(self._marks.items()))
        frame = msgspec.structs.replace(self._last, time=self._now_us, marks=marks, full=True)
        self._cluster.append(MARKS, None, encode(frame), 0)
        self._cluster.scheduler.after(self._heartbeat_us, self._beat)
