"""Watch, arguments, client and protocol, layout and operation."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from redis import Redis
from redis.crc import key_slot
from support import snapshot
from support.peer import blocked, lapse, seed, until

from torrelque import (
    Torrelque,
    TorrelqueError,
    TorrelqueLookupError,
    TorrelqueNotWorkingError,
    TorrelqueStorageError,
    TorrelqueTaskSerialiser,
    TorrelqueTaskStatus,
    TorrelqueTimeoutError,
    TorrelqueTypeError,
    TorrelqueUnknownOutcomeError,
    TorrelqueValueError,
)
from torrelque.keys import Keys

pytestmark = pytest.mark.anyio


def listeners(admin: Redis) -> int:
    """How many connections are subscribed to something."""
    return len(admin.client_list("pubsub"))


async def test_u21_a_release_between_two_states_is_not_missed(open_queue: Any) -> None:
    """What happens while the watching program is busy with a state is the next thing it sees."""
    async with open_queue() as queue:
        for result in ("done", None):
            task_id = await queue.enqueue("x")
            got, _ = await queue.dequeue(1)
            names = []
            async for state in queue.watch(task_id, timeout=10):
                names.append(state.status.name)
                if state.status is TorrelqueTaskStatus.WORKING:
                    await queue.release(got, result=result, strict=True)
            assert names == (["WORKING", "COMPLETED"] if result else ["WORKING"])


async def test_u22_a_watch_sleeps(open_queue: Any, admin: Redis) -> None:
    """Twenty watchers of tasks that do not change share one connection, send nothing and use next to no CPU."""
    before = listeners(admin)
    async with open_queue() as queue, anyio.create_task_group() as group:
        states = []

        async def follow(task_id: str) -> None:
            async for state in queue.watch(task_id):
                states.append(state)  # noqa: PERF401  seen one by one

        for task_id in await queue.enqueue_many(range(20)):
            group.start_soon(follow, task_id)
        await until(lambda: len(states) == 20)
        assert listeners(admin) == before + 1
        commands = admin.info("stats")["total_commands_processed"]
        used = time.thread_time()
        await anyio.sleep(0.5)
        used = time.thread_time() - used
        assert admin.info("stats")["total_commands_processed"] - commands <= 1  # that is the first INFO
        assert used < 0.1
        group.cancel_scope.cancel()


async def test_u23_a_lost_notification_only_delays_a_watch(
    open_queue: Any, admin: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notifications are hints: without any the state is read anyway once in a while."""
    monkeypatch.setattr("torrelque.watching.REREAD", 0.05)
    async with open_queue() as queue:
        task_id = await queue.enqueue("x")
        watch = queue.watch(task_id, timeout=10)
        assert (await anext(watch)).status is TorrelqueTaskStatus.PENDING
        admin.config_set("notify-keyspace-events", "")
        try:
            got, _ = await queue.dequeue(1)
            assert (await anext(watch)).status is TorrelqueTaskStatus.WORKING
            await queue.release(got)
            with pytest.raises(StopAsyncIteration):
                await anext(watch)
        finally:
            admin.config_set("notify-keyspace-events", "KA")


async def test_u23_a_server_that_refuses_config_is_no_obstacle(open_client: Any, admin: Redis, name: str) -> None:
    """Managed servers do not let anyone read their settings; a watch works there all the same."""
    admin.execute_command("ACL", "SETUSER", name, "on", ">secret", "~*", "&*", "+@all", "-config")
    try:
        async with open_client(username=name, password="secret") as client, Torrelque(client, queue=name) as queue:
            task_id = await queue.enqueue("x")
            names = []
            async for state in queue.watch(task_id, timeout=10):
                names.append(state.status.name)
                if state.status is TorrelqueTaskStatus.PENDING:
                    got, _ = await queue.dequeue(1)
                else:
                    await queue.release(got)
            assert names == ["PENDING", "WORKING"]
    finally:
        admin.execute_command("ACL", "DELUSER", name)


async def test_u24_a_rejection_can_be_seen(open_queue: Any, admin: Redis, name: str) -> None:
    """Without a result everything goes at once, as documented; with one a rejection stays readable."""
    async with open_queue() as queue:
        await queue.enqueue("x")
        await queue.enqueue("y")
        first, _ = await queue.dequeue(1)
        await queue.release(first, status=TorrelqueTaskStatus.REJECTED)
        with pytest.raises(TorrelqueLookupError):
            await queue.get_task_state(first)
        second, _ = await queue.dequeue(1)
        await queue.release(second, status=TorrelqueTaskStatus.REJECTED, result="why")
        state = await queue.get_task_state(second)
        assert (state.status, state.result) == (TorrelqueTaskStatus.REJECTED, "why")
        assert admin.keys(f"{name}:*") == [f"{name}:task:{second}".encode()]


