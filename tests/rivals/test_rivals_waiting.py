"""Bugs of other queues that no other test here names: each docstring tells the bug, each test that it is not ours."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from typing import Any

import anyio
import pytest
from redis import Redis
from support import Pair
from support.bridge import ROOT, connect, serving
from support.checkpoints import until
from support.standstill import Standstill
from support.streams import consuming

from torrelque import TorrelqueLookupError, TorrelqueRedisError, TorrelqueTaskStatus

#: Seconds that a client waits for an answer; shorter than any wait for a task.
DEADLINE = 0.3


@pytest.mark.anyio
async def test_rival_vibetuner_2035(open_queue: Any, admin: Redis, pair: Pair) -> None:
    """Theirs: a block that is longer than the client's own socket deadline kills every idle worker."""
    name = "socket_timeout" if pair.client == "redispy" else "stream_timeout"

    def blocked() -> list[str]:
        return [client["id"] for client in admin.client_list() if client["cmd"] == "blmove"]

    async with open_queue(client_options={name: DEADLINE}) as queue, anyio.create_task_group() as group:
        got: list[Any] = []

        async def work() -> None:
            got.append(await queue.dequeue(20))

        group.start_soon(work)
        waiting = await until(blocked)
        await anyio.sleep(4 * DEADLINE)
        assert got == []
        assert blocked() == waiting, "it waits on, over the same connection"
        await queue.enqueue("t")
        with anyio.fail_after(10):
            while not got:
                await anyio.sleep(0.01)
        assert got[0][1] == "t"


@pytest.mark.anyio
async def test_rival_bullmq_648(open_queue: Any, admin: Redis, name: str) -> None:
    """Theirs: `UNBLOCKED force unblock`, as a failover says to whoever blocks, ends the worker."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        got: list[Any] = []

        async def work() -> None:
            got.append(await queue.dequeue(30))

        def blocked() -> list[Any]:
            return [client for client in admin.client_list() if client["cmd"] == "blmove"]

        group.start_soon(work)
        for _ in range(3):
            await until(lambda: bool(blocked()))
            for client in blocked():
                admin.client_unblock(int(client["id"]), error=True)
        await queue.enqueue("t")
        with anyio.fail_after(10):
            while not got:
                await anyio.sleep(0.01)
        assert got[0][1] == "t"


@pytest.mark.anyio
async def test_rival_arq_531(open_queue: Any, admin: Redis, name: str) -> None:
    """Theirs: the time to keep a result is ignored for jobs that failed."""
    async with open_queue() as queue:
        await queue.enqueue("t")
        task_id, _ = await queue.dequeue(0)
        await queue.release(task_id, result="why", result_ttl=7, status=TorrelqueTaskStatus.REJECTED)
        assert 0 < admin.pttl(f"{name}:task:{task_id}") <= 7000


@pytest.mark.anyio
async def test_rival_arq_300(open_queue: Any, admin: Redis) -> None:
    """Theirs: workers do not survive a loss of all data in Redis."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        await queue.enqueue("held")
        held, _ = await queue.dequeue(0)
        got: list[Any] = []

        async def work() -> None:
            got.append(await queue.dequeue(30))

        group.start_soon(work)
        await until(lambda: any(client["cmd"] == "blmove" for client in admin.client_list()))
        admin.flushall()
        admin.script_flush()
        with pytest.raises(TorrelqueLookupError):
            await queue.release(held, strict=True)
        await queue.enqueue("t")
        await until(lambda: got)
        assert got[0][1] == "t"
        await queue.release(got[0][0], strict=True)


# coredis forgets to close the streams of a connection that it could not open.
@pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")
@pytest.mark.anyio
async def test_rival_bullmq_1658(open_queue: Any, admin: Redis) -> None:
    """Theirs: after a short outage delays end late."""
    async with open_queue() as queue, anyio.create_task_group() as group:
        got: list[float] = []

        async def work() -> None:
            while not got:
                with contextlib.suppress(TorrelqueRedisError):
                    await queue.dequeue(30)
                    got.append(anyio.current_time())

        await queue.enqueue("t", delay=1.5)
        due = anyio.current_time() + 1.5
        group.start_soon(work)
        await until(lambda: any(client["cmd"] == "blmove" for client in admin.client_list()))
        for kind in ("normal", "pubsub"):
            admin.client_kill_filter(_type=kind, skipme=True)
        with Standstill.counted() as standstill:
            await until(lambda: got)
        assert due - 0.1 <= got[0] <= due + 1 + standstill.seconds


@pytest.mark.anyio
async def test_rival_anyio_695(open_queue: Any, admin: Redis) -> None:
    """Theirs: a cancellation that cannot be delivered is tried again and again, and takes a core."""
    async with open_queue() as queue:
        await queue.enqueue("t")
        busy = time.process_time()
        # Nothing that is under way can end before this is over.
        admin.client_pause(1500)
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(queue.dequeue)
                group.start_soon(queue.enqueue, "t")
            await anyio.sleep(0.1)
            group.cancel_scope.cancel()
    await anyio.to_thread.run_sync(admin.ping)
    assert time.process_time() - busy < 0.7


#: A server in which a call ends like one that is cancelled, though nobody cancels it; prints what the client hears.
CANCELLED = """
import asyncio, anyio, grpc, grpc_server, torrelque
from grpc_server._pb import torrelque_pb2 as pb, torrelque_pb2_grpc as pb_grpc

async def cancelled(self):
    raise asyncio.CancelledError

def ask(address):
    with grpc.insecure_channel(address) as channel:
        try:
            pb_grpc.TorrelqueServiceStub(channel).GetQueueStats(pb.GetQueueStatsRequest(), timeout=10)
        except grpc.RpcError as error:
            return error.code().name

async def main():
    torrelque.Torrelque.get_queue_stats = cancelled
    async with grpc_server.running(grpc_server.Settings(listen=("127.0.0.1:0",))) as server:
        print(await anyio.to_thread.run_sync(ask, server.address))

anyio.run(main)
"""


def test_rival_grpc_29248() -> None:
    """Theirs: when CancelledError comes out of a handler, its client waits for ever."""
    ended = subprocess.run([sys.executable, "-c", CANCELLED], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "UNAVAILABLE\n"


def test_rival_grpc_28999(storage: str) -> None:
    """Theirs: stop() hangs after a stream was cancelled."""
    with serving("--redis", storage) as server:
        with connect(server.address, "rivals") as client:
            with consuming(client) as stream:
                stream.opened()
            server.signal(signal.SIGTERM)
            assert server.wait(15) == 0
