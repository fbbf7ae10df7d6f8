"""This library and the published package 0.9 on one queue at once, each in its own process."""

from __future__ import annotations

import logging
import signal
from collections import Counter
from typing import Any

import anyio
import pytest
from redis import Redis
from support import Server, snapshot
from support.peer import PeerError, PeerQueue, blocked, frozen, lapse, run_peer, seed, until
from support.standstill import Standstill

from torrelque import (
    Torrelque,
    TorrelqueLookupError,
    TorrelqueNotWorkingError,
    TorrelqueQueueStats,
    TorrelqueTaskState,
    TorrelqueTaskStatus,
    TorrelqueTimeoutError,
)

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

PAYLOADS = [{"a": [1, None, "é"]}, "text", 7, 1.5, True, [1], "☃" * 1000]


async def same_state(ours: Torrelque, theirs: PeerQueue, task_id: str) -> TorrelqueTaskState:
    """Both packages read the same state."""
    mine, other = await ours.get_task_state(task_id), await theirs.get_task_state(task_id)
    # 0.9 writes times with Python's precision, this library with microseconds; all else is equal.
    for left, right in zip(mine, other, strict=True):
        assert left == pytest.approx(right, abs=1e-5) if isinstance(right, float) else left == right
    assert await ours.get_queue_stats() == await theirs.get_queue_stats()
    return mine


async def test_their_tasks_are_ours(open_queue: Any, theirs: PeerQueue, admin: Redis, name: str) -> None:
    """What 0.9 enqueues, of any kind, is read, requeued and released here, and it sees that."""
    async with open_queue() as ours:
        for payload in PAYLOADS:
            task_id = await theirs.enqueue(payload, task_timeout=1.5)
            assert (await same_state(ours, theirs, task_id)).timeout == 1.5
            got, task = await ours.dequeue(1)
            assert (got, task, got.task_timeout, got.dequeue_count) == (task_id, payload, 1.5, 1)
            assert (await same_state(ours, theirs, task_id)).status is TorrelqueTaskStatus.WORKING
            await ours.requeue(got, task_timeout=20, strict=True)
            assert (await same_state(ours, theirs, task_id)).requeue_count == 1
            got, task = await ours.dequeue(1)
            assert (task, got.dequeue_count, got.task_timeout) == (payload, 2, 20)
            await ours.extend(got)
            await ours.release(got, result=payload, result_ttl=60, strict=True)
            state = await same_state(ours, theirs, task_id)
            assert (state.status, state.result, state.dequeue_count) == (TorrelqueTaskStatus.COMPLETED, payload, 2)
        assert await ours.get_queue_stats() == TorrelqueQueueStats(0, 0, 0, 0)


async def test_our_tasks_are_theirs(open_queue: Any, theirs: PeerQueue, admin: Redis, name: str) -> None:
    """What is enqueued here, of any kind, is read, requeued and released by 0.9, and this library sees that."""
    async with open_queue() as ours:
        for payload in PAYLOADS:
            task_id = await ours.enqueue(payload, task_timeout=1.5)
            assert (await same_state(ours, theirs, task_id)).timeout == 1.5
            assert await theirs.dequeue(1) == (task_id, payload)
            seen = snapshot(admin, name)
            assert seen.working[task_id] == pytest.approx(seen.now + 1.5, abs=1)
            assert (await same_state(ours, theirs, task_id)).dequeue_count == 1
            await theirs.requeue(task_id, task_timeout=20)
            assert (await same_state(ours, theirs, task_id)).timeout == 20
            assert await theirs.dequeue(1) == (task_id, payload)
            await theirs.release(task_id, result=payload, result_ttl=60)
            state = await same_state(ours, theirs, task_id)
            assert (state.status, state.result, state.dequeue_count) == (TorrelqueTaskStatus.COMPLETED, payload, 2)
        assert await ours.get_queue_stats() == TorrelqueQueueStats(0, 0, 0, 0)


