"""Jars in the user's cache folder, Kafka's above all: resolved and downloaded once, by one process at a time.

A folder of jars is complete when its ``classpath`` file lists them and each is there with its size. Then nothing is
resolved and the network is not touched. Folders appear by renaming, so a half one is never seen.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.local.errors import MissingError

KAFKA_VERSION = "4.1.2"
_KAFKA = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3!"  # without it nothing is logged; ! is "no BOM"
_ATTEMPTS = 3
_INSTEAD = "or give the demo a Kafka that runs already: --bootstrap-servers"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """Jars by their Maven coordinates (joined by ``+``) with all that they need, about ``megabytes`` of them.

    ``folder`` is their place in the cache; ``instead`` is what to do if they cannot be had.
    """

    name: str
    folder: str
    coordinates: str
    megabytes: int
    instead: str


KAFKA = Wanted(f"Apache Kafka {KAFKA_VERSION}", f"kafka-{KAFKA_VERSION}", f"{_KAFKA}+{LOGGING}", 45, _INSTEAD)


@dataclass(frozen=True)
class KafkaJars:
    """A complete folder, and the jars in it in the order of the class path."""

    folder: Path
    jars: tuple[Path, ...]

    @property
    def classpath(self) -> str:
        return os.pathsep.join(map(str, self.jars))


def cache_folder() -> Path:
    """Where downloads are kept between runs: ``margin-clearing`` in ``XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        MissingError: neither names a folder: the user has no home.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError as error:
        raise MissingError(f"there is no folder for the cache ({error}): set XDG_CACHE_HOME to one") from None
    return Path(base) / "margin-clearing"


def kafka_jars(progress: Progress) -> KafkaJars:
    """The jars of the broker, from the cache or by a download of about 45 MB.

    Raises:
        MissingError: they cannot be had.
    """
    return cached_jars(KAFKA, progress)


def cached_jars(wanted: Wanted, progress: Progress) -> KafkaJars:
    """The jars, from the cache or by a download.

    Raises:
        MissingError: they cannot be had.
    """
    folder = cache_folder() / wanted.folder
    jars = _complete(folder)
    if jars is not None:
        return jars
    with locked(folder.parent, wanted.name, progress):
        jars = _complete(folder)  # another process may have brought them meanwhile
        if jars is None:
            progress(f"resolving {wanted.name} (once, about {wanted.megabytes} MB)")
            _bring(folder, wanted)
            jars = _complete(folder)
    if jars is None:
        raise MissingError(f"{folder} was changed while it was filled: remove it and start again")
    return jars


def _complete(folder: Path) -> KafkaJars | None:
    try:
        lines = (folder / "classpath").read_text().splitlines()
        jars = []
        for line in lines:
            name, _, size = line.rpartition(" ")
            if (folder / name).stat().st_size != int(size):
                return None
            jars.append(folder / name)
    except (OSError, ValueError):
        return None
    return KafkaJars(folder, tuple(jars)) if jars else None


@contextlib.contextmanager
def locked(folder: Path, name: str, progress: Progress) -> Iterator[None]:
    """The cache's ``folder``, for one process at a time.

    Raises:
        MissingError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise MissingError(f"the cache cannot be written ({error}): set XDG_CACHE_HOME to a folder that can") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process that is bringing what is missing; then {name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _bring(folder: Path, wanted: Wanted) -> None:
    """Download into a folder of its own beside ``folder``, and rename when all is there."""
    work = Path(tempfile.mkdtemp(prefix="bringing-", dir=folder.parent))
    try:
        ready = work / "ready"
        ready.mkdir()
        for jar in _download(work, wanted):
            jar.replace(ready / jar.name)
        jars = sorted(ready.glob("*.jar"))
        (ready / "classpath").write_text("".join(f"{jar.name} {jar.stat().st_size}\n" for jar in jars))
        shutil.rmtree(folder, ignore_errors=True)
        ready.rename(folder)
    except OSError as error:
        raise MissingError(
            f"the jars of {wanted.name} cannot be put into {folder}: {error}; free some space, {wanted.instead}"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(work: Path, wanted: Wanted) -> list[Path]:
    try:
        from jgo import EnvironmentBuilder, LinkStrategy, MavenContext
    except ImportError:
        raise MissingError(
            f"the jars of {wanted.name} are not in the cache and jgo is not installed: "
            f"`pip install 'margin-clearing[local]'`, {wanted.instead}"
        ) from None
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            context = MavenContext(repo_cache=work / "maven", timeout=30)
            builder = EnvironmentBuilder(context=context, cache_dir=work / "jgo", link_strategy=LinkStrategy.COPY)
            return list(builder.from_endpoint(wanted.coordinates).all_jars)
        except Exception as error:  # whatever a resolver and a network can do wrong; what came is kept for the next
            if attempt == _ATTEMPTS:
                raise MissingError(
                    f"{wanted.name} could not be downloaded: {error}; check the network and its proxy settings, "
                    f"{wanted.instead}"
                ) from error
    raise AssertionError("unreachable")
