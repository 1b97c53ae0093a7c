"""The names of everything in Redis. The shard is a hash tag, so that a shard's keys live on one node of a cluster."""

MARKS = "margin:marks"
LAYOUT = "margin:layout"


def accounts_key(shard: int) -> str:
    """Hash: account to the JSON of its row, the changelog's bytes."""
    return f"margin:{{{shard}}}:accounts"


def meta_key(shard: int) -> str:
    """Hash: ``cluster``, ``topic``, ``token`` (offset of the owner's claim), ``stamp`` (next changelog offset)."""
    return f"margin:{{{shard}}}:meta"
