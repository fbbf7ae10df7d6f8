"""The server dies, loses its clients or its scripts, stands still, is full or refuses: the queue carries on."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from redis import Redis
from support import Pair, Server, keyspace, snapshot, wait_until
from support.checkpoints import until
from support.outages import CLIENT_ERRORS, open_restartable

from torrelque import (
    Torrelque,
    TorrelqueFullError,
    TorrelqueLookupError,
    TorrelqueRedisError,
    TorrelqueTaskId,
    TorrelqueTaskStatus,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
)

pytestmark = [
    pytest.mark.anyio,
    # coredis forgets to close the streams of a connection that it could not open.
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
]


class Work:
    """Producers and consumers who go on through any failure, and what they were told."""

    def __init__(self, queue: Torrelque, client_error: type[Exception]) -> None:
        self.queue = queue
        self.client_error = client_error
        #: The ids that were surely enqueued, and those that were surely not.
        self.enqueued: set[str] = set()
        self.refused: set[str] = set()
        self.released: set[str] = set()
        self.errors: list[TorrelqueRedisError] = []
        self.failed = {"produce": 0, "consume": 0}

    async def failing(self, who: str, error: TorrelqueRedisError) -> None:
        """Take note of an error, which users of the client alone would have caught too."""
        assert isinstance(error, self.client_error)
        assert isinstance(error, TorrelqueUnavailableError | TorrelqueUnknownOutcomeError)
        assert isinstance(error.__cause__, Exception)
        self.errors.append(error)
        self.failed[who] += 1
        await anyio.sleep(0.01)

    async def produce(self, prefix: str, number: int) -> None:
        """Enqueue tasks, each once more under another id when it was surely not."""
        for i in range(number):
            attempt, uncertain = 0, False
            while (task_id := f"{prefix}-{i}-{attempt}") not in self.enqueued:
                try:
                    await self.queue.enqueue({"nonce": task_id}, task_id=task_id, task_timeout=1)
                    self.enqueued.add(task_id)
                except TorrelqueUnknownOutcomeError as error:
                    uncertain = True
                    await self.failing("produce", error)
                except TorrelqueRedisError as error:
                    if not uncertain:
                        self.refused.add(task_id)
                        attempt += 1
                    await self.failing("produce", error)

    async def consume(self) -> None:
        """Release what comes, with a result."""
        while True:
            try:
                task_id, task = await self.queue.dequeue()
            except TorrelqueRedisError as error:
                await self.failing("consume", error)
                continue
            assert task == {"nonce": task_id}
            assert task_id not in self.released, "a release was undone"
            await self.release(task_id)

    async def release(self, task_id: TorrelqueTaskId) -> None:
        """Release a task, again when it is not known to be done."""
        uncertain = False
        while True:
            try:
                await self.queue.release(task_id, result=task_id, strict=True)
            except TorrelqueUnknownOutcomeError as error:
                uncertain = True
                await self.failing("consume", error)
            except TorrelqueRedisError as error:
                await self.failing("consume", error)
            except TorrelqueLookupError:
                # It is done, or the lease has ended meanwhile.
                assert uncertain or self.errors
                return
            else:
                self.released.add(task_id)
                return

    async def check(self, admin: Redis, name: str) -> None:
        """Assert that no word was broken, when all is delivered."""

        async def final(task_id: str) -> bool:
            state = await self.queue.get_task_state(task_id)
            return state.status is TorrelqueTaskStatus.COMPLETED and state.result == task_id

        await until(lambda: not admin.hlen(f"{name}:tasks"), 15)
        assert not self.refused & self.enqueued
        for task_id in self.enqueued | self.released:
            assert await final(task_id)
        for task_id in self.refused:
            assert not admin.exists(f"{name}:task:{task_id}"), "what was said not to be applied was"


def binary(server: Server) -> str:
    """Name the program that *server* runs, to start another."""
    return str(server.admin.info("server")["executable"])


def blocked(admin: Redis) -> list[Any]:
    """List the connections that wait for tasks."""
    return [client for client in admin.client_list() if client["cmd"] == "blmove" and "b" in client["flags"]]


@asynccontextmanager
async def setting(admin: Redis, **settings: Any) -> AsyncGenerator[None]:
    """Change the settings of the server for a while."""
    names = {name.replace("_", "-"): value for name, value in settings.items()}
    before = {name: admin.config_get(name)[name] for name in names}
    for name, value in names.items():
        admin.config_set(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            admin.config_set(name, value)


async def refuses(queue: Torrelque, pair: Pair) -> None:
    """See that callers are told that nothing was done."""
    for call in (queue.enqueue("x"), queue.enqueue_many(["x"])):
        with pytest.raises(TorrelqueUnavailableError) as caught:
            await call
        assert isinstance(caught.value, CLIENT_ERRORS[pair.client])
    assert (await queue.get_queue_stats()).tasks == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def test_killed_and_started_again_under_load(
    open_queue: Any, server: Server, name: str, pair: Pair, tmp_path: Path, record_property: Any
) -> None:
    """Redis is killed amid traffic and comes back: nothing that was acknowledged is lost, or undone."""
    async with (
        open_restartable(tmp_path, free_port(), server=binary(server)) as own,
        open_queue(client_options={"url": own.url}) as queue,
        anyio.create_task_group() as group,
    ):
        work = Work(queue, CLIENT_ERRORS[pair.client])
        async with anyio.create_task_group() as producers:
            for i in range(3):
                producers.start_soon(work.produce, f"p{i}", 150)
                group.start_soon(work.consume)
            await until(lambda: len(work.released) > 50)
            own.kill()
            await until(lambda: all(work.failed.values()))
            await own.start()
            started, before = anyio.current_time(), len(work.released)
            await until(lambda: len(work.released) > before)
            record_property("resumed", anyio.current_time() - started)
        await work.check(own.admin, name)
        group.cancel_scope.cancel()


async def test_those_who_wait_go_on_after_a_restart(
    open_queue: Any, server: Server, name: str, pair: Pair, tmp_path: Path, caplog: Any, record_property: Any
) -> None:
    """A consumer, a watch and a scheduled sweep at rest find a restarted Redis by themselves, and say so once."""
    caplog.set_level(logging.INFO, "torrelque")

    def said(what: str) -> list[str]:
        return [record.levelname for record in caplog.records if record.getMessage().startswith(what)]

    whats = ("Waiting for tasks", "The subscription to Redis", "Sweep")
    async with (
        open_restartable(tmp_path, free_port(), server=binary(server)) as own,
        open_queue(client_options={"url": own.url}) as queue,
        anyio.create_task_group() as group,
    ):
        work, seen = Work(queue, CLIENT_ERRORS[pair.client]), []
        watched = await queue.enqueue({"nonce": "w"}, task_id="w", delay=1000)

        async def watch() -> None:
            async for state in queue.watch(watched):
                seen.append(state.status.name)  # noqa: PERF401 - the list is read meanwhile

        group.start_soon(watch)
        group.start_soon(work.consume)
        queue.schedule_sweep(0.2)
        await until(lambda: seen and blocked(own.admin))
        own.kill()
        await until(lambda: all(said(what) for what in whats))
        await own.start()
        started = anyio.current_time()
        await until(lambda: blocked(own.admin))
        record_property("resumed", anyio.current_time() - started)
        # It is due at the next sweep, and that wakes the consumer, which wakes the watch.
        own.admin.zadd(f"{name}:delayed", {watched: 1})
        await until(lambda: "COMPLETED" in seen)
        assert work.released == {"w"}
        await until(lambda: all(len(said(what)) >= 2 for what in whats))
        group.cancel_scope.cancel()
    for what in whats:
        # Once each way. A second connection that the same outage broke may be met later: then once each way again.
        levels = said(what)
        assert levels[:2] == ["WARNING", "INFO"]
        assert all(one != other for one, other in pairwise(levels)), f"{what}: {levels}"


@pytest.mark.parametrize("kind", ["normal", "pubsub"])
async def test_connections_killed_amid_traffic(open_queue: Any, admin: Redis, name: str, pair: Pair, kind: str) -> None:
    """All connections are cut again and again: who calls is told, and nothing is lost."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        work = Work(queue, CLIENT_ERRORS[pair.client])
        queue.schedule_sweep(0.1)
        async with anyio.create_task_group() as producers:
            for i in range(3):
                producers.start_soon(work.produce, f"p{i}", 100)
                group.start_soon(work.consume)
            for _ in range(10):
                released = len(work.released)
                admin.client_kill_filter(_type=kind, skipme=True)
                await until(lambda released=released: len(work.released) >= min(released + 5, 300))
        await work.check(admin, name)
        group.cancel_scope.cancel()


