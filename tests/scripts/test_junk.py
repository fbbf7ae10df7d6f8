"""Junk in Redis, put there by others: it costs its own task, a warning, and no neighbour."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
from redis import Redis
from support import snapshot

from torrelque import (
    Torrelque,
    TorrelqueError,
    TorrelqueLookupError,
    TorrelqueQueueStats,
    TorrelqueStorageError,
    TorrelqueTaskStatus,
    TorrelqueTimeoutError,
)

pytestmark = pytest.mark.anyio


async def drain(queue: Torrelque) -> list[Any]:
    """Take and release what can be taken."""
    got = []
    with anyio.fail_after(20):
        while True:
            try:
                tasks = await queue.dequeue(0, max_tasks=100)
            except TorrelqueTimeoutError:
                return got
            for task_id, task in tasks:
                await queue.release(task_id, strict=True)
                got.append(task)


async def test_ghosts(open_queue: Any, admin: Redis, name: str, caplog: Any) -> None:
    """Ids without a payload, anywhere, are dropped with a warning each; good tasks around them are delivered."""
    async with open_queue() as queue:
        await queue.enqueue("first")
        admin.lpush(f"{name}:pending", "ghost1", "ghost2")
        await queue.enqueue("last")
        await queue.enqueue("due", delay=60, task_id="due")
        admin.zadd(f"{name}:delayed", {"ghost3": 1, "due": 2})
        admin.zadd(f"{name}:working", {"ghost4": 1})
        admin.rpush(f"{name}:dequeueing", "ghost5")
        assert sorted(await drain(queue)) == ["due", "first", "last"]
        await queue.sweep()
        await queue.sweep()
        assert admin.keys(f"{name}:*") == []
        dropped = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert sum("Dropped task" in message for message in dropped) == 5
        assert all(any(f"ghost{i}" in message for message in dropped) for i in range(1, 6))


@pytest.mark.parametrize("place", ["pending", "delayed", "working"])
async def test_many_ghosts_before_a_live_one(open_queue: Any, admin: Redis, name: str, place: str) -> None:
    """A look without waiting sees past any number of ghosts: the queue is empty only when it is."""
    ghosts = [f"ghost{i}" for i in range(3000)]
    async with open_queue() as queue:
        if place == "pending":
            admin.lpush(f"{name}:pending", *ghosts)
            await queue.enqueue("live", task_id="live")
        else:
            admin.zadd(f"{name}:{place}", dict.fromkeys(ghosts, 1))
            await queue.enqueue("live", delay=60, task_id="live")
            admin.zrem(f"{name}:delayed", "live")
            admin.zadd(f"{name}:{place}", {"live": 2})
        with anyio.fail_after(20):
            assert (await queue.dequeue(0))[1] == "live"
            with pytest.raises(TorrelqueTimeoutError):
                await queue.dequeue(0)


@pytest.mark.parametrize("place", ["delayed", "working"])
async def test_a_look_brings_all_that_is_due(open_queue: Any, admin: Redis, name: str, place: str) -> None:
    """A look that asks for many gets them, also when they have to be moved to pending first."""
    async with open_queue() as queue:
        ids = await queue.enqueue_many(range(1000), delay=60)
        admin.delete(f"{name}:delayed")
        admin.zadd(f"{name}:{place}", {task_id: 1 + i for i, task_id in enumerate(ids)})
        got = await queue.dequeue(0, max_tasks=600)
        assert [task for _, task in got] == list(range(600))


@pytest.mark.parametrize("junk", ["", "x", "nan", "inf", "-1", "1e999", "\x00", "१"])
async def test_numbers_that_are_none(open_queue: Any, admin: Redis, name: str, junk: str) -> None:
    """Text where a number belongs counts as not there: the task is delivered, for the default lease."""
    async with open_queue() as queue:
        task_id = await queue.enqueue("t", task_id="t")
        for field in ("timeout", "dequeue_count", "requeue_count", "enqueue_time"):
            admin.hset(f"{name}:task:t", field, junk)
        try:
            await queue.get_task_state(task_id)
        except TorrelqueError as error:
            pytest.fail(f"reading a state has failed: {error!r}")
        queue.task_timeout = 42
        got, task = await queue.dequeue(0)
        assert (got, task, got.task_timeout) == ("t", "t", 42)
        assert (await queue.get_task_state(task_id)).timeout == 42
        await queue.extend(got)
        await queue.requeue(got, strict=True)
        got, _ = await queue.dequeue(0)
        await queue.release(got, result=1, strict=True)
        assert (await queue.get_task_state(task_id)).status is TorrelqueTaskStatus.COMPLETED


@pytest.mark.parametrize("junk", ["9", "x", "", "-1", "nan", "1.5"])
async def test_status_that_is_none(open_queue: Any, admin: Redis, name: str, junk: str) -> None:
    """A status that is none is an error of this library to whoever reads it, and stops no delivery."""
    async with open_queue() as queue:
        task_id = await queue.enqueue("t")
        admin.hset(f"{name}:task:{task_id}", "status", junk)
        with anyio.fail_after(5):
            with pytest.raises(TorrelqueError):
                await queue.get_task_state(task_id)
            with pytest.raises(TorrelqueError):
                await anext(queue.watch(task_id, timeout=2))
        assert await drain(queue) == ["t"]


async def test_state_of_a_foreign_type(open_queue: Any, admin: Redis, name: str) -> None:
    """A task whose state is something else is delivered and released like its neighbours."""
    async with open_queue() as queue:
        ids = await queue.enqueue_many(range(5))
        admin.delete(f"{name}:task:{ids[2]}")
        admin.sadd(f"{name}:task:{ids[2]}", "a set")
        read: list[str] = []

        async def look(task_id: str) -> None:
            assert (await queue.get_task_state(task_id)).status is TorrelqueTaskStatus.PENDING
            read.append(task_id)

        async def miss() -> None:
            with pytest.raises(TorrelqueLookupError):
                await queue.get_task_state(ids[2])

        async with anyio.create_task_group() as group:  # they share round trips
            for task_id in ids:
                if task_id == ids[2]:
                    group.start_soon(miss)
                else:
                    group.start_soon(look, task_id)
        assert sorted(read) == sorted(ids[:2] + ids[3:])
        got = await queue.dequeue(0, max_tasks=9)
        assert [task for _, task in got] == list(range(5))
        snapshot(admin, name)
        assert (await queue.get_task_state(ids[2])).dequeue_count == 1
        assert await drain(queue) == []


async def test_states_that_are_gone(open_queue: Any, admin: Redis, name: str) -> None:
    """Tasks whose states were lost are still delivered, once each."""
    async with open_queue() as queue:
        ids = await queue.enqueue_many(range(5))
        admin.delete(*[f"{name}:task:{task_id}" for task_id in ids])
        assert await drain(queue) == list(range(5))
        assert admin.keys(f"{name}:*") == []


async def test_ids_that_stand_twice(open_queue: Any, admin: Redis, name: str, caplog: Any) -> None:
    """An id that is twice in pending, or also in working, is delivered once at a time."""
    async with open_queue() as queue:
        twice = await queue.enqueue("twice")
        admin.lpush(f"{name}:pending", twice)
        held, _ = await queue.dequeue(0)
        admin.lpush(f"{name}:pending", twice)
        await queue.enqueue("good")
        assert (await queue.dequeue(0))[1] == "good"
        with pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0)
        await queue.release(held, strict=True)
        assert "Dropped task" in caplog.text


async def test_final_id_in_pending(open_queue: Any, admin: Redis, name: str) -> None:
    """What was released with a result is never delivered again, and its kept state does not change (I6)."""
    async with open_queue() as queue:
        await queue.enqueue("t")
        task_id, _ = await queue.dequeue(0)
        await queue.release(task_id, result="r")
        state = await queue.get_task_state(task_id)
        for place in ("pending", "dequeueing"):
            admin.lpush(f"{name}:{place}", task_id)
        admin.zadd(f"{name}:working", {task_id: 1})
        admin.zadd(f"{name}:delayed", {task_id: 1})
        await queue.enqueue("good")
        assert await drain(queue) == ["good"]
        await queue.sweep()
        await queue.sweep()
        assert await drain(queue) == []
        assert await queue.get_task_state(task_id) == state
        assert admin.keys(f"{name}:*") == [f"{name}:task:{task_id}".encode()]


async def test_scores_without_bounds(open_queue: Any, admin: Redis, name: str) -> None:
    """Infinite scores: what ended for ever is due, what never ends is kept, and nobody spins."""
    async with open_queue() as queue:
        await queue.enqueue_many(range(4))
        ids = [task_id for task_id, _ in await queue.dequeue(0, max_tasks=4)]
        admin.zadd(f"{name}:working", {ids[0]: "-inf", ids[1]: "+inf", ids[2]: 1e300, ids[3]: -1e300})
        assert await queue.sweep() == (2, 0, 0)
        assert sorted(await drain(queue)) == [0, 3]
        await queue.enqueue("later", delay=60, task_id="later")
        admin.zadd(f"{name}:delayed", {"later": "+inf"})
        before = admin.info("commandstats")["cmdstat_evalsha"]["calls"]
        with pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0.3)
        assert admin.info("commandstats")["cmdstat_evalsha"]["calls"] - before < 5
        assert (await queue.get_queue_stats()).delayed == 1


async def test_whole_structure_of_a_foreign_type(open_queue: Any, admin: Redis, name: str) -> None:
    """A structure that is something else is an error of each call at once, and goes away with its cause."""
    for broken in ("pending", "working", "delayed", "tasks"):
        async with open_queue() as queue:
            admin.set(f"{name}:{broken}", "a string")
            with anyio.fail_after(10):
                with pytest.raises(TorrelqueStorageError):
                    await queue.dequeue(0)
                with pytest.raises(TorrelqueStorageError):
                    await queue.dequeue(5)
                with pytest.raises(TorrelqueStorageError):
                    await queue.get_queue_stats()
                if broken != "working":
                    with pytest.raises(TorrelqueStorageError):
                        await queue.enqueue("t")
                    assert admin.keys(f"{name}:*") == [f"{name}:{broken}".encode()]
            admin.delete(f"{name}:{broken}")
            await queue.enqueue("t")
            assert await drain(queue) == ["t"]
            assert await queue.get_queue_stats() == TorrelqueQueueStats(0, 0, 0, 0)


async def test_everything_is_flushed(open_queue: Any, admin: Redis, name: str) -> None:
    """FLUSHDB under a consumer that waits: what was held is gone, what comes is delivered."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        await queue.enqueue("held")
        held, _ = await queue.dequeue(0)
        got: list[Any] = []

        async def consume() -> None:
            task_id, task = await queue.dequeue(20)
            got.append(task)
            await queue.release(task_id, strict=True)

        group.start_soon(consume)
        with anyio.fail_after(5):
            while not admin.info("clients")["blocked_clients"]:
                await anyio.sleep(0.005)
        admin.delete(*admin.keys(f"{name}:*"))
        admin.script_flush()
        await queue.release(held)
        await queue.enqueue("new")
        with anyio.fail_after(5):
            while not got:
                await anyio.sleep(0.005)
    assert got == ["new"]
    assert admin.keys(f"{name}:*") == []
