"""Bad input is refused before anything is sent: the error names the parameter and is a ValueError or a TypeError."""

from __future__ import annotations

import gc
import inspect
import math
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from enum import IntEnum
from typing import Any

import anyio
import coredis
import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import PAIRS, Server, keyspace, snapshot
from support.bad_input import (
    CASES,
    HELD,
    NO_FLAGS,
    NO_NUMBERS,
    NO_STRINGS,
    PIPED,
    Case,
    Mute,
    commands,
    first,
    judge,
    refusal,
)

from torrelque import (
    Torrelque,
    TorrelqueClosedError,
    TorrelqueDecodeError,
    TorrelqueError,
    TorrelqueLookupError,
    TorrelqueNotWorkingError,
    TorrelqueRedisError,
    TorrelqueTaskId,
    TorrelqueTaskSerialiser,
    TorrelqueTaskStatus,
    TorrelqueTimeoutError,
    TorrelqueTypeError,
    TorrelqueValueError,
)

COREDIS = [pair for pair in PAIRS if pair.client == "coredis"]

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def open_pipeline(client: Any, **options: Any) -> AsyncGenerator[Any]:
    """Open a pipeline of either client; coredis executes it at the end, so redis-py's is, too."""
    async with client.pipeline(**options) as pipeline:
        yield pipeline
        if isinstance(client, redis.asyncio.Redis):
            await pipeline.execute()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.what}-{case.parameter}")
async def test_refused_before_any_command(open_queue: Any, admin: redis.Redis, case: Case) -> None:
    """No bad value of any parameter of any method reaches the server, not even as a look."""
    async with open_queue() as queue:
        await queue.get_queue_stats()
        before = commands(admin)
        for kind, values in ((ValueError, case.values), (TypeError, case.types)):
            for value in values:
                judge(await refusal(case.call, queue, value), kind, case.parameter)
        assert commands(admin) == before


@pytest.mark.parametrize("case", PIPED, ids=lambda case: f"{case.what}-{case.parameter}")
async def test_refused_before_a_pipeline_is_touched(
    open_client: Any, admin: redis.Redis, name: str, case: Case
) -> None:
    """A call that is refused leaves nothing on the user's pipeline."""
    async with open_client() as client, Torrelque(client, queue=name) as queue, open_pipeline(client) as pipeline:
        before = commands(admin)
        for kind, values in ((ValueError, case.values), (TypeError, case.types)):
            for value in values:
                judge(await refusal(case.call, queue, value, pipeline=pipeline), kind, case.parameter)
        assert list(pipeline.command_stack) == []
        assert commands(admin) == before


async def test_every_parameter_has_a_case() -> None:
    """A parameter that is added to a method is tested here, or said here to need no check."""
    unchecked = {"self", "task", "pipeline", "strict", "result", "task_status"}  # any value, or by its own test
    methods = [getattr(Torrelque, case.what) for case in CASES]
    wanted = {
        (method.__name__, parameter)
        for method in {
            *methods,
            *(value for key, value in vars(Torrelque).items() if key[0] != "_" and callable(value)),
        }
        for parameter in inspect.signature(method).parameters
        if parameter not in unchecked
    }
    assert wanted == {(case.what, case.parameter) for case in CASES} - {("enqueue_many", "task_id")}


async def test_default_that_is_bad_is_named(open_queue: Any, admin: redis.Redis) -> None:
    """A default set to nonsense is refused where it is used, like an argument."""
    async with open_queue() as queue:
        await queue.get_queue_stats()
        before = commands(admin)
        queue.task_timeout, queue.result_ttl, queue.sweep_interval = 0, "3600", math.nan
        judge(await refusal(queue.enqueue, 1), ValueError, "task_timeout")
        judge(await refusal(queue.enqueue_many, [1]), ValueError, "task_timeout")
        judge(await refusal(queue.extend, HELD), ValueError, "task_timeout")
        judge(await refusal(queue.release, HELD, result=1), TypeError, "result_ttl")
        judge(await refusal(queue.schedule_sweep), ValueError, "interval")
        judge(await refusal(queue.run_sweep), ValueError, "interval")
        queue.linger = -1
        judge(await refusal(queue.get_queue_stats), ValueError, "linger")
        assert commands(admin) == before


