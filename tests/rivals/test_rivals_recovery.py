"""Bugs of other queues about what comes back: each docstring tells the bug, each test that it is not ours."""

from __future__ import annotations

import signal
import time
from typing import Any

import grpc
import pytest
import redis
from support import Pair, Server, snapshot
from support.bridge import connect, seconds, serving
from support.checkpoints import until
from support.peer import lapse, seed
from support.streams import Stream
from support.streams import until as wait_until
from support.workers import open_worker

from grpc_server._pb import torrelque_pb2 as pb
from torrelque import TorrelqueTimeoutError
from torrelque.calls import SWEEP_ALL, Calls
from torrelque.keys import Keys


@pytest.mark.anyio
async def test_rival_rq_507(open_queue: Any, server: Server, admin: redis.Redis, name: str, pair: Pair) -> None:
    """Theirs: what a worker is busy with when SIGTERM comes counts as started for ever, and what it was about to begin
    is lost."""
    async with open_queue() as queue:
        await queue.enqueue("busy with it", task_timeout=1)
        # It wants two: it holds one, and waits for another.
        async with open_worker(server.url, name, pair, 2) as worker:
            await until(lambda: admin.zcard(f"{name}:working") == 1, 20)
            await until(lambda: any(client["cmd"] == "blmove" for client in admin.client_list()))
            worker.signal(signal.SIGTERM)
            await until(lambda: not any(client["cmd"] == "blmove" for client in admin.client_list()))
        await queue.enqueue("next")
        got = [await queue.dequeue(5) for _ in range(2)]
        assert [(task, task_id.dequeue_count) for task_id, task in got] == [("next", 1), ("busy with it", 2)]
        snapshot(admin, name).check()


@pytest.mark.anyio
async def test_rival_celery_5935(open_queue: Any, admin: redis.Redis, name: str) -> None:
    """Theirs: what is due later than a lease (their visibility timeout) lasts is delivered again and again."""
    async with open_queue() as queue:
        queue.schedule_sweep(0.05)
        before = time.time()
        await queue.enqueue("t", task_timeout=1, delay=1.5)
        task_id, _ = await queue.dequeue(5)
        assert time.time() - before >= 1.5
        assert task_id.dequeue_count == 1
        await queue.release(task_id, strict=True)
        with pytest.raises(TorrelqueTimeoutError):
            await queue.dequeue(0.5)
        assert admin.keys(f"{name}:*") == []


@pytest.mark.anyio
async def test_rival_saq_195(open_queue: Any, admin: redis.Redis, name: str) -> None:
    """Theirs: who retries a job looks for it in the list of all that wait (LREM), and that takes the time of Redis."""
    pending = f"{name}:pending"
    async with open_queue() as queue:
        await queue.enqueue_many(range(7))
        with admin.monitor() as monitor:
            held = [task_id for task_id, _ in await queue.dequeue(0, max_tasks=6)]
            await queue.extend(held[0])
            await queue.requeue(held[0], strict=True)
            await queue.requeue(held[1], 0.01, strict=True)
            await queue.release(held[2], strict=True)
            await queue.release(held[3], result="r", strict=True)
            await queue.release_many([held[4]])
            lapse(admin, name, held[5])
            assert (await queue.sweep())[0] == 1
            await queue.dequeue(0)
            admin.echo("the end")
            used: set[str] = set()
            while "the end" not in (command := monitor.next_command()["command"]):
                verb, *words = command.split()
                if pending in words and not verb.upper().startswith("EVAL"):
                    used.add(verb.upper())
    # Both ends of a list, and how long it is, are found at once.
    assert {"LPUSH", "RPOP"} <= used <= {"LPUSH", "RPUSH", "RPOP", "LPOP", "LLEN", "BLMOVE"}


@pytest.mark.anyio
async def test_rival_taskiq_131(open_queue: Any, admin: redis.Redis, name: str) -> None:
    """Theirs: who recovers takes a lock that has no end, and when it is killed nobody recovers anything any more."""
    seed(admin, name, "dequeueing", 1200)
    seed(admin, name, "working", 1200)
    call = Calls(Keys(name)).sweep(300, SWEEP_ALL)
    async with open_queue() as queue:
        # The first step of a sweep that is killed then.
        step = admin.eval(call.script.text, len(call.keys), *call.keys, *call.head)
        assert 0 < step[0] < 1200
        assert step[4] != b"end"
        assert await queue.sweep() == (1200 - step[0], 0, 0)
        # Another one is killed when it has put back some of what was parked.
        step = admin.eval(call.script.text, len(call.keys), *call.keys, *call.head)
        assert 0 < step[2] < 1200
        counts = [await queue.sweep() for _ in range(3)]
        assert sum(undequeued for _, _, undequeued in counts) == 1200 - step[2]
        assert admin.llen(f"{name}:pending") == 2400


def test_rival_sidekiq_5540(storage: str) -> None:
    """Theirs: a restart strands what was being handed out, and what was worked on."""
    name = "restarted"
    with redis.Redis.from_url(storage) as admin, serving("--redis", storage) as other:
        with connect(other.address, name) as client:
            with serving("--redis", storage, "--grace", "1") as old, connect(old.address, name) as leaving:
                held = client.enqueue(b"held", task_timeout=seconds(2))
                stream = Stream(leaving, max_outstanding_tasks=1)
                stream.opened()
                assert [task.task_id for task in stream.tasks(1)] == [held]
                request = pb.DequeueRequest(queue=name, timeout=seconds(20))
                polls = [leaving.stub.Dequeue.future(request, timeout=30) for _ in range(20)]
                wait_until(lambda: any(each["cmd"] == "blmove" for each in admin.client_list()))
                old.signal(signal.SIGTERM)
                ids = {client.enqueue(b"x", task_timeout=seconds(2)) for _ in range(30)}
                assert old.wait() == 0
                stream.half_close()
            handed: set[str] = set()
            for poll in polls:
                try:
                    handed |= {task.task_id for task in poll.result().tasks}
                except grpc.RpcError:
                    continue
            seen = snapshot(admin, name)
            seen.check()
            assert seen.dequeueing == []
            # Leased is only what somebody was given: all else is to be had at once.
            assert set(seen.working) <= handed | {held}
            counts: dict[str, int] = {}
            while len(counts) < 31:
                tasks = client.dequeue(100, wait=5)
                assert tasks
                counts |= {task.task_id: task.dequeue_count for task in tasks}
            assert set(counts) == ids | {held}
            assert counts[held] == 2
        admin.delete(*admin.keys(f"{name}:*"))
