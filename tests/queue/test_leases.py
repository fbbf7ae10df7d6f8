"""Leases: who may settle a task, how long, what a body under a lease sees, and ids that make calls repeatable."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from typing import Any

import anyio
import pytest
from redis import Redis
from support import Pair, Server, keyspace, snapshot
from support.freezer import Freezer, freezing
from support.standstill import Standstill

from torrelque import (
    Torrelque,
    TorrelqueClosedError,
    TorrelqueLeaseLostError,
    TorrelqueLookupError,
    TorrelqueNotWorkingError,
    TorrelqueQueueStats,
    TorrelqueTaskId,
    TorrelqueTaskStatus,
    TorrelqueTimeoutError,
    TorrelqueTypeError,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
)
from torrelque.drivers.base import LANES

pytestmark = pytest.mark.anyio

#: A lease that ends within a test. A process beside others may stand still for half of a second: a lease outlives that.
SHORT = 2.0


async def lose(queue: Torrelque, admin: Redis, name: str, task_id: str) -> None:
    """Let the lease end and a sweep find that."""
    admin.zadd(f"{name}:working", {task_id: 1})
    assert await queue.sweep() == (1, 0, 0)


async def _release_many_strictly(queue: Torrelque, task_id: str) -> None:
    (refusal,) = await queue.release_many([task_id], results=[1])
    if refusal is not None:
        raise refusal


Settle = Callable[[Torrelque, str], Awaitable[Any]]
SETTLES: dict[str, Settle] = {
    "release": lambda queue, task_id: queue.release(task_id, strict=True),
    "release with a result": lambda queue, task_id: queue.release(task_id, result=1, strict=True),
    "release of many": _release_many_strictly,
    "requeue": lambda queue, task_id: queue.requeue(task_id, strict=True),
    "requeue with a delay": lambda queue, task_id: queue.requeue(task_id, 60, task_timeout=7, strict=True),
    "extend": lambda queue, task_id: queue.extend(task_id, 7),
}


async def _held(queue: Torrelque, admin: Redis, name: str) -> str:
    await queue.enqueue("t")
    return (await queue.dequeue(0))[0]


async def _plain(queue: Torrelque, admin: Redis, name: str) -> str:
    return str(await _held(queue, admin, name))


async def _past_its_end(queue: Torrelque, admin: Redis, name: str) -> str:
    task_id = await _held(queue, admin, name)
    admin.zadd(f"{name}:working", {task_id: 1})
    return task_id


async def _swept(queue: Torrelque, admin: Redis, name: str) -> str:
    task_id = await _held(queue, admin, name)
    await lose(queue, admin, name, task_id)
    return task_id


async def _delivered_again(queue: Torrelque, admin: Redis, name: str) -> str:
    task_id = await _swept(queue, admin, name)
    await queue.dequeue(0)
    return task_id


async def _plain_delivered_again(queue: Torrelque, admin: Redis, name: str) -> str:
    return str(await _delivered_again(queue, admin, name))


async def _requeued(queue: Torrelque, admin: Redis, name: str) -> str:
    task_id = await _held(queue, admin, name)
    await queue.requeue(task_id)
    return task_id


async def _delayed(queue: Torrelque, admin: Redis, name: str) -> str:
    task_id = await _held(queue, admin, name)
    await queue.requeue(task_id, 60)
    return task_id


async def _released(queue: Torrelque, admin: Redis, name: str) -> str:
    task_id = await _held(queue, admin, name)
    await queue.release(task_id)
    return task_id


async def _kept(queue: Torrelque, admin: Redis, name: str) -> str:
    task_id = await _held(queue, admin, name)
    await queue.release(task_id, result="r")
    return task_id


async def _never_dequeued(queue: Torrelque, admin: Redis, name: str) -> str:
    return await queue.enqueue("t")


async def _of_another_queue(queue: Torrelque, admin: Redis, name: str) -> str:
    return TorrelqueTaskId("elsewhere", 1, 300)


#: Who asks, and what it is told: the verdicts of ``docs/reliability.md``.
VERDICTS = {
    _held: None,
    _plain: None,
    _past_its_end: None,
    _plain_delivered_again: None,
    _swept: TorrelqueNotWorkingError,
    _requeued: TorrelqueNotWorkingError,
    _delayed: TorrelqueNotWorkingError,
    _kept: TorrelqueNotWorkingError,
    _never_dequeued: TorrelqueNotWorkingError,
    _delivered_again: TorrelqueLeaseLostError,
    _released: TorrelqueLookupError,
    _of_another_queue: TorrelqueLookupError,
}


@pytest.mark.parametrize("situation", VERDICTS, ids=lambda situation: situation.__name__.replace("_", " ").strip())
async def test_verdicts(open_queue: Any, admin: Redis, name: str, situation: Any) -> None:
    """Who holds the lease settles; everybody else is told why not, and has changed nothing."""
    expected = VERDICTS[situation]
    async with open_queue() as queue:
        for settle in SETTLES.values():
            admin.flushdb()
            task_id = await situation(queue, admin, name)
            before = keyspace(admin)
            if expected is None:
                await settle(queue, task_id)
                assert keyspace(admin) != before
            else:
                with pytest.raises(TorrelqueLookupError) as caught:
                    await settle(queue, task_id)
                assert type(caught.value) is expected
                assert str(task_id) in str(caught.value)
                assert keyspace(admin) == before
            snapshot(admin, name).check()


async def test_not_strict_is_a_warning(open_queue: Any, admin: Redis, name: str, caplog: Any) -> None:
    """Without strict=True what cannot be applied is logged, once, as a warning, and changes nothing."""
    async with open_queue() as queue:
        task_id = await _delivered_again(queue, admin, name)
        before = keyspace(admin)
        caplog.clear()
        await queue.release(task_id, result="late")
        await queue.requeue(task_id, 5)
        await queue.release("unknown")
        await queue.release_many([task_id])
        warnings = [record for record in caplog.records if record.name == "torrelque"]
        assert [record.levelno for record in warnings] == [logging.WARNING] * 4
        texts = [record.getMessage() for record in warnings]
        assert "release" in texts[0]
        assert "requeue" in texts[1]
        assert "unknown" in texts[2]
        assert all(str(task_id) in text for text in (*texts[:2], texts[3]))
        assert keyspace(admin) == before


async def test_errors_carry_the_id(open_queue: Any, admin: Redis, name: str) -> None:
    """The error of a lost lease knows its task."""
    async with open_queue() as queue:
        for situation in (_swept, _delivered_again):
            task_id = await situation(queue, admin, name)
            with pytest.raises(TorrelqueLookupError) as caught:
                await queue.extend(task_id)
            assert caught.value.task_id == task_id


# Extending


async def test_extend(open_queue: Any, admin: Redis, name: str) -> None:
    """A lease is extended to a full length from now by Redis' clock: the task's own, or one that is given."""
    async with open_queue() as queue:
        await queue.enqueue("t", task_timeout=50)
        task_id, _ = await queue.dequeue(0)
        for given, length in ((None, 50), (7, 7), (0.5, 0.5), (1000, 1000), (None, 50)):
            ends = await queue.extend(task_id, given)
            stored = snapshot(admin, name)
            assert ends == pytest.approx(stored.working[task_id], abs=1e-5)
            assert ends == pytest.approx(stored.now + length, abs=0.4)
        assert (await queue.get_task_state(task_id)).timeout == 50, "its own length stays as it was"
        assert (await queue.get_task_state(task_id)).dequeue_count == 1


async def test_extend_past_the_end(open_queue: Any, admin: Redis, name: str) -> None:
    """Past its end, while no sweep took it, a lease can be extended, and then the sweep does not take it."""
    async with open_queue() as queue:
        task_id = await _past_its_end(queue, admin, name)
        await queue.extend(task_id)
        assert await queue.sweep() == (0, 0, 0)
        with pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0)
        await queue.release(task_id, strict=True)


async def test_extended_lease_is_shortened_for_sleepers(open_queue: Any) -> None:
    """A waiting dequeue hears of a lease that was made shorter, and gets the task when it ends."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        await queue.enqueue("t")
        first, _ = await queue.dequeue(0)
        got: list[TorrelqueTaskId] = []

        async def consume() -> None:
            got.append((await queue.dequeue(20))[0])

        group.start_soon(consume)
        await anyio.wait_all_tasks_blocked()
        await queue.extend(first, 0.05)
        with anyio.fail_after(5):
            while not got:
                await anyio.sleep(0.005)
        assert got[0].dequeue_count == 2


