"""What an invariant says when it does not hold."""

from collections.abc import Callable

from streams.memory.scheduler import Violation


def require(holds: bool, invariant: str, detail: Callable[[], str] = str) -> None:
    """Raise that ``invariant`` does not hold.

    Raises:
        Violation: it does not.
    """
    if not holds:
        raise Violation(f"{invariant}: {detail()}")
