"""A server inside of a Python program: its life is that of the task group, on asyncio and on Trio.

Each case is a program of its own, as event loops that use grpc.aio in one process disturb each other.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import redis
from support.bridge import ROOT

BACKENDS = ["asyncio", "trio"]

#: What all programs begin with. `ask` makes a call from a thread, as a client elsewhere would.
HEAD = """
import asyncio, sys, time
import anyio, grpc
import grpc_server
from grpc_server import Settings
from grpc_server._pb import torrelque_pb2 as pb, torrelque_pb2_grpc as pb_grpc

def settings(**more):
    return Settings(**{"listen": ("127.0.0.1:0",), "grace": 5.0, **more})

async def ask(address, call):
    def work():
        with grpc.insecure_channel(address) as channel:
            return call(pb_grpc.TorrelqueServiceStub(channel))
    return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)

def enqueue(stub):
    return stub.Enqueue(pb.EnqueueRequest(task=pb.TaskSpec(payload=pb.Payload(data=b"1"))), timeout=10)

def gone(address):
    host, _, port = address.rpartition(":")
    import socket
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0
"""


def run(tmp_path: Path, body: str, *arguments: str) -> str:
    """Run a program with warnings as errors; returns what it prints."""
    program = tmp_path / "program.py"
    program.write_text(HEAD + textwrap.dedent(body))
    command = [sys.executable, "-W", "error", "-X", "dev", str(program), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    for sign in ("Traceback", "never retrieved", "ResourceWarning", "never awaited"):
        assert sign not in ended.stderr, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("backend", BACKENDS)
def test_running(tmp_path: Path, backend: str) -> None:
    """`async with running(...)` serves within its scope, and is gone after it."""
    program = """
        async def main():
            async with grpc_server.running(settings()) as server:
                task_id = (await ask(server.address, enqueue)).task_id
                assert task_id
            assert gone(server.address)
            print("ended")
        anyio.run(main, backend=sys.argv[1])
    """
    assert run(tmp_path, program, backend) == "ended\n"


def test_in_a_trio_nursery(tmp_path: Path) -> None:
    """`await nursery.start(serve, settings)` gives the bound address; cancelling the nursery drains the calls."""
    program = """
        import functools, trio
        def poll(stub):
            return stub.Dequeue(pb.DequeueRequest(timeout={"seconds": 50}), timeout=60)
        async def main():
            async with trio.open_nursery() as nursery:
                server = await nursery.start(grpc_server.serve, settings())
                assert server.address.startswith("127.0.0.1:")
                await ask(server.address, enqueue)
                assert len((await ask(server.address, poll)).tasks) == 1
                answer = []
                async def wait():
                    with trio.CancelScope(shield=True):
                        answer.append(await ask(server.address, poll))
                nursery.start_soon(wait)
                await trio.sleep(0.3)  # the poll is under way, or the assertion below is the stronger one
                nursery.cancel_scope.cancel()
            assert len(answer) == 1 and not answer[0].tasks, answer
            assert gone(server.address)
            print("ended")
        trio.run(main)
    """
    assert run(tmp_path, program) == "ended\n"


def test_in_an_asyncio_task_group(tmp_path: Path) -> None:
    """In asyncio's own task group a native cancellation drains as well."""
    program = """
        class Started:
            def __init__(self):
                self.future = asyncio.get_running_loop().create_future()
            def started(self, value=None):
                self.future.set_result(value)
        def poll(stub):
            return stub.Dequeue(pb.DequeueRequest(timeout={"seconds": 50}), timeout=60)
        async def main():
            async with asyncio.TaskGroup() as group:
                status = Started()
                task = group.create_task(grpc_server.serve(settings(), task_status=status))
                server = await status.future
                await ask(server.address, enqueue)
                assert len((await ask(server.address, poll)).tasks) == 1
                waiting = group.create_task(ask(server.address, poll))
                await asyncio.sleep(0.3)
                task.cancel()
                assert not (await waiting).tasks
            assert gone(server.address)
            print("ended")
        asyncio.run(main())
    """
    assert run(tmp_path, program) == "ended\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_cannot_start(tmp_path: Path, backend: str) -> None:
    """A port in use is raised as itself, by `running` and by `serve`."""
    program = """
        async def main():
            async with grpc_server.running(settings()) as server:
                taken = settings(listen=(server.address,))
                try:
                    async with grpc_server.running(taken):
                        print("started")
                except grpc_server.SettingsError:
                    print("refused")
                try:
                    await grpc_server.serve(taken)
                except grpc_server.SettingsError:
                    print("refused")
        anyio.run(main, backend=sys.argv[1])
    """
    assert run(tmp_path, program, backend) == "refused\nrefused\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_of_the_body(tmp_path: Path, backend: str) -> None:
    """What the body of `running` raises comes out as it was raised, be it one error or a group."""
    program = """
        async def main():
            for error in (KeyError("mine"), ExceptionGroup("mine", [KeyError("one")])):
                try:
                    async with grpc_server.running(settings()):
                        raise error
                except Exception as raised:
                    print(repr(raised))
        anyio.run(main, backend=sys.argv[1])
    """
    assert run(tmp_path, program, backend) == "KeyError('mine')\nExceptionGroup('mine', [KeyError('one')])\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancelled_before_it_serves(tmp_path: Path, backend: str) -> None:
    """A cancellation at any moment of the start neither hangs nor leaves anything."""
    program = """
        import threading
        async def main():
            for after in (0, 0.01, 0.05, 0.1, 0.2, 0.4):
                with anyio.move_on_after(after):
                    async with grpc_server.running(settings()):
                        await anyio.sleep_forever()
            print("ended", [each.name for each in threading.enumerate() if "nyIO" in each.name and not each.daemon])
        anyio.run(main, backend=sys.argv[1])
    """
    assert run(tmp_path, program, backend).startswith("ended")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crash_cancels_its_neighbours(tmp_path: Path, backend: str) -> None:
    """When the storage cannot be started the nursery's other tasks are cancelled, and the error comes out."""
    program = """
        async def neighbour():
            try:
                await anyio.sleep(30)
            finally:
                print("cancelled")
        async def main():
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(neighbour)
                    await group.start(grpc_server.serve, settings(data_dir="/dev/null/x"))
            except* Exception as errors:
                print(type(errors.exceptions[0]).__name__)
        anyio.run(main, backend=sys.argv[1])
    """
    assert run(tmp_path, program, backend) == "cancelled\nTorrelqueError\n"