async def test_dead_letters_are_none_of_theirs(open_queue: Any, theirs: PeerQueue, admin: Redis, name: str) -> None:
    """What was given up is not seen by 0.9, whose deliveries count, and who can read its end."""
    async with open_queue() as ours:
        ours.max_attempts, ours.dead_letter = 2, True
        bad = await theirs.enqueue("bad")
        for _ in range(2):
            assert await theirs.dequeue(1) == (bad, "bad")
            await theirs.requeue(bad)
        with pytest.raises(TorrelqueTimeoutError):
            await ours.dequeue(0)
        assert [(letter.task_id, letter.task) for letter in await ours.dead_letters()] == [(bad, "bad")]
        state = await same_state(ours, theirs, bad)
        assert (state.status, state.dequeue_count) == (TorrelqueTaskStatus.REJECTED, 2)
        assert await theirs.sweep() == await ours.sweep() == (0, 0, 0)
        good = await ours.enqueue("good")
        assert await theirs.dequeue(1) == (good, "good")
        await theirs.release(good)
        assert await ours.get_queue_stats() == await theirs.get_queue_stats() == TorrelqueQueueStats(0, 0, 0, 0)
        assert await ours.requeue_dead_letters() == 1
        assert await theirs.dequeue(1) == (bad, "bad")
        assert (await same_state(ours, theirs, bad)).dequeue_count == 3
        await theirs.release(bad)
    assert admin.keys(f"{name}:*") == []


async def test_a_chosen_id_and_many_tasks_are_theirs(open_queue: Any, theirs: PeerQueue) -> None:
    """Ids of a producer's own and tasks that came in bulk are taken by a 0.9 consumer, in order, several at a time."""
    async with open_queue() as ours:
        await ours.enqueue("first", task_id="order-17.a_b")
        ids = await ours.enqueue_many(["second", "third"])
        expected = [("order-17.a_b", "first"), (ids[0], "second"), (ids[1], "third")]
        assert await theirs.dequeue(1, max_tasks=10) == expected
        for task_id, _ in expected:
            await theirs.release(task_id)
        assert await ours.get_queue_stats() == TorrelqueQueueStats(0, 0, 0, 0)


async def test_several_of_theirs_at_once(open_queue: Any, theirs: PeerQueue) -> None:
    """max_tasks takes what 0.9 enqueued, in order."""
    ids = [await theirs.enqueue(i) for i in range(5)]
    async with open_queue() as ours:
        assert await ours.dequeue(1, max_tasks=3) == [(ids[i], i) for i in range(3)]
        assert await ours.dequeue(1, max_tasks=3) == [(ids[i], i) for i in range(3, 5)]
        for task_id in ids:
            await ours.release(task_id, strict=True)


async def test_a_staged_call_of_each(open_queue: Any, theirs: PeerQueue) -> None:
    """Tasks that 0.9 enqueues, requeues and releases on a pipeline of its own are whole here."""
    async with open_queue() as ours:
        (first, second), _ = await theirs.pipeline(("enqueue", ["x"], {}), ("enqueue", ["y"], {"delay": 0.05}))
        assert await ours.dequeue(1) == (first, "x")
        assert await ours.dequeue(5) == (second, "y")
        await theirs.pipeline(("release", [first], {"result": 1}), ("requeue", [second], {}))
        assert (await ours.get_task_state(first)).result == 1
        assert await ours.dequeue(1) == (second, "y")
        await ours.release(second, strict=True)


async def test_delays_both_ways(open_queue: Any, theirs: PeerQueue, admin: Redis, name: str) -> None:
    """Their delayed tasks come to our waiting dequeue in time, ours to theirs by a sweep of either."""
    async with open_queue() as ours:
        task_id = await theirs.enqueue("theirs", delay=0.1)
        assert (await same_state(ours, theirs, task_id)).status is TorrelqueTaskStatus.DELAYED
        started = anyio.current_time()
        with Standstill.counted() as standstill:
            got, task = await ours.dequeue(10)
        assert (got, task) == (task_id, "theirs")
        assert anyio.current_time() - started < 1 + standstill.seconds
        await ours.requeue(got, 0.02)
        assert (await same_state(ours, theirs, task_id)).status is TorrelqueTaskStatus.DELAYED
        await until(lambda: snapshot(admin, name).delayed[task_id] < snapshot(admin, name).now - 0.01)
        assert await theirs.sweep() == (0, 1, 0)
        assert await theirs.dequeue(1) == (task_id, "theirs")
        await theirs.requeue(task_id, 0.02)
        await until(lambda: snapshot(admin, name).delayed[task_id] < snapshot(admin, name).now - 0.01)
        assert await ours.sweep() == (0, 1, 0)
        got, _ = await ours.dequeue(1)
        assert got.dequeue_count == 3
        assert (await same_state(ours, theirs, task_id)).requeue_count == 3
        await ours.release(got, strict=True)


