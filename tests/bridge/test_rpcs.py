"""The rpcs that answer once: what they do, what they say, and how they fence."""

from __future__ import annotations

import time

import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.bridge import Client, Process, refused, seconds

from grpc_server._pb import torrelque_pb2 as pb


def test_a_task_goes_its_way(client: Client) -> None:
    """Enqueued, delivered with its bytes and number, released with a result that can be read."""
    body = bytes(range(256))
    task_id = client.enqueue(body, task_timeout=seconds(7.5))
    (task,) = client.dequeue()
    assert (task.task_id, task.payload.data, task.dequeue_count) == (task_id, body, 1)
    assert task.timeout == seconds(7.5)
    assert task.payload.content_type == "application/json"
    client.release(task_id, dequeue_count=1, result=pb.Payload(data=b"\x00"), status=pb.TASK_STATUS_REJECTED)
    state = client.state(task_id)
    assert (state.status, state.result.data, state.dequeue_count) == (pb.TASK_STATUS_REJECTED, b"\x00", 1)
    assert state.enqueue_time.ToMicroseconds() <= state.last_dequeue_time.ToMicroseconds()
    assert state.last_dequeue_time.ToMicroseconds() <= state.release_time.ToMicroseconds()
    assert not state.HasField("last_requeue_time")
    assert client.stats() == pb.GetQueueStatsResponse()


def test_an_empty_result_is_one(client: Client) -> None:
    """A result of no bytes is kept; without a result nothing is."""
    kept, gone = client.enqueue(), client.enqueue()
    client.dequeue(2)
    client.release(kept, result=pb.Payload())
    client.release(gone)
    assert client.state(kept).HasField("result")
    with refused("NOT_FOUND/TASK_NOT_FOUND") as details:
        client.state(gone)
    assert details[0].metadata == {"queue": client.queue, "taskId": gone}


def test_nothing_in_time_is_no_error(client: Client) -> None:
    """A poll that finds nothing answers with no tasks: at once, in its time, or before its deadline."""
    assert client.dequeue(wait=0) == []
    began = time.monotonic()
    assert client.dequeue(wait=0.2) == []
    assert client.dequeue(wait=20, deadline=0.8) == []
    assert 0.2 <= time.monotonic() - began < 10


def test_request_ids(client: Client) -> None:
    """A repeat is told so and adds nothing, one by one and within a batch."""
    request = pb.EnqueueRequest(queue=client.queue, task=pb.TaskSpec(payload=pb.Payload(data=b"1"), request_id="a"))
    assert client.stub.Enqueue(request) == pb.EnqueueResponse(task_id="a")
    assert client.stub.Enqueue(request) == pb.EnqueueResponse(task_id="a", deduplicated=True)
    specs = [pb.TaskSpec(payload=pb.Payload(data=b"%d" % n), request_id=name) for n, name in enumerate("aba")]
    said = client.stub.BatchEnqueue(pb.BatchEnqueueRequest(queue=client.queue, tasks=specs))
    assert [(each.task_id, each.deduplicated) for each in said.results] == [("a", True), ("b", False), ("a", True)]
    assert client.stats().pending == 2


def test_a_batch_of_all_kinds(client: Client) -> None:
    """Tasks with their own times and ids keep their order, and a thousand come in one call."""
    specs = [
        pb.TaskSpec(payload=pb.Payload(data=b"0"), task_timeout=seconds(1)),
        pb.TaskSpec(payload=pb.Payload(data=b"1"), delay=seconds(60)),
        pb.TaskSpec(payload=pb.Payload(data=b"2"), request_id="named"),
        *[pb.TaskSpec(payload=pb.Payload(data=b"x"))] * 997,
    ]
    said = client.stub.BatchEnqueue(pb.BatchEnqueueRequest(queue=client.queue, tasks=specs)).results
    assert len({each.task_id for each in said}) == 1000
    assert said[2].task_id == "named"
    assert (client.stats().pending, client.stats().delayed) == (999, 1)
    assert [task.task_id for task in client.dequeue(3)] == [said[i].task_id for i in (0, 2, 3)]


