"""Accounts that go from shard to shard: whatever is looked at, at whatever moment, is as it must be, or named."""

from collections.abc import Callable, Iterator

import pytest

from schemas.codec import Decoder
from schemas.messages import EventFrame, LiquidationCommand
from schemas.partitioning import steps_of
from schemas.topics import ACCOUNTS, ALERTS, COMMANDS, EVENTS, JOURNAL, TRADES, TRANSFERS
from streams.audit.findings import Findings
from streams.audit.replay import Replayed, replay_shards
from streams.audit.verify import verify
from streams.errors import AuditError
from streams.memory.log import LogRecord
from streams.tables.reader import TableMeta
from tests.audit.moving import MovingMarket, accounts_going
from tests.audit.scripts import alter, drop, value
from tests.audit.test_verify import ChangelogTables, Groups
from tests.given_log import GivenLog

STAYS = accounts_going(0, 0, 1)[0]
FIRST_STEP = accounts_going(0, 1, 2) + accounts_going(1, 2, 2)
SECOND_STEP = accounts_going(0, 2, 1) + accounts_going(1, 0, 1)
EVERYBODY = [STAYS, *FIRST_STEP, *SECOND_STEP]

_COMMAND = Decoder[LiquidationCommand](LiquidationCommand)
_FRAME = Decoder[EventFrame](EventFrame)


class ReadAtOnce(GivenLog):
    """The logs of a market as they are at every single call: nothing happens in between but what a test does."""

    def __init__(self, market: MovingMarket) -> None:
        super().__init__()
        self._cluster = market.cluster


@pytest.fixture
def market() -> Iterator[MovingMarket]:
    """Two shards of accounts that are long on thin margin; some have been commanded to reduce."""
    with MovingMarket() as made:
        made.begin()
        made.router_progress()
        for account in EVERYBODY:
            made.deposit(account, "1000")
        made.deposit(STAYS, "100000")
        for account in EVERYBODY[1:]:
            made.trade(account, STAYS, "1", "10000")
        made.router_progress()
        made.settle()
        made.mark("9450")
        made.router_progress()
        made.settle()
        assert len(made.records(COMMANDS)) == len(EVERYBODY) - 1
        yield made


def verified(market: MovingMarket) -> Findings:
    log = ReadAtOnce(market)
    return verify(log, ChangelogTables(market), Groups(market), [], tables_timeout_s=0)


def differences(market: MovingMarket) -> list[str]:
    return [f"{finding.place} {finding.what}".strip() for finding in verified(market).differences]


def replayed(market: MovingMarket) -> list[Replayed]:
    return replay_shards(ReadAtOnce(market), None)


def replay_differences(market: MovingMarket) -> list[str]:
    return [f"{one.place} {one.what}" for result in replayed(market) for one in result.findings.differences]


def go_on_trading(market: MovingMarket) -> None:
    """The commands expire, prices fall further, and everybody is commanded again."""
    for account in EVERYBODY:
        market.deposit(account, "1")
    market.trade(FIRST_STEP[0], STAYS, "0.01", "9300")
    market.router_progress()
    market.settle()
    market.tick(2_000)
    market.mark("9200")
    market.router_progress()
    market.settle()


def announced(market: MovingMarket) -> None:
    """The layout names three shards, and everybody knows it."""
    market.change(target=3)
    market.running.cycle(5)
    market.learn()
    market.settle()


def begun(market: MovingMarket, *topics: str) -> None:
    """The layout names the first step, the routers of ``topics`` (none: of all) know it, and the old shards have been
    told; the engine has not looked yet."""
    announced(market)
    market.change(target=3, step=1)
    market.running.cycle(2)
    market.learn(*topics)
    market.depart()


# --- as it must be -------------------------------------------------------------------------------------------------


def test_after_all_have_moved_everything_adds_up_and_follows(market: MovingMarket) -> None:
    market.rescale(3)
    go_on_trading(market)
    findings = verified(market)
    assert (findings.differences, findings.notes) == ([], [])
    assert findings.counts["accounts"] == len(EVERYBODY)
    assert "accounts have gone from shard to shard: what they hold is compared over all shards together" in (
        findings.facts
    )
    assert replay_differences(market) == []
    sent = sum(result.findings.counts["frames to other shards"] for result in replayed(market))
    assert sent == 8, "four pairs, each with the accounts and the word that they have come"


