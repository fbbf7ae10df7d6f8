"""Measure our queue beside the published package 0.9, in the same run, on the embedded server.

Each column is a process of its own, which does what it is asked while all others sleep. In each round every column
does every row once, so that a machine that is slow for a while is slow for all. Only the ratios mean anything: each is
the median of those of all rounds. Progress goes to stderr, the tables to stdout.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
from asking import Bench
from others import TITLES, Others, measure_others
from plan import LOADS, QUICK, Load, Scale
from probe import Probe
from rate_table import Rates
from rich.console import Console
from workers import COLUMNS, WorkerError, open_workers

from torrelque import open_server

#: Where ``make bench`` puts the published package.
_PEER = Path(__file__).parent.parent / ".venv/peer/bin/python"
_WIDTH = 160


@dataclass(frozen=True)
class Choice:
    """What the command line asked for."""

    scale: Scale
    only: re.Pattern[str]
    server: str | None
    published: Path


def arguments() -> Choice:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="rows of the second table:\n  " + "\n  ".join(TITLES),
    )
    parser.add_argument("--quick", action="store_true", help="two short rounds and little of everything: to try it out")
    parser.add_argument("--only", metavar="REGEX", default="", help="only the rows in whose names this is found")
    parser.add_argument("--rounds", type=int, help=f"rounds ({Scale.rounds})")
    parser.add_argument("--seconds", type=float, help=f"for each rate in each round ({Scale.seconds})")
    parser.add_argument(
        "--memory-tasks", type=int, help=f"pending tasks whose memory is measured ({Scale.memory_tasks:,})"
    )
    parser.add_argument(
        "--server", help="a redis-server or valkey-server of your own, with which to replace the embedded"
    )
    parser.add_argument(
        "--published", type=Path, default=_PEER, help="a Python that has the published package (%(default)s)"
    )
    given = parser.parse_args()
    if not given.published.exists():
        parser.error(f"{given.published} does not exist: `make bench` makes it")
    changes = {name: getattr(given, name) for name in ("rounds", "seconds", "memory_tasks")}
    scale = replace(QUICK if given.quick else Scale(), **{k: v for k, v in changes.items() if v is not None})
    return Choice(scale, re.compile(given.only), given.server, given.published)


def loads_for(only: re.Pattern[str]) -> list[Load]:
    """The loads that have to be timed for at least one row that is wanted."""
    return [load for load in LOADS if any(map(only.search, (load.enqueue_row, load.work_row, load.bytes_row)))]


async def measure_rates(bench: Bench, loads: list[Load]) -> Rates:
    """All rounds of all loads on all columns."""
    rates = Rates()
    for number in range(bench.scale.rounds):
        for load in loads:
            bench.progress(f"round {number + 1} of {bench.scale.rounds}: {load.label}")
            for column in COLUMNS:
                answer = await bench.ask(column, "rates", seconds=bench.scale.seconds, **load.shape)
                rates.add(load, column, answer)
    return rates


async def run(choice: Choice) -> None:
    """Measure and print everything that was asked for."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    async with (
        open_server(server=choice.server, fsync="no", options={"auto-aof-rewrite-percentage": "0"}) as url,
        open_workers(url, choice.published) as workers,
    ):
        bench = Bench(workers, Probe(url), choice.scale)
        loads = loads_for(choice.only)
        rates = await measure_rates(bench, loads)
        table = rates.table(choice.only, loads)
        if table.row_count:
            console.print(table)
        others = Others(bench, rates, choice.only)
        await measure_others(others)
        if others.rows:
            console.print(others.table())
    bench.progress("done")


def main() -> int:
    """Run; 1 when anything broke."""
    choice = arguments()
    broken: list[BaseException] = []
    try:
        anyio.run(run, choice)
    except* WorkerError as errors:
        broken += errors.exceptions
    for error in broken:
        print(error, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
