"""The README's table of settings is complete, and current or refused."""

import re
import shutil
from pathlib import Path

import msgspec
import pytest

from infra.check import CHECKS, run
from streams import settings_table
from streams.settings import SECRETS, Settings, places, schema, variable
from streams.settings_table import README, main
from tests.conftest import ROOT

PLACES = [(section, field) for section, fields in msgspec.to_builtins(Settings()).items() for field in fields]


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row of the table of settings in ``text``, without the first, which is the row's name."""
    lines = re.findall(r"^\| `(MARGIN_\w+)` \|(.*)\|$", text, re.MULTILINE)
    assert len({name for name, _ in lines}) == len(lines)
    return {name: [cell.strip() for cell in re.split(r"(?<!\\)\|", rest)] for name, rest in lines}


def test_the_readme_has_a_row_for_every_setting_and_no_other() -> None:
    rows_by_name = rows(README.read_text(encoding="utf-8"))
    assert list(rows_by_name) == [variable(*place) for place in PLACES]
    assert all(len(cells) == 3 for cells in rows_by_name.values())


@pytest.mark.parametrize("place", PLACES, ids=lambda place: variable(*place))
def test_every_setting_is_described_beside_its_field_and_shown_with_its_default(place: tuple[str, str]) -> None:
    described = schema(*place)
    default, values, meaning = rows(settings_table.table())[variable(*place)]
    assert meaning == described["description"]
    assert re.search(r"\w", meaning)
    given = getattr(getattr(Settings(), place[0]), place[1])
    assert default == ("" if given == "" else f"`{given}`")
    assert (values == "secret") == (place in SECRETS)
    for limit in ("minimum", "maximum"):
        assert limit not in described or f"{described[limit]:,}" in values
    assert ("KiB" in values) == ("_kbytes" in place[1])
    assert values.endswith(" ms") == place[1].endswith("_ms")


def test_the_places_are_all_settings_in_their_order() -> None:
    assert places() == PLACES


@pytest.fixture
def altered(tmp_path: Path) -> Path:
    """A copy of the README in which one default is not the code's."""
    text = README.read_text(encoding="utf-8")
    row = "| `MARGIN_ENGINE__COMMIT_INTERVAL_MS` | `200` |"
    assert text.count(row) == 1
    copy = tmp_path / "README.md"
    copy.write_text(text.replace(row, row.replace("200", "60")), encoding="utf-8")
    return copy


def test_an_altered_row_is_refused_and_written_anew(altered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    assert main(["--check"], altered) == 1
    assert "not current: README.md; run `python -m streams.settings_table`" in capsys.readouterr().err
    assert main([], altered) == 0
    assert altered.read_bytes() == README.read_bytes()


@pytest.mark.parametrize("marker", ["<!-- settings: generated -->\n", "<!-- end of settings -->\n"])
def test_a_readme_without_the_tables_place_is_refused_and_left_alone(marker: str, tmp_path: Path) -> None:
    text = README.read_text(encoding="utf-8")
    copy = tmp_path / "README.md"
    for wrong in (text.replace(marker, ""), text.replace(marker, 2 * marker)):
        copy.write_text(wrong, encoding="utf-8")
        assert main(["--check"], copy) == 1
        assert main([], copy) == 1
        assert copy.read_text(encoding="utf-8") == wrong


def test_the_check_of_the_tree_finds_an_altered_row_and_mends_it(altered: Path) -> None:
    tree = altered.parent
    for package in ("streams", "schemas"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__", "*.gz"))
    check = next(check for check in CHECKS if check.name == "table of settings")
    assert run(check.command, tree) == 1
    assert run(check.fix, tree) == 0
    assert run(check.command, tree) == 0
    assert altered.read_bytes() == README.read_bytes()
