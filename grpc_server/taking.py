"""Taking tasks for a call or a stream, as far as a message holds them, and giving back what nobody has received."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence

import anyio

from torrelque import (
    Torrelque,
    TorrelqueNotDurableError,
    TorrelqueTaskId,
    TorrelqueTimeoutError,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
)

from . import convert
from .house import Visit
from .settings import MIB

logger = logging.getLogger("torrelque.server")

#: Payload bytes of one answer: clients refuse more than 4 MiB, after the tasks were leased.
MAX_ANSWER = 3 * MIB
#: Bytes around what a message holds, and around each item.
ENVELOPE = 16
#: About so many seconds between two tries to give tasks back while Redis is away.
_PAUSE = 0.5


async def take(
    visit: Visit, wait: float | None, wanted: int, room: int = MAX_ANSWER
) -> Sequence[tuple[TorrelqueTaskId, bytes]]:
    """Lease up to *wanted* tasks of *room* bytes in all, and of one message; none when nothing came in time."""
    each = convert.beside_body(visit.settings)
    wanted = max(1, min(wanted, visit.settings.max_message // 4 // each))
    room = max(1, min(room, visit.settings.max_message - wanted * each))
    ends = math.inf if wait is None else anyio.current_time() + wait
    tasks: Sequence[tuple[TorrelqueTaskId, bytes]] = []
    try:
        while not tasks:
            left = None if wait is None else max(0.0, ends - anyio.current_time())
            tasks = _sendable(visit, await _lease(visit.queue, left, wanted, room))
    except TorrelqueTimeoutError:
        pass
    return tasks


async def _lease(
    queue: Torrelque, wait: float | None, wanted: int, room: int
) -> Sequence[tuple[TorrelqueTaskId, bytes]]:
    if wanted == 1:
        return [await queue.dequeue(wait)]
    return await queue.dequeue(wait, max_tasks=wanted, max_bytes=room)


def _sendable(visit: Visit, tasks: Sequence[tuple[TorrelqueTaskId, bytes]]) -> Sequence[tuple[TorrelqueTaskId, bytes]]:
    """Find the tasks that fit into one message. One that does not even alone keeps its lease: given back, it would come
    again at once, for ever. Others have enqueued it, for what is enqueued here can be delivered.
    """
    most, beside = visit.settings.max_message - ENVELOPE, convert.beside_body(visit.settings)
    if sum([len(body) + len(known) + beside for known, body in tasks]) <= most:
        return tasks
    sendable: list[tuple[TorrelqueTaskId, bytes]] = []
    later: list[TorrelqueTaskId] = []
    left = most
    for known, body in tasks:
        size = convert.size(known, body, visit.settings)
        if size > most:
            complain(visit, f"Task {str(known)!r}", size, "is not delivered, and comes again when its lease ends")
        elif size > left:
            later.append(known)
        else:
            left -= size
            sendable.append((known, body))
    give_back(visit, later)
    return sendable


def complain(visit: Visit, what: str, size: int, outcome: str) -> None:
    """Say in the log what no message holds, and the way out."""
    logger.error(
        "%s of queue %r takes %d bytes, and a message at most %d: it %s. Way out: raise --max-message, and what clients"
        " accept", what, visit.queue_name, size, visit.settings.max_message, outcome,
    )  # fmt: skip


def give_back(visit: Visit, task_ids: Sequence[TorrelqueTaskId]) -> None:
    """Requeue deliveries that nobody received, whatever becomes of the call; if Redis is away, as soon as it is back.

    Their numbers count on: the client may have received them after all, and must then not pass for the next worker.
    """
    if not task_ids:
        return
    visit.house.metrics.returned.inc(len(task_ids))

    async def requeue_all() -> None:
        with visit.entry:
            left = await _requeued(visit.queue, task_ids)
            while left:
                await anyio.sleep(_PAUSE * (0.5 + random.random() / 2))
                left = await _requeued(visit.queue, left)

    visit.house.own("Giving back what was not received", requeue_all)


async def _requeued(queue: Torrelque, task_ids: Sequence[TorrelqueTaskId]) -> list[TorrelqueTaskId]:
    """Try to requeue deliveries; returns those with which Redis has failed. To try again does no harm."""
    left: list[TorrelqueTaskId] = []

    async def one(task_id: TorrelqueTaskId) -> None:
        try:
            await queue.requeue(task_id)
        except TorrelqueNotDurableError:
            pass  # it is requeued
        except (TorrelqueUnavailableError, TorrelqueUnknownOutcomeError):
            left.append(task_id)

    async with anyio.create_task_group() as group:
        for task_id in task_ids:
            group.start_soon(one, task_id)
    return left
