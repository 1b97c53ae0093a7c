"""The number of shards changes under load, and somebody is killed while accounts are on their way.

``margin-clearing rescale`` runs as a process, straight against the broker; it is typed again until it has done its
work. What was measured is in the evidence: how long the change took, and the longest silence of commands meanwhile.
"""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from infra.local.process import ManagedProcess
from infra.local.stack import child_environment
from tests.faults.fleet import KILLED, Worker
from tests.faults.pipeline import NUMBERS_OF_SHARDS, Pipeline

if TYPE_CHECKING:
    from tests.faults.injections import Strike

CHANGED_WITHIN_S = 300.0
_MOVING = 2
"""So many layouts after the one before, accounts begin to move: the first of the change moves nobody."""


class RescaleCommand:
    """``margin-clearing rescale`` to the number of shards that is next, or to which accounts are on their way."""

    def __init__(self, pipeline: Pipeline) -> None:
        spread = pipeline.layout.spread
        number = NUMBERS_OF_SHARDS.index(spread.shards)
        following = NUMBERS_OF_SHARDS[(number + 1) % len(NUMBERS_OF_SHARDS)]
        self.shards, self.target = spread.shards, spread.target if pipeline.layout.is_moving else following
        self.version = spread.version
        self.codes: list[int] = []
        self._environment = child_environment(
            {"MARGIN_KAFKA__BOOTSTRAP_SERVERS": pipeline.settings.kafka.bootstrap_servers}
        )
        self._log_path: Path = pipeline.folder / "rescale.log"
        self._process: ManagedProcess | None = None

    def type(self) -> None:
        """Start it."""
        command = [sys.executable, "-m", "streams.cli", "rescale", "--shards", str(self.target), "--yes"]
        self._process = ManagedProcess(
            command, name="rescale", log_path=self._log_path, env=self._environment, orphan_grace_s=0
        )

    @property
    def is_done(self) -> bool:
        """Whether it has ended with 0; if it has ended otherwise it is typed again."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return False
        self.codes.append(code)
        if code:
            self.type()
        return code == 0

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()

    def pause(self) -> None:
        """It begins no other step until :meth:`resume`."""
        assert self._process is not None
        self._process.pause()

    def resume(self) -> None:
        assert self._process is not None
        self._process.resume()


def rescale(strike: "Strike") -> str:
    """Change the number of shards, strike while accounts move, and bring the change to its end.

    Raises:
        NotInjected: nobody was struck. NotInTime: the change does not come to its end.
    """
    pipeline = strike.pipeline
    command, began = RescaleCommand(pipeline), time.time()
    command.type()
    try:
        whom = STRIKES[strike.fault.whom](strike, command)
        pipeline.wait(lambda: command.is_done, f"{command.target} shards", CHANGED_WITHIN_S)
    finally:
        command.kill()
    ended = time.time()
    silent_s = pipeline.load.commands_appended.longest_s(began, ended)
    read_s = pipeline.load.commands_read.longest_s(began, ended)
    return (
        f"{command.shards} to {command.target} shards in {ended - began:.1f} s, commands silent {silent_s:.1f} s "
        f"(read {read_s:.1f} s), the command ended with {command.codes}, {whom}"
    )


def _await_layouts(strike: "Strike", command: RescaleCommand, count: int) -> None:
    strike.until(
        lambda: strike.pipeline.layout.spread.version >= command.version + count,
        f"{count} layouts on the way to {command.target} shards",
    )


def _nobody(strike: "Strike", command: RescaleCommand) -> str:
    return "nobody struck"


def _command(strike: "Strike", command: RescaleCommand) -> str:
    """After the first step."""
    _await_layouts(strike, command, _MOVING + 1)
    strike.happened()
    command.kill()
    return _while_moving(strike, "the command killed")


def _router(strike: "Strike", command: RescaleCommand) -> str:
    """As soon as the routers are to route by a layout that moves accounts."""
    _await_layouts(strike, command, _MOVING)
    router = strike.pipeline.fleet.of("router", "static")[0]
    strike.happened()
    router.kill()
    return _while_moving(strike, f"{router.name} killed")


def _sender(strike: "Strike", command: RescaleCommand) -> str:
    """The engine that sends accounts away, as it does."""
    return _kill_engine_that_says(strike, "accounts_sent")


def _receiver(strike: "Strike", command: RescaleCommand) -> str:
    """The engine that takes accounts in, as it does."""
    return _kill_engine_that_says(strike, "accounts_taken_in")


def _sender_and_command(strike: "Strike", command: RescaleCommand) -> str:
    whom = _sender(strike, command)
    command.kill()
    return f"{whom}, and the command"


def _kill_engine_that_says(strike: "Strike", words: str) -> str:
    engine = _engine_that_says(strike, words)
    strike.happened()
    engine.kill()
    strike.until(lambda: engine.exit_code == KILLED, f"{engine.name} killed")
    return _while_moving(strike, f"{engine.name} killed at {words}")


def _engine_that_says(strike: "Strike", words: str) -> Worker:
    logs = {worker: worker.log_end() for worker in strike.pipeline.fleet.of("engine")}
    said: list[Worker] = []

    def anybody_says() -> bool:
        said[:] = [worker for worker, position in logs.items() if f'"{words}"' in worker.log_since(position)]
        return bool(said)

    strike.until(anybody_says, f"{words} in an engine's log")
    return said[0]


def _guest(strike: "Strike", command: RescaleCommand) -> str:
    """An engine joins while accounts move and leaves before all have moved; no step begins before it has a shard."""
    pipeline, fleet = strike.pipeline, strike.pipeline.fleet
    _await_layouts(strike, command, _MOVING)
    command.pause()
    try:
        strike.happened()
        guest = fleet.add("engine", "engine-guest", "dynamic")
        guest.start()
        strike.until(
            lambda: any(owner == guest.member_name for _, owner in pipeline.claims.values()), f"a claim of {guest.name}"
        )
    finally:
        command.resume()
    _await_layouts(strike, command, _MOVING + 1)
    whom = _while_moving(strike, f"{guest.name} came and went")
    code = guest.terminate()
    fleet.remove(guest)
    return f"{whom} with {code}"


def _kafka(strike: "Strike", command: RescaleCommand) -> str:
    """The broker, which comes back on the same data."""
    _await_layouts(strike, command, _MOVING)
    strike.happened()
    strike.pipeline.kafka.kill()
    strike.pipeline.kafka.start()
    return _while_moving(strike, "the broker killed")


def _redis(strike: "Strike", command: RescaleCommand) -> str:
    """The tables, which come back empty."""
    _await_layouts(strike, command, _MOVING)
    valkey = strike.pipeline.valkey
    strike.happened()
    valkey.kill()
    (valkey.folder / "valkey" / "dump.rdb").unlink(missing_ok=True)
    valkey.start()
    return _while_moving(strike, "Redis killed and back, empty")


def _stopped_router(strike: "Strike", command: RescaleCommand) -> str:
    """A router stands still until the other has its partitions, and then goes on as if it had them."""
    _await_layouts(strike, command, _MOVING)
    router = strike.pipeline.fleet.of("router", "static")[0]
    strike.happened()
    with _standing_still(strike, router):
        whom = _while_moving(strike, f"{router.name} stood still")
        strike.pipeline.await_recovery()
    return f"{whom}, and went on"


def _stopped_sender(strike: "Strike", command: RescaleCommand) -> str:
    """The engine that sends accounts away stands still as it does, until others have its shards, and then goes on."""
    engine = _engine_that_says(strike, "accounts_sent")
    strike.happened()
    name, claims = engine.member_name, strike.pipeline.claims
    with _standing_still(strike, engine):
        whom = _while_moving(strike, f"{engine.name} stood still at accounts_sent")
        strike.pipeline.wait(
            lambda: all(owner != name for _, owner in claims.values()), f"the claims of others on the shards of {name}"
        )
    return f"{whom}, and went on"


@contextlib.contextmanager
def _standing_still(strike: "Strike", worker: Worker) -> Iterator[None]:
    worker.signal(signal.SIGSTOP)
    try:
        strike.until(lambda: worker.stopped, f"{worker.name} standing still")
        yield
    finally:
        worker.signal(signal.SIGCONT)


def _all_connections(strike: "Strike", command: RescaleCommand) -> str:
    """Every connection of the workers is cut at once, at each of the first steps."""
    cut = 0
    for count in range(_MOVING, _MOVING + 2):
        _await_layouts(strike, command, count)
        strike.happened()
        cut += strike.pipeline.proxy.cut_all()
    return _while_moving(strike, f"{cut} connections cut")


def _while_moving(strike: "Strike", whom: str) -> str:
    """That somebody was struck before all accounts had moved."""
    layout = strike.pipeline.layout
    strike.until(lambda: layout.is_moving, "accounts on their way at the strike", 0.0)
    return f"{whom} at step {layout.step}"


STRIKES: dict[str, Callable[["Strike", RescaleCommand], str]] = {
    "nobody": _nobody,
    "command": _command,
    "router": _router,
    "sender": _sender,
    "receiver": _receiver,
    "sender_and_command": _sender_and_command,
    "guest": _guest,
    "kafka": _kafka,
    "redis": _redis,
    "stopped_router": _stopped_router,
    "stopped_sender": _stopped_sender,
    "all_connections": _all_connections,
}