def test_a_command_is_explained_from_the_shard_that_gave_it(market: MovingMarket) -> None:
    market.rescale(3)
    market.tick(2_000)
    market.mark("9300")
    market.router_progress()
    market.settle()
    commands = [_COMMAND(value(record)) for record in market.records(COMMANDS)]
    shards: dict[str, set[int]] = {}
    for command in commands:
        assert market.explained(command.command_id).differences == []
        shards.setdefault(command.account, set()).add(command.evidence.shard)
    assert all(len(shards[account]) == 2 for account in EVERYBODY[1:])


def test_at_every_commit_on_the_way_everything_adds_up(market: MovingMarket) -> None:
    market.change(target=3)
    market.running.cycle(5)
    states = set()
    for step in (0, 1, 2):
        if step:
            market.change(target=3, step=step)
            market.running.cycle(2)
        market.learn()
        if step:
            market.depart()
        for _ in range(6):
            market.running.cycle()
            findings = verified(market)
            assert (findings.differences, findings.counts["accounts"]) == ([], len(EVERYBODY)), step
            moves = [market.stands(shard).moves for shard in market.shards]
            states |= {(step, moved.sent, moved.left) for moved in moves if moved}
        market.settle()
    assert {(1, True, 0), (1, False, 1), (2, True, 1), (2, False, 2)} <= states
    assert replay_differences(market) == []


def test_rows_that_come_before_their_account_count_when_it_has_come(market: MovingMarket) -> None:
    begun(market, TRANSFERS)
    market.deposit(FIRST_STEP[0], "7")
    market.settle()
    assert market.stands(1).moves.early is not None  # type: ignore[union-attr]
    assert differences(market) == []
    market.restart()
    market.settle()
    market.deposit(FIRST_STEP[0], "8")
    market.learn()
    market.settle()
    assert market.stands(1).moves.arrived == 1  # type: ignore[union-attr]
    waiting = [each.frame.transfers.sequence for each in market.row(FIRST_STEP[0]).deferred]
    assert waiting == [[market.sequence - 1], [market.sequence]], "it is held, and both have come to it"
    assert (differences(market), replay_differences(market)) == ([], [])


def test_what_begins_later_knows_the_accounts_that_come(market: MovingMarket) -> None:
    cuts = {shard: market.partition(EVENTS, shard).end for shard in (0, 1)}
    market.rescale(3)
    go_on_trading(market)
    for shard, cut in cuts.items():
        market.partition(EVENTS, shard).delete_before(cut)
    results = replayed(market)
    assert [one.what for result in results for one in result.findings.differences] == []
    assert [bool(result.findings.notes) for result in results] == [True, True, False]
    assert sum(result.findings.counts["commands"] for result in results) >= len(EVERYBODY) - 1
    assert all(not result.findings.counts["rows not comparable"] for result in results)


def test_who_moves_back_is_followed_as_well(market: MovingMarket) -> None:
    market.rescale(3)
    go_on_trading(market)
    market.rescale(2)
    go_on_trading(market)
    assert (differences(market), replay_differences(market)) == ([], [])
    assert verified(market).counts["accounts"] == len(EVERYBODY)


def test_a_shard_that_has_been_added_need_not_be_taken_before_accounts_go_there(market: MovingMarket) -> None:
    said = "shard 2 has been added, and no engine has taken it yet"
    market.change(target=3)
    findings = verified(market)
    assert replay_differences(market) == []
    assert any("USDC in all accounts: transfers" in fact for fact in findings.facts)
    market.learn()  # which tells the new shard of the layout
    told = verified(market)
    assert replay_differences(market) == []
    market.change(target=2)
    called_off = verified(market)
    for looked in (findings, told, called_off):
        assert (looked.differences, looked.unreached) == ([], [])
        assert said in looked.facts
    market.settle()
    taken = verified(market)
    assert taken.differences == []
    assert said not in taken.facts


