"""Kafka's jars in the user's cache folder: resolved and downloaded once, by one process at a time.

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
_LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3!"  # without it the server logs nothing; ! is "no BOM"
_ATTEMPTS = 3
_INSTEAD = "or give the demo a Kafka that runs already: --bootstrap-servers"

Progress = Callable[[str], None]


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
    """The jars, from the cache or by a download of about 45 MB.

    Raises:
        MissingError: they cannot be had.
    """
    folder = cache_folder() / f"kafka-{KAFKA_VERSION}"
    jars = _complete(folder)
    if jars is not None:
        return jars
    with _locked(folder.parent, progress):
        jars = _complete(folder)  # another process may have brought them meanwhile
        if jars is None:
            progress(f"resolving Apache Kafka {KAFKA_VERSION} (once, about 45 MB)")
            _bring(folder)
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
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise MissingError(f"the cache cannot be written ({error}): set XDG_CACHE_HOME to a folder that can") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that is bringing Kafka")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _bring(folder: Path) -> None:
    """Download into a folder of its own beside ``folder``, and rename when all is there."""
    work = Path(tempfile.mkdtemp(prefix="bringing-", dir=folder.parent))
    try:
        ready = work / "ready"
        ready.mkdir()
        for jar in _download(work):
            jar.replace(ready / jar.name)
        jars = sorted(ready.glob("*.jar"))
        (ready / "classpath").write_text("".join(f"{jar.name} {jar.stat().st_size}\n" for jar in jars))
        shutil.rmtree(folder, ignore_errors=True)
        ready.rename(folder)
    except OSError as error:
        raise MissingError(f"Kafka's jars cannot be put into {folder}: {error}; free some space, {_INSTEAD}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(work: Path) -> list[Path]:
    try:
        from jgo import EnvironmentBuilder, LinkStrategy, MavenContext
    except ImportError:
        raise MissingError(
            "Kafka's jars are not in the cache and jgo is not installed: `pip install 'margin-clearing[local]'`, "
            f"{_INSTEAD}"
        ) from None
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            context = MavenContext(repo_cache=work / "maven", timeout=30)
            builder = EnvironmentBuilder(context=context, cache_dir=work / "jgo", link_strategy=LinkStrategy.COPY)
            return list(builder.from_endpoint(f"{_KAFKA}+{_LOGGING}").all_jars)
        except Exception as error:  # whatever a resolver and a network can do wrong; what came is kept for the next
            if attempt == _ATTEMPTS:
                raise MissingError(
                    f"Apache Kafka {KAFKA_VERSION} could not be downloaded: {error}; check the network and its proxy "
                    f"settings, {_INSTEAD}"
                ) from error
    raise AssertionError("unreachable")
