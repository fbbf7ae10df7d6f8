"""Replays one history: ``python -m tests.faults.simulation 1234 --trace``."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from faults.simulation.world import simulate


def main() -> int:
    """Run seeds and print what became of each."""
    parser = argparse.ArgumentParser("python -m tests.faults.simulation", description=__doc__)
    parser.add_argument("seeds", nargs="+", type=int, metavar="SEED")
    parser.add_argument("--trace", action="store_true", help="print everything that happens, with its virtual time")
    parser.add_argument("--plant", metavar="NAME", help="with a bug planted: a name of docs/planted-bugs.md")
    given = parser.parse_args()
    if given.plant is not None:
        from faults.planted.bugs import BUGS

        with BUGS[given.plant].planted():
            return _run(given.seeds, given.trace)
    return _run(given.seeds, given.trace)


def _run(seeds: list[int], trace: bool) -> int:
    broken = 0
    for seed in seeds:
        outcome = simulate(seed, keep_trace=trace)
        for line in outcome.trace:
            print(line)
        print(f"seed {seed} digest {outcome.digest} calls {outcome.operations} scripts {outcome.scripts}")
        for violation in outcome.violations:
            print(f"  BROKEN: {violation}")
        broken += bool(outcome.violations)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
