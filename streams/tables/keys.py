"""The names of everything in Redis. The shard is a hash tag, so that a shard's keys live on one node of a cluster."""

MARKS = "margin:marks"
"""Hash: symbol to the JSON of its latest mark."""
LAYOUT = "margin:layout"
"""Hash: ``cluster``, ``topic``, ``shards`` and ``partitioner``: where any client finds an account."""


def accounts_key(shard: int) -> str:
    """Hash: account to the JSON of its row, the changelog's bytes."""
    return f"margin:{{{shard}}}:accounts"


def meta_key(shard: int) -> str:
    """Hash: what the table reflects and who may write it.

    - ``cluster``, ``topic``, ``topic_id``, ``shards``: the log it is a copy of.
    - ``token``: the offset of its owner's claim.
    - ``stamp``: the changelog offset after the last row it reflects; ``rows``: how many rows it has.
    - ``as_of``: nothing written to the log before this time (ms) is missing.
    - ``writing``, if there: rows up to this offset may be among those of ``stamp``.
    - ``part``, if there: which part of the write to which stamp (``stamp:part``) was the last.
    - ``building``, if there: it was cleared and does not hold every account yet.
    - ``updated_at``: Redis's clock (ms) when its owner last wrote to it or confirmed it.
    """
    return f"margin:{{{shard}}}:meta"
