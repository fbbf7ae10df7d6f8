"""What the demo shows: progress while it runs, a table at its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from anyio import create_task_group, sleep
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .report import Report, Run, Share, Verdict

#: Seconds between two looks at the run: on a terminal, and where lines are logged.
FRAME = 0.1
LINE = 1.0


class ConsoleScreen:
    """Shows the demo on a terminal, or as plain lines where there is none."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """Show a line, above the progress if there is some."""
        self._console.print(escape(_printable(text)), highlight=False, soft_wrap=True)

    @asynccontextmanager
    async def live(self, run: Run) -> AsyncGenerator[None]:
        """Show the progress of a run as long as the scope lasts."""
        show = self._draw if self._console.is_terminal else self._log
        async with create_task_group() as group:
            group.start_soon(show, run)
            yield
            group.cancel_scope.cancel()
        self.say(_progress(run))

    async def _log(self, run: Run) -> None:
        while True:
            await sleep(LINE)
            self.say(_progress(run))

    async def _draw(self, run: Run) -> None:
        columns = BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=self._console, transient=True) as progress:
            bar = progress.add_task("", total=run.total)
            while True:
                progress.update(bar, completed=run.done, description=_progress(run))
                await sleep(FRAME)

    def show(self, report: Report) -> None:
        """Show how it ended."""
        self._console.print(_workers(report))
        self._console.print(_totals(report))
        for verdict, path in report.examples:
            self.say(f"{verdict.value}: {path}")


def _progress(run: Run) -> str:
    return (
        f"{run.done:,} of {run.total:,} tasks, {run.rate:,.0f}/s, {_megabytes(run.bytes)} MB,"
        f" redelivered {run.redelivered:,}"
    )


def _workers(report: Report) -> Table:
    table = Table("worker", "loop")
    table.add_column("tasks", justify="right")
    table.add_column("MB", justify="right")
    table.add_column("end")
    for share in report.shares:
        table.add_row(*_row(share))
    return table


def _row(share: Share) -> tuple[str, ...]:
    worker = share.worker
    end = "killed" if worker.killed else "stopped" if worker.expected else "died"
    return str(worker.process.pid), worker.loop, f"{share.tasks:,}", _megabytes(share.bytes), end


def _totals(report: Report) -> Table:
    run, verdicts = report.run, report.verdicts
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("tasks", f"{run.done:,}")
    table.add_row("seconds", f"{run.seconds:.1f}")
    table.add_row("tasks per second", f"{run.rate:,.0f}")
    table.add_row("MB", _megabytes(run.bytes))
    table.add_row("redelivered", f"{run.redelivered:,}")
    table.add_row("lost", f"{verdicts[Verdict.LOST]:,}")
    table.add_row("mismatches", f"{verdicts[Verdict.MISMATCH]:,}")
    if verdicts[Verdict.CHANGED]:
        table.add_row("files changed meanwhile", f"{verdicts[Verdict.CHANGED]:,}")
    if report.skipped:
        table.add_row("unreadable, skipped", f"{report.skipped:,}")
    return table


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def _printable(text: str) -> str:
    """Make the name of any file fit for a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
