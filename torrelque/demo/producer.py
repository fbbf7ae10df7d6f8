"""The demo itself: enqueues, follows every task to its end, kills a worker meanwhile, and checks every result."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from anyio import CancelScope, CapacityLimiter, create_task_group, current_time, from_thread, move_on_after, to_thread

from torrelque.embedded import open_server
from torrelque.errors import TorrelqueLookupError, TorrelqueTimeoutError, TorrelqueValueError
from torrelque.queue import Torrelque

from .crew import Crew, Member, open_crew
from .files import NOT_STANDARD, File, Listing, find_files, standard_library
from .report import Job, Report, Run, Verdict, judge, make_report

#: Seconds of a lease: so long the tasks of a killed worker stay away.
LEASE = 2.0
#: Seconds between two full sweeps.
SWEEP = 1.0
#: So many tasks are followed at the same time.
WATCHERS = 100
#: Files are checked in portions of so many: enough for a thread to be worth the way.
PORTION = 100
#: Seconds for emptying the queue on somebody's own server.
EMPTYING = 10.0


@dataclass(frozen=True)
class Plan:
    """What the demo is to do."""

    #: Where the files are; ``None`` is Python's own library.
    folder: str | None = None
    workers: int = 4
    #: The server to use; ``None`` starts one for the demo.
    url: str | None = None
    queue: str = field(default_factory=lambda: f"demo-{secrets.token_hex(4)}")


class Screen(Protocol):
    """Where the demo shows what it does."""

    def say(self, text: str) -> None:
        """Show a line."""
        ...

    def live(self, run: Run) -> AbstractAsyncContextManager[object]:
        """Show the progress of a run as long as the scope lasts."""
        ...


async def run_demo(plan: Plan, screen: Screen) -> Report:
    """Run the demo.

    :raises TorrelqueError: Redis cannot be reached or fails, or the workers do not start or have all ended
    """
    listing = await to_thread.run_sync(_find, plan.folder)
    if not listing.files:
        raise TorrelqueValueError(f"There is no file to read below {plan.folder}")
    async with _open_queue(plan) as (queue, url):
        await queue.get_queue_stats()  # rather one error here than one from each worker
        screen.say(f"{plan.workers} workers start, for {len(listing.files):,} files")
        async with open_crew(url, plan.queue, plan.workers, screen.say) as crew:
            run = await _work(queue, crew, listing.files, screen)
    screen.say("every digest is compared with one computed here")
    return make_report(run, listing.skipped, crew, await _check(run.jobs))


def _find(folder: str | None) -> Listing:
    if folder is None:
        return find_files(standard_library(), NOT_STANDARD, from_thread.check_cancelled)
    return find_files(folder, between=from_thread.check_cancelled)


@asynccontextmanager
async def _open_queue(plan: Plan) -> AsyncGenerator[tuple[Torrelque, str]]:
    """Open the queue on the user's server, which is left as it was, or on one of its own."""
    if plan.url is None:
        async with open_server() as url, Torrelque.from_url(url, queue=plan.queue) as queue:
            yield queue, url
    else:
        try:
            async with Torrelque.from_url(plan.url, queue=plan.queue) as queue:
                yield queue, plan.url
        finally:
            # A queue of its own: the connections of the other one end with a Ctrl-C.
            with move_on_after(EMPTYING, shield=True):
                async with Torrelque.from_url(plan.url, queue=plan.queue) as queue:
                    await _empty(queue)


async def _work(queue: Torrelque, crew: Crew, files: list[File], screen: Screen) -> Run:
    """Have every file digested: one half, and while one worker is killed the other half."""
    run = Run(total=len(files))
    middle = len(files) // 2
    async with screen.live(run), _swept(queue):
        await _follow(queue, run, await _enqueue(queue, files[:middle]))
        victim = crew.choose_victim()
        await victim.ask_to_freeze()
        rest = await _enqueue(queue, files[middle:])
        patience = CancelScope()
        async with create_task_group() as group:
            group.start_soon(_kill, victim, patience, screen)
            await _follow(queue, run, rest)
            patience.cancel()  # there is nothing left that it could take
    run.ended = current_time()
    return run


@asynccontextmanager
async def _swept(queue: Torrelque) -> AsyncGenerator[None]:
    """Sweep as long as the scope lasts: without it nothing would come back from a killed worker."""
    async with create_task_group() as group:
        await group.start(queue.run_sweep, SWEEP)
        yield
        group.cancel_scope.cancel()


async def _enqueue(queue: Torrelque, files: list[File]) -> list[Job]:
    task_ids = await queue.enqueue_many([file.path for file in files], task_timeout=LEASE)
    return [Job(file, task_id) for file, task_id in zip(files, task_ids, strict=True)]


async def _kill(victim: Member, patience: CancelScope, screen: Screen) -> None:
    held = await victim.kill_with_task(patience)
    screen.say(f"{victim.name} killed with SIGKILL, {'tasks in hand' if held else 'but it had no task in hand'}")


async def _follow(queue: Torrelque, run: Run, jobs: list[Job]) -> None:
    """Watch every task to its end, a bounded number at the same time."""
    run.jobs += jobs
    remaining = iter(jobs)  # all watchers take from the same iterator
    async with create_task_group() as group:
        for _ in range(WATCHERS):
            group.start_soon(_watch_each, queue, run, remaining)


async def _watch_each(queue: Torrelque, run: Run, jobs: Iterator[Job]) -> None:
    for job in jobs:
        with suppress(TorrelqueLookupError):  # then it has no final state, and counts as lost
            async for state in queue.watch(job.task_id):
                if state.status.isfinal():
                    job.state = state
        run.note(job)


async def _check(jobs: list[Job]) -> list[Verdict]:
    """Judge every job, in as many threads as there are processors."""
    verdicts: dict[int, list[Verdict]] = {}
    threads = CapacityLimiter(os.cpu_count() or 1)

    async def judge_portion(start: int) -> None:
        portion = jobs[start : start + PORTION]
        verdicts[start] = await to_thread.run_sync(
            lambda: [judge(job, from_thread.check_cancelled) for job in portion], limiter=threads
        )

    async with create_task_group() as group:
        for start in range(0, len(jobs), PORTION):
            group.start_soon(judge_portion, start)
    return [verdict for start in sorted(verdicts) for verdict in verdicts[start]]


async def _empty(queue: Torrelque) -> None:
    """See to it that no task stays in the queue; results expire."""
    while (await queue.get_queue_stats()).tasks:
        await queue.sweep()  # what a killed worker held comes back when its lease ends
        with suppress(TorrelqueTimeoutError):
            for task_id, _ in await queue.dequeue(0.1, max_tasks=1000):
                await queue.release(task_id)