def test_accounts_that_move_between_two_looks_are_said_and_no_difference(market: MovingMarket) -> None:
    announced(market)

    class Moving(ChangelogTables):
        """Accounts go when the second shard is looked at, for the first time."""

        def table_meta(self, shard: int) -> TableMeta | None:
            if shard == 1 and not market.layout.step:
                market.move(1)
            return super().table_meta(shard)

    findings = verify(ReadAtOnce(market), Moving(market), Groups(market), [], tables_timeout_s=0)
    assert findings.differences == []
    assert any("accounts went from shard 0 to shard 1 while this was looked at" in note for note in findings.notes)
    assert differences(market) == []


# --- as it must not be ---------------------------------------------------------------------------------------------


def _arrival(market: MovingMarket, shard: int = 1) -> LogRecord:
    return next(record for record in market.records(EVENTS, shard) if b'"arrival":' in value(record))


def _copied_row(market: MovingMarket) -> None:
    account = FIRST_STEP[0]
    row = [record for record in market.records(ACCOUNTS, 1) if record.key == account.encode()][-1]
    sequence = market.stands(0).sequence
    market.cluster.append(
        ACCOUNTS, row.key, row.value, 0, headers=[("ce_id", f"0:{sequence}:{account}".encode())]
    )  # fmt: skip


def _sent_again(market: MovingMarket) -> None:
    frame = value(_arrival(market)).replace(b'\\"USDC\\":\\"', b'\\"USDC\\":\\"1', 1)
    market.cluster.append(EVENTS, None, frame, 1)
    market.settle()


def _row_lost(market: MovingMarket) -> None:
    rows = [record for record in market.records(ACCOUNTS, 1) if record.key == FIRST_STEP[0].encode()]
    for row in rows:
        drop(row)


def _account_taken_out(market: MovingMarket) -> None:
    frame = _FRAME(value(_arrival(market)))
    assert frame.arrival
    alter(_arrival(market), FIRST_STEP[0].encode(), accounts_going(0, 1, 5)[-1].encode())


def _sent_elsewhere(market: MovingMarket) -> None:
    alter(_arrival(market), FIRST_STEP[0].encode(), SECOND_STEP[0].encode())


def _word_repeated(market: MovingMarket) -> None:
    word = next(record for record in market.records(EVENTS, 0) if b'"arrived":' in value(record))
    market.cluster.append(EVENTS, None, word.value, 0)
    market.settle()


def _command_repeated_by_the_new_shard(market: MovingMarket) -> None:
    command = next(r for r in market.records(COMMANDS) if r.key == FIRST_STEP[0].encode())
    record = [record for record in market.records(JOURNAL, 1) if b'"commands":[]' in value(record)][-1]
    name = f"{command.key.decode() if command.key else ''}:1".encode()
    alter(record, b'"commands":[]', b'"commands":["' + name + b'"]')


def _journal_forgets_who_has_come(market: MovingMarket) -> None:
    record = market.records(JOURNAL, 1)[-1]
    alter(record, b'"arrived":1', b'"arrived":0')


def _journal_forgets_who_has_left(market: MovingMarket) -> None:
    record = market.records(JOURNAL, 0)[-1]
    alter(record, b'"left":1', b'"left":0')


WRONG: dict[str, tuple[Callable[[MovingMarket], None], str]] = {
    "a row in both shards": (_copied_row, f"account {FIRST_STEP[0]} has a row and belongs to shard 1"),
    "accounts sent twice, with another content": (_sent_again, "it is there twice, first at offset"),
    "a row that is lost": (_row_lost, "the accounts of all shards hold"),
    "an account sent elsewhere": (
        _sent_elsewhere,
        f"account {SECOND_STEP[0]} goes from shard 0 to shard 2 with step 2",
    ),
    "a word that comes twice": (_word_repeated, "the word of shard 1 that it has the accounts of step 1"),
    "a command of the old shard named by the new one": (
        _command_repeated_by_the_new_shard,
        f"the commands of {FIRST_STEP[0]} in the journals of all shards: a repeat",
    ),
    "accounts that have gone and not come": (
        _journal_forgets_who_has_come,
        "shard 0 has given the accounts of step 1 of 2 to 3 shards away, and shard 1 has not got them",
    ),
    "accounts that have come and not gone": (
        _journal_forgets_who_has_left,
        "shard 1 has the accounts of step 1 of 2 to 3 shards, and shard 0 has not sent them",
    ),
}


