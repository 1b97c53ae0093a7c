"""``python -m tests.cases FILE…``: run cases and say which hold."""

import sys
from pathlib import Path

from tests.cases.run import HERE, differences, outcome, read_case


def main(arguments: list[str]) -> int:
    failed = 0
    for path in [Path(name) for name in arguments] or sorted(HERE.glob("*.json")):
        case = read_case(path)
        if case["kind"] == "stack":
            print(f"{path.name}: {case.get('shown_by', 'not run: it takes a broker')}")
            continue
        try:
            wrong = list(differences(case, outcome(case)))
        except Exception as error:  # the other cases are run all the same
            wrong = [repr(error)]
        failed += bool(wrong)
        print(f"{path.name}: {'holds' if not wrong else 'FAILS: ' + '; '.join(wrong)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
