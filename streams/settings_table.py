"""The README's table of settings, generated from the settings: each with its default, its values and what it means.

``python -m streams.settings_table`` writes it, ``--check`` compares and exits with 1 if it is not current.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streams.settings import SECRETS, UNIT, places, schema, variable

README = Path(__file__).resolve().parents[1] / "README.md"

_BEGINS, _ENDS = "<!-- settings: generated -->\n", "<!-- end of settings -->\n"


def table() -> str:
    """A Markdown table with a row per setting, in the settings' order."""
    rows = ["| variable | default | values | meaning |", "|---|---|---|---|", *(_row(*place) for place in places())]
    return "\n".join(rows) + "\n"


def with_table(readme: str) -> str:
    """``readme`` with the current table between its markers.

    Raises:
        ValueError: a marker is missing, stands twice, or the last stands first.
    """
    before, begins, rest = readme.partition(_BEGINS)
    _, ends, after = rest.partition(_ENDS)
    if not ends or readme.count(begins) + readme.count(ends) != 2:
        raise ValueError(f"the table's place is between one line {_BEGINS.strip()} and one line {_ENDS.strip()}")
    return f"{before}{begins}\n{table()}\n{ends}{after}"


def _row(section: str, field: str) -> str:
    described = schema(section, field)
    default = "" if described["default"] == "" else f"`{described['default']}`"
    cells = (
        f"`{variable(section, field)}`",
        default,
        _values(section, field, described),
        described["description"],
    )
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def _values(section: str, field: str, described: dict[str, Any]) -> str:
    if (section, field) in SECRETS:
        return "secret"
    if "enum" in described:
        return ", ".join(f"`{value}`" for value in sorted(described["enum"]) if value != "")
    if "pattern" in described:
        return f"`{described['pattern']}`"
    if "minimum" not in described:
        return ""
    unit = f" {described[UNIT]}" if UNIT in described else ""
    if "maximum" not in described:
        return f"from {described['minimum']:,}{unit}"
    return f"{described['minimum']:,} to {described['maximum']:,}{unit}"


def main(arguments: Sequence[str], readme: Path = README) -> int:
    """Write the table into ``readme``, or with ``--check`` say whether it is current. The exit code."""
    text = readme.read_text(encoding="utf-8")
    try:
        current = with_table(text)
    except ValueError as error:
        print(f"{readme.name}: {error}", file=sys.stderr)
        return 1
    if "--check" in arguments:
        if text != current:
            print(f"not current: {readme.name}; run `python -m streams.settings_table`", file=sys.stderr)
        return int(text != current)
    readme.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
