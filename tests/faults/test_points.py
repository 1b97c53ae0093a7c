"""The ambushes: production has every method that they are laid round, and the signal comes at the pass ordered."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.faults import FAULTS
from tests.faults.fleet import Role
from tests.faults.points import Ambush, Orders

LAY = """
import sys
from pathlib import Path
from tests.faults import points
laid = set()
for name in ("_around", "_around_coroutine", "_between_parts"):
    def noting(ambush, *names, real=getattr(points, name)):
        laid.update(names)
        return real(ambush, *names)
    setattr(points, name, noting)
points.lay(points.Ambush(Path("none")), sys.argv[1])
print(*laid)
"""


@pytest.mark.parametrize("role", ["engine", "router", "oracle"])
def test_every_point_of_the_rows_is_laid_round_a_method_that_is_there(role: Role) -> None:
    done = subprocess.run([sys.executable, "-c", LAY, role], capture_output=True, text=True, check=True)
    wanted = {fault.point for fault in FAULTS.values() if fault.role == role and fault.point}
    assert wanted
    assert set(done.stdout.split()) == wanted


@pytest.fixture
def received() -> Iterator[list[int]]:
    signals: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: signals.append(number))
    yield signals
    signal.signal(signal.SIGUSR2, before)


def test_the_signal_comes_at_the_pass_that_was_ordered_and_once(
    tmp_path: Path, received: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    Orders("after_commit", 2, signal.SIGUSR2).write(tmp_path / "orders")
    ambush = Ambush(tmp_path / "orders")
    for point, expected in (("after_commit", 0), ("before_produce", 0), ("after_commit", 1), ("after_commit", 1)):
        ambush.passing(point)
        assert len(received) == expected
    assert capfd.readouterr().err == "ambush at after_commit SIGUSR2\n"


def test_orders_can_be_given_and_taken_back_while_it_runs(tmp_path: Path, received: list[int]) -> None:
    path = tmp_path / "orders"
    ambush = Ambush(path)
    ambush.passing("after_commit")
    Orders("after_commit", 1, signal.SIGUSR2).write(path)
    ambush.read()
    path.unlink()
    ambush.read()
    ambush.passing("after_commit")
    assert received == []
    Orders("after_commit", 1, signal.SIGUSR2).write(path)
    ambush.read()
    ambush.passing("after_commit")
    assert received == [signal.SIGUSR2]
