"""``pipeline=``: calls on the user's own pipeline, of either client, take effect when that is executed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import coredis
import pytest
import redis.asyncio
import redis.exceptions
from redis import Redis
from support import keyspace, snapshot

from torrelque import (
    Torrelque,
    TorrelqueLeaseLostError,
    TorrelqueQueueStats,
    TorrelqueTaskStatus,
    TorrelqueTimeoutError,
    TorrelqueValueError,
)

pytestmark = pytest.mark.anyio


class Piped:
    """A queue, its client, and the results of the last pipeline."""

    def __init__(self, client: Any, queue: Torrelque) -> None:
        self.client = client
        self.queue = queue
        self.results: list[Any] = []

    @asynccontextmanager
    async def pipeline(self, *, transaction: bool = True) -> AsyncGenerator[Any]:
        """Open a pipeline that is executed at the end, as coredis does by itself."""
        async with self.client.pipeline(transaction=transaction) as pipeline:
            yield pipeline
            if isinstance(self.client, redis.asyncio.Redis):
                self.results = await pipeline.execute()
        if isinstance(self.client, coredis.Redis):
            self.results = list(pipeline.results)


@pytest.fixture
def open_piped(open_client: Any, name: str) -> Callable[..., AbstractAsyncContextManager[Piped]]:
    """Open a queue of the test's name, ready for pipelines."""

    @asynccontextmanager
    async def open_piped(**options: Any) -> AsyncGenerator[Piped]:
        async with open_client() as client, Torrelque(client, queue=name, **options) as queue:
            yield Piped(client, queue)

    return open_piped


both = pytest.mark.parametrize("transaction", [True, False], ids=["transaction", "plain"])


@both
async def test_takes_effect_when_executed(open_piped: Any, admin: Redis, name: str, transaction: bool) -> None:
    """Several calls and the user's own commands stand in one pipeline; nothing happens before it is executed."""
    async with open_piped() as piped:
        queue: Torrelque = piped.queue
        await queue.enqueue_many(range(4))
        claims = [task_id for task_id, _ in await queue.dequeue(0, max_tasks=4)]
        before = keyspace(admin)
        async with piped.pipeline(transaction=transaction) as pipeline:
            pipeline.set(f"{name}:own", "1")
            new = await queue.enqueue({"new": 1}, task_timeout=7, pipeline=pipeline)
            late = await queue.enqueue("late", delay=60, pipeline=pipeline)
            assert await queue.requeue(claims[0], pipeline=pipeline) is None
            pipeline.incr(f"{name}:own")
            await queue.requeue(claims[1], 60, task_timeout=9, pipeline=pipeline)
            assert await queue.release(claims[2], pipeline=pipeline) is None
            await queue.release(
                claims[3], result="r", result_ttl=60, status=TorrelqueTaskStatus.REJECTED, pipeline=pipeline
            )
            pipeline.get(f"{name}:own")
            await anyio.sleep(0.01)
            assert keyspace(admin) == before
            assert await queue.get_queue_stats() == TorrelqueQueueStats(4, 0, 4, 0)
        assert [piped.results[i] for i in (0, 4, 8)] == [True, 2, b"2"]
        assert len(piped.results) == 9
        assert await queue.get_queue_stats() == TorrelqueQueueStats(4, 2, 0, 2)
        admin.delete(f"{name}:own")
        snapshot(admin, name).check()
        assert (await queue.get_task_state(new)).timeout == 7
        assert (await queue.get_task_state(late)).status is TorrelqueTaskStatus.DELAYED
        assert (await queue.get_task_state(claims[0])).status is TorrelqueTaskStatus.PENDING
        state = await queue.get_task_state(claims[1])
        assert (state.status, state.timeout) == (TorrelqueTaskStatus.DELAYED, 9)
        assert not admin.exists(f"{name}:task:{claims[2]}")
        state = await queue.get_task_state(claims[3])
        assert (state.status, state.result) == (TorrelqueTaskStatus.REJECTED, "r")
        assert 55 < admin.ttl(f"{name}:task:{claims[3]}") <= 60


@both
async def test_scripts_that_the_server_forgot(open_piped: Any, admin: Redis, transaction: bool) -> None:
    """SCRIPT FLUSH between queueing and executing is harmless: nobody could send the scripts again."""
    async with open_piped() as piped:
        await piped.queue.enqueue("first")
        claim, _ = await piped.queue.dequeue(0)
        async with piped.pipeline(transaction=transaction) as pipeline:
            await piped.queue.enqueue("second", pipeline=pipeline)
            await piped.queue.requeue(claim, pipeline=pipeline)
            admin.script_flush()
        got = await piped.queue.dequeue(0, max_tasks=9)
        assert [task for _, task in got] == ["second", "first"]


