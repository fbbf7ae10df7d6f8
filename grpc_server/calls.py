"""The rpcs that answer once: read the request, call the library, spell the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from typing import TypeVar

import anyio

from torrelque import (
    Torrelque,
    TorrelqueDeadLetter,
    TorrelqueEnqueuedId,
    TorrelqueFullError,
    TorrelqueTaskId,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
)

from . import convert
from ._pb import torrelque_pb2 as pb
from .errors import invalid, partly_done, partly_stored, repeat_later
from .house import Visit
from .settings import MIB
from .settling import MAX_SETTLEMENTS, PORTION, apply, read_release, read_requeue, settle, told
from .taking import ENVELOPE, MAX_ANSWER, complain, give_back, take

T = TypeVar("T")

MAX_TASKS = 1000
#: So many dead letters are read where the request does not say.
LETTERS = 100
#: So many seconds before its deadline a poll ends by itself, so that the answer still arrives.
EARLY = 0.25


async def enqueue(visit: Visit, request: pb.EnqueueRequest) -> pb.EnqueueResponse:
    """Put one task into the queue."""
    if not request.HasField("task"):
        raise invalid("task", "must be set")
    spec = convert.spec(request.task, visit.settings, "task")

    async def add() -> TorrelqueEnqueuedId:
        return await visit.queue.enqueue(spec.body, task_timeout=spec.lease, delay=spec.delay, task_id=spec.request_id)

    added = await (add() if spec.request_id is None else repeated(add))
    return pb.EnqueueResponse(task_id=added, deduplicated=bool(added.deduplicated))


async def repeated(doing: Callable[[], Awaitable[T]]) -> T:
    """Do what does no harm when it is done twice; once more when its answer was lost."""
    try:
        return await doing()
    except TorrelqueUnknownOutcomeError:
        pass
    try:
        return await doing()
    except (TorrelqueUnknownOutcomeError, TorrelqueUnavailableError) as error:
        # That the second try has done nothing says nothing about the first.
        raise repeat_later() from error


async def in_steps(doing: Awaitable[T]) -> T:
    """Await what takes several scripts: when one cannot be run, those of before were."""
    try:
        return await doing
    except (TorrelqueUnavailableError, TorrelqueFullError) as error:
        raise partly_done(full=isinstance(error, TorrelqueFullError)) from error


async def batch_enqueue(visit: Visit, request: pb.BatchEnqueueRequest) -> pb.BatchEnqueueResponse:
    """Put many tasks into the queue, all of them checked before the first is stored."""
    specs = convert.specs(request.tasks, visit.settings)
    # Tasks that share their times, and have ids or have none, go together: as a rule that is all of them.
    groups = [list(group) for _, group in groupby(specs, lambda each: (each.lease, each.delay, bool(each.request_id)))]
    added: list[TorrelqueEnqueuedId] = []
    try:
        for alike in groups:
            added += await _enqueue_alike(visit.queue, alike)
    except (TorrelqueUnavailableError, TorrelqueUnknownOutcomeError, TorrelqueFullError) as error:
        small = len(specs) <= PORTION and sum(len(each.body) for each in specs) <= MIB
        alone = len(specs) == 1 or (len(groups) == 1 and small)
        repeatable = all(each.request_id for each in specs)
        if alone and not (repeatable and isinstance(error, TorrelqueUnknownOutcomeError)):
            raise
        if not repeatable:
            raise partly_stored() from error
        raise (partly_done(full=True) if isinstance(error, TorrelqueFullError) else repeat_later()) from error
    return pb.BatchEnqueueResponse(
        results=[pb.EnqueueResponse(task_id=each, deduplicated=bool(each.deduplicated)) for each in added]
    )


async def _enqueue_alike(queue: Torrelque, specs: list[convert.Spec]) -> list[TorrelqueEnqueuedId]:
    first = specs[0]
    return await queue.enqueue_many(
        [spec.body for spec in specs],
        task_timeout=first.lease,
        delay=first.delay,
        task_ids=[spec.request_id or "" for spec in specs] if first.request_id else None,
    )


async def dequeue(visit: Visit, request: pb.DequeueRequest) -> None:
    """Lease tasks, waiting for the first; what cannot be written goes back to the queue at once."""
    wanted = convert.count(request.max_tasks, "max_tasks", MAX_TASKS)
    wait = convert.wait(request, "timeout")
    tasks: Sequence[tuple[TorrelqueTaskId, bytes]] = []
    with anyio.CancelScope() as scope, visit.house.drain.told(scope.cancel):
        tasks = await take(visit, _patience(visit, wait), wanted)
    response = pb.DequeueResponse()
    convert.add_tasks(response, tasks, visit.settings)
    try:
        await visit.context.write(response)
    except BaseException:
        give_back(visit, [task_id for task_id, _ in tasks])
        raise
    visit.house.metrics.delivered.inc(len(tasks))


def _patience(visit: Visit, wait: float | None) -> float:
    """How long to wait: as asked, within the server's maximum, and a little less than the call may take."""
    settings = visit.settings
    patience = min(settings.default_wait if wait is None else wait, settings.max_wait)
    left = visit.context.time_remaining()
    return patience if left is None else max(0.0, min(patience, left - EARLY))


