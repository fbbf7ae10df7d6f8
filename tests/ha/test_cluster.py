"""A queue in one slot of a cluster: the slot moves under load, and its primary dies."""

from __future__ import annotations

import signal
import time
from typing import Any

import anyio
import pytest
import redis
from ha.verbs import enqueue_until_it_works, every_verb
from support import Pair, snapshot, wait_until
from support.clusters import Node, Site
from support.marks import ON_COREDIS, ON_REDISPY

from torrelque import Torrelque, TorrelqueRedisError

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(90)]


def key_of(name: str) -> bytes:
    """A key of the queue."""
    return f"{{{name}}}:pending".encode()


def another(site: Site, name: str) -> Node:
    """A primary that does not own the queue's slot."""
    own = site.primary(key_of(name))
    return next(node for node in site.nodes if node is not own and node.admin.info("replication")["role"] == "master")


async def test_every_verb(open_queue: Any, name: str, site: Site) -> None:
    """The client of a cluster serves like any other; all keys of a queue are in one slot, in braces."""
    async with open_queue() as queue:
        assert queue.keys["pending"] == f"{{{name}}}:pending"
        await every_verb(queue)
        await queue.enqueue("kept")
    keys = [key for node in site.nodes for key in node.admin.scan_iter(f"*{name}*")]
    assert keys
    assert all(key.startswith(f"{{{name}}}:".encode()) for key in keys)


@ON_COREDIS
async def test_every_verb_by_url(site: Site, pair: Pair, name: str) -> None:
    """So does a URL with several nodes, of which some are not there."""
    async with Torrelque.from_url(f"redis+cluster://127.0.0.1:1,127.0.0.1:{site.nodes[0].port}", queue=name) as queue:
        await every_verb(queue)


@ON_REDISPY
async def test_not_entered(open_client: Any, pair: Pair, name: str) -> None:
    """With redis-py on asyncio the calls work without entering."""
    async with open_client() as client:
        await every_verb(Torrelque(client, queue=name))


async def test_pipeline(open_client: Any, pair: Pair, name: str) -> None:
    """A call is staged on the cluster client's own pipeline."""
    async with open_client() as client, Torrelque(client, queue=name) as queue:
        async with client.pipeline() as pipeline:
            await queue.enqueue("staged", pipeline=pipeline)
            if pair.client == "redispy":
                await pipeline.execute()
        task_id, task = await queue.dequeue(5)
        assert task == "staged"
        await queue.release(task_id)


class Load:
    """Producers and consumers that go on whatever happens; what was acknowledged must come out once."""

    def __init__(self, queue: Torrelque) -> None:
        self._queue = queue
        self.acknowledged: set[str] = set()
        self.released: set[str] = set()
        self.errors: list[TorrelqueRedisError] = []
        self._stop = anyio.Event()

    async def run(self) -> None:
        async with anyio.create_task_group() as consumers:
            consumers.start_soon(self._consume)
            async with anyio.create_task_group() as producers:
                for i in range(3):
                    producers.start_soon(self._produce, f"p{i}")
            with anyio.fail_after(20):
                while not self.acknowledged <= self.released:
                    await anyio.sleep(0.02)
            consumers.cancel_scope.cancel()

    def stop(self) -> None:
        self._stop.set()

    async def _produce(self, who: str) -> None:
        n = 0
        while not self._stop.is_set():
            n += 1
            task_id = f"{who}-{n}"
            try:
                await self._queue.enqueue(n, task_id=task_id)
                self.acknowledged.add(task_id)
            except TorrelqueRedisError as error:
                self.errors.append(error)
                await anyio.sleep(0.02)

    async def _consume(self) -> None:
        while True:
            try:
                for task_id, _ in await self._queue.dequeue(max_tasks=20):
                    await self._queue.release(task_id)
                    self.released.add(task_id)
            except TorrelqueRedisError as error:
                self.errors.append(error)
                await anyio.sleep(0.02)


@pytest.fixture(params=["key by key", "in one step"])
def move(request: pytest.FixtureRequest, site: Site) -> Any:
    """The two ways to move a slot: as `redis-cli --cluster reshard` does, and the atomic one of Valkey 9."""
    if request.param == "key by key":
        return site.move_slot
    if site.kind != "valkey":
        pytest.skip("Redis 7.0 has no atomic migration")
    return site.move_slot_whole


async def test_a_slot_moves(open_queue: Any, site: Site, name: str, move: Any) -> None:
    """Under load the slot moves: nobody hears of it, and nothing is lost."""
    target = another(site, name)
    async with open_queue() as queue:
        load = Load(queue)
        async with anyio.create_task_group() as group:
            group.start_soon(load.run)
            while len(load.acknowledged) < 50:
                await anyio.sleep(0.01)
            await anyio.to_thread.run_sync(move, key_of(name), target)
            seen = len(load.acknowledged)
            while len(load.acknowledged) < seen + 50:
                await anyio.sleep(0.01)
            load.stop()
        assert load.errors == []
        assert site.primary(key_of(name)) is target
        assert tuple(await queue.get_queue_stats()) == (0, 0, 0, 0)


