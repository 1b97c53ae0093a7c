"""What a bench does beside what it measures, in a thread of its own, while it is entered."""

import threading
from abc import ABC, abstractmethod
from typing import Self


class Background(ABC):
    """Runs :meth:`_run` from when it is entered until it is left, which waits for its end."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @abstractmethod
    def _run(self) -> None:
        """Go on until ``_stop`` is set."""