async def test_u25_the_time_to_keep_a_result_is_exact_or_refused(open_queue: Any, admin: Redis, name: str) -> None:
    """Fractions of a second count; what is no time to keep anything leaves the lease as it was."""
    async with open_queue() as queue:
        await queue.enqueue("x")
        task_id, _ = await queue.dequeue(1)
        for bad in (0, -1, math.nan, math.inf, "5", True):
            with pytest.raises((TorrelqueValueError, TorrelqueTypeError), match="result_ttl"):
                await queue.release(task_id, result=1, result_ttl=bad)
        snapshot(admin, name).check()
        assert (await queue.get_queue_stats()).working == 1
        await queue.release(task_id, result=1, result_ttl=1.5, strict=True)
        assert 1000 < admin.pttl(f"{name}:task:{task_id}") <= 1500


async def test_u25_a_delay_that_is_no_time_stores_nothing(open_queue: Any, admin: Redis, name: str) -> None:
    """A refused enqueue leaves no payload behind, and a refused requeue no other place."""
    async with open_queue() as queue:
        bad_delays = (math.nan, math.inf, -1, "5", True)
        for bad in bad_delays:
            with pytest.raises((TorrelqueValueError, TorrelqueTypeError), match="delay"):
                await queue.enqueue("x", delay=bad)
        assert not admin.keys(f"{name}:*")
        await queue.enqueue("x")
        task_id, _ = await queue.dequeue(1)
        for bad in bad_delays:
            with pytest.raises((TorrelqueValueError, TorrelqueTypeError), match="delay"):
                await queue.requeue(task_id, bad)
        snapshot(admin, name).check()
        assert (await queue.get_queue_stats()).working == 1


async def test_u26_arguments_mean_what_they_say_or_are_refused(open_queue: Any, admin: Redis, name: str) -> None:
    """0 is not taken for the default, a dequeue of 0 seconds does not wait, and no check is an assert."""
    async with open_queue() as queue:
        for bad in (0, -5, math.inf):
            with pytest.raises(TorrelqueValueError, match="task_timeout"):
                await queue.enqueue("x", task_timeout=bad)
        assert not admin.keys(f"{name}:*")
        with anyio.fail_after(5), pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0)
        for bad in (-1, math.nan, "5"):
            with pytest.raises((TorrelqueValueError, TorrelqueTypeError), match="timeout"):
                await queue.dequeue(bad)
        for bad in (0, -1, 1.5, True, "10"):
            with pytest.raises((TorrelqueValueError, TorrelqueTypeError), match="max_tasks"):
                await queue.dequeue(0, max_tasks=bad)
        await queue.enqueue("x")
        task_id, _ = await queue.dequeue(0)
        for status in (TorrelqueTaskStatus.DELAYED, None, 99, "completed"):
            with pytest.raises(TorrelqueError, match=r"^Invalid status for released task: "):
                await queue.release(task_id, status=status)
        for bad in (0, -1, math.nan, math.inf):
            with pytest.raises(TorrelqueValueError, match="interval"):
                queue.schedule_sweep(bad)


async def test_u26_a_lease_without_an_end_gets_one(open_queue: Any, admin: Redis, name: str) -> None:
    """Where another program stored an infinite lease, a sweep bounds it, so that the task comes back one day."""
    async with open_queue() as queue:
        task_id = await queue.enqueue("x")
        await queue.dequeue(1)
        admin.zadd(f"{name}:working", {task_id: "inf"})
        assert await queue.sweep() == (0, 0, 0)
        seen = snapshot(admin, name)
        assert seen.working[task_id] == pytest.approx(seen.now + 300, abs=5)


async def test_u26_a_client_that_decodes_answers_works(open_client: Any, name: str) -> None:
    """decode_responses=True changes nothing: payloads are read as bytes whatever the client does for its user."""
    async with open_client(decode_responses=True) as client, Torrelque(client, queue=name) as queue:
        task_id = await queue.enqueue({"a": "é"})
        names = []
        async for state in queue.watch(task_id, timeout=10):
            names.append(state.status.name)
            if state.status is TorrelqueTaskStatus.PENDING:
                got, task = await queue.dequeue(1)
                assert task == {"a": "é"}
            elif state.status is TorrelqueTaskStatus.WORKING:
                await queue.release(got, result="ü")
        assert names == ["PENDING", "WORKING", "COMPLETED"]
        assert (await queue.get_task_state(task_id)).result == "ü"
        assert await queue.sweep() == (0, 0, 0)