def test_what_was_read_stays_leased_when_the_stream_breaks(
    tmp_path: Path, storage: str, admin: redis.Redis, queue: str
) -> None:
    """A client that reads a task and is gone keeps its lease, though the server hears of that before its write ends."""
    program = """
        import dataclasses, queue as queues
        from grpc_server import consuming

        class Slow:
            # The end of a delivery's write is heard of late; all else is gRPC's.
            def __init__(self, context):
                self.context, self.ends = context, asyncio.Event()
            def __getattr__(self, name):
                return getattr(self.context, name)
            async def write(self, response):
                await self.context.write(response)
                if response.WhichOneof("response") == "delivery":
                    await self.ends.wait()

        class Stream(consuming.Stream):
            def __init__(self, visit, opened):
                super().__init__(dataclasses.replace(visit, context=Slow(visit.context)), opened)
            async def _read_all(self):
                try:
                    await super()._read_all()
                finally:
                    # By then all tasks of the stream are cancelled.
                    asyncio.get_running_loop().call_later(0.1, self._visit.context.ends.set)

        def read(stub):
            requests = queues.SimpleQueue()
            requests.put(pb.ConsumeRequest(open=pb.ConsumeOpen(queue=sys.argv[2], max_outstanding_tasks=1)))
            call = stub.Consume(iter(requests.get, None))
            next(call)
            stub.Enqueue(pb.EnqueueRequest(queue=sys.argv[2], task=pb.TaskSpec(payload=pb.Payload(data=b"1"))))
            (task,) = next(call).delivery.tasks
            call.cancel()
            requests.put(None)
            return task.task_id

        async def main():
            consuming.Stream = Stream
            async with grpc_server.running(settings(redis=sys.argv[1])) as server:
                task_id = await ask(server.address, read)
            print(task_id)
        anyio.run(main)
    """
    task_id = run(tmp_path, program, storage, queue).strip()
    assert admin.zrange(f"{queue}:working", 0, -1) == [task_id.encode()]
    assert admin.llen(f"{queue}:pending") == 0


def test_what_could_not_be_written_goes_back_at_once(
    tmp_path: Path, storage: str, admin: redis.Redis, queue: str
) -> None:
    """A poll whose client is gone before the tasks are written keeps none of them leased."""
    program = """
        from grpc_server import guard

        class Stuck:
            # Nothing is written; all else is gRPC's.
            def __init__(self, context):
                self.context = context
            def __getattr__(self, name):
                return getattr(self.context, name)
            async def write(self, response):
                await anyio.sleep_forever()

        visit = guard.Visit
        guard.Visit = lambda house, context, entry, name: visit(house, Stuck(context), entry, name)

        def poll(stub):
            stub.Enqueue(pb.EnqueueRequest(queue=sys.argv[2], task=pb.TaskSpec(payload=pb.Payload(data=b"1"))))
            try:
                stub.Dequeue(pb.DequeueRequest(queue=sys.argv[2], timeout={"seconds": 5}), timeout=1)
            except grpc.RpcError as error:
                return error.code().name

        async def main():
            async with grpc_server.running(settings(redis=sys.argv[1])) as server:
                print(await ask(server.address, poll))
        anyio.run(main)
    """
    assert run(tmp_path, program, storage, queue) == "DEADLINE_EXCEEDED\n"
    (task_id,) = admin.lrange(f"{queue}:pending", 0, -1)
    assert admin.zcard(f"{queue}:working") == 0
    assert admin.hget(f"{queue}:task:{task_id.decode()}", "dequeue_count") == b"1"
