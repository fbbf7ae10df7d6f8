"""Delays and leases end when they should while anybody waits or sweeps, and who waits costs an idle server nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import anyio
import pytest
from redis import Redis
from support import snapshot
from support.checkpoints import until
from support.standstill import Standstill

from torrelque import Torrelque, TorrelqueTaskState

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

#: Aimed at are 0.05 s; a machine that does other things at the same time may take more.
LATE = 0.5


@pytest.fixture
def judge(record_property: Any) -> Iterator[Callable[[Iterable[float]], None]]:
    """Assert that nothing came early, by the clock of Redis, nor late, but for what the machine stood still."""

    def judge(lateness: Iterable[float]) -> None:
        ordered = sorted(lateness)
        percentiles = [round(ordered[len(ordered) * p // 100 - 1], 4) for p in (50, 99, 100)]
        record_property("lateness p50, p99, max", percentiles)
        assert ordered[0] >= 0
        assert ordered[-1] < LATE + standstill.seconds

    with Standstill.counted() as standstill:
        yield judge


async def states_of(queue: Torrelque, ids: Iterable[str]) -> list[TorrelqueTaskState]:
    return [await queue.get_task_state(task_id) for task_id in ids]


async def enqueue_delayed(queue: Torrelque) -> dict[str, float]:
    """Enqueue 50 tasks due within half a second, in no order."""
    delays = [(i * 37 % 50) / 100 for i in range(50)]
    return {await queue.enqueue(delay, delay=delay): delay for delay in delays}


async def test_delays_end_on_time_for_who_waits(open_queue: Any, judge: Any) -> None:
    """What another program delays comes to a waiting consumer when it is due."""
    received: dict[str, float] = {}

    async def consume() -> None:
        while len(received) < 50:
            for task_id, _ in await queue.dequeue(max_tasks=10):
                received[task_id] = time.time()

    async with open_queue() as queue, open_queue() as other:
        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            delays = await enqueue_delayed(other)
        states = await states_of(queue, received)
        due = {task_id: s.enqueue_time + delays[task_id] for task_id, s in zip(received, states, strict=True)}
        # Claimed by the clock of Redis, which is this machine's, and received by ours.
        assert min(s.last_dequeue_time - at for s, at in zip(states, due.values(), strict=True)) >= 0
        judge(received[task_id] - at for task_id, at in due.items())


async def test_delays_end_on_time_for_a_sweep(open_queue: Any, admin: Redis, name: str, judge: Any) -> None:
    """A scheduled sweep promotes at the moment, not at its next interval."""
    async with open_queue() as queue, open_queue() as other:
        queue.schedule_sweep(30)
        delays = await enqueue_delayed(other)
        await until(lambda: admin.llen(f"{name}:pending") == 50)
        states = {task_id: await queue.get_task_state(task_id) for task_id, delay in delays.items() if delay}
        judge(s.last_requeue_time - s.enqueue_time - delays[i] for i, s in states.items())
        snapshot(admin, name).check()


@pytest.mark.parametrize("by", ["consumer", "sweep"])
async def test_leases_end_on_time(open_queue: Any, admin: Redis, name: str, by: str, judge: Any) -> None:
    """A task whose lease of 0.1 to 0.3 s ends is back at that moment, for a waiting consumer or by a sweep."""
    leases = [0.1 + i / 100 for i in range(21)]
    async with open_queue() as queue, open_queue() as other:
        if by == "sweep":
            queue.schedule_sweep(30)
        for lease in leases:
            await other.enqueue(lease, task_timeout=lease)
        held = dict(await other.dequeue(5, max_tasks=21))
        assert len(held) == 21
        ends = {i: (await other.get_task_state(i)).last_dequeue_time + lease for i, lease in held.items()}
        if by == "sweep":
            await until(lambda: admin.llen(f"{name}:pending") == 21)
            back = {i: (await queue.get_task_state(i)).last_requeue_time for i in held}
        else:
            back = {}
            while len(back) < 21:
                task_id, _ = await queue.dequeue(10)
                if task_id not in back:
                    back[task_id] = (await queue.get_task_state(task_id)).last_dequeue_time
                    await queue.extend(task_id, 1000)
        judge(back[i] - end for i, end in ends.items())


def calls(admin: Redis) -> dict[str, int]:
    """Count the commands that the server has run, but for those of the test itself."""
    stats = admin.info("commandstats")
    return {name: stat["calls"] for name, stat in stats.items() if name != "cmdstat_info"}


async def test_idle_server_hears_nothing(open_queue: Any, admin: Redis, pair: Any) -> None:
    """200 waiting dequeues, 20 watches and a scheduled sweep send nothing at all while nothing happens."""
    watching = 0

    async def watch(queue: Torrelque, task_id: str) -> None:
        nonlocal watching
        async for _ in queue.watch(task_id):
            watching += 1

    async with open_queue() as queue, anyio.create_task_group() as group:
        queue.schedule_sweep()
        for _ in range(200):
            group.start_soon(lambda: queue.dequeue())
        task_id = await queue.enqueue("later", delay=3600)
        for _ in range(20):
            group.start_soon(watch, queue, task_id)
        await until(lambda: watching == 20 and any(client["cmd"] == "blmove" for client in admin.client_list()))
        before: dict[str, int] = {}
        while before != (before := calls(admin)):
            await anyio.sleep(0.1)
        await anyio.sleep(2)
        assert calls(admin) == before
        group.cancel_scope.cancel()


async def test_a_thousand_watchers(open_queue: Any, admin: Redis, name: str) -> None:
    """1,000 watches in a process share one subscribed connection, silent while idle; each sees its task's end."""
    begun: set[str] = set()
    results: dict[str, Any] = {}

    async def watch(queue: Torrelque, task_id: str) -> None:
        async for state in queue.watch(task_id):
            begun.add(task_id)
            results[task_id] = state.result

    async with open_queue() as queue, open_queue() as other:
        ids = await other.enqueue_many(range(1000))
        async with anyio.create_task_group() as group:
            for task_id in ids:
                group.start_soon(watch, queue, task_id)
            await until(lambda: len(begun) == 1000)
            channels = [f"__keyspace@0__:{name}:task:{task_id}" for task_id in ids]
            assert {count for _, count in admin.pubsub_numsub(*channels)} == {1}
            assert [client["sub"] for client in admin.client_list() if int(client["sub"]) >= 1000] == ["1000"]
            before: dict[str, int] = {}
            while before != (before := calls(admin)):
                await anyio.sleep(0.1)
            await anyio.sleep(1)
            assert calls(admin) == before
            for task_id, task in await other.dequeue(5, max_tasks=1000):
                group.start_soon(partial(other.release, task_id, result=task, strict=True))
    assert results == dict(zip(ids, range(1000), strict=True))
