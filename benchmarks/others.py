"""The second table: everything that is not a rate."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from asking import Bench
from figures import milliseconds, number, percentile
from plan import LOADS
from rate_table import MISSED, Rates
from rich.table import Table
from workers import COLUMNS, OURS, PUBLISHED

#: What has been measured on one column only, for the client makes no difference.
_ONE = OURS[0]
#: The published package moves delayed tasks only when it sweeps. Its default is each 30 s; the bench has to end.
_PUBLISHED_SWEEP = 1.0
#: Tasks that MONITOR is on for.
_COUNTED = 1000


class Others:
    """Rows of the second table, as they come in."""

    def __init__(self, bench: Bench, rates: Rates, only: re.Pattern[str]) -> None:
        self.bench = bench
        self.rates = rates
        self.only = only
        self.rows: list[tuple[str, dict[str, str], str]] = []

    def add(self, label: str, cells: dict[str, str], to_reach: str = "", missed: tuple[str, ...] = ()) -> None:
        """Add a row; columns without a cell show a dash."""
        marked = {column: f"{text}\n{MISSED}" if column in missed else text for column, text in cells.items()}
        self.rows.append((label, marked, to_reach))

    def table(self) -> Table:
        """All rows."""
        table = Table(title="Other figures", title_style="bold")
        table.add_column("")
        for column in (*COLUMNS, "to reach"):
            table.add_column(column, justify="right")
        for label, cells, to_reach in self.rows:
            table.add_row(label, *(cells.get(column, "-") for column in COLUMNS), to_reach)
        return table


async def commands(others: Others) -> None:
    """To enqueue, dequeue and release one task."""
    for load in filter(lambda load: others.only.search(load.commands_row), LOADS):
        others.bench.progress(load.commands_row)
        tasks = max(_COUNTED, 4 * load.bulk, 4 * load.callers)
        cells = {}
        for column in COLUMNS:
            count = await others.bench.ask(column, "commands", tasks=tasks, **load.shape)
            cells[column] = number(count)
        others.add(load.commands_row, cells)


async def bytes_per_task(others: Others) -> None:
    """They were counted while the rates were measured."""
    for load in filter(lambda load: others.only.search(load.bytes_row), LOADS):
        cells = {}
        for column in COLUMNS:
            sent, received = (others.rates.bytes_per_task(load, column, way) for way in ("sent", "received"))
            cells[column] = f"{number(sent)} / {number(received)}"
        others.add(load.bytes_row, cells)


async def delivery(others: Others) -> None:
    """How soon an idle waiter has what is enqueued."""
    samples = await others.bench.sample("delivery", {})
    cells = {column: milliseconds(samples[column]) for column in COLUMNS}
    others.add("enqueue to delivery, idle waiter, p50 / p99 ms", cells)


async def lateness(others: Others) -> None:
    """How late delayed tasks are delivered."""
    arguments: dict[str, dict[str, Any]] = {column: {"sweep_interval": None} for column in OURS}
    arguments[PUBLISHED] = {"sweep_interval": _PUBLISHED_SWEEP}
    samples = await others.bench.sample("lateness", arguments)
    cells = {column: milliseconds(samples[column]) for column in COLUMNS}
    missed = tuple(column for column in OURS if percentile(samples[column], 0.99) > 0.05)
    others.add("delayed tasks late by, p50 / p99 ms (0.9: swept each second)", cells, "p99 50", missed)


async def idle(others: Others) -> None:
    """What is sent while nothing happens. What is sent less often than that (sweeps, renewed waits) is left out."""
    seconds = others.bench.scale.idle_seconds
    cells = {column: number(await others.bench.ask(column, "idle", seconds=seconds)) for column in COLUMNS}
    others.add(f"commands per second in {seconds:g} idle s: 50 dequeues, 20 watches, a scheduled sweep", cells)


async def watchers(others: Others) -> None:
    """How soon a crowd of watchers sees the ends of its tasks, and on how many connections."""
    scale = others.bench.scale
    counts = {column: scale.published_watchers if column == PUBLISHED else scale.watchers for column in COLUMNS}
    answers = {
        column: await others.bench.ask(column, "watchers", count=count, idle_seconds=min(2.0, scale.idle_seconds))
        for column, count in counts.items()
    }
    title = f"{scale.watchers:,} watchers (0.9: {scale.published_watchers:,})"
    soon = {column: milliseconds(answer["soon"]) for column, answer in answers.items()}
    others.add(f"{title}, release to end of watch, p50 / p99 ms", soon)
    for figure, what, most in ("connections", "subscribed connections", 1), ("idle", "commands per second, idle", 0):
        cells = {column: f"{answer[figure]:g}" for column, answer in answers.items()}
        missed = tuple(column for column in OURS if answers[column][figure] > most)
        others.add(f"{title}, {what}", cells, str(most), missed)


async def memory(others: Others) -> None:
    """What pending tasks cost the server; the client makes no difference."""
    tasks = others.bench.scale.memory_tasks
    cost = {column: await others.bench.ask(column, "memory", timeout=900, tasks=tasks) for column in (PUBLISHED, _ONE)}
    ratio = cost[_ONE] / cost[PUBLISHED]
    cells = {PUBLISHED: number(cost[PUBLISHED]), _ONE: f"{number(cost[_ONE])}  x{ratio:.2f}"}
    label = f"bytes of memory per pending task of 200 bytes, of {tasks:,}"
    others.add(label, cells, "x1", (_ONE,) if round(ratio, 2) > 1 else ())


async def backlog(others: Others) -> None:
    """One sweep of a large backlog. The published package's sweep fails with more than some 8,000 tasks."""
    due, stale = others.bench.scale.due, others.bench.scale.stale
    answer = await others.bench.ask(_ONE, "backlog", due=due, stale=stale)
    title = f"one sweep of {due:,} due, {stale:,} stale"
    moved = answer["report"] == [stale, due, 0]
    others.add(f"{title}, s", {_ONE: number(answer["seconds"])}, "all of them", () if moved else (_ONE,))
    _add_longest(others, f"{title}, longest script, ms", "backlog")


