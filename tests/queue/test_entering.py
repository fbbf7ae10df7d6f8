"""Who may use a queue when: entered, un-entered, closed, from a URL; and how errors come out of it."""

from __future__ import annotations

import asyncio
import functools
import logging
import types
from collections.abc import Callable, Generator
from typing import Any
from urllib.parse import quote, urlsplit

import anyio
import pytest
import redis.asyncio
from redis import Redis
from support import PAIRS, UNENTERED, Pair, Server
from support.freezer import freezing

from torrelque import (
    Torrelque,
    TorrelqueClosedError,
    TorrelqueDecodeError,
    TorrelqueError,
    TorrelqueTimeoutError,
    TorrelqueUnavailableError,
)
from torrelque.calls import Delivery

pytestmark = pytest.mark.anyio


async def test_from_url(server: Server, pair: Pair, name: str) -> None:
    """A queue made from a URL opens its own client and closes it: no connection is left."""
    before = len(server.admin.client_list())
    async with Torrelque.from_url(server.url, queue=name) as queue:
        task_id = await queue.enqueue("t")
        got, task = await queue.dequeue(1)
        assert (got, task) == (task_id, "t")
        await queue.release(got)
    with anyio.fail_after(10):
        while len(server.admin.client_list()) > before:
            await anyio.sleep(0.01)


async def test_from_url_with_escapes(server: Server, admin: Redis, pair: Pair, name: str) -> None:
    """A user and a password stand in a URL as any text does: what is special there is escaped."""
    user, password = f"{name}@b", "p@ss/w:rd%41#?"
    admin.acl_setuser(user, enabled=True, passwords=[f"+{password}"], keys=["*"], channels=["*"], categories=["+@all"])
    place = urlsplit(server.url)
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    try:
        async with Torrelque.from_url(place._replace(netloc=f"{login}@{place.netloc}").geturl(), queue=name) as queue:
            await queue.enqueue("t")
            assert (await queue.dequeue(1))[1] == "t"
    finally:
        admin.acl_deluser(user)


@pytest.mark.parametrize("url", ["redis://\xe4..b:6379", "redis+sentinel://\xe4..b/jobs", "redis+cluster://\xe4..b"])
async def test_from_url_whose_host_is_no_name(pair: Pair, url: str) -> None:
    """What cannot be the name of a host cannot be reached; the queue itself lives on."""
    async with Torrelque.from_url(url) as queue:
        for call in (queue.get_queue_stats, queue.dequeue, queue.get_queue_stats):
            with pytest.raises(TorrelqueUnavailableError):
                await call()


@pytest.mark.parametrize("pair", [*PAIRS, *UNENTERED], ids=str)
async def test_nothing_is_left_of_a_wait(open_queue: Any, admin: Redis, name: str, pair: Pair) -> None:
    """Once nobody waits, nobody listens for others either: at the latest when the queue is left."""
    async with open_queue() as queue:
        with pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0.1)
        assert pair.entered or admin.pubsub_numsub(f"{name}:wake") == [(f"{name}:wake".encode(), 0)]
    assert admin.pubsub_numsub(f"{name}:wake") == [(f"{name}:wake".encode(), 0)]


async def test_from_url_unentered_says_so(server: Server, name: str) -> None:
    """A call on a queue that owns its client and was not entered says what to do."""
    queue = Torrelque.from_url(server.url, queue=name)
    with pytest.raises(TorrelqueError, match="entered first"):
        await queue.enqueue("t")


async def test_closed(open_queue: Any, admin: Redis, name: str) -> None:
    """After its end every call says that the queue is closed, and it cannot be entered again."""
    async with open_queue() as queue:
        pass
    for call in (
        lambda: queue.enqueue("t"),
        lambda: queue.enqueue_many(["t"]),
        lambda: queue.dequeue(0),
        lambda: queue.requeue("t"),
        lambda: queue.release("t"),
        lambda: queue.release_many(["t"]),
        lambda: queue.extend("t"),
        lambda: queue.get_task_state("t"),
        lambda: queue.get_queue_stats(),
        lambda: queue.sweep(),
        lambda: queue.run_sweep(),
        lambda: anext(queue.watch("t")),
    ):
        with pytest.raises(TorrelqueClosedError):
            await call()
    with pytest.raises(TorrelqueClosedError):
        queue.schedule_sweep()
    with pytest.raises(TorrelqueError):
        async with queue:
            pass
    assert admin.keys(f"{name}:*") == []


async def test_one_error_leaves_as_it_came(open_client: Any, server: Server, name: str) -> None:
    """An error of the body is not wrapped into a group by the queue, nor by the client that it owns."""
    error = ValueError("mine")
    async with open_client() as client:
        for queue in (Torrelque(client, queue=name), Torrelque.from_url(server.url, queue=name)):
            with pytest.raises(ValueError, match="mine") as caught:
                async with queue:
                    await queue.get_queue_stats()
                    raise error
            assert caught.value is error