async def test_their_delay_comes_to_a_dequeue_that_waits_already(open_queue: Any, theirs: PeerQueue) -> None:
    """0.9 sends no word about a delay; a scheduled sweep of ours still finds it within its interval."""
    async with open_queue() as ours, anyio.create_task_group() as group:
        await group.start(ours.run_sweep, 0.2)
        got: list[Any] = []

        async def dequeue() -> None:
            got.append(await ours.dequeue(10))

        group.start_soon(dequeue)
        await anyio.wait_all_tasks_blocked()
        task_id = await theirs.enqueue("x", delay=0.1)
        await until(lambda: bool(got), 2)
        assert got == [(task_id, "x")]
        group.cancel_scope.cancel()


async def test_leases_both_ways(open_queue: Any, theirs: PeerQueue, admin: Redis, name: str) -> None:
    """Each package's sweep takes back the other's stale tasks, fractional leases too, and its late owner is refused."""
    async with open_queue() as ours:
        task_id = await ours.enqueue("x", task_timeout=0.05)
        await theirs.dequeue(1)
        await until(lambda: snapshot(admin, name).working[task_id] < snapshot(admin, name).now)
        assert await ours.sweep() == (1, 0, 0)
        late, _ = await ours.dequeue(1)
        await until(lambda: snapshot(admin, name).working[task_id] < snapshot(admin, name).now)
        assert await theirs.sweep() == (1, 0, 0)
        with pytest.raises(TorrelqueNotWorkingError):
            await ours.release(late, strict=True)
        assert await theirs.dequeue(1) == (task_id, "x")
        with pytest.raises(TorrelqueLookupError):
            await ours.extend(late)
        await theirs.release(task_id)
        assert not admin.keys(f"{name}:*")


async def test_rejections_both_ways(open_queue: Any, theirs: PeerQueue) -> None:
    """Each reads the other's REJECTED with its result, and misses it without one."""
    async with open_queue() as ours:
        task_id = await theirs.enqueue("x")
        got, _ = await ours.dequeue(1)
        await ours.release(got, status=TorrelqueTaskStatus.REJECTED, result={"why": 1})
        assert (await same_state(ours, theirs, task_id)).status is TorrelqueTaskStatus.REJECTED
        task_id = await ours.enqueue("y")
        await theirs.dequeue(1)
        await theirs.release(task_id, status=4, result={"why": 2})
        state = await same_state(ours, theirs, task_id)
        assert (state.status, state.result) == (TorrelqueTaskStatus.REJECTED, {"why": 2})
        task_id = await ours.enqueue("z")
        await theirs.dequeue(1)
        await theirs.release(task_id, status=4)
        with pytest.raises(TorrelqueLookupError):
            await ours.get_task_state(task_id)
        task_id = await theirs.enqueue("z")
        await ours.release((await ours.dequeue(1))[0], status=TorrelqueTaskStatus.REJECTED)
        with pytest.raises(PeerError, match="TorrelqueLookupError"):
            await theirs.get_task_state(task_id)


async def test_our_watch_follows_their_work(open_queue: Any, theirs: PeerQueue) -> None:
    """A watch here shows what a 0.9 consumer does."""
    async with open_queue() as ours:
        for result, last in ((None, []), ({"r": 1}, ["COMPLETED"])):
            task_id = await theirs.enqueue("x")
            names = []
            async for state in ours.watch(task_id, timeout=10):
                names.append(state.status.name)
                if state.status is TorrelqueTaskStatus.WORKING and state.dequeue_count == 1:
                    await theirs.requeue(task_id, 0.01)
                elif state.status is TorrelqueTaskStatus.DELAYED:
                    while await theirs.sweep() != (0, 1, 0):
                        pass
                elif state.status is TorrelqueTaskStatus.PENDING:
                    await theirs.dequeue(1)
                elif state.status is TorrelqueTaskStatus.WORKING:
                    await theirs.release(task_id, result=result)
            assert names == ["PENDING", "WORKING", "DELAYED", "PENDING", "WORKING", *last]
            assert state.result == result


