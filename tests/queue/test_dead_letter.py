"""What is given up: when, by whom and once; where it stays, and how it comes back."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis import Redis
from support import Pair, Server, keyspace, snapshot

from torrelque import (
    Torrelque,
    TorrelqueDecodeError,
    TorrelqueLeaseLostError,
    TorrelqueLookupError,
    TorrelqueNotWorkingError,
    TorrelqueTaskSerialiser,
    TorrelqueTaskStatus,
    TorrelqueTimeoutError,
)

pytestmark = pytest.mark.anyio

TESTS = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent)))}
REASON = "Not delivered again: max_attempts is 2"
REJECTED = TorrelqueTaskStatus.REJECTED
BYTES = TorrelqueTaskSerialiser(lambda value: value if isinstance(value, bytes) else value.encode(), bytes)


async def fail_twice(queue: Torrelque, task_id: str) -> None:
    """Have a task delivered twice, and requeued each time."""
    for attempt in (1, 2):
        held, _ = await queue.dequeue(5)
        assert (held, held.dequeue_count) == (task_id, attempt)
        await queue.requeue(held, strict=True)


async def nothing_comes(queue: Torrelque, timeout: float = 0) -> None:
    with pytest.raises(TorrelqueTimeoutError):
        await queue.dequeue(timeout)


async def test_rejected_after_so_many_deliveries(open_queue: Any, admin: Redis, name: str, caplog: Any) -> None:
    """A task that fails again and again ends as rejected, with the reason, for as long as results are kept."""
    async with open_queue() as queue:
        queue.max_attempts, queue.result_ttl = 2, 50
        await queue.enqueue("fails", task_id="a")
        await fail_twice(queue, "a")
        assert queue.given_up == 0
        with caplog.at_level(logging.WARNING):
            await nothing_comes(queue)
        assert queue.given_up == 1
        assert [record.message for record in caplog.records] == [
            "Gave up task b'a': it was delivered as often as max_attempts allows"
        ]
        state = await queue.get_task_state("a")
        assert (state.status, state.result, state.dequeue_count) == (REJECTED, REASON, 2)
        assert state.release_time >= state.last_dequeue_time
        assert 40 < admin.ttl(f"{name}:task:a") <= 50
        assert admin.keys(f"{name}:*") == [f"{name}:task:a".encode()]
        assert (await queue.enqueue("again", task_id="a")).deduplicated
        assert await queue.dead_letters() == []


async def test_kept_as_a_dead_letter(open_queue: Any, admin: Redis, name: str) -> None:
    """As a dead letter it keeps its payload and its past, is no live task any more, and does not expire."""
    async with open_queue() as queue:
        queue.max_attempts, queue.dead_letter = 2, True
        await queue.enqueue({"n": 1}, task_id="a")
        await fail_twice(queue, "a")
        await nothing_comes(queue)
        state = await queue.get_task_state("a")
        (letter,) = await queue.dead_letters()
        assert (state.status, state.result) == (REJECTED, REASON)
        assert letter[:9] == (
            "a", {"n": 1}, REASON, 2, 2, state.enqueue_time, state.last_dequeue_time, state.last_requeue_time,
            state.release_time,
        )  # fmt: skip
        assert await queue.count_dead_letters() == 1
        assert sum(await queue.get_queue_stats()) == 0
        assert await queue.sweep() == (0, 0, 0)
        assert (await queue.enqueue("again", task_id="a")).deduplicated
        for settle in (queue.release, queue.requeue):
            with pytest.raises(TorrelqueNotWorkingError):
                await settle("a", strict=True)
    assert {admin.ttl(key) for key in admin.keys(f"{name}:*")} == {-1}
    snapshot(admin, name).check()


async def test_deliveries_that_ended_with_a_crash_count(open_queue: Any, admin: Redis, name: str) -> None:
    """A task whose leases run out is given up as one that is requeued, and its neighbour is not."""
    async with open_queue() as queue:
        queue.max_attempts, queue.dead_letter = 2, True
        await queue.enqueue("kills", task_id="a", task_timeout=0.02)
        for _ in range(2):
            await queue.dequeue(5)
        await queue.enqueue("fine", task_id="b", delay=1)
        held, _ = await queue.dequeue(5)
        assert (held, held.dequeue_count) == ("b", 1)
        assert [letter.task_id for letter in await queue.dead_letters()] == ["a"]


async def test_a_hand_back_does_not_count(open_queue: Any) -> None:
    """A delivery that nobody saw is taken back, so it uses up no attempt."""
    async with open_queue() as queue:
        queue.max_attempts = 1
        await queue.enqueue("t")
        got = None
        for _ in range(20):
            with anyio.CancelScope() as scope:
                scope.cancel()
                got = await queue.dequeue()
            if got is not None:  # it came before the scope was noticed to be cancelled
                break
        held, _ = got or await queue.dequeue(5)
        assert held.dequeue_count == 1


async def test_who_waits_is_not_disturbed(open_queue: Any) -> None:
    """A consumer that blocks while a task is given up goes on waiting, and gets the next one."""
    async with open_queue() as queue, open_queue() as other:
        queue.max_attempts, queue.dead_letter = 1, True
        await queue.enqueue("fails", task_id="a")
        held, _ = await queue.dequeue(5)
        async with anyio.create_task_group() as group:

            async def consume() -> None:
                got.append(await queue.dequeue(10))

            got: list[Any] = []
            group.start_soon(consume)
            await other.requeue(held, 0.05)
            while not await other.count_dead_letters():
                await anyio.sleep(0.005)
            assert got == []
            await other.enqueue("fine", task_id="b")
        assert got == [("b", "fine")]


async def test_watchers_see_the_end(open_queue: Any, admin: Redis) -> None:
    """Whoever watches a task is told that it was given up."""
    admin.config_set("notify-keyspace-events", "KA")
    async with open_queue() as queue:
        queue.max_attempts, queue.dead_letter = 1, True
        await queue.enqueue("fails", task_id="a")
        held, _ = await queue.dequeue(5)
        seen: list[Any] = []
        begun = anyio.Event()

        async def watch() -> None:
            async for state in queue.watch("a", timeout=10):
                seen.append((state.status, state.result))
                begun.set()

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            await begun.wait()
            await queue.requeue(held)
            await nothing_comes(queue)
        assert seen[-1] == (REJECTED, "Not delivered again: max_attempts is 1")


async def test_the_limit_is_the_consumers(open_queue: Any) -> None:
    """Who has no limit delivers on; one who has gives up, and a higher limit delivers what a lower one would not."""
    async with open_queue() as queue, open_queue() as strict:
        strict.max_attempts = 2
        await queue.enqueue("fails", task_id="a")
        await fail_twice(queue, "a")
        held, _ = await queue.dequeue(5)
        assert held.dequeue_count == 3
        await queue.requeue(held)
        strict.max_attempts = 4
        held, _ = await strict.dequeue(5)
        assert held.dequeue_count == 4
        await queue.requeue(held)
        await nothing_comes(strict)
        assert (await queue.get_task_state("a")).result == "Not delivered again: max_attempts is 4"


async def test_given_up_once(open_queue: Any, admin: Redis, name: str) -> None:
    """Many consumers that claim at once give each task up once, and lose none of the others."""
    async with open_queue() as queue:
        queue.max_attempts, queue.dead_letter = 1, True
        bad = await queue.enqueue_many(range(700))
        await queue.dequeue(0, max_tasks=1000)
        admin.zadd(f"{name}:working", dict.fromkeys(bad, 1))
        await queue.sweep()
        good = await queue.enqueue_many(range(300))
        got: list[str] = []

        async def consume() -> None:
            while True:
                held, _ = await queue.dequeue()
                got.append(held)
                if len(got) == len(good):
                    group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(consume)
        assert sorted(got) == sorted(good)
        snap = snapshot(admin, name)
        snap.check()
        assert sorted(snap.dead) == sorted(bad)


async def test_rejected_into_the_dead_letters(open_queue: Any) -> None:
    """Its holder may end a task as a dead letter, with a reason or without; nobody else may."""
    async with open_queue() as queue:
        await queue.enqueue_many("abc", task_ids=list("abc"))
        first, second, third = [held for held, _ in await queue.dequeue(0, max_tasks=3)]
        await queue.release(first, status=REJECTED, dead_letter=True, result={"why": 1}, strict=True)
        await queue.release(second, status=REJECTED, dead_letter=True, strict=True)
        await queue.requeue(third)
        again, _ = await queue.dequeue(5)
        with pytest.raises(TorrelqueLeaseLostError):
            await queue.release(third, status=REJECTED, dead_letter=True, strict=True)
        with pytest.raises(TorrelqueNotWorkingError):
            await queue.release(first, status=REJECTED, dead_letter=True, strict=True)
        with pytest.raises(TorrelqueLookupError):
            await queue.release("x", status=REJECTED, dead_letter=True, strict=True)
        assert [(letter.task, letter.reason) for letter in await queue.dead_letters()] == [
            ("a", {"why": 1}),
            ("b", None),
        ]
        await queue.release(again, strict=True)


async def test_requeued_with_new_attempts(open_queue: Any, admin: Redis, name: str) -> None:
    """A dead letter that is requeued has all attempts before it; its numbers grow on, so stale owners stay fenced."""
    async with open_queue() as queue:
        queue.max_attempts, queue.dead_letter = 2, True
        await queue.enqueue("t", task_id="a")
        old, _ = await queue.dequeue(5)
        await queue.requeue(old)
        await queue.requeue((await queue.dequeue(5))[0])
        await nothing_comes(queue)
        assert await queue.requeue_dead_letters(["a"]) == 1
        state = await queue.get_task_state("a")
        assert (state.status, state.result, state.release_time) == (TorrelqueTaskStatus.PENDING, None, None)
        for count in (3, 4):
            held, task = await queue.dequeue(5)
            assert (held, held.dequeue_count, task) == ("a", count, "t")
            with pytest.raises(TorrelqueLeaseLostError):
                await queue.release(old, strict=True)
            await queue.requeue(held)
        await nothing_comes(queue)
        assert [letter.dequeue_count for letter in await queue.dead_letters()] == [4]
        assert await queue.requeue_dead_letters() == 1
        held, _ = await queue.dequeue(5)
        await queue.release(held, strict=True)
    assert admin.keys(f"{name}:*") == []


async def bury(queue: Torrelque, count: int) -> list[str]:
    """Make dead letters, one after the other."""
    ids = [f"{i:04}" for i in range(count)]
    await queue.enqueue_many(range(count), task_ids=ids)
    queue.max_attempts, queue.dead_letter = 1, True
    for _ in range(0, count, 1000):
        for held, _ in await queue.dequeue(0, max_tasks=1000):
            await queue.release(held, status=REJECTED, dead_letter=True)
    return ids


async def test_many_are_read_in_pages(open_queue: Any) -> None:
    """Pages of any size show each letter once, in the order of the deaths."""
    async with open_queue() as queue:
        ids = await bury(queue, 620)
        assert [letter.task_id for letter in await queue.dead_letters(10**9)] == ids
        assert len(await queue.dead_letters()) == 100
        for size in (7, 500, 501, 620, 1000):
            read: list[str] = []
            page = await queue.dead_letters(size)
            while page:
                read += [letter.task_id for letter in page]
                page = await queue.dead_letters(size, after=page[-1].cursor)
            assert read == ids


async def test_a_page_goes_on_behind_what_has_gone(open_queue: Any) -> None:
    """Requeueing what was just read makes a reader miss none and read none twice."""
    async with open_queue() as queue:
        ids = await bury(queue, 20)
        read: list[str] = []
        page = await queue.dead_letters(3)
        while page:
            read += [letter.task_id for letter in page]
            await queue.requeue_dead_letters(letter.task_id for letter in page)
            page = await queue.dead_letters(3, after=page[-1].cursor)
        assert read == ids
        assert (await queue.get_queue_stats()).pending == 20


@pytest.mark.parametrize(("payload", "reason"), [(1_500_000, 0), (0, 1_500_000), (750_000, 750_000)])
async def test_large_pages(open_queue: Any, payload: int, reason: int) -> None:
    """Payloads and reasons of more than one answer come all the same, and no more bytes than are asked for, but always
    one letter."""
    async with open_queue() as queue:
        await queue.enqueue_many(["x" * payload] * 5, task_ids=list("abcde"))
        for _ in range(5):
            task_id, _body = await queue.dequeue(5)
            await queue.release(task_id, result="y" * reason, status=REJECTED, dead_letter=True)
        assert [letter.task_id for letter in await queue.dead_letters()] == list("abcde")
        for room, count in ((1, 1), (3_100_000, 2), (10**9, 5)):
            assert [letter.task_id for letter in await queue.dead_letters(max_bytes=room)] == list("abcde")[:count]
        assert await queue.requeue_dead_letters() == 5
        assert (await queue.get_queue_stats()).pending == 5


async def test_all_or_some_are_requeued_or_purged(open_queue: Any, admin: Redis, name: str) -> None:
    """More than one script takes are all meant, or exactly those that are named; others do not count."""
    async with open_queue() as queue:
        ids = await bury(queue, 700)
        assert await queue.purge_dead_letters(ids[:310]) == 310
        assert await queue.purge_dead_letters(ids[:310]) == 0
        assert await queue.requeue_dead_letters([*ids[:400], "x", ids[399]]) == 90
        assert await queue.requeue_dead_letters([]) == 0
        assert await queue.purge_dead_letters(iter([])) == 0
        assert await queue.requeue_dead_letters() == 300
        assert await queue.requeue_dead_letters() == 0
        queue.max_attempts = None
        got = [task_id for task_id, _ in await queue.dequeue(0, max_tasks=1000)]
        assert got == ids[310:]
        for held in got:
            await queue.release(held, status=REJECTED, dead_letter=True, result="r")
        assert await queue.purge_dead_letters() == 390
    assert admin.keys(f"{name}:*") == []


async def test_letters_without_a_payload_hide_no_others(open_queue: Any, admin: Redis, name: str) -> None:
    """What a foreign hand has robbed of its payload goes for good, and all others are requeued."""
    async with open_queue() as queue:
        ids = await bury(queue, 400)
        admin.hdel(f"{name}:dead:payloads", *ids[5:10])
        assert await queue.requeue_dead_letters() == 395
        assert await queue.count_dead_letters() == 0


async def test_all_are_those_at_the_beginning(open_queue: Any) -> None:
    """Requeueing all ends although a consumer kills them again as fast as they come."""
    async with open_queue() as queue:
        await bury(queue, 400)
        killed = 0

        async def kill() -> None:
            nonlocal killed
            while True:
                for held, _ in await queue.dequeue(max_tasks=100):
                    await queue.release(held, status=REJECTED, dead_letter=True)
                    killed += 1

        async with anyio.create_task_group() as group:
            group.start_soon(kill)
            with anyio.fail_after(20):
                assert await queue.requeue_dead_letters() == 400
                while killed < 400:
                    await anyio.sleep(0.005)
            group.cancel_scope.cancel()
        assert await queue.count_dead_letters() == 400


@pytest.mark.parametrize("what", ["requeue", "purge"])
async def test_letters_of_a_clock_that_was_put_back(open_queue: Any, admin: Redis, name: str, what: str) -> None:
    """Those that died before the clock of Redis was put back count among all, and before those that die afterwards."""
    async with open_queue() as queue:
        ids = await bury(queue, 200)
        for task_id in ids:
            admin.zincrby(f"{name}:dead", 3600, task_id)
        *_, last = await queue.dead_letters(200)
        await queue.enqueue_many("ab", task_ids=["later-b", "later-a"])
        await queue.release_many(
            [held for held, _ in await queue.dequeue(0, max_tasks=2)], status=REJECTED, dead_letter=True
        )
        assert [letter.task_id for letter in await queue.dead_letters(after=last.cursor)] == ["later-b", "later-a"]
        assert await (queue.requeue_dead_letters() if what == "requeue" else queue.purge_dead_letters()) == 202
        assert await queue.count_dead_letters() == 0


async def test_what_cannot_be_read_hides_nothing(open_queue: Any) -> None:
    """A payload or reason that the serialiser cannot read is shown as the error; it is requeued and purged like any."""
    async with open_queue(serialiser=BYTES) as raw, open_queue() as queue:
        queue.max_attempts, queue.dead_letter = 1, True
        await raw.enqueue_many([b"{no JSON", b'"good"'], task_ids=list("ab"))
        with pytest.raises(TorrelqueDecodeError) as caught:
            await queue.dequeue(5)
        await queue.requeue(caught.value.task_id)
        held, _ = await queue.dequeue(5)
        await raw.release(held, status=REJECTED, dead_letter=True, result=b"{nor this")
        await nothing_comes(queue)
        good, bad = await queue.dead_letters()
        assert (good.task, bad.reason) == ("good", "Not delivered again: max_attempts is 1")
        assert isinstance(bad.task, TorrelqueDecodeError)
        assert (bad.task.body, bad.task.task_id) == (b"{no JSON", "a")
        assert isinstance(good.reason, TorrelqueDecodeError)
        assert good.reason.body == b"{nor this"
        assert await queue.requeue_dead_letters(["a"]) == 1
        assert await queue.purge_dead_letters() == 1


async def test_id_that_is_no_text(open_queue: Any, admin: Redis, name: str) -> None:
    """What a foreign writer stored under any bytes is given up, read, requeued and purged like any other."""
    odd = b"\xff\x00 id\n"
    async with open_queue() as queue:
        queue.max_attempts, queue.dead_letter = 1, True
        admin.hset(f"{name}:tasks", odd, b"1")
        admin.lpush(f"{name}:pending", odd)
        held, _ = await queue.dequeue(5)
        await queue.requeue(held)
        await nothing_comes(queue)
        with pytest.raises(TorrelqueTimeoutError, match="�\x00 id"):
            await anext(queue.watch(held, timeout=0))
        (letter,) = await queue.dead_letters()
        assert letter.task == 1
        assert admin.zrange(f"{name}:dead", 0, -1) == [odd]
        assert await queue.dead_letters(after=letter.cursor) == []
        assert await queue.requeue_dead_letters() == 1
        assert await queue.requeue_dead_letters() == 0
        held, _ = await queue.dequeue(5)
        await queue.release(held, status=REJECTED, dead_letter=True, strict=True)
        assert await queue.purge_dead_letters() == 1
        with pytest.raises(TorrelqueLookupError, match="�\x00 id"):
            await anext(queue.watch(held))
    assert admin.keys(f"{name}:*") == []


async def test_a_full_server_still_gives_up(open_queue: Any, admin: Redis, name: str) -> None:
    """At maxmemory tasks are given up, rejected into the dead letters, requeued from there and purged (F11)."""
    async with open_queue() as queue:
        queue.max_attempts, queue.dead_letter = 1, True
        await queue.enqueue_many("abc", task_ids=list("abc"))
        first, second, _ = [held for held, _ in await queue.dequeue(0, max_tasks=3)]
        await queue.requeue(first)
        admin.config_set("maxmemory", 1)
        try:
            await nothing_comes(queue)
            await queue.release(second, status=REJECTED, dead_letter=True, result="r", strict=True)
            assert [letter.task_id for letter in await queue.dead_letters()] == ["a", "b"]
            assert await queue.requeue_dead_letters(["b"]) == 1
            assert (await queue.dequeue(5))[0] == "b"
            assert await queue.purge_dead_letters() == 1
        finally:
            admin.config_set("maxmemory", 0)
        snapshot(admin, name).check()


async def test_a_place_of_a_foreign_type_costs_no_task(open_queue: Any, admin: Redis, name: str) -> None:
    """Where there is no room for dead letters, a claim fails before it has taken anything."""
    async with open_queue() as queue:
        queue.max_attempts, queue.dead_letter = 1, True
        await queue.enqueue("t")
        await queue.requeue((await queue.dequeue(5))[0])
        for key in ("dead", "dead:payloads"):
            admin.set(f"{name}:{key}", "a string")
            before = keyspace(admin)
            with pytest.raises(Exception, match="WRONGTYPE"):
                await queue.dequeue(0)
            assert keyspace(admin) == before
            admin.delete(f"{name}:{key}")
        await nothing_comes(queue)
        assert await queue.count_dead_letters() == 1


async def test_poison_pill(server: Server, open_queue: Any, admin: Redis, name: str, pair: Pair) -> None:
    """A task that kills each process that works on it, with SIGKILL, ends as a dead letter, and all others are done."""
    async with open_queue() as queue:
        ids = await queue.enqueue_many(range(5))
        ids.append(await queue.enqueue("poison", task_timeout=0.3))
        ids += await queue.enqueue_many(range(5, 10))
    command = [sys.executable, "-m", "support.poisoned_process", server.url, name, str(pair)]
    killed = 0
    while True:
        done = await anyio.to_thread.run_sync(lambda: subprocess.run(command, env=ENVIRONMENT, stderr=subprocess.PIPE))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        killed += 1
    assert killed == 3
    async with open_queue() as queue:
        (letter,) = await queue.dead_letters()
        assert (letter.task_id, letter.task, letter.dequeue_count) == (ids[5], "poison", 3)
        states = [await queue.get_task_state(task_id) for task_id in ids if task_id != ids[5]]
        assert [state.result for state in states] == list(range(10))
        assert all(state.dequeue_count == 1 for state in states)
