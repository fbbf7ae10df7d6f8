"""Consume: credit bounds what is delivered, settlements count on any connection, and nothing stays parked."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
import redis
from support.bridge import Client, connect, refused, seconds
from support.streams import consuming, release, until

from grpc_server._pb import torrelque_pb2 as pb


def test_credit_of_one(client: Client) -> None:
    """One task at a time comes, the next when the one before is settled."""
    ids = [client.enqueue(b"%d" % n) for n in range(3)]
    with consuming(client) as stream:
        assert stream.opened().max_outstanding_tasks == 1
        for task_id in ids:
            (task,) = stream.tasks(1)
            assert task.task_id == task_id
            assert (client.stats().working, client.stats().pending) == (1, 2 - ids.index(task_id))
            assert stream.settle(release(task)) == []
    assert client.stats() == pb.GetQueueStatsResponse()


def test_credit_of_a_hundred(client: Client) -> None:
    """No more than the credit is out at any time, and all are settled with one message."""
    client.stub.BatchEnqueue(
        pb.BatchEnqueueRequest(queue=client.queue, tasks=[pb.TaskSpec(payload=pb.Payload(data=b"x"))] * 250)
    )
    with consuming(client, max_outstanding_tasks=100) as stream:
        stream.opened()
        for count in (100, 100, 50):
            tasks = stream.tasks(count)
            assert client.stats().working == count
            assert stream.settle(*[release(task) for task in tasks]) == []


def test_bytes_are_credit_too(client: Client) -> None:
    """Nothing is delivered while as many bytes are out as were granted; the last task may exceed it."""
    for _ in range(5):
        client.enqueue(b"x" * 600)
    with consuming(client, max_outstanding_tasks=10, max_outstanding_bytes=1000) as stream:
        stream.opened()
        first, second = stream.tasks(2)
        assert stream.settle() == []
        assert client.stats().working == 2
        stream.settle(release(first))
        (third,) = stream.tasks(1)
        assert stream.settle(release(second), release(third)) == []
        stream.tasks(2)


def test_credit_is_changed(client: Client) -> None:
    """Zero pauses delivery, also of what comes meanwhile; more lets it come."""
    with consuming(client, max_outstanding_tasks=5) as stream:
        stream.opened()
        stream.send(credit=pb.ConsumeCredit(max_outstanding_tasks=0))
        assert stream.settle() == []  # so the server has read the credit
        ids = [client.enqueue(), client.enqueue()]
        assert client.stats().pending == 2
        assert [client.state(task_id).dequeue_count for task_id in ids] == [0, 0]
        stream.send(credit=pb.ConsumeCredit(max_outstanding_tasks=2))
        stream.tasks(2)


def test_credit_is_lowered(client: Client) -> None:
    """What comes after the credit was lowered is delivered as far as that goes, and nothing is taken beyond it."""
    with consuming(client, max_outstanding_tasks=100) as stream:
        stream.opened()
        stream.send(credit=pb.ConsumeCredit(max_outstanding_tasks=2))
        assert stream.settle() == []  # so the server has read the credit
        specs = [pb.TaskSpec(payload=pb.Payload(data=b"x"), request_id=f"t{n}") for n in range(5)]
        client.stub.BatchEnqueue(pb.BatchEnqueueRequest(queue=client.queue, tasks=specs))
        # Which two is not said here: one may be on its way back from the claim that was broken off, with its number.
        got = {task.task_id: task.dequeue_count for task in stream.tasks(2)}
        assert list(got.values()) == [1, 1]
        should = [got.get(f"t{n}", 0) for n in range(5)]
        until(lambda: [client.state(f"t{n}").dequeue_count for n in range(5)] == should)


def test_settled_elsewhere(client: Client, bridge: Any) -> None:
    """A settlement by another connection counts, and settling again says that the task is gone and frees the credit."""
    client.enqueue(b"1")
    client.enqueue(b"2")
    with consuming(client) as stream, connect(bridge.address, client.queue) as other:
        stream.opened()
        (task,) = stream.tasks(1)
        other.release(task.task_id, dequeue_count=task.dequeue_count)
        (error,) = stream.settle(release(task))
        assert (error.index, error.reason) == (0, "TASK_NOT_FOUND")
        assert stream.tasks(1)[0].payload.data == b"2"


def test_items_that_fail(client: Client, admin: redis.Redis) -> None:
    """One that cannot be settled is listed and stops nothing; a lost lease frees the credit, a bad field does not."""
    client.enqueue(b"1")
    with consuming(client, max_outstanding_tasks=2) as stream:
        stream.opened()
        (task,) = stream.tasks(1)
        errors = stream.settle(
            pb.Settlement(task_id=task.task_id, dequeue_count=7, release=pb.ReleaseAction()),
            pb.Settlement(task_id=task.task_id, dequeue_count=1, release=pb.ReleaseAction(status=99)),
            pb.Settlement(task_id=task.task_id),
        )
        assert [(each.index, each.reason) for each in errors] == [
            (0, "LEASE_LOST"), (1, "INVALID_FIELD"), (2, "INVALID_FIELD"),
        ]  # fmt: skip
        assert stream.settle(release(task)) == []


def test_extended_on_the_stream(client: Client, admin: redis.Redis) -> None:
    """An extension moves the lease and gives no credit back."""
    client.enqueue(b"1", task_timeout=seconds(100))
    client.enqueue(b"2")
    with consuming(client) as stream:
        stream.opened()
        (task,) = stream.tasks(1)
        before = admin.zscore(f"{client.queue}:working", task.task_id)
        extend = pb.ExtendAction(task_timeout=seconds(500))
        assert stream.settle(pb.Settlement(task_id=task.task_id, dequeue_count=1, extend=extend)) == []
        assert admin.zscore(f"{client.queue}:working", task.task_id) > before + 300
        assert client.stats().pending == 1
        (error,) = stream.settle(pb.Settlement(task_id=task.task_id, dequeue_count=5, extend=extend))
        assert error.reason == "LEASE_LOST"
        for _ in range(5):
            assert stream.settle() == []
        assert client.stats().pending == 1, "what is said of another delivery gives no credit back"


def test_the_credit_of_an_extended_lease(client: Client) -> None:
    """Credit comes back when the lease would end as it was extended, not as it was."""
    client.enqueue(b"1", task_timeout=seconds(0.5))
    with consuming(client) as stream:
        stream.opened()
        (task,) = stream.tasks(1)
        extend = pb.ExtendAction(task_timeout=seconds(500))
        assert stream.settle(pb.Settlement(task_id=task.task_id, dequeue_count=1, extend=extend)) == []
        assert client.dequeue(wait=0.7) == []
        client.enqueue(b"2")
        assert [each.payload.data for each in client.dequeue(wait=1)] == [b"2"]


def test_a_lease_that_ends_gives_its_credit_back(client: Client) -> None:
    """The credit of a task whose lease has ended is free, and the task comes again with the next number."""
    client.enqueue(b"1", task_timeout=seconds(0.3))
    with consuming(client) as stream:
        stream.opened()
        assert stream.tasks(1)[0].dequeue_count == 1
        assert stream.tasks(1)[0].dequeue_count == 2


def test_requeued_on_the_stream(client: Client) -> None:
    """A task given back comes again."""
    client.enqueue(b"1")
    with consuming(client) as stream:
        stream.opened()
        (task,) = stream.tasks(1)
        assert stream.settle(pb.Settlement(task_id=task.task_id, requeue=pb.RequeueAction())) == []
        assert stream.tasks(1)[0].dequeue_count == 2


def test_delivered_again_amid_a_settlement(client: Client) -> None:
    """What is requeued without its number, and comes again before all that was said with it is done, counts again."""
    client.enqueue(request_id="delayed", delay=seconds(1000))
    with consuming(client, max_outstanding_tasks=3) as stream:
        stream.opened()
        client.enqueue(b"1")
        client.enqueue(b"2")
        first, _ = stream.tasks(2)
        refused = [pb.Settlement(task_id="delayed", release=pb.ReleaseAction())] * 300
        requeued = pb.Settlement(task_id=first.task_id, requeue=pb.RequeueAction())
        stream.send(settle=pb.ConsumeSettle(settlements=[requeued, *refused]))
        said = {response.WhichOneof("response"): response for response in (stream.next(), stream.next())}
        assert [task.dequeue_count for task in said["delivery"].delivery.tasks] == [2]
        assert len(said["settled"].settled.errors) == 300
        tasks = [pb.TaskSpec(payload=pb.Payload(data=b"x"))] * 5
        client.stub.BatchEnqueue(pb.BatchEnqueueRequest(queue=client.queue, tasks=tasks))
        stream.tasks(1)
        assert stream.settle() == []
        assert client.stats().working == 3


def test_progress(client: Client) -> None:
    """Idle messages come as often as asked."""
    with consuming(client, progress_interval=seconds(0.1)) as stream:
        stream.opened()
        assert [stream.next().WhichOneof("response") for _ in range(3)] == ["progress"] * 3


@pytest.mark.parametrize("policy", ["DISCONNECT_POLICY_KEEP_LEASE", "DISCONNECT_POLICY_UNSPECIFIED"])
@pytest.mark.parametrize("how", ["cancel", "half-close"])
def test_the_end_keeps_the_lease(client: Client, policy: str, how: str) -> None:
    """What was delivered stays leased when the stream ends, and can still be settled."""
    client.enqueue()
    with consuming(client, disconnect_policy=policy) as stream:
        stream.opened()
        (task,) = stream.tasks(1)
        if how == "half-close":
            stream.half_close()
            assert list(stream.call) == []
            assert stream.call.code() is grpc.StatusCode.OK
    assert client.dequeue(wait=0.2) == []
    client.release(task.task_id, dequeue_count=1)


def test_what_was_read_at_the_end_stays_leased(client: Client) -> None:
    """Who half-closes while tasks pour in has what it reads until the end: none of that is given back."""
    batch = pb.BatchEnqueueRequest(queue=client.queue, tasks=[pb.TaskSpec(payload=pb.Payload(data=b"x"))] * 40)
    for _ in range(150):
        client.stub.BatchEnqueue(batch)
        with consuming(client, max_outstanding_tasks=1) as stream:
            stream.opened()
            tasks = list(stream.next().delivery.tasks)
            stream.send(credit=pb.ConsumeCredit(max_outstanding_tasks=40))
            stream.half_close()
            for response in stream.call:
                tasks += response.delivery.tasks
        assert stream.call.code() is grpc.StatusCode.OK
        until(lambda: client.stats().tasks == client.stats().pending + client.stats().working)
        assert client.stats().working == len(tasks)
        settled = [release(task) for task in tasks]
        assert (
            list(client.stub.BatchRelease(pb.BatchReleaseRequest(queue=client.queue, settlements=settled)).errors) == []
        )


@pytest.mark.parametrize("how", ["cancel", "half-close"])
def test_the_end_requeues(client: Client, how: str) -> None:
    """Under the other policy it goes back at once, with a number that is used up, so the first worker is fenced."""
    client.enqueue()
    with consuming(client, disconnect_policy="DISCONNECT_POLICY_REQUEUE") as stream:
        stream.opened()
        (task,) = stream.tasks(1)
        if how == "half-close":
            stream.half_close()
            assert list(stream.call) == []
    (again,) = client.dequeue()
    assert again.dequeue_count == 2
    with refused("FAILED_PRECONDITION/LEASE_LOST"):
        client.release(task.task_id, dequeue_count=task.dequeue_count)


def test_nobody_is_left_waiting(client: Client) -> None:
    """A stream that was cancelled while it waited takes no task with it."""
    for _ in range(20):
        with consuming(client, max_outstanding_tasks=3) as stream:
            stream.opened()
    client.enqueue()
    assert len(client.dequeue()) == 1


def test_cancelled_amid_deliveries(client: Client, admin: redis.Redis) -> None:
    """Streams that are cancelled while tasks pour in lose none: each comes to somebody, none stays parked."""
    specs = [pb.TaskSpec(payload=pb.Payload(data=b"%d" % n)) for n in range(300)]
    client.stub.BatchEnqueue(pb.BatchEnqueueRequest(queue=client.queue, tasks=specs))
    done: set[str] = set()
    for n in range(60):
        with consuming(client, max_outstanding_tasks=20, disconnect_policy="DISCONNECT_POLICY_REQUEUE") as stream:
            stream.opened()
            if n % 3:
                tasks = stream.next().delivery.tasks
                stream.settle(*[release(task) for task in tasks[:3]])
                done |= {task.task_id for task in tasks[:3]}
    while len(done) < 300:
        for task in client.dequeue(100, wait=5):
            client.release(task.task_id, dequeue_count=task.dequeue_count)
            done.add(task.task_id)
    until(lambda: client.stats() == pb.GetQueueStatsResponse())
    assert admin.llen(f"{client.queue}:dequeueing") == 0
