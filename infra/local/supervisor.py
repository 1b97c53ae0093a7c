"""Runs one command and takes it down with its owner: ``python -m infra.local.supervisor [--remove DIR] [-- COMMAND…]``.

Standard input is a pipe whose other end only the owner holds, so its end-of-file is the owner's end, even by kill -9.
Then the command's process group is terminated, killed if it stays, and ``DIR`` is removed. Prints the command's
process id in its first line and exits as the command did. Imports nothing of ours, so that it starts at once.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    remove = arguments[1] if arguments[:1] == ["--remove"] else None
    command = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    child = _start(command) if command else None
    print(child.pid if child else 0, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: _signal_group(child, signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if child is None:
        _await_owner()
        code = 0
    else:
        threading.Thread(target=_end_with_owner, args=(child,), daemon=True).start()
        code = child.wait()
        _signal_group(child, signal.SIGKILL)
    if remove:
        _remove(remove)
    return 128 - code if code < 0 else code


def _start(command: list[str]) -> "subprocess.Popen[bytes]":
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def die_with_supervisor() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=die_with_supervisor,  # noqa: PLW1509 (no thread runs yet)
    )


def _await_owner() -> None:
    while os.read(0, 4096):
        pass


def _end_with_owner(child: "subprocess.Popen[bytes]") -> None:
    _await_owner()
    _signal_group(child, signal.SIGCONT)
    _signal_group(child, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while child.returncode is None and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal_group(child, signal.SIGKILL)


def _signal_group(child: "subprocess.Popen[bytes] | None", number: int) -> None:
    if child is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)


def _remove(folder: str) -> None:
    """Others may still be writing for a moment: try until it is gone."""
    deadline = time.monotonic() + 2 * GRACE_S
    while os.path.exists(folder) and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
