"""Puts the in-memory clients and the virtual clock where the roles' modules look for the real ones, and takes them out.

What is replaced is found by identity in every module that a role runs. Only while the scheduler runs is anything
replaced, so the rest of a process keeps the real ones.
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
from functools import cache
from types import ModuleType
from typing import Any

import confluent_kafka

from streams.broker import admin
from streams.tables.connection import connect

_PACKAGES = ("streams.broker", "streams.feeds", "streams.clearing", "streams.routing", "streams.tables")
_MODULES = ("streams.settings", "streams.oracle.leadership")
_NOT_RUN = ("streams.tables.faust_store", "streams.broker.admin")

_REAL: dict[str, Any] = {
    "time": time,
    "threading": threading,
    "os": os,
    "socket": socket,
    "Consumer": confluent_kafka.Consumer,
    "Producer": confluent_kafka.Producer,
    "connect": connect,
    "admin_client": admin.admin_client,
    "require_topics": admin.require_topics,
    "topic_ids": admin.topic_ids,
}
"""What is replaced, by the name of its stand-in."""


@contextmanager
def replaced(stand_ins: Mapping[str, Any]) -> Iterator[None]:
    """Run the roles on ``stand_ins``, by the names of what they stand for. What they log goes nowhere."""
    logged = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        for module, name, kind in _places():
            setattr(module, name, stand_ins[kind])
        yield
    finally:
        for module, name, kind in _places():
            setattr(module, name, _REAL[kind])
        logging.disable(logged)


@cache
def _places() -> tuple[tuple[ModuleType, str, str], ...]:
    kinds = {id(real): kind for kind, real in _REAL.items()}
    return tuple(
        (module, name, kinds[id(value)])
        for module in _modules()
        for name, value in list(vars(module).items())
        if id(value) in kinds
    )


def _modules() -> Iterator[ModuleType]:
    for package in map(importlib.import_module, _PACKAGES):
        for found in pkgutil.iter_modules(package.__path__):
            name = f"{package.__name__}.{found.name}"
            if name not in _NOT_RUN:
                yield importlib.import_module(name)
    yield from map(importlib.import_module, _MODULES)