async def test_their_watch_follows_our_work(open_queue: Any, theirs: PeerQueue, admin: Redis, name: str) -> None:
    """A watch of 0.9 sees each change that is made here, and ends."""
    async with open_queue() as ours:
        for result, last in ((None, []), ({"r": 1}, ["COMPLETED"])):
            task_id = await ours.enqueue("x")
            watch = theirs.watch(task_id, timeout=10)

            async def seen(*names: str) -> None:
                await until(lambda: [state.status.name for state in watch.events] == list(names))  # noqa: B023  awaited within the turn of the loop

            await seen("PENDING")
            # Its watch reads first and subscribes then: what is changed in between it does not see.
            channel = f"__keyspace@0__:{name}:task:{task_id}"
            await until(lambda: admin.pubsub_numsub(channel)[0][1] == 1)  # noqa: B023  awaited within the turn of the loop
            got, _ = await ours.dequeue(1)
            await seen("PENDING", "WORKING")
            await ours.requeue(got, 0.02)
            await seen("PENDING", "WORKING", "DELAYED")
            got, _ = await ours.dequeue(5)
            await until(lambda: watch.events[-1].dequeue_count == 2)  # noqa: B023  awaited within the turn of the loop
            await ours.release(got, result=result)
            await watch.result()
            assert [state.status.name for state in watch.events][-1 - len(last) :] == ["WORKING", *last]
            assert watch.events[-1].result == result


async def test_both_wait_at_once(open_queue: Any, theirs: PeerQueue, admin: Redis, name: str) -> None:
    """With waiting dequeues of both packages on one queue, every task reaches exactly one of them."""
    before = blocked(admin)
    async with open_queue() as ours, anyio.create_task_group() as group:
        mine: list[Any] = []

        async def dequeue() -> None:
            mine.append(await ours.dequeue(20))

        others = [theirs.start("dequeue", 20) for _ in range(10)]
        for _ in range(10):
            group.start_soon(dequeue)
        await until(lambda: blocked(admin) == before + 11)
        ids = [await (theirs if i % 2 else ours).enqueue(f"task-{i:02}") for i in range(20)]
        await until(lambda: len(mine) == 10)
        delivered = [tuple(await other.result()) for other in others] + mine
        assert sorted(delivered, key=lambda pair: pair[1]) == [(ids[i], f"task-{i:02}") for i in range(20)]
        snapshot(admin, name).check()
        for task_id in ids:
            await ours.release(task_id, strict=True)


async def test_a_mixed_load(open_queue: Any, theirs: PeerQueue, admin: Redis, name: str) -> None:
    """Producers and consumers of both, and sweeps of both: each of 500 tasks is delivered once and released."""
    async with open_queue() as ours:
        mine: list[tuple[str, Any]] = []
        produced = anyio.Event()
        others = theirs.start("consume", consumers=2)

        async def consumer() -> None:
            while True:
                last = produced.is_set()
                try:
                    task_id, task = await ours.dequeue(1 if last else 0.25)
                except TorrelqueTimeoutError:
                    if last:
                        return
                    continue
                mine.append((task_id, task))
                await ours.release(task_id, strict=True)

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(consumer)
            async with anyio.create_task_group() as producers:

                async def produce(queue: Any, numbers: range) -> None:
                    for i in numbers:
                        await queue.enqueue(i, delay=0.01 if i % 50 == 0 else None)
                        if i % 100 == 0:
                            await queue.sweep()

                producers.start_soon(produce, ours, range(1, 251))
                producers.start_soon(produce, theirs, range(251, 501))
            await until(lambda: not admin.exists(f"{name}:delayed"))
            produced.set()
            await theirs.go(others)
        delivered = mine + [tuple(pair) for pair in await others.result()]
        counts = Counter(task for _, task in delivered)
        assert counts == Counter(range(1, 501))
        assert len({task_id for task_id, _ in delivered}) == 500
        for queue in (ours, theirs):
            await queue.sweep()
        assert not admin.keys(f"{name}:*")


