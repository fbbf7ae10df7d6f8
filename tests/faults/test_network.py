"""A network that is half there: links that go silent, late and damaged answers, a Redis that stands still."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from faults.proxy import DOWN, UP, Cut, Delay, FaultProxy, Flip, Rule, Stall, Swallow, faulty
from redis import Redis
from redis.exceptions import RedisError
from support import Pair, Server, keyspace, snapshot
from support.checkpoints import until
from support.outages import open_restartable

from torrelque import (
    Torrelque,
    TorrelqueError,
    TorrelqueRedisError,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
    catching,
    listening,
)
from torrelque.embedded import _free_port

pytestmark = pytest.mark.anyio

#: A client that waits no longer than this for an answer; by default that is 15 s.
SHORT = 0.3
#: The same, where much must be answered in time on a machine that has other things to do.
AMPLE = 1.0


def deadline(seconds: float) -> dict[str, dict[str, float]]:
    return {"redispy": {"socket_timeout": seconds}, "coredis": {"stream_timeout": seconds, "connect_timeout": seconds}}


DEADLINE = deadline(SHORT)


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    """A proxy before the server."""
    with before(server.url) as proxy:
        yield proxy


@contextmanager
def before(url: str) -> Iterator[FaultProxy]:
    """Put a proxy before the server of a URL."""
    place = urlsplit(url)
    address = (place.hostname, place.port) if place.hostname else Path(place.path)
    with faulty(address) as proxy:
        yield proxy


@pytest.fixture
def open_through(open_queue: Any, proxy: FaultProxy, pair: Pair) -> Callable[..., Any]:
    """Open a queue whose client stands behind the proxy."""

    @asynccontextmanager
    async def open_through(**options: Any) -> AsyncGenerator[Torrelque]:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        async with open_queue(client_options={"url": url, **DEADLINE[pair.client], **options}) as queue:
            yield queue

    return open_through


async def test_f18_nobody_answers_a_new_connection(open_through: Any, proxy: FaultProxy, admin: Redis) -> None:
    """A peer that takes connections and says nothing is a Redis that is away: nothing was done, and that is said."""
    proxy.deaf = True
    before = keyspace(admin)
    async with open_through() as queue:
        began = anyio.current_time()
        for call in (queue.enqueue("t"), queue.dequeue(5), queue.get_queue_stats()):
            with anyio.fail_after(5), pytest.raises(TorrelqueUnavailableError):
                await call
        assert anyio.current_time() - began < 3 * SHORT + 2
        assert keyspace(admin) == before
        proxy.deaf = False
        await queue.enqueue("t")
        assert (await queue.dequeue(5))[1] == "t"


async def test_f18_nobody_answers_without_a_deadline_of_the_client(
    open_queue: Any, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that would wait for ever is given up after the library's own time."""
    hasten(monkeypatch)
    proxy.deaf = True
    async with open_queue(client_options={"url": f"redis://127.0.0.1:{proxy.port}/0"}) as queue:
        for call in (queue.enqueue("t"), queue.dequeue(5)):
            with anyio.fail_after(5), pytest.raises(TorrelqueUnavailableError):
                await call