async def longest_scripts(others: Others) -> None:
    """The longest scripts that the rates have run."""
    if others.rates.rates:
        _add_longest(others, "longest script in SLOWLOG, ms", "rates")


def _add_longest(others: Others, label: str, job: str) -> None:
    seen = others.bench.longest_scripts
    longest = {column: max(seen[f"{job}, {column}"]) for column in COLUMNS if f"{job}, {column}" in seen}
    cells = {column: number(1000 * seconds) if seconds else "< 0.5" for column, seconds in longest.items()}
    missed = tuple(column for column in OURS if longest.get(column, 0) > 0.005)
    others.add(label, cells, "5", missed)


#: Rows that come with loads: these choose among them themselves.
_OF_LOADS: tuple[Callable[[Others], Awaitable[None]], ...] = (commands, bytes_per_task, longest_scripts)
_OF_THEIR_OWN: dict[str, Callable[[Others], Awaitable[None]]] = {
    "enqueue to delivery, idle waiter": delivery,
    "delayed tasks late by": lateness,
    "commands per second in idle seconds": idle,
    "watchers": watchers,
    "memory of pending tasks": memory,
    "backlog, one sweep": backlog,
}
#: What can be chosen with ``--only``.
TITLES = ("commands sent per task, LOAD", "bytes sent / received per task, LOAD", *_OF_THEIR_OWN)


async def measure_others(others: Others) -> None:
    """Measure what was chosen, in the order of the table."""
    for measure in _OF_LOADS:
        await measure(others)
    for title, measure in _OF_THEIR_OWN.items():
        if others.only.search(title):
            others.bench.progress(title)
            await measure(others)
