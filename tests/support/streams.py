"""A Consume stream that a test drives step by step."""

from __future__ import annotations

import queue as queues
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from grpc_server._pb import torrelque_pb2 as pb

from .bridge import DEADLINE, Client

#: What the server does in its own time is done within so many seconds.
BOUND = 15.0


class Stream:
    """A Consume stream, driven step by step."""

    def __init__(self, client: Client, **opened: Any) -> None:
        self._requests: queues.SimpleQueue[pb.ConsumeRequest | None] = queues.SimpleQueue()
        opened.setdefault("max_outstanding_tasks", 1)
        self.send(open=pb.ConsumeOpen(queue=client.queue, **opened))
        self.call = client.stub.Consume(iter(self._requests.get, None), timeout=DEADLINE)
        self._sequence = 0

    def send(self, **request: Any) -> None:
        self._requests.put(pb.ConsumeRequest(**request))

    def next(self) -> pb.ConsumeResponse:
        return next(self.call)

    def opened(self) -> pb.ConsumeOpened:
        response = self.next()
        assert response.WhichOneof("response") == "opened"
        return response.opened

    def tasks(self, count: int) -> list[pb.Task]:
        """Take so many tasks, however they are parted."""
        tasks: list[pb.Task] = []
        while len(tasks) < count:
            response = self.next()
            assert response.WhichOneof("response") == "delivery", response
            tasks += response.delivery.tasks
        assert len(tasks) == count
        return tasks

    def settle(self, *settlements: pb.Settlement) -> list[pb.ItemError]:
        """Settle, and wait for the server's word, which must come next."""
        self._sequence += 1
        self.send(settle=pb.ConsumeSettle(sequence=self._sequence, settlements=settlements))
        response = self.next()
        assert response.WhichOneof("response") == "settled", response
        assert response.settled.sequence == self._sequence
        return list(response.settled.errors)

    def half_close(self) -> None:
        self._requests.put(None)


@contextmanager
def consuming(client: Client, **opened: Any) -> Iterator[Stream]:
    """Open a stream, and cancel it at the end."""
    stream = Stream(client, **opened)
    try:
        yield stream
    finally:
        stream.call.cancel()
        stream.half_close()


def release(task: pb.Task, **fields: Any) -> pb.Settlement:
    """Say that a task is done."""
    return pb.Settlement(task_id=task.task_id, dequeue_count=task.dequeue_count, release=pb.ReleaseAction(**fields))


def until(holds: Callable[[], bool]) -> None:
    """Wait for something that the server does in its own time."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < BOUND
        time.sleep(0.01)