@both
async def test_failed_serialisation_leaves_the_pipeline_as_it_was(
    open_piped: Any, admin: Redis, name: str, transaction: bool
) -> None:
    """What cannot be serialised is not half queued: what stands before and after it is executed (U5)."""
    async with open_piped() as piped:
        await piped.queue.enqueue("held")
        claim, _ = await piped.queue.dequeue(0)
        async with piped.pipeline(transaction=transaction) as pipeline:
            await piped.queue.enqueue("before", pipeline=pipeline)
            for call in (piped.queue.enqueue(object(), pipeline=pipeline),
                         piped.queue.release(claim, result=object(), pipeline=pipeline)):  # fmt: skip
                with pytest.raises(TypeError):
                    await call
            await piped.queue.enqueue("after", pipeline=pipeline)
        assert len(piped.results) == 2
        assert await piped.queue.get_queue_stats() == TorrelqueQueueStats(3, 2, 1, 0)
        await piped.queue.release(claim, strict=True)
        snapshot(admin, name).check()


@both
async def test_pipeline_that_is_not_executed(open_piped: Any, admin: Redis, transaction: bool) -> None:
    """A pipeline that is left by an error does nothing."""
    async with open_piped() as piped:
        before = keyspace(admin)

        async def leave() -> None:
            async with piped.pipeline(transaction=transaction) as pipeline:
                await piped.queue.enqueue("never", pipeline=pipeline)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await leave()
        assert keyspace(admin) == before


async def test_transaction_is_all_or_nothing(open_piped: Any, admin: Redis) -> None:
    """A command that Redis refuses to queue aborts the whole transaction, our calls with it."""
    async with open_piped() as piped:
        before = keyspace(admin)

        async def transact() -> None:
            async with piped.pipeline() as pipeline:
                await piped.queue.enqueue("never", pipeline=pipeline)
                if isinstance(piped.client, redis.asyncio.Redis):
                    pipeline.execute_command("NO-SUCH-COMMAND")
                else:
                    pipeline.create_request(b"NO-SUCH-COMMAND", callback=lambda reply, **_: reply)

        with pytest.raises((redis.exceptions.RedisError, coredis.exceptions.RedisError)):
            await transact()
        assert keyspace(admin) == before


@both
async def test_fenced_on_a_pipeline_too(open_piped: Any, admin: Redis, name: str, transaction: bool) -> None:
    """A lease that was lost when the pipeline is executed changes nothing, nor does it harm its neighbours."""
    async with open_piped() as piped:
        queue: Torrelque = piped.queue
        await queue.enqueue("t")
        old, _ = await queue.dequeue(0)
        async with piped.pipeline(transaction=transaction) as pipeline:
            await queue.release(old, pipeline=pipeline, strict=True)
            await queue.requeue(old, pipeline=pipeline)
            await queue.enqueue("neighbour", pipeline=pipeline)
            admin.zadd(f"{name}:working", {old: 1})
            assert await queue.sweep() == (1, 0, 0)
            new, _ = await queue.dequeue(0)
        state = await queue.get_task_state(new)
        assert (state.status, state.dequeue_count) == (TorrelqueTaskStatus.WORKING, 2)
        assert (await queue.dequeue(0))[1] == "neighbour"
        await queue.release(new, strict=True)


SETTLES = {
    "release": lambda queue, task_id, pipeline: queue.release(task_id, pipeline=pipeline),
    "release with a result": lambda queue, task_id, pipeline: queue.release(task_id, result=1, pipeline=pipeline),
    "requeue": lambda queue, task_id, pipeline: queue.requeue(task_id, pipeline=pipeline),
}
each = pytest.mark.parametrize("settle", SETTLES.values(), ids=SETTLES)


@each
async def test_lease_after_a_pipeline_that_was_not_executed(
    open_piped: Any, admin: Redis, name: str, settle: Any
) -> None:
    """A settlement that was only staged has settled nothing: the body is still cancelled for its lost lease."""
    async with open_piped() as piped:
        queue: Torrelque = piped.queue
        await queue.enqueue("t", task_timeout=1)
        task_id, _ = await queue.dequeue(0)
        with anyio.fail_after(5):
            with pytest.raises(TorrelqueLeaseLostError):
                async with queue.lease(task_id):
                    with pytest.raises(ZeroDivisionError):
                        async with piped.pipeline() as pipeline:
                            await settle(queue, task_id, pipeline)
                            raise ZeroDivisionError
                    admin.zadd(f"{name}:working", {task_id: 1})
                    assert await queue.sweep() == (1, 0, 0)
                    await queue.dequeue(0)
                    await anyio.sleep_forever()


@each
async def test_lease_after_a_pipeline_that_was_executed(open_piped: Any, settle: Any) -> None:
    """A body that has settled its task by a pipeline runs on."""
    async with open_piped() as piped:
        queue: Torrelque = piped.queue
        await queue.enqueue("t", task_timeout=2)
        task_id, _ = await queue.dequeue(0)
        ended = False
        async with queue.lease(task_id):
            async with piped.pipeline() as pipeline:
                await settle(queue, task_id, pipeline)
            await anyio.sleep(2.3)
            ended = True
        assert ended


async def test_known_id_on_a_pipeline(open_piped: Any) -> None:
    """A chosen id is as idempotent on a pipeline, within one and across two."""
    async with open_piped() as piped:
        for payload in ("first", "second"):
            async with piped.pipeline() as pipeline:
                for _ in range(2):
                    assert await piped.queue.enqueue(payload, task_id="once", pipeline=pipeline) == "once"
        assert await piped.queue.dequeue(0, max_tasks=9) == [("once", "first")]


