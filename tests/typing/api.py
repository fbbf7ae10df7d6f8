"""What type checkers say of the public face: read by mypy and pyright, never run."""

from __future__ import annotations

import json
import pickle
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Any, assert_type

import coredis
import redis.asyncio
from anyio import CancelScope, create_task_group

from torrelque import (
    Torrelque,
    TorrelqueDeadLetter,
    TorrelqueDecodeError,
    TorrelqueEnqueuedId,
    TorrelqueError,
    TorrelqueLeaseLostError,
    TorrelqueLookupError,
    TorrelqueNotWorkingError,
    TorrelqueQueueStats,
    TorrelqueTaskId,
    TorrelqueTaskSerialiser,
    TorrelqueTaskState,
    TorrelqueTaskStatus,
    TorrelqueTimeoutError,
    TorrelqueTypeError,
    TorrelqueUnavailableError,
    TorrelqueValueError,
    open_server,
)


def make(aio: redis.asyncio.Redis, core: coredis.Redis[bytes], text: coredis.Redis[str]) -> None:
    """Any client, and any serialiser that has dumps and loads."""
    assert_type(Torrelque(aio), Torrelque)
    Torrelque(core, queue="q", serialiser=pickle)
    Torrelque(text, serialiser=TorrelqueTaskSerialiser(lambda value: json.dumps(value).encode(), json.loads))
    assert_type(Torrelque.from_url("redis://localhost", queue="q", serialiser=pickle, max_connections=5), Torrelque)
    Torrelque(aio, "q")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # a misuse that must be found
    Torrelque(aio, serialiser=json)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a misuse that must be found


class Quick(Torrelque):
    """Defaults are overridden on the class; the scope gives the class that was entered."""

    task_timeout = 5
    sweep_interval = 1.5
    result_ttl = 60
    max_attempts = 3
    dead_letter = True


async def enter() -> None:
    """What `async with` gives."""
    async with open_server() as url, Quick(coredis.Redis.from_url(url)) as queue:
        assert_type(url, str)
        assert_type(queue, Quick)
        assert_type(queue.sweep_interval, float)
        assert_type(queue.keys, dict[str, str])
        queue.result_ttl = 7