async def extend_lease(visit: Visit, request: pb.ExtendLeaseRequest) -> pb.ExtendLeaseResponse:
    """Let the lease of a task end a full length from now."""
    known = convert.task_id(request.task_id, convert.token(request))
    lease = convert.lease(request)
    ends = await told(visit, known, repeated(lambda: visit.queue.extend(known, lease)))
    return pb.ExtendLeaseResponse(stale_time=convert.timestamp(ends))


async def requeue(visit: Visit, request: pb.RequeueRequest) -> pb.RequeueResponse:
    """Give a working task back to the queue."""
    known = convert.task_id(request.task_id, convert.token(request))
    await told(visit, known, apply(visit, read_requeue(request, known)))
    return pb.RequeueResponse()


async def release(visit: Visit, request: pb.ReleaseRequest) -> pb.ReleaseResponse:
    """End a working task."""
    known = convert.task_id(request.task_id, convert.token(request))
    await told(visit, known, apply(visit, read_release(request, known, visit.settings)))
    return pb.ReleaseResponse()


async def batch_release(visit: Visit, request: pb.BatchReleaseRequest) -> pb.BatchReleaseResponse:
    """Apply many settlements, each on its own."""
    if not 1 <= len(request.settlements) <= MAX_SETTLEMENTS:
        raise invalid("settlements", f"must be 1 to {MAX_SETTLEMENTS} settlements")
    return pb.BatchReleaseResponse(errors=await settle(visit, request.settlements))


async def get_task_state(visit: Visit, request: pb.GetTaskStateRequest) -> pb.GetTaskStateResponse:
    """Read what is known about a task."""
    known = convert.task_id(request.task_id, None)
    state = await told(visit, known, visit.queue.get_task_state(known))
    return pb.GetTaskStateResponse(state=convert.state(state, visit.settings))


async def get_queue_stats(visit: Visit, _: pb.GetQueueStatsRequest) -> pb.GetQueueStatsResponse:
    """Count the tasks of a queue."""
    stats = await visit.queue.get_queue_stats()
    return pb.GetQueueStatsResponse(
        tasks=stats.tasks,
        pending=stats.pending,
        working=stats.working,
        delayed=stats.delayed,
        dead_letters=await visit.queue.count_dead_letters(),
    )


async def sweep(visit: Visit, _: pb.SweepRequest) -> pb.SweepResponse:
    """Give back what has ended, now."""
    stale, due, undequeued = await in_steps(repeated(visit.queue.sweep))
    return pb.SweepResponse(stale=stale, due=due, undequeued=undequeued)


async def list_dead_letters(visit: Visit, request: pb.ListDeadLettersRequest) -> pb.ListDeadLettersResponse:
    """Read dead letters."""
    wanted = convert.count(request.max_letters or LETTERS, "max_letters", MAX_TASKS)
    after = convert.page_token(request.page_token)
    letters = await visit.queue.dead_letters(wanted, after=after, max_bytes=MAX_ANSWER)
    page = _page(visit, letters)
    return pb.ListDeadLettersResponse(letters=page, next_page_token=letters[len(page) - 1].cursor if page else "")


def _page(visit: Visit, letters: Sequence[TorrelqueDeadLetter]) -> list[pb.DeadLetter]:
    """Spell as many letters as fit into one message, but always one."""
    most = visit.settings.max_message - ENVELOPE
    page: list[pb.DeadLetter] = []
    left = most
    for letter in letters:
        spelled = convert.dead_letter(letter, visit.settings)
        for name in ("payload", "reason"):
            if (size := spelled.ByteSize()) > most:
                complain(visit, f"Dead letter {letter.task_id!r}", size, f"is listed without its {name}")
                spelled.ClearField(name)
        left -= spelled.ByteSize() + ENVELOPE
        if page and left < 0:
            break
        page.append(spelled)
    return page


async def requeue_dead_letters(visit: Visit, request: pb.RequeueDeadLettersRequest) -> pb.RequeueDeadLettersResponse:
    """Give dead letters back to the queue."""
    task_ids = convert.some_or_all(request)
    return pb.RequeueDeadLettersResponse(requeued=await in_steps(visit.queue.requeue_dead_letters(task_ids)))


async def purge_dead_letters(visit: Visit, request: pb.PurgeDeadLettersRequest) -> pb.PurgeDeadLettersResponse:
    """Remove dead letters for good."""
    task_ids = convert.some_or_all(request)
    return pb.PurgeDeadLettersResponse(purged=await in_steps(visit.queue.purge_dead_letters(task_ids)))


async def schedule_sweep(visit: Visit, request: pb.ScheduleSweepRequest) -> pb.ScheduleSweepResponse:
    """Sweep from now on, in this process."""
    interval = convert.seconds(request, "interval", "interval", convert.MIN_LENGTH, convert.MAX_INTERVAL)
    visit.queue.schedule_sweep(interval)
    visit.entry.pinned = True
    return pb.ScheduleSweepResponse(server_instance_id=visit.house.instance)


async def unschedule_sweep(visit: Visit, _: pb.UnscheduleSweepRequest) -> pb.UnscheduleSweepResponse:
    """Stop sweeping in this process."""
    visit.queue.unschedule_sweep()
    visit.entry.pinned = False
    return pb.UnscheduleSweepResponse(server_instance_id=visit.house.instance)