async def test_limit_that_is_bad_is_named(open_queue: Any, admin: redis.Redis) -> None:
    """A nonsensical limit on deliveries, or one whose reason cannot be written, is told to whoever dequeues."""
    as_it_is = TorrelqueTaskSerialiser(lambda body: body, bytes)
    async with open_queue() as queue, open_queue(serialiser=as_it_is) as picky:
        await queue.get_queue_stats()
        before = commands(admin)
        for attempts in (0, -1, 1_000_001, 10**5000):
            queue.max_attempts = attempts
            judge(await refusal(queue.dequeue, 0), ValueError, "max_attempts")
        for attempts in (*NO_NUMBERS, 1.5, math.nan):
            queue.max_attempts = attempts
            judge(await refusal(queue.dequeue, 0), TypeError, "max_attempts")
        queue.max_attempts, queue.result_ttl = 3, "3600"
        judge(await refusal(queue.dequeue, 0), TypeError, "result_ttl")
        for dead_letter in NO_FLAGS:
            queue.dead_letter = dead_letter
            judge(await refusal(queue.dequeue, 0), TypeError, "dead_letter")
        picky.max_attempts = 3
        judge(await refusal(picky.dequeue, 0), TypeError, "max_attempts")
        assert commands(admin) == before


async def test_default_that_is_bad_ends_a_dequeue_and_a_sweep(open_queue: Any) -> None:
    """A nonsensical default lease is told to whoever dequeues or sweeps, and neither hangs nor leases."""
    async with open_queue() as queue:
        await queue.enqueue(1)
        queue.task_timeout = "5 minutes"
        with anyio.fail_after(5):
            judge(await refusal(queue.dequeue, 0), TypeError, "task_timeout")
            judge(await refusal(queue.sweep), TypeError, "task_timeout")
        queue.task_timeout = 5
        task_id, _ = await queue.dequeue(0)
        assert task_id.dequeue_count == 1


async def test_edges_of_the_ranges_are_legal(open_queue: Any) -> None:
    """The smallest and the largest values that are allowed are also obeyed."""
    async with open_queue() as queue:
        for lease in (0.001, 1.5, 1, 315_360_000):
            await queue.enqueue(1, task_timeout=lease, delay=0.0)
            task_id, _ = await queue.dequeue(0)
            assert task_id.task_timeout == lease
            await queue.release(task_id)
        await queue.enqueue(1, delay=315_360_000, task_id="x" * 128)
        await queue.enqueue(1, delay=0.000_001)
        got = await queue.dequeue(10, max_tasks=10**5000)
        assert len(got) == 1
        await queue.enqueue_many(range(1001))
        assert len(await queue.dequeue(0, max_tasks=10**5000)) == 1000, "more than 1,000 is clamped"
        await queue.dequeue(0)
        await queue.release(got[0][0], result=0, result_ttl=0.001)
        with pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0.000_001)


class Few(IntEnum):
    """Whole numbers of a kind of their own."""

    ONE = 1
    THREE = 3
    TOO_MANY = 5000


async def test_counts_of_another_kind(open_queue: Any) -> None:
    """A count may be of a class below int: it counts what it is, and no task is claimed beyond it."""
    async with open_queue() as queue:
        await queue.enqueue_many(range(20))
        _, task = await queue.dequeue(0, max_tasks=Few.ONE)
        assert (task, (await queue.get_queue_stats()).working) == (0, 1)
        assert [task for _, task in await queue.dequeue(0, max_tasks=Few.THREE)] == [1, 2, 3]
        assert (await queue.get_queue_stats()).working == 4
        assert len(await queue.dequeue(0, max_tasks=Few.TOO_MANY)) == 16


