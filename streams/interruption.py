"""Ends a process soon after SIGINT or SIGTERM, also while its main thread waits in a C library.

Python runs a signal's handler in the main thread, and only between two of its instructions: a client library that
waits for a server half a minute makes Ctrl-C wait as long. Within :func:`prompt` the signal is also seen by a thread of
its own, which ends the process when the main thread has not done so by itself. It is for what only reads, or has not
begun to write.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_S = 0.25
"""How long the main thread may take to unwind by itself."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def prompt() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM end the process with exit code 128 + the signal's number.

    A signal that was ignored when the process started stays ignored. Only for the main thread.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    taken = [number for number in _SIGNALS if before[number] is not signal.SIG_IGN]
    told, tell = socket.socketpair()
    tell.setblocking(False)
    fd_before = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    ended = threading.Event()
    threading.Thread(target=_end_late, args=(told, taken, ended), name="interruption", daemon=True).start()
    caught: list[int] = []

    def unwind(number: int, _: FrameType | None) -> None:
        caught.append(number)
        raise _Interrupted(128 + number)

    for number in taken:
        signal.signal(number, unwind)
    try:
        yield
    except BaseException:
        if caught:
            # A library may have made another error of it. The thread stays: what comes now may wait for a server, too.
            raise _Interrupted(128 + caught[0]) from None
        ended.set()
        raise
    else:
        ended.set()
    finally:
        for number in taken:
            signal.signal(number, before[number])
        signal.set_wakeup_fd(fd_before)
        tell.close()  # ends the thread


class _Interrupted(SystemExit):
    """Unwinds the main thread; click and typer let it through."""


def _end_late(told: socket.socket, taken: list[signal.Signals], ended: threading.Event) -> None:
    with told:
        while data := told.recv(1):
            if data[0] in taken:
                break
        else:
            return
    if ended.wait(GRACE_S):
        return
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # a progress bar hides the cursor
    os._exit(128 + data[0])
