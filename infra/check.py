"""``python -m infra.check``: every check that needs no server, in one go.

All of them run even if one fails; the last lines name what failed and how to mend it, and the exit code is 1. It
installs and removes nothing. ``--fix`` first lets the formatter, the linter and the generators write what they would
ask for.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Check:
    """A command of this interpreter's environment; ``fix`` is the one that mends what it finds, if a machine can."""

    name: str
    command: tuple[str, ...]
    fix: tuple[str, ...] = ()
    mend: str = ""


CHECKS = (
    Check("lint", ("ruff", "check", "."), ("ruff", "check", "--fix", "."), "python -m infra.check --fix"),
    Check("format", ("ruff", "format", "--check", "."), ("ruff", "format", "."), "python -m infra.check --fix"),
    Check("types", ("mypy",), mend="mypy names the lines; [tool.mypy] in pyproject.toml says what is checked"),
    Check(
        "imports",
        ("lint-imports",),
        mend="an arrow runs up: move the code to the room it belongs to (streams/README.md), or place a new module",
    ),
    Check(
        "generated files",
        ("python", "-m", "schemas.generate", "--check"),
        ("python", "-m", "schemas.generate"),
        "python -m infra.check --fix",
    ),
    Check(
        "table of settings",
        ("python", "-m", "streams.settings_table", "--check"),
        ("python", "-m", "streams.settings_table"),
        "python -m infra.check --fix",
    ),
)


def run(command: Sequence[str], root: Path) -> int:
    """Run a command of this interpreter's environment in ``root``; its exit code."""
    program, *rest = command
    executable = sys.executable if program == "python" else str(Path(sys.executable).parent / program)
    return subprocess.run([executable, *rest], cwd=root, check=False).returncode


def check_all(
    checks: Sequence[Check], root: Path, *, fix: bool = False, run: Callable[[Sequence[str], Path], int] = run
) -> list[Check]:
    """Run ``checks`` in ``root``, each announced, after what mends if ``fix``; those that failed."""
    if fix:
        for check in checks:
            if check.fix:
                print(f"+ {' '.join(check.fix)}", flush=True)
                run(check.fix, root)
    failed = []
    for check in checks:
        print(f"+ {' '.join(check.command)}", flush=True)
        if run(check.command, root) != 0:
            failed.append(check)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if a check failed."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.check",
        description="Run every check that needs no server: " + ", ".join(check.name for check in CHECKS) + ".",
        epilog="Exit codes: 0 every check holds; 1 one does not, and the last lines say which and how to mend it.",
    )
    parser.add_argument("--fix", action="store_true", help="first write what linter, formatter and generators would")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree to check (default: this one)")
    options = parser.parse_args(arguments)
    failed = check_all(CHECKS, options.root, fix=options.fix)
    for check in failed:
        print(f"FAILED {check.name} ({' '.join(check.command)}): {check.mend}")
    if not failed:
        print(f"{len(CHECKS)} checks hold: {', '.join(check.name for check in CHECKS)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
