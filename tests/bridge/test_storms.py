"""Clients that leave in masses: nothing of them stays, neither tasks nor memory nor connections."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import grpc
import pytest
import redis
from support.bridge import Client, Process, connect, seconds, serving
from support.streams import until

from grpc_server._pb import torrelque_pb2 as pb


def cancel_polls(client: Client, count: int) -> None:
    """Open polls and cancel them, many at a time."""
    for _ in range(count // 50):
        polls = [
            client.stub.Dequeue.future(pb.DequeueRequest(queue=client.queue, timeout=seconds(30))) for _ in range(50)
        ]
        client.stats()  # it comes behind them on the connection: they have arrived
        for poll in polls:
            poll.cancel()


def cancel_watches(client: Client, task_id: str, count: int) -> None:
    """Open watches, see their first state, and cancel them."""
    for _ in range(count // 50):
        watches = [client.watch(task_id) for _ in range(50)]
        for watch in watches:
            next(watch)
        for watch in watches:
            watch.cancel()


@pytest.mark.slow
def test_ten_thousand_cancelled(storage: str, admin: redis.Redis, queue: str) -> None:
    """After 10,000 cancelled polls and 10,000 cancelled watches memory and connections are where they were."""
    with serving("--redis", storage, "--max-polls", "100000") as process:
        with connect(process.address, queue) as client:
            watched = client.enqueue(b"w", delay=seconds(600))
            cancel_polls(client, 2000)
            cancel_watches(client, watched, 2000)
            before, files = process.memory(), process.descriptors()
            cancel_polls(client, 10_000)
            cancel_watches(client, watched, 10_000)
            until(lambda: process.descriptors() <= files + 2)
            assert process.memory() - before < 8 << 20
            client.enqueue(b"1")
            assert [task.payload.data for task in client.dequeue()] == [b"1"]
    assert admin.llen(f"{queue}:dequeueing") == 0


@pytest.mark.alone
def test_polls_with_short_deadlines(client: Client, admin: redis.Redis) -> None:
    """Polls whose deadlines pass amid deliveries lose nothing: each task comes to somebody in the end."""
    count = 1500
    specs = [pb.TaskSpec(payload=pb.Payload(data=b"x"), task_timeout=seconds(2))] * count
    for _ in range(3):
        client.stub.BatchEnqueue(pb.BatchEnqueueRequest(queue=client.queue, tasks=specs[:500]))
    done: set[str] = set()
    lock = threading.Lock()
    seed = random.Random(7)

    def poll(deadlines: list[float]) -> None:
        for deadline in deadlines:
            request = pb.DequeueRequest(queue=client.queue, timeout=seconds(5))
            try:
                tasks = client.stub.Dequeue(request, timeout=deadline).tasks
            except grpc.RpcError:
                continue
            settle(tasks)

    def settle(tasks: Any) -> None:
        for task in tasks:
            client.release(task.task_id, dequeue_count=task.dequeue_count)
            with lock:
                done.add(task.task_id)

    threads = [
        threading.Thread(target=poll, args=([seed.uniform(0.001, 0.02) for _ in range(150)],)) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    began = time.monotonic()
    while client.stats().tasks:
        assert time.monotonic() - began < 30
        settle(client.dequeue(100, wait=1))
    assert len(done) == count
    assert admin.llen(f"{client.queue}:dequeueing") == 0


def test_vanished(bridge: Process, client: Client, admin: redis.Redis) -> None:
    """Connections that are cut while polls wait take no task with them."""
    for _ in range(10):
        with connect(bridge.address, client.queue) as other:
            polls = [
                other.stub.Dequeue.future(pb.DequeueRequest(queue=client.queue, timeout=seconds(30))) for _ in range(20)
            ]
            until(lambda polls=polls: any(poll.running() for poll in polls))
    ids = {client.enqueue(b"x") for _ in range(50)}
    got: set[str] = set()
    began = time.monotonic()
    while got < ids:
        assert time.monotonic() - began < 30
        got |= {task.task_id for task in client.dequeue(50, wait=1)}
