"""The pipeline without a broker: Kafka, Redis and time in memory, deterministic, for tests and for dry runs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streams.memory.pipeline import Pipeline, WrittenRecord

__all__ = ["Pipeline", "WrittenRecord"]


def __getattr__(name: str) -> Any:
    """The pipeline is imported when it is asked for: its parts are used by themselves, too."""
    if name not in __all__:
        raise AttributeError(name)
    from streams.memory import pipeline

    return getattr(pipeline, name)
