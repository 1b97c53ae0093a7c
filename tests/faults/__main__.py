"""``python -m tests.faults``: rounds of faults for as long as one likes. Exit code 1 on any violation."""

import argparse
import sys

from tests.faults.broker_faults import BROKER_FAULTS
from tests.faults.broker_rounds import play_brokers
from tests.faults.faults import FAULTS
from tests.faults.rounds import play, schedule


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, metavar="N", help="how many (default: every fault once)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="order, load and times (default: 1)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these; a name's beginning will do")
    parser.add_argument(
        "--brokers", type=int, choices=(1, 3), default=1, help="the faults of one broker, or of three (default: 1)"
    )
    parser.add_argument("--list", action="store_true", help="print the names and leave")
    options = parser.parse_args()
    names, play_rounds = (FAULTS, play) if options.brokers == 1 else (BROKER_FAULTS, play_brokers)
    if options.list:
        print("\n".join(names))
        return 0
    only = [name for name in names if any(name.startswith(wanted) for wanted in options.only)]
    if options.only and not only:
        parser.error(f"--only {' '.join(options.only)}: no such fault; --list names them")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds} must be at least 1")
    result = play_rounds(
        schedule(options.rounds, only or list(names), options.seed), options.seed, lambda text: print(text, flush=True)
    )
    print("\n".join(result.lines()), flush=True)
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
