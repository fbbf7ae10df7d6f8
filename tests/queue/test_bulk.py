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


async def test_no_more_bytes_than_asked_for(open_queue: Any, admin: Redis, name: str) -> None:
    """A dequeue takes what fits, one task whatever its size; the rest stands where it stood, as if never touched."""
    async with open_queue() as queue:
        sizes = [8, 8, 8, 100, 8]
        held = await queue.enqueue_many(["x" * size for size in sizes])
        first = await queue.dequeue(0, max_tasks=9, max_bytes=25)
        assert [task_id for task_id, _ in first] == held[:2]
        assert [task_id for task_id, _ in await queue.dequeue(0, max_tasks=9, max_bytes=20)] == held[2:3]
        assert [task_id for task_id, _ in await queue.dequeue(0, max_tasks=9, max_bytes=20)] == held[3:4]
        with anyio.fail_after(10):  # what is handed back comes at once
            task_id, _ = await queue.dequeue(max_bytes=1)
        assert (task_id, task_id.dequeue_count) == (held[4], 1)


async def test_large_payloads_come_in_portions(open_queue: Any) -> None:
    """A claim of many large tasks is cut by bytes, and everything comes all the same."""
    async with open_queue() as queue:
        held = await queue.enqueue_many(["x" * 300_000] * 40)
        got: list[str] = []
        while len(got) < 40:
            got += [task_id for task_id, _ in await queue.dequeue(5, max_tasks=100)]
        assert got == held


async def test_known_ids_are_told(open_queue: Any) -> None:
    """What was there already is said of each id, among the others of one call too; a pipeline cannot know yet."""
    async with open_queue() as queue:
        first = await queue.enqueue(1, task_id="a")
        assert (first, first.deduplicated) == ("a", False)
        again = await queue.enqueue_many([1, 2, 3], task_ids=["b", "a", "b"])
        assert [(each, each.deduplicated) for each in again] == [("b", False), ("a", True), ("b", True)]
        assert (await queue.enqueue(1)).deduplicated is False