async def test_scripts_flushed_amid_traffic(open_queue: Any, admin: Redis, name: str, pair: Pair) -> None:
    """A server that forgets its scripts all the time is told them again: nobody notices."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        work = Work(queue, CLIENT_ERRORS[pair.client])
        async with anyio.create_task_group() as producers:
            for i in range(3):
                producers.start_soon(work.produce, f"p{i}", 50)
                group.start_soon(work.consume)
            while len(work.released) < 150:
                admin.script_flush()
                await anyio.sleep(0.001)
        assert work.errors == []
        await work.check(admin, name)
        group.cancel_scope.cancel()


@pytest.mark.parametrize("command", [("CLIENT", "PAUSE", 700), ("DEBUG", "SLEEP", 0.7)], ids=lambda command: command[1])
async def test_server_stands_still_amid_traffic(
    open_queue: Any, server: Server, admin: Redis, name: str, pair: Pair, command: tuple[Any, ...]
) -> None:
    """A server that answers nobody for a while costs time, and nothing else."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        work = Work(queue, CLIENT_ERRORS[pair.client])
        async with anyio.create_task_group() as producers:
            for i in range(3):
                producers.start_soon(work.produce, f"p{i}", 50)
                group.start_soon(work.consume)
            await until(lambda: len(work.released) > 20)
            with Redis.from_url(server.url) as another:
                await anyio.to_thread.run_sync(lambda: another.execute_command(*command))
        assert work.errors == []
        await anyio.to_thread.run_sync(admin.ping)
        await work.check(admin, name)
        group.cancel_scope.cancel()


