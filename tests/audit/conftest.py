"""Scripts that begin for every test anew."""

from collections.abc import Iterator

import pytest

from tests.audit.scripts import Script, liquidated


@pytest.fixture
def script() -> Iterator[Script]:
    """An engine that owns the shard of a market in which nothing has happened."""
    with Script() as new_script:
        yield new_script.begin()


@pytest.fixture
def liquidation(script: Script) -> Script:
    """A script in which Alice was commanded to reduce."""
    liquidated(script)
    return script
