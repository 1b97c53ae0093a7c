"""Which partition a key belongs to: Kafka's murmur2, as the Java client's default partitioner computes it.

The shard of an account is ``murmur2(account) % shards``. Every producer of ours sets librdkafka's
``partitioner=murmur2_random``, which agrees; golden tests hold all three together.
"""

import struct

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
