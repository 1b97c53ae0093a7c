"""``python -m tests.scenarios [NAME…]``: write the outputs of these scenarios, or of all, anew; say what changed."""

import sys

from tests.scenarios.run import differences, outcome, scenario_files


def main(names: list[str]) -> int:
    wrong = 0
    for scenario in scenario_files():
        if names and scenario.path.stem not in names:
            continue
        records = scenario.run()
        written = b"".join(record.line() for record in records)
        before = scenario.expected_path.read_bytes() if scenario.expected_path.exists() else b""
        scenario.expected_path.write_bytes(written)
        wrong_records = list(differences(scenario.expected, outcome(records)))
        wrong += bool(wrong_records)
        state = "as before" if written == before else f"written anew, {len(records)} records"
        print(f"{scenario.path.stem}: {state}{''.join(f'; {text}' for text in wrong_records)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
