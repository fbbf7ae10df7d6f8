"""Ownership and time: who may change a task, and which clock says when."""

from __future__ import annotations

import logging
import time
from typing import Any

import anyio
import pytest
from redis import Redis
from support import Snapshot, snapshot
from support.peer import blocked, lapse, seed_one, until
from support.standstill import Standstill

from torrelque import (
    Torrelque,
    TorrelqueLeaseLostError,
    TorrelqueLookupError,
    TorrelqueNotWorkingError,
    TorrelqueQueueStats,
    TorrelqueTaskId,
    TorrelqueTaskStatus,
    TorrelqueTimeoutError,
)
from torrelque.calls import SWEEP_ALL, Calls
from torrelque.keys import Keys

pytestmark = pytest.mark.anyio


def data(admin: Redis, name: str) -> Snapshot:
    """A snapshot to compare with another."""
    seen = snapshot(admin, name)
    seen.now = 0
    return seen


async def overrun(queue: Torrelque, admin: Redis, name: str) -> TorrelqueTaskId:
    """Dequeue a task and let the lease end and the sweep take it."""
    task_id, _ = await queue.dequeue(1)
    lapse(admin, name, task_id)
    assert await queue.sweep() == (1, 0, 0)
    return task_id


async def test_u11_a_late_release_of_a_swept_task_changes_nothing(
    open_queue: Any, admin: Redis, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The owner of a lease that has ended is told so; the task is intact and delivered to the next."""
    async with open_queue() as queue:
        await queue.enqueue("x")
        late = await overrun(queue, admin, name)
        before = data(admin, name)
        with pytest.raises(TorrelqueNotWorkingError):
            await queue.release(late, strict=True)
        with caplog.at_level(logging.WARNING, "torrelque"):
            await queue.release(late)
            await queue.release(str(late))
        assert caplog.text.count("nothing was changed") == 2
        assert data(admin, name) == before
        assert (await queue.dequeue(1))[1] == "x"


async def test_u12_a_late_owner_cannot_touch_the_next_delivery(open_queue: Any, admin: Redis, name: str) -> None:
    """While B works, A can neither give the task to C, nor end it, nor prolong it."""
    async with open_queue() as queue:
        await queue.enqueue("x")
        a = await overrun(queue, admin, name)
        b, _ = await queue.dequeue(1)
        assert (a, a.dequeue_count, b.dequeue_count) == (b, 1, 2)
        before = data(admin, name)
        for call in (
            queue.requeue(a, strict=True),
            queue.requeue(a, 5, strict=True),
            queue.release(a, strict=True),
            queue.release(a, result="late", status=TorrelqueTaskStatus.REJECTED, strict=True),
            queue.extend(a),
        ):
            with pytest.raises(TorrelqueLeaseLostError):
                await call
        assert data(admin, name) == before
        with pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0)
        await queue.release(b, result="done", strict=True)
        with pytest.raises(TorrelqueNotWorkingError):
            await queue.release(a, result="late", status=TorrelqueTaskStatus.REJECTED, strict=True)
        state = await queue.get_task_state(b)
        assert (state.status, state.result) == (TorrelqueTaskStatus.COMPLETED, "done")


async def test_u13_a_task_requeued_twice_is_held_by_one(open_queue: Any, admin: Redis, name: str) -> None:
    """The second requeue is refused, and an id that stands in the queue twice is delivered once."""
    async with open_queue() as queue:
        await queue.enqueue("x")
        task_id, _ = await queue.dequeue(1)
        await queue.requeue(task_id, strict=True)
        for again in (task_id, str(task_id)):
            with pytest.raises(TorrelqueNotWorkingError):
                await queue.requeue(again, strict=True)
        snapshot(admin, name).check()
        admin.lpush(f"{name}:pending", task_id)  # what a peer without this check leaves
        await queue.dequeue(1)
        with pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0)
        snapshot(admin, name).check()


async def test_u14_a_requeue_of_an_unknown_id_creates_nothing(open_queue: Any, admin: Redis, name: str) -> None:
    """No ghost enters the queue: not in a list, not as a state."""
    async with open_queue() as queue:
        for delay in (None, 5):
            with pytest.raises(TorrelqueLookupError):
                await queue.requeue("unknown", delay, strict=True)
            await queue.requeue("unknown", delay)
        assert not admin.keys(f"{name}:*")
        with pytest.raises(TorrelqueLookupError):
            await queue.get_task_state("unknown")


async def test_u15_a_late_result_does_not_end_a_swept_task(open_queue: Any, admin: Redis, name: str) -> None:
    """A swept task stays PENDING whatever its late owner says, and its next owner ends it."""
    async with open_queue() as queue:
        await queue.enqueue("x")
        late = await overrun(queue, admin, name)
        with pytest.raises(TorrelqueNotWorkingError):
            await queue.release(late, result="late", strict=True)
        assert (await queue.get_task_state(late)).status is TorrelqueTaskStatus.PENDING
        task_id, task = await queue.dequeue(1)
        assert task == "x"
        await queue.release(task_id, result="done", strict=True)
        assert (await queue.get_task_state(late)).result == "done"


async def test_u15_a_final_id_in_the_queue_is_dropped(
    open_queue: Any, admin: Redis, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An ended task whose id is still in the queue is not delivered again, and its result stays as long as it was."""
    async with open_queue() as queue:
        await queue.enqueue("x")
        task_id, _ = await queue.dequeue(1)
        await queue.release(task_id, result="done", result_ttl=60)
        admin.lpush(f"{name}:pending", task_id)  # what a peer without this check leaves
        await queue.enqueue("y")
        with caplog.at_level(logging.WARNING, "torrelque"):
            assert [task for _, task in await queue.dequeue(1, max_tasks=5)] == ["y"]
        assert task_id in caplog.text
        state = await queue.get_task_state(task_id)
        assert (state.status, state.result, state.dequeue_count) == (TorrelqueTaskStatus.COMPLETED, "done", 1)
        assert 0 < admin.ttl(f"{name}:task:{task_id}") <= 60


async def test_u16_a_long_task_keeps_its_lease(open_queue: Any) -> None:
    """A handler that takes several times the lease keeps it, and nobody else gets the task meanwhile."""
    async with open_queue() as queue:
        await queue.enqueue("x", task_timeout=2)
        task_id, _ = await queue.dequeue(1)
        ends = await queue.extend(task_id)
        async with queue.lease(task_id):
            with pytest.raises(TorrelqueTimeoutError):
                await queue.dequeue(4.7)  # this would be handed the task the moment the lease ends
        assert await queue.extend(task_id) > ends + 4
        await queue.release(task_id, strict=True)


async def test_u16_a_handler_is_cancelled_when_its_lease_is_lost(open_queue: Any, admin: Redis, name: str) -> None:
    """Work on a task that somebody else has meanwhile is stopped, and cannot be settled."""
    async with open_queue() as queue:
        await queue.enqueue("x", task_timeout=1)
        task_id, _ = await queue.dequeue(1)
        cancelled = anyio.Event()

        async def handle() -> None:
            async with queue.lease(task_id):
                lapse(admin, name, task_id)
                await queue.sweep()
                try:
                    await anyio.sleep_forever()
                finally:
                    cancelled.set()

        with anyio.fail_after(10), pytest.raises(TorrelqueLookupError):
            await handle()
        assert cancelled.is_set()
        with pytest.raises(TorrelqueNotWorkingError):
            await queue.release(task_id, strict=True)


async def test_u17_every_delivery_is_counted_and_told(open_queue: Any, admin: Redis, name: str) -> None:
    """The id says which delivery it is, also after deliveries that just vanished, so a consumer can set a limit."""
    async with open_queue() as queue:
        await queue.enqueue("poison")
        for expected in (1, 2, 3):
            assert (await overrun(queue, admin, name)).dequeue_count == expected
        task_id, _ = await queue.dequeue(1)
        assert task_id.dequeue_count == 4
        await queue.release(task_id, status=TorrelqueTaskStatus.REJECTED, result="given up", strict=True)
        state = await queue.get_task_state(task_id)
        assert (state.status, state.dequeue_count) == (TorrelqueTaskStatus.REJECTED, 4)
        assert await queue.get_queue_stats() == TorrelqueQueueStats(0, 0, 0, 0)


@pytest.mark.parametrize("skew", [301, -86_400])
async def test_u18_the_clock_of_a_client_decides_nothing(
    open_queue: Any, admin: Redis, name: str, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    """With a clock far ahead or behind, leases, delays and times are those of Redis."""
    async with open_queue() as queue:
        await queue.enqueue("healthy")
        task_id, _ = await queue.dequeue(1)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + skew)
        assert await queue.sweep() == (0, 0, 0)
        delayed = await queue.enqueue("delayed", delay=60)
        assert await queue.sweep() == (0, 0, 0)
        monkeypatch.undo()
        seen = snapshot(admin, name)
        seen.check()
        assert seen.working[task_id] == pytest.approx(seen.now + 300, abs=5)
        assert seen.delayed[delayed] == pytest.approx(seen.now + 60, abs=5)


async def test_u19_sweeps_in_the_middle_of_a_delivery_do_no_harm(
    open_queue: Any, admin: Redis, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """When two sweeps take an id from the hands of a waiting dequeue, it goes on waiting and gets the task."""
    call = Calls(Keys(name)).sweep(300, SWEEP_ALL)
    async with open_queue() as queue, anyio.create_task_group() as group:
        got: list[Any] = []

        async def dequeue() -> None:
            got.append(await queue.dequeue(10))

        group.start_soon(dequeue)
        await until(lambda: blocked(admin) == 1)
        # The loop does not run until the last of these, so the waiter cannot adopt what it was handed.
        seed_one(admin, name, "task")
        assert admin.llen(f"{name}:dequeueing") == 1
        counts = [admin.eval(call.script.text, len(call.keys), *call.keys, *call.head)[:3] for _ in range(2)]
        assert counts == [[0, 0, 0], [0, 0, 1]]
        await until(lambda: bool(got))
    assert got == [("task", "x")]
    assert got[0][0].dequeue_count == 1
    snapshot(admin, name).check()


async def test_u20_a_delay_needs_no_sweep(open_queue: Any) -> None:
    """A waiting dequeue gets a delayed task when it is due, and one that does not wait finds it."""
    async with open_queue() as queue, open_queue() as other:
        async with anyio.create_task_group() as group:

            async def produce() -> None:
                await other.enqueue("waited for", delay=0.1)

            group.start_soon(produce)
            started = anyio.current_time()
            with Standstill.counted() as standstill:
                task_id, task = await queue.dequeue(10)
            assert 0.1 <= anyio.current_time() - started < 1 + standstill.seconds
        assert task == "waited for"
        assert task_id.dequeue_count == 1
        await queue.requeue(task_id, 0.05)
        await anyio.sleep(0.06)
        again, _ = await other.dequeue(0)
        assert (again, again.dequeue_count) == (task_id, 2)
