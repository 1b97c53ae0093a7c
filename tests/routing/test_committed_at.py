"""What stands beside an offset: ours is read again, and whatever else stands there is nobody's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.routing.committed_at import CommittedAt

KAFKAS_ID = st.text(alphabet=st.sampled_from("ABCabc019-_+/"), min_size=22, max_size=22)


@given(topic_id=KAFKAS_ID, epoch=st.none() | st.integers(min_value=0, max_value=2**31 - 1))
def test_what_a_router_writes_is_read_again(topic_id: str, epoch: int | None) -> None:
    written = CommittedAt(topic_id, epoch)
    assert CommittedAt.parse(written.text()) == written


def test_its_form() -> None:
    assert CommittedAt("dwMSi1KKRNa01omxhWZl7g", 3).text() == "margin:1:dwMSi1KKRNa01omxhWZl7g:3"
    assert CommittedAt("dwMSi1KKRNa01omxhWZl7g").text() == "margin:1:dwMSi1KKRNa01omxhWZl7g"


@given(text=st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_what_another_wrote_is_not_ours(text: str) -> None:
    assert CommittedAt.parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        None, "", "margin", "margin:1", "margin:1:", "margin:1::0", "margin:2:an-id:0", "margin:1:an-id:", "x",
        "margin:1:an-id:-1", "margin:1:an-id:1:2", "margin:1:an-id:1\n", " margin:1:an-id", "Margin:1:an-id",
        "margin:1:an id", "margin:1:an-id:1x", "margin:1:an-id:٣", "margin:1:" + "x" * 101,
        "margin:1:an-id:" + "9" * 11, "margin:1:é", "margin:1:an-id:\x00", "margin:1:an-id\x00",
    ],
)  # fmt: skip
def test_what_only_looks_like_ours_is_not(text: str | None) -> None:
    assert CommittedAt.parse(text) is None


@given(text=st.from_regex(r"margin:1:[A-Za-z0-9+/=._\-]*(:[0-9]*)?.?", fullmatch=True))
def test_what_is_ours_says_one_thing(text: str) -> None:
    read = CommittedAt.parse(text)
    assert read is None or CommittedAt.parse(read.text()) == read
