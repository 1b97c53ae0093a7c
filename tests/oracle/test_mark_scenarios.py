"""The rules of a mark as stories: each line is a moment, the prices that come then, and the mark after it.

``100  a=150 b=150  -> halted 100`` reads: 100 ms after the start the sources a and b say 150; the mark is halted at
100. ``a=150@-2000`` was published 2,000 ms before it came, ``a=150#7`` has the sequence 7, ``a=150~2`` is sure to 2.
``none`` is no mark. Without other rules there are the sources a, b and c of weight 1, of which two must agree.
"""

import re
from dataclasses import dataclass
from typing import Any

import pytest

from schemas.codec import Decoder, encode
from schemas.messages import OraclePrice
from schemas.parameters import OracleParameters
from streams.oracle.marks import MarkBook, SymbolState

T0 = 1_700_000_000_000_000
_PRICE = re.compile(r"(\w+)=([0-9.]+)(?:@(-?\d+))?(?:#(\d+))?(?:~([0-9.]+))?").fullmatch
_STATE = Decoder[SymbolState](SymbolState)


@dataclass(frozen=True)
class Story:
    lines: str
    rules: dict[str, Any]


def story(lines: str, **rules: Any) -> Story:
    return Story(lines, rules)


ONE = {"sources": {"a": "1"}, "minimum_sources": 1}
TWO = {"sources": {"a": "1", "b": "1"}, "minimum_sources": 1}