async def test_a_killed_peer_loses_nothing(
    open_queue: Any, theirs: PeerQueue, server: Server, admin: Redis, name: str
) -> None:
    """What a 0.9 process held when it was killed, working or between two steps, comes back by our sweeps."""
    async with open_queue() as ours:
        with run_peer(server.url) as victim:
            before = blocked(admin)
            working = await ours.enqueue("working")
            await victim.on(name).dequeue(1)
            victim.on(name).start("dequeue", 30)
            await until(lambda: blocked(admin) == before + 1)
            async with frozen(victim):
                parked = await theirs.enqueue("parked")
                assert snapshot(admin, name).dequeueing == [parked]
                assert set(snapshot(admin, name).working) == {working}
                victim.signal(signal.SIGKILL)
        lapse(admin, name, working)
        assert await ours.sweep() == (1, 0, 0)
        assert await ours.sweep() == (0, 0, 1)
        snapshot(admin, name).check()
        tasks = await ours.dequeue(1, max_tasks=5)
        assert [(task_id, task, task_id.dequeue_count) for task_id, task in tasks] == [
            (working, "working", 2), (parked, "parked", 1),
        ]  # fmt: skip


async def test_our_parked_id_comes_back_by_their_sweep(
    open_queue: Any, theirs: PeerQueue, admin: Redis, name: str
) -> None:
    """An id that a dead process of this library left parked is given back by 0.9's sweeps."""
    async with open_queue() as ours:
        task_id = await ours.enqueue("x")
        assert admin.lmove(f"{name}:pending", f"{name}:dequeueing", "RIGHT", "LEFT") == task_id.encode()
        assert await theirs.sweep() == (0, 0, 0)
        assert await theirs.sweep() == (0, 0, 1)
        assert await theirs.dequeue(1) == (task_id, "x")
        # Sweeps of the two count together: each notes what the other looks for.
        await theirs.requeue(task_id)
        admin.lmove(f"{name}:pending", f"{name}:dequeueing", "RIGHT", "LEFT")
        assert await ours.sweep() == (0, 0, 0)
        assert await theirs.sweep() == (0, 0, 1)
        admin.lmove(f"{name}:pending", f"{name}:dequeueing", "RIGHT", "LEFT")
        assert await theirs.sweep() == (0, 0, 0)
        assert await ours.sweep() == (0, 0, 1)
        snapshot(admin, name).check()
        assert await theirs.sweep() == (0, 0, 0)


async def test_what_is_handed_back_is_theirs(open_queue: Any, theirs: PeerQueue, admin: Redis, name: str) -> None:
    """A task that came for a cancelled dequeue goes back to the head, and a 0.9 consumer gets it as if untouched."""
    async with open_queue() as ours:
        before = blocked(admin)
        for i in range(1, 6):
            async with anyio.create_task_group() as group:
                group.start_soon(ours.dequeue, 20)
                await until(lambda: blocked(admin) == before + 1)
                # The loop stands still until both are enqueued, so the first one is in the waiter's hands.
                first = theirs.start("enqueue", i).outcome.result(10)
                second = theirs.start("enqueue", -i).outcome.result(10)
                group.cancel_scope.cancel()
            await until(lambda: admin.llen(f"{name}:pending") == 2)
            assert (await same_state(ours, theirs, first)).dequeue_count == 0
            assert [await theirs.dequeue(1) for _ in range(2)] == [(first, i), (second, -i)]
            for task_id in (first, second):
                await theirs.release(task_id)
        assert not admin.keys(f"{name}:*")


async def test_their_sweeps_in_the_middle_of_our_delivery(
    open_queue: Any, theirs: PeerQueue, admin: Redis, name: str
) -> None:
    """When 0.9's sweeps overtake our waiting dequeue, it still gets the task, once."""
    before = blocked(admin)
    async with open_queue() as ours, anyio.create_task_group() as group:
        got: list[Any] = []

        async def dequeue() -> None:
            got.append(await ours.dequeue(10))

        group.start_soon(dequeue)
        await until(lambda: blocked(admin) == before + 1)
        # The loop stands still meanwhile.
        task_id = theirs.start("enqueue", "x").outcome.result(10)
        assert [theirs.start("sweep").outcome.result(10) for _ in range(2)] == [[0, 0, 0], [0, 0, 1]]
        await until(lambda: bool(got))
        assert got == [(task_id, "x")]
        assert got[0][0].dequeue_count == 1
    snapshot(admin, name).check()