# A body under a lease


async def test_lease_outlives_its_length(open_queue: Any, admin: Redis, name: str) -> None:
    """A short lease is kept through a longer body, against a consumer who waits for the task to come free."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        await queue.enqueue("t", task_timeout=SHORT)
        task_id, _ = await queue.dequeue(0)
        stolen: list[Any] = []

        async def thief() -> None:
            stolen.append(await queue.dequeue())

        group.start_soon(thief)
        async with queue.lease(task_id):
            await anyio.sleep(2 * SHORT + 0.5)
        await queue.release(task_id, strict=True)
        group.cancel_scope.cancel()
    assert stolen == []
    assert admin.keys(f"{name}:*") == []


async def test_lease_with_a_length_of_its_own(open_queue: Any, admin: Redis, name: str) -> None:
    """A longer length than the task's own holds from the beginning."""
    async with open_queue() as queue:
        await queue.enqueue("t", task_timeout=5)
        task_id, _ = await queue.dequeue(0)
        async with queue.lease(task_id, 500):
            stored = snapshot(admin, name)
            assert stored.working[task_id] == pytest.approx(stored.now + 500, abs=2)


async def test_lease_with_a_shorter_length(open_queue: Any, admin: Redis, name: str) -> None:
    """A shorter length than the own one is kept from the first extension on: nobody gets the task beside the body."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        await queue.enqueue("t", task_timeout=4.4)
        task_id, _ = await queue.dequeue(0)
        first_end = snapshot(admin, name).working[task_id]
        stolen: list[Any] = []

        async def thief() -> None:
            stolen.append(await queue.dequeue())

        group.start_soon(thief)
        async with queue.lease(task_id, SHORT):
            with anyio.fail_after(10):
                while (seen := snapshot(admin, name)).working[task_id] >= first_end:
                    await anyio.sleep(0.02)
            shorter_end = seen.working[task_id]
            while (seen := snapshot(admin, name)).now < shorter_end + 0.2:
                assert seen.working[task_id] > seen.now
                await anyio.sleep(0.02)
        await queue.release(task_id, strict=True)
        group.cancel_scope.cancel()
    assert stolen == []


async def test_lease_of_a_task_that_has_waited(open_queue: Any, admin: Redis, name: str) -> None:
    """A task that stood in a batch for most of its lease is extended before its body begins."""
    async with open_queue() as queue:
        await queue.enqueue("t", task_timeout=2)
        ((task_id, _),) = await queue.dequeue(0, max_tasks=2)
        first_end = snapshot(admin, name).working[task_id]
        await anyio.sleep(1.05)
        async with queue.lease(task_id):
            assert snapshot(admin, name).working[task_id] > first_end + 1
            await anyio.sleep(2.2)
        await queue.release(task_id, strict=True)


async def test_lease_that_was_lost_before(open_queue: Any, admin: Redis, name: str) -> None:
    """A body does not begin under a lease that is lost, when so much time has passed that it may be."""
    async with open_queue() as queue:
        lost = await _delivered_again(queue, admin, name)
        revived = pickle.loads(pickle.dumps(lost))
        with pytest.raises(TorrelqueLeaseLostError):
            async with queue.lease(revived):
                pytest.fail("the body has begun")


async def test_lease_while_redis_refuses(open_queue: Any, admin: Redis) -> None:
    """Nor where half of it has passed and Redis refuses to extend it: that is told as what it is."""
    async with open_queue() as queue:
        await queue.enqueue("t", task_timeout=60)
        revived = pickle.loads(pickle.dumps((await queue.dequeue(0))[0]))
        admin.config_set("min-replicas-to-write", 1)
        try:
            with pytest.raises(TorrelqueUnavailableError, match="NOREPLICAS"):
                async with queue.lease(revived):
                    pytest.fail("the body has begun")
        finally:
            admin.config_set("min-replicas-to-write", 0)


@pytest.mark.parametrize("again", [False, True], ids=["swept", "delivered again"])
async def test_body_is_cancelled_when_the_lease_is_lost(open_queue: Any, admin: Redis, name: str, again: bool) -> None:
    """The body ends at its next checkpoint, its clean-up runs, and the error says which way the lease went."""
    async with open_queue() as queue:
        await queue.enqueue("t", task_timeout=2)
        task_id, _ = await queue.dequeue(0)
        cleaned = False
        with anyio.fail_after(5):
            with pytest.raises(TorrelqueLookupError) as caught:
                async with queue.lease(task_id):
                    await lose(queue, admin, name, task_id)
                    if again:
                        await queue.dequeue(0)
                    try:
                        await anyio.sleep_forever()
                    finally:
                        cleaned = True
        assert type(caught.value) is (TorrelqueLeaseLostError if again else TorrelqueNotWorkingError)
        assert cleaned


async def test_body_that_has_ended_is_not_blamed(open_queue: Any, admin: Redis, name: str) -> None:
    """A lease that is lost when the body has done its work is the release's business, not the body's."""
    async with open_queue() as queue:
        await queue.enqueue("t", task_timeout=300)
        task_id, _ = await queue.dequeue(0)
        async with queue.lease(task_id):
            await lose(queue, admin, name, task_id)
        with pytest.raises(TorrelqueNotWorkingError):
            await queue.release(task_id, strict=True)


async def _release(queue: Torrelque, task_id: str) -> None:
    await queue.release(task_id, strict=True)


async def _release_with_result(queue: Torrelque, task_id: str) -> None:
    await queue.release(task_id, result=1, status=TorrelqueTaskStatus.REJECTED)


async def _release_many(queue: Torrelque, task_id: str) -> None:
    # The same id twice: that the second finds nothing does not mean that the lease was lost.
    assert [type(refusal) for refusal in await queue.release_many([task_id, task_id])] == [
        type(None),
        TorrelqueLookupError,
    ]


async def _requeue(queue: Torrelque, task_id: str) -> None:
    await queue.requeue(task_id)


async def _requeue_and_take_again(queue: Torrelque, task_id: str) -> None:
    await queue.requeue(task_id)
    await queue.dequeue(0)


@pytest.mark.parametrize("settle", [_release, _release_with_result, _release_many, _requeue, _requeue_and_take_again])
async def test_body_that_settles_its_task(open_queue: Any, settle: Any) -> None:
    """A body may release or requeue its task and go on: that is the end of the lease, not its loss."""
    async with open_queue() as queue:
        await queue.enqueue("t", task_timeout=SHORT)
        task_id, _ = await queue.dequeue(0)
        ended = False
        async with queue.lease(task_id):
            await settle(queue, task_id)
            if settle is _release:
                await queue.release(task_id)  # a warning, and no news
            await anyio.sleep(SHORT + 0.05)
            ended = True
        assert ended


@pytest.mark.parametrize("how", ["cancelled", "unknown"])
@pytest.mark.parametrize("settle", [_release, _release_with_result, _release_many, _requeue])
async def test_body_that_is_not_told_of_its_settlement(open_queue: Any, settle: Any, how: str) -> None:
    """A settlement that was applied, but cut off before it was answered, is no loss of the lease either."""
    async with open_queue() as queue:
        await queue.enqueue("t", task_timeout=SHORT)
        task_id, _ = await queue.dequeue(0)
        driver, execute = queue._driver, queue._driver.execute
        ended = False

        async def cut_off(calls: Any) -> Any:
            replies = await execute(calls)
            driver.execute = execute
            if how == "unknown":
                raise TorrelqueUnknownOutcomeError("lost")
            scope.cancel()
            return replies

        async with queue.lease(task_id):
            driver.execute = cut_off
            with anyio.CancelScope() as scope, suppress(TorrelqueUnknownOutcomeError):
                await settle(queue, task_id)
            assert scope.cancelled_caught == (how == "cancelled")
            await anyio.sleep(SHORT + 0.05)
            ended = True
        assert ended


async def test_body_that_releases_when_the_lease_is_lost(open_queue: Any, admin: Redis, name: str) -> None:
    """A release that was refused has settled nothing: the body is still cancelled for its lost lease."""
    async with open_queue() as queue:
        await queue.enqueue("t", task_timeout=0.3)
        task_id, _ = await queue.dequeue(0)
        with anyio.fail_after(5):
            with pytest.raises(TorrelqueLookupError):
                async with queue.lease(task_id):
                    await lose(queue, admin, name, task_id)
                    await queue.release(task_id)
                    await queue.release_many([task_id])
                    async with anyio.create_task_group() as group:
                        group.start_soon(queue.release, task_id)
                        group.start_soon(queue.release, task_id)
                    await anyio.sleep_forever()


async def test_errors_of_the_body(open_queue: Any) -> None:
    """What the body raises leaves as it was raised, alone or as the group that it is."""
    async with open_queue() as queue:
        task_id = await _held(queue, None, "")
        error = ZeroDivisionError("mine")
        with pytest.raises(ZeroDivisionError) as caught:
            async with queue.lease(task_id):
                raise error
        assert caught.value is error
        group = ExceptionGroup("mine", [ZeroDivisionError(), KeyError()])
        with pytest.raises(ExceptionGroup) as grouped:
            async with queue.lease(task_id):
                raise group
        assert grouped.value.args[0] == "mine", "(Trio makes a copy of a group)"
        assert [type(inner) for inner in grouped.value.exceptions] == [ZeroDivisionError, KeyError]
        with pytest.raises(KeyboardInterrupt):
            async with queue.lease(task_id):
                raise KeyboardInterrupt
        await queue.extend(task_id)


async def test_body_that_is_cancelled_from_outside(open_queue: Any) -> None:
    """Cancelling the body is nobody's error, and the lease is kept as long as it had."""
    async with open_queue() as queue:
        task_id = await _held(queue, None, "")
        with anyio.move_on_after(0.05) as scope:
            async with queue.lease(task_id):
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        async with queue.lease(task_id) as inner:
            inner.cancel()
            await anyio.sleep_forever()
        await queue.release(task_id, strict=True)


