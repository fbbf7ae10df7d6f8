"""Many tasks in one call: what is done to each, in which order, and what is said of those that could not be."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from redis import Redis
from support import snapshot

from torrelque import (
    TorrelqueLeaseLostError,
    TorrelqueLookupError,
    TorrelqueNotWorkingError,
    TorrelqueTaskStatus,
)

pytestmark = pytest.mark.anyio


async def test_release_of_many(open_queue: Any, admin: Redis, name: str) -> None:
    """More tasks than one script takes are all released, and nothing is left of them."""
    async with open_queue() as queue:
        await queue.enqueue_many(range(1200))
        held = [task_id for task_id, _ in await queue.dequeue(0, max_tasks=1000)]
        held += [task_id for task_id, _ in await queue.dequeue(0, max_tasks=1000)]
        assert await queue.release_many(iter(held)) == [None] * 1200
    assert admin.keys(f"{name}:*") == []


async def test_results_of_many(open_queue: Any, admin: Redis, name: str) -> None:
    """Each task keeps its own result, falsy ones too, for the time given; one without a result keeps nothing."""
    async with open_queue() as queue:
        held = await queue.enqueue_many("abcd")
        await queue.dequeue(0, max_tasks=4)
        said = await queue.release_many(
            held, results=iter([0, None, "", {"r": 1}]), result_ttl=50, status=TorrelqueTaskStatus.REJECTED
        )
        assert said == [None] * 4
        states = [await queue.get_task_state(held[n]) for n in (0, 2, 3)]
        assert [state.result for state in states] == [0, "", {"r": 1}]
        assert {state.status for state in states} == {TorrelqueTaskStatus.REJECTED}
        assert 40 < admin.ttl(f"{name}:task:{held[0]}") <= 50
        with pytest.raises(TorrelqueLookupError):
            await queue.get_task_state(held[1])


async def test_what_is_said_of_each(open_queue: Any, admin: Redis, name: str) -> None:
    """Those that cannot be released change nothing and stop no other, and of each is told why."""
    async with open_queue() as queue:
        for task_id in ("held", "swept", "again", "kept"):
            await queue.enqueue(task_id, task_id=task_id)
        claims = {str(task_id): task_id for task_id, _ in await queue.dequeue(0, max_tasks=4)}
        admin.zadd(f"{name}:working", {"swept": 1, "again": 1})
        await queue.sweep()
        taken, _ = await queue.dequeue(0)
        stale, left = ("swept", "again") if taken == "swept" else ("again", "swept")
        await queue.release(claims["kept"], result=1)
        said = await queue.release_many(
            ["unknown", claims["held"], claims[stale], claims[left], claims["kept"], "held"]
        )
        assert [refusal and type(refusal) for refusal in said] == [
            TorrelqueLookupError, None, TorrelqueLeaseLostError, TorrelqueNotWorkingError, TorrelqueNotWorkingError,
            TorrelqueLookupError,
        ]  # fmt: skip
        stored = snapshot(admin, name)
        assert (list(stored.working), stored.pending) == ([stale], [left])
        stored.check()


async def test_watchers_see_each_of_many_end(open_queue: Any) -> None:
    """A task released among many ends its watch like any other."""
    async with open_queue() as queue:
        held = await queue.enqueue_many(range(5))
        await queue.dequeue(0, max_tasks=5)
        ends: list[Any] = []
        begun = anyio.Event()

        async def watch(task_id: str) -> None:
            async for state in queue.watch(task_id, timeout=10):
                begun.set()
                ends.append(state.result)

        async with anyio.create_task_group() as group:
            group.start_soon(watch, held[3])
            await begun.wait()
            await queue.release_many(held, results=range(5))
        assert ends == [None, 3]


async def test_nothing_to_release(open_queue: Any) -> None:
    """No tasks are no call."""
    async with open_queue() as queue:
        assert await queue.release_many([]) == []
        assert await queue.release_many([], results=[]) == []


async def test_id_that_is_no_text(open_queue: Any, admin: Redis, name: str) -> None:
    """What a foreign writer stored under any bytes at all is delivered, and can be settled by the id it came with."""
    odd = b"\xff\x00 id\n"
    async with open_queue() as queue:
        for settle in (
            lambda task_id: queue.release(task_id, strict=True),
            lambda task_id: queue.release(task_id, result=1, strict=True),
            lambda task_id: queue.release_many([task_id]),
            lambda task_id: queue.requeue(task_id, 60, strict=True),
            lambda task_id: queue.extend(task_id, 60),
        ):
            admin.flushdb()
            admin.hset(f"{name}:tasks", odd, b"1")
            admin.lpush(f"{name}:pending", odd)
            task_id, task = await queue.dequeue(0)
            assert (task, admin.zrange(f"{name}:working", 0, -1)) == (1, [odd])
            before = admin.dump(f"{name}:working")
            await settle(task_id)
            assert admin.dump(f"{name}:working") != before
