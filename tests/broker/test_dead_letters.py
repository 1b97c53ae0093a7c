"""A dead letter fits its topic whatever the record was, and says what it lacks."""

from hashlib import sha256

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.headers import SUSPENDED_BYTES_MAX
from schemas.topics import PRICES, RECORD_BYTES_MAX, TRADES, all_topics
from streams.broker.dead_letters import DEAD_LETTER_BYTES_MAX, DeadLetter, dead_letter
from tests.properties import examples

FRAMING_MAX = 100
"""A batch of one record: 61 bytes, and at most 40 of lengths."""


def size(letter: DeadLetter) -> int:
    """Bytes on the wire, more than a producer or a broker counts."""
    headers = sum(len(name) + len(value) + 10 for name, value in letter.headers)
    return len(letter.key or b"") + len(letter.value or b"") + headers + FRAMING_MAX


SIZES = st.sampled_from((0, 1, 7_999, DEAD_LETTER_BYTES_MAX - 1, DEAD_LETTER_BYTES_MAX, 1_048_588, 3_000_000))


@settings(max_examples=examples(60), deadline=None)
@given(
    key=st.none() | SIZES,
    value=st.none() | SIZES,
    reason=st.text(max_size=50) | st.just("\ud800") | st.just("x" * 1_000_000),
    accounts=st.none() | st.sampled_from((0, 1, 100, 100_000)),
    all_told=st.booleans(),
)
def test_it_fits_and_is_whole_or_says_what_is_cut(
    key: int | None, value: int | None, reason: str, accounts: int | None, all_told: bool
) -> None:
    key_bytes, value_bytes = (None if length is None else b"x" * length for length in (key, value))
    suspended = None if accounts is None else [f"account-{'9' * 100}-{n}" for n in range(accounts)]
    letter = dead_letter(
        TRADES, 0, 1, 2, key_bytes, value_bytes, "DecodeError", reason, suspended=suspended, all_told=all_told
    )
    assert size(letter) <= RECORD_BYTES_MAX
    about = dict(letter.headers)
    assert (about["dlq.topic"], about["dlq.partition"], about["dlq.offset"]) == (TRADES.encode(), b"0", b"1")
    if "dlq.cut" in about:
        assert int(about["dlq.cut"]) == (key or 0) + (value or 0)
        assert about["dlq.sha256"] == sha256(value_bytes or b"").hexdigest().encode()
        assert (letter.key is None, letter.value is None) == (key is None, value is None)
        assert len(letter.key or b"") + len(letter.value or b"") > 800_000, "no more than must be is cut"
    else:
        assert (letter.key, letter.value) == (key_bytes, value_bytes)
    if suspended is not None:
        named = orjson.loads(about["dlq.suspended"])
        assert named == suspended[: len(named)]
        assert len(about["dlq.suspended"]) <= SUSPENDED_BYTES_MAX + 2
        assert int(about.get("dlq.suspended_count", len(named))) == len(suspended)


def test_what_fits_is_whole_up_to_the_byte() -> None:
    for length, is_cut in ((DEAD_LETTER_BYTES_MAX, False), (DEAD_LETTER_BYTES_MAX + 1, True)):
        letter = dead_letter(PRICES, 0, 0, 0, None, b"x" * length, "DecodeError", "why")
        assert ("dlq.cut" in dict(letter.headers)) == is_cut


@pytest.mark.parametrize("topic", [topic for topic in all_topics() if topic.compression is not None])
def test_every_topic_that_is_written_here_must_take_it(topic: object) -> None:
    assert topic.at_least() == {"max.message.bytes": RECORD_BYTES_MAX}  # type: ignore[attr-defined]
    assert topic.config()["max.message.bytes"] == str(RECORD_BYTES_MAX)  # type: ignore[attr-defined]