async def test_lease_needs_a_delivery(open_queue: Any) -> None:
    """A plain id says neither how long nor for which delivery, so it is refused."""
    async with open_queue() as queue:
        task_id = await _plain(queue, None, "")
        with pytest.raises(TorrelqueTypeError, match="task_id"):
            queue.lease(task_id)


async def test_lease_and_a_queue_that_is_left(open_queue: Any) -> None:
    """A body that outlives its queue is cancelled: nobody can hold its lease any more."""
    async with open_queue() as queue:
        await queue.enqueue("t", task_timeout=0.2)
        task_id, _ = await queue.dequeue(0)
        lease = queue.lease(task_id)
    with anyio.fail_after(5):
        with pytest.raises(TorrelqueClosedError):
            async with lease:
                await anyio.sleep_forever()


@asynccontextmanager
async def open_relayed(
    server: Server, open_client: Any, pair: Pair, name: str
) -> AsyncGenerator[tuple[Torrelque, Freezer]]:
    """Open a queue whose every connection goes by a relay."""
    with freezing(server.url) as relay:
        async with open_client(f"redis://{relay.address}/0") as client:
            queue = Torrelque(client, queue=name)
            async with queue if pair.entered else nullcontext():
                yield queue, relay


async def test_lease_over_connections_that_fell_silent(
    open_client: Any, server: Server, pair: Pair, name: str, admin: Redis
) -> None:
    """Where every connection has died and nobody was told, a lease is kept over a new one in time (F18)."""
    async with open_relayed(server, open_client, pair, name) as (queue, relay):
        await queue.enqueue("t", task_timeout=3)
        task_id, _ = await queue.dequeue(0)
        first_end = admin.zscore(f"{name}:working", task_id)
        async with queue.lease(task_id):
            relay.freeze()
            with anyio.fail_after(10):
                while admin.zscore(f"{name}:working", task_id) == first_end:
                    await anyio.sleep(0.02)
        assert snapshot(admin, name).now < first_end, "it was extended before it ended"


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
async def test_lease_beside_many_connections_that_fell_silent(
    open_client: Any, server: Server, pair: Pair, name: str, admin: Redis, busy: bool
) -> None:
    """So it is where there were as many as a queue may have, whether they wait for the next call or have one each: none
    of them is tried again, nor waited for."""
    async with open_relayed(server, open_client, pair, name) as (queue, relay), anyio.create_task_group() as group:

        async def ask() -> None:
            await queue._driver.execute([queue._calls.stats()])

        async with anyio.create_task_group() as crowd:
            for _ in range(LANES):
                crowd.start_soon(ask)
        await queue.enqueue("t", task_timeout=3)
        task_id, _ = await queue.dequeue(0)
        first_end = admin.zscore(f"{name}:working", task_id)
        async with queue.lease(task_id):
            relay.freeze()
            for _ in range(LANES if busy else 0):
                group.start_soon(ask)
            with anyio.fail_after(10):
                while admin.zscore(f"{name}:working", task_id) == first_end:
                    await anyio.sleep(0.02)
        assert snapshot(admin, name).now < first_end, "it was extended before it ended"
        group.cancel_scope.cancel()


