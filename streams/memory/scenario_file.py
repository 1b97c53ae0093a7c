"""The form of a scenario: JSON lines that say what is given to the pipeline when, and what goes wrong when.

Owns the form and every refusal, each with file, line and field; a scenario that is returned can be run. What it does to
a pipeline is :mod:`streams.memory.scenario`'s business.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.topics import MARKS
from streams.errors import ScenarioError
from streams.memory.given_records import FieldError, GivenRecord, decoded_json, given_record, microseconds

AT_MS_MAX = 86_400_000
"""A scenario may last a day of virtual time."""
SHARDS_MAX = 64
WORKERS_MAX = 64
"""So many processes of a role at most."""

_FIELDS: dict[str, tuple[str, ...]] = {
    "topic": ("at_ms", "topic", "key", "partition", "value", "bytes"),
    "freeze": ("at_ms", "freeze", "for_ms"),
    "kill": ("at_ms", "kill"),
    "clock": ("at_ms", "clock", "ahead_ms"),
    "delete": ("at_ms", "delete"),
    "rescale": ("at_ms", "rescale"),
}
"""What a line of each kind may have, by the field that says its kind."""


@dataclass(frozen=True, slots=True, order=True)
class WorkerName:
    """A process of the deployment, written ``router:0``."""

    role: str
    number: int

    def __str__(self) -> str:
        return f"{self.role}:{self.number}"


@dataclass(frozen=True, slots=True)
class Freeze:
    """A worker stands still for ``for_us``, as a machine does that is suspended."""

    worker: WorkerName
    for_us: int


@dataclass(frozen=True, slots=True)
class Kill:
    """A worker ends at once, and is started again as an orchestrator does."""

    worker: WorkerName


@dataclass(frozen=True, slots=True)
class ClockError:
    """The clock of a worker's host is ``ahead_us`` of the right time from now on."""

    worker: WorkerName
    ahead_us: int


@dataclass(frozen=True, slots=True)
class Delete:
    """All that a topic holds so far is gone, as retention and DeleteRecords do it."""

    topic: str


@dataclass(frozen=True, slots=True)
class Rescale:
    """The number of shards begins to be changed."""

    shards: int


Happening = GivenRecord | Freeze | Kill | ClockError | Delete | Rescale


@dataclass(frozen=True, slots=True)
class ScenarioLine:
    """What happens at a time, in microseconds since the scenario's beginning."""

    at_us: int
    what: Happening


@dataclass(frozen=True, slots=True)
class ScenarioScript:
    """A whole scenario. ``marks_given``: no oracle runs; ``workers`` is the count of processes by role."""

    lines: tuple[ScenarioLine, ...]
    workers: Mapping[str, int]
    marks_given: bool


def read_scenario(
    data: bytes, name: str, partitions: Mapping[str, int], *, routers: int | None = None, engines: int | None = None
) -> ScenarioScript:
    """The scenario in the bytes of a file called ``name``, for a cluster with ``partitions`` by topic.

    Without a count of ``routers`` or ``engines`` there are as many as the lines name, at least one.

    Raises:
        ScenarioError: it cannot be read; the text names the line and the field.
    """
    numbered: list[tuple[int, ScenarioLine]] = []
    for number, text in _texts(data, name):
        before_us = numbered[-1][1].at_us if numbered else 0
        try:
            numbered.append((number, _line(_fields(text), before_us, partitions)))
        except FieldError as error:
            raise ScenarioError(f"{name} line {number}, field {error.field}: {error.reason}") from None
        except ValueError as error:
            raise ScenarioError(f"{name} line {number}: {error}") from None
    if not numbered:
        raise ScenarioError(f"{name} line 1: the file is empty: it must hold a JSON object per line")
    marks_given = any(isinstance(line.what, GivenRecord) and line.what.topic == MARKS for _, line in numbered)
    counts = _worker_counts(numbered, {"router": routers, "engine": engines}) | {"oracle": 0 if marks_given else 1}
    _require_workers(numbered, name, counts, marks_given=marks_given)
    return ScenarioScript(tuple(line for _, line in numbered), counts, marks_given)


