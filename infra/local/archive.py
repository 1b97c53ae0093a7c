"""Kafka's classes, parsed once and mapped into memory afterwards (class data sharing): 0.6 s to 1.4 s less to start.

The first Kafka of a Java writes the list of the classes it loads; when it is ready, a second Java makes the archive of
them (5 s of one processor) at the lowest priority. It ends with its owner, finished or not: the next run tries again.
"""

import hashlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from infra.local.process import ManagedProcess

_LOWEST_PRIORITY = "19"


class Archive:
    """The archive of ``jars`` for the Java at ``java``, kept in ``cache``. Work in progress is in ``folder``."""

    def __init__(self, java: Path, jars: Sequence[Path], cache: Path, folder: Path) -> None:
        self._java, self._jars, self._folder = java, jars, folder
        self.path = cache / f"classes-{_fingerprint(java, jars)}.jsa"
        self._listed = folder / "classes.loaded"

    def options(self) -> list[str]:
        """For the Java that runs Kafka: use the archive, or list what it would hold."""
        if self.path.exists():
            return ["-Xshare:auto", f"-XX:SharedArchiveFile={self.path}"]
        return [f"-XX:DumpLoadedClassList={self._listed}"]

    def begin(self) -> ManagedProcess | None:
        """Begin to make it of what has been loaded until now; None if it is there or nothing was listed."""
        if self.path.exists() or not self._listed.exists():
            return None
        whole_lines = self._listed.read_bytes().rpartition(b"\n")[0] + b"\n"
        classes, made = self._folder / "classes.list", self._folder / "classes.jsa"
        classes.write_bytes(whole_lines)
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        dump = [str(self._java), "-Xshare:dump", "-XX:+UseSerialGC", "-Xmx512m", f"-XX:SharedClassListFile={classes}"]
        dump += [f"-XX:SharedArchiveFile={made}", "-cp", os.pathsep.join(map(str, self._jars))]
        steps = [shlex.join(["nice", "-n", _LOWEST_PRIORITY, *dump]), shlex.join(["mv", str(made), str(part)])]
        steps.append(shlex.join(["mv", str(part), str(self.path)]))
        return ManagedProcess(
            ["sh", "-c", " && ".join(steps)],
            name="class archive",
            log_path=self._folder / "classes.log",
            folder=self._folder,
            orphan_grace_s=0,
        )


def _fingerprint(java: Path, jars: Sequence[Path]) -> str:
    """Changes with whatever would make the Java refuse the archive."""
    known = hashlib.sha256()
    for path in (java, *jars):
        status = path.stat()
        known.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return known.hexdigest()[:16]
