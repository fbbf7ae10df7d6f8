"""A worker: takes tasks and settles them until SIGTERM, whatever happens to the queue: ``python -m faults.worker``.

What it does with a task is drawn: most are released in batches, some alone with a result, some requeued, a few held for
longer than their lease. It never gives up and never asks anybody to start it again.
"""

from __future__ import annotations

import json
import logging
import queue as queues
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import anyio
import grpc
from faults.clients import PAUSE, dial, open_queue
from faults.history import APPLIED, NOT_DONE, UNKNOWN, Recorder, digest, verdict, wire_verdict
from support.bridge import seconds

from grpc_server._pb import torrelque_pb2 as pb
from torrelque import Torrelque, TorrelqueLookupError, TorrelqueRedisError, TorrelqueTaskId, TorrelqueTimeoutError
from torrelque.waiting import TOO_LATE

#: No call by wire takes longer, in seconds.
DEADLINE = 15.0
#: A settle whose outcome is not known is repeated so many times at the most; then the lease decides.
ATTEMPTS = 20
#: So long a result is kept: longer than any run.
KEEP = 3600.0


@dataclass(frozen=True)
class Orders:
    """What a worker is told.

    :ivar way: ``redispy``, ``coredis``, ``grpc`` (calls) or ``stream``
    :ivar place: URL, or addresses of servers
    :ivar busy: seconds that a batch takes at the most
    """

    name: str
    history: str
    way: str
    backend: str
    place: Any
    queue: str
    seed: str
    lease: float
    sweep: float
    consumers: int = 3
    batch: int = 20
    busy: float = 0.1


def say(error: Any) -> None:
    print(f"{time.monotonic():.3f} {type(error).__name__} {error}", file=sys.stderr, flush=True)


def token(task_id: Any) -> Any:
    return task_id, task_id.dequeue_count