async def test_body_is_cancelled_before_its_lease_ends(
    open_client: Any, server: Server, pair: Pair, name: str, admin: Redis
) -> None:
    """When nothing gets through any more, the body is cancelled while nobody else can have the task yet."""
    async with open_relayed(server, open_client, pair, name) as (queue, relay):
        await queue.enqueue("t", task_timeout=2)
        task_id, _ = await queue.dequeue(0)
        with Standstill.counted() as standstill:
            with pytest.raises(TorrelqueLookupError):
                async with queue.lease(task_id):
                    relay.freeze(new_ones=True)
                    await anyio.sleep_forever()
            stored = snapshot(admin, name)
        assert stored.now - standstill.seconds < stored.working[task_id] <= stored.now + 0.3
        relay.thaw()


async def test_many_leases_at_once(open_queue: Any, admin: Redis, name: str) -> None:
    """A hundred bodies keep a hundred leases past their ends: each is extended in time, and none is lost."""
    async with open_queue() as queue:
        await queue.enqueue_many(range(100), task_timeout=3)
        claims = await queue.dequeue(0, max_tasks=100)
        first_end = max(snapshot(admin, name).working.values())
        extended = anyio.Event()

        async def work(task_id: TorrelqueTaskId) -> None:
            async with queue.lease(task_id):
                await extended.wait()
            await queue.release(task_id, strict=True)

        async with anyio.create_task_group() as group:
            for task_id, _ in claims:
                group.start_soon(work, task_id)
            with anyio.fail_after(20):
                while (seen := snapshot(admin, name)).now <= first_end or min(seen.working.values()) <= first_end:
                    await anyio.sleep(0.05)
            extended.set()
        assert await queue.get_queue_stats() == TorrelqueQueueStats(0, 0, 0, 0)


