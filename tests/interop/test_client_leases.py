"""Leases in the clients of four languages: kept as long as the work takes, and the work stopped before they end."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
import redis
from support.bridge import Client, Process, connect, refused, seconds, serving
from support.clients import LANGUAGES, Program, running
from support.freezer import freezing
from support.standstill import Standstill
from support.streams import until

from grpc_server._pb import torrelque_pb2 as pb
from torrelque.embedded import _free_port

pytestmark = [pytest.mark.interop, pytest.mark.timeout(240)]

TASK = json.dumps({"path": __file__}).encode()
#: Work that nobody waits for: it must be stopped.
ENDLESS = ("--hold", "600", "--credit", "1")


def enqueue(client: Client, lease: float) -> str:
    return client.enqueue(TASK, task_timeout=seconds(lease))


def lost_in_time(consumer: Program, admin: redis.Redis, queue: str, task_id: str) -> dict[str, Any]:
    """Wait until the work has been stopped, and check that the lease has not ended by the clock of Redis."""
    with Standstill.counted() as standstill:
        event = consumer.event("lost")
        second, micros = admin.time()
        now = second + micros / 1e6 - standstill.seconds
    ends = admin.zscore(f"{queue}:working", task_id)
    assert ends is not None, "it is still held, and nobody has settled it"
    assert now < ends
    assert consumer.named("released") == consumer.named("refused") == []
    return event


def take(client: Client, task_id: str) -> None:
    """Take the task when its first lease has ended, and hold it for long."""
    (task,) = client.dequeue(wait=20)
    assert (task.task_id, task.dequeue_count) == (task_id, 2)
    request = pb.ExtendLeaseRequest(queue=client.queue, task_id=task_id, dequeue_count=2, task_timeout=seconds(300))
    client.stub.ExtendLease(request)


def has_lost_it(client: Client, task_id: str) -> None:
    """Check that the first delivery can settle no more, and the second can."""
    with refused("FAILED_PRECONDITION/LEASE_LOST"):
        client.release(task_id, dequeue_count=1)
    client.release(task_id, dequeue_count=2)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_long_task_is_kept_by_one_worker(bridge: Process, client: Client, language: str) -> None:
    """Work of more than two leases is done once, though somebody else waits for the task all the time."""
    task_id = enqueue(client, 3)
    options = ("--hold", "8", "--until", "1", "--credit", "1")
    with running(language, bridge.address, client.queue, "consume", *options) as consumer:
        assert consumer.event("delivered")["task_id"] == task_id
        assert client.dequeue(wait=7) == []
        consumer.ended_well()
    assert len(consumer.named("extended")) >= 4
    assert consumer.named("released") == [{"event": "released", "task_id": task_id, "dequeue_count": 1}]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_server_dies(storage: str, admin: redis.Redis, queue: str, language: str) -> None:
    """When the server is killed the work is stopped before the lease ends; a new server delivers the task again."""
    address = f"127.0.0.1:{_free_port()}"
    with (
        running(language, address, queue, "consume", *ENDLESS) as consumer,
        connect(address, queue) as client,
    ):
        with serving("--redis", storage, address=address) as server:
            task_id = enqueue(client, 4)
            consumer.event("extended")
            server.signal(signal.SIGKILL)
            server.wait()
        event = lost_in_time(consumer, admin, queue, task_id)
        assert event == {"event": "lost", "task_id": task_id, "dequeue_count": 1}
        with serving("--redis", storage, address=address):
            assert consumer.event("delivered") == {"event": "delivered", "task_id": task_id, "dequeue_count": 2}
            has_lost_it(client, task_id)


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_gets_through(bridge: Process, client: Client, admin: redis.Redis, language: str) -> None:
    """When all connections fall silent the work is stopped before the lease ends, and somebody else gets the task."""
    with freezing(f"grpc://{bridge.address}") as relay:
        with running(language, relay.address, client.queue, "consume", *ENDLESS) as consumer:
            task_id = enqueue(client, 4)
            consumer.event("extended")
            relay.freeze(new_ones=True)
            lost_in_time(consumer, admin, client.queue, task_id)
            take(client, task_id)
            has_lost_it(client, task_id)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_connection_that_fell_silent(bridge: Process, client: Client, admin: redis.Redis, language: str) -> None:
    """When the connection dies and nobody is told, the lease is kept over another one."""
    with freezing(f"grpc://{bridge.address}") as relay:
        with running(language, relay.address, client.queue, "consume", *ENDLESS) as consumer:
            task_id = enqueue(client, 6)
            consumer.event("delivered")
            before = admin.zscore(f"{client.queue}:working", task_id)
            relay.freeze()
            assert consumer.event("extended") == {"event": "extended", "task_id": task_id}
            assert admin.zscore(f"{client.queue}:working", task_id) > before
            assert client.state(task_id).dequeue_count == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_stopped_past_the_lease(bridge: Process, client: Client, language: str) -> None:
    """A client that stood still past its lease stops the work when it wakes up, and settles nothing."""
    task_id = enqueue(client, 4)
    with running(language, bridge.address, client.queue, "consume", *ENDLESS) as consumer:
        # From now on the client knows when its lease ends; before, it counts from when the delivery came to it.
        consumer.event("extended")
        consumer.signal(signal.SIGSTOP)
        take(client, task_id)
        consumer.signal(signal.SIGCONT)
        assert consumer.event("lost") == {"event": "lost", "task_id": task_id, "dequeue_count": 1}
        has_lost_it(client, task_id)
        consumer.signal(signal.SIGTERM)
        consumer.ended_well()
    assert consumer.named("released") == consumer.named("refused") == []


def take_away(admin: redis.Redis, client: Client, task_id: str) -> None:
    """Let the lease end, so that the task is delivered again."""
    admin.zadd(f"{client.queue}:working", {task_id: 1})
    client.admin.Sweep(pb.SweepRequest(queue=client.queue))
    take(client, task_id)


@pytest.mark.parametrize("language", LANGUAGES)
def test_taken_by_somebody_else(bridge: Process, client: Client, admin: redis.Redis, language: str) -> None:
    """The next extension is refused, and then the work is stopped: the task is somebody else's."""
    task_id = enqueue(client, 4)
    with running(language, bridge.address, client.queue, "consume", *ENDLESS) as consumer:
        consumer.event("extended")
        take_away(admin, client, task_id)
        assert consumer.event("refused") == {"event": "refused", "task_id": task_id, "reason": "LEASE_LOST"}
        has_lost_it(client, task_id)
        consumer.signal(signal.SIGTERM)
        consumer.ended_well()
    assert consumer.named("released") == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_done_when_it_was_somebody_elses(bridge: Process, client: Client, admin: redis.Redis, language: str) -> None:
    """Work that is done before anybody noticed is settled in vain: the delivery number tells the server."""
    task_id = enqueue(client, 300)
    options = ("--hold", "1.5", "--credit", "1")
    with running(language, bridge.address, client.queue, "consume", *options) as consumer:
        consumer.event("delivered")
        consumer.signal(signal.SIGSTOP)
        take_away(admin, client, task_id)
        consumer.signal(signal.SIGCONT)
        assert consumer.event("refused") == {"event": "refused", "task_id": task_id, "reason": "LEASE_LOST"}
        has_lost_it(client, task_id)
        until(lambda: client.stats().tasks == 0)
