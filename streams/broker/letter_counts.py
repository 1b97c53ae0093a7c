"""What lies in a dead-letter topic, counted: by error and reason, each letter once, and with what was looked at.

Anybody may write to such a topic and no header has to be there, so nothing of a letter is relied on: what it does not
say, or says in bytes that are no text, is counted as such. Retention, transactions and whoever takes letters away leave
gaps between the offsets.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from schemas.topics import CONTRACT, EVENTS, INPUTS, dead_letter_topic
from streams.broker.dead_letters import UntoldLetters, is_untold
from streams.broker.records import Log, Record
from streams.errors import BrokerError

LETTER_TOPICS = tuple(topic.name for topic in CONTRACT if topic.dead_letters)
"""The topics that have a dead-letter topic."""
CLASSES_MAX = 10
"""Most classes of one topic that are listed; what is in none of the largest is in the last, ``OTHER``."""
OTHER = "other"
NO_ERROR = "no dlq.error"
"""Stands for the error of a letter that names none."""
REMEMBERED_MAX = 1_000_000
"""Of so many letters, and of as many accounts, it is remembered that they were counted."""

_DISTINGUISHED_MAX = 1_000
_ERROR_MAX, _REASON_MAX, _HEADER_MAX = 60, 90, 2_000
_WITH_DIGIT = re.compile(r"""[^\s,;:()\[\]"'`]*\d[^\s,;:()\[\]"'`]*""")
_CONCERNING_ACCOUNTS = (*INPUTS, EVENTS)
_NUMBER_DIGITS_MAX = 19
_accounts = msgspec.json.Decoder(list[str])


@dataclass(frozen=True, slots=True)
class LetterClass:
    """The letters with the same error and, numbers and ids apart, the same reason.

    ``first`` and ``last`` are offsets in the dead-letter topic, ``accounts`` is how many accounts were told, which
    suspends them unless all they lack is a credit; ``untold`` letters concern somebody who could not be.
    """

    error: str
    reason: str
    count: int
    first: int
    last: int
    accounts: int
    untold: int


@dataclass(frozen=True, slots=True)
class LetterCounts:
    """The dead letters of ``topic`` at the offsets ``first`` up to, not including, ``end``; the log begins at ``low``.

    ``count`` letters, ``repeats`` of them not included. ``unplaced`` of them do not say which record they were, so
    repeats of these are counted; ``accounts_unread`` of them name accounts in a way that cannot be read. ``forgetful``:
    there were more than are remembered, so what comes again after as many is counted again. ``problem``: why the
    looking ended before ``end``.
    """

    topic: str
    low: int
    first: int
    end: int
    count: int = 0
    repeats: int = 0
    unplaced: int = 0
    accounts_unread: int = 0
    forgetful: bool = False
    classes: tuple[LetterClass, ...] = ()
    untold: UntoldLetters | None = None
    problem: str | None = None

    @property
    def letters_topic(self) -> str:
        return dead_letter_topic(self.topic)

    @property
    def is_complete(self) -> bool:
        """Whether everything that the topic held was looked at."""
        return self.first <= self.low and self.problem is None


def count_letters(
    log: Log,
    topic: str,
    letters_max: int | None = None,
    *,
    on_untold: Callable[[Record], None] = lambda _: None,
    remembered_max: int = REMEMBERED_MAX,
) -> LetterCounts:
    """The dead letters of ``topic`` at the last ``letters_max`` offsets, or all of them (None).

    ``on_untold`` is given each letter that concerns somebody who could not be told, repeats apart.

    Raises:
        BrokerError: Kafka does not answer. A dead-letter topic that alone cannot be read is a ``problem`` instead.
    """
    letters = dead_letter_topic(topic)
    low = first = end = 0
    counting = _Counting(topic, on_untold, remembered_max)
    problem: str | None = None
    try:
        low, end = log.watermarks(letters, 0)
        first = low if letters_max is None else max(low, end - letters_max)
        for record in log.read_range(letters, 0, first, end):
            counting.add(record)
    except BrokerError as error:
        log.watermarks(topic, 0)  # raises if it is not this topic alone
        problem = str(error)
    return LetterCounts(
        topic,
        low,
        first,
        end,
        count=counting.count,
        repeats=counting.repeats,
        unplaced=counting.unplaced,
        accounts_unread=counting.accounts_unread,
        forgetful=counting.letters.has_forgotten or counting.accounts.has_forgotten,
        classes=counting.classes(),
        untold=counting.untold_letters(),
        problem=problem,
    )


def shortened(text: str, most: int = _REASON_MAX) -> str:
    """``text`` as one line for a person, whatever is in it, and the same for all that differ in numbers and ids."""
    line = _WITH_DIGIT.sub("#", _one_line(text))
    return line if len(line) <= most else f"{line[: most - 3]}..."


def place_of(letter: Record) -> tuple[str, int, int] | None:
    """Topic, partition and offset of the record that a letter was; None if it does not say."""
    values = dict(letter.headers() or ())
    topic, partition, offset = (_raw(values.get(f"dlq.{name}")) for name in ("topic", "partition", "offset"))
    if not topic or not (_is_number(partition) and _is_number(offset)):
        return None
    return topic.decode("utf-8", "replace"), int(partition), int(offset)


def letter_identity(letter: Record) -> int | None:
    """What two letters share that are the same: where the record stood, and its bytes; None if they do not say where.

    A frame that stood in one place holds many rows, each a letter of its own.
    """
    place = place_of(letter)
    return None if place is None else hash((place, letter.key(), letter.value()))


def reason_of(letter: Record) -> str:
    """The reason that a letter gives, as one line for a person, whatever is in it."""
    return _one_line(letter.header("dlq.reason")[:_HEADER_MAX]) or "no reason given"


def letter_lines(counts: Iterable[LetterCounts]) -> list[str]:
    """What was counted in lines for a person: a line a topic, with one for each of its classes, and what was empty."""
    lines: list[str] = []
    empty: list[str] = []
    for each in counts:
        if not each.count and each.is_complete:
            empty.append(each.letters_topic)
        else:
            lines += [_headline(each), *(f"  {_class_line(each, one)}" for one in each.classes)]
    return lines + ([f"no dead letters in {', '.join(empty)}"] if empty else [])


def _one_line(text: str) -> str:
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def _headline(counts: LetterCounts) -> str:
    parts = [f"{counts.letters_topic}: {counts.count:,} dead letters"]
    if counts.is_complete:
        parts[0] += ", all that are there"
    elif counts.first > counts.low:
        parts[0] += f" at the last {counts.end - counts.first:,} offsets"
        parts.append(f"the {counts.first - counts.low:,} offsets before them were not looked at")
    if counts.problem is not None:
        parts.append(f"not looked at to the end: {counts.problem}")
    if counts.repeats:
        parts.append(f"{counts.repeats:,} repeats left out")
    if counts.unplaced:
        parts.append(f"{counts.unplaced:,} do not say which record they were, so repeats of them are counted")
    if counts.accounts_unread:
        parts.append(f"{counts.accounts_unread:,} name accounts that cannot be read")
    if counts.forgetful:
        parts.append("what came again long after was counted again")
    return "; ".join(parts)


def _class_line(counts: LetterCounts, one: LetterClass) -> str:
    what = f"{one.error}: {one.reason}" if one.reason else one.error
    parts = [f"{what} ({one.count:,})", f"offsets {one.first} to {one.last}"]
    if counts.topic in _CONCERNING_ACCOUNTS:
        parts.append(f"{one.accounts:,} accounts told")
    if one.untold:
        parts.append(f"{one.untold:,} with somebody untold")
    return ", ".join(parts)


class _Remembered:
    """The identities of the last ``most`` that were counted, each with a flag."""

    def __init__(self, most: int) -> None:
        self.has_forgotten = False
        self._most = most
        self._flags: dict[int, bool] = {}

    def flag(self, identity: int) -> bool | None:
        """The flag it was kept with; None if it has not been seen."""
        return self._flags.get(identity)

    def keep(self, identity: int, flag: bool = False) -> None:
        self._flags[identity] = flag
        if len(self._flags) > self._most:
            del self._flags[next(iter(self._flags))]
            self.has_forgotten = True


@dataclass(slots=True)
class _Class:
    """A class while it is counted."""

    first: int = -1
    last: int = -1
    count: int = 0
    accounts: int = 0
    untold: int = 0

    def saw(self, offset: int) -> None:
        """One of its letters is at ``offset``."""
        self.first = offset if self.first < 0 else min(self.first, offset)
        self.last = max(self.last, offset)

    def joined(self, error: str, reason: str = "") -> LetterClass:
        return LetterClass(error, reason, self.count, self.first, self.last, self.accounts, self.untold)


@dataclass(slots=True)
class _Counting:
    """What has been counted so far."""

    topic: str
    on_untold: Callable[[Record], None]
    remembered_max: int
    count: int = 0
    repeats: int = 0
    unplaced: int = 0
    accounts_unread: int = 0
    letters: _Remembered = field(init=False)
    accounts: _Remembered = field(init=False)
    _classes: dict[tuple[str, str], _Class] = field(default_factory=dict)
    _untold: int = 0
    _untold_first: int = -1
    _untold_last: Record | None = None

    def __post_init__(self) -> None:
        self.letters, self.accounts = _Remembered(self.remembered_max), _Remembered(self.remembered_max)

    def add(self, record: Record) -> None:
        """Count a letter, unless it is a repeat; a repeat that alone says that somebody is untold is heard."""
        values = dict(record.headers() or ())
        untold = self.topic in _CONCERNING_ACCOUNTS and is_untold(self.topic, values)
        letter = letter_identity(record)
        counted_untold = None if letter is None else self.letters.flag(letter)
        is_repeat = counted_untold is not None
        if letter is not None and (not is_repeat or (untold and not counted_untold)):
            self.letters.keep(letter, untold)
        news = untold and not counted_untold
        if is_repeat:
            self.repeats += 1
            if not news:
                return
        kind, counted = self._class(values)
        counted.saw(record.offset())
        if not is_repeat:
            self.count += 1
            self.unplaced += letter is None
            counted.count += 1
            self._count_accounts(kind, counted, values.get("dlq.suspended"))
        if news:
            counted.untold += 1
            self._count_untold(record)

    def classes(self) -> tuple[LetterClass, ...]:
        """The largest classes, and the rest as one: at most ``CLASSES_MAX``."""
        by_size = sorted(
            self._classes.items(),
            key=lambda item: (item[0][0] == OTHER, -item[1].count, item[1].first),
        )
        kept = len(by_size) if len(by_size) <= CLASSES_MAX else CLASSES_MAX - 1
        largest = tuple(one.joined(*kind) for kind, one in by_size[:kept])
        rest = [one for _, one in by_size[kept:]]
        if not rest:
            return largest
        other = _Class()
        for one in rest:
            other.saw(one.first)
            other.saw(one.last)
            other.count += one.count
            other.accounts += one.accounts
            other.untold += one.untold
        return (*largest, other.joined(OTHER))

    def untold_letters(self) -> UntoldLetters | None:
        """Those that concern somebody who could not be told."""
        last = self._untold_last
        if last is None:
            return None
        return UntoldLetters(self.topic, self._untold, self.count, self._untold_first, last.offset(), reason_of(last))

    def _class(self, values: dict[str, str | bytes | None]) -> tuple[tuple[str, str], _Class]:
        error = shortened(_text(values.get("dlq.error")), _ERROR_MAX)
        kind = (error or NO_ERROR, shortened(_text(values.get("dlq.reason"))))
        if kind not in self._classes and len(self._classes) >= _DISTINGUISHED_MAX:
            kind = (OTHER, "")
        return kind, self._classes.setdefault(kind, _Class())

    def _count_accounts(self, kind: tuple[str, str], counted: _Class, suspended: str | bytes | None) -> None:
        if suspended is None:
            return
        try:
            names = _accounts.decode(suspended)
        except (msgspec.DecodeError, ValueError, RecursionError):
            self.accounts_unread += 1
            return
        for name in names:
            named = hash((kind, name))
            if self.accounts.flag(named) is None:
                self.accounts.keep(named)
                counted.accounts += 1

    def _count_untold(self, record: Record) -> None:
        self._untold += 1
        if self._untold_last is None:
            self._untold_first = record.offset()
        self._untold_last = record
        self.on_untold(record)


def _raw(value: str | bytes | None) -> bytes:
    return value.encode("utf-8", "replace") if isinstance(value, str) else value or b""


def _is_number(digits: bytes) -> bool:
    return digits.isdigit() and len(digits) <= _NUMBER_DIGITS_MAX


def _text(value: str | bytes | None) -> str:
    return _raw(value)[:_HEADER_MAX].decode("utf-8", "replace")
