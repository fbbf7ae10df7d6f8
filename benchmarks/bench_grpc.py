"""Measure the gRPC server: beside a bare server of the same stack, beside the library, and its calls beside each other.

One Valkey, on which three servers stand that live as long as the run: `torrelque serve`, the same with --workers 2,
and a bare grpc.aio server that answers Enqueue with a constant. Clients are processes of their own, written in Go, as
clients in Python would cost more than what they measure: go-load (benchmarks/go-load), and ghz for a second opinion
on the first rows.

In each round each row is measured once, while all other servers have nothing to do; so a machine that is slow for a
while is slow for all. Only the ratios mean anything: each is the median of those of all rounds. Servers, Valkey and
clients share the cores of this machine, so the table tells how much of them the client had.

Progress goes to stderr, the table to stdout. A target that is missed is marked; it is no error.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import anyio
from grpc_build import BuildError, Clients, build
from grpc_load import PAYLOAD, Generator, LoadError
from grpc_plan import GHZ, QUICK, ROWS, Row, Scale
from grpc_processes import ServerError, open_servers
from grpc_table import Outcomes
from probe import Probe
from rich.console import Console

from torrelque import open_server

_WIDTH = 170


@dataclass(frozen=True)
class Choice:
    """What the command line asked for."""

    scale: Scale
    only: re.Pattern[str]
    server: str | None


def arguments() -> Choice:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="rows:\n  " + "\n  ".join(row.label for row in ROWS),
    )
    parser.add_argument("--quick", action="store_true", help="two short rounds: to try it out")
    parser.add_argument("--only", metavar="REGEX", default="", help="only the rows in whose names this is found")
    parser.add_argument("--rounds", type=int, help=f"rounds ({Scale.rounds})")
    parser.add_argument("--seconds", type=float, help=f"for each row in each round ({Scale.seconds:g})")
    parser.add_argument(
        "--server", help="a redis-server or valkey-server of your own, with which to replace the embedded"
    )
    given = parser.parse_args()
    changes = {name: getattr(given, name) for name in ("rounds", "seconds")}
    scale = replace(QUICK if given.quick else Scale(), **{k: v for k, v in changes.items() if v is not None})
    return Choice(scale, re.compile(given.only), given.server)


def versions(probe: Probe, clients: Clients) -> str:
    """Tell what was measured."""

    def of(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"no {package}"

    info = probe.admin.info("server")
    storage = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    packages = ", ".join(map(of, ("grpcio", "protobuf", "uvloop", "redis")))
    return (
        f"{os.cpu_count()} cores, shared by servers, storage and clients; payloads of {PAYLOAD} bytes; "
        f"Python {platform.python_version()}, {packages}; {storage} without fsync; clients: {clients.go}"
    )


def progress(text: str) -> None:
    """Tell what is being done."""
    print(f"bench: {time.monotonic() - _STARTED:4.0f} s  {text}", file=sys.stderr, flush=True)


_STARTED = time.monotonic()


async def measure(generator: Generator, rows: list[Row]) -> Outcomes:
    """All rounds of all rows."""
    outcomes = Outcomes()
    rounds = generator.scale.rounds
    for number in range(rounds):
        for index, row in enumerate(rows):
            progress(f"round {number + 1} of {rounds}: {row.label}")
            outcomes.add(row, await generator.run(row, f"bench-{number}-{index}"))
    return outcomes


async def run(choice: Choice, clients: Clients) -> None:
    """Measure and print everything that was asked for."""
    rows = [row for row in ROWS if choice.only.search(row.label) and (clients.ghz or row.client != GHZ)]
    if clients.ghz is None:
        progress("ghz is not in .venv/go/bin: its rows are left out")
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    async with (
        open_server(server=choice.server, fsync="no", options={"auto-aof-rewrite-percentage": "0"}) as url,
        open_servers(url) as servers,
    ):
        probe = Probe(url)
        outcomes = await measure(Generator(clients, servers, probe, url, choice.scale), rows)
        console.print(outcomes.table(rows, versions(probe, clients)))
    progress("done")


def main() -> int:
    """Run; 2 when something is missing, 1 when anything broke, and 0 whatever was missed."""
    choice = arguments()
    try:
        progress("building the clients")
        clients = build()
    except BuildError as error:
        print(error, file=sys.stderr)
        return 2
    broken: list[BaseException] = []
    try:
        anyio.run(run, choice, clients)
    except* (LoadError, ServerError) as errors:
        broken += errors.exceptions
    for error in broken:
        print(error, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
