"""Dead letters over the wire: how tasks get there, what is said of them, and how they come back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from support.bridge import DEADLINE, Client, Process, connect, refused, seconds, serving

from grpc_server._pb import torrelque_pb2 as pb

REJECTED = pb.TASK_STATUS_REJECTED


@pytest.fixture(scope="module")
def strict(storage: str) -> Iterator[Process]:
    """A server that gives a task up after two deliveries, and keeps it."""
    with serving("--redis", storage, "--max-attempts", "2", "--dead-letter") as process:
        yield process


def listed(client: Client, **fields: Any) -> pb.ListDeadLettersResponse:
    return client.admin.ListDeadLetters(pb.ListDeadLettersRequest(queue=client.queue, **fields), timeout=DEADLINE)


def bury(client: Client, *names: str) -> None:
    """Make dead letters."""
    for name in names:
        client.enqueue(name.encode(), request_id=name)
        client.dequeue()
        client.release(name, status=REJECTED, dead_letter=True, result=pb.Payload(data=b"why"))


def test_a_limit_on_deliveries(strict: Process, queue: str, admin: redis.Redis) -> None:
    """A task that is never released becomes a dead letter with its bytes; its state and the counts say so."""
    with connect(strict.address, queue) as client:
        body = bytes(range(256))
        task_id = client.enqueue(body, task_timeout=seconds(0.02))
        for count in (1, 2):
            assert [task.dequeue_count for task in client.dequeue()] == [count]
        assert client.dequeue(wait=0.1) == []
        (letter,) = listed(client).letters
        assert (letter.task_id, letter.payload.data, letter.dequeue_count) == (task_id, body, 2)
        assert json.loads(letter.reason.data) == "Not delivered again: max_attempts is 2"
        assert letter.payload.content_type == letter.reason.content_type == "application/json"
        state = client.state(task_id)
        assert (state.status, state.result) == (REJECTED, letter.reason)
        assert (letter.requeue_count, letter.release_time) == (state.requeue_count, state.release_time)
        assert letter.enqueue_time == state.enqueue_time
        assert client.stats() == pb.GetQueueStatsResponse(dead_letters=1)
        assert [each.state.status for each in client.watch(task_id)] == [REJECTED]
        assert admin.ttl(f"{queue}:task:{task_id}") == -1


def test_without_a_limit(client: Client) -> None:
    """A server that was told of no limit delivers again and again."""
    client.enqueue(task_timeout=seconds(0.001))
    assert [client.dequeue()[0].dequeue_count for _ in range(5)] == [1, 2, 3, 4, 5]


def test_rejected_into_the_dead_letters(client: Client) -> None:
    """Each way to release has the flag; it is fenced like any release, and a repeat is told that it was done."""
    for name in "abc":
        client.enqueue(name.encode(), request_id=name)
    client.dequeue(3)
    action = pb.ReleaseAction(status=REJECTED, dead_letter=True)
    with refused("FAILED_PRECONDITION/LEASE_LOST"):
        client.release("a", dequeue_count=2, status=REJECTED, dead_letter=True)
    client.release("a", dequeue_count=1, status=REJECTED, dead_letter=True, result=pb.Payload(data=b"why"))
    with refused("FAILED_PRECONDITION/TASK_NOT_WORKING") as details:
        client.release("a", dequeue_count=1, status=REJECTED, dead_letter=True)
    assert details[0].metadata == {"queue": client.queue, "taskId": "a", "status": "REJECTED", "current": "1"}
    settlements = [
        pb.Settlement(task_id="b", dequeue_count=1, release=action),
        pb.Settlement(task_id="c", dequeue_count=1, release=pb.ReleaseAction(status=REJECTED)),
    ]
    said = client.stub.BatchRelease(pb.BatchReleaseRequest(queue=client.queue, settlements=settlements))
    assert said == pb.BatchReleaseResponse()
    assert [(letter.task_id, letter.HasField("reason")) for letter in listed(client).letters] == [
        ("a", True), ("b", False),
    ]  # fmt: skip
    assert client.stats() == pb.GetQueueStatsResponse(dead_letters=2)


def test_dead_letters_by_pages(client: Client) -> None:
    """Pages go on behind what was read, whatever has become of it; the last one has no token."""
    bury(client, *"abcde")
    read: list[str] = []
    page = listed(client, max_letters=2)
    while page.letters:
        read += [letter.task_id for letter in page.letters]
        request = pb.PurgeDeadLettersRequest(queue=client.queue, task_ids=[page.letters[-1].task_id])
        assert client.admin.PurgeDeadLetters(request).purged == 1
        page = listed(client, max_letters=2, page_token=page.next_page_token)
    assert (read, page.next_page_token) == (list("abcde"), "")


@pytest.mark.parametrize(("payload", "reason"), [(1_000_000, 0), (0, 1_000_000), (500_000, 500_000)])
def test_an_answer_that_clients_take(client: Client, payload: int, reason: int) -> None:
    """Large payloads and reasons come on several pages, none of which is too large a message."""
    for name in "abcdefg":
        client.enqueue(b"x" * payload, request_id=name)
        client.dequeue()
        client.release(name, status=REJECTED, dead_letter=True, result=pb.Payload(data=b"y" * reason))
    read, page = [], listed(client)
    while page.letters:
        assert page.ByteSize() < 4 << 20
        read.append([letter.task_id for letter in page.letters])
        page = listed(client, page_token=page.next_page_token)
    assert read == [list("abc"), list("def"), ["g"]]


def test_requeued_and_purged(client: Client) -> None:
    """Some, which are counted, or all; the number of the delivery counts on."""
    bury(client, *"abcde")
    some = {"queue": client.queue, "task_ids": ["a", "b", "nobody"]}
    assert client.admin.RequeueDeadLetters(pb.RequeueDeadLettersRequest(**some)).requeued == 2
    assert client.admin.PurgeDeadLetters(pb.PurgeDeadLettersRequest(**some)).purged == 0
    tasks = client.dequeue(2)
    assert [(task.task_id, task.payload.data, task.dequeue_count) for task in tasks] == [("a", b"a", 2), ("b", b"b", 2)]
    every: dict[str, Any] = {"queue": client.queue, "all": True}
    assert client.admin.RequeueDeadLetters(pb.RequeueDeadLettersRequest(**every)).requeued == 3
    assert client.admin.PurgeDeadLetters(pb.PurgeDeadLettersRequest(**every)).purged == 0
    assert [task.dequeue_count for task in client.dequeue(3)] == [2, 2, 2]
    bury(client, "z")
    assert client.admin.PurgeDeadLetters(pb.PurgeDeadLettersRequest(**every)).purged == 1
    assert client.stats() == pb.GetQueueStatsResponse(tasks=5, working=5)
