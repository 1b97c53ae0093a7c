"""``python -m tests.simulation``: many seeds over the cores, or the whole trace of one."""

import argparse
import sys

from tests.simulation.campaign import mode_of, run_all
from tests.simulation.scenario import MODES, Mode
from tests.simulation.world import run


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 if an invariant does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--mode", choices=MODES, help="the default is half the seeds in each")
    parser.add_argument("--trace", type=int, metavar="SEED", help="run this one and print its whole trace")
    options = parser.parse_args(arguments)
    if options.trace is not None:
        return trace(options.trace, options.mode or mode_of(options.trace))
    seeds = range(options.first, options.first + options.seeds)
    return run_all([(seed, options.mode or mode_of(seed)) for seed in seeds], options.jobs)


def trace(seed: int, mode: Mode) -> int:
    """Print everything that happens in one run."""
    result = run(seed, mode, trace_lines=None)
    print("\n".join(result.trace))
    print(f"seed {seed} {mode}: digest {result.digest:08x}, {result.steps} steps, {result.failure or 'ok'}")
    return 1 if result.failure else 0


if __name__ == "__main__":
    sys.exit(main())