async def test_no_script_runs_half_way_while_a_slot_moves(open_queue: Any, site: Site, name: str) -> None:
    """While keys are on both sides each script is refused before its first step: states, which no script declares, are
    never out of its reach in the middle. (A prefix among its keys never exists, so there is always one missing.)"""
    source, target = site.primary(key_of(name)), another(site, name)
    prefix = f"{{{name}}}"
    async with open_queue() as queue:
        await queue.enqueue_many(range(20), task_ids=[f"n{i}" for i in range(20)])
        held = await queue.dequeue(5, max_tasks=5)
        await queue.enqueue("late", delay=3600, task_id="late")
        # A parked id that a sweep has noted: now all the keys are there that may ever be.
        source.admin.lmove(f"{prefix}:pending", f"{prefix}:dequeueing", "RIGHT", "LEFT")
        await queue.sweep()
        assert source.admin.exists(*(key for name, key in queue.keys.items() if name != "task")) == 6
        before = snapshot(source.admin, prefix)
        before.check()
        found: list[str] = []

        def tried() -> None:
            """Send every script to both sides, as a client that follows ASK would."""
            counted = [sorted(node.admin.scan_iter(f"{prefix}*")) for node in (source, target)]
            for call in every_call(queue, str(held[0][0])):
                for node in (source, target):
                    found.append(refusal(node, call))  # noqa: PERF401  seen one by one
            assert counted == [sorted(node.admin.scan_iter(f"{prefix}*")) for node in (source, target)]

        await anyio.to_thread.run_sync(lambda: site.move_slot(key_of(name), target, pause=tried))
        assert found
        assert set(found) <= {"TRYAGAIN", "ASK"}
        after = snapshot(target.admin, prefix)
        after.check()
        assert (after.places(), after.tasks, after.states) == (before.places(), before.tasks, before.states)
        await queue.release_many([task_id for task_id, _ in held])
        assert len(await queue.dequeue(5, max_tasks=50)) == 14


def every_call(queue: Torrelque, held: str) -> list[Any]:
    """A call of each script that would change something."""
    calls = queue._calls
    return [
        calls.enqueue([("new", b"1")], 300, 0), calls.enqueue([("new2", b"1")], 300, 60), calls.dequeue(5, 300),
        calls.dequeue(5, 300, [b"n7"]), calls.requeue(held, 0, None), calls.extend(held, None, 300),
        calls.hand_back([(held.encode(), 1)]), calls.sweep(300, b""), calls.state(held.encode()), calls.stats(),
    ]  # fmt: skip


def refusal(node: Node, call: Any) -> str:
    """Run a script there, and read why it was refused."""
    connection = node.admin.connection_pool.get_connection()
    try:
        connection.send_command("ASKING")
        connection.read_response()
        keys = (len(call.keys), *call.keys, *call.head, *call.items)
        connection.send_command("EVAL", call.script.text, *keys)
        return f"answered: {connection.read_response()!r}"
    except redis.exceptions.TryAgainError:
        return "TRYAGAIN"
    except redis.exceptions.AskError:
        return "ASK"
    finally:
        node.admin.connection_pool.release(connection)


async def test_who_waits_goes_with_the_slot(open_queue: Any, site: Site, name: str, move: Any) -> None:
    """Idle consumers and watchers find the new owner by themselves, though nothing ends their connections."""
    target = another(site, name)
    async with open_queue() as consumer, open_queue() as watcher, anyio.create_task_group() as group:
        got: list[Any] = []
        states: list[Any] = []
        await consumer.enqueue("watched", delay=3600, task_id="watched")

        async def consume() -> None:
            while not got:
                try:
                    got.append((await consumer.dequeue())[1])
                except TorrelqueRedisError:
                    await anyio.sleep(0.02)

        async def watch() -> None:
            async for state in watcher.watch("watched"):
                states.append(state.status)  # noqa: PERF401  # seen as they come

        group.start_soon(consume)
        group.start_soon(watch)
        while not states:
            await anyio.sleep(0.01)
        await anyio.sleep(0.3)
        await anyio.to_thread.run_sync(move, key_of(name), target)
        moved = time.monotonic()
        async with open_queue() as producer:
            await producer.enqueue("after the move")
        with anyio.fail_after(8):
            while not got:
                await anyio.sleep(0.01)
        assert got == ["after the move"]
        assert time.monotonic() - moved < 5
        with anyio.fail_after(8 - (time.monotonic() - moved)):
            await anyio.sleep(4)
        target.admin.zadd(f"{{{name}}}:delayed", {"watched": 1})
        async with open_queue() as other:
            await other.sweep()
        with anyio.fail_after(3):
            while len(states) < 2:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
async def test_failover(open_queue: Any, site: Site, name: str, blow: signal.Signals) -> None:
    """The owner of the slot ends, or falls silent with its connections open: everybody goes on at its replica."""
    site.heal()
    async with open_queue() as consumer, open_queue() as producer, anyio.create_task_group() as group:
        got: list[Any] = []

        async def consume() -> None:
            while len(got) < 2:
                try:
                    task_id, task = await consumer.dequeue()
                except TorrelqueRedisError:
                    await anyio.sleep(0.05)
                else:
                    got.append(task)
                    await consumer.release(task_id)

        group.start_soon(consume)
        await producer.enqueue("before")
        while not got:
            await anyio.sleep(0.01)
        await anyio.sleep(0.2)
        before = await anyio.to_thread.run_sync(site.replicated, 1, key_of(name))
        before.send(blow)
        struck = time.monotonic()
        await enqueue_until_it_works(producer, "after", "after")
        outage = time.monotonic() - struck
        while len(got) < 2:
            await anyio.sleep(0.01)
        woken = time.monotonic() - struck
        assert got == ["before", "after"]
        # A call that was about to connect waits for the new primary, and hears of nothing else.
        assert 0.5 < outage < 10, "was there one?"
        assert woken < outage + 4
        await anyio.to_thread.run_sync(wait_until, lambda: site.primary(key_of(name)) is not before)
    site.heal()
