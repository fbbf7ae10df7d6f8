"""Watch: a snapshot, then the changes; the latest state wins, and nothing waits for a slow reader."""

from __future__ import annotations

import random
from contextlib import aclosing

import anyio

from torrelque import TorrelqueError, TorrelqueLookupError, TorrelqueTaskState

from . import convert
from ._pb import torrelque_pb2 as pb
from .errors import RETRY_AFTER, Refused, StatusCode, draining, explain
from .house import Visit

#: Progress messages come no more often than this, in seconds.
MIN_PROGRESS = 0.1
MAX_PROGRESS = 3600.0


class Mailbox:
    """Holds the latest state that was not written yet, and how it all ended."""

    def __init__(self) -> None:
        self._state: TorrelqueTaskState | None = None
        self._end: Exception | None = None
        self._over = False
        self._changed = anyio.Event()

    def put(self, state: TorrelqueTaskState) -> None:
        self._state = state
        self._changed.set()

    def end(self, error: Exception | None = None) -> None:
        """Say that no more will come, and why; the first word counts."""
        if not self._over:
            self._over, self._end = True, error
            self._changed.set()

    async def take(self, patience: float) -> TorrelqueTaskState | None:
        """Wait for the next state; ``None`` when none came within *patience* seconds.

        :raises StopAsyncIteration: all states were taken, and the watch has ended well
        """
        if self._state is None and not self._over:
            with anyio.move_on_after(patience):
                await self._changed.wait()
        self._changed = anyio.Event()
        state, self._state = self._state, None
        if state is None and self._over:
            raise self._end or StopAsyncIteration
        return state


async def watch(visit: Visit, request: pb.WatchRequest) -> None:
    """Write the states of a task until the final one."""
    task_id = convert.task_id(request.task_id, None)
    timeout = convert.wait(request, "timeout")
    progress = convert.seconds(request, "progress_interval", "progress_interval", 0.0, MAX_PROGRESS)
    known = convert.known_cursor(request)
    mailbox = Mailbox()
    await visit.context.send_initial_metadata(())
    with visit.house.drain.told(lambda: mailbox.end(draining())):
        async with anyio.create_task_group() as group:
            group.start_soon(_feed, visit, task_id, timeout, mailbox)
            await _write_all(visit, mailbox, max(progress, MIN_PROGRESS) if progress else None, known)
            group.cancel_scope.cancel()


async def _feed(visit: Visit, task_id: str, timeout: float | None, mailbox: Mailbox) -> None:
    """Move the states of a task into the mailbox."""
    last: TorrelqueTaskState | None = None
    try:
        async with aclosing(visit.queue.watch(task_id, timeout=timeout)) as states:
            async for last in states:
                mailbox.put(last)
        if last is None or not last.status.isfinal():
            raise TorrelqueLookupError(f"Task {task_id} was released without a result")
        mailbox.end()
    except TorrelqueError as error:
        mailbox.end(explain(error, {"queue": visit.queue_name, "taskId": task_id}))


async def _write_all(visit: Visit, mailbox: Mailbox, progress: float | None, known: pb.WatchCursor | None) -> None:
    age = visit.settings.stream_age * random.uniform(0.9, 1.1)
    ends = anyio.current_time() + age
    cursor = known
    while (left := ends - anyio.current_time()) > 0:
        try:
            state = await mailbox.take(min(left, progress or left))
        except StopAsyncIteration:
            return
        if state is None:
            if progress and left > progress:
                await visit.context.write(pb.WatchResponse(cursor=cursor))
            continue
        here = convert.cursor(state)
        if here != cursor:
            cursor = here
            await visit.context.write(pb.WatchResponse(state=convert.state(state, visit.settings), cursor=here))
        elif state.status.isfinal():
            return
    raise Refused(
        StatusCode.UNAVAILABLE, "STREAM_EXPIRED", "the stream is old: open a new one with the last cursor",
        retry_after=RETRY_AFTER,
    )  # fmt: skip
