"""What every driver promises, on every pair: the floor above knows no difference between them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import coredis.exceptions
import pytest
import redis.exceptions
from redis import Redis
from support import Pair, Server, snapshot

from torrelque import (
    Torrelque,
    TorrelqueFullError,
    TorrelqueStorageError,
    TorrelqueTaskStatus,
    TorrelqueUnavailableError,
)
from torrelque.calls import BOUND, SWEEP_ALL, Calls, outcomes
from torrelque.drivers import Driver, driver_for
from torrelque.keys import Keys

pytestmark = pytest.mark.anyio


@pytest.fixture
def calls(name: str) -> Calls:
    """The calls of the test's queue."""
    return Calls(Keys(name))


@pytest.fixture
def open_driver(open_client: Any) -> Any:
    """Open a driver with a client of its own."""

    @asynccontextmanager
    async def open_driver(**options: Any) -> AsyncGenerator[Driver]:
        async with open_client(**options) as client:
            driver = driver_for(client)
            async with driver.opened():
                yield driver

    return open_driver


def errors_of(pair: Pair) -> Any:
    """The module with the client's own errors."""
    return redis.exceptions if pair.client == "redispy" else coredis.exceptions


async def test_round_trip(open_driver: Any, calls: Calls) -> None:
    """A call's answer is what its script returned, strings as bytes, whatever bytes are in the payload."""
    body = bytes(range(256)) * 3 + b"\r\n$-1\r\n*0\r\n"
    async with open_driver() as driver:
        call = calls.enqueue([("a", body), ("b", b""), ("a", b"again")], 1.5, 0)
        (reply,) = await driver.execute([call])
        assert [call.parse(item) for item in outcomes(reply)] == [True, True, False]
        call = calls.dequeue(5, 300)
        (reply,) = await driver.execute([call])
        claim = call.parse(reply)
        assert [(delivery.task_id, delivery.body) for delivery in claim.deliveries] == [(b"a", body), (b"b", b"")]
        assert [delivery.lease for delivery in claim.deliveries] == [1.5, 1.5]


async def test_many_calls_in_one_round_trip(open_driver: Any, calls: Calls, admin: Redis, name: str) -> None:
    """Each call has its own answer, in order; an error of one is the answer of that one alone."""
    bad = Calls(Keys(f"{name}:bad"))
    admin.set(f"{name}:bad:pending", "a string")
    async with open_driver() as driver:
        many = [calls.enqueue([(f"id{i}", b"%d" % i)], 300, 0) for i in range(BOUND + 50)]
        replies = await driver.execute([*many[:100], bad.stats(), *many[100:], calls.stats()])
        assert isinstance(replies[100], TorrelqueStorageError)
        assert all(reply == b"1" for reply in replies[:100] + replies[101:-1])
        assert replies[-1] == [len(many)] * 2 + [0, 0]
        replies = await driver.execute([calls.state(b"id%d" % i) for i in range(50)])
        assert len(replies) == 50
        claims = await driver.execute([calls.dequeue(1, 300) for _ in range(20)])
        got = [calls.dequeue(1, 1).parse(reply).deliveries[0].body for reply in claims]
        assert got == [b"%d" % i for i in range(20)]
        assert await driver.execute([]) == []


async def test_nil_and_nested_answers(open_driver: Any, calls: Calls) -> None:
    """What is not there is None, at any depth."""
    async with open_driver() as driver:
        assert await driver.execute([calls.state(b"unknown")]) == [[[None] * 9]]
        assert await driver.execute([calls.sweep(300, SWEEP_ALL)]) == [[0, 0, 0, [], b"end", b"inf"]]


async def test_scripts_that_the_server_forgot(open_driver: Any, calls: Calls, admin: Redis) -> None:
    """SCRIPT FLUSH at any moment costs a second trip for what was missing, and nothing is run twice."""
    async with open_driver() as driver:
        admin.script_flush()
        assert await driver.execute([calls.enqueue([("a", b"1")], 300, 0)]) == [b"1"]
        admin.script_flush()
        replies = await driver.execute([calls.enqueue([("b", b"1")], 300, 0), calls.stats(), calls.stats()])
        assert replies[0] == b"1"
        assert all(reply in ([1, 1, 0, 0], [2, 2, 0, 0]) for reply in replies[1:])
        for i in range(20):
            admin.script_flush()
            assert await driver.execute([calls.enqueue([(f"c{i}", b"1")], 300, 0)]) == [b"1"]
        assert await driver.execute([calls.stats()]) == [[22, 22, 0, 0]]


