"""Which partition a key belongs to: Kafka's murmur2, as the Java client's default partitioner computes it.

The shard of an account is ``murmur2(account) % shards``, and while that number changes what :func:`home_of` says.
Every producer of ours sets librdkafka's ``partitioner=murmur2_random``, which agrees; golden tests hold all three
together.
"""

import struct
from bisect import bisect_right
from functools import lru_cache
from math import gcd

from schemas.messages import Spread

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF
_WORDS = struct.Struct("<I").iter_unpack


def murmur2(data: bytes) -> int:
    """The 32-bit murmur2 hash of ``data``, unsigned (``org.apache.kafka.common.utils.Utils.murmur2``)."""
    length = len(data)
    h = _SEED ^ length
    whole = length & ~3
    for (k,) in _WORDS(data[:whole]):
        k = (k * _M) & _MASK
        h = (h * _M ^ (k ^ k >> 24) * _M) & _MASK
    tail = data[whole:]
    if tail:
        h ^= int.from_bytes(tail, "little")
        h = (h * _M) & _MASK
    h ^= h >> 13
    h = (h * _M) & _MASK
    h ^= h >> 15
    return h


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of ``key`` among ``partitions``: ``toPositive(murmur2(key)) % partitions``."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def shard_of(account: str, shards: int) -> int:
    """The shard that owns ``account``."""
    return partition_of(account.encode(), shards)


def place_of(account: str, spread: Spread) -> tuple[int, int, int]:
    """Where ``account`` is among ``spread.shards``, where among its ``target``, and the step at which it goes from one
    to the other (0: it stays)."""
    number = murmur2(account.encode()) & 0x7FFFFFFF
    shards, target, parts = spread.shards, spread.target, spread.parts
    old, new = number % shards, number % target
    if old == new:
        return old, new, 0
    distance = (new - old) % max(shards, target)
    return old, new, (distance - 1) * parts + number // (shards * target) % parts + 1


def home_of(account: str, spread: Spread) -> int:
    """The shard that rows of ``account`` are routed to."""
    if spread.shards == spread.target:
        return shard_of(account, spread.shards)
    old, new, step = place_of(account, spread)
    return new if step <= spread.step else old


def moves_at(step: int, spread: Spread) -> list[tuple[int, int]]:
    """The pairs of shards (from, to) between which accounts move at a step: of each shard at most one either way."""
    shards, target = spread.shards, spread.target
    highest, distance = max(shards, target), (step - 1) // spread.parts + 1
    pairs = ((old, (old + distance) % highest) for old in range(shards)) if step > 0 else ()
    return [(old, new) for old, new in pairs if new < target and old != new and _has_common(old, new, shards, target)]


def steps_of(spread: Spread) -> list[int]:
    """The steps at which accounts may move, in order."""
    return list(_steps(spread.shards, spread.target, spread.parts))


def change_of(spread: Spread) -> tuple[int, int, int]:
    """The change of the number of shards that ``spread`` is part of: from how many, to how many, and the version of the
    layout with which it began. Every step is one version more (:func:`steps_of`)."""
    steps_done = bisect_right(_steps(spread.shards, spread.target, spread.parts), spread.step)
    return spread.shards, spread.target, spread.version - steps_done


@lru_cache(maxsize=256)
def _steps(shards: int, target: int, parts: int) -> tuple[int, ...]:
    """Remembered, because it takes milliseconds for many shards."""
    spread = Spread(version=0, shards=shards, target=target, parts=parts)
    return tuple(step for step in range(1, (max(shards, target) - 1) * parts + 1) if moves_at(step, spread))


def _has_common(old: int, new: int, shards: int, target: int) -> bool:
    """Whether any number is ``old`` modulo ``shards`` and ``new`` modulo ``target``."""
    return (old - new) % gcd(shards, target) == 0