async def test_groups_of_the_body_stay_groups(open_client: Any, name: str) -> None:
    """What the body raises as a group leaves as that group."""
    group = ExceptionGroup("two", [ValueError("a"), ValueError("b")])
    async with open_client() as client:
        with pytest.raises(ExceptionGroup) as caught:
            async with Torrelque(client, queue=name):
                raise group
        assert caught.value.exceptions == group.exceptions


async def test_leaving_dismisses_those_who_wait(open_queue: Any) -> None:
    """A task outside of the scope that waits for the queue learns that it was closed."""
    caught: list[Exception] = []

    async def wait(queue: Torrelque) -> None:
        try:
            await queue.dequeue()
        except TorrelqueClosedError as error:
            caught.append(error)

    async with anyio.create_task_group() as group:
        async with open_queue() as queue:
            group.start_soon(wait, queue)
            await anyio.wait_all_tasks_blocked()
        started = anyio.current_time()
    assert len(caught) == 1
    assert anyio.current_time() - started < 1


@pytest.mark.parametrize("what", ["watch", "run_sweep"])
async def test_leaving_ends_what_goes_on_elsewhere(open_queue: Any, what: str) -> None:
    """A watch and a sweep in a task group around the queue end with it, and are told why, not at their next look."""
    begun, ended = anyio.Event(), anyio.Event()
    caught: list[Exception] = []

    async def watch(queue: Torrelque) -> None:
        async for _ in queue.watch(await queue.enqueue("t")):
            begun.set()

    async def sweep(queue: Torrelque) -> None:
        begun.set()
        await queue.run_sweep(300)

    async def go_on(queue: Torrelque) -> None:
        try:
            await {"watch": watch, "run_sweep": sweep}[what](queue)
        except TorrelqueClosedError as error:
            caught.append(error)
        ended.set()

    async with anyio.create_task_group() as group:
        async with open_queue() as queue:
            group.start_soon(go_on, queue)
            await begun.wait()
            await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            await ended.wait()
    assert len(caught) == 1


async def test_leaving_while_a_sweep_is_scheduled(open_queue: Any) -> None:
    """A scheduled sweep is the queue's own, and ends with it without a word, whatever it does at that moment."""
    for moment in (None, anyio.lowlevel.checkpoint, anyio.wait_all_tasks_blocked):
        async with open_queue() as queue:
            queue.schedule_sweep(300)
            if moment is not None:
                await moment()


class FailsAtFirst:
    """A serialiser that cannot read ``first``, and then calls the test."""

    def __init__(self, failed: Callable[[], None]) -> None:
        self._failed = failed

    def dumps(self, value: bytes) -> bytes:
        return value

    def loads(self, body: bytes) -> bytes:
        if body == b"first":
            self._failed()
            raise ValueError("first")
        return body


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair.backend[0] == "asyncio"], ids=str)
async def test_native_cancel_while_a_queue_is_left(server: Server, open_client: Any, name: str) -> None:
    """A native cancel does not take the bound of leaving away, though Redis is silent and a hand-back under way."""
    leaving = asyncio.Event()
    with freezing(server.url) as relay:
        async with open_client(f"redis://{relay.address}/0") as client:
            serialiser = FailsAtFirst(lambda: relay.freeze(new_ones=True))
            queue = Torrelque(client, queue=name, serialiser=serialiser)

            async def use() -> None:
                async with queue:
                    await queue.enqueue_many([b"first", b"second"])
                    with pytest.raises(TorrelqueDecodeError):
                        await queue.dequeue(0, max_tasks=2)
                    leaving.set()

            user = asyncio.create_task(use())
            await leaving.wait()
            user.cancel()
            await asyncio.wait([user], timeout=4)
            assert user.cancelled()
            queue._room.hand_back([Delivery(b"late", 1, 300, b"")])  # a warning
            queue._room.look_within(0)
            with pytest.raises(TorrelqueClosedError):
                queue.schedule_sweep()


async def test_no_server(pair: Pair, open_client: Any, name: str) -> None:
    """Without a server each call fails at once, with an error that is also the client's own."""
    async with open_client("redis://127.0.0.1:1/0") as client, Torrelque(client, queue=name) as queue:
        for call in (lambda: queue.enqueue("t"), lambda: queue.dequeue(), lambda: queue.get_queue_stats()):
            with pytest.raises(TorrelqueUnavailableError) as caught, anyio.fail_after(5):
                await call()
            assert {"redispy": "redis", "coredis": "coredis"}[pair.client] in {
                base.__module__.split(".")[0] for base in type(caught.value).__mro__
            }


