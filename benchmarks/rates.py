"""Jobs: how many tasks a second, with how many bytes and commands for each."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from side import Opened, Side

PAYLOAD = {"a": 1}
#: Does something with one task, or with a bulk of them; tells with how many.
Step: TypeAlias = Callable[[], Awaitable[int]]


async def measure(side: Side, *, seconds: float, callers: int, bulk: int, pipelined: bool) -> dict[str, Any]:
    """Enqueue for some seconds, then dequeue and release for as long.

    :param bulk: tasks for each call; 1 for calls that are not in bulk
    :param pipelined: bulks go on a pipeline of the client; else they go in the library's fastest way
    """
    async with side.open() as opened:
        enqueue, work = _steps(side, opened, bulk, pipelined)
        await _warm_up(side, callers, enqueue, work)
        enqueued, figures = await _timed(side, callers, enqueue, seconds)
        _, others = await _timed(side, callers, work, seconds, limit=enqueued // bulk)
        return {"enqueue": figures, "work": others}


async def count_commands(side: Side, *, tasks: int, callers: int, bulk: int, pipelined: bool) -> float:
    """How many commands a client sends for each task: to enqueue, dequeue and release it."""
    async with side.open() as opened:
        enqueue, work = _steps(side, opened, bulk, pipelined)
        await _warm_up(side, callers, enqueue, work)
        with side.probe.commands() as commands:
            enqueued = await _repeat(side, callers, enqueue, math.inf, limit=tasks // bulk)
            worked = await _repeat(side, callers, work, math.inf, limit=enqueued // bulk)
        return commands.sent / worked


def _steps(side: Side, opened: Opened, bulk: int, pipelined: bool) -> tuple[Step, Step]:
    if bulk == 1:
        return _single_steps(opened)
    return _pipelined_steps(side, opened, bulk) if pipelined else _bulk_steps(side, opened, bulk)


def _single_steps(opened: Opened) -> tuple[Step, Step]:
    queue = opened.queue

    async def enqueue() -> int:
        await queue.enqueue(PAYLOAD)
        return 1

    async def work() -> int:
        task_id, _ = await queue.dequeue(5)
        await queue.release(task_id)
        return 1

    return enqueue, work


def _bulk_steps(side: Side, opened: Opened, bulk: int) -> tuple[Step, Step]:
    payloads = [PAYLOAD] * bulk

    async def enqueue() -> int:
        await side.enqueue_bulk(opened, payloads)
        return bulk

    async def work() -> int:
        tasks = await opened.queue.dequeue(5, max_tasks=bulk)
        await side.release_bulk(opened, [task_id for task_id, _ in tasks])
        return len(tasks)

    return enqueue, work


def _pipelined_steps(side: Side, opened: Opened, bulk: int) -> tuple[Step, Step]:
    queue = opened.queue

    async def enqueue() -> int:
        async with side.pipeline(opened) as pipeline:
            for _ in range(bulk):
                await queue.enqueue(PAYLOAD, pipeline=pipeline)
        return bulk

    async def work() -> int:
        tasks = await queue.dequeue(5, max_tasks=bulk)
        async with side.pipeline(opened) as pipeline:
            for task_id, _ in tasks:
                await queue.release(task_id, pipeline=pipeline)
        return len(tasks)

    return enqueue, work


async def _warm_up(side: Side, callers: int, enqueue: Step, work: Step) -> None:
    """Open all connections, and have the server know the scripts."""
    for step in enqueue, work:
        await _repeat(side, callers, step, math.inf, limit=3 * callers)


async def _timed(
    side: Side, callers: int, step: Step, seconds: float, limit: float = math.inf
) -> tuple[int, dict[str, float]]:
    gc.collect()
    with side.probe.traffic() as traffic:
        started = time.perf_counter()
        tasks = await _repeat(side, callers, step, seconds, limit)
        took = time.perf_counter() - started
    return tasks, {"rate": tasks / took, "sent": traffic.sent / tasks, "received": traffic.received / tasks}


async def _repeat(side: Side, callers: int, step: Step, seconds: float, limit: float = math.inf) -> int:
    """Repeat the step from several tasks until the time is over, or it has been begun *limit* times."""
    ends = time.perf_counter() + seconds
    begun = itertools.count()
    tasks = 0

    async def call(_: int) -> None:
        nonlocal tasks
        while next(begun) < limit and time.perf_counter() < ends:
            done = await step()
            tasks += done

    await side.together(call, range(callers))
    return tasks