# The id


def test_the_id_is_a_string_that_knows_its_delivery() -> None:
    """It compares, hashes and prints as its text, and keeps its fields when copied or pickled."""
    task_id = TorrelqueTaskId("abc", 3, 1.5)
    assert task_id == "abc"
    assert hash(task_id) == hash("abc")
    assert {task_id: 1}["abc"] == 1
    assert (str(task_id), f"{task_id}", repr(task_id)) == ("abc", "abc", "'abc'")
    copies = [copy.copy(task_id), copy.deepcopy(task_id)]
    copies += [pickle.loads(pickle.dumps(task_id, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    for other in copies:
        assert type(other) is TorrelqueTaskId
        assert (other, other.dequeue_count, other.task_timeout) == ("abc", 3, 1.5)
    assert type(str(task_id)) is str
    assert type(task_id.upper()) is str


async def test_a_pickled_id_is_still_fenced(open_queue: Any, admin: Redis, name: str) -> None:
    """An id that went through another process acts as the delivery that it came from."""
    async with open_queue() as queue:
        lost = pickle.loads(pickle.dumps(await _delivered_again(queue, admin, name)))
        with pytest.raises(TorrelqueLeaseLostError):
            await queue.release(lost, strict=True)
        held = pickle.loads(pickle.dumps(await _held(queue, admin, name)))
        async with queue.lease(held):
            await queue.extend(held)
        await queue.release(held, strict=True)


async def test_tokens_grow(open_queue: Any) -> None:
    """Each delivery of a task has the next number, whatever way it came back (I5, I8)."""
    async with open_queue() as queue:
        await queue.enqueue("t")
        for count in range(1, 6):
            task_id, _ = await queue.dequeue(5)
            assert task_id.dequeue_count == count
            await queue.requeue(task_id, 0.01 if count % 2 else None)


# Idempotent enqueue


async def test_known_id_while_the_task_lives(open_queue: Any, admin: Redis, name: str) -> None:
    """The same id again changes nothing in any state of the task, and returns the id."""
    async with open_queue() as queue:
        again = {"task_id": "once", "delay": 5, "task_timeout": 7}
        assert await queue.enqueue("first", task_id="once", delay=60) == "once"
        before = keyspace(admin)
        assert await queue.enqueue("second", **again) == "once"
        assert keyspace(admin) == before
        admin.zadd(f"{name}:delayed", {"once": 1})
        await queue.sweep()
        assert await queue.enqueue("second", **again) == "once"
        task_id, task = await queue.dequeue(0)
        assert (task_id, task) == ("once", "first")
        before = keyspace(admin)
        assert await queue.enqueue("second", **again) == "once"
        assert keyspace(admin) == before
        await queue.release(task_id, strict=True)


async def test_known_id_while_the_result_is_kept(open_queue: Any, admin: Redis, name: str) -> None:
    """As long as its result is kept an id is taken; when that is gone, it is free."""
    async with open_queue() as queue:
        await queue.enqueue("first", task_id="once")
        task_id, _ = await queue.dequeue(0)
        await queue.release(task_id, result="r")
        await queue.enqueue("second", task_id="once")
        assert (await queue.get_task_state("once")).result == "r"
        with pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0)
        admin.delete(f"{name}:task:once")
        await queue.enqueue("third", task_id="once")
        task_id, task = await queue.dequeue(0)
        assert (task, task_id.dequeue_count) == ("third", 1)
        await queue.release(task_id)
        await queue.enqueue("fourth", task_id="once")
        assert (await queue.dequeue(0))[1] == "fourth"


async def test_known_ids_in_bulk(open_queue: Any) -> None:
    """Repeats within one call and across calls, also concurrent ones, add each id once: the first payload counts."""
    async with open_queue() as queue:
        ids = ["a", "b", "a", "c", "b"]
        assert await queue.enqueue_many([1, 2, 3, 4, 5], task_ids=ids) == ids
        assert await queue.enqueue_many([6, 7], task_ids=["c", "d"], delay=60) == ["c", "d"]
        got = await queue.dequeue(0, max_tasks=9)
        assert got == [("a", 1), ("b", 2), ("c", 4)]
        async with anyio.create_task_group() as group:
            for i in range(50):
                group.start_soon(lambda i: queue.enqueue(i, task_id="same"), i)
        assert len(await queue.dequeue(0, max_tasks=9)) == 1


async def test_random_ids(open_queue: Any) -> None:
    """Ids that nobody chose are 128 random bits."""
    async with open_queue() as queue:
        ids = await queue.enqueue_many(range(500))
        ids.append(await queue.enqueue("t"))
        assert len(set(ids)) == 501
        assert all(len(task_id) == 32 and int(task_id, 16) >= 0 for task_id in ids)
        assert await queue.enqueue_many([]) == []