async def test_u27_a_lost_answer_makes_no_twin(open_client: Any, lossy: Any, admin: Redis, name: str) -> None:
    """A write is not sent again behind the caller's back, and repeating it under its id changes nothing."""
    async with open_client(url=lossy.url) as client, Torrelque(client, queue=name) as queue:
        await queue.get_queue_stats()
        for i in range(3):
            lossy.marker = marker = f"payload-{i}".encode()
            with pytest.raises(TorrelqueUnknownOutcomeError):
                await queue.enqueue(marker.decode(), task_id=f"order-{i}")
            assert (await queue.get_queue_stats()).tasks == i + 1
            assert await queue.enqueue(marker.decode(), task_id=f"order-{i}") == f"order-{i}"
            assert (await queue.get_queue_stats()).tasks == i + 1
        tasks = await queue.dequeue(1, max_tasks=10)
        assert [task for _, task in tasks] == ["payload-0", "payload-1", "payload-2"]
    snapshot(admin, name).check()


async def test_u28_a_dead_connection_takes_one_task_at_most(open_queue: Any, admin: Redis, name: str) -> None:
    """What a connection that died while it waited has taken comes back by two sweeps; no wait is without limit."""
    dead = admin.connection_pool.get_connection()
    with admin.monitor() as monitor:
        async with open_queue() as queue:
            dead.send_command("BLMOVE", f"{name}:pending", f"{name}:dequeueing", "RIGHT", "LEFT", 0)
            await until(lambda: blocked(admin) == 1)
            await queue.enqueue_many(["lost", "a", "b"])
            dead.disconnect()
            assert [task for _, task in await queue.dequeue(1, max_tasks=3)] == ["a", "b"]
            assert await queue.sweep() == (0, 0, 0)
            assert await queue.sweep() == (0, 0, 1)
            assert (await queue.dequeue(1))[1] == "lost"
            async with anyio.create_task_group() as group:
                group.start_soon(queue.dequeue, 20)
                await until(lambda: blocked(admin) == 1)
                group.cancel_scope.cancel()
        blocks: list[float] = []
        while len(blocks) < 2:
            words = monitor.next_command()["command"].split()
            if words[0].upper() == "BLMOVE" and words[1] == f"{name}:pending":
                blocks.append(float(words[-1]))
        assert blocks[0] == 0  # the dead one
        assert 0 < blocks[1] <= 30
    admin.connection_pool.release(dead)


async def test_u29_cancelled_watchers_leave_the_others_whole(open_queue: Any, admin: Redis) -> None:
    """Watchers that are cancelled at any moment take nothing from the one that stays, nor its connection."""
    before = listeners(admin)
    async with open_queue() as queue:
        ids = await queue.enqueue_many(range(30))
        stays: list[str] = []

        async def follow(task_id: str, names: list[str]) -> None:
            async for state in queue.watch(task_id, timeout=20):
                names.append(state.status.name)  # noqa: PERF401  seen one by one

        async with anyio.create_task_group() as group:
            group.start_soon(follow, ids[0], stays)
            await until(lambda: bool(stays))
            for i, task_id in enumerate(ids):
                async with anyio.create_task_group() as cancelled:
                    cancelled.start_soon(follow, task_id, [])
                    cancelled.start_soon(follow, ids[0], [])
                    for _ in range(i % 15):
                        await checkpoint()
                    cancelled.cancel_scope.cancel()
            assert listeners(admin) == before + 1
            got, _ = await queue.dequeue(1)
            await until(lambda: stays[-1] == "WORKING")
            await queue.release(got, result=1)
        assert stays == ["PENDING", "WORKING", "COMPLETED"]


async def test_u30_a_queue_fits_one_slot_of_a_cluster(open_client: Any, cluster: str, name: str) -> None:
    """With a name in braces every operation works on a cluster node, and a cluster client's keys get the braces."""
    for keys in (Keys("trq", cluster=True), Keys("a{trq}b"), Keys("{trq}", cluster=True)):
        spelled = [value for value in vars(keys).values() if isinstance(value, bytes)]
        assert {key_slot(key) for key in (*spelled, keys.state(b"id"))} == {key_slot(b"trq")}
    assert Keys("trq").pending == b"trq:pending"
    async with open_client(url=cluster) as client:
        async with Torrelque(client, queue=f"{{{name}}}") as queue:
            task_id = await queue.enqueue("x")
            names = []
            async for state in queue.watch(task_id, timeout=10):
                names.append(state.status.name)
                if state.status is TorrelqueTaskStatus.PENDING:
                    got, _ = await queue.dequeue(1)
                    await queue.extend(got)
                elif state.dequeue_count == 1:
                    await queue.requeue(got, strict=True)
                    got, _ = await queue.dequeue(1)
                elif state.status is TorrelqueTaskStatus.WORKING:
                    await queue.release(got, result=1, strict=True)
            assert names == ["PENDING", "WORKING", "WORKING", "COMPLETED"]
            await queue.enqueue("y", delay=0.05)
            assert (await queue.dequeue(5))[1] == "y"
            assert await queue.sweep() == (0, 0, 0)
        async with Torrelque(client, queue=name) as queue:
            with pytest.raises(TorrelqueStorageError, match=r"CROSSSLOT|same slot"):
                await queue.enqueue("x")


