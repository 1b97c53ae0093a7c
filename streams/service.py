"""A role as a process: the one place that gives it the real Kafka, the signals, the watchdog and the probes."""

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from streams import probes
from streams.broker.kafka import Kafka
from streams.logs import event
from streams.runtime import Event
from streams.settings import Settings
from streams.watchdog import Watchdog

log = logging.getLogger(__name__)


class Role(Protocol):
    """What runs until it is told to stop."""

    def run(self) -> None:
        """Work until told to stop."""
        ...

    def readiness(self) -> list[probes.Condition]:
        """Whether it does its work now; may be asked from any thread at any time."""
        ...


def run_role(settings: Settings, build: Callable[[Kafka, Event, Watchdog], Role]) -> None:
    """Run a role until SIGTERM or SIGINT. Probes and watchdog look on from before it is built.

    Raises:
        MarginClearingError: what only a new process can mend; it should exit and be started again.
    """
    stop = threading.Event()

    def on_signal(number: int, _: FrameType | None) -> None:
        event(log, logging.INFO, "stopping", signal=signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    built: list[Role] = []

    def readiness() -> list[probes.Condition]:
        return built[0].readiness() if built else [probes.Condition("has_started", 0, 1, "at_least")]

    watchdog = Watchdog(settings.service.watchdog_ms / 1000)
    probes.serve(settings.service.metrics_port, watchdog, readiness)
    watchdog.start()
    built.append(build(Kafka(settings), stop, watchdog))
    built[0].run()