async def test_full_server_is_drained(open_queue: Any, admin: Redis, name: str, pair: Pair) -> None:
    """With no memory left nothing comes in, nothing is half written, and all that is there can be worked off."""
    got: list[Any] = []

    async def wait(queue: Torrelque) -> None:
        got.append(await queue.dequeue(20))

    async with open_queue() as queue:
        await queue.enqueue_many(["released", "with result", "requeued", "swept", "extended"])
        async with setting(admin, maxmemory=1):
            before = keyspace(admin)
            for refused in (queue.enqueue("x"), queue.enqueue("x", delay=1), queue.enqueue_many(["x", "y"])):
                with pytest.raises(TorrelqueFullError) as caught:
                    await refused
                assert isinstance(caught.value, CLIENT_ERRORS[pair.client])
            assert keyspace(admin) == before
            held = {task: task_id for task_id, task in await queue.dequeue(5, max_tasks=5)}
            await queue.release(held["released"], strict=True)
            await queue.release(held["with result"], result="r", strict=True)
            assert (await queue.get_task_state(held["with result"])).result == "r"
            assert await queue.extend(held["extended"], 1000) > snapshot(admin, name).now + 900
            await queue.extend(held["swept"], 0.001)
            await until(lambda: (snap := snapshot(admin, name)).working[held["swept"]] < snap.now)
            assert (await queue.sweep())[0] == 1
            assert await queue.dequeue(5) == (held["swept"], "swept")
            async with anyio.create_task_group() as group:
                group.start_soon(wait, queue)
                await anyio.wait_all_tasks_blocked()
                await queue.requeue(held["requeued"], 0.1, strict=True)
            assert got == [(held["requeued"], "requeued")]
        snapshot(admin, name).check()