@pytest.mark.parametrize(
    "task_id", ["../pending", "*", "x:y", "{x}", "é", "x" * 128, "a b", "\u202e", "%s%n", "pending"]
)
async def test_odd_but_legal_ids_are_just_unknown(open_queue: Any, admin: redis.Redis, task_id: str) -> None:
    """An id that nobody issued is an unknown task, whatever it looks like, and touches nothing."""
    async with open_queue() as queue:
        await queue.enqueue("bystander")
        before = keyspace(admin)
        for call in (queue.requeue, queue.release):
            with pytest.raises(TorrelqueLookupError):
                await call(task_id, strict=True)
        with pytest.raises(TorrelqueLookupError):
            await queue.extend(task_id)
        with pytest.raises(TorrelqueLookupError):
            await queue.get_task_state(task_id)
        with pytest.raises(TorrelqueLookupError):
            await anext(queue.watch(task_id, timeout=5))
        assert keyspace(admin) == before


# Queue, client, URL


QUEUES = [
    "",
    "x" * 129,
    "*",
    "a*",
    "a?",
    "[a]",
    "a\\b",
    "a\0",
    "a\r\nb",
    "a b",
    "\ud800",
    "\u202ea",
    "a\u200bb",
    "é",
    "a:task",
    "a:task:b",
]
QUEUES += ["{}", "a{}b", "{a}{b}", "{a", "a}", "{{a}}", "a\n"]


async def test_queue_names(open_client: Any) -> None:
    """A name that would be a glob, a foreign slot, or unreadable is refused; what is left is plain text."""
    async with open_client() as client:
        for name in QUEUES:
            judge(await refusal(lambda value: Torrelque(client, queue=value), name), ValueError, "queue")
        for name in NO_STRINGS:
            judge(await refusal(lambda value: Torrelque(client, queue=value), name), TypeError, "queue")
        for name in ("trq", "x" * 128, "a:b", "{a}:b", "A-z_0.9", ":"):
            assert Torrelque(client, queue=name).keys["pending"] == f"{name}:pending"


async def test_serialiser_needs_both_functions(open_client: Any) -> None:
    """A serialiser without dumps or loads is refused when the queue is made."""
    async with open_client() as client:
        for serialiser in (None, object(), "json", Mute(), TorrelqueTaskSerialiser(None, len)):
            judge(await refusal(lambda value: Torrelque(client, serialiser=value), serialiser), TypeError, "serialiser")


def _clients(url: str) -> list[Any]:
    sync = redis.Redis.from_url(url)
    return [None, 1, "redis://localhost", object(), Mute(), sync, sync.pipeline(), redis.Redis, coredis.Redis]


async def test_clients_of_other_kinds(server: Server, open_client: Any) -> None:
    """Anything but one of the supported clients is a TorrelqueError that says what would do."""
    async with open_client() as client:
        for value in [*_clients(server.url), client.pipeline()]:
            error = await refusal(Torrelque, value)
            assert isinstance(error, TorrelqueError)
            assert "client must be" in str(error)
            assert "coredis.Redis" in str(error)


