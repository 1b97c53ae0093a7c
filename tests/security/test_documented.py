"""The table of permissions in README.md can be granted as it stands."""

from collections import Counter

import pytest

from tests.security.documented import bindings, permissions


@pytest.mark.parametrize("who", sorted({who for who, *_ in permissions()}))
def test_nobody_is_allowed_one_thing_twice(who: str) -> None:
    granted = Counter(
        (each.restype, each.name, each.resource_pattern_type, each.operation) for each in bindings(who, "x")
    )
    assert [each for each, times in granted.items() if times > 1] == []
