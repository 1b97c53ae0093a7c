"""What can go wrong with the local stack.

    LocalStackError
    ├── MissingError      something it needs is not installed, cannot be downloaded, or its place is taken
    ├── StartError        a process did not start or did not become ready; shows the end of its log
    └── StillRunning      a process did not end in time

Messages say what was wrong and what to do.
"""


class LocalStackError(Exception):
    """The local Kafka or Valkey cannot be had, did not start or did not end."""


class MissingError(LocalStackError):
    """A program, a download, a port or a folder that is needed cannot be had."""


class StartError(LocalStackError):
    """A process did not start, ended while starting, or did not become ready in time."""


class StillRunning(LocalStackError):
    """A process was waited for and had not ended in time."""