SECRET = "hunter2"
URLS = [
    "", "localhost", "localhost:6379", "//localhost", "http://localhost", "redis+socket:///x", f":{SECRET}@localhost",
    "redis://", "redis:///0", f"redis://:{SECRET}@", f"redis://u:{SECRET}@:6379/0", "redis://localhost:0",
    "redis://localhost:65536", "redis://localhost:-1", f"redis://u:{SECRET}@localhost:port", "redis://[::1",
    f"redis://u:{SECRET}@localhost/x", "redis://localhost/0/1", "redis://localhost/-1", f"redis://u:1/{SECRET}@localhost",
    f"redis://u:a/{SECRET}@localhost/0", "unix://", f"unix://u:{SECRET}@", "redis://localhost/²", "redis://loc\nalhost/x",
    f"redis://localhost/0?db={SECRET}", f"redis://:{SECRET}@localhost?max_connections={SECRET}",
    "redis+sentinel://", "redis+sentinel://h", "redis+sentinel://h/", f"redis+sentinel://u:{SECRET}@/jobs",
    "redis+sentinel://h:0/jobs", "redis+sentinel://h:65536/jobs", f"redis+sentinel://u:{SECRET}@h:port/jobs",
    "redis+sentinel://h,,h2/jobs", "redis+sentinel://h,/jobs", f"redis+sentinel://h/jobs/{SECRET}", "redis+sentinel://h/jobs/0/1",
    f"redis+sentinel://h/jo{SECRET} bs", "redis+sentinel://[::1/jobs", f"redis+sentinel://h/jobs?db={SECRET}",
    f"redis+sentinel://u:1/{SECRET}@h/jobs", f"redis+sentinel://h,u:{SECRET}@h2,h3:0/jobs", "redis+sentinel://h\n/jobs",
    "redis+cluster://", "redis+cluster://h,", "redis+cluster://h:0", f"redis+cluster://u:{SECRET}@h:port", "redis+cluster://h/1",
    f"redis+cluster://h/{SECRET}", f"redis+cluster://h?sentinel_password={SECRET}", f"redis+cluster://h?max_connections={SECRET}",
    "sentinel://h/jobs", "redis+unix:///x", "rediss+cluster://", "rediss+sentinel://h/jobs/x", "REDIS+CLUSTER://",
]  # fmt: skip


def test_urls() -> None:
    """A URL that cannot be used is refused at once, and its secrets are not repeated."""
    for url in URLS:
        with pytest.raises(TorrelqueValueError, match="url") as caught:
            Torrelque.from_url(url)
        assert SECRET not in str(caught.value), url
        assert SECRET not in repr(caught.value.__cause__), url
    for junk in (None, 1, b"redis://localhost", object(), Mute()):
        with pytest.raises(TorrelqueTypeError, match="url"):
            Torrelque.from_url(junk)
    for url in ("redis://localhost", "redis+sentinel://localhost/jobs", "redis+cluster://localhost"):
        with pytest.raises(TorrelqueTypeError, match="client_options"):
            Torrelque.from_url(url, max_connections=SECRET)


@pytest.fixture
def unconnected() -> Iterator[None]:
    """Collect coredis' connections that never stood here: it does not close their streams, which warn of that."""
    yield
    gc.collect()


@pytest.mark.usefixtures("unconnected")
@pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
@pytest.mark.parametrize("pair", COREDIS, ids=str)
async def test_urls_that_the_server_refuses(pair: Any, server: Server) -> None:
    """No such database, no such password, nobody there: an error of ours, without the secret, and no hang."""
    separator = "&" if "?" in server.url else "?"
    bad = [
        f"{server.url}{separator}db=99",
        f"{server.url}{separator}username=nobody&password={SECRET}",
        "unix:///no/such/socket",
    ]
    bad.append(f"redis://u:{SECRET}@127.0.0.1:1/0")
    for url in bad:
        with anyio.fail_after(10):
            with pytest.raises(TorrelqueRedisError) as caught:
                async with Torrelque.from_url(url) as queue:
                    await queue.enqueue(1)
        assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r}"


# Serialisers


def _reused() -> Callable[[Any], Any]:
    buffer = bytearray()

    def dumps(value: Any) -> bytearray:
        buffer[:] = str(value).encode()
        return buffer

    return dumps


