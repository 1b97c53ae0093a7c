"""What must hold of every run at its end, whatever was done to the pipeline."""

from tests.faults.rounds import Result


def assert_clean(result: Result) -> None:
    """Nothing lost, repeated or made up, and no problem of the run itself."""
    assert result.verdict is not None
    assert {name: differences for name, differences in result.verdict.differences.items() if differences} == {}
    assert result.verdict.commands > 0
    assert (result.verdict.lost, result.verdict.repeated) == (0, 0)
    assert result.problems == []