async def test_wrong_type(open_driver: Any, calls: Calls, admin: Redis, name: str, pair: Pair) -> None:
    """A key of a foreign type is a TorrelqueStorageError that the client's own except clause catches too."""
    admin.set(f"{name}:tasks", "a string")
    async with open_driver() as driver:
        for call in (calls.enqueue([("a", b"1")], 300, 0), calls.stats(), calls.sweep(300, b"")):
            (error,) = await driver.execute([call])
            assert isinstance(error, TorrelqueStorageError)
            assert isinstance(error, errors_of(pair).ResponseError)
            assert "WRONGTYPE" in str(error) or "wrong kind of value" in str(error)
        assert admin.keys(f"{name}:*") == [f"{name}:tasks".encode()], "nothing was written"


async def test_out_of_memory(open_driver: Any, calls: Calls, admin: Redis, name: str, pair: Pair) -> None:
    """At maxmemory an enqueue is a TorrelqueFullError and writes nothing; claims and settles go on."""
    async with open_driver() as driver:
        await driver.execute([calls.enqueue([("a", b"1"), ("b", b"1"), ("c", b"1"), ("d", b"1")], 300, 0)])
        admin.config_set("maxmemory", "1")
        try:
            (error,) = await driver.execute([calls.enqueue([("e", b"1")], 300, 0)])
            assert isinstance(error, TorrelqueFullError)
            assert isinstance(error, errors_of(pair).ResponseError)
            (reply,) = await driver.execute([calls.dequeue(4, 300)])
            assert len(calls.dequeue(4, 300).parse(reply).deliveries) == 4
            assert (
                await driver.execute(
                    [
                        calls.release([("a", b"result")], TorrelqueTaskStatus.COMPLETED, 60),
                        calls.release([("b", None)], TorrelqueTaskStatus.COMPLETED, 60),
                        calls.requeue("c", 0, None),
                        calls.requeue("d", 60, None),
                    ]
                )
                == [b"1"] * 4
            )
            (reply,) = await driver.execute([calls.dequeue(4, 300)])
            assert len(calls.dequeue(4, 300).parse(reply).deliveries) == 1
            (reply,) = await driver.execute([calls.extend("c", None, 300)])
            assert float(reply) > 1e9
            (reply,) = await driver.execute([calls.sweep(300, b"")])
            assert not isinstance(reply, Exception)
            assert await driver.execute([calls.hand_back([(b"c", 2)])]) == [b"1"]
        finally:
            admin.config_set("maxmemory", "0")
    snapshot(admin, name).check()
    assert not admin.exists(f"{name}:task:e")


@pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
async def test_nobody_there(pair: Pair, calls: Calls) -> None:
    """A refused connection is a TorrelqueUnavailableError, and the client's ConnectionError as well."""
    import gc

    url = "redis://127.0.0.1:1/0"
    theirs = errors_of(pair).ConnectionError
    if pair.client == "redispy":
        client = redis.asyncio.Redis.from_url(url)
        driver = driver_for(client)
        async with driver.opened():
            for use in (driver.blocking, driver.subscribing):
                with pytest.raises(TorrelqueUnavailableError) as caught:
                    async with use():
                        pytest.fail("was connected")
                assert isinstance(caught.value, theirs)
            with pytest.raises(TorrelqueUnavailableError) as caught:
                await driver.execute([calls.stats()])
        await client.aclose()
    else:
        with pytest.raises(TorrelqueUnavailableError) as caught:
            async with Torrelque.from_url(url) as queue:
                await queue.get_queue_stats()
    assert isinstance(caught.value, theirs)
    gc.collect()  # coredis does not close the streams of a connection that never stood