async def test_dumps_that_fails(open_client: Any, admin: redis.Redis, name: str) -> None:
    """What cannot be serialised is an error before any I/O: lease and pipeline stay as they were."""
    async with open_client() as client, Torrelque(client, queue=name) as queue, open_pipeline(client) as pipeline:
        await queue.enqueue("t")
        task_id, _ = await queue.dequeue(0)
        before, stored = commands(admin), keyspace(admin)
        loop: list[Any] = []
        loop.append(loop)
        for value in (object(), {1, 2}, b"bytes", loop, {object(): 1}):
            for given in ({}, {"pipeline": pipeline}):
                with pytest.raises((TypeError, ValueError)):
                    await queue.enqueue(value, **given)
                with pytest.raises((TypeError, ValueError)):
                    await queue.release(task_id, result=value, **given)
            with pytest.raises((TypeError, ValueError)):
                await queue.enqueue_many([1, value])
            with pytest.raises((TypeError, ValueError)):
                await queue.release_many([task_id, "other"], results=[1, value])
        assert list(pipeline.command_stack) == []
        after = {key: count for key, count in commands(admin).items() if count != before.get(key)}
        assert set(after) <= {"cmdstat_scan", "cmdstat_dump"}, "only this test itself looked"
        assert keyspace(admin) == stored
        await queue.release(task_id, strict=True)


async def test_dumps_that_returns_no_bytes(open_client: Any, admin: redis.Redis, name: str) -> None:
    """What dumps returns must be bytes: anything else is a TorrelqueTypeError that names the parameter."""
    async with open_client() as client, open_pipeline(client) as pipeline:
        for returned in ("text", None, 5, ["x"], (x for x in b"x"), True):
            serialiser = TorrelqueTaskSerialiser(lambda value, returned=returned: returned, bytes)
            async with Torrelque(client, queue=name, serialiser=serialiser) as queue:
                before = commands(admin)
                for given in ({}, {"pipeline": pipeline}):
                    judge(await refusal(queue.enqueue, 1, **given), TypeError, "task")
                    judge(await refusal(queue.release, HELD, result=1, **given), TypeError, "result")
                judge(await refusal(queue.enqueue_many, [1]), TypeError, "tasks")
                judge(await refusal(queue.release_many, [HELD], results=[1]), TypeError, "results")
                assert commands(admin) == before
        assert list(pipeline.command_stack) == []


async def test_dumps_that_reuses_its_buffer(open_queue: Any) -> None:
    """A buffer that the serialiser fills again for the next payload does not change those before it."""
    for dumps in (_reused(), lambda value: memoryview(str(value).encode())):
        async with open_queue(serialiser=TorrelqueTaskSerialiser(dumps, bytes)) as queue:
            await queue.enqueue_many(["first", "second"])
            async with anyio.create_task_group() as group:
                group.start_soon(queue.enqueue, "third")
                group.start_soon(queue.enqueue, "fourth")
            bodies = [body for _, body in await queue.dequeue(0, max_tasks=9)]
            assert bodies[:2] == [b"first", b"second"]
            assert sorted(bodies[2:]) == [b"fourth", b"third"]


async def test_payload_that_cannot_be_decoded(open_queue: Any, admin: redis.Redis, name: str) -> None:
    """The bad task stays leased to the caller, who may reject it; its neighbours go back to the head, uncounted."""
    async with open_queue() as queue:
        ids = await queue.enqueue_many(["a", "b", "c", "d", "e"])
        admin.hset(f"{name}:tasks", ids[2], b"\xffjunk")
        with pytest.raises(TorrelqueDecodeError, match="payload") as caught:
            await queue.dequeue(0, max_tasks=4)
        assert (caught.value.task_id, caught.value.body) == (ids[2], b"\xffjunk")
        assert isinstance(caught.value.task_id, TorrelqueTaskId)
        assert caught.value.task_id.dequeue_count == 1
        wait = [ids[4], ids[3], ids[1], ids[0]]
        with anyio.fail_after(5):
            while snapshot(admin, name).pending != wait:
                await anyio.sleep(0.001)
        snapshot(admin, name).check()
        await queue.release(
            caught.value.task_id, status=TorrelqueTaskStatus.REJECTED, result="cannot be read", strict=True
        )
        assert (await queue.get_task_state(ids[2])).status is TorrelqueTaskStatus.REJECTED
        got = await queue.dequeue(0, max_tasks=9)
        assert [task for _, task in got] == ["a", "b", "d", "e"]
        assert {task_id.dequeue_count for task_id, _ in got} == {1}


