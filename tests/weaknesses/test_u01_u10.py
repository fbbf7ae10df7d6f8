"""Loss and stall: what the published package loses or leaves standing, and this library does not."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from redis import Redis
from support import snapshot
from support.peer import blocked, lapse, seed, seed_one, until

from torrelque import (
    Torrelque,
    TorrelqueDecodeError,
    TorrelqueFullError,
    TorrelqueQueueStats,
    TorrelqueTaskStatus,
    TorrelqueTimeoutError,
    TorrelqueTypeError,
    TorrelqueValueError,
)

pytestmark = pytest.mark.anyio

NOT_SECONDS = [math.nan, math.inf, -1.0, 0, "5 minutes", "5", True]


@asynccontextmanager
async def pipelined(client: Any, *, transaction: bool) -> AsyncGenerator[Any]:
    """A pipeline of either client, executed at the end."""
    async with client.pipeline(transaction=transaction) as pipe:
        yield pipe
        if hasattr(pipe, "command_stack") and hasattr(pipe, "execute"):
            await pipe.execute()


async def test_u01_cancelled_dequeues_leave_nothing_behind(open_queue: Any, admin: Redis, name: str) -> None:
    """A dequeue cancelled at any moment has its task or has left it pending, without a sweep."""
    async with open_queue() as queue:
        await queue.enqueue_many(range(200))
        taken: list[tuple[str, Any]] = []

        async def dequeue() -> None:
            taken.append(await queue.dequeue(5))

        for i in range(200):
            async with anyio.create_task_group() as group:
                group.start_soon(dequeue)
                for _ in range(i % 12):
                    await checkpoint()
                group.cancel_scope.cancel()
        await until(lambda: admin.llen(f"{name}:pending") == 200 - len(taken))
        assert not admin.exists(f"{name}:dequeueing")
        snapshot(admin, name).check()
        assert set(snapshot(admin, name).working) == {task_id for task_id, _ in taken}
        taken += await queue.dequeue(1, max_tasks=200)
        assert sorted(task for _, task in taken) == list(range(200))
        assert {task_id.dequeue_count for task_id, _ in taken} == {1}


async def test_u01_cancelled_while_waiting_loses_nothing(open_queue: Any, admin: Redis, name: str) -> None:
    """Tasks that arrive in the very moment in which the only waiting dequeue is cancelled are not left standing."""
    async with open_queue() as queue:
        for i in range(8):
            async with anyio.create_task_group() as group:
                group.start_soon(queue.dequeue, 5)
                await until(lambda: blocked(admin) == 1)
                task_id = f"task-{i}"
                # The loop does not run between these two, so the waiter holds an id that nobody wants any more.
                seed_one(admin, name, task_id)
                group.cancel_scope.cancel()
            await until(lambda: admin.llen(f"{name}:pending") == 1)
            assert not admin.exists(f"{name}:dequeueing", f"{name}:working")
            got, _ = await queue.dequeue(1)
            assert (got, got.dequeue_count) == (task_id, 1)
            await queue.release(got)


async def test_u02_a_lease_that_is_no_time_is_refused(open_queue: Any, admin: Redis, name: str) -> None:
    """task_timeout is checked before anything is sent, wherever it can be given."""
    async with open_queue() as queue:
        for bad in NOT_SECONDS:
            with pytest.raises((TorrelqueValueError, TorrelqueTypeError), match="task_timeout"):
                await queue.enqueue("x", task_timeout=bad)
        assert not admin.keys(f"{name}:*")
        await queue.enqueue("x")
        task_id, _ = await queue.dequeue(1)
        before = snapshot(admin, name)
        for bad in NOT_SECONDS:
            for call in (queue.requeue(task_id, task_timeout=bad), queue.extend(task_id, bad)):
                with pytest.raises((TorrelqueValueError, TorrelqueTypeError), match="task_timeout"):
                    await call
        after = snapshot(admin, name)
        after.now = before.now
        assert after == before


async def test_u02_a_stored_lease_that_is_no_time_means_the_default(open_queue: Any, admin: Redis, name: str) -> None:
    """What another program stored as a lease cannot lose a task: it is delivered, and the state repaired."""
    async with open_queue() as queue:
        for stored in ("nan", "inf", "-inf", "5 minutes", "-1", "0", "", "1e400", None):
            task_id = await queue.enqueue(stored)
            if stored is None:
                admin.hdel(f"{name}:task:{task_id}", "timeout")
            else:
                admin.hset(f"{name}:task:{task_id}", "timeout", stored)
            got, task = await queue.dequeue(1)
            assert (got, task, got.task_timeout) == (task_id, stored, 300)
            seen = snapshot(admin, name)
            assert seen.working[task_id] == pytest.approx(seen.now + 300, abs=1)
            assert (await queue.get_task_state(task_id)).timeout == 300


async def test_u03_a_staged_enqueue_is_one_command(open_client: Any, open_queue: Any, admin: Redis, name: str) -> None:
    """On a pipeline without a transaction a consumer sees the whole task or none of it, however long it is."""
    body = "x" * 300_000
    async with open_client() as client, Torrelque(client, queue=name) as producer, open_queue() as consumer:
        for _ in range(5):
            async with anyio.create_task_group() as group:

                async def produce() -> None:
                    await until(lambda: blocked(admin) == 1)
                    async with pipelined(client, transaction=False) as pipe:
                        await producer.enqueue(body, pipeline=pipe)

                group.start_soon(produce)
                task_id, task = await consumer.dequeue(10)
            assert task == body
            await consumer.release(task_id, strict=True)
        admin.config_resetstat()
        async with pipelined(client, transaction=False) as pipe:
            await producer.enqueue("y", pipeline=pipe)
        assert admin.info("commandstats")["cmdstat_eval"]["calls"] == 1


async def test_u03_a_producer_that_is_half_way_can_finish(open_queue: Any, admin: Redis, name: str) -> None:
    """An id whose payload is not there yet is neither delivered nor destroyed: it is parked until a second look."""
    async with open_queue() as queue:
        admin.lpush(f"{name}:pending", "slow")
        with pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0)
        assert admin.lrange(f"{name}:dequeueing", 0, -1) == [b"slow"]
        assert await queue.sweep() == (0, 0, 0)
        admin.hset(f"{name}:tasks", "slow", '"x"')
        admin.hset(f"{name}:task:slow", mapping={"status": 0, "timeout": 300, "enqueue_time": 1.0})
        assert await queue.sweep() == (0, 0, 1)
        assert await queue.dequeue(1) == ("slow", "x")


async def test_u04_a_falsy_payload_is_a_payload(open_queue: Any, admin: Redis, name: str) -> None:
    """What Python takes for false is delivered, also again, and can be a result."""
    async with open_queue() as queue:
        for value in (0, 0.0, "", [], {}, False, None):
            await queue.enqueue(value)
            task_id, task = await queue.dequeue(1)
            assert (task, type(task)) == (value, type(value))
            await queue.requeue(task_id)
            ((task_id, task),) = await queue.dequeue(1, max_tasks=2)
            assert (task, type(task)) == (value, type(value))
            await queue.release(task_id, result=value)
            if value is None:  # documented: that is no result
                assert not admin.exists(f"{name}:task:{task_id}")
            else:
                state = await queue.get_task_state(task_id)
                assert (state.result, type(state.result)) == (value, type(value))


async def test_u05_a_result_that_cannot_be_serialised_stages_nothing(open_client: Any, admin: Redis, name: str) -> None:
    """When release fails on a pipeline nothing of it is queued there, and the lease is as it was."""
    async with open_client() as client, Torrelque(client, queue=name) as queue:
        await queue.enqueue("x")
        task_id, _ = await queue.dequeue(1)
        before = snapshot(admin, name)
        async with pipelined(client, transaction=True) as pipe:
            with pytest.raises(TypeError):
                await queue.release(task_id, result=object(), pipeline=pipe)
            with contextlib.suppress(AttributeError):
                assert not pipe.command_stack
        with pytest.raises(TypeError):
            await queue.release(task_id, result=object())
        after = snapshot(admin, name)
        after.now = before.now
        assert after == before
        await queue.release(task_id, result="ok", strict=True)
        assert (await queue.get_task_state(task_id)).status is TorrelqueTaskStatus.COMPLETED


@pytest.mark.parametrize("place", ["delayed", "working", "dequeueing"])
async def test_u06_a_sweep_copes_with_any_backlog(open_queue: Any, admin: Redis, name: str, place: str) -> None:
    """9,000 due, stale or parked tasks go back in one sweep (parked ones at the second sight)."""
    seed(admin, name, place, 9000)
    async with open_queue() as queue:
        if place == "dequeueing":
            assert await queue.sweep() == (0, 0, 0)
        expected = {"working": (9000, 0, 0), "delayed": (0, 9000, 0), "dequeueing": (0, 0, 9000)}
        assert await queue.sweep() == expected[place]
        assert await queue.get_queue_stats() == TorrelqueQueueStats(tasks=9000, pending=9000, working=0, delayed=0)


async def test_u07_a_huge_max_tasks_is_clamped(open_queue: Any, admin: Redis, name: str) -> None:
    """A dequeue that asks for more than a script may take gets 1,000, and parks nothing."""
    ids = seed(admin, name, "pending", 9000)
    async with open_queue() as queue:
        assert [task for _, task in await queue.dequeue(1, max_tasks=9000)] == ids[:1000]
        assert not admin.exists(f"{name}:dequeueing")
        assert await queue.get_queue_stats() == TorrelqueQueueStats(9000, 8000, 1000, 0)


async def test_u08_a_full_server_can_be_drained(open_queue: Any, admin: Redis, name: str) -> None:
    """At maxmemory tasks are claimed, swept, extended, requeued and released with a result; only new ones wait."""
    async with open_queue() as queue:
        for i in range(4):
            await queue.enqueue(i)
        delayed = await queue.enqueue("delayed", delay=3600)
        held, _ = await queue.dequeue(1)
        admin.zadd(f"{name}:delayed", {delayed: 1})
        admin.config_set("maxmemory", "1")
        try:
            with pytest.raises(TorrelqueFullError):
                await queue.enqueue("new")
            await queue.release(held, result="kept", strict=True)
            first, _ = await queue.dequeue(1)
            await queue.extend(first)
            await queue.requeue(first, strict=True)
            rest = await queue.dequeue(1, max_tasks=10)
            assert {task for _, task in rest} == {1, 2, 3, "delayed"}
            lapse(admin, name, rest[0][0])
            assert await queue.sweep() == (1, 0, 0)
            rest[0] = await queue.dequeue(1)
            for task_id, _ in rest:
                await queue.release(task_id, strict=True)
            assert await queue.get_queue_stats() == TorrelqueQueueStats(0, 0, 0, 0)
            assert (await queue.get_task_state(held)).result == "kept"
        finally:
            admin.config_set("maxmemory", "0")


async def test_u08_a_waiting_dequeue_outlives_a_full_server(open_queue: Any, admin: Redis, name: str) -> None:
    """A dequeue that waits when the memory gets full, where Redis refuses the blocking pop too, still gets a task."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        got: list[Any] = []

        async def dequeue() -> None:
            got.append(await queue.dequeue(10))

        seed_one(admin, name, "spare")
        admin.lrem(f"{name}:pending", 1, "spare")
        admin.zadd(f"{name}:delayed", {"spare": 1 << 40})
        admin.hset(f"{name}:task:spare", "status", 2)
        admin.config_set("maxmemory", "1")
        try:
            group.start_soon(dequeue)
            await anyio.wait_all_tasks_blocked()
            admin.eval("redis.call('ZREM', KEYS[1], 'spare') redis.call('LPUSH', KEYS[2], 'spare')", 2,
                       f"{name}:delayed", f"{name}:pending")  # fmt: skip
            await until(lambda: bool(got), 8)
        finally:
            admin.config_set("maxmemory", "0")
    assert got == [("spare", "x")]


