"""What a returned write means: in memory, on replicas, on disks; and what is said when that is not so in time."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import coredis.exceptions
import pytest
import redis.exceptions
from support import Pair, snapshot
from support.clusters import Site

from torrelque import (
    Torrelque,
    TorrelqueDurability,
    TorrelqueNotDurableError,
    TorrelqueStorageError,
    TorrelqueTypeError,
    TorrelqueUnknownOutcomeError,
    TorrelqueValueError,
)

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(60)]

ON_TWO = TorrelqueDurability(replicas=2, timeout=0.5)
ON_DISK = TorrelqueDurability(fsync=True, timeout=3)


@pytest.fixture(autouse=True)
def _as_it_was(site: Site) -> Iterator[None]:
    """A test begins and ends with servers that keep nothing on disk and stand close to each other."""
    site.settle()
    yield
    for node in site.nodes:
        node.send(signal.SIGCONT)
        node.admin.config_set("appendonly", "no")
        node.admin.config_set("appendfsync", "everysec")
    site.settle()


@asynccontextmanager
async def without_replica(site: Site) -> AsyncGenerator[None]:
    """One replica stands still, and does not confirm anything."""
    replica = site.replicas(site.primary())[0]
    replica.send(signal.SIGSTOP)
    try:
        yield
    finally:
        replica.send(signal.SIGCONT)


async def test_writes_are_on_the_replicas(open_queue: Any, site: Site, name: str) -> None:
    """A write that has returned is on both replicas in this very moment."""
    replicas = site.replicas(site.primary())
    async with open_queue(durability=TorrelqueDurability(replicas=2)) as queue:
        for i in range(20):
            task_id = await queue.enqueue(i)
            assert all(replica.admin.hexists(queue.keys["tasks"], task_id) for replica in replicas)
            delivered, _ = await queue.dequeue(5)
            await queue.release(delivered)
            assert not any(replica.admin.hexists(queue.keys["tasks"], task_id) for replica in replicas)


async def test_each_write_says_so_when_it_is_not_durable(open_queue: Any, site: Site, name: str, pair: Pair) -> None:
    """With a replica that is silent each write is applied, and raises; claims and hand-backs do not wait for it."""
    theirs = redis.exceptions if pair.client == "redispy" else coredis.exceptions
    async with open_queue(durability=ON_TWO) as queue, open_queue() as producer:
        await producer.enqueue_many(range(4), task_ids=list("abcd"))
        held = dict(await queue.dequeue(5, max_tasks=4))
        a, b, c, d = held
        async with without_replica(site):
            for write in (
                lambda: queue.enqueue(9, task_id="e"),
                lambda: queue.enqueue_many([9], task_ids=["f"]),
                lambda: queue.extend(a),
                lambda: queue.requeue(b),
                lambda: queue.release(c),
                lambda: queue.release_many([d]),
            ):
                with pytest.raises(TorrelqueNotDurableError, match="only 1 instead of 2 replicas") as caught:
                    await write()
                assert isinstance(caught.value, TorrelqueUnknownOutcomeError)
                assert isinstance(caught.value, theirs.ResponseError)
            seen = snapshot(site.primary().admin, name)
            assert (seen.pending, set(seen.working)) == (["b", "f", "e"], {"a"}), "all of it was applied"
            with anyio.fail_after(1):
                got = await queue.dequeue(5, max_tasks=3)
            assert [task_id for task_id, _ in got] == ["e", "f", "b"]
            assert (await queue.get_task_state("a")).dequeue_count == 1
        await producer.release_many([task_id for task_id, _ in got])


async def test_a_repeat_promises_no_less(open_queue: Any, site: Site) -> None:
    """The same task again, over a connection that has written nothing, finds it there: that is no acknowledgement until
    the replicas have it."""
    async with without_replica(site):
        async with open_queue(durability=ON_TWO) as queue:
            with pytest.raises(TorrelqueNotDurableError):
                await queue.enqueue(1, task_id="once")
        async with open_queue(durability=ON_TWO) as queue:
            with pytest.raises(TorrelqueNotDurableError):
                await queue.enqueue(1, task_id="once")
    site.settle()
    async with open_queue(durability=TorrelqueDurability(replicas=2)) as queue:
        assert (await queue.enqueue(1, task_id="once")).deduplicated


async def test_a_repeat_promises_no_less_to_a_primary_that_refuses_writes(open_queue: Any, site: Site) -> None:
    """What found everything done, and could not write to have something to wait for, is no acknowledgement either; what
    did write is one, though nothing could be written after it."""
    primary = site.primary().admin
    async with without_replica(site):
        async with open_queue(durability=ON_TWO) as queue:
            with pytest.raises(TorrelqueNotDurableError):
                await queue.enqueue(1, task_id="once")
        primary.config_set("min-replicas-to-write", 3)
        try:
            async with open_queue(durability=ON_TWO) as queue:
                with pytest.raises(TorrelqueNotDurableError):
                    await queue.enqueue(1, task_id="once")
        finally:
            primary.config_set("min-replicas-to-write", 0)
    site.settle()
    async with open_queue(durability=TorrelqueDurability(replicas=2)) as queue:
        task_id, _ = await queue.dequeue(5)
        primary.config_set("maxmemory", 1)
        try:
            with pytest.raises(TorrelqueNotDurableError, match="OOM"):
                await queue.enqueue(1, task_id="once")
            await queue.release(task_id, strict=True)
        finally:
            primary.config_set("maxmemory", 0)


async def test_company_shares_the_wait(open_queue: Any, site: Site) -> None:
    """Calls that share a round trip share the wait, and each of them hears of what is lacking."""
    async with open_queue(durability=ON_TWO) as queue, without_replica(site):
        errors: list[Exception] = []

        async def write(i: int) -> None:
            try:
                await queue.enqueue(i)
            except TorrelqueNotDurableError as error:
                errors.append(error)

        began = time.monotonic()
        async with anyio.create_task_group() as group:
            for i in range(100):
                group.start_soon(write, i)
        assert len(errors) == 100
        assert time.monotonic() - began < 100 * ON_TWO.timeout / 10


async def test_on_disk(open_queue: Any, site: Site) -> None:
    """With fsync a write returns once it is on disk: within a second where that is written each second, and not at all
    where nobody writes it."""
    if site.kind != "valkey":
        pytest.skip("Redis 7.0 has no WAITAOF")
    primary = site.primary().admin
    primary.config_set("appendonly", "yes")
    primary.config_set("appendfsync", "always")
    async with open_queue(durability=ON_DISK) as queue:
        began = time.monotonic()
        await queue.enqueue(1)
        assert time.monotonic() - began < 1
        primary.config_set("appendfsync", "everysec")
        await queue.enqueue(2)
    primary.config_set("appendfsync", "no")
    async with open_queue(durability=TorrelqueDurability(fsync=True, timeout=0.1)) as queue:
        with pytest.raises(TorrelqueNotDurableError, match="disks"):
            for _ in range(3):  # the thread that writes may just be at it
                await queue.enqueue(3)


async def test_on_the_disks_of_replicas(open_queue: Any, site: Site) -> None:
    """With fsync and replicas it is their disks that count."""
    if site.kind != "valkey":
        pytest.skip("Redis 7.0 has no WAITAOF")
    for node in site.nodes[:1]:
        node.admin.config_set("appendonly", "yes")
    primary = site.primary()
    primary.admin.config_set("appendonly", "yes")
    wanted = TorrelqueDurability(replicas=1, fsync=True, timeout=0.3)
    async with open_queue(durability=wanted) as queue:
        with pytest.raises(TorrelqueNotDurableError):
            await queue.enqueue(1)
    for replica in site.replicas(primary):
        replica.admin.config_set("appendonly", "yes")
    site.settle()
    async with open_queue(durability=TorrelqueDurability(replicas=1, fsync=True, timeout=5)) as queue:
        await queue.enqueue(2)


async def test_a_server_that_cannot(open_queue: Any, site: Site, name: str) -> None:
    """Where the disk cannot be waited for, each call says so and names the way out; nothing was written."""
    why = "unknown command" if site.kind == "redis" else "appendonly"
    async with open_queue(durability=ON_DISK) as queue:
        with pytest.raises(TorrelqueStorageError, match=f"{why}.*Redis 7.2 or Valkey with appendonly yes"):
            await queue.enqueue(1)
    assert site.primary().admin.keys(f"{name}:*") == []


async def test_nothing_is_waited_for_by_default(open_queue: Any, site: Site) -> None:
    """The default sends no command more, and leaves no key."""
    admin = site.primary().admin
    admin.config_resetstat()
    async with open_queue() as queue:
        await queue.enqueue(1)
        await queue.release((await queue.dequeue(5))[0])
    assert not {"cmdstat_wait", "cmdstat_waitaof", "cmdstat_set"} & set(admin.info("commandstats"))


def test_bad_durability() -> None:
    """What cannot be meant is refused before any connection is made."""
    for bad in ({"replicas": -1}, {"replicas": 101}, {"timeout": 0}, {"timeout": math.nan}, {"timeout": 11}):
        with pytest.raises(TorrelqueValueError, match=next(iter(bad))):
            TorrelqueDurability(**bad)
    for junk in ({"replicas": "1"}, {"replicas": True}, {"replicas": 1.0}, {"fsync": 1}, {"timeout": "1"}):
        with pytest.raises(TorrelqueTypeError, match=next(iter(junk))):
            TorrelqueDurability(**junk)
    for none in (None, "disk", 1):
        with pytest.raises(TorrelqueTypeError, match="durability"):
            Torrelque.from_url("redis://localhost", durability=none)
