"""The bytes of a frame: those of the codec, of a thousand symbols too, and no more than aiokafka sends."""

from schemas.codec import MESSAGE_BYTES_MAX, encode
from schemas.messages import Mark, MarkFrame
from schemas.types import Uncounted
from streams.oracle.faust_app import faust_app
from streams.oracle.frames import encoded_frame
from streams.settings import load

NOW = 1_700_000_000_000_000
LONGEST = "123456789012345678.123456789012345678"


def frame_of(symbols: int) -> MarkFrame:
    """Marks of three sources each, with long names and the longest prices."""
    marks = tuple(
        Mark(
            symbol=f"SYMBOL-{number:04d}-PERPETUAL",
            price=LONGEST,
            status="live",
            publish_time=NOW,
            sources={f"a-source-of-prices-{source}": LONGEST for source in "abc"},
        )
        for number in range(symbols)
    )
    uncounted: dict[str, dict[str, Uncounted]] = {mark.symbol: {"another-source": "silent"} for mark in marks}
    return MarkFrame(time=NOW, marks=marks, full=True, epoch=7, scales={"instrument:X": "1.5"}, uncounted=uncounted)


def test_the_bytes_are_those_of_the_codec() -> None:
    for frame in (frame_of(0), frame_of(3), MarkFrame(time=NOW, marks=frame_of(2).marks)):
        assert encoded_frame(frame) == encode(frame)


def test_a_full_frame_of_a_thousand_symbols_says_all() -> None:
    frame = frame_of(1_000)
    assert encoded_frame(frame) == encode(frame)


def test_what_a_message_may_hold_the_client_sends() -> None:
    conf = faust_app(load({"MARGIN_KAFKA__BOOTSTRAP_SERVERS": "a:1"})).conf
    assert conf.producer_max_request_size > MESSAGE_BYTES_MAX + 1_000
    assert conf.producer_max_batch_size < MESSAGE_BYTES_MAX, "a request holds a batch, and a broker takes no larger one"