async def test_usable_after_a_cancel(open_driver: Any, calls: Calls, admin: Redis) -> None:
    """A call that is cancelled while its answer is on its way does not shift the answers of those after it (I16)."""
    async with open_driver() as driver:
        # A script that the server does not know yet is sent again, and so runs after its neighbours.
        await driver.execute([calls.enqueue([("known", b"1")], 300, 0)])
        for i in range(4):
            admin.client_pause(40)
            with anyio.move_on_after(0.005 * i):
                await driver.execute([calls.enqueue([(f"cut{i}", b"1")], 300, 0), calls.stats()])
            replies = await driver.execute(
                [calls.enqueue([(f"next{i}", b"%d" % i)], 300, 0), calls.state(b"next%d" % i)]
            )
            assert replies[0] == b"1"
            assert replies[1][0][0] == b"0"
            assert replies[1][0][1] == b"300"


async def test_many_tasks_use_one_driver(open_driver: Any, calls: Calls) -> None:
    """Concurrent calls each get the answer to their own question."""
    async with open_driver() as driver:
        await driver.execute([calls.enqueue([(f"id{i}", b"x")], 1 + i, 0) for i in range(40)])

        async def ask(i: int) -> None:
            for _ in range(5):
                ((fields,),) = await driver.execute([calls.state(b"id%d" % i)])
                assert fields[1] == b"%d" % (1 + i)

        async with anyio.create_task_group() as group:
            for i in range(40):
                group.start_soon(ask, i)


async def test_decoding_clients_are_read_raw(open_client: Any, open_driver: Any, calls: Calls, name: str) -> None:
    """decode_responses=True is for the user's own commands: payloads are bytes that may be no text at all."""
    async with open_driver(decode_responses=True) as driver:
        await driver.execute([calls.enqueue([("a", b"\xff\xfe")], 300, 0)])
        call = calls.dequeue(1, 300)
        (reply,) = await driver.execute([call])
        assert call.parse(reply).deliveries[0].body == b"\xff\xfe"
        assert isinstance(await driver.config_get("maxmemory"), str)
    async with open_client(decode_responses=True) as client, Torrelque(client, queue=name) as queue:
        watched = await queue.enqueue("é", delay=0.05)
        task_id, task = await queue.dequeue(5)
        assert (task_id, task) == (watched, "é")
        async for state in queue.watch(task_id, timeout=5):
            if state.status is TorrelqueTaskStatus.WORKING:
                await queue.release(task_id, result="ü")
        assert state.result == "ü"


@pytest.fixture
def guarded(admin: Redis, server: Server) -> Iterator[str]:
    """The URL of database 3 for a user with a password."""
    user, password = f"u{secrets.token_hex(4)}", secrets.token_hex(8)
    admin.acl_setuser(user, enabled=True, passwords=[f"+{password}"], keys=["*"], channels=["*"], categories=["+@all"])
    separator = "&" if "?" in server.url else "?"
    yield f"{server.url}{separator}db=3&username={user}&password={password}"
    admin.acl_deluser(user)
    with Redis.from_url(f"{server.url}{separator}db=3") as other:
        other.flushdb()


async def test_password_and_database_in_the_url(
    open_client: Any, pair: Pair, guarded: str, admin: Redis, name: str
) -> None:
    """All connections, also those that block and listen, log in and use the database of the URL."""
    async with open_client(guarded) as client, Torrelque(client, queue=name) as queue:
        await work(queue)
    if pair.client == "coredis":
        async with Torrelque.from_url(guarded, queue=name) as queue:
            await work(queue)
    assert admin.keys(f"{name}:*") == []


async def test_a_password_that_is_refused(open_client: Any, pair: Pair, calls: Calls, server: Server) -> None:
    """Redis is there and lets nobody in with it, which no retry mends: that is a TorrelqueStorageError."""
    separator = "&" if "?" in server.url else "?"
    async with open_client(f"{server.url}{separator}username=nobody&password=wrong") as client:
        driver = driver_for(client)
        async with driver.opened():
            with pytest.raises(TorrelqueStorageError) as caught:
                await driver.execute([calls.stats()])
            assert isinstance(caught.value, errors_of(pair).ResponseError)