async def test_our_sweeps_over_their_data(open_queue: Any, theirs: PeerQueue, admin: Redis, name: str) -> None:
    """Stale, due and parked tasks of 0.9 are counted and given back as its own sweep would."""
    ids = [await theirs.enqueue(i) for i in (1, 2, 3)]
    await theirs.enqueue("due", delay=0.01)
    await theirs.dequeue(1)
    lapse(admin, name, ids[0])
    admin.lmove(f"{name}:pending", f"{name}:dequeueing", "RIGHT", "LEFT")
    await until(lambda: min(snapshot(admin, name).delayed.values()) < snapshot(admin, name).now)
    async with open_queue() as ours:
        assert await ours.sweep() == (1, 1, 0)
        assert await ours.sweep() == (0, 0, 1)
        snapshot(admin, name).check()
        assert await theirs.get_queue_stats() == TorrelqueQueueStats(4, 4, 0, 0)
        got = await theirs.dequeue(1, max_tasks=9)
        assert sorted(str(task) for _, task in got) == ["1", "2", "3", "due"]


async def test_their_sweeps_over_our_data(open_queue: Any, theirs: PeerQueue, admin: Redis, name: str) -> None:
    """Stale, due and parked tasks of ours are counted and given back by 0.9's sweep."""
    async with open_queue() as ours:
        ids = await ours.enqueue_many([1, 2, 3])
        await ours.enqueue("due", delay=0.01)
        await ours.dequeue(1)
        lapse(admin, name, ids[0])
        admin.lmove(f"{name}:pending", f"{name}:dequeueing", "RIGHT", "LEFT")
        await until(lambda: min(snapshot(admin, name).delayed.values()) < snapshot(admin, name).now)
        assert await theirs.sweep() == (1, 1, 0)
        assert await theirs.sweep() == (0, 0, 1)
        snapshot(admin, name).check()
        assert await ours.get_queue_stats() == TorrelqueQueueStats(4, 4, 0, 0)
        got = await ours.dequeue(1, max_tasks=9)
        assert sorted(str(task) for _, task in got) == ["1", "2", "3", "due"]


