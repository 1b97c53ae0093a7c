"""Record headers: CloudEvents 1.0 in binary mode on what others read, and where a dead letter came from."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

Headers = list[tuple[str, bytes]]
Received = Mapping[str, str | bytes | None] | Sequence[tuple[str, str | bytes | None]] | None
"""The headers of a record as a client gives them."""

SOURCE = "/margin-clearing"
_quoted = json.JSONEncoder().encode
SUSPENDED_BYTES_MAX = 200_000
"""Most bytes of the accounts that a dead letter names."""


def cloud_event(event_id: str, event_type: str, time_us: int) -> Headers:
    """CloudEvents headers. ``event_id`` must be a pure function of the inputs, so that a replay repeats it."""
    time = datetime.fromtimestamp(time_us / 1_000_000, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_type", event_type.encode()),
        ("ce_source", SOURCE.encode()),
        ("ce_time", time.encode()),
        ("content-type", b"application/json"),
    ]


def dead_letter(topic: str, partition: int, offset: int, timestamp_ms: int, error: str, reason: str) -> Headers:
    """Headers of a dead letter: where the record stood, the error's class and the reason in words."""
    return [
        ("dlq.topic", topic.encode()),
        ("dlq.partition", str(partition).encode()),
        ("dlq.offset", str(offset).encode()),
        ("dlq.timestamp", str(timestamp_ms).encode()),
        ("dlq.error", error.encode()),
        ("dlq.reason", reason.encode("utf-8", "replace")[:1000]),
    ]


def told(suspended: Sequence[str], *, all_told: bool) -> Headers:
    """Further headers of a dead letter that concerns accounts: those that were suspended for it, and whether there may
    be others, whom nobody could read from it. Of more than ``SUSPENDED_BYTES_MAX`` the first are named, and how many
    they are in all.
    """
    names, room = [], SUSPENDED_BYTES_MAX
    for name in map(_quoted, suspended):
        room -= len(name) + 2
        if room < 0:
            break
        names.append(name)
    about = [("dlq.suspended", f"[{', '.join(names)}]".encode())]
    if len(names) < len(suspended):
        about.append(("dlq.suspended_count", str(len(suspended)).encode()))
    return about if all_told else [*about, ("dlq.untold", b"1")]
