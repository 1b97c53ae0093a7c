"""The servers, started once for all tests here."""

from collections.abc import Iterator

import pytest

from tests.security.documented import redis_rules
from tests.security.servers import Servers


@pytest.fixture(scope="package")
def servers() -> Iterator[Servers]:
    with Servers(redis_rules()) as running:
        yield running