async def test_u09_a_scheduled_sweep_outlives_errors_of_redis(
    open_queue: Any, admin: Redis, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever Redis says to a sweep is logged, and the next one comes."""
    async with open_queue() as queue:
        admin.hset(f"{name}:delayed", "wrong", "type")
        with caplog.at_level(logging.WARNING, "torrelque"):
            queue.schedule_sweep(0.02)
            await until(lambda: "Sweep has failed with Redis error, continuing" in caplog.text)
        admin.delete(f"{name}:delayed")
        await queue.enqueue("x", delay=0.02)
        await until(lambda: admin.llen(f"{name}:pending") == 1)


async def test_u09_schedules_do_not_pile_up(open_queue: Any, admin: Redis, name: str) -> None:
    """A second schedule replaces the first, and after unschedule nobody sweeps any more."""
    async with open_queue() as queue:
        queue.schedule_sweep(0.01)
        queue.schedule_sweep(0.01)
        seed(admin, name, "delayed", 1)
        await until(lambda: admin.llen(f"{name}:pending") == 1)
        queue.unschedule_sweep()
        queue.unschedule_sweep()
        await anyio.wait_all_tasks_blocked()
        assert await queue.get_queue_stats() == TorrelqueQueueStats(1, 1, 0, 0)  # what was under way is done
        seed(admin, name, "working", 1)
        await anyio.sleep(0.1)
        assert admin.zcard(f"{name}:working") == 1


async def test_u09_a_sweep_that_dies_is_loud(open_client: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is no failure of Redis ends the queue's scope with it, instead of the sweep alone."""

    async def broken(*_: Any) -> Any:
        raise RuntimeError("not a Redis error")

    async def enter_and_wait(client: Any) -> None:
        async with Torrelque(client, queue=name) as queue:
            monkeypatch.setattr(queue._sweeper, "sweep_once", broken)
            queue.schedule_sweep(0.02)
            with anyio.fail_after(10):
                await anyio.sleep_forever()

    async with open_client() as client:
        with pytest.raises(RuntimeError, match="not a Redis error"):
            await enter_and_wait(client)


async def test_u09_a_sweep_in_the_users_nursery_can_be_cancelled(open_queue: Any) -> None:
    """run_sweep ends by cancellation, which it does not swallow."""
    async with open_queue() as queue:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                await group.start(queue.run_sweep, 0.01)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()


async def test_u10_a_ghost_does_not_hurt_its_batch(
    open_queue: Any, admin: Redis, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An id without a task behind it is dropped with a warning; the others of its batch are delivered."""
    async with open_queue() as queue:
        await queue.enqueue("a")
        admin.lpush(f"{name}:pending", "ghost")
        await queue.enqueue("b")
        assert [task for _, task in await queue.dequeue(1, max_tasks=5)] == ["a", "b"]
        with caplog.at_level(logging.WARNING, "torrelque"):
            assert await queue.sweep() == (0, 0, 0)
            assert await queue.sweep() == (0, 0, 0)
        assert "b'ghost'" in caplog.text
        snapshot(admin, name).check()
        assert not admin.exists(f"{name}:dequeueing", f"{name}:undequeued", f"{name}:task:ghost")


async def test_u10_an_unreadable_payload_does_not_hurt_its_batch(open_queue: Any, admin: Redis, name: str) -> None:
    """The error names the one that cannot be read, leased to the caller, who rejects it; the others go back."""
    async with open_queue() as queue:
        first = await queue.enqueue("a")
        bad = await queue.enqueue("bad")
        last = await queue.enqueue("b")
        admin.hset(f"{name}:tasks", bad, b"\xff{")
        with pytest.raises(TorrelqueDecodeError) as caught:
            await queue.dequeue(1, max_tasks=5)
        assert (caught.value.task_id, caught.value.body) == (bad, b"\xff{")
        await until(lambda: admin.lrange(f"{name}:pending", 0, -1) == [last.encode(), first.encode()])
        assert set(snapshot(admin, name).working) == {bad}
        await queue.release(caught.value.task_id, status=TorrelqueTaskStatus.REJECTED, strict=True)
        rest = await queue.dequeue(1, max_tasks=5)
        assert [(task, task_id.dequeue_count) for task_id, task in rest] == [("a", 1), ("b", 1)]
