"""What can go wrong with the demo itself. Each text says what was wrong, where, and what to do."""

from streams.errors import MarginClearingError


class DemoError(MarginClearingError):
    """The demo cannot go on: a process ended, a wait took too long, or what was asked for makes no sense."""


class OccupiedError(DemoError):
    """The Kafka or Redis that was given holds something of the contract that is not the demo's own."""


class RecordingError(DemoError):
    """A recording cannot be used; the text names the file, and the line and field where there is one."""