async def test_result_that_cannot_be_decoded(open_queue: Any, admin: redis.Redis, name: str) -> None:
    """A kept result that is junk is a decode error with its bytes, in a state and in a watch."""
    async with open_queue() as queue:
        await queue.enqueue("t")
        task_id, _ = await queue.dequeue(0)
        await queue.release(task_id, result=1)
        admin.hset(f"{name}:task:{task_id}", "result", b"junk")
        with pytest.raises(TorrelqueDecodeError, match="result") as caught:
            await queue.get_task_state(task_id)
        assert caught.value.body == b"junk"
        with pytest.raises(TorrelqueDecodeError, match="result"):
            await anext(queue.watch(task_id, timeout=5))


async def test_payloads_are_never_unpickled(open_queue: Any, admin: redis.Redis, name: str) -> None:
    """A pickle put in by somebody else is junk to the default serialiser, and is not run."""
    async with open_queue() as queue:
        task_id = await queue.enqueue("t")
        admin.hset(f"{name}:tasks", task_id, b"cos\nsystem\n(S'exit 1'\ntR.")
        with pytest.raises(TorrelqueDecodeError):
            await queue.dequeue(0)


# The order of calls


async def test_settled_twice(open_queue: Any, admin: redis.Redis, name: str) -> None:
    """The second settle of a task finds it gone or not working, and changes nothing."""
    async with open_queue() as queue:
        await queue.enqueue_many(range(3))
        dropped, kept, back = [task_id for task_id, _ in await queue.dequeue(0, max_tasks=3)]
        await queue.release(dropped)
        await queue.release(kept, result="r")
        await queue.requeue(back)
        before = keyspace(admin)
        for task_id, error in (
            (dropped, TorrelqueLookupError),
            (kept, TorrelqueNotWorkingError),
            (back, TorrelqueNotWorkingError),
        ):
            for again in (
                lambda task_id: queue.release(task_id, result="other", strict=True),
                lambda task_id: queue.requeue(task_id, 5, task_timeout=7, strict=True),
                lambda task_id: queue.extend(task_id),
            ):
                with pytest.raises(error):
                    await again(task_id)
        assert keyspace(admin) == before


async def test_after_the_queue_was_left(open_client: Any, admin: redis.Redis, name: str) -> None:
    """Every method of a queue that was left says so at once; nothing hangs and nothing is sent."""
    async with open_client() as client:
        async with Torrelque(client, queue=name) as queue:
            await queue.enqueue("t")
        before = commands(admin)
        async with open_pipeline(client) as pipeline:
            for call in (
                lambda: queue.enqueue(1),
                lambda: queue.enqueue(1, pipeline=pipeline),
                lambda: queue.enqueue_many([1]),
                lambda: queue.dequeue(0),
                lambda: queue.dequeue(),
                lambda: queue.requeue(HELD),
                lambda: queue.requeue(HELD, pipeline=pipeline),
                lambda: queue.release(HELD),
                lambda: queue.release(HELD, pipeline=pipeline),
                lambda: queue.release_many([HELD]),
                lambda: queue.extend(HELD),
                lambda: queue.get_task_state(HELD),
                lambda: queue.get_queue_stats(),
                lambda: queue.sweep(),
                lambda: queue.run_sweep(),
                lambda: queue.schedule_sweep(),
                lambda: queue.lease(HELD),
                lambda: first(queue.watch(HELD)),
            ):
                with anyio.fail_after(5):
                    assert isinstance(await refusal(call), TorrelqueClosedError)
            queue.unschedule_sweep()
            assert list(pipeline.command_stack) == []
        assert commands(admin) == before


