"""One face over the library and over gRPC: what a call did, told in the same words whichever way it went."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import grpc
from faults.clients import PAUSE
from google.protobuf.duration_pb2 import Duration

from grpc_server._pb import torrelque_pb2 as pb
from torrelque import (
    Torrelque,
    TorrelqueLookupError,
    TorrelqueRedisError,
    TorrelqueTaskId,
    TorrelqueTimeoutError,
    TorrelqueUnavailableError,
)


class NotApplied(Exception):
    """The call failed and says that it has surely changed nothing."""


class Uncertain(Exception):
    """The call failed, and may have taken effect or not."""


class Refused(Exception):
    """The call was answered: it finds nothing to do. The text is the verdict, in the words of gRPC's reasons."""


@dataclass(frozen=True)
class Held:
    """A delivery."""

    task_id: str
    count: int
    body: bytes = b""


@dataclass(frozen=True)
class State:
    """What is known of a task."""

    status: int
    result: bytes
    dequeues: int
    requeues: int


class Caller(Protocol):
    """The verbs."""

    async def enqueue(self, task_id: str, body: bytes) -> bool: ...

    async def enqueue_many(self, tasks: dict[str, bytes]) -> list[bool]: ...

    async def dequeue(self, wait: float) -> Held | None: ...

    async def requeue(self, held: Held) -> None: ...

    async def release(self, held: Held, result: bytes) -> None: ...

    async def release_many(self, results: dict[Held, bytes]) -> list[str]:
        """Returns a verdict for each, '' for what was released."""
        ...

    async def extend(self, held: Held) -> float: ...

    async def state(self, task_id: str) -> State: ...

    async def stats(self) -> tuple[int, int, int, int]: ...

    async def sweep(self) -> tuple[int, int, int]: ...

    def watch(self, task_id: str) -> AsyncGenerator[State]: ...


_VERDICTS = {
    "TorrelqueLookupError": "TASK_NOT_FOUND",
    "TorrelqueNotWorkingError": "TASK_NOT_WORKING",
    "TorrelqueLeaseLostError": "LEASE_LOST",
}


@contextmanager
def _library() -> Iterator[None]:
    try:
        yield
    except TorrelqueUnavailableError as error:
        raise NotApplied(str(error)) from error
    except TorrelqueRedisError as error:
        raise Uncertain(str(error)) from error
    except TorrelqueLookupError as error:
        raise Refused(_VERDICTS[type(error).__name__]) from error


def _id(held: Held) -> TorrelqueTaskId:
    return TorrelqueTaskId(held.task_id, held.count, 300)


class LibraryCaller:
    """Calls the library; the queue's serialiser leaves bytes as they are."""

    def __init__(self, queue: Torrelque) -> None:
        self._queue = queue

    async def enqueue(self, task_id: str, body: bytes) -> bool:
        with _library():
            return bool((await self._queue.enqueue(body, task_id=task_id)).deduplicated)

    async def enqueue_many(self, tasks: dict[str, bytes]) -> list[bool]:
        with _library():
            made = await self._queue.enqueue_many(tasks.values(), task_ids=list(tasks))
            return [bool(each.deduplicated) for each in made]

    async def dequeue(self, wait: float) -> Held | None:
        with _library():
            try:
                task_id, body = await self._queue.dequeue(wait)
            except TorrelqueTimeoutError:
                return None
            return Held(str(task_id), task_id.dequeue_count, body)

    async def requeue(self, held: Held) -> None:
        with _library():
            await self._queue.requeue(_id(held), strict=True)

    async def release(self, held: Held, result: bytes) -> None:
        with _library():
            await self._queue.release(_id(held), result=result, strict=True)

    async def release_many(self, results: dict[Held, bytes]) -> list[str]:
        with _library():
            said = await self._queue.release_many(map(_id, results), results=results.values())
            return ["" if error is None else _VERDICTS[type(error).__name__] for error in said]

    async def extend(self, held: Held) -> float:
        with _library():
            return await self._queue.extend(_id(held))

    async def state(self, task_id: str) -> State:
        with _library():
            state = await self._queue.get_task_state(task_id)
            return State(int(state.status), state.result or b"", state.dequeue_count, state.requeue_count)

    async def stats(self) -> tuple[int, int, int, int]:
        with _library():
            tasks, pending, working, delayed = await self._queue.get_queue_stats()
            return tasks, pending, working, delayed

    async def sweep(self) -> tuple[int, int, int]:
        with _library():
            return await self._queue.sweep()

    async def watch(self, task_id: str) -> AsyncGenerator[State]:
        with _library():
            async with aclosing(self._queue.watch(task_id)) as states:
                async for state in states:
                    yield State(int(state.status), state.result or b"", state.dequeue_count, state.requeue_count)