def _texts(data: bytes, name: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, with their numbers."""
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise ScenarioError(f"{name} line {number}: not UTF-8 at byte {error.start} of the line") from None
        if text and not text.startswith("#"):
            yield number, text


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = decoded_json(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError('not a JSON object such as {"at_ms":0,"topic":"trades.v1","value":{}}')
    return fields


def _line(fields: dict[str, Any], before_us: int, partitions: Mapping[str, int]) -> ScenarioLine:
    kinds = [kind for kind in _FIELDS if kind in fields]
    if len(kinds) != 1:
        raise FieldError(
            kinds[1] if kinds else "topic",
            f"a line has exactly one of {', '.join(_FIELDS)}" + ("" if kinds else ": none is here"),
        )
    kind = kinds[0]
    for field in fields:
        if field not in _FIELDS[kind]:
            raise FieldError(field, f"unknown; a line with {kind} may have {', '.join(_FIELDS[kind])}")
    at_us = _at_us(fields, before_us)
    return ScenarioLine(at_us, _happening(kind, fields, at_us, partitions))


def _at_us(fields: Mapping[str, Any], before_us: int) -> int:
    if "at_ms" not in fields:
        raise FieldError("at_ms", "missing: when it happens, in milliseconds since the scenario's beginning")
    at_us = microseconds(fields["at_ms"], "at_ms")
    if not 0 <= at_us <= 1000 * AT_MS_MAX:
        raise FieldError("at_ms", f"must be from 0 to {AT_MS_MAX}, got {fields['at_ms']}")
    if at_us < before_us:
        raise FieldError("at_ms", f"{fields['at_ms']} comes after {before_us / 1000:g}: lines are in order of at_ms")
    return at_us


def _happening(kind: str, fields: Mapping[str, Any], at_us: int, partitions: Mapping[str, int]) -> Happening:
    if kind == "topic":
        return given_record(fields, at_us, partitions)
    if kind == "delete":
        if not isinstance(fields[kind], str) or fields[kind] not in partitions:
            raise FieldError(kind, f"there is no topic {fields[kind]!r:.60}")
        return Delete(fields[kind])
    if kind == "rescale":
        shards = fields[kind]
        if type(shards) is not int or not 1 <= shards <= SHARDS_MAX:
            raise FieldError(kind, f"must be a number of shards from 1 to {SHARDS_MAX}, got {shards!r:.60}")
        return Rescale(shards)
    worker = _worker(fields[kind], kind)
    if kind == "kill":
        return Kill(worker)
    field = "for_ms" if kind == "freeze" else "ahead_ms"
    if field not in fields:
        raise FieldError(field, f"missing: a line with {kind} has it, in milliseconds")
    given_us = microseconds(fields[field], field)
    if kind == "clock":
        return ClockError(worker, given_us)
    if not 0 < given_us <= 1000 * AT_MS_MAX:
        raise FieldError(field, f"must be above 0 and at most {AT_MS_MAX}, got {fields[field]}")
    return Freeze(worker, given_us)


def _worker(text: Any, field: str) -> WorkerName:
    role, colon, number = text.partition(":") if isinstance(text, str) else ("", "", "")
    known = role in ("router", "engine", "oracle") and number.isascii() and number.isdigit() and len(number) < 4
    if not known or not colon or int(number) >= WORKERS_MAX:
        raise FieldError(field, f'must name a process such as "router:0", "engine:1" or "oracle:0", got {text!r:.60}')
    return WorkerName(role, int(number))


def _worker_counts(numbered: list[tuple[int, ScenarioLine]], given: Mapping[str, int | None]) -> dict[str, int]:
    named: dict[str, int] = {}
    for _, line in numbered:
        if not isinstance(line.what, GivenRecord | Delete | Rescale):
            worker = line.what.worker
            named[worker.role] = max(named.get(worker.role, 0), worker.number)
    return {role: named.get(role, 0) + 1 if count is None else count for role, count in given.items()}


def _require_workers(
    numbered: list[tuple[int, ScenarioLine]], name: str, counts: Mapping[str, int], *, marks_given: bool
) -> None:
    for number, line in numbered:
        what = line.what
        if isinstance(what, GivenRecord | Delete | Rescale) or what.worker.number < counts[what.worker.role]:
            continue
        role, field = what.worker.role, {Freeze: "freeze", Kill: "kill", ClockError: "clock"}[type(what)]
        known = f"there is {role}:0" if counts[role] == 1 else f"there are {role}:0 to {role}:{counts[role] - 1}"
        if role == "oracle" and marks_given:
            known = f"no oracle runs where {MARKS} is given"
        raise ScenarioError(f"{name} line {number}, field {field}: no {what.worker}: {known}")