async def test_entered_twice(open_client: Any, name: str) -> None:
    """A queue object is entered once: within itself and after it a TorrelqueError says to make another."""
    async with open_client() as client:
        queue = Torrelque(client, queue=name)
        async with queue:
            with pytest.raises(TorrelqueError, match="entered"):
                async with queue:
                    pytest.fail("was entered again")
            await queue.enqueue("still works")
        with pytest.raises(TorrelqueError, match="entered"):
            async with queue:
                pytest.fail("was entered again")


async def test_not_entered(open_client: Any, pair: Any, name: str) -> None:
    """Not entered, redis-py on asyncio works as documented; coredis says to enter the queue."""
    async with open_client() as client:
        queue = Torrelque(client, queue=name)
        if pair.client == "redispy":
            task_id = await queue.enqueue("t")
            assert [state.status.name async for state in _first_of(queue, task_id)] == ["PENDING"]
            got, _ = await queue.dequeue(1)
            await queue.release(got)
            queue.schedule_sweep(1)
            await anyio.wait_all_tasks_blocked()
            queue.unschedule_sweep()
            await anyio.wait_all_tasks_blocked()
            return
        for call in (
            lambda: queue.enqueue(1),
            lambda: queue.enqueue_many([1]),
            lambda: queue.dequeue(0),
            lambda: queue.requeue(HELD),
            lambda: queue.release(HELD),
            lambda: queue.release_many([HELD]),
            lambda: queue.extend(HELD),
            lambda: queue.get_task_state(HELD),
            lambda: queue.get_queue_stats(),
            lambda: queue.sweep(),
            lambda: queue.run_sweep(),
            lambda: queue.schedule_sweep(),
            lambda: first(queue.watch(HELD)),
        ):
            with anyio.fail_after(5):
                error = await refusal(call)
            assert isinstance(error, TorrelqueError)
            assert "async with queue" in str(error)


async def _first_of(queue: Torrelque, task_id: str) -> AsyncGenerator[Any]:
    watch = queue.watch(task_id)
    try:
        yield await anext(watch)
    finally:
        await watch.aclose()


@pytest.mark.parametrize("pair", COREDIS, ids=str)
async def test_coredis_client_that_was_not_entered(pair: Any, server: Server, name: str) -> None:
    """A coredis client must be entered before the queue; the error says so."""
    with pytest.raises(TorrelqueError, match="async with client"):
        async with Torrelque(coredis.Redis.from_url(server.url), queue=name):
            pytest.fail("was entered")


@pytest.mark.parametrize("pair", [PAIRS[-1]], ids=str)
async def test_redispy_on_trio(pair: Any, server: Server, name: str) -> None:
    """redis-py does not work on Trio; entered or not, the error says to pass coredis."""
    queue = Torrelque(redis.asyncio.Redis.from_url(server.url), queue=name)
    with pytest.raises(TorrelqueError, match=r"coredis\.Redis"):
        async with queue:
            pytest.fail("was entered")
    for call in (
        lambda: queue.enqueue(1),
        lambda: queue.dequeue(0),
        lambda: queue.release(HELD),
        lambda: queue.sweep(),
        lambda: queue.schedule_sweep(),
        lambda: queue.run_sweep(),
        lambda: queue.get_queue_stats(),
        lambda: first(queue.watch(HELD)),
    ):
        with anyio.fail_after(5):
            error = await refusal(call)
        assert isinstance(error, TorrelqueError), repr(error)
        assert "coredis.Redis" in str(error)