STORIES = {
    # --- the mark
    "of two sources neither wins": story(
        """
        0     a=100 b=100   -> live 100
        10    b=96          -> live 98
        20    b=95.23       -> stale 98
        30    b=104         -> live 102
        40    b=105         -> live 102.5
        50    b=105.01      -> stale 102.5
        """,
        **TWO,
    ),
    "the width of the medians is measured by the lower one": story(
        "0 a=100 b=105 -> live 102.5\n10 a=99.99 -> stale 102.5", **TWO
    ),
    "half of the fresh weight is no majority": story(
        """
        0     a=100 b=100 c=100 d=100   -> live 100
        10    d=130                     -> live 100
        20    c=130                     -> stale 100
        30    c=101                     -> live 100.5
        """,
        sources={"a": "1", "b": "1", "c": "1", "d": "1"},
        minimum_sources=2,
    ),
    "half of the fresh weight around the mark is no majority": story(
        "0 a=90 b=100 c=111 -> none\n10 a=99 -> live 100",
        sources={"a": "1", "b": "2", "c": "1"},
        minimum_sources=1,
    ),
    "sources between the others may be no majority": story(
        "0 a=90 b=100 c=111 -> none\n10 a=99 -> live 100",
        minimum_sources=1,
    ),
    "weight decides, not number": story(
        """
        0     a=100 b=109 c=109   -> live 100
        10    a=109               -> live 109
        """,
        sources={"a": "3", "b": "1", "c": "1"},
        minimum_sources=1,
    ),
    "a heavy source alone is too few": story(
        "0 a=100 b=120 c=120 -> none", sources={"a": "3", "b": "1", "c": "1"}, minimum_sources=2
    ),
    "one fresh source is enough where one must agree": story(
        """
        0     a=100 b=101   -> live 100.5
        4000  a=100         -> live 100.5
        5001                -> live 100
        9001                -> stale 100
        """,
        **TWO,
    ),
    "one fresh source is not enough where two must agree": story(
        "0 a=100 b=100 c=100 -> live 100\n4000 a=100 -> live 100\n5001 -> stale 100"
    ),
    "an unsure source does not count": story(
        """
        0     a=100 b=100~1 c=104~1     -> live 100
        10    b=100~1.01                -> live 102
        20    c=104~1.05                -> stale 102
        30    b=100~0.9                 -> live 100
        """
    ),
    "without a last live mark there is none": story("0 a=100 -> none\n10 b=110 -> none\n20 c=110 -> live 110"),
    # --- who is heard
    "a source that counts anew is heard when it is much later": story(
        """
        0      a=100#90   -> live 100
        5000   a=101#1    -> live 100
        5001   a=101#2    -> live 101
        5002   a=102#1    -> live 101
        5003   a=102#3    -> live 102
        """,
        **ONE,
    ),
    "a source that sends one number always is heard when it is much later": story(
        "0 a=100#0 -> live 100\n5000 a=101#0 -> live 100\n5001 a=101#0 -> live 101", **ONE
    ),
    "an old price of a higher sequence cannot keep the new count out for long": story(
        """
        0      a=100#90          -> live 100
        9000   a=101#1           -> live 101
        9100   a=99@-9000#91     -> stale 101
        9200   a=102#2           -> live 102
        """,
        **ONE,
    ),
    "a clock that is behind never counts": story(
        "0 a=100 b=100@-5001 -> none\n100 b=100@-5001 -> none\n200 b=100@-5000 -> live 100"
    ),
    "a clock that is ahead does not make a price last longer": story(
        """
        0      a=100@5000 b=100@5001   -> live 100
        5000                           -> live 100
        5001                           -> stale 100
        """,
        **TWO,
    ),
    # --- jumps
    "a jump is halted, and over when the price is back": story(
        """
        0      a=100 b=100 c=100   -> live 100
        100    a=115 b=115         -> halted 100
        200    a=110 b=110         -> live 110
        300    a=122 b=122         -> halted 110
        """
    ),
    "a level shown by more than half of the weight is live": story(
        """
        0      a=100 b=100 c=100   -> live 100
        100    a=150 b=150         -> halted 100
        599    a=150 b=150         -> halted 100
        600    a=150               -> halted 100
        601    b=151               -> live 150
        """
    ),
    "prices that come at once show nothing however far apart they were published": story(
        """
        0      a=100 b=100 c=100         -> live 100
        4000   a=150@-3000 b=150@-3000   -> halted 100
        4001   a=150 b=150               -> halted 100
        4500   a=150 b=150@-1            -> halted 100
        4501   b=150                     -> live 150
        """
    ),
    "a clock that is ahead shows no level early": story(
        "0 a=100 b=100 c=100 -> live 100\n100 a=150@4000 b=150@4000 -> halted 100\n"
        "599 a=150@4000 b=150@4000 -> halted 100\n600 a=150@4000 b=150@4000 -> live 150"
    ),
    "a source that left the level does not show it any more": story(
        """
        0      a=100 b=100 c=100         -> live 100
        100    a=150 b=150               -> halted 100
        200    c=150                     -> halted 100
        300    b=130                     -> halted 100
        310    b=150                     -> halted 100
        600    a=150 b=150               -> halted 100
        601    c=150                     -> live 150
        """
    ),
    "what was published before the level began is not since": story(
        """
        0      a=100 b=100 c=100         -> live 100
        100    a=150 b=150               -> halted 100
        100    c=100                     -> halted 100
        150    c=100@-51                 -> halted 100
        700    a=150 c=150               -> live 150
        """
    ),
    "what a source has shown stays shown": story(
        """
        0      a=100 b=100 c=100         -> live 100
        100    a=150 b=150               -> halted 100
        650    b=150                     -> halted 100
        660    b=150@-100                -> halted 100
        670    a=150                     -> live 150
        """
    ),
    "half of the configured weight shows nothing": story(
        """
        0      a=100 b=100 c=100 d=100   -> live 100
        4000   a=150 b=150               -> stale 100
        5001                             -> halted 100
        5600   a=150 b=150               -> halted 100
        9000   a=150 b=150               -> halted 100
        10001                            -> live 150
        """,
        sources={"a": "1", "b": "1", "c": "1", "d": "1"},
        minimum_sources=2,
    ),
    "one source shows nothing however heavy": story(
        """
        0      a=100 b=100   -> live 100
        100    a=150         -> halted 100
        1000   a=150         -> halted 100
        1100   b=150         -> live 150
        """,
        sources={"a": "3", "b": "1"},
        minimum_sources=1,
    ),
    "an unsure source shows nothing": story(
        """
        0      a=100 b=100 c=100   -> live 100
        100    a=150 b=150 c=150   -> halted 100
        700    a=150 b=150~2       -> halted 100
        710    b=150@-111          -> halted 100
        800    b=150               -> live 150
        """,
        sources={"a": "1", "b": "1", "c": "1"},
        minimum_sources=1,
    ),
    "a single source waits until the level has lasted": story(
        """
        0      a=100   -> live 100
        100    a=150   -> halted 100
        3000   a=150   -> halted 100
        5099           -> halted 100
        5100           -> live 150
        """,
        **ONE,
    ),
    "one print does not last": story("0 a=100 -> live 100\n100 a=150 -> halted 100\n5100 -> halted 100", **ONE),
    "a level that is left starts anew": story(
        """
        0      a=100   -> live 100
        100    a=150   -> halted 100
        4900   a=150   -> halted 100
        5050   a=60    -> halted 100
        5110   a=60    -> halted 100
        10049  a=60    -> halted 100
        10050          -> live 60
        """,
        **ONE,
    ),
    "a level that drifts starts anew where it is max_jump from where it began": story(
        """
        0      a=100   -> live 100
        100    a=150   -> halted 100
        2000   a=160   -> halted 100
        3000   a=165   -> halted 100
        4000   a=166   -> halted 100
        5100   a=170   -> halted 100
        9000   a=180   -> live 180
        """,
        **ONE,
    ),
    "two bad prints far apart are two halts": story(
        """
        0        a=100   -> live 100
        100      a=150   -> halted 100
        600100   a=150   -> halted 100
        600200   a=100   -> live 100
        """,
        **ONE,
    ),
    "a gap of max_age_ms without sources that count ends a halt": story(
        "0 a=100 -> live 100\n100 a=150 -> halted 100\n10100 a=150 -> halted 100\n15099 a=150 -> halted 100\n"
        "15100 a=150 -> live 150",
        **ONE,
    ),
    "a shorter gap ends nothing": story(
        "0 a=100 -> live 100\n100 a=150 -> halted 100\n7000 -> stale 100\n10099 a=150 -> live 150", **ONE
    ),
    "a gap begins where an unsure price ends what counted": story(
        "0 a=100 -> live 100\n100 a=150 -> halted 100\n200 a=150~9 -> stale 100\n5200 a=150 -> halted 100", **ONE
    ),
    "a gap that an unsure price began is measured from there": story(
        "0 a=100 -> live 100\n100 a=150 -> halted 100\n3000 a=150 -> halted 100\n3100 a=150~9 -> stale 100\n"
        "6000 a=150 -> live 150",
        **ONE,
    ),
    "a gap ends the thirty seconds as well": story(
        """
        0      a=100   -> live 100
        100    a=150   -> halted 100
        40000  a=60    -> halted 100
        """,
        **ONE,
    ),
    "one of two sources that is silent in a halt": story(
        """
        0      a=100 b=100   -> live 100
        100    a=150 b=150   -> halted 100
        4000   a=150         -> halted 100
        5101                 -> live 150
        """,
        **TWO,
    ),
    "a crash that never rests is live after jump_halt_ms_max": story(
        """
        0      a=1000 b=1000 c=1000   -> live 1000
        100    a=850 b=850 c=850      -> halted 1000
        4000   a=720 b=720 c=720      -> halted 1000
        8000   a=610 b=610 c=610      -> halted 1000
        12000  a=520 b=520 c=520      -> halted 1000
        16000  a=440 b=440 c=440      -> halted 1000
        20000  a=370 b=370 c=370      -> halted 1000
        24000  a=310 b=310 c=310      -> halted 1000
        28000  a=260 b=260 c=260      -> halted 1000
        30099  a=220 b=220 c=220      -> halted 1000
        30100                         -> live 220
        """
    ),
    "in a crash that never rests half of the configured weight is not enough": story(
        """
        0      a=1000 b=1000   -> live 1000
        5001   a=850           -> halted 1000
        9000   a=720           -> halted 1000
        13000  a=610           -> halted 1000
        17000  a=520           -> halted 1000
        21000  a=440           -> halted 1000
        25000  a=370           -> halted 1000
        29000  a=310           -> halted 1000
        33000  a=260           -> halted 1000
        35001  a=220           -> halted 1000
        35002  b=220           -> live 220
        """,
        **TWO,
    ),
    "two levels that alternate are halted until one rests": story(
        """
        0      a=100 b=100 c=100   -> live 100
        400    a=150 b=150 c=150   -> halted 100
        800    a=60 b=60 c=60      -> halted 100
        1200   a=150 b=150 c=150   -> halted 100
        1600   a=60 b=60 c=60      -> halted 100
        2099   a=60 b=60 c=60      -> halted 100
        2100   a=60 b=60 c=60      -> live 60
        """
    ),
    "back at the old level the halt is forgotten": story(
        """
        0      a=100   -> live 100
        100    a=150   -> halted 100
        4900   a=150   -> halted 100
        5000   a=100   -> live 100
        5200   a=150   -> halted 100
        10199  a=150   -> halted 100
        10200  a=150   -> live 150
        """,
        **ONE,
    ),
    "sources that disagree at a jump are stale and begin no halt": story(
        """
        0      a=100 b=100   -> live 100
        100    a=150         -> stale 100
        6000   a=150 b=150   -> halted 100
        6499   a=150 b=150   -> halted 100
        6500   a=150 b=150   -> live 150
        """,
        **TWO,
    ),
    "a price back between sources that disagree ends the halt": story(
        """
        0      a=100 b=100   -> live 100
        100    a=150 b=150   -> halted 100
        200    a=150 b=62    -> stale 100
        5000   a=150 b=62    -> stale 100
        10000  a=150 b=62    -> stale 100
        15000  a=150 b=62    -> stale 100
        20000  a=150 b=62    -> stale 100
        25000  a=150 b=62    -> stale 100
        30100  a=150 b=150   -> halted 100
        """,
        **TWO,
    ),
    "a halt begins where its sources agree": story(
        """
        0      a=100 b=100   -> live 100
        100    a=150         -> stale 100
        4000   a=150 b=100   -> stale 100
        8000   a=150 b=100   -> stale 100
        12000  a=150 b=100   -> stale 100
        30200  a=125 b=125   -> halted 100
        """,
        **TWO,
    ),
    "a level outlives sources that do not agree, if their price does not leave it": story(
        """
        0      a=100 b=100   -> live 100
        100    a=150 b=150   -> halted 100
        2000   b=138         -> stale 100
        4000   a=150         -> stale 100
        5100   b=150         -> live 150
        """,
        **TWO,
    ),
    "after a silence the first price is a jump like any other": story(
        "0 a=100 b=100 -> live 100\n3600000 a=150 b=150 -> halted 100\n3600500 a=150 b=150 -> live 150", **TWO
    ),
    "the times are parameters": story(
        """
        0      a=100 b=100   -> live 100
        100    a=150 b=150   -> halted 100
        150    a=150 b=150   -> live 150
        200    a=100 b=100   -> halted 150
        230    a=180 b=180   -> halted 150
        260    a=60 b=60     -> halted 150
        290    a=180 b=180   -> live 180
        """,
        **TWO,
        jump_confirm_ms=50,
        jump_halt_ms_max=90,
    ),
}


