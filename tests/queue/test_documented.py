"""The documented API, on every pair, and un-entered where that is documented: what each call does and leaves behind."""

from __future__ import annotations

import pickle
import re
from typing import Any

import anyio
import pytest
from redis import Redis
from support import PAIRS, UNENTERED, Pair, snapshot

from torrelque import (
    Torrelque,
    TorrelqueError,
    TorrelqueLookupError,
    TorrelqueQueueStats,
    TorrelqueTaskId,
    TorrelqueTaskSerialiser,
    TorrelqueTaskState,
    TorrelqueTaskStatus,
    TorrelqueTimeoutError,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=PAIRS + UNENTERED, ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    """The legal pairs, and those of users who never enter a queue."""
    return request.param


async def test_enqueue_dequeue_release(open_queue: Any, admin: Redis, name: str) -> None:
    """A task goes the whole way and leaves nothing behind."""
    async with open_queue() as queue:
        task_id = await queue.enqueue({"a": [1, "é"]})
        assert re.fullmatch("[0-9a-f]{32}", task_id)
        assert await queue.get_queue_stats() == TorrelqueQueueStats(tasks=1, pending=1, working=0, delayed=0)
        snapshot(admin, name).check()
        got, task = await queue.dequeue(1)
        assert (got, task) == (task_id, {"a": [1, "é"]})
        assert isinstance(got, TorrelqueTaskId)
        assert (got.dequeue_count, got.task_timeout) == (1, 300)
        assert await queue.get_queue_stats() == TorrelqueQueueStats(tasks=1, pending=0, working=1, delayed=0)
        snapshot(admin, name).check()
        await queue.release(got)
    assert admin.keys(f"{name}:*") == []


async def test_stored_like_the_published_package(open_queue: Any, admin: Redis, name: str) -> None:
    """Keys, fields and their text are those that the published package writes and reads."""
    async with open_queue() as queue:
        task_id = await queue.enqueue({"a": "é"})
        assert admin.lrange(f"{name}:pending", 0, -1) == [task_id.encode()]
        assert admin.hgetall(f"{name}:tasks") == {task_id.encode(): b'{"a": "\\u00e9"}'}
        state = admin.hgetall(f"{name}:task:{task_id}")
        assert set(state) == {b"status", b"enqueue_time", b"timeout"}
        assert (state[b"status"], state[b"timeout"]) == (b"0", b"300")
        delayed = await queue.enqueue("x", delay=60, task_timeout=1.5)
        state = admin.hgetall(f"{name}:task:{delayed}")
        assert (state[b"status"], state[b"timeout"]) == (b"2", b"1.5")
        assert admin.zscore(f"{name}:delayed", delayed) == pytest.approx(float(state[b"enqueue_time"]) + 60, abs=0.01)


async def test_task_state_follows_the_life_of_a_task(open_queue: Any) -> None:
    """Each field of the state is set when what it tells of has happened."""
    async with open_queue() as queue:
        task_id = await queue.enqueue("t", task_timeout=2.5)
        state = await queue.get_task_state(task_id)
        assert state == TorrelqueTaskState(
            TorrelqueTaskStatus.PENDING, 2.5, None, 0, 0, state.enqueue_time, None, None, None
        )
        got, _ = await queue.dequeue(1)
        state = await queue.get_task_state(task_id)
        assert (state.status, state.dequeue_count) == (TorrelqueTaskStatus.WORKING, 1)
        assert state.last_dequeue_time >= state.enqueue_time
        await queue.requeue(got, task_timeout=7)
        state = await queue.get_task_state(task_id)
        assert (state.status, state.requeue_count, state.timeout) == (TorrelqueTaskStatus.PENDING, 1, 7)
        assert state.last_requeue_time >= state.last_dequeue_time
        got, _ = await queue.dequeue(1)
        await queue.release(got, result={"r": 1}, status=TorrelqueTaskStatus.REJECTED)
        state = await queue.get_task_state(task_id)
        assert (state.status, state.result, state.dequeue_count) == (TorrelqueTaskStatus.REJECTED, {"r": 1}, 2)
        assert state.status.isfinal()
        assert state.release_time >= state.last_dequeue_time


async def test_release_with_result_keeps_the_state_for_its_time(open_queue: Any, admin: Redis, name: str) -> None:
    """The state outlives the task by result_ttl, to the millisecond, and nothing else does."""
    async with open_queue() as queue:
        for given, expected in ((None, 3600), (1.5, 1.5)):
            await queue.enqueue("t")
            task_id, _ = await queue.dequeue(1)
            await queue.release(task_id, result=1, result_ttl=given)
            assert admin.keys(f"{name}:*") == [f"{name}:task:{task_id}".encode()]
            assert admin.pttl(f"{name}:task:{task_id}") == pytest.approx(expected * 1000, abs=500)
            admin.delete(f"{name}:task:{task_id}")


async def test_dequeue_timeout(open_queue: Any) -> None:
    """An empty queue lets a dequeue wait as long as it says, and not at all for 0."""
    async with open_queue() as queue:
        for timeout in (0, 0.05):
            started = anyio.current_time()
            with pytest.raises(TorrelqueTimeoutError):
                await queue.dequeue(timeout)
            waited = anyio.current_time() - started
            assert timeout - 0.001 < waited < timeout + 1  # uvloop's clock has steps of a millisecond


async def test_dequeue_many(open_queue: Any) -> None:
    """max_tasks brings what is there, in order and as a list, also for one; more than a script takes comes too."""
    async with open_queue() as queue:
        ids = await queue.enqueue_many(range(1200))
        first = await queue.dequeue(1, max_tasks=2)
        assert first == [(ids[0], 0), (ids[1], 1)]
        rest = await queue.dequeue(1, max_tasks=10**9)
        assert [task for _, task in rest] == list(range(2, 1002))
        assert [task for _, task in await queue.dequeue(1, max_tasks=300)] == list(range(1002, 1200))
        task_id = await queue.enqueue("one")
        assert await queue.dequeue(1, max_tasks=5) == [(task_id, "one")]


async def test_waiting_dequeue_gets_what_comes(open_queue: Any) -> None:
    """A dequeue that waits without limit is woken by a task, a due delay and an ended lease."""
    async with open_queue() as queue, anyio.create_task_group() as group:

        async def produce() -> None:
            await queue.enqueue("now")
            await got_first.wait()
            await queue.enqueue("later", delay=0.05, task_timeout=0.05)

        got_first = anyio.Event()
        group.start_soon(produce)
        task_id, task = await queue.dequeue()
        assert task == "now"
        await queue.release(task_id)
        got_first.set()
        first, task = await queue.dequeue()
        assert task == "later"
        second, task = await queue.dequeue()
        assert (second, task) == (first, "later")
        assert (first.dequeue_count, second.dequeue_count) == (1, 2)


async def test_requeue_with_delay(open_queue: Any, admin: Redis, name: str) -> None:
    """A delayed requeue comes back when it is due, and counts as one return to pending."""
    async with open_queue() as queue:
        await queue.enqueue("t")
        task_id, _ = await queue.dequeue(1)
        await queue.requeue(task_id, 0.05)
        assert (await queue.get_task_state(task_id)).status is TorrelqueTaskStatus.DELAYED
        snapshot(admin, name).check()
        again, _ = await queue.dequeue(5)
        assert (again, again.dequeue_count) == (task_id, 2)
        assert (await queue.get_task_state(task_id)).requeue_count == 1


async def test_sweep_counts(open_queue: Any, admin: Redis, name: str) -> None:
    """A sweep tells how many stale, due and parked tasks went back; parked ones at the second sight."""
    async with open_queue() as queue:
        await queue.enqueue("stale")
        stale, _ = await queue.dequeue(1)
        due, parked = await queue.enqueue("due", delay=100), await queue.enqueue("parked")
        admin.zadd(f"{name}:working", {stale: 1})
        admin.zadd(f"{name}:delayed", {due: 1})
        assert admin.rpoplpush(f"{name}:pending", f"{name}:dequeueing") == parked.encode()
        assert await queue.sweep() == (1, 1, 0)
        assert await queue.sweep() == (0, 0, 1)
        assert await queue.sweep() == (0, 0, 0)
        snapshot(admin, name).check()
        assert {task for _, task in await queue.dequeue(1, max_tasks=9)} == {"stale", "due", "parked"}
        assert not admin.exists(f"{name}:undequeued", f"{name}:undequeued:outgoing")


async def test_watch_follows_to_the_result(open_queue: Any) -> None:
    """A watch shows the present state, each change, and ends after the final state."""
    async with open_queue() as queue:
        task_id = await queue.enqueue("t")
        seen: list[TorrelqueTaskState] = []
        async for state in queue.watch(task_id, timeout=20):
            seen.append(state)
            match state.status:
                case TorrelqueTaskStatus.PENDING:
                    got, _ = await queue.dequeue(1)
                case TorrelqueTaskStatus.WORKING if state.dequeue_count == 1:
                    await queue.requeue(got, 0.05)
                case TorrelqueTaskStatus.DELAYED:
                    got, _ = await queue.dequeue(5)
                case TorrelqueTaskStatus.WORKING:
                    await queue.release(got, result="done")
        names = [state.status.name for state in seen]
        assert names == ["PENDING", "WORKING", "DELAYED", "WORKING", "COMPLETED"]
        assert seen[-1].result == "done"


async def test_watch_ends_with_a_release_without_result(open_queue: Any) -> None:
    """Without a result there is no final state to show: the watch just ends."""
    async with open_queue() as queue:
        task_id = await queue.enqueue("t")
        names = []
        async for state in queue.watch(task_id, timeout=20):
            names.append(state.status.name)
            if state.status is TorrelqueTaskStatus.PENDING:
                got, _ = await queue.dequeue(1)
            else:
                await queue.release(got)
        assert names == ["PENDING", "WORKING"]


async def test_watch_errors(open_queue: Any, admin: Redis) -> None:
    """An unknown task, a time that passes, a server without notifications: each has its error."""
    async with open_queue() as queue:
        with pytest.raises(TorrelqueLookupError):
            await anext(queue.watch("unknown", timeout=5))
        task_id = await queue.enqueue("t")
        watch = queue.watch(task_id, timeout=0.5)
        assert (await anext(watch)).status is TorrelqueTaskStatus.PENDING
        with pytest.raises(TorrelqueTimeoutError):
            await anext(watch)
    flags = admin.config_get("notify-keyspace-events")["notify-keyspace-events"]
    for setting, enough in (("", False), ("K", False), ("Kg", False), ("EA", False), ("Kgh", True), ("KA", True)):
        admin.config_set("notify-keyspace-events", setting)
        try:
            async with open_queue() as queue:
                watch = queue.watch(task_id, timeout=5)
                if enough:
                    assert (await anext(watch)).status is TorrelqueTaskStatus.PENDING
                    await watch.aclose()
                else:
                    with pytest.raises(TorrelqueError, match=r"^Redis notify-keyspace-events must include KA or Kgh$"):
                        await anext(watch)
        finally:
            admin.config_set("notify-keyspace-events", flags)


async def test_serialisers(open_queue: Any) -> None:
    """A module with dumps and loads will do, and so will a pair of functions."""
    payload = {"set": {1, 2}, "bytes": b"\0"}
    for serialiser in (pickle, TorrelqueTaskSerialiser(pickle.dumps, pickle.loads)):
        async with open_queue(serialiser=serialiser) as queue:
            await queue.enqueue(payload)
            task_id, task = await queue.dequeue(1)
            assert task == payload
            await queue.release(task_id, result=payload)
            assert (await queue.get_task_state(task_id)).result == payload


async def test_defaults_can_be_set_on_class_and_instance(open_queue: Any, admin: Redis, name: str) -> None:
    """task_timeout, sweep_interval and result_ttl are read where they are needed."""
    assert (Torrelque.task_timeout, Torrelque.sweep_interval, Torrelque.result_ttl) == (300, 30, 3600)
    assert set(Torrelque.keys) == {"delayed", "dequeueing", "pending", "task", "tasks", "undequeued", "working"}
    async with open_queue() as queue:
        assert queue.keys == {key: f"{name}:{key}" for key in Torrelque.keys}
        queue.task_timeout, queue.result_ttl = 11, 7
        task_id = await queue.enqueue("t")
        assert (await queue.get_task_state(task_id)).timeout == 11
        got, _ = await queue.dequeue(1)
        await queue.release(got, result=1)
        assert 6 < admin.ttl(f"{name}:task:{task_id}") <= 7


async def test_lookup(open_queue: Any) -> None:
    """An unknown task is a TorrelqueLookupError."""
    async with open_queue() as queue:
        with pytest.raises(TorrelqueLookupError):
            await queue.get_task_state("unknown")
