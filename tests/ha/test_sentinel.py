"""A queue at a primary that sentinels look after, and what happens when that one dies or falls silent."""

from __future__ import annotations

import signal
import sys
import time
from functools import partial
from typing import Any

import anyio
import coredis
import pytest
from coredis.connection import TCPLocation
from ha.verbs import enqueue_until_it_works, every_verb, until_it_works
from redis.asyncio.sentinel import Sentinel
from support import Pair, wait_until
from support.clusters import SERVICE, Node, Site, eventually
from support.marks import ON_COREDIS, ON_REDISPY

from torrelque import Torrelque, TorrelqueError, TorrelqueRedisError, TorrelqueUnavailableError
from torrelque.drivers import _redispy

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(90)]


async def test_every_verb(open_queue: Any) -> None:
    """The client of a Sentinel serves like any other."""
    async with open_queue() as queue:
        await every_verb(queue)


@ON_COREDIS
async def test_every_verb_by_url(site: Site, pair: Pair, name: str) -> None:
    """So does a URL with several sentinels, of which some are not there."""
    url = site.url.replace("://", "://127.0.0.1:1,", 1)
    async with Torrelque.from_url(url, queue=name) as queue:
        await every_verb(queue)


@ON_COREDIS
async def test_the_command(site: Site, pair: Pair, name: str) -> None:
    """`torrelque --url` takes such a URL, and shows no password when the servers are not there."""
    command = [sys.executable, "-m", "torrelque", "--backend", pair.backend[0], "--queue", name, "--url"]
    done = await anyio.run_process([*command, site.url, "enqueue", '{"a": 1}'], check=False)
    assert done.returncode == 0, done.stderr
    assert site.primary().admin.llen(f"{name}:pending") == 1
    lost = await anyio.run_process([*command, "redis+sentinel://u:secret@127.0.0.1:1/jobs", "stats"], check=False)
    assert lost.returncode == 3
    assert b"cannot be reached at redis+sentinel://127.0.0.1:1/jobs" in lost.stderr
    assert b"secret" not in lost.stderr


@ON_REDISPY
async def test_not_entered(open_client: Any, pair: Pair, name: str) -> None:
    """The calls of the published package work without entering, with redis-py on asyncio."""
    async with open_client() as client:
        await every_verb(Torrelque(client, queue=name))