@pytest.mark.parametrize("restarting", [False, True], ids=["", "restarted-at-every-line"])
@pytest.mark.parametrize("name", STORIES)
def test_story(name: str, restarting: bool) -> None:
    scene = STORIES[name]
    fields: dict[str, Any] = {"sources": {"a": "1", "b": "1", "c": "1"}, "minimum_sources": 2} | scene.rules
    rules = OracleParameters(symbol="X", **fields)
    book, sequences = MarkBook(), dict.fromkeys(rules.sources, 0)
    book.set_rules({"X": rules})
    for line in filter(None, (line.strip() for line in scene.lines.splitlines())):
        told, _, expected = (part.strip() for part in line.partition("->"))
        at, *prices = told.split()
        clock = T0 + 1000 * int(at)
        for price in prices:
            book.accept(_price(price, clock, sequences), clock)
        mark = next(iter(book.form_all(clock)), None)
        assert ("none" if mark is None else f"{mark.status} {mark.price}") == expected, line
        if restarting:
            state = _STATE(encode(book.state("X")))
            book = MarkBook()
            book.restore("X", state)
            book.set_rules({"X": rules})


def _price(text: str, clock: int, sequences: dict[str, int]) -> OraclePrice:
    parts = _PRICE(text)
    assert parts is not None, text
    source, price, published, sequence, confidence = parts.groups()
    sequences[source] = int(sequence or sequences[source] + 1)
    return OraclePrice(
        source=source,
        symbol="X",
        price=price,
        confidence=confidence,
        sequence=sequences[source],
        publish_time=clock + 1000 * int(published or 0),
    )