async def test_u31_no_script_holds_up_the_server(open_queue: Any, admin: Redis, name: str) -> None:
    """Whatever the backlog, a sweep is made of short scripts: all other users of the server go on."""
    threshold = admin.config_get("slowlog-log-slower-than")["slowlog-log-slower-than"]
    seed(admin, name, "dequeueing", 7900)
    admin.slowlog_reset()
    admin.config_set("slowlog-log-slower-than", "200000")  # a busy machine stretches the usual 2 ms
    try:
        async with open_queue() as queue:
            assert await queue.sweep() == (0, 0, 0)
            admin.config_resetstat()
            assert await queue.sweep() == (0, 0, 7900)
        assert admin.info("commandstats")["cmdstat_evalsha"]["calls"] >= 7900 / 500
        assert [entry for entry in admin.slowlog_get() if b"EVAL" in entry["command"].upper()] == []
    finally:
        admin.config_set("slowlog-log-slower-than", threshold)


async def test_u32_ids_tell_nothing_and_cannot_be_guessed(open_queue: Any) -> None:
    """An id is 128 random bits: each bit is set in about half of a thousand ids."""
    async with open_queue() as queue:
        many = await queue.enqueue_many([None] * 1000)
        single = [await queue.enqueue(None) for _ in range(1000)]
    assert len({*many, *single}) == 2000
    for ids in (many, single):
        assert all(len(task_id) == 32 for task_id in ids)
        numbers = [int(task_id, 16) for task_id in ids]
        for bit in range(128):
            assert 380 < sum(number >> bit & 1 for number in numbers) < 620


async def test_u33_payloads_go_with_their_tasks(open_queue: Any, admin: Redis, name: str) -> None:
    """However a task ends, its payload does not stay in the hash of payloads."""
    async with open_queue() as queue:
        for how in ({}, {"result": 1}, {"status": TorrelqueTaskStatus.REJECTED}):
            for delay in (None, 0.001):
                await queue.enqueue("x", delay=delay)
                task_id, _ = await queue.dequeue(5)
                lapse(admin, name, task_id)
                await queue.sweep()
                task_id, _ = await queue.dequeue(5)
                await queue.requeue(task_id)
                task_id, _ = await queue.dequeue(5)
                await queue.release(task_id, strict=True, **how)
                assert not admin.exists(f"{name}:tasks")


async def test_u34_what_cannot_be_applied_can_be_an_error(open_queue: Any, admin: Redis, name: str) -> None:
    """strict=True raises what is logged otherwise, and what the counts leave over is being handed out."""
    async with open_queue() as queue:
        for call in (queue.release("unknown", strict=True), queue.requeue("unknown", strict=True)):
            with pytest.raises(TorrelqueLookupError):
                await call
        task_id = await queue.enqueue("x")
        for call in (queue.release(task_id, strict=True), queue.requeue(task_id, strict=True)):
            with pytest.raises(TorrelqueNotWorkingError):
                await call
        seed(admin, name, "dequeueing", 1)
        tasks, *places = await queue.get_queue_stats()
        assert tasks - sum(places) == 1


async def test_u35_a_serialiser_of_ones_own_is_believed(open_queue: Any, admin: Redis, name: str) -> None:
    """JSON is the default only: any bytes go through, and a strict serialiser refuses before anything is sent."""

    def strict(value: Any) -> bytes:
        return json.dumps(value, allow_nan=False).encode()

    async with open_queue(serialiser=TorrelqueTaskSerialiser(strict, json.loads)) as queue:
        with pytest.raises(ValueError, match="Out of range float"):
            await queue.enqueue(math.nan)
    assert not admin.keys(f"{name}:*")
    async with open_queue(serialiser=TorrelqueTaskSerialiser(bytes, bytes)) as queue:
        body = bytes(range(256)) + b"\r\n\0" + b"null"
        for value in (body, b"", b"null"):
            await queue.enqueue(value)
            task_id, task = await queue.dequeue(1)
            assert task == value
            await queue.release(task_id, result=value)
            assert (await queue.get_task_state(task_id)).result == value


async def test_u37_all_waiting_dequeues_share_one_connection(open_queue: Any, admin: Redis) -> None:
    """Twenty callers wait on one connection, on asyncio and on Trio, and each gets a task."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        got: list[Any] = []

        async def dequeue() -> None:
            got.append((await queue.dequeue(10))[1])

        for _ in range(20):
            group.start_soon(dequeue)
        await until(lambda: blocked(admin) == 1)
        await anyio.wait_all_tasks_blocked()
        assert blocked(admin) == 1
        await queue.enqueue_many(range(20))
        await until(lambda: len(got) == 20)
        assert sorted(got) == list(range(20))
