"""The command line: reads arguments, calls the queue, prints what it says, and turns errors into exit codes."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import click
from anyio.abc import TaskStatus
from rich.console import Console

from torrelque import __version__, checks
from torrelque.demo.producer import Plan, run_demo
from torrelque.demo.screen import ConsoleScreen
from torrelque.errors import (
    TorrelqueError,
    TorrelqueLookupError,
    TorrelqueRedisError,
    TorrelqueTimeoutError,
    TorrelqueUnavailableError,
)
from torrelque.model import TorrelqueTaskStatus
from torrelque.queue import Torrelque

from . import plugins, printing, reading

# Exit codes
OK, NOT_SO, USAGE, REDIS, BUG, INTERRUPTED = 0, 1, 2, 3, 70, 130

EXIT_CODES = """\b
Exit codes:
  0    done
  1    what was asked for is not so: no such task, rejected, not in time, not in order
  2    the arguments or the configuration cannot be used
  3    Redis cannot be reached, or failed
  130  stopped by Ctrl-C (and 143 by SIGTERM)"""

DEFAULT_URL = "redis://127.0.0.1:6379/0"
URL = "The server: redis://, rediss:// (TLS), unix://, or redis+sentinel:// and redis+cluster:// with several of them."
BACKENDS = click.Choice(["asyncio", "trio"])
#: Seconds until a server must have accepted the connection.
CONNECT_TIMEOUT = 10


# Errors


#: What goes wrong, and with what the command ends; the first that fits.
_CODES: list[tuple[type[BaseException], int]] = [
    (KeyboardInterrupt, INTERRUPTED),
    (click.Abort, INTERRUPTED),
    (click.ClickException, USAGE),
    (BrokenPipeError, NOT_SO),
    (TorrelqueRedisError, REDIS),
    (TorrelqueLookupError, NOT_SO),
    (TorrelqueTimeoutError, NOT_SO),
    (TorrelqueError, USAGE),
    (OSError, USAGE),
    (BaseException, BUG),
]

#: What stands behind the scheme of a URL that may hold a password: before the host, or behind it.
_SECRET = re.compile(r"(?<=://)\S*[@?]\S*")


#: So begins what Redis itself says: it is there.
_REFUSAL = re.compile(r"[A-Z]{3,} ")


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    settings = Settings()
    try:
        return cli.main(list(arguments), "torrelque", standalone_mode=False, obj=settings) or OK
    except BaseException as raised:
        error = _single(raised)
        if isinstance(error, SystemExit):
            raise error from None
        if settings.verbose:
            click.echo(_masked("".join(traceback.format_exception(raised))), err=True)
        if text := _explain(error, settings):
            _complain("error", text)
        return next(code for kind, code in _CODES if isinstance(error, kind))


def _single(error: BaseException) -> BaseException:
    """Find one error to tell of in what may be a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _explain(error: BaseException, settings: Settings) -> str:
    """Say what went wrong, and the way out."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return ""
    if isinstance(error, BrokenPipeError):
        # Who reads has enough. The interpreter shall not try to write the rest when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ""
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "torrelque"
        return f"{error.format_message()} (see '{command} --help')"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, TorrelqueUnavailableError) and _REFUSAL.match(str(error)):
        return f"Redis at {settings.shown_url} does not serve now: {error}"
    if isinstance(error, TorrelqueUnavailableError):
        return (
            f"Redis cannot be reached at {settings.shown_url}: {error}. Is a server running there?"
            " Start one, or name another with --url or TORRELQUE_URL (`torrelque demo` brings its own)"
        )
    if isinstance(error, TorrelqueRedisError):
        return f"Redis failed at {settings.shown_url}: {error}"
    if isinstance(error, TorrelqueError | OSError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error} (a bug: --verbose tells where)"


def _complain(kind: str, text: str) -> None:
    """Print one line on standard error, without secrets."""
    click.echo(f"torrelque: {kind}: {_masked(' '.join(text.split()))}", err=True)


def _masked(text: str) -> str:
    return _SECRET.sub(lambda found: f"***@{_address(found[0])}", text)


def _address(rest: str) -> str:
    """Cut what may be secret out of a URL without its scheme."""
    address, _, query = rest.partition("?")
    # What looks like a query may be the rest of a password, and the address its beginning.
    return "***" if "@" in query else address.rpartition("@")[2]


class _OneLine(logging.Formatter):
    """Formats a warning of the library like an error of the command; no traceback."""

    def format(self, record: logging.LogRecord) -> str:
        text = " ".join(record.getMessage().split())
        cause = f": {record.exc_info[1]}" if record.exc_info and record.exc_info[1] else ""
        return f"torrelque: {record.levelname.lower()}: {_masked(text + cause)}"


class _Detailed(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _masked(super().format(record))


def _log(verbose: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Detailed("%(asctime)s %(name)s %(levelname)s %(message)s") if verbose else _OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("torrelque").setLevel(logging.DEBUG if verbose else logging.WARNING)


# Running


@dataclass
class Settings:
    """What the options before the command say."""

    #: ``None`` unless the user has named one.
    url: str | None = None
    queue: str = "trq"
    backend: str = "asyncio"
    verbose: bool = False

    @property
    def whole_url(self) -> str:
        """The URL that is used. An empty one, of a variable that is not set, must not be taken for none."""
        return DEFAULT_URL if self.url is None else self.url

    @property
    def shown_url(self) -> str:
        """The URL without what may be secret in it."""
        scheme, _, rest = self.whole_url.partition("://")
        return f"{scheme}://{_address(rest)}"

    def open(self) -> Torrelque:
        """Make the queue, to be entered.

        :raises click.UsageError: the URL cannot be used
        :raises TorrelqueError: the name of the queue cannot
        """
        self.check_url()
        return Torrelque.from_url(self.whole_url, queue=self.queue, connect_timeout=CONNECT_TIMEOUT)

    def check_url(self) -> None:
        """See whether the URL can be used.

        :raises click.UsageError: it cannot
        """
        try:
            Torrelque.from_url(self.whole_url)
        except (ValueError, TypeError) as error:
            # A part of a password may be taken for something else, and quoted.
            why = "" if "@" in self.whole_url else f"{error}; "
            raise click.UsageError(
                f"the URL of the server cannot be used: {why}write redis://host:port/number, rediss://...,"
                " unix:///path, redis+sentinel://host:port,host:port/service or redis+cluster://host:port,host:port;"
                " a user and a password go before the host, special characters as % escapes"
            ) from None


def _run(settings: Settings, function: Callable[[], Awaitable[int]]) -> int:
    """Run *function* on the event loop; returns the exit code."""
    if settings.backend == "trio" and importlib.util.find_spec("trio") is None:
        raise click.UsageError("--backend trio needs Trio: pip install trio")
    return anyio.run(function, backend=settings.backend)


def _with_queue(settings: Settings, use: Callable[[Torrelque], Awaitable[int]], *, stopped: int | None = None) -> int:
    """Open the queue, and *use* it until a signal."""

    async def function() -> int:
        # The signal ends what is done with the queue, and not the connection: what is under way can end well.
        async with settings.open() as queue:
            return await _until_signal(lambda: use(queue), stopped)

    return _run(settings, function)


async def _until_signal(function: Callable[[], Awaitable[int]], stopped: int | None = None) -> int:
    """Run *function*, which Ctrl-C and SIGTERM cancel.

    :param stopped: the exit code then; by default the usual one of the signal
    """
    code = OK

    async def listen(*, task_status: TaskStatus[None]) -> None:
        nonlocal code
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            number = await anext(signals)
            code = 128 + number if stopped is None else stopped
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        await group.start(listen)
        code = await function()
        group.cancel_scope.cancel()
    return code


# Commands


@click.group(
    cls=plugins.Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="torrelque")
@click.option("--url", envvar="TORRELQUE_URL", show_envvar=True, help=f"{URL}  [default: {DEFAULT_URL}]")
@click.option(
    "--queue", envvar="TORRELQUE_QUEUE", default="trq", show_envvar=True, show_default=True, help="The queue."
)
@click.option("--backend", type=BACKENDS, default="asyncio", show_default=True, help="The event loop.")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done, and show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, url: str | None, queue: str, backend: str, verbose: bool) -> None:
    """A reliable work queue on Redis and Valkey.

    These options go before the command, the command's own options after it.

    \b
    Examples:
      torrelque demo
      torrelque enqueue '{"user": 42}'
      torrelque --queue mails stats
      torrelque --queue mails check
      TORRELQUE_URL=redis://redis.example:6379/0 torrelque sweep --every 10
    """
    settings = context.find_object(Settings)
    assert settings is not None
    settings.url, settings.queue, settings.backend, settings.verbose = url, queue, backend, verbose
    _log(verbose)
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command(epilog=EXIT_CODES)
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, readable=True))
@click.option("--workers", type=click.IntRange(2, 64), default=4, show_default=True, help="Worker processes.")
@click.option("--url", help="Use this server, and a queue of a fresh name in it; by default one is started.")
@click.option("--backend", type=BACKENDS, help="The event loop of the producer.")
@click.pass_obj
def demo(settings: Settings, folder: str | None, workers: int, url: str | None, backend: str | None) -> int:
    """Digest every file below FOLDER, kill a worker half-way, and check.

    FOLDER is Python's own library by default. A server is started for the demo, unless --url or TORRELQUE_URL
    names one. Each file becomes a task; the workers are processes, half of them on asyncio, half on Trio. What
    the killed one held is delivered again when its lease has ended. At last every result is compared with the
    file itself: nothing may be lost, nothing may be wrong. On a server of yours the results expire within five
    minutes.

    \b
    Examples:
      torrelque demo
      torrelque demo ~/Documents --workers 8
      torrelque demo --url redis://127.0.0.1:6379/0
    """
    settings.url, settings.backend = settings.url if url is None else url, backend or settings.backend
    if settings.url is not None:
        settings.check_url()
    screen = ConsoleScreen(Console())

    async def function() -> int:
        report = await run_demo(Plan(folder, workers, settings.url), screen)
        screen.show(report)
        return OK if report.good else NOT_SO

    return _run(settings, lambda: _until_signal(function))


@cli.command(epilog=EXIT_CODES)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def stats(settings: Settings, as_json: bool) -> int:
    """Count the tasks of the queue.

    \b
    Examples:
      torrelque stats
      torrelque --queue mails stats --json
    """

    async def use(queue: Torrelque) -> int:
        counts = (await queue.get_queue_stats())._asdict()
        printing.show({**counts, "dead_letters": await queue.count_dead_letters()}, as_json)
        return OK

    return _with_queue(settings, use)


@cli.command(epilog=EXIT_CODES)
@click.option("--every", type=float, metavar="SECONDS", help="Go on until Ctrl-C or SIGTERM, which end well: 0.")
@click.pass_obj
def sweep(settings: Settings, every: float | None) -> int:
    """Give back what has ended, and print how much.

    "stale" tasks had a lease that ended, "due" ones a delay that passed, "undequeued" ones were on their way to a
    consumer that is gone. With --every it goes on, and leases and delays are also looked at when they end;
    torrelque -v sweep --every logs each sweep.

    \b
    Examples:
      torrelque sweep
      torrelque -v sweep --every 30
    """
    if every is not None:
        checks.positive_seconds("--every", every)

    async def use(queue: Torrelque) -> int:
        stale, due, undequeued = await queue.sweep()
        printing.show({"stale": stale, "due": due, "undequeued": undequeued}, as_json=False)
        if every is not None:
            await queue.run_sweep(every)
        return OK

    return _with_queue(settings, use, stopped=None if every is None else OK)


@cli.command(epilog=EXIT_CODES)
@click.option("--repair", is_flag=True, help="Put right what is found.")
@click.option(
    "--grace", type=float, default=2.0, show_default=True, metavar="SECONDS", help="Time between the two looks."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def check(settings: Settings, repair: bool, grace: float, as_json: bool) -> int:
    """See whether server and queue are in order.

    Each task has to stand in one place, with its payload and its state. Of the server it says, on standard error,
    what loses tasks or what else matters, why, and what to do about it. The queue may be in use: what seems wrong
    counts only if it is so again after the grace. Without --repair nothing is changed. With it no task is lost:
    what has a payload and has not ended is delivered. Each finding is a line. The exit code is 1 if something is
    wrong and was not repaired, or if the server is a danger.

    \b
    A finding, what it is, and what --repair does:
      ghost     an id without a payload: dropped
      orphan    a payload whose id stands nowhere: back to pending
      leftover  something of a task that has ended: removed, but for its final state
      twice     an id in two places, or twice in a list: one of them stays
      status    not that of the place: written anew
      state     missing or foreign, or its fields are: gets defaults
      score     a lease or a delay without an end: the one begins anew, the other ends
      expiry    a live state that would expire, a final one that never does: put right
      type      a key of a foreign type: nothing, who put it there must remove it

    \b
    Examples:
      torrelque check
      torrelque --queue mails check --repair
      torrelque check --json
    """
    checks.seconds("--grace", grace)

    async def use(queue: Torrelque) -> int:
        server = await queue.inspect_server()
        for known in () if as_json else server.findings:
            _complain(known.severity, f"{known.what}: {known.why}. Way out: {known.way_out}")
        with printing.progress(None, "entries") as bar:
            report = await queue.check(repair=repair, grace=grace, progress=bar.to)
        if as_json:
            click.echo(printing.as_json_text(printing.checked(report, server)))
        else:
            for finding in report.findings:
                click.echo(printing.finding(finding))
            counts = {"looked_at": report.looked_at, "findings": len(report.findings), "left": len(report.left)}
            printing.show(counts, as_json)
        return NOT_SO if report.left or server.dangers else OK

    return _with_queue(settings, use)


@cli.command(epilog=EXIT_CODES)
@click.argument("task_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; times are unix times.")
@click.pass_obj
def state(settings: Settings, task_id: str, as_json: bool) -> int:
    """Show what is known about a task.

    A task that was released without a result is not known any more, nor is one whose result has expired.

    \b
    Examples:
      torrelque state 3f0c...
      torrelque state 3f0c... --json
    """

    async def use(queue: Torrelque) -> int:
        found = await queue.get_task_state(task_id)
        printing.show(printing.plain(task_id, found) if as_json else printing.readable(task_id, found), as_json)
        return OK

    return _with_queue(settings, use)


@cli.command(epilog=EXIT_CODES)
@click.argument("task_id", metavar="ID")
@click.option("--timeout", type=float, metavar="SECONDS", help="Wait no longer; then the exit code is 1.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object on each line; times are unix times.")
@click.pass_obj
def watch(settings: Settings, task_id: str, timeout: float | None, as_json: bool) -> int:
    """Follow a task to its end.

    Prints a line for its present state, and one for each change. The last line is the final state, with the
    result: the exit code is 0 for "completed" and 1 for "rejected". When no result was kept, the last line is
    "released", and the exit code 0. The server must send notifications: notify-keyspace-events KA, or Kgh.

    \b
    Examples:
      torrelque watch 3f0c...
      torrelque watch 3f0c... --timeout 60 --json
    """

    async def use(queue: Torrelque) -> int:
        status = None
        async for found in queue.watch(task_id, timeout=timeout):
            click.echo(printing.as_json_text(printing.plain(task_id, found)) if as_json else printing.line(found))
            status = found.status
        if status is None or not status.isfinal():
            click.echo(printing.as_json_text({"id": task_id, "status": "released"}) if as_json else "released")
        return NOT_SO if status is TorrelqueTaskStatus.REJECTED else OK

    return _with_queue(settings, use)


@cli.group(epilog=EXIT_CODES)
def dead() -> None:
    """Look at dead letters, requeue or purge them.

    Dead letters are tasks that were given up and kept, with their payloads: by a consumer that rejected them, or
    because they were delivered as often as a limit on deliveries allows. Nobody gets them, and they never expire:
    requeue them when the cause is mended, or purge them.

    \b
    Examples:
      torrelque dead list
      torrelque dead requeue 3f0c...
      torrelque dead purge --all --yes
    """


@dead.command("list", epilog=EXIT_CODES)
@click.option("--max", "most", type=click.IntRange(1), default=100, show_default=True, help="So many at most.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object on each line; times are unix times.")
@click.pass_obj
def list_letters(settings: Settings, most: int, as_json: bool) -> int:
    """List dead letters, those that were given up first before others.

    \b
    Examples:
      torrelque dead list
      torrelque dead list --max 100000 --json | jq -r .id
    """

    async def use(queue: Torrelque) -> int:
        left, after = most, None
        while left and (page := await queue.dead_letters(min(left, checks.MAX_TASKS), after=after)):
            for letter in page:
                click.echo(
                    printing.as_json_text(printing.plain_letter(letter)) if as_json else printing.letter_line(letter)
                )
            left, after = left - len(page), page[-1].cursor
        return OK

    return _with_queue(settings, use)


_ids = click.argument("task_ids", nargs=-1, metavar="[ID]...")


@dead.command("requeue", epilog=EXIT_CODES)
@_ids
@click.option("--all", "everything", is_flag=True, help="All that are there now.")
@click.pass_obj
def requeue_letters(settings: Settings, task_ids: tuple[str, ...], everything: bool) -> int:
    """Give dead letters back to the queue; their attempts begin anew.

    Prints how many there were. IDs that are no dead letters are passed over, and make the exit code 1.

    \b
    Examples:
      torrelque dead requeue 3f0c...
      torrelque dead requeue --all
    """
    return _over_letters(settings, Torrelque.requeue_dead_letters, "requeued", task_ids, everything)


@dead.command("purge", epilog=EXIT_CODES)
@_ids
@click.option("--all", "everything", is_flag=True, help="All that are there now; needs --yes.")
@click.option("--yes", is_flag=True, help="Yes, all of them, for good.")
@click.pass_obj
def purge_letters(settings: Settings, task_ids: tuple[str, ...], everything: bool, yes: bool) -> int:
    """Remove dead letters for good, with all that is known about them.

    Prints how many there were. IDs that are no dead letters are passed over, and make the exit code 1.

    \b
    Examples:
      torrelque dead purge 3f0c...
      torrelque dead purge --all --yes
    """
    if everything and not yes:
        raise click.UsageError("--all removes every dead letter for good: add --yes")
    return _over_letters(settings, Torrelque.purge_dead_letters, "purged", task_ids, everything)


def _over_letters(
    settings: Settings,
    call: Callable[[Torrelque, Sequence[str] | None], Awaitable[int]],
    done: str,
    task_ids: tuple[str, ...],
    everything: bool,
) -> int:
    if bool(task_ids) == everything:
        raise click.UsageError("give either IDs, or --all")

    async def use(queue: Torrelque) -> int:
        count = await call(queue, None if everything else task_ids)
        printing.show({done: count}, as_json=False)
        return OK if everything or count == len(set(task_ids)) else NOT_SO

    return _with_queue(settings, use)


@dataclass(frozen=True)
class Terms:
    """On what terms tasks are enqueued."""

    delay: float | None
    task_timeout: float | None
    task_ids: list[str] | None = None


@cli.command(epilog=EXIT_CODES)
@click.argument("values", nargs=-1, metavar="[JSON]...")
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, readable=True, allow_dash=True),
    help="Read the tasks from a file, or from standard input (-): one JSON value on each line, in UTF-8.",
)
@click.option("--delay", type=float, metavar="SECONDS", help="Let them be due after this time.")
@click.option("--task-timeout", type=float, metavar="SECONDS", help="Length of a lease.  [default: 300]")
@click.option("--id", "task_id", help="The id of the task, if it is a single one: the same again changes nothing.")
@click.pass_obj
def enqueue(
    settings: Settings,
    values: tuple[str, ...],
    path: str | None,
    delay: float | None,
    task_timeout: float | None,
    task_id: str | None,
) -> int:
    """Add tasks to the queue; prints an id on each line.

    Each task is a JSON value: a string needs quotes of its own ('"like this"'), and -1 needs a -- before it. What
    is wrong in an argument or a file is found before anything is enqueued. Standard input is not waited for:
    what has come is enqueued, 500 tasks at most at once, and an error tells how many were before it. Empty lines
    do not count.

    \b
    Examples:
      torrelque enqueue '{"user": 42}' '{"user": 43}'
      torrelque enqueue --id report-2031-01 --delay 3600 '"report"'
      torrelque enqueue --file tasks.jsonl --task-timeout 60
      jq -c '.[]' tasks.json | torrelque enqueue --file -
    """
    if bool(values) == (path is not None):
        raise click.UsageError("give either JSON values, or --file (with - for standard input)")
    if task_id is not None and len(values) != 1:
        raise click.UsageError("--id goes with a single task")
    terms = Terms(delay, task_timeout, None if task_id is None else [task_id])
    if path is None:
        tasks = [reading.parse(os.fsencode(value), f"argument {n}") for n, value in enumerate(values, 1)]
        return _with_queue(settings, lambda queue: _enqueue(queue, tasks, terms, Tally()))
    total = reading.check_file(path)
    with reading.opened(path) as descriptor:
        return _with_queue(settings, lambda queue: _enqueue_lines(queue, descriptor, total, terms))


@dataclass
class Tally:
    """How many tasks were enqueued, and how many more may be: those that were on their way when it ended."""

    sure: int = 0
    doubtful: int = 0

    def __str__(self) -> str:
        return f"{self.sure} tasks" + (f", and perhaps up to {self.doubtful} more," if self.doubtful else "")


async def _enqueue(queue: Torrelque, tasks: list[Any], terms: Terms, tally: Tally) -> int:
    tally.doubtful = len(tasks)
    task_ids = await queue.enqueue_many(
        tasks, delay=terms.delay, task_timeout=terms.task_timeout, task_ids=terms.task_ids
    )
    tally.sure, tally.doubtful = tally.sure + len(tasks), 0
    click.echo("\n".join(task_ids))
    return OK


async def _enqueue_lines(queue: Torrelque, descriptor: int, total: int | None, terms: Terms) -> int:
    tally = Tally()
    try:
        with printing.progress(total, "tasks") as bar:
            async for lines in reading.portions(descriptor):
                if tasks := reading.parse_lines(lines):
                    await _enqueue(queue, tasks, terms, tally)
                    bar.advance(len(tasks))
    except click.ClickException as error:
        raise click.ClickException(f"{error.message}; {tally} were enqueued before") from None
    finally:
        _complain("info", f"{tally} enqueued")
    return OK