def test_an_answer_stays_within_what_clients_take(client: Client) -> None:
    """Tasks of a mebibyte come three at a time; the rest stays in the queue, not delivered."""
    for _ in range(5):
        client.enqueue(b"x" * (1 << 20))
    assert len(client.dequeue(100)) == 3
    assert len(client.dequeue(100)) == 2


def test_fencing(client: Client, admin: redis.Redis) -> None:
    """An older delivery may not change the task and hears which one holds it; a later call with the right one may."""
    task_id = client.enqueue()
    client.dequeue()
    admin.zadd(f"{client.queue}:working", {task_id: 1})
    assert client.dequeue()[0].dequeue_count == 2
    for call in (
        lambda: client.release(task_id, dequeue_count=1),
        lambda: client.stub.Requeue(pb.RequeueRequest(queue=client.queue, task_id=task_id, dequeue_count=1)),
        lambda: client.stub.ExtendLease(pb.ExtendLeaseRequest(queue=client.queue, task_id=task_id, dequeue_count=1)),
    ):
        with refused("FAILED_PRECONDITION/LEASE_LOST") as details:
            call()
        assert details[0].metadata == {
            "queue": client.queue, "taskId": task_id, "current": "2", "status": "WORKING",
        }  # fmt: skip
    client.stub.Requeue(pb.RequeueRequest(queue=client.queue, task_id=task_id, dequeue_count=2, delay=seconds(60)))
    with refused("FAILED_PRECONDITION/TASK_NOT_WORKING") as details:
        client.release(task_id)
    assert details[0].metadata["status"] == "DELAYED"


def test_a_lease_is_extended(client: Client, admin: redis.Redis) -> None:
    """The lease ends a full length after the server's now, or as long after it as was asked."""
    task_id = client.enqueue(task_timeout=seconds(100))
    client.dequeue()
    now = admin.time()[0]
    said = client.stub.ExtendLease(pb.ExtendLeaseRequest(queue=client.queue, task_id=task_id))
    assert said.stale_time.ToSeconds() == pytest.approx(now + 100, abs=2)
    request = pb.ExtendLeaseRequest(queue=client.queue, task_id=task_id, dequeue_count=1, task_timeout=seconds(5))
    assert client.stub.ExtendLease(request).stale_time.ToSeconds() == pytest.approx(now + 5, abs=2)


def test_a_batch_of_settlements(client: Client) -> None:
    """Each is applied on its own and in its order; the failed ones are listed with their places and reasons."""
    a, b, c, d = (client.enqueue(b"%d" % n) for n in range(4))
    client.dequeue(4)
    settlements = [
        pb.Settlement(task_id=a, dequeue_count=1, release=pb.ReleaseAction(result=pb.Payload(data=b"r"))),
        pb.Settlement(task_id="nobody", release=pb.ReleaseAction()),
        pb.Settlement(task_id=b, dequeue_count=9, release=pb.ReleaseAction()),
        pb.Settlement(task_id=c),
        pb.Settlement(task_id=d, extend=pb.ExtendAction(task_timeout=seconds(9))),
        pb.Settlement(task_id=d, dequeue_count=1, requeue=pb.RequeueAction(delay=seconds(50))),
        pb.Settlement(task_id=d, extend=pb.ExtendAction()),
        pb.Settlement(task_id=b, release=pb.ReleaseAction(status=pb.TASK_STATUS_PENDING)),
    ]
    request = pb.BatchReleaseRequest(queue=client.queue, settlements=settlements)
    errors = client.stub.BatchRelease(request).errors
    assert [(error.index, error.reason) for error in errors] == [
        (1, "TASK_NOT_FOUND"), (2, "LEASE_LOST"), (3, "INVALID_FIELD"), (6, "TASK_NOT_WORKING"),
        (7, "STATUS_NOT_FINAL"),
    ]  # fmt: skip
    assert client.state(a).result.data == b"r"
    stats = client.stats()
    assert (stats.working, stats.delayed) == (2, 1)