async def test_pipelines_of_other_kinds(open_client: Any, server: Server, admin: redis.Redis, name: str) -> None:
    """Only a pipeline of the queue's own client library is taken."""
    async with open_client() as client, Torrelque(client, queue=name) as queue:
        if isinstance(client, coredis.Redis):
            other: Any = redis.asyncio.Redis.from_url(server.url).pipeline()
        else:
            other = coredis.Redis.from_url(server.url).pipeline()
        before = commands(admin)
        for pipeline in (other, admin.pipeline(), client, object(), Mute(), False, 0, "x"):
            judge(await refusal(queue.enqueue, 1, pipeline=pipeline), TypeError, "pipeline")
            judge(await refusal(queue.requeue, HELD, pipeline=pipeline), TypeError, "pipeline")
            judge(await refusal(queue.release, HELD, pipeline=pipeline), TypeError, "pipeline")
        assert commands(admin) == before


@pytest.mark.parametrize("pair", COREDIS, ids=str)
async def test_closed_client(open_client: Any, pair: Any, name: str) -> None:
    """A client that was closed under the queue gives an error of ours and no hang."""
    async with open_client() as client:
        queue = Torrelque(client, queue=name)
    with anyio.fail_after(5):
        with pytest.raises(TorrelqueError):
            async with queue:
                pytest.fail("was entered")


# Junk from hypothesis

JUNK = st.one_of(
    st.text(), st.binary(), st.booleans(), st.decimals(), st.complex_numbers(), st.timedeltas(), st.datetimes(),
    st.lists(st.integers(), max_size=2), st.fractions(), st.sets(st.integers(), max_size=2),
)  # fmt: skip
BAD_NUMBERS = st.one_of(
    st.floats(max_value=-1e-300), st.floats(min_value=315_360_001), st.just(math.nan), st.integers(max_value=-1),
    st.integers(min_value=315_360_001),
)  # fmt: skip
CONTROL = st.characters(codec=None, categories=["Cc", "Cs"])
BAD_IDS = st.builds(lambda a, bad, z: a + bad + z, st.text(max_size=9), CONTROL, st.text(max_size=9))
STRATEGIES: dict[str, st.SearchStrategy[Any]] = {
    "task_timeout": JUNK | BAD_NUMBERS,
    "delay": JUNK | BAD_NUMBERS,
    "timeout": JUNK | BAD_NUMBERS,
    "result_ttl": JUNK | BAD_NUMBERS,
    "interval": JUNK | BAD_NUMBERS,
    "grace": JUNK | BAD_NUMBERS,
    "repair": JUNK.filter(lambda value: not isinstance(value, bool)) | st.integers() | st.none(),
    "progress": JUNK | st.integers(),
    "max_tasks": JUNK | st.integers(max_value=0) | st.floats(),
    "max_bytes": JUNK | st.integers(max_value=0) | st.floats(),
    "task_id": BAD_IDS | st.binary() | st.integers() | st.text(min_size=129),
    "task_ids": st.integers() | st.text() | st.lists(BAD_IDS, min_size=3),
    "results": st.integers() | st.floats() | st.lists(st.integers(), min_size=3),
    "tasks": st.integers() | st.floats() | st.none(),
    "dead_letter": JUNK.filter(lambda value: value is not False) | st.integers() | st.none(),
    "limit": JUNK | st.integers(max_value=0) | st.floats(),
    "after": BAD_IDS | st.binary() | st.integers() | st.text(),
    "status": JUNK | st.integers().filter(lambda value: value not in {3, 4}) | st.floats() | st.none(),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.what}-{case.parameter}")
async def test_junk(open_queue: Any, admin: redis.Redis, case: Case) -> None:
    """Whatever junk hypothesis thinks of is refused like the bad values of the table."""
    found: list[Any] = []

    @settings(max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(STRATEGIES[case.parameter])
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    async with open_queue() as queue:
        await queue.get_queue_stats()
        before = commands(admin)
        for value in found:
            judge(await refusal(case.call, queue, value), (ValueError, TypeError), case.parameter)
        assert commands(admin) == before
