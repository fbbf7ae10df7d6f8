"""What a queue does where the primary may move, the same for Sentinel and for a cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

from torrelque import Torrelque, TorrelqueRedisError, TorrelqueTaskStatus

R = TypeVar("R")


async def every_verb(queue: Torrelque) -> None:
    """Use each verb once, a waiting dequeue and a watch among them."""
    seen: list[TorrelqueTaskStatus] = []

    async def follow(task_id: str) -> None:
        async for state in queue.watch(task_id, timeout=10):
            seen.append(state.status)  # noqa: PERF401  # seen as they come

    async with anyio.create_task_group() as group:
        taken: list[tuple[Any, Any]] = []

        async def take() -> None:
            taken.append(await queue.dequeue(10))

        group.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        added = await queue.enqueue("first", task_id="first")
        while not taken:
            await anyio.sleep(0.005)
        ((task_id, task),) = taken
        assert (task_id, task) == (added, "first")
        group.start_soon(follow, task_id)
        while not seen:
            await anyio.sleep(0.005)
        await queue.extend(task_id)
        await queue.release(task_id, result=1, strict=True)
    assert seen == [TorrelqueTaskStatus.WORKING, TorrelqueTaskStatus.COMPLETED]
    assert (await queue.get_task_state(task_id)).result == 1
    ids = await queue.enqueue_many(range(3))
    late = await queue.enqueue("late", delay=1)
    assert (await queue.get_queue_stats()).tasks == 4
    tasks = dict(await queue.dequeue(5, max_tasks=10))
    assert list(tasks) == ids
    await queue.requeue(ids[0])
    assert await queue.release_many(ids[1:]) == [None, None]
    back = [(await queue.dequeue(5))[0] for _ in range(2)]
    assert sorted(back) == sorted([ids[0], late])
    await queue.release_many(back)
    # A lease that has ended is found by a sweep, and by who waits.
    await queue.enqueue("lost", task_id="lost", task_timeout=0.05)
    await queue.dequeue(5)
    await anyio.sleep(0.1)
    assert tuple(await queue.sweep()) == (1, 0, 0)
    counts = [(await queue.dequeue(5))[0].dequeue_count for _ in range(2)]
    assert counts == [2, 3]
    await queue.release("lost")
    assert tuple(await queue.sweep()) == (0, 0, 0)
    assert tuple(await queue.get_queue_stats()) == (0, 0, 0, 0)


async def enqueue_until_it_works(queue: Torrelque, task: Any, task_id: str, seconds: float = 15) -> None:
    """Repeat what is safe to repeat."""
    with anyio.fail_after(seconds):
        while True:
            try:
                await queue.enqueue(task, task_id=task_id)
            except TorrelqueRedisError:
                await anyio.sleep(0.05)
            else:
                return


async def until_it_works(call: Callable[[], Awaitable[R]], seconds: float = 15) -> R:
    """Call again what may hear once that the primary has moved."""
    with anyio.fail_after(seconds):
        while True:
            try:
                return await call()
            except TorrelqueRedisError:
                await anyio.sleep(0.05)