async def test_wakes_who_waits(open_piped: Any) -> None:
    """A dequeue and a watch that wait hear of what a pipeline did, a delay included."""
    async with open_piped() as piped:
        queue: Torrelque = piped.queue
        seen: list[str] = []

        async def consume() -> None:
            for _ in range(2):
                task_id, _ = await queue.dequeue(20)
                async with piped.pipeline() as pipeline:
                    await queue.release(task_id, result="r", pipeline=pipeline)

        async def watch(task_id: str) -> None:
            seen.extend([state.status.name async for state in queue.watch(task_id, timeout=20)])

        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            await anyio.wait_all_tasks_blocked()
            async with piped.pipeline() as pipeline:
                later = await queue.enqueue("later", delay=0.1, pipeline=pipeline)
                await queue.enqueue("now", pipeline=pipeline)
            group.start_soon(watch, later)
        assert seen[0] == "DELAYED"
        assert seen[-1] == "COMPLETED"


async def test_two_queues_on_one_pipeline(open_client: Any, name: str) -> None:
    """A task goes from one queue to another in one transaction."""
    async with open_client() as client, Torrelque(client, queue=f"{name}:a") as a:
        async with Torrelque(client, queue=f"{name}:b") as b:
            await a.enqueue("t")
            task_id, task = await a.dequeue(0)
            async with Piped(client, a).pipeline() as pipeline:
                await a.release(task_id, pipeline=pipeline)
                await b.enqueue(task, task_id=task_id, pipeline=pipeline)
            assert await a.get_queue_stats() == TorrelqueQueueStats(0, 0, 0, 0)
            assert await b.dequeue(0) == (task_id, "t")


async def test_queue_need_not_be_entered(open_client: Any, name: str) -> None:
    """Queueing on a pipeline needs nothing in the background, so it works on a queue that was not entered."""
    async with open_client() as client:
        queue = Torrelque(client, queue=name)
        async with Piped(client, queue).pipeline() as pipeline:
            await queue.enqueue("t", pipeline=pipeline)
        async with Torrelque(client, queue=name) as entered:
            task_id, _ = await entered.dequeue(0)
            async with Piped(client, queue).pipeline() as pipeline:
                await queue.release(task_id, pipeline=pipeline)
            assert await entered.get_queue_stats() == TorrelqueQueueStats(0, 0, 0, 0)


async def test_pipeline_of_a_decoding_client(open_client: Any, name: str) -> None:
    """With decode_responses=True the user's own results are text, and ours do not mind."""
    async with open_client(decode_responses=True) as client, Torrelque(client, queue=name) as queue:
        piped = Piped(client, queue)
        async with piped.pipeline() as pipeline:
            pipeline.set(f"{name}:own", "é")
            await queue.enqueue("é", pipeline=pipeline)
            pipeline.get(f"{name}:own")
        assert piped.results[2] == "é"
        assert (await queue.dequeue(0))[1] == "é"


async def test_watching_pipeline(open_piped: Any, admin: Redis, name: str) -> None:
    """While redis-py's pipeline watches keys it sends at once, so calls are refused until multi()."""
    async with open_piped() as piped:
        queue: Torrelque = piped.queue
        if isinstance(piped.client, coredis.Redis):
            async with piped.client.pipeline() as pipeline:
                async with pipeline.watch(f"{name}:own"):
                    await queue.enqueue("t", pipeline=pipeline)
                    with pytest.raises(TorrelqueTimeoutError):
                        await queue.dequeue(0)
            assert (await queue.dequeue(0))[1] == "t"
            return
        async with piped.client.pipeline() as pipeline:
            await pipeline.watch(f"{name}:own")
            before = keyspace(admin)
            for call in (queue.enqueue("t", pipeline=pipeline), queue.release("x", pipeline=pipeline),
                         queue.requeue("x", pipeline=pipeline)):  # fmt: skip
                with pytest.raises(TorrelqueValueError, match="pipeline"):
                    await call
            assert keyspace(admin) == before
            pipeline.multi()
            await queue.enqueue("t", pipeline=pipeline)
            await pipeline.execute()
            assert (await queue.dequeue(0))[1] == "t"
        async with piped.client.pipeline() as pipeline:
            await pipeline.watch(f"{name}:own")
            admin.set(f"{name}:own", "changed")
            pipeline.multi()
            await queue.enqueue("never", pipeline=pipeline)
            with pytest.raises(redis.exceptions.WatchError):
                await pipeline.execute()
        with pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0)


async def test_large_pipeline(open_piped: Any) -> None:
    """A thousand calls on one pipeline take effect in their order."""
    async with open_piped() as piped:
        async with piped.pipeline(transaction=False) as pipeline:
            for i in range(1000):
                await piped.queue.enqueue(i, pipeline=pipeline)
        assert [task for _, task in await piped.queue.dequeue(0, max_tasks=1000)] == list(range(1000))