@contextmanager
def _wire() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        call: Any = error
        reason = dict(call.trailing_metadata() or ()).get("x-torrelque-reason", "")
        if reason in {"TASK_NOT_FOUND", "TASK_NOT_WORKING", "LEASE_LOST"}:
            raise Refused(reason) from error
        said = f"{call.code().name}/{reason}: {call.details()}"
        # Without the server's word it is the connection that failed, and nobody knows what the server has done.
        if reason == "STORAGE_UNAVAILABLE":
            raise NotApplied(said) from error
        if reason not in {"", "OUTCOME_UNKNOWN"} or call.code() not in {
            grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL,
        }:  # fmt: skip
            raise
        raise Uncertain(said) from error


class WireCaller:
    """Calls a server over gRPC.

    :param stub: of an asynchronous channel
    :param deadline: of each call, seconds
    :param tries: how often a call is made while its connection turns out to be dead; not for streams
    """

    def __init__(self, stub: Any, admin: Any, queue: str, deadline: float, tries: int) -> None:
        self._stub = stub
        self._admin = admin
        self._queue = queue
        self._options: dict[str, Any] = {"timeout": deadline, "wait_for_ready": True}
        self._tries = tries

    async def _call(self, method: Any, request: Any) -> Any:
        for left in reversed(range(self._tries)):
            try:
                with _wire():
                    return await method(request, **self._options)
            except Uncertain:
                if not left:
                    raise
                await anyio.sleep(PAUSE)  # a connection that gRPC is about to close is used until that is done
        raise AssertionError("tries must be one or more")

    async def enqueue(self, task_id: str, body: bytes) -> bool:
        request = pb.EnqueueRequest(queue=self._queue, task=self._spec(task_id, body))
        return bool((await self._call(self._stub.Enqueue, request)).deduplicated)

    def _spec(self, task_id: str, body: bytes) -> pb.TaskSpec:
        return pb.TaskSpec(payload=pb.Payload(data=body), request_id=task_id)

    async def enqueue_many(self, tasks: dict[str, bytes]) -> list[bool]:
        specs = [self._spec(*task) for task in tasks.items()]
        said = await self._call(self._stub.BatchEnqueue, pb.BatchEnqueueRequest(queue=self._queue, tasks=specs))
        return [each.deduplicated for each in said.results]

    async def dequeue(self, wait: float) -> Held | None:
        request = pb.DequeueRequest(queue=self._queue, max_tasks=1, timeout=_seconds(wait))
        tasks: Sequence[pb.Task] = (await self._call(self._stub.Dequeue, request)).tasks
        return Held(tasks[0].task_id, tasks[0].dequeue_count, tasks[0].payload.data) if tasks else None

    async def requeue(self, held: Held) -> None:
        request = pb.RequeueRequest(queue=self._queue, task_id=held.task_id, dequeue_count=held.count)
        await self._call(self._stub.Requeue, request)

    async def release(self, held: Held, result: bytes) -> None:
        request = pb.ReleaseRequest(
            queue=self._queue, task_id=held.task_id, dequeue_count=held.count, result=pb.Payload(data=result)
        )  # fmt: skip
        await self._call(self._stub.Release, request)

    async def release_many(self, results: dict[Held, bytes]) -> list[str]:
        settlements = [
            pb.Settlement(
                task_id=held.task_id,
                dequeue_count=held.count,
                release=pb.ReleaseAction(result=pb.Payload(data=result)),
            )
            for held, result in results.items()
        ]
        request = pb.BatchReleaseRequest(queue=self._queue, settlements=settlements)
        errors = (await self._call(self._stub.BatchRelease, request)).errors
        said = {error.index: error.reason for error in errors}
        if "OUTCOME_UNKNOWN" in said.values():
            raise Uncertain(str(said))
        if "STORAGE_UNAVAILABLE" in said.values():
            raise NotApplied(str(said))
        return [said.get(index, "") for index in range(len(results))]

    async def extend(self, held: Held) -> float:
        request = pb.ExtendLeaseRequest(queue=self._queue, task_id=held.task_id, dequeue_count=held.count)
        return float((await self._call(self._stub.ExtendLease, request)).stale_time.ToMicroseconds()) / 1e6

    async def state(self, task_id: str) -> State:
        request = pb.GetTaskStateRequest(queue=self._queue, task_id=task_id)
        return _state((await self._call(self._stub.GetTaskState, request)).state)

    async def stats(self) -> tuple[int, int, int, int]:
        said = await self._call(self._stub.GetQueueStats, pb.GetQueueStatsRequest(queue=self._queue))
        return said.tasks, said.pending, said.working, said.delayed

    async def sweep(self) -> tuple[int, int, int]:
        said = await self._call(self._admin.Sweep, pb.SweepRequest(queue=self._queue))
        return said.stale, said.due, said.undequeued

    async def watch(self, task_id: str) -> AsyncGenerator[State]:
        call = self._stub.Watch(pb.WatchRequest(queue=self._queue, task_id=task_id), **self._options)
        with _wire():
            async for said in call:
                yield _state(said.state)


def _state(state: pb.TaskState) -> State:
    # The numbers of the statuses are those of the library, plus one.
    return State(int(state.status) - 1, state.result.data, state.dequeue_count, state.requeue_count)


def _seconds(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1e6))
    return duration