async def produce(queue: Torrelque, pipeline: Any) -> None:
    """Ids are strings, which know whether the task was there already."""
    assert_type(await queue.enqueue({"any": "thing"}), TorrelqueEnqueuedId)
    assert_type(
        await queue.enqueue(None, task_timeout=1, delay=0.5, pipeline=pipeline, task_id="id"), TorrelqueEnqueuedId
    )
    assert_type(
        await queue.enqueue_many(range(3), task_timeout=1, delay=2, task_ids=("a", "b", "c")), list[TorrelqueEnqueuedId]
    )
    await queue.enqueue("task", 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # a misuse that must be found
    await queue.enqueue("task", delay="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a misuse that must be found


async def consume(queue: Torrelque, many: int) -> None:
    """One task is a pair, more are a list of pairs."""
    assert_type(await queue.dequeue(), tuple[TorrelqueTaskId, Any])
    assert_type(await queue.dequeue(5), tuple[TorrelqueTaskId, Any])
    assert_type(await queue.dequeue(timeout=0.5, max_tasks=1), tuple[TorrelqueTaskId, Any])
    assert_type(await queue.dequeue(max_tasks=10), list[tuple[TorrelqueTaskId, Any]])
    assert_type(await queue.dequeue(None, max_tasks=many), list[tuple[TorrelqueTaskId, Any]])
    task_id, task = await queue.dequeue(1)
    assert_type(task_id.dequeue_count, int)
    assert_type(task_id.task_timeout, float)
    print(task_id.upper(), task)


async def settle_many(queue: Torrelque, claims: list[tuple[TorrelqueTaskId, Any]]) -> None:
    """Ids may be held or plain; each has its refusal, or none."""
    assert_type(await queue.release_many(task_id for task_id, _ in claims), list[TorrelqueLookupError | None])
    await queue.release_many(["plain"], results=[{"any": "thing"}], result_ttl=5, status=TorrelqueTaskStatus.REJECTED)


async def settle(queue: Torrelque, task_id: TorrelqueTaskId, plain: str, pipeline: Any) -> None:
    """Fenced or plain, an id is an id; only a lease needs a delivery."""
    await queue.release(task_id)
    await queue.release(
        plain, result=1, result_ttl=1.5, status=TorrelqueTaskStatus.REJECTED, pipeline=pipeline, strict=True
    )
    await queue.requeue(task_id)
    await queue.requeue(plain, 5, task_timeout=1, pipeline=pipeline, strict=True)
    assert_type(await queue.extend(task_id), float)
    assert_type(await queue.extend(plain, 5), float)
    lease: AbstractAsyncContextManager[CancelScope] = queue.lease(task_id)
    async with lease as scope, queue.lease(task_id, 5):
        assert_type(scope, CancelScope)
    queue.lease(plain)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a misuse that must be found
    await queue.release(task_id, status=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a misuse that must be found


async def look(queue: Torrelque, task_id: str) -> None:
    """States and counts are named tuples."""
    state = await queue.get_task_state(task_id)
    assert_type(state, TorrelqueTaskState)
    assert_type(state.status, TorrelqueTaskStatus)
    assert_type(state.status.isfinal(), bool)
    assert_type(state.timeout, float)
    assert_type(state.dequeue_count, int)
    assert_type(state.release_time, float | None)
    stats = await queue.get_queue_stats()
    assert_type(stats, TorrelqueQueueStats)
    assert_type(stats.pending, int)
    assert_type(queue.watch(task_id, timeout=5), AsyncGenerator[TorrelqueTaskState, None])
    async for seen in queue.watch(task_id):
        assert_type(seen, TorrelqueTaskState)
    stale, due, undequeued = await queue.sweep()
    assert_type(stale + due + undequeued, int)


async def dead_letters(queue: Torrelque, task_id: TorrelqueTaskId) -> None:
    """What was given up is read, requeued and purged; without a limit nothing is."""
    queue.max_attempts = None
    queue.dead_letter = False
    await queue.release(task_id, status=TorrelqueTaskStatus.REJECTED, result="why", dead_letter=True)
    letters = await queue.dead_letters()
    assert_type(letters, list[TorrelqueDeadLetter])
    assert_type(letters[0].task_id, str)
    assert_type(letters[0].last_dequeue_time, float | None)
    await queue.dead_letters(1, after=letters[0].cursor, max_bytes=5)
    assert_type(await queue.count_dead_letters(), int)
    assert_type(await queue.requeue_dead_letters(), int)
    assert_type(await queue.purge_dead_letters(letter.task_id for letter in letters), int)
    await queue.dead_letters(after=letters[0])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a misuse that must be found


async def sweep(queue: Torrelque) -> None:
    """In the background, or in a task group of one's own."""
    queue.schedule_sweep()
    queue.schedule_sweep(5)
    queue.unschedule_sweep()
    async with create_task_group() as group:
        await group.start(queue.run_sweep)
        await group.start(queue.run_sweep, 5)


def errors(error: TorrelqueDecodeError, lost: TorrelqueLeaseLostError) -> list[type[TorrelqueError]]:
    """Every error stands below the documented ones, and carries what it knows."""
    assert_type(error.task_id, str)
    assert_type(error.body, bytes)
    assert_type(lost.task_id, str)
    values: list[type[ValueError]] = [TorrelqueValueError]
    types: list[type[TypeError]] = [TorrelqueTypeError]
    lookups: list[type[TorrelqueLookupError]] = [TorrelqueLeaseLostError, TorrelqueNotWorkingError]
    print(values, types)
    return [*lookups, TorrelqueTimeoutError, TorrelqueUnavailableError]