class Lateness(logging.StreamHandler[TextIO]):
    """Writes down claims whose answers came too late, so that nobody has got what they brought."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if record.msg == TOO_LATE and isinstance(record.args, tuple):
            took, tasks = record.args
            sent = time.monotonic_ns() - int(1e9 * took)
            self._recorder.begin("dequeue", tasks, since=sent).unknown()


class Plan:
    """Draws what is done with a batch."""

    def __init__(self, seed: str) -> None:
        self._chance = random.Random(seed)

    def wanted(self, most: int) -> int:
        return self._chance.randint(1, most)

    def busy(self, most: float) -> float:
        return self._chance.uniform(0, most)

    def draw(self) -> str:
        """Choose between *alone* (with a result), *requeue*, *hold* and *batch*."""
        return self._chance.choices(["batch", "alone", "requeue", "hold"], [80, 15, 4, 1])[0]


class Worker:
    """Consumers of one process, by way of the library."""

    def __init__(self, queue: Torrelque, recorder: Recorder, orders: Orders) -> None:
        self._queue = queue
        self._recorder = recorder
        self._orders = orders
        self._plan = Plan(orders.seed)
        self._stopping = False
        self._waits: set[anyio.CancelScope] = set()

    async def run(self) -> None:
        """Consume until SIGTERM; what is in hand then is still settled."""
        self._queue.schedule_sweep(self._orders.sweep)
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async with anyio.create_task_group() as group:
                for _ in range(self._orders.consumers):
                    group.start_soon(self._consume)
                async for _ in signals:
                    self._stopping = True
                    for wait in self._waits:
                        wait.cancel()
                    break

    async def _consume(self) -> None:
        while not self._stopping:
            try:
                tasks = await self._take()
            except TorrelqueTimeoutError:
                continue
            except TorrelqueRedisError as error:
                say(error)
                await anyio.sleep(PAUSE)
            else:
                await self._work(tasks)

    async def _take(self) -> list[TorrelqueTaskId]:
        wanted, got = self._plan.wanted(self._orders.batch), []
        with anyio.CancelScope() as wait:
            self._waits.add(wait)
            try:
                with self._recorder.call("dequeue", wanted, timeout=5) as call:
                    taken: Any = await self._queue.dequeue(5, max_tasks=wanted)
                    tasks = [taken] if wanted == 1 else taken
                    call.ok([(*token(task_id), digest(body)) for task_id, body in tasks])
                got = [task_id for task_id, _ in tasks]
            finally:
                self._waits.discard(wait)
        return got

    async def _work(self, ids: list[TorrelqueTaskId]) -> None:
        if not ids:
            return
        await anyio.sleep(self._plan.busy(self._orders.busy))
        how = self._plan.draw()
        if how == "batch":
            await self._settle("release", ids)
        elif how == "hold":
            await self._hold(ids[0])
            await self._settle("release", ids)
        else:
            for task_id in ids:
                await self._settle("requeue" if how == "requeue" else "alone", [task_id])

    async def _hold(self, task_id: TorrelqueTaskId) -> None:
        """Keep a task beyond its lease, and say so in time."""
        for _ in range(4):
            await anyio.sleep(self._orders.lease / 3)
            try:
                with self._recorder.call("extend", [token(task_id)]):
                    await self._queue.extend(task_id)
            except TorrelqueLookupError:
                return
            except TorrelqueRedisError as error:
                say(error)

    async def _settle(self, how: str, ids: list[TorrelqueTaskId]) -> None:
        """Settle tasks, again when it is not known to be done."""
        op = "requeue" if how == "requeue" else "release"
        for _ in range(ATTEMPTS):
            try:
                with self._recorder.call(op, [token(task_id) for task_id in ids]) as call:
                    call.ok(await self._send(how, ids))
            except TorrelqueLookupError:
                return
            except TorrelqueRedisError as error:
                say(error)
                await anyio.sleep(PAUSE)
            else:
                return

    async def _send(self, how: str, ids: list[TorrelqueTaskId]) -> list[str]:
        if how == "release":
            return [verdict(error) for error in await self._queue.release_many(ids)]
        if how == "requeue":
            await self._queue.requeue(ids[0], strict=True)
        else:
            await self._queue.release(ids[0], result=str(ids[0]).encode(), result_ttl=KEEP, strict=True)
        return [APPLIED]


class WireWorker:
    """Consumers of one process, through servers; one thread each."""

    def __init__(self, stub: Any, recorder: Recorder, orders: Orders) -> None:
        self._stub = stub
        self._recorder = recorder
        self._orders = orders
        self._plan = Plan(orders.seed)
        self._stopping = threading.Event()

    def run(self) -> None:
        """Consume until SIGTERM."""
        signal.signal(signal.SIGTERM, lambda *_: self._stopping.set())
        threads = [threading.Thread(target=self._consume) for _ in range(self._orders.consumers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _consume(self) -> None:
        while not self._stopping.is_set():
            try:
                tasks = self._take()
            except grpc.RpcError as error:
                say(error.code())
                time.sleep(PAUSE)
            else:
                self._work(tasks)

    def _take(self) -> list[Any]:
        wanted = self._plan.wanted(self._orders.batch)
        with self._recorder.call("dequeue", wanted, timeout=1) as call:
            request = pb.DequeueRequest(queue=self._orders.queue, max_tasks=wanted, timeout=seconds(1))
            tasks = list(self._stub.Dequeue(request, timeout=DEADLINE).tasks)
            call.ok([(task.task_id, task.dequeue_count, digest(task.payload.data)) for task in tasks])
        return tasks

    def _work(self, tasks: list[Any]) -> None:
        if not tasks:
            return
        time.sleep(self._plan.busy(self._orders.busy))
        how = self._plan.draw()
        if how in ("batch", "hold"):
            if how == "hold":
                self._hold(tasks[0])
            self._settle("batch", tasks)
        else:
            for task in tasks:
                self._settle(how, [task])

    def _hold(self, task: Any) -> None:
        held = {"queue": self._orders.queue, "task_id": task.task_id, "dequeue_count": task.dequeue_count}
        for _ in range(4):
            time.sleep(self._orders.lease / 3)
            try:
                with self._recorder.call("extend", [(task.task_id, task.dequeue_count)]):
                    self._stub.ExtendLease(pb.ExtendLeaseRequest(**held), timeout=DEADLINE)
            except grpc.RpcError as error:
                say(error.code())

    def _settle(self, how: str, tasks: list[Any]) -> None:
        op = "requeue" if how == "requeue" else "release"
        for _ in range(ATTEMPTS):
            try:
                with self._recorder.call(op, [(task.task_id, task.dequeue_count) for task in tasks]) as call:
                    said = self._send(how, tasks)
                    call.ok(said)
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
                    return
                say(error.code())
                time.sleep(PAUSE)
            else:
                tasks = [task for task, each in zip(tasks, said, strict=True) if each in (UNKNOWN, NOT_DONE)]
                if not tasks:
                    return

    def _send(self, how: str, tasks: list[Any]) -> list[str]:
        named = {"task_id": tasks[0].task_id, "dequeue_count": tasks[0].dequeue_count, "queue": self._orders.queue}
        if how == "requeue":
            self._stub.Requeue(pb.RequeueRequest(**named), timeout=DEADLINE)
        elif how == "alone":
            result = pb.Payload(data=tasks[0].task_id.encode())
            self._stub.Release(pb.ReleaseRequest(**named, result=result, result_ttl=seconds(KEEP)), timeout=DEADLINE)
        else:
            return self._release_all(tasks)
        return [APPLIED]

    def _release_all(self, tasks: list[Any]) -> list[str]:
        """Release in one call; what cannot be told of a task by itself is the whole call's error."""
        request = pb.BatchReleaseRequest(queue=self._orders.queue, settlements=settlements(tasks))
        return verdicts(tasks, self._stub.BatchRelease(request, timeout=DEADLINE).errors)


