"""The local stack: Kafka and Valkey together, or those that the environment names instead.

``MARGIN_KAFKA__BOOTSTRAP_SERVERS`` and ``MARGIN_REDIS__URL`` each take the place of a server of ours. Everything that
is started is stopped whatever way the owner ends, and its temporary data goes with it.
"""

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Self

from infra.local.errors import MissingError
from infra.local.jars import Progress
from infra.local.kafka import KafkaServer
from infra.local.process import TemporaryFolder
from infra.local.valkey import ValkeyServer

KAFKA_VARIABLE = "MARGIN_KAFKA__BOOTSTRAP_SERVERS"
REDIS_VARIABLE = "MARGIN_REDIS__URL"


class LocalStack:
    """A running stack. Use :meth:`start` as a context manager.

    ``kafka`` and ``valkey`` are the servers of ours, None for those that were given. ``folder`` holds data and logs.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kafka: KafkaServer | None,
        valkey: ValkeyServer | None,
        bootstrap_servers: str,
        redis_url: str,
        temporary: TemporaryFolder | None,
    ) -> None:
        self.folder, self.kafka, self.valkey = folder, kafka, valkey
        self.bootstrap_servers, self.redis_url = bootstrap_servers, redis_url
        self._temporary = temporary

    @classmethod
    def start(
        cls,
        *,
        bootstrap_servers: str | None = None,
        redis_url: str | None = None,
        kafka_port: int = 0,
        redis_port: int = 0,
        keep_data: Path | None = None,
        environment: Mapping[str, str] | None = None,
        progress: Progress = lambda _: None,
    ) -> Self:
        """Start what is not given, and wait until it is ready.

        Given are ``bootstrap_servers`` and ``redis_url``, or else what ``environment`` (default: the process's) names.
        A port of 0 takes a free one. ``keep_data`` is a folder whose data is used again, else all is temporary.
        ``progress`` is called with a few words before each step that takes time.

        Raises:
            LocalStackError: a server cannot be had or did not start; what had been started is stopped.
        """
        environment = os.environ if environment is None else environment
        bootstrap_servers = bootstrap_servers or environment.get(KAFKA_VARIABLE)
        redis_url = redis_url or environment.get(REDIS_VARIABLE)
        temporary = None if keep_data else TemporaryFolder()
        folder = temporary.path if temporary else _kept_folder(keep_data or Path())
        keeps = keep_data is not None
        try:
            valkey = None if redis_url else ValkeyServer(folder, port=redis_port, keep_data=keeps)
            kafka = None
            if not bootstrap_servers:
                kafka = KafkaServer(folder, port=kafka_port, keep_data=keeps, progress=progress)
        except BaseException:
            if temporary:
                temporary.close()
            raise
        stack = cls(
            folder,
            kafka=kafka,
            valkey=valkey,
            bootstrap_servers=bootstrap_servers or (kafka.bootstrap_servers if kafka else ""),
            redis_url=redis_url or (valkey.url if valkey else ""),
            temporary=temporary,
        )
        try:
            stack._start_servers(progress)
        except BaseException:
            stack.stop()
            raise
        return stack

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which every command of this project finds the stack."""
        return {KAFKA_VARIABLE: self.bootstrap_servers, REDIS_VARIABLE: self.redis_url}

    def stop(self) -> None:
        """Stop what was started and remove its temporary data. Data that is kept is closed in order."""
        for server in (self.kafka, self.valkey):
            if server is not None and self._temporary is None:
                server.stop()
            elif server is not None:
                server.kill()
        if self._temporary is not None:
            self._temporary.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_servers(self, progress: Progress) -> None:
        if self.valkey is not None:
            progress("starting Valkey")
            self.valkey.start()
        if self.kafka is not None:
            self.kafka.start()


def run_local(*, kafka_port: int = 0, redis_port: int = 0, keep_data: Path | None = None) -> None:
    """Keep a stack with the contract's topics up until SIGINT or SIGTERM, and print how to use it.

    To be called in the main thread.

    Raises:
        LocalStackError: a server cannot be had or did not start.
    """
    previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with LocalStack.start(
            kafka_port=kafka_port, redis_port=redis_port, keep_data=keep_data, progress=_say
        ) as stack:
            _create_topics(stack)
            for name, value in stack.environment.items():
                _say(f"export {name}={value}")
            _say(f"# logs are in {stack.folder}; Ctrl-C stops everything")
            threading.Event().wait()
    except KeyboardInterrupt:
        _say("stopped")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first signal ends the stack; the clean-up is not interrupted by another."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _create_topics(stack: LocalStack) -> None:
    from streams.broker.admin import ensure_topics
    from streams.settings import load

    settings = load(overrides={"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url})
    for fault in ensure_topics(settings).wrong:
        _say(f"wrong: {fault}")


def _kept_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MissingError(f"the folder for the data cannot be made: {error}; choose another") from error
    return folder.resolve()


def _say(text: str) -> None:
    print(text, flush=True)