async def test_their_ghost_is_dropped(
    open_queue: Any, theirs: PeerQueue, admin: Redis, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An unknown id that 0.9 requeued, at once or delayed, hurts nobody here and is gone after two sweeps."""
    await theirs.requeue("ghost")
    await theirs.requeue("later", 0.01)
    await theirs.enqueue("x")
    async with open_queue() as ours:
        with caplog.at_level(logging.WARNING, "torrelque"):
            assert [task for _, task in await ours.dequeue(1, max_tasks=5)] == ["x"]
            await until(lambda: min(snapshot(admin, name).delayed.values(), default=0) < snapshot(admin, name).now)
            await ours.sweep()
            assert (await ours.sweep())[2] == 0
        for ghost in ("ghost", "later"):
            assert f"b'{ghost}'" in caplog.text
            assert f"{name}:task:{ghost}".encode() not in admin.keys(f"{name}:task:*")
        snapshot(admin, name).check()


async def test_their_twice_requeued_task_is_held_by_one(open_queue: Any, theirs: PeerQueue) -> None:
    """An id that 0.9 put into the queue twice is delivered once at a time here."""
    task_id = await theirs.enqueue("x")
    await theirs.dequeue(1)
    await theirs.requeue(task_id)
    await theirs.requeue(task_id)
    async with open_queue() as ours:
        got, _ = await ours.dequeue(1)
        with pytest.raises(TorrelqueTimeoutError):
            await ours.dequeue(0)
        await ours.release(got, strict=True)
        assert await ours.get_queue_stats() == TorrelqueQueueStats(0, 0, 0, 0)


async def test_their_late_release_hurts_nobody_here(
    open_queue: Any, theirs: PeerQueue, admin: Redis, name: str
) -> None:
    """When 0.9 releases a swept task late, with a result or without, its id in the queue is not delivered."""
    async with open_queue() as ours:
        for kwargs in ({}, {"result": "late"}):
            task_id = await ours.enqueue("x")
            await theirs.dequeue(1)
            lapse(admin, name, task_id)
            assert await ours.sweep() == (1, 0, 0)
            await theirs.release(task_id, **kwargs)
            with pytest.raises(TorrelqueTimeoutError):
                await ours.dequeue(0)
            await ours.sweep()
            await ours.sweep()
            assert await ours.get_queue_stats() == TorrelqueQueueStats(0, 0, 0, 0)
            assert not admin.exists(f"{name}:pending", f"{name}:dequeueing", f"{name}:working")
        assert (await ours.get_task_state(task_id)).result == "late"


async def test_their_bad_lease_is_delivered_here(open_queue: Any, theirs: PeerQueue) -> None:
    """A task that 0.9 took with a lease that is no time, and could only lose, is delivered with the default lease."""
    async with open_queue() as ours:
        for bad in (float("nan"), "5 minutes", float("inf"), -5):
            task_id = await theirs.enqueue("x", task_timeout=bad)
            got, _ = await ours.dequeue(1)
            assert (got, got.task_timeout) == (task_id, 300)
            await ours.requeue(got)
            assert await theirs.dequeue(1) == (task_id, "x")
            await theirs.release(task_id)


async def test_their_falsy_payloads_are_delivered_here(open_queue: Any, theirs: PeerQueue) -> None:
    """What 0.9 can enqueue but not deliver is delivered here."""
    async with open_queue() as ours:
        for value in (0, "", [], {}, False, None):
            await theirs.enqueue(value)
            assert (await ours.dequeue(1))[1] == value


async def test_their_staged_enqueue_half_way(open_queue: Any, theirs: PeerQueue, admin: Redis) -> None:
    """A task whose 0.9 producer is between its commands is not destroyed by our consumer, and delivered later."""
    (task_id,), queued = await theirs.pipeline(("enqueue", ["x"], {}), transaction=False, execute=False)
    async with open_queue() as ours:
        admin.execute_command(*queued[0])
        with pytest.raises(TorrelqueTimeoutError):
            await ours.dequeue(0)
        for command in queued[1:]:
            admin.execute_command(*command)
        assert await ours.sweep() == (0, 0, 0)
        assert await ours.sweep() == (0, 0, 1)
        assert await ours.dequeue(1) == (task_id, "x")


@pytest.mark.parametrize("place", ["delayed", "working", "dequeueing"])
async def test_a_backlog_that_ends_their_sweeps_is_drained_here(
    open_queue: Any, theirs: PeerQueue, admin: Redis, name: str, place: str
) -> None:
    """After more than 8,000 due, stale or parked tasks 0.9's sweep fails for ever; after one of ours it works again."""
    seed(admin, name, place, 8500)
    for _ in range(2):
        with pytest.raises(PeerError, match="too many results to unpack"):
            await theirs.sweep()
    async with open_queue() as ours:
        while admin.exists(f"{name}:{place}"):
            await ours.sweep()
        assert await theirs.sweep() == (0, 0, 0)
        assert await theirs.get_queue_stats() == TorrelqueQueueStats(8500, 8500, 0, 0)
        assert (await theirs.dequeue(1))[1] == f"{place}-0"


async def test_a_scheduled_sweep_of_each(open_queue: Any, server: Server, name: str) -> None:
    """With sweeps of both scheduled, work goes on as with one."""
    # A process for this test alone: 0.9's unscheduling comes to nothing while a sweep of it is under way.
    with run_peer(server.url) as peer:
        theirs = peer.on(name)
        async with open_queue() as ours:
            ours.schedule_sweep(0.03)
            await theirs.start("schedule_sweep", 0.03).result()
            for i in range(20):
                await (theirs if i % 2 else ours).enqueue(i, delay=0.01 if i % 3 else None)
            got = []
            while len(got) < 20:
                got += await ours.dequeue(5, max_tasks=20)
            assert sorted(task for _, task in got) == list(range(20))
            for task_id, _ in got:
                await ours.release(task_id, strict=True)
            assert await ours.get_queue_stats() == TorrelqueQueueStats(0, 0, 0, 0)