def hasten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the library give up, ping and block in tenths of seconds."""
    for name in ("_redispy", "_coredis", "_lines", "base"):
        module = __import__(f"torrelque.drivers.{name}", fromlist=[name])
        for constant in ("ANSWER_TIMEOUT", "LATE"):
            if hasattr(module, constant):
                monkeypatch.setattr(module, constant, SHORT)
    monkeypatch.setattr(catching, "BLOCK", SHORT)
    monkeypatch.setattr(listening, "PING", SHORT)


@pytest.mark.parametrize("direction", [UP, DOWN])
async def test_f18_half_open_link(
    open_through: Any, open_queue: Any, proxy: FaultProxy, admin: Redis, name: str, direction: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """All links go silent under a waiting consumer and a sweep: it is noticed, and what was parked comes back."""
    hasten(monkeypatch)
    got: list[Any] = []

    async def consume(queue: Torrelque) -> None:
        while True:
            try:
                task_id, task = await queue.dequeue()
                await queue.release(task_id, strict=True)
                got.append(task)
            except TorrelqueRedisError:
                await anyio.sleep(0.01)

    async with open_through() as queue, open_queue() as other, anyio.create_task_group() as group:
        queue.schedule_sweep(0.2)
        group.start_soon(consume, queue)
        await until(lambda: any(client["cmd"] == "blmove" for client in admin.client_list()))
        proxy.set(Rule(Swallow(), direction, each=True, times=None))
        await other.enqueue("while it is silent")
        await until(lambda: proxy.counts["Swallow"])
        proxy.clear()
        await until(lambda: got, 10)
        await other.enqueue("after")
        await until(lambda: len(got) == 2, 10)
        group.cancel_scope.cancel()
    assert got == ["while it is silent", "after"]
    assert snapshot(admin, name).tasks == {}


async def test_f19_late_answers(open_through: Any, proxy: FaultProxy, pair: Pair) -> None:
    """An answer after the deadline is of unknown outcome, and never comes to another caller."""
    async with open_through(**deadline(AMPLE)[pair.client]) as queue:
        ids = [await queue.enqueue(i) for i in range(20)]
        held = dict(await queue.dequeue(5, max_tasks=20))
        await queue.release(next(iter(held)), result="first", strict=True)
        for round_ in range(5):
            rule = proxy.set(Rule(Stall(2 * AMPLE), DOWN, round_))
            with pytest.raises(TorrelqueUnknownOutcomeError):
                await queue.extend(ids[1 + round_])
            assert rule.hits == 1
            async with anyio.create_task_group() as group:
                for i in range(10, 20):
                    group.start_soon(release_with_nonce, queue, ids[i], round_)
        await anyio.sleep(2 * AMPLE)
        assert [(await queue.get_task_state(each)).result for each in ids[10:]] == [f"r {each}" for each in ids[10:]]


async def test_a_read_in_the_company_of_writes(open_through: Any, proxy: FaultProxy) -> None:
    """That an answer was lost means of a read that nothing was applied, also where writes shared its round trip."""
    of_writes: list[Exception] = []

    async def read(queue: Torrelque) -> None:
        with pytest.raises(TorrelqueUnavailableError):
            await queue.get_queue_stats()

    async def write(queue: Torrelque) -> None:
        with pytest.raises(TorrelqueRedisError) as caught:
            await queue.enqueue("t")
        of_writes.append(caught.value)

    async with open_through() as queue:
        await queue.get_queue_stats()
        proxy.set(Rule(Cut(), DOWN, each=True, times=None))
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(write, queue)
                group.start_soon(read, queue)
    assert any(isinstance(error, TorrelqueUnknownOutcomeError) for error in of_writes)


async def release_with_nonce(queue: Torrelque, task_id: str, round_: int) -> None:
    """Ask for something whose answer names the question."""
    if round_ == 0:
        await queue.release(task_id, result=f"r {task_id}", strict=True)
    state = await queue.get_task_state(task_id)
    assert state.result == f"r {task_id}"


async def test_f19_slow_network(open_through: Any, proxy: FaultProxy, pair: Pair) -> None:
    """Answers that are slow and in time are only slow."""
    proxy.set(Rule(Delay(AMPLE / 10), DOWN, each=True, times=None), Rule(Delay(0.01), UP, each=True, times=None))
    async with open_through(**deadline(AMPLE)[pair.client]) as queue:
        task_id = await queue.enqueue("t")
        assert await queue.dequeue(5) == (task_id, "t")
        await queue.release(task_id, strict=True)
        assert proxy.counts["Delay"] >= 2


@pytest.mark.parametrize("verb", ["enqueue", "dequeue", "release", "extend", "state", "stats", "sweep"])
async def test_f20_flipped_bits(
    open_through: Any, proxy: FaultProxy, admin: Redis, name: str, verb: str, pair: Pair
) -> None:
    """Whatever bit of an answer is wrong, the call ends, with an answer or an error of ours; the next one is right."""
    async with open_through(**deadline(AMPLE)[pair.client]) as queue:
        for byte in range(40):
            bit = byte * 7 % 8
            await queue.enqueue("spare", task_timeout=1000, task_id=f"s{byte}")
            task_id, _ = await queue.dequeue(5)
            proxy.set(rule := Rule(Flip(bit), DOWN, byte))
            calls = {
                "enqueue": lambda byte=byte: queue.enqueue("x", task_id=f"x{byte}", delay=1000),
                "dequeue": lambda: queue.dequeue(0),
                "release": lambda task_id=task_id: queue.release(task_id),
                "extend": lambda task_id=task_id: queue.extend(task_id),
                "state": lambda task_id=task_id: queue.get_task_state(task_id),
                "stats": queue.get_queue_stats,
                "sweep": queue.sweep,
            }
            with anyio.fail_after(5), suppress(TorrelqueError):
                await calls[verb]()
            proxy.clear()
            assert (await queue.get_queue_stats()).tasks == admin.hlen(f"{name}:tasks")
            if not rule.hits:
                break
            await queue.release(str(task_id))


@pytest.mark.alone
async def test_f20_absurd_length(open_queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that announces a gigabyte, and one that sends without end, are given up at once, with little memory."""
    async with AsyncExitStack() as stack:
        for said in (b"$999999999\r\nx", b"*999999999\r\n", b"+" + b"x" * (1 << 17), b"*1\r\n" * (1 << 14)):
            port = await stack.enter_async_context(babbling(said))
            url = f"redis://127.0.0.1:{port}/0"
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            async with open_queue(client_options={"url": url}) as queue:
                with anyio.fail_after(5), pytest.raises(TorrelqueRedisError):
                    await queue.enqueue("t")
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@asynccontextmanager
async def babbling(said: bytes) -> AsyncGenerator[int]:
    """A server that is well until it is asked to run a script."""

    async def serve(stream: Any) -> None:
        async with stream:
            try:
                while request := await stream.receive():
                    if b"EVALSHA" in request:
                        while True:
                            await stream.send(said)
                            await anyio.sleep(0.01)
                    await stream.send(b"+OK\r\n" * request.count(b"*"))
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        group.cancel_scope.cancel()


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """Stop a process meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "lease"), [(2, 8.0), (2, 1.0)], ids=["within the lease", "longer than the lease"])
async def test_f21_redis_is_stopped(
    open_queue: Any, server: Server, name: str, tmp_path: Path, seconds: float, lease: float, pair: Pair
) -> None:
    """Redis stands still: a lease that outlives it is kept, a shorter one is lost and says so; nothing is lost."""
    binary = str(server.admin.info("server")["executable"])
    done: list[str] = []
    async with open_restartable(tmp_path, _free_port(), server=binary) as own:
        pid = int((tmp_path / "server.pid").read_text())
        async with open_queue(client_options={"url": own.url}) as queue, anyio.create_task_group() as group:
            await queue.enqueue("t", task_timeout=lease)
            task_id, _ = await queue.dequeue(5)

            async def work() -> None:
                try:
                    async with queue.lease(task_id):
                        await anyio.sleep(seconds + 1.5)
                        await queue.release(task_id, strict=True)
                        done.append("worked")
                except TorrelqueError as error:
                    done.append(type(error).__name__)

            group.start_soon(work)
            await anyio.sleep(0.1)
            with standing_still(pid):
                await anyio.sleep(seconds)
            await until(lambda: done, 15)
            if lease > seconds:
                assert done == ["worked"]
            else:
                assert done != ["worked"]
                again, _ = await queue.dequeue(15)
                assert again.dequeue_count == 2
                await queue.release(again, strict=True)
            assert snapshot(own.admin, name).tasks == {}
            group.cancel_scope.cancel()


async def test_f21_busy_with_a_foreign_script(open_queue: Any, server: Server, admin: Redis, name: str) -> None:
    """While a foreign script keeps Redis busy calls are refused, surely without effect; then all goes on."""
    before = admin.config_get("lua-time-limit")["lua-time-limit"]
    admin.config_set("lua-time-limit", 10)
    refused = 0
    try:
        async with open_queue() as queue, anyio.create_task_group() as group:
            await queue.enqueue("there before")
            group.start_soon(anyio.to_thread.run_sync, spin, server.url, 1.0)
            await until(lambda: busy(server.url))
            ended = time.monotonic() + 5
            task_id = None
            while task_id is None and time.monotonic() < ended:
                try:
                    task_id = await queue.enqueue("new")
                except TorrelqueUnavailableError:
                    refused += 1
                    await anyio.sleep(0.02)
            assert refused
            assert [(await queue.dequeue(5))[1] for _ in range(2)] == ["there before", "new"]
            assert (await queue.get_queue_stats()).tasks == 2
    finally:
        admin.config_set("lua-time-limit", before)


def spin(url: str, seconds: float) -> None:
    """Keep Redis busy."""
    with Redis.from_url(url) as client, Redis.from_url(url) as killer:
        timer = threading.Timer(seconds, killer.execute_command, ("SCRIPT", "KILL"))
        timer.start()
        with pytest.raises(RedisError):
            client.eval("while true do end", 0)
        timer.join()


def busy(url: str) -> bool:
    """Whether Redis refuses because a script runs."""
    with Redis.from_url(url) as client:
        try:
            client.ping()
        except RedisError as error:
            return "BUSY" in str(error)
    return False