@ON_REDISPY
async def test_a_connection_that_was_idle(
    open_queue: Any, site: Site, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is used again: to make another costs a handshake, with TLS a long one."""
    monkeypatch.setattr(_redispy, "HOT", 0.0)

    def connected() -> set[str]:
        clients = site.primary().admin.client_list()
        return {each["id"] for each in clients if each["cmd"] in {"eval", "evalsha"}}

    async with open_queue() as queue:
        await queue.enqueue(1)
        before = connected()
        assert len(before) == 1
        await queue.get_queue_stats()
        assert connected() == before


async def test_pipeline(open_client: Any, pair: Pair, name: str) -> None:
    """A call is staged on the client's own pipeline."""
    async with open_client() as client, Torrelque(client, queue=name) as queue:
        if pair.client == "redispy":
            async with client.pipeline() as pipeline:
                await queue.enqueue("staged", pipeline=pipeline)
                await pipeline.execute()
        else:
            async with client.pipeline() as pipeline:
                await queue.enqueue("staged", pipeline=pipeline)
        assert (await queue.dequeue(5))[1] == "staged"


async def test_the_client_of_a_replica_is_refused(site: Site, pair: Pair) -> None:
    """It cannot write: that is said at once."""
    client: Any
    if pair.client == "redispy":
        client = Sentinel([("127.0.0.1", site.sentinels[0].port)]).slave_for(SERVICE)
    else:
        client = coredis.Sentinel([TCPLocation("127.0.0.1", site.sentinels[0].port)]).replica_for(SERVICE)
    with pytest.raises(TorrelqueError, match="primary"):
        Torrelque(client)


async def test_a_service_that_sentinels_do_not_know(site: Site, name: str) -> None:
    """Nobody tells where the primary is: that is an error of each call, and nothing was sent."""
    url = site.url.replace(f"/{SERVICE}", "/unknown")
    async with Torrelque.from_url(url, queue=name) as queue:
        with pytest.raises(TorrelqueUnavailableError, match="where the primary is"):
            await queue.enqueue(1)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
async def test_failover(open_queue: Any, site: Site, name: str, blow: signal.Signals) -> None:
    """The primary ends, or falls silent with its connections open: who waited gets the next task, who watched is told,
    what was worked on meanwhile is released, and the sweeper goes on, all unaided."""
    site.heal()
    async with open_queue() as consumer, open_queue() as producer, anyio.create_task_group() as group:
        consumer.schedule_sweep(0.2)
        got: list[Any] = []
        states: list[Any] = []
        watched = await producer.enqueue("watched", delay=3600)
        await producer.enqueue("held")
        held, _ = await producer.dequeue(5)

        async def consume() -> None:
            while len(got) < 2:
                try:
                    task_id, task = await consumer.dequeue()
                except TorrelqueRedisError:
                    await anyio.sleep(0.05)  # the documented way
                else:
                    got.append(task)
                    await until_it_works(partial(consumer.release, task_id))

        async def watch() -> None:
            async for state in producer.watch(watched):
                states.append(state.status)  # noqa: PERF401  # seen as they come

        group.start_soon(consume)
        group.start_soon(watch)
        await producer.enqueue("before")
        while not (got and states):
            await anyio.sleep(0.01)
        await anyio.sleep(0.2)  # it blocks again
        # All that was acknowledged is on the replicas: what an asynchronous replication loses is another matter.
        before = await anyio.to_thread.run_sync(site.replicated, 2)
        before.send(blow)
        struck = time.monotonic()
        group.start_soon(until_it_works, partial(producer.release, held, result="done"))
        await enqueue_until_it_works(producer, "after", "after")
        outage = time.monotonic() - struck
        while len(got) < 2:
            await anyio.sleep(0.01)
        woken = time.monotonic() - struck
        assert got == ["before", "after"]
        # A call that was about to connect waits for the new primary, and hears of nothing else.
        assert 0.5 < outage < 10, "was there one?"
        assert woken < outage + 8
        await anyio.to_thread.run_sync(wait_until, lambda: site.primary() is not before, 30)
        with anyio.fail_after(10):
            while (await until_it_works(partial(producer.get_task_state, held))).result != "done":
                await anyio.sleep(0.01)
        # A delivery of the new primary, whose lease ends: the sweeper has followed too.
        await until_it_works(lambda: producer.enqueue("swept", task_id="swept", task_timeout=0.3))
        await until_it_works(lambda: producer.dequeue(5))
        assert (await until_it_works(lambda: producer.dequeue(10)))[1] == "swept"
        # The watcher has followed as well.
        key = f"{name}:delayed"
        site.primary().admin.zadd(key, {watched: 1})
        with anyio.fail_after(20):
            while len(states) < 2:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    site.heal()


async def test_a_demoted_primary_lets_go(open_queue: Any, site: Site) -> None:
    """A failover by hand: the old primary lives on as a replica and refuses writes, so a queue goes to the new one."""
    site.heal()
    async with open_queue() as queue, anyio.create_task_group() as group:
        got: list[Any] = []

        async def consume() -> None:
            while not got:
                try:
                    got.append(await queue.dequeue())
                except TorrelqueRedisError:
                    await anyio.sleep(0.05)

        await queue.enqueue(1)
        await queue.release((await queue.dequeue(5))[0])
        group.start_soon(consume)
        await anyio.sleep(0.2)
        before = await anyio.to_thread.run_sync(site.replicated, 2)
        # A sentinel takes a while to think well of a replica again.
        leader = site.sentinels[0].admin
        await anyio.to_thread.run_sync(eventually, lambda: leader.execute_command("SENTINEL", "FAILOVER", SERVICE))
        await anyio.to_thread.run_sync(wait_until, lambda: site.primary() is not before, 30)
        await enqueue_until_it_works(queue, "again", "again")
        with anyio.fail_after(20):
            while not got:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    site.heal()


async def cut_off_from_replicas(site: Site, primary: Node) -> None:
    """Let another take its place of which it does not hear, so that it is left without replicas."""
    primary.admin.execute_command("ACL", "SETUSER", "default", "-replicaof", "-slaveof")
    primary.admin.config_set("min-replicas-to-write", 1)


async def busy_for_ever(site: Site, primary: Node) -> None:
    """Run a script there that does not end, and has written, so that it cannot be killed."""
    primary.admin.config_set("busy-reply-threshold" if site.kind == "valkey" else "lua-time-limit", 100)
    connection = primary.admin.connection_pool.get_connection()
    connection.send_command("EVAL", "redis.call('SET', KEYS[1], 1) while true do end", 1, "busy")


@pytest.mark.parametrize("refuse", [cut_off_from_replicas, busy_for_ever], ids=lambda refuse: refuse.__name__)
async def test_a_primary_that_refuses_writes(open_queue: Any, site: Site, refuse: Any) -> None:
    """It goes on answering, with refusals, and does not hear that it is no primary any more: a producer, which waits
    for nothing in Redis, goes to the new one."""
    site.heal()
    async with open_queue() as producer:
        await producer.enqueue("before")
        before = await anyio.to_thread.run_sync(site.replicated, 2)
        await refuse(site, before)
        try:
            leader = site.sentinels[0].admin
            await anyio.to_thread.run_sync(eventually, lambda: leader.execute_command("SENTINEL", "FAILOVER", SERVICE))
            await anyio.to_thread.run_sync(wait_until, lambda: site.primary() is not before, 30)
            await enqueue_until_it_works(producer, "after", "after")
            assert site.primary().admin.hexists(producer.keys["tasks"], "after")
        finally:
            before.kill()
    site.heal()
