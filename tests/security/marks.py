"""The mark that every secret of these tests holds, and where it must not be."""

import base64
from collections.abc import Iterator

import pytest

MARK = "Mrk9Qz"


def assert_untold(text: str, where: str) -> None:
    """Fail if ``text`` holds any part of a secret, plain or encoded."""
    for form in _forms():
        if form in text:
            at = text.index(form)
            pytest.fail(f"{where} tells a secret: {text[max(0, at - 300) : at + 100]}")


def _forms() -> Iterator[str]:
    """The mark, and what base64 makes of it at each place that it can have."""
    yield MARK
    for before in range(3):
        encoded = base64.b64encode(b"x" * before + MARK.encode()).decode()
        yield encoded[4 if before else 0 : len(encoded) - 4]
