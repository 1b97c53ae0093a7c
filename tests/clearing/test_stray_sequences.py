"""Transfer sequences far beyond the last one: whatever they are, they close no account."""

from hypothesis import given
from hypothesis import strategies as st

from streams.clearing.transfers import GAPS_MAX, STRAY_SEQUENCES, WIDE_GAPS_KEPT, TransferSequences
from tests.clearing.test_held_back import Recorder
from tests.clearing.test_shard import kinds

HIGHEST = 2**63 - 1
STRAY = st.one_of(
    st.integers(2 * STRAY_SEQUENCES, HIGHEST),
    st.integers(10**12, 10**12 + 200),
    st.integers(HIGHEST - 200, HIGHEST),
)


def counted(*sequences: int) -> TransferSequences:
    transfers = TransferSequences()
    for sequence in sequences:
        transfers.count(sequence)
    return transfers


def restored(transfers: TransferSequences) -> TransferSequences:
    """As a row gives them back."""
    gaps = [(gap.first, gap.next) for gap in transfers.ranges()]
    return TransferSequences(transfers.last, transfers.floor, gaps)


@given(st.lists(STRAY, max_size=120), st.integers(1, 200))
def test_an_accounts_own_sequences_go_on_whatever_stray_ones_come(strays: list[int], come: int) -> None:
    transfers = counted(*range(1, come + 1))
    for number in range(40):
        for stray in strays[number::40]:
            transfers.count(stray)
        assert transfers.count(come + 1 + number) == "new"
        assert transfers.count(come + 1 + number) != "new"
        transfers = restored(transfers)
        assert len(transfers.gaps) <= GAPS_MAX


@given(st.lists(STRAY, min_size=1, max_size=120))
def test_a_stray_sequence_counts_once_and_is_never_taken_for_a_repeat_if_it_is_not(strays: list[int]) -> None:
    transfers, come = counted(1, 2, 3), {1, 2, 3}
    for stray in strays:
        verdict = transfers.count(stray)
        assert (verdict == "repeat") <= (stray in come)
        assert (verdict == "new") <= (stray not in come)
        come |= {stray} if verdict == "new" else set()
    assert all(transfers.count(again) != "new" for again in come)


@given(st.lists(st.integers(STRAY_SEQUENCES + 1, 10**9), min_size=1, max_size=80))
def test_sequences_that_are_times_are_as_ever_whatever_is_between_them(steps: list[int]) -> None:
    """Each leaves a wide gap, and late ones of the last gaps are known."""
    transfers, time, times = TransferSequences(), 0, list[int]()
    for step in steps:
        time += step
        times.append(time)
        assert transfers.count(time) == "new"
    late = [time - 1 for time in times[-(GAPS_MAX - WIDE_GAPS_KEPT) // 2 :]]
    assert [transfers.count(sequence) for sequence in late] == ["new"] * len(late)
    assert all(transfers.count(sequence) != "new" for sequence in times + late)


def test_a_transfer_of_the_highest_sequence_is_applied_and_later_ones_are_too() -> None:
    driver = Recorder()
    for sequence in (1, 2, HIGHEST, 3):
        assert kinds(driver.transfer("a", "10", sequence=sequence)) == []
    driver.restart()
    for sequence in (HIGHEST, 3, 4, 6, 5, 4):
        assert kinds(driver.transfer("a", "10", sequence=sequence)) == []
    assert driver.balances() == {"USDC": "70"}
    assert driver.row().transfer_sequence == HIGHEST


def test_after_a_flood_of_stray_sequences_transfers_are_applied_in_order() -> None:
    driver = Recorder()
    for sequence in (1, 2, *range(10**12, 10**12 + 4 * GAPS_MAX, 2)):
        driver.transfer("a", "10", sequence=sequence)
    driver.restart()
    before = int(driver.balances()["USDC"])
    for sequence in range(3, 100):
        assert kinds(driver.transfer("a", "-1", sequence=sequence)) == []
    assert driver.balances() == {"USDC": str(before - 97)}


def test_a_sequence_that_goes_back_and_may_be_a_repeat_suspends_as_ever() -> None:
    driver = Recorder()
    for sequence in (1, 2, *range(10**12, 10**12 + 4 * GAPS_MAX, 2)):
        driver.transfer("a", "10", sequence=sequence)
    assert kinds(driver.transfer("a", "10", sequence=10**12 + 3)) == ["credit_parked"]
    assert kinds(driver.transfer("a", "-10", sequence=10**12 + 3)) == ["suspended"]
