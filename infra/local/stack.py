"""The local stack: Kafka and Valkey together, or those that the environment names instead.

``MARGIN_KAFKA__BOOTSTRAP_SERVERS`` and ``MARGIN_REDIS__URL`` each take the place of a server of ours. Everything that
is started is stopped whatever way the owner ends, and its temporary data goes with it.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from infra.local.kafka import KafkaServer, Progress
from infra.local.process import Remover
from infra.local.valkey import ValkeyServer


class LocalStack:
    """A running stack. Use :meth:`start` as a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        kafka: KafkaServer | None,
        valkey: ValkeyServer | None,
        bootstrap_servers: str,
        redis_url: str,
        remover: Remover | None,
    ) -> None:
        self.folder, self.kafka, self.valkey = folder, kafka, valkey
        self.bootstrap_servers, self.redis_url = bootstrap_servers, redis_url
        self._remover = remover

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
        """Start what is not given, and wait until it answers.

        Raises:
            LocalStackError: a server cannot be had or did not start; what had been started is stopped.
        """
        environment = os.environ if environment is None else environment
        bootstrap_servers = bootstrap_servers or environment.get("MARGIN_KAFKA__BOOTSTRAP_SERVERS")
        redis_url = redis_url or environment.get("MARGIN_REDIS__URL")
        folder = keep_data or Path(tempfile.mkdtemp(prefix="margin-clearing-"))
        folder.mkdir(parents=True, exist_ok=True)
        kafka = None if bootstrap_servers else KafkaServer(folder, port=kafka_port, progress=progress)
        valkey = None if redis_url else ValkeyServer(folder, port=redis_port, append_only=keep_data is not None)
        stack = cls(
            folder,
            kafka=kafka,
            valkey=valkey,
            bootstrap_servers=bootstrap_servers or (kafka.bootstrap_servers if kafka else ""),
            redis_url=redis_url or (valkey.url if valkey else ""),
            remover=None if keep_data else Remover(folder),
        )
        try:
            with ThreadPoolExecutor() as pool:
                for started in [pool.submit(server.start) for server in (kafka, valkey) if server is not None]:
                    started.result()
        except BaseException:
            stack.stop()
            raise
        return stack

    def stop(self) -> None:
        """Stop what was started and remove its temporary data."""
        for server in (self.kafka, self.valkey):
            if server is not None:
                server.stop()
        if self._remover is not None:
            self._remover.close()
            self._remover = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def run_local(*, kafka_port: int = 0, redis_port: int = 0, keep_data: Path | None = None) -> None:
    """Keep a stack with the contract's topics up until SIGINT or SIGTERM, and say how to use it."""
    from streams.broker.admin import ensure_topics
    from streams.settings import load

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with LocalStack.start(
        kafka_port=kafka_port, redis_port=redis_port, keep_data=keep_data, progress=lambda text: print(text, flush=True)
    ) as stack:
        settings = load(overrides={"kafka.bootstrap_servers": stack.bootstrap_servers, "redis.url": stack.redis_url})
        for fault in ensure_topics(settings).wrong:
            print(f"wrong: {fault}", flush=True)
        print(f"export MARGIN_KAFKA__BOOTSTRAP_SERVERS={stack.bootstrap_servers}")
        print(f"export MARGIN_REDIS__URL={stack.redis_url}")
        print(f"# logs and data: {stack.folder}; Ctrl-C stops everything", flush=True)
        stop.wait()
