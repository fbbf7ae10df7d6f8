"""Watch: the present state, then each change until the final one, over whatever the network does."""

from __future__ import annotations

import threading
import time
from typing import Any

import anyio
import grpc
import pytest
import redis
from support.bridge import Client, Process, connect, refused, seconds, serving

from grpc_server._pb import torrelque_pb2 as pb
from grpc_server.watching import Mailbox


def statuses(states: Any) -> list[str]:
    """Name the statuses of a watch that has ended."""
    return [pb.TaskStatus.Name(each.state.status).removeprefix("TASK_STATUS_") for each in states]


def test_to_the_end(client: Client) -> None:
    """The present state comes first, then the changes; it ends well after the final one, which has the result."""
    task_id = client.enqueue()
    watch = client.watch(task_id)
    seen = [next(watch)]
    client.dequeue()
    seen.append(next(watch))
    client.release(task_id, result=pb.Payload(data=b"r"))
    seen += watch
    assert statuses(seen) == ["PENDING", "WORKING", "COMPLETED"]
    assert seen[-1].state.result.data == b"r"
    assert [each.cursor.revision for each in seen] == [1, 2, 3]
    assert [each.cursor.status for each in seen] == [each.state.status for each in seen]
    assert watch.code() is grpc.StatusCode.OK


def test_the_stream_is_up_at_once(client: Client) -> None:
    """Headers come before any change, so a client knows that it watches."""
    watch = client.watch(client.enqueue())
    assert watch.initial_metadata() is not None
    watch.cancel()


def test_released_without_a_result(client: Client) -> None:
    """What is gone without a final state ends as unknown, as does what never was."""
    task_id = client.enqueue()
    client.dequeue()
    watch = client.watch(task_id)
    next(watch)
    client.release(task_id)
    with refused("NOT_FOUND/TASK_NOT_FOUND"):
        next(watch)
    with refused("NOT_FOUND/TASK_NOT_FOUND") as details:
        next(client.watch("nobody"))
    assert details[0].metadata == {"queue": client.queue, "taskId": "nobody"}


def test_time_passes(client: Client) -> None:
    """The time for the whole watch ends it with a reason, which a deadline of the call itself has not."""
    task_id = client.enqueue()
    with refused("DEADLINE_EXCEEDED/WATCH_TIMEOUT"):
        list(client.watch(task_id, timeout=seconds(0.2)))
    watch = client.stub.Watch(pb.WatchRequest(queue=client.queue, task_id=task_id), timeout=0.2)
    with pytest.raises(grpc.RpcError):
        list(watch)
    assert watch.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_resumed(client: Client) -> None:
    """With the cursor of what was seen, only what is new comes; nothing at all when that was the end."""
    task_id = client.enqueue()
    first = next(client.watch(task_id))
    client.dequeue()
    seen = next(client.watch(task_id, cursor=first.cursor))
    assert seen.state.status == pb.TASK_STATUS_WORKING
    watch = client.watch(task_id, cursor=seen.cursor)
    watch.initial_metadata()
    client.release(task_id, result=pb.Payload(data=b"r"))
    (last,) = watch
    assert last.state.status == pb.TASK_STATUS_COMPLETED
    assert list(client.watch(task_id, cursor=last.cursor)) == []


def test_progress(client: Client) -> None:
    """Idle messages come as often as asked, with the last cursor and no state."""
    task_id = client.enqueue()
    watch = client.watch(task_id, progress_interval=seconds(0.1))
    first = next(watch)
    for _ in range(3):
        idle = next(watch)
        assert not idle.HasField("state")
        assert idle.cursor == first.cursor
    client.dequeue()
    assert next(each for each in watch if each.HasField("state")).state.status == pb.TASK_STATUS_WORKING
    watch.cancel()


def test_an_old_stream_is_ended(storage: str, queue: str) -> None:
    """A stream that is too old ends with a reason and a hint when to come back; the cursor goes on from there."""
    with serving("--redis", storage, "--stream-age", "0.3") as process, connect(process.address, queue) as client:
        task_id = client.enqueue()
        watch = client.watch(task_id)
        first = next(watch)
        with refused("UNAVAILABLE/STREAM_EXPIRED") as details:
            next(watch)
        assert details[0].retry_after is not None
        client.dequeue()
        assert next(client.watch(task_id, cursor=first.cursor)).state.status == pb.TASK_STATUS_WORKING


def test_changes_are_not_lost_between_snapshot_and_updates(client: Client) -> None:
    """Watches that are opened while their tasks change all end with the final state (no gap)."""
    ids = [client.enqueue() for _ in range(100)]

    def release_all() -> None:
        while tasks := client.dequeue(10, wait=1):
            for task in tasks:
                client.release(task.task_id, result=pb.Payload(data=b"r"))

    worker = threading.Thread(target=release_all)
    worker.start()
    watches = [client.watch(task_id) for task_id in ids]
    assert all(statuses(watch)[-1] == "COMPLETED" for watch in watches)
    worker.join()


@pytest.mark.slow
def test_a_thousand_at_once(bridge: Process, client: Client, admin: redis.Redis) -> None:
    """One process serves 1,000 watches over one subscribed connection, and each sees its task's end."""
    said = client.stub.BatchEnqueue(
        pb.BatchEnqueueRequest(queue=client.queue, tasks=[pb.TaskSpec(payload=pb.Payload(data=b"x"))] * 1000)
    )
    ids = [each.task_id for each in said.results]
    subscribed = len([each for each in admin.client_list() if int(each["sub"]) > 0])
    ended = threading.Semaphore(0)
    last: dict[str, str] = {}

    def follow(client: Client, task_id: str, watch: Any) -> None:
        last[task_id] = statuses(watch)[-1]
        ended.release()

    with connect(bridge.address, client.queue) as one, connect(bridge.address, client.queue) as other:
        watches = [(one if n % 2 else other).watch(task_id) for n, task_id in enumerate(ids)]
        for watch in watches:
            next(watch)
        assert len([each for each in admin.client_list() if int(each["sub"]) > 0]) <= subscribed + 1
        threads = [
            threading.Thread(target=follow, args=(client, task_id, watch))
            for task_id, watch in zip(ids, watches, strict=True)
        ]
        for thread in threads:
            thread.start()
        while tasks := client.dequeue(250, wait=0):
            settlements = [
                pb.Settlement(task_id=task.task_id, release=pb.ReleaseAction(result=pb.Payload(data=b"r")))
                for task in tasks
            ]
            client.stub.BatchRelease(pb.BatchReleaseRequest(queue=client.queue, settlements=settlements))
        for thread in threads:
            thread.join(30)
    assert list(last.values()) == ["COMPLETED"] * 1000


def test_cancelled_watches_leave_nothing(bridge: Process, client: Client, admin: redis.Redis) -> None:
    """A watch that its client has cancelled frees its place."""
    task_id = client.enqueue()
    channel = f"__keyspace@0__:{client.queue}:task:{task_id}"
    for _ in range(20):
        watch = client.watch(task_id)
        next(watch)
        assert admin.pubsub_numsub(channel)[0][1] == 1
        watch.cancel()
    began = time.monotonic()
    while admin.pubsub_numsub(channel)[0][1]:
        assert time.monotonic() - began < 30
        time.sleep(0.05)


def test_the_first_end_counts() -> None:
    """A watch that has ended well has ended, whatever is said after that."""

    async def take() -> None:
        mailbox = Mailbox()
        mailbox.end()
        mailbox.end(ValueError())
        with pytest.raises(StopAsyncIteration):
            await mailbox.take(1)

    anyio.run(take)
