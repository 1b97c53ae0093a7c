"""TLS in front of a server that has none: the Valkey in the wheel is built without it."""

import contextlib
import socket
import ssl
import threading
from pathlib import Path
from typing import Self

from infra.local.ports import free_port
from tests.security.certificates import Identity

_BYTES = 65_536


class TlsFront:
    """Listens on 127.0.0.1:``port`` with ``identity``, and passes on what it decrypts to 127.0.0.1:``upstream``.

    With ``clients`` a client must show a certificate of that authority, as Redis asks by default. ``accepted`` counts
    the clients that were let in.
    """

    def __init__(self, upstream: int, identity: Identity, clients: Path | None) -> None:
        self.port, self.accepted = free_port(), 0
        self._upstream = upstream
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(identity.certificate, identity.key)
        if clients is not None:
            self._context.load_verify_locations(clients)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._listening = socket.create_server(("127.0.0.1", self.port))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join()
        with self._lock:
            for each in self._open:
                _end(each)

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        plain.settimeout(10)
        try:
            client = self._context.wrap_socket(plain, server_side=True)
        except OSError:  # no TLS, or no certificate that counts
            plain.close()
            return
        client.settimeout(None)
        with client, socket.create_connection(("127.0.0.1", self._upstream)) as server:
            with self._lock:
                self.accepted += 1
                self._open |= {client, server}
            back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
            back.start()
            _pass_on(client, server)
            back.join()
            with self._lock:
                self._open -= {client, server}


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_BYTES):
            target.sendall(data)
    _end(source)
    _end(target)


def _end(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