@pytest.mark.parametrize(("change", "named"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(market: MovingMarket, change: Callable[[MovingMarket], None], named: str) -> None:
    market.change(target=3)
    market.running.cycle(5)
    market.learn()
    market.settle()
    market.move(1)
    assert differences(market) == []
    change(market)
    said = differences(market)
    assert any(named in difference for difference in said), said


def test_accounts_that_were_sent_and_lie_nowhere_are_named(market: MovingMarket) -> None:
    begun(market)
    while not market.frames_with("arrival", 1):
        market.running.cycle()
    assert differences(market) == []
    drop(_arrival(market))
    market.settle()
    said = differences(market)
    assert any("part 0 of the accounts that shard 0 sends with step 1" in each for each in said), said
    assert any("they are not there" in each for each in said), said


REPLAYED_WRONG: dict[str, tuple[Callable[[MovingMarket], None], str]] = {
    "accounts sent twice": (_sent_again, "it is there twice, first at offset"),
    "an account renamed on its way": (_account_taken_out, "arrival.rows."),
    "the accounts gone": (lambda market: drop(_arrival(market)), "it is not in the topic"),
}


@pytest.mark.parametrize(("change", "named"), REPLAYED_WRONG.values(), ids=REPLAYED_WRONG)
def test_frames_of_the_old_shard_are_compared(
    market: MovingMarket, change: Callable[[MovingMarket], None], named: str
) -> None:
    market.rescale(3)
    change(market)
    said = replay_differences(market)
    assert any(named in difference and f"{EVENTS}[1]" in difference for difference in said), said


def test_a_shard_that_nobody_has_taken_is_named_once_accounts_go_there(market: MovingMarket) -> None:
    market.change(target=3)
    market.change(target=3, step=1)
    said = differences(market)
    assert "margin.journal.v1[2] the journal is empty: no engine has ever taken the shard" in said


def test_accounts_that_no_journal_sent_are_named(market: MovingMarket) -> None:
    market.rescale(3)
    forged = value(_arrival(market)).replace(b'"version":2', b'"version":9')
    market.cluster.append(EVENTS, None, forged, 1)
    assert any("it does not follow from the journal" in each for each in replay_differences(market))


def test_an_alert_that_the_old_shard_could_not_give_is_named_once(market: MovingMarket) -> None:
    market.rescale(3)
    go_on_trading(market)
    last = [record for record in market.records(ALERTS) if record.key == FIRST_STEP[0].encode()][-1]
    number = int(dict(last.headers or ())["ce_id"].rpartition(b":")[2])
    name = f"{FIRST_STEP[0]}:alert:{number + 1}".encode()
    market.cluster.append(ALERTS, last.key, value(last), headers=[("ce_id", name)])
    assert [each.split()[1] for each in replay_differences(market)] == [name.decode()]


def test_trades_that_are_not_confirmed_keep_accounts_and_are_no_difference(market: MovingMarket) -> None:
    begun(market, TRADES)
    market.settle()
    moves = market.stands(0).moves
    assert moves
    assert (moves.departure is not None, moves.sent) == (True, False)
    assert (differences(market), replay_differences(market)) == ([], [])


def test_a_change_that_was_made_before_is_told_from_the_first_one(market: MovingMarket) -> None:
    """2 to 3 shards, back, and to 3 again: what lies in the events of the first time is nothing of the second."""
    market.rescale(3)
    market.rescale(2)
    assert differences(market) == []
    market.change(target=3)
    market.running.cycle(5)
    assert differences(market) == []
    market.learn()
    market.settle()
    assert differences(market) == []
    for step in steps_of(market.layout.spread):
        market.change(target=3, step=step)
        assert differences(market) == []
        market.learn()
        assert differences(market) == []
        market.depart()
        market.settle()
        assert differences(market) == []
    market.change(shards=3, target=3)
    market.learn()
    market.settle()
    assert differences(market) == []
    assert replay_differences(market) == []


def test_a_shard_that_there_is_not_is_none_that_was_added(market: MovingMarket) -> None:
    market.change(target=3)
    with pytest.raises(AuditError, match="there is no shard 9"):
        replay_shards(ReadAtOnce(market), 9)