def test_results_of_a_batch_are_kept_each_for_its_own_time(client: Client, admin: redis.Redis) -> None:
    """Neighbours that say otherwise how long, or how, are not done alike."""
    ids = [client.enqueue() for _ in range(3)]
    client.dequeue(3)
    actions = [
        pb.ReleaseAction(result=pb.Payload(data=b"r"), result_ttl=seconds(ttl), status=status)
        for ttl, status in (
            (100, pb.TASK_STATUS_COMPLETED), (500, pb.TASK_STATUS_COMPLETED), (500, pb.TASK_STATUS_REJECTED),
        )
    ]  # fmt: skip
    settlements = [pb.Settlement(task_id=task_id, release=action) for task_id, action in zip(ids, actions, strict=True)]
    assert not client.stub.BatchRelease(pb.BatchReleaseRequest(queue=client.queue, settlements=settlements)).errors
    kept = [admin.ttl(f"{client.queue}:task:{task_id}") for task_id in ids]
    assert kept == pytest.approx([100, 500, 500], abs=5)
    assert [client.state(task_id).status for task_id in ids] == [action.status for action in actions]


def test_a_repeated_release_can_be_told(client: Client) -> None:
    """Of a task that is not the caller's any more is said what is known: final, by the very same delivery."""
    task_id = client.enqueue()
    client.dequeue()
    done = pb.Settlement(task_id=task_id, dequeue_count=1, release=pb.ReleaseAction(result=pb.Payload(data=b"r")))
    for _ in range(2):
        said = client.stub.BatchRelease(pb.BatchReleaseRequest(queue=client.queue, settlements=[done]))
    (error,) = said.errors
    assert (error.reason, error.status, error.dequeue_count) == ("TASK_NOT_WORKING", pb.TASK_STATUS_COMPLETED, 1)
    with refused("FAILED_PRECONDITION/TASK_NOT_WORKING") as details:
        client.release(task_id, dequeue_count=1, result=pb.Payload(data=b"r"))
    assert (details[0].metadata["status"], details[0].metadata["current"]) == ("COMPLETED", "1")


def test_sweep(client: Client, admin: redis.Redis) -> None:
    """A sweep by hand, and a schedule that can be set and stopped again, say what they did and where."""
    stale, due = client.enqueue(), client.enqueue(delay=seconds(60))
    client.dequeue()
    # The server sweeps a queue in use by itself, and would perhaps be first.
    client.admin.UnscheduleSweep(pb.UnscheduleSweepRequest(queue=client.queue))
    admin.zadd(f"{client.queue}:working", {stale: 1})
    admin.zadd(f"{client.queue}:delayed", {due: 1})
    said = client.admin.Sweep(pb.SweepRequest(queue=client.queue))
    assert (said.stale, said.due, said.undequeued) == (1, 1, 0)
    one = client.admin.ScheduleSweep(pb.ScheduleSweepRequest(queue=client.queue, interval=seconds(0.05)))
    other = client.admin.UnscheduleSweep(pb.UnscheduleSweepRequest(queue=client.queue))
    assert one.server_instance_id == other.server_instance_id != ""
    client.admin.UnscheduleSweep(pb.UnscheduleSweepRequest(queue=client.queue))


def test_python_workers_beside(client: Client, admin: redis.Redis) -> None:
    """The data is the library's: a task enqueued here has the layout that every Python consumer reads."""
    task_id = client.enqueue(b'{"n": 1}')
    assert admin.lrange(f"{client.queue}:pending", 0, -1) == [task_id.encode()]
    assert admin.hget(f"{client.queue}:tasks", task_id) == b'{"n": 1}'


def test_many_queues(bridge: Process, client: Client, admin: redis.Redis) -> None:
    """Hundreds of queues in use at a time are served, and the server stays well."""
    names = [f"{client.queue}.{n}" for n in range(300)]
    try:
        for name in names:
            with_name = pb.EnqueueRequest(queue=name, task=pb.TaskSpec(payload=pb.Payload(data=b"x")))
            client.stub.Enqueue(with_name, timeout=10)
        stub = health_pb2_grpc.HealthStub(client.channel)
        assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    finally:
        admin.delete(*[key for name in names for key in admin.scan_iter(f"{name}:*")])


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_junk_to_the_health_service(client: Client, method: str) -> None:
    """Health is open to anybody, and says of junk what everybody else here says."""
    call = client.channel.unary_stream(f"/grpc.health.v1.Health/{method}")
    with refused("INVALID_ARGUMENT/MALFORMED_REQUEST"):
        list(call(b"\xff", timeout=10))
