"""Plants bugs and looks for what notices them: ``python -m tests.faults.planted --table``, or with names."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from faults.planted.bugs import BUGS
from faults.planted.killing import SEEDS, TABLE, kill
from faults.planted.table import table


def main() -> int:
    """Try bugs; 1 when one survives."""
    parser = argparse.ArgumentParser("python -m tests.faults.planted", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all by default")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many histories to try (default {SEEDS})")
    parser.add_argument("--table", action="store_true", help="try all and write docs/planted-bugs.md")
    given = parser.parse_args()
    kills = []
    for name in given.names if given.names and not given.table else BUGS:
        kills.append(kill(BUGS[name], given.seeds))
        print(f"{'killed ' if kills[-1].killed else 'SURVIVES'} {name}: {kills[-1].by[:200]}", flush=True)
    if given.table:
        TABLE.write_text(table(kills), "utf-8")
    survivors = [each.bug.name for each in kills if not each.killed]
    print(f"{len(kills) - len(survivors)} of {len(kills)} killed", *survivors)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
