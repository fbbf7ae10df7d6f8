"""Prints what the queue says: for people, or as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn

from torrelque.errors import TorrelqueDecodeError
from torrelque.model import (
    TorrelqueCheckFinding,
    TorrelqueCheckReport,
    TorrelqueDeadLetter,
    TorrelqueServerReport,
    TorrelqueTaskState,
    TorrelqueTaskStatus,
)

#: The end of the times that have a date, unix time in seconds.
_NEVER = datetime(9999, 12, 31, tzinfo=UTC).timestamp()


class Bar:
    """A progress bar, which may be not shown."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, count: int) -> None:
        """Go on by *count*."""
        self._progress.advance(self._task, count)

    def to(self, done: int, total: int) -> None:
        """Show *done* of *total*."""
        self._progress.update(self._task, completed=done, total=total)


@contextmanager
def progress(total: int | None, what: str) -> Iterator[Bar]:
    """Show progress on standard error, if it is a terminal, and not the one where results are printed."""
    shown = _is_terminal(sys.stderr) and not _is_terminal(sys.stdout)
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True) as progress:
        yield Bar(progress, progress.add_task(what, total=total))


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()  # it is none where the command was started with it closed


def finding(found: TorrelqueCheckFinding) -> str:
    """One thing that is wrong with a task, for people; an id may hold anything."""
    return f"{found.damage:<9} {'repaired' if found.repaired else 'left':<9} {as_json_text(found.task_id)}"


def checked(report: TorrelqueCheckReport, server: TorrelqueServerReport) -> dict[str, Any]:
    """What a check has found, for programs."""
    known = {"server": server.server, "findings": [each._asdict() for each in server.findings]}
    return {**report._asdict(), "findings": [each._asdict() for each in report.findings], "server": known}


def plain(task_id: str, found: TorrelqueTaskState) -> dict[str, Any]:
    """What is known about a task, for programs."""
    return {"id": task_id, **found._asdict(), "status": found.status.name.lower()}


def plain_letter(letter: TorrelqueDeadLetter) -> dict[str, Any]:
    """What is known about a dead letter, for programs."""
    known = {"id": letter.task_id, **letter._asdict()}
    del known["task_id"], known["cursor"]
    for name in ("task", "reason"):
        if isinstance(known[name], TorrelqueDecodeError):
            known |= {name: None, f"{name}_error": str(known[name])}
    return known


def letter_line(letter: TorrelqueDeadLetter) -> str:
    known = plain_letter(letter)
    task, reason = (known.get(f"{name}_error") or as_json_text(known[name]) for name in ("task", "reason"))
    task_id = as_json_text(letter.task_id)[1:-1]  # one that a foreign hand has made may hold anything
    count = letter.dequeue_count
    return f"{_moment(letter.release_time)}  {task_id}  deliveries {count}, reason {reason}, task {task}"


def readable(task_id: str, found: TorrelqueTaskState) -> dict[str, Any]:
    """What is known about a task, for people."""
    known = {name: value for name, value in plain(task_id, found).items() if value is not None}
    return {name: _moment(value) if name.endswith("_time") else value for name, value in known.items()}


def line(found: TorrelqueTaskState) -> str:
    since = found.enqueue_time
    if found.status.isfinal():
        since = found.release_time or since
    elif found.status is TorrelqueTaskStatus.WORKING:
        since = found.last_dequeue_time or since
    else:
        since = found.last_requeue_time or since
    counts = f"deliveries {found.dequeue_count}, returns {found.requeue_count}"
    result = f", result {as_json_text(found.result)}" if found.status.isfinal() else ""
    return f"{_moment(since)}  {found.status.name.lower():<9}  {counts}{result}"


def _moment(seconds: float) -> str:
    if not 0 <= seconds < _NEVER:
        return str(seconds)  # a foreign hand, or a clock that is wrong, may have stored anything
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def show(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(as_json_text(values))
        return
    width = max(map(len, values))
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {value if isinstance(value, str) else as_json_text(value)}")


def as_json_text(value: Any) -> str:
    # ASCII: what a result holds can do nothing to a terminal, nor to an encoding.
    return json.dumps(value)
