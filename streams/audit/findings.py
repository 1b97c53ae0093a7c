"""What an audit found: differences with their place, what liquidation does not reach, what was counted, and what could
not be checked and why.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from streams.broker.letter_counts import LetterCounts

LISTED_MAX = 200
"""Most differences that are listed; all are counted. One cause can make every later record differ."""

_PATHS_MAX = 4


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as it must be, and where it stands."""

    what: str
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None

    @property
    def place(self) -> str:
        """``topic[partition]@offset``, as far as it is known."""
        if self.topic is None:
            return ""
        partition = "" if self.partition is None else f"[{self.partition}]"
        return f"{self.topic}{partition}" + ("" if self.offset is None else f"@{self.offset}")


@dataclass(slots=True)
class Findings:
    """The result of an audit. ``notes`` say what was not checked and why, ``facts`` how things stand; neither is a
    difference. Nor is what is ``unreached``, groups and accounts that nothing liquidates, but it must not stay so.
    ``letters`` are the dead letters of each topic."""

    differences: list[Difference] = field(default_factory=list)
    difference_count: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    letters: list[LetterCounts] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.difference_count and not self.unreached

    def differ(
        self, what: str, topic: str | None = None, partition: int | None = None, offset: int | None = None
    ) -> None:
        """Take down a difference."""
        self.difference_count += 1
        if len(self.differences) < LISTED_MAX:
            self.differences.append(Difference(what, topic, partition, offset))

    def note(self, text: str) -> None:
        """Take down, once, what could not be checked."""
        if text not in self.notes:
            self.notes.append(text)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "passed": self.passed,
            "differences_found": self.difference_count,
            "differences": [asdict(difference) for difference in self.differences],
            "counts": dict(sorted(self.counts.items())),
            "notes": self.notes,
            "facts": self.facts,
            "unreached": self.unreached,
            "letters": [asdict(counts) for counts in self.letters],
        }


def bytes_differ(wanted: bytes | None, actual: bytes | None) -> str:
    """In words, in which fields two JSON records differ: the record as it must be and as it was found."""
    if wanted is None or actual is None:
        return f"must be {_short(wanted)} and is {_short(actual)}"
    try:
        fields = list(_paths(orjson.loads(wanted), orjson.loads(actual), ""))
    except orjson.JSONDecodeError:
        return f"must be {_short(wanted)} and is {_short(actual)}"
    if not fields:
        return "the same values written otherwise"
    more = f" and {len(fields) - _PATHS_MAX} fields more" if len(fields) > _PATHS_MAX else ""
    return "; ".join(fields[:_PATHS_MAX]) + more


def _paths(wanted: Any, actual: Any, path: str) -> "list[str]":
    if isinstance(wanted, dict) and isinstance(actual, dict):
        keys = [*wanted, *(key for key in actual if key not in wanted)]
        return [
            text
            for key in keys
            for text in _paths(wanted.get(key), actual.get(key), f"{path}.{key}" if path else str(key))
        ]
    if isinstance(wanted, list) and isinstance(actual, list) and len(wanted) == len(actual):
        pairs = enumerate(zip(wanted, actual, strict=True))
        return [text for index, (one, other) in pairs for text in _paths(one, other, f"{path}[{index}]")]
    if wanted == actual:
        return []
    return [f"{path} must be {_short(orjson.dumps(wanted))} and is {_short(orjson.dumps(actual))}"]


def _short(data: bytes | None) -> str:
    if data is None:
        return "nothing"
    text = data.decode("utf-8", "replace")
    return text if len(text) <= 80 else f"{text[:77]}..."