@dataclass(frozen=True)
class Settle:
    """Tasks that were settled on a stream."""

    call: Any
    tasks: list[Any]
    sent: int


class Stream:
    """One Consume stream, read by one thread."""

    def __init__(self, stub: Any, queue: str, most: int) -> None:
        self._requests: queues.SimpleQueue[pb.ConsumeRequest | None] = queues.SimpleQueue()
        opened = pb.ConsumeOpen(
            queue=queue, max_outstanding_tasks=most, disconnect_policy=pb.DISCONNECT_POLICY_KEEP_LEASE,
            progress_interval=seconds(1),
        )  # fmt: skip
        self._requests.put(pb.ConsumeRequest(open=opened))
        #: No task of the next delivery was claimed before: a server claims them when it has written the ones before.
        self.since = time.monotonic_ns()
        self._answered = self.since
        self._call = stub.Consume(iter(self._requests.get, None))
        #: The settles that were sent and not answered, by their sequence numbers.
        self.open: dict[int, Settle] = {}
        self._sequence = 0

    def next(self) -> pb.ConsumeResponse | None:
        """Read the next message; ``None`` at the end."""
        return next(self._call, None)

    def delivered(self) -> int:
        """Tell since when the tasks of the delivery that was just read may have been claimed."""
        since, self.since = self.since, self._answered
        return since

    def settled(self, sequence: int) -> Settle:
        """Take the settle that was just answered: what comes from here on was written after it was sent."""
        settle = self.open.pop(sequence)
        self._answered = max(self._answered, settle.sent)
        return settle

    def release(self, tasks: list[Any], call: Any) -> None:
        """Ask for the release of tasks; the answer is a message among others."""
        self._sequence += 1
        self.open[self._sequence] = Settle(call, tasks, time.monotonic_ns())
        settle = pb.ConsumeSettle(sequence=self._sequence, settlements=settlements(tasks))
        self._requests.put(pb.ConsumeRequest(settle=settle))

    def half_close(self) -> None:
        self._requests.put(None)

    def close(self) -> None:
        self._call.cancel()
        self._requests.put(None)


class StreamWorker(WireWorker):
    """The same on streams: what they do not answer is settled by a call of its own."""

    def _consume(self) -> None:
        while not self._stopping.is_set():
            stream = Stream(self._stub, self._orders.queue, self._orders.batch)
            try:
                # What was pushed may wait for its reader while that is busy: a claim without an answer until the end.
                with self._recorder.call("dequeue", self._orders.batch) as whole:
                    self._read(stream)
                    whole.ok([])
            except grpc.RpcError as error:
                say(error.code())
                time.sleep(PAUSE)
            finally:
                stream.close()
            for settle in stream.open.values():
                settle.call.unknown()
                self._settle("batch", settle.tasks)

    def _read(self, stream: Stream) -> None:
        leaving = closing = False
        while (response := stream.next()) is not None:
            if response.WhichOneof("response") == "settled":
                settle = stream.settled(response.settled.sequence)
                settle.call.ok(verdicts(settle.tasks, response.settled.errors))
            elif tasks := list(response.delivery.tasks):
                with self._recorder.call("dequeue", self._orders.batch, since=stream.delivered()) as call:
                    call.ok([(task.task_id, task.dequeue_count, digest(task.payload.data)) for task in tasks])
                time.sleep(self._plan.busy(self._orders.busy))
                named = [(task.task_id, task.dequeue_count) for task in tasks]
                stream.release(tasks, self._recorder.begin("release", named))
            leaving |= self._stopping.is_set() or response.WhichOneof("response") == "draining"
            if leaving and not stream.open and not closing:
                closing = True
                stream.half_close()


def settlements(tasks: list[Any]) -> list[pb.Settlement]:
    return [
        pb.Settlement(task_id=task.task_id, dequeue_count=task.dequeue_count, release=pb.ReleaseAction())
        for task in tasks
    ]


def verdicts(tasks: list[Any], errors: Any) -> list[str]:
    """What a server said of each task of a batch."""
    said = [APPLIED] * len(tasks)
    for error in errors:
        said[error.index] = wire_verdict(error.reason)
    return said


async def consume(orders: Orders) -> None:
    """Work with the library."""
    with Recorder(Path(orders.history), orders.name) as recorder:
        logging.getLogger("torrelque").addHandler(Lateness(recorder))
        async with open_queue(orders.place, orders.queue, orders.way) as queue:
            await Worker(queue, recorder, orders).run()


def consume_by_wire(orders: Orders) -> None:
    """Work through servers."""
    channel, stub = dial(orders.place)
    with channel, Recorder(Path(orders.history), orders.name) as recorder:
        (StreamWorker if orders.way == "stream" else WireWorker)(stub, recorder, orders).run()


if __name__ == "__main__":
    told = Orders(**json.loads(sys.argv[1]))
    if told.way in ("grpc", "stream"):
        consume_by_wire(told)
    else:
        anyio.run(consume, told, backend=told.backend)
