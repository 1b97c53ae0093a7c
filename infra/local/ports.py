"""Ports of the loopback interface for servers that clients will reconnect to.

They are taken from below the range the system hands to outgoing connections. Otherwise a client that retries while its
server is down may be given the server's own port, and then the server cannot come back.
"""

import random
import socket
from pathlib import Path

PORT_MAX = 65_535
_FIRST = 20_000
_OUTGOING_FIRST_USUAL = 32_768
_ATTEMPTS = 200
_draw = random.SystemRandom()  # others seed the shared generator, and would draw the same ports again
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on now and that this process was not given before: its server may not listen yet."""
    beyond = _outgoing_first()
    for _ in range(_ATTEMPTS if beyond > _FIRST else 0):
        port = _draw.randrange(_FIRST, beyond)
        if port not in _given and is_free(port):
            _given.add(port)
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could listen on ``port`` of 127.0.0.1 now."""
    return refusal(port) is None


def refusal(port: int) -> str | None:
    """Why no server could listen on ``port`` of 127.0.0.1 now, in the system's words; None if one could."""
    if not 0 <= port <= PORT_MAX:
        return f"a port is from 0 to {PORT_MAX}, and 0 takes a free one"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def _outgoing_first() -> int:
    """The first port that the system gives to outgoing connections."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _OUTGOING_FIRST_USUAL