async def work(queue: Torrelque) -> None:
    """Use each kind of connection once: ask, block, listen."""
    states = []

    async def watch(task_id: str, *, task_status: Any) -> None:
        async for state in queue.watch(task_id, timeout=10):
            states.append(state.status.name)
            if len(states) == 1:
                task_status.started()

    async def consume() -> None:
        task_id, task = await queue.dequeue(10)
        assert task == "task"
        await queue.release(task_id, result="done")

    async with anyio.create_task_group() as group:
        group.start_soon(consume)
        await anyio.wait_all_tasks_blocked()
        task_id = await queue.enqueue("task", delay=0.1)
        await group.start(watch, task_id)
    assert states[0] == "DELAYED"
    assert states[-1] == "COMPLETED"


async def test_one_connection_in_the_pool_is_enough(open_client: Any, name: str) -> None:
    """With max_connections=1 calls take turns: nobody fails, and waiting blocks nobody else."""
    async with open_client(max_connections=1) as client, Torrelque(client, queue=name) as queue:
        await work(queue)
        got: list[int] = []

        async def consume() -> None:
            for _ in range(12):
                task_id, task = await queue.dequeue(10)
                await queue.release(task_id)
                got.append(task)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(consume)
            for i in range(60):
                group.start_soon(queue.enqueue, i)
                group.start_soon(queue.get_queue_stats)
        assert sorted(got) == list(range(60))


async def test_settings_are_read(open_driver: Any, admin: Redis) -> None:
    """A setting is told as text; where the server does not tell, as None."""
    async with open_driver() as driver:
        assert await driver.config_get("maxmemory") == "0"
        assert await driver.config_get("no-such-setting") is None
    assert admin.ping()


async def test_blocking(open_driver: Any, admin: Redis, name: str) -> None:
    """A blocker moves what comes, gives up after its time, and can be unblocked from another connection."""
    source, target = f"{name}:a".encode(), f"{name}:b".encode()
    async with open_driver() as driver, driver.blocking() as blocker:
        admin.lpush(source, "one", "two")
        assert await blocker.move(source, target, 5) == b"one"
        assert await blocker.move(source, target, 5) == b"two"
        assert await blocker.move(source, target, 0.05) is None
        await blocker.unblock()  # nothing is blocked: harmless
        for _ in range(3):
            async with anyio.create_task_group() as group:

                async def unblock() -> None:
                    while not admin.info("clients")["blocked_clients"]:
                        await anyio.sleep(0.001)
                    await blocker.unblock()

                group.start_soon(unblock)
                assert await blocker.move(source, target, 30) is None
        admin.lpush(source, "three")
        assert await blocker.move(source, target, 5) == b"three"
    assert admin.lrange(target, 0, -1) == [b"three", b"two", b"one"]


async def test_subscribing(open_driver: Any, admin: Redis, name: str) -> None:
    """A subscriber confirms, receives in order, and may change what it listens to on the way."""
    one, two = f"{name}:one".encode(), f"{name}:two".encode()
    async with open_driver() as driver, driver.subscribing() as subscriber:
        await subscriber.subscribe(one)
        assert (await subscriber.receive())[:2] == (b"subscribe", one)
        await subscriber.subscribe(two)
        assert (await subscriber.receive())[:2] == (b"subscribe", two)
        for i in range(50):
            admin.publish(two if i % 2 else one, b"\xff%d" % i)
        for i in range(50):
            assert await subscriber.receive() == (b"message", two if i % 2 else one, b"\xff%d" % i)
        await subscriber.unsubscribe(one)
        assert (await subscriber.receive())[:2] == (b"unsubscribe", one)
        admin.publish(one, "unheard")
        admin.publish(two, "heard")
        assert await subscriber.receive() == (b"message", two, b"heard")


async def test_connections_are_given_back(open_driver: Any, calls: Calls, admin: Redis) -> None:
    """What a driver opened is closed with it, also when it was left by cancellation."""
    before = {client["id"] for client in admin.client_list()}
    async with open_driver() as driver:
        await driver.execute([calls.stats()])
        with anyio.move_on_after(0.1):
            async with driver.blocking() as blocker, driver.subscribing() as subscriber:
                await subscriber.subscribe(b"channel")
                await blocker.move(b"no", b"where", 30)
    with anyio.fail_after(5):
        while {client["id"] for client in admin.client_list()} - before:
            await anyio.sleep(0.005)