async def test_schedule_is_replaced_and_ended(open_queue: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A second schedule takes the place of the first, each pass is a line at DEBUG, and leaving ends it."""
    caplog.set_level(logging.DEBUG, "torrelque")
    async with open_queue() as queue:
        queue.schedule_sweep(300)
        queue.schedule_sweep()
        await queue.enqueue("t", delay=0.05)
        with anyio.fail_after(5):
            while "Sweep has requeued: stale=0, delayed=1, undequeued=0" not in caplog.messages:
                await anyio.sleep(0.01)
        queue.unschedule_sweep()
        queue.unschedule_sweep()
        await queue.enqueue("u", delay=0.05)
        await anyio.sleep(0.2)
        assert (await queue.get_queue_stats()).delayed == 1
        queue.schedule_sweep()


async def test_sweep_in_a_task_group_of_ones_own(open_queue: Any) -> None:
    """run_sweep is started with the caller's task group and ends with it."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        await group.start(queue.run_sweep, 300)
        await queue.enqueue("t", delay=0.05)
        with anyio.fail_after(5):
            while (await queue.get_queue_stats()).pending == 0:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()


async def test_fairness_among_waiting(open_queue: Any) -> None:
    """Many dequeues that wait at once each get one of the tasks that come at once."""
    got: list[int] = []

    async def wait(queue: Torrelque) -> None:
        tasks = await queue.dequeue(5, max_tasks=10)
        got.extend(task for _, task in tasks)

    async with open_queue() as queue:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(wait, queue)
            await anyio.wait_all_tasks_blocked()
            await queue.enqueue_many(range(20))
        assert sorted(got) == list(range(20))
        with pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0)


@pytest.mark.parametrize("pair", UNENTERED[:1], ids=str)
def test_a_second_event_loop(server: Server, name: str, pair: Pair) -> None:
    """A queue that was not entered, whose event loop ended under a waiting dequeue, keeps time on the next loop."""
    client = redis.asyncio.Redis.from_url(server.url)
    queue = Torrelque(client, queue=name)

    async def leave_waiting() -> None:
        waiting = asyncio.ensure_future(queue.dequeue(0.6))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await client.connection_pool.disconnect()

    async def wait_again() -> None:
        with anyio.fail_after(10), pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0.8)
        await client.aclose()

    asyncio.run(leave_waiting())
    asyncio.run(wait_again())


#: For each of the queue's own tasks what makes it begin, and how to tell that it is about to.
ABOUT_TO_BEGIN: dict[str, tuple[Callable[[Torrelque], Any], Callable[[Torrelque], bool]]] = {
    "lane": (lambda queue: asyncio.ensure_future(queue.enqueue("t")), lambda queue: queue._coalescer._lane.running),
    "room": (lambda queue: asyncio.ensure_future(queue.dequeue()), lambda queue: queue._room._server.running),
    "catcher": (lambda queue: asyncio.ensure_future(queue.dequeue()), lambda queue: queue._room._catcher.running),
    "hub": (lambda queue: queue.schedule_sweep(), lambda queue: not queue._hub.settled or bool(queue._hub._ears)),
}


@pytest.mark.parametrize("pair", UNENTERED[:1], ids=str)
@pytest.mark.parametrize("part", ABOUT_TO_BEGIN)
def test_an_event_loop_that_ends_before_a_task_begins(server: Server, name: str, pair: Pair, part: str) -> None:
    """A task of the queue that was cancelled before it began, as its event loop ended, is begun anew on the next."""
    client = redis.asyncio.Redis.from_url(server.url)
    queue = Torrelque(client, queue=name)

    async def leave() -> None:
        begin, is_about_to = ABOUT_TO_BEGIN[part]
        begin(queue)
        while not is_about_to(queue):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.01)
        await client.connection_pool.disconnect()

    async def use() -> None:
        try:
            with anyio.fail_after(4):
                waiting = asyncio.ensure_future(queue.dequeue(3))
                await anyio.wait_all_tasks_blocked()
                task_id = await queue.enqueue("t")
                got, _ = await waiting
                assert got == task_id
                await queue.release(got, result=1)
                assert [state.result async for state in queue.watch(task_id)] == [1]
        finally:
            await client.aclose()

    asyncio.run(leave())
    asyncio.run(use())


def begin_at_once(loop: asyncio.AbstractEventLoop, coroutine: Any, **_: Any) -> Any:
    """Make a task as ``asyncio.eager_task_factory`` of Python 3.12 does, as far as the first wait."""
    try:
        first = coroutine.send(None)
    except StopIteration as stop:
        done = loop.create_future()
        done.set_result(stop.value)
        return done

    @types.coroutine
    def go_on() -> Generator[Any, Any, Any]:
        waits_for = first
        while True:
            try:
                answer = yield waits_for
            except BaseException as error:
                step = functools.partial(coroutine.throw, error)
            else:
                step = functools.partial(coroutine.send, answer)
            try:
                waits_for = step()
            except StopIteration as stop:
                return stop.value

    return asyncio.Task(go_on(), loop=loop)


@pytest.mark.parametrize("pair", UNENTERED, ids=str)
async def test_tasks_that_begin_at_once(open_queue: Any) -> None:
    """On an event loop whose tasks begin before `create_task` returns, calls on a queue that was not entered end."""
    asyncio.get_running_loop().set_task_factory(begin_at_once)
    async with open_queue() as queue:
        with anyio.fail_after(5):
            task_id = await queue.enqueue("t")
            got, _ = await queue.dequeue(5)
            assert got == task_id
            await queue.release(got)
