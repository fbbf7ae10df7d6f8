"""In the user's own nursery, on a real server: what runs there ends with it, and is ready when ``start`` returns."""

from __future__ import annotations

from typing import Any

import coredis
import pytest
import trio
from redis import Redis
from support import Server, snapshot

from torrelque import Torrelque, TorrelqueClosedError, TorrelqueTimeoutError

pytestmark = pytest.mark.trio


async def test_sweep_runs_in_a_nursery(nursery: Any, server: Server, admin: Redis, name: str) -> None:
    """``await nursery.start(queue.run_sweep)`` gives back what ends, at the moment when it ends."""
    async with coredis.Redis.from_url(server.url) as client, Torrelque(client, queue=name) as queue:
        await queue.enqueue("stale", task_timeout=0.2)
        await queue.enqueue("due", delay=0.2)
        await queue.dequeue(0)
        await nursery.start(queue.run_sweep, 60)
        with trio.fail_after(5):
            while len(snapshot(admin, name).pending) < 2:
                await trio.sleep(0.01)
        snapshot(admin, name).check()
        await queue.enqueue("sooner", delay=0.1)
        with trio.fail_after(5):
            while len(snapshot(admin, name).pending) < 3:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


async def test_sweep_ends_with_its_nursery(server: Server, name: str) -> None:
    """Cancelled, the sweep is over, and can be started again."""
    async with coredis.Redis.from_url(server.url) as client, Torrelque(client, queue=name) as queue:
        for _ in range(3):
            async with trio.open_nursery() as inner:
                await inner.start(queue.run_sweep)
                inner.cancel_scope.cancel()
        await queue.enqueue("t", delay=60)
        with pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0)


async def test_two_sweepers_are_one(nursery: Any, server: Server, name: str) -> None:
    """Several sweeps of one queue, here and elsewhere, give each task back once (I20)."""
    async with coredis.Redis.from_url(server.url) as client:
        async with Torrelque(client, queue=name) as one, Torrelque(client, queue=name) as two:
            for queue in (one, one, two):
                await nursery.start(queue.run_sweep, 0.05)
            two.schedule_sweep(0.05)
            await one.enqueue_many(range(50), delay=0.1)
            with trio.fail_after(5):
                while (await one.get_queue_stats()).pending < 50:
                    await trio.sleep(0.01)
            got = await one.dequeue(0, max_tasks=100)
            assert sorted(task for _, task in got) == list(range(50))
            states = [await one.get_task_state(task_id) for task_id, _ in got]
            assert {state.requeue_count for state in states} == {1}
            nursery.cancel_scope.cancel()


async def test_worker_in_a_nursery(nursery: Any, server: Server, admin: Redis, name: str) -> None:
    """Workers, a sweep and a producer in one nursery: all comes out, and cancelling it leaves nothing behind."""
    done: list[Any] = []

    async def work(queue: Torrelque) -> None:
        while True:
            task_id, task = await queue.dequeue()
            async with queue.lease(task_id):
                await trio.lowlevel.checkpoint()
            await queue.release(task_id, strict=True)
            done.append(task)

    async with coredis.Redis.from_url(server.url) as client, Torrelque(client, queue=name) as queue:
        await nursery.start(queue.run_sweep)
        for _ in range(8):
            nursery.start_soon(work, queue)
        await queue.enqueue_many(range(100), delay=0.05)
        await queue.enqueue_many(range(100, 200))
        with trio.fail_after(10):
            while len(done) < 200:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert sorted(done) == list(range(200))
    assert admin.keys(f"{name}:*") == []


async def test_sweep_of_a_queue_that_was_left(server: Server, name: str) -> None:
    """A sweep that outlives its queue ends with an error that says so, and does not hang."""
    async with coredis.Redis.from_url(server.url) as client:
        async with trio.open_nursery() as inner:

            async def sweep(task_status: Any) -> None:
                with pytest.raises(TorrelqueClosedError):
                    await queue.run_sweep(0.05, task_status=task_status)

            async with Torrelque(client, queue=name) as queue:
                await inner.start(sweep)
            with trio.fail_after(5):
                while inner.child_tasks:
                    await trio.sleep(0.01)
