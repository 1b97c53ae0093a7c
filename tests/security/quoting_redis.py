"""A server that answers every command as an old Redis answers one that it does not know: it quotes the arguments."""

import contextlib
import socket
import threading
from typing import Self


class QuotingRedis:
    """Listens on 127.0.0.1:``port``. Use as a context manager. ``quoted`` is all that it has said."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.quoted = ""
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._accepting.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as lines, contextlib.suppress(OSError, ValueError):
            while header := lines.readline():
                words = []
                for _ in range(int(header[1:])):
                    size = int(lines.readline()[1:])
                    words.append(lines.read(size + 2)[:-2].decode(errors="replace"))
                quoted = " ".join(f"'{word}'" for word in words[1:])
                answer = f"-ERR unknown command '{words[0]}', with args beginning with: {quoted}\r\n"
                self.quoted += answer
                client.sendall(answer.encode())
