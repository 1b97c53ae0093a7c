"""The one place that puts the fakes into the production modules, and takes them out again.

What is replaced is found by identity, not by name, in every module of the packages that a run executes, so a module
that begins to use the clock or a thread is replaced there too. A replaced function under another name, a constant that
is gone, or a module that no longer has what it must have, is an error: a run that touches the real world is no
simulation.
"""

import importlib
import logging
import os
import pkgutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import confluent_kafka

from streams.broker import admin
from streams.margin.parameters import RiskParameters
from streams.tables import connection

PACKAGES = (
    "streams.broker",
    "streams.feeds",
    "streams.clearing",
    "streams.routing",
    "streams.tables",
    "streams.settings",
)
NOT_RUN = ("streams.tables.faust_store",)

REAL: dict[str, Any] = {
    "time": time,
    "threading": threading,
    "os": os,
    "socket": socket,
    "Consumer": confluent_kafka.Consumer,
    "Producer": confluent_kafka.Producer,
    "connect": connection.connect,
    "admin_client": admin.admin_client,
    "require_topics": admin.require_topics,
    "topic_ids": admin.topic_ids,
}
"""What is replaced, by the name that a run gives its stand-in."""

REQUIRED = (
    "streams.clearing.engine.time",
    "streams.clearing.engine.threading",
    "streams.clearing.engine.Consumer",
    "streams.clearing.engine.admin_client",
    "streams.clearing.engine.require_topics",
    "streams.routing.router.time",
    "streams.routing.router.Consumer",
    "streams.routing.router.require_topics",
    "streams.routing.ownership.time",
    "streams.broker.producer.time",
    "streams.broker.producer.threading",
    "streams.broker.producer.Producer",
    "streams.broker.reader.time",
    "streams.broker.reader.Consumer",
    "streams.tables.catch_up.time",
    "streams.tables.restore_point.time",
    "streams.tables.write_behind.time",
    "streams.tables.write_behind.threading",
    "streams.tables.write_behind.topic_ids",
    "streams.tables.writer.time",
    "streams.tables.connection.connect",
    "streams.settings.os",
    "streams.settings.socket",
)
"""What must be there to be replaced."""

_LEFT_ALONE = {"streams.broker.admin"}
"""Defines the administration that is replaced where it is used."""
_FORBIDDEN = {
    id(value)
    for module in (time, threading)
    for value in vars(module).values()
    if getattr(value, "__module__", "") == module.__name__
}


@dataclass(frozen=True, slots=True)
class Place:
    """A name in a module and what stands there."""

    module: ModuleType
    name: str
    kind: str
    real: Any


def places() -> list[Place]:
    """Every place at which something real must be replaced.

    Raises:
        LookupError: a place that must be there is not, or a module has taken a function out of a replaced module.
    """
    kinds = {id(real): kind for kind, real in REAL.items()}
    found = []
    for module in _modules():
        for name, value in list(vars(module).items()):
            if id(value) in kinds and module.__name__ not in _LEFT_ALONE:
                found.append(Place(module, name, kinds[id(value)], value))
            elif id(value) in _FORBIDDEN:
                raise LookupError(f"{module.__name__}.{name} was imported out of its module: it cannot be replaced")
    there = {f"{place.module.__name__}.{place.name}" for place in found}
    if missing := sorted(set(REQUIRED) - there):
        raise LookupError(f"not there any more: {', '.join(missing)}; tests/simulation/production.py must follow")
    return found


@contextmanager
def replaced(stand_ins: Mapping[str, Any], constants: Mapping[str, Any]) -> Iterator[None]:
    """Run production code on ``stand_ins`` (by the names of ``REAL``) and with ``constants`` (by dotted name).

    Raises:
        LookupError: as :func:`places`, or there is no such constant.
    """
    undo: list[tuple[Any, str, Any]] = []
    for place in _cached_places():
        undo.append((place.module, place.name, place.real))
    for dotted in constants:
        module_name, _, name = dotted.rpartition(".")
        module = importlib.import_module(module_name)
        if name not in vars(module):
            raise LookupError(f"{dotted} is not there any more: tests/simulation must follow")
        undo.append((module, name, getattr(module, name)))
    logged = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        for place in _cached_places():
            setattr(place.module, place.name, stand_ins[place.kind])
        for dotted, value in constants.items():
            module_name, _, name = dotted.rpartition(".")
            setattr(importlib.import_module(module_name), name, value)
        yield
    finally:
        for target, name, value in undo:
            setattr(target, name, value)
        logging.disable(logged)


# --- parameters, parsed once -----------------------------------------------------------------------------------------

_PARSED_MAX = 2_000


class ParsedParameters:
    """``RiskParameters.with_encoded``, remembered: sets are immutable, and seeds write the same few records.

    A set is known by the records that led to it, so that runs share what they have in common.
    """

    def __init__(self) -> None:
        self.empty = RiskParameters.empty()
        self._known: dict[tuple[int, bytes | None, bytes | None], RiskParameters | Exception] = {}
        self._kept: list[RiskParameters] = [self.empty]

    def with_encoded(self, before: RiskParameters, key: bytes | None, value: bytes | None) -> RiskParameters:
        """The set after a record."""
        place = (id(before), key, value)
        found = self._known.get(place)
        if found is None:
            self._kept.append(before)  # an id says something only about what is alive
            try:
                found = WITH_ENCODED(before, key, value)
            except Exception as error:
                found = error
            self._known[place] = found
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        return found


WITH_ENCODED = RiskParameters.with_encoded
_parsed = ParsedParameters()


@contextmanager
def remembered_parameters() -> Iterator[ParsedParameters]:
    """Let production code parse each parameter record once for all runs of this process."""
    global _parsed  # noqa: PLW0603
    if len(_parsed._kept) > _PARSED_MAX:
        _parsed = ParsedParameters()
    parsed = _parsed
    empty = RiskParameters.__dict__["empty"]
    RiskParameters.empty = classmethod(lambda _: parsed.empty)  # type: ignore[assignment, method-assign]

    def with_encoded(self: RiskParameters, key: bytes | None, value: bytes | None) -> RiskParameters:
        return parsed.with_encoded(self, key, value)

    RiskParameters.with_encoded = with_encoded  # type: ignore[method-assign]
    try:
        yield parsed
    finally:
        RiskParameters.empty = empty  # type: ignore[method-assign]
        RiskParameters.with_encoded = WITH_ENCODED  # type: ignore[method-assign]


_places: list[Place] = []


def _cached_places() -> list[Place]:
    if not _places:
        _places.extend(places())
    return _places


def _modules() -> Iterator[ModuleType]:
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield package
        for found in pkgutil.iter_modules(getattr(package, "__path__", [])):
            full = f"{name}.{found.name}"
            if full not in NOT_RUN:
                yield importlib.import_module(full)
