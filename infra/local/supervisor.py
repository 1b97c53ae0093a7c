"""Runs one command and takes it down with its owner; or removes a folder when its owner has ended.

``supervisor.py run GRACE_S FOLDER COMMAND…`` prints ``pid N`` of the command, or ``error TEXT``, and exits as the
command did (128 + n for signal n). ``supervisor.py remove FOLDER`` waits for the owner and for every command that holds
``FOLDER``, then removes it. Standard input is a pipe whose other end only the owner holds: its end-of-file is the
owner's end, even by kill -9. The command starts with every signal at its default and none blocked, whatever the
owner was started with (``nohup``, a background job). Imports nothing of ours, so that it starts at once in an isolated
interpreter.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

REMOVE_WAIT_S = 30.0
_PR_SET_PDEATHSIG = 1

Child = subprocess.Popen[bytes]


def main(arguments: list[str]) -> int:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # those two are Popen's business
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # a handler, not SIG_IGN, which the command would inherit
    if arguments[0] == "remove":
        return _remove_after_owner(arguments[1])
    return _run(arguments[3:], float(arguments[1]), arguments[2])


def _run(command: list[str], grace_s: float, folder: str) -> int:
    held = _hold(folder)
    try:
        child = _start(command)
    except OSError as error:
        _answer(f"error {error}")
        return 127
    signal.signal(signal.SIGTERM, lambda *_: _signal_group(child, signal.SIGTERM))
    _answer(f"pid {child.pid}")
    threading.Thread(target=_end_with_owner, args=(child, grace_s), daemon=True).start()
    code = child.wait()
    _signal_group(child, signal.SIGKILL)  # what it may have started itself
    if held is not None:
        os.close(held)
    return 128 - code if code < 0 else code


def _start(command: list[str]) -> Child:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    supervisor = os.getpid()

    def die_with_supervisor() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != supervisor:
                os._exit(1)

    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=die_with_supervisor,  # noqa: PLW1509 - there is no other thread yet
    )


def _answer(text: str) -> None:
    """One line to the owner, who may be gone already."""
    with contextlib.suppress(OSError):
        os.write(1, text.replace("\n", " ").encode() + b"\n")


def _await_owner() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass


def _end_with_owner(child: Child, grace_s: float) -> None:
    _await_owner()
    if grace_s > 0:
        _signal_group(child, signal.SIGCONT)
        _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while child.returncode is None and time.monotonic() < deadline:
            time.sleep(0.02)
    _signal_group(child, signal.SIGKILL)


def _signal_group(child: Child, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _hold(folder: str) -> int | None:
    """A shared lock on ``folder`` that whoever removes it waits for; None where that is not possible."""
    with contextlib.suppress(OSError):
        held = os.open(folder, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return held
    return None


def _remove_after_owner(folder: str) -> int:
    _answer("pid 0")
    _await_owner()
    _await_commands(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return int(os.path.exists(folder))


def _await_commands(folder: str) -> None:
    deadline = time.monotonic() + REMOVE_WAIT_S
    with contextlib.suppress(FileNotFoundError):
        lock = os.open(folder, os.O_RDONLY)
        while time.monotonic() < deadline:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.01)


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
