"""Worker processes are killed, or stand still: their tasks go to others, once, and what comes late changes nothing."""

from __future__ import annotations

import signal
from typing import Any

import anyio
import pytest
from redis import Redis
from support import Pair, Server, snapshot
from support.checkpoints import until
from support.workers import open_worker

pytestmark = pytest.mark.anyio


async def test_killed_worker(open_queue: Any, server: Server, admin: Redis, name: str, pair: Pair) -> None:
    """What a killed worker held is delivered again when its lease ends: by a waiting consumer, and by a sweep."""
    short, long = [f"short {i}" for i in range(3)], [f"long {i}" for i in range(3)]
    async with open_queue() as queue:
        await queue.enqueue_many(short, task_timeout=0.5)
        await queue.enqueue_many(long, task_timeout=2)
        async with open_worker(server.url, name, pair, 6) as worker:
            held = await worker.said()
            worker.signal(signal.SIGKILL)
        assert {count for _, count in held.values()} == {1}
        for _ in short:
            task_id, task = await queue.dequeue(10)
            assert task in short
            assert [task_id, task_id.dequeue_count] == [held[task][0], 2]
            await queue.release(task_id, strict=True)
        swept = 0
        with anyio.fail_after(10):
            while swept < 3:
                swept += (await queue.sweep())[0]
                await anyio.sleep(0.02)
        snapshot(admin, name).check()
        again = await queue.dequeue(5, max_tasks=10)
        assert {task: [str(task_id), task_id.dequeue_count] for task_id, task in again} == {
            task: [held[task][0], 2] for task in long
        }
        for task_id, _ in again:
            await queue.release(task_id, strict=True)
    assert not admin.exists(f"{name}:tasks")


async def test_worker_killed_while_it_waits(
    open_queue: Any, server: Server, admin: Redis, name: str, pair: Pair
) -> None:
    """A worker that is killed while it waits takes nothing with it; what it was handed comes back in two sweeps."""
    async with open_queue() as queue, open_worker(server.url, name, pair, 1) as worker:
        await until(lambda: any(client["cmd"] == "blmove" for client in admin.client_list()), 20)
        worker.signal(signal.SIGSTOP)
        # The server hands the task to a connection behind which nobody moves.
        task_id = await queue.enqueue("t")
        assert snapshot(admin, name).dequeueing == [task_id]
        worker.signal(signal.SIGKILL)
        assert await queue.sweep() == (0, 0, 0)
        assert await queue.sweep() == (0, 0, 1)
        got, _ = await queue.dequeue(5)
        assert (got, got.dequeue_count) == (task_id, 1)


async def test_stopped_worker(open_queue: Any, server: Server, admin: Redis, name: str, pair: Pair) -> None:
    """A worker that stood still past its leases may change nothing any more, and its handler is cancelled."""
    hows = [f"{how} {where}" for where in ("held", "pending") for how in ("release", "requeue", "extend")]
    async with open_queue() as queue, open_worker(server.url, name, pair, 7) as worker:
        await queue.enqueue_many([*hows, "leased"], task_timeout=1)
        held = await worker.said()
        worker.signal(signal.SIGSTOP)
        swept = 0
        with anyio.fail_after(20):
            while swept < 7:
                swept += (await queue.sweep())[0]
                await anyio.sleep(0.02)
        wanted = {held[how][0] for how in hows if how.endswith("held")}
        ours: dict[Any, Any] = {}
        while len(ours) < 7:
            ours |= dict(await queue.dequeue(5, max_tasks=7))
        for task_id in ours:
            if task_id in wanted:
                await queue.extend(task_id, 1000)
            else:
                await queue.requeue(task_id, strict=True)
        before = snapshot(admin, name)
        worker.signal(signal.SIGCONT)
        assert await worker.said() in ("TorrelqueLookupError", "TorrelqueLeaseLostError", "TorrelqueNotWorkingError")
        assert await worker.said() == {
            how: "TorrelqueLeaseLostError" if how.endswith("held") else "TorrelqueNotWorkingError" for how in hows
        }
        after = snapshot(admin, name)
        after.check()
        after.now = before.now
        assert after == before
