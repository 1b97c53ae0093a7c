"""A shard that applies the fills of a frame in bulk gives, to the byte, what one gives that applies them one by one."""

import pytest
from hypothesis import given
from hypothesis import settings as configure
from hypothesis import strategies as st

from schemas.codec import encode
from schemas.types import CROSS
from streams.clearing import events
from streams.clearing.shard import Output
from streams.margin.bulk_fills import BulkFills
from tests.clearing.test_row_text import LISTED, STEPS, Compared, Step, prices, quantities, signs
from tests.properties import examples

NEVER = 10**9
ACCOUNTS = ("a", "b", "c", "d")

busy = st.tuples(
    st.just("fills"),
    st.lists(
        st.tuples(
            st.sampled_from(ACCOUNTS),
            st.sampled_from([CROSS, CROSS, "A"]),
            st.sampled_from(LISTED[:4]),
            signs,
            quantities,
            prices,
        ),
        min_size=5,
        max_size=40,
    ),
    st.booleans(),
)


class Recorded(Compared):
    """A market that keeps all that its shard gives."""

    def __init__(self, bulk_from: int) -> None:
        self.given: list[tuple[bytes | None, ...]] = []
        self.bulk_from = bulk_from
        super().__init__()

    def commit(self) -> Output:
        output = super().commit()
        lists = (output.commands, output.alerts, [letter.frame for letter in output.unapplied])
        self.given.append(
            (
                encode(output.journal),
                *(row for _, row in sorted(output.rows.items())),
                *(encode(item) if not isinstance(item, bytes) else item for items in lists for item in items),
            )
        )
        return output

    def play(self, steps: list[Step]) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(events, "BULK_FROM", self.bulk_from)
            for step in steps:
                self.step(step)


@given(STEPS, st.lists(busy, min_size=1, max_size=12), st.randoms(use_true_random=False))
@configure(max_examples=examples(200), deadline=None)
def test_in_bulk_or_one_by_one_is_the_same_to_the_byte(steps: list[Step], more: list[Step], drawn: object) -> None:
    mixed = [*steps, *more]
    drawn.shuffle(mixed)  # type: ignore[attr-defined]
    each, bulk = Recorded(NEVER), Recorded(1)
    each.play(mixed)
    bulk.play(mixed)
    assert bulk.given == each.given


def test_most_of_a_busy_frame_is_applied_in_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The property above would hold of a bulk that left everything."""
    applied: list[tuple[int, int]] = []
    apply = BulkFills.apply

    def counted(self: BulkFills, *columns: list[str]) -> object:
        chosen = apply(self, *columns)  # type: ignore[arg-type]
        applied.append((int(chosen.sum()), chosen.size))
        return chosen

    monkeypatch.setattr(BulkFills, "apply", counted)
    market = Recorded(1)
    market.play([("fills", [(account, CROSS, LISTED[0], "", "1", 50) for account in ("a", "b") * 20], False)])
    assert applied[-1] == (40, 40)