async def test_refused_wait_is_tried_with_pauses(open_queue: Any, admin: Redis) -> None:
    """While the server refuses to let anybody wait, a waiting dequeue looks again ever more rarely."""

    def looks() -> int:
        return int(admin.info("commandstats")["cmdstat_evalsha"]["calls"])

    async with open_queue() as queue, anyio.create_task_group() as group:
        await queue.get_queue_stats()
        async with setting(admin, maxmemory=1):
            before = looks()
            group.start_soon(lambda: queue.dequeue())
            await until(lambda: looks() > before)
            await anyio.sleep(1)
            assert before < looks() < before + 20
            group.cancel_scope.cancel()


async def test_read_only_replica(open_queue: Any, admin: Redis, name: str, pair: Pair) -> None:
    """A server that was made a replica refuses all, and is served again when it is the primary again."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        work = Work(queue, CLIENT_ERRORS[pair.client])
        group.start_soon(work.consume)
        queue.schedule_sweep(0.05)
        await until(lambda: blocked(admin))
        try:
            admin.replicaof("127.0.0.1", 1)
            await refuses(queue, pair)
        finally:
            admin.replicaof("NO", "ONE")
        await queue.enqueue({"nonce": "t"}, task_id="t")
        await until(lambda: work.released)
        await work.check(admin, name)
        group.cancel_scope.cancel()


async def test_too_few_replicas(open_queue: Any, admin: Redis, pair: Pair) -> None:
    """A primary that lost its replicas refuses writes, and is served again when it allows them."""
    async with open_queue() as queue:
        async with setting(admin, min_replicas_to_write=1):
            await refuses(queue, pair)
        await queue.enqueue("t")
        await queue.dequeue(5)


@contextmanager
def unable_to_save(admin: Redis) -> Iterator[None]:
    """Put a folder where the server would put its snapshot, and have it fail."""
    place = Path(admin.config_get("dir")["dir"], admin.config_get("dbfilename")["dbfilename"])

    def saved(status: str) -> bool:
        info = admin.info("persistence")
        return not info["rdb_bgsave_in_progress"] and info["rdb_last_bgsave_status"] == status

    place.mkdir()
    try:
        admin.bgsave()
        wait_until(lambda: saved("err"))
        yield
    finally:
        place.rmdir()
        admin.bgsave()
        wait_until(lambda: saved("ok"))
        place.unlink()


async def test_disk_failure(open_queue: Any, admin: Redis, name: str, pair: Pair) -> None:
    """A server that cannot save refuses writes (MISCONF), also to who waits and sweeps: all go on when it can."""
    async with open_queue() as queue, setting(admin, save="3600 1"), anyio.create_task_group() as group:
        work = Work(queue, CLIENT_ERRORS[pair.client])
        group.start_soon(work.consume)
        queue.schedule_sweep(0.05)
        (waiting,) = await until(lambda: blocked(admin))
        with unable_to_save(admin):
            await refuses(queue, pair)
            # It was let wait before; now it asks anew.
            admin.client_kill_filter(_id=waiting["id"])
            await until(lambda: work.failed["consume"])
        await queue.enqueue({"nonce": "t"}, task_id="t", delay=0.1)
        await until(lambda: work.released)
        await work.check(admin, name)
        group.cancel_scope.cancel()


async def test_blocked_connection_killed_again_and_again(open_queue: Any, admin: Redis, pair: Pair) -> None:
    """A waiting dequeue whose connection is cut each time gets its task each time; no pool runs dry."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        send, receive = anyio.create_memory_object_stream[Any](0)

        async def consume() -> None:
            while True:
                task_id, task = await queue.dequeue()
                await queue.release(task_id, strict=True)
                await send.send(task)

        group.start_soon(consume)
        baseline = None
        for i in range(100):
            (client,) = await until(lambda: blocked(admin))
            baseline = baseline or len(admin.client_list())
            admin.client_kill_filter(_id=client["id"])
            await queue.enqueue(i)
            with anyio.fail_after(10):
                assert await receive.receive() == i
        await until(lambda: len(admin.client_list()) == baseline)
        group.cancel_scope.cancel()
        send.close()
        receive.close()
