"""Consumers of three kinds, which take and release all that there is: redis-py on asyncio, coredis on Trio, gRPC."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import grpc
from support import PAIRS, Pair, open_client
from support.bridge import DEADLINE, connect, refusal, seconds, serving

from grpc_server._pb import torrelque_pb2 as pb
from torrelque import (
    Torrelque,
    TorrelqueDecodeError,
    TorrelqueError,
    TorrelqueFullError,
    TorrelqueTaskStatus,
    TorrelqueTimeoutError,
)

#: On each of the two event loops; as many threads call the server.
CONSUMERS = 6
#: So many are taken at a time.
BATCH = 100
#: Seconds between the sweeps of each process.
SWEEP = 0.5
#: An enqueuer pauses so long between two attempts.
PAUSE = 0.01

LOOPS = [pair for pair in PAIRS if pair.name in {"redispy-asyncio", "coredis-trio"}]


@dataclass
class Log(logging.Handler):
    """What the library says, in this process and in the server's."""

    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(logging.WARNING)

    __hash__ = logging.Handler.__hash__

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def dropped(self) -> list[str]:
        """The ids that were dropped, one for each time."""
        return [found[1] for line in self.lines if (found := re.search(r"Dropped task b'([^']+)'", line))]


@dataclass
class Tally:
    """What the consumers of a queue got and what became of it. Threads share it: lists only grow."""

    queue: str
    #: Give a result to each of so many, to every other one with 2.
    results: int = 0
    #: Enqueue meanwhile: nothing must come in.
    intrudes: bool = False
    delivered: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def result_for(self, number: int) -> str | None:
        return "done" if self.results and number % self.results == 0 else None


async def _consume(queue: Torrelque, tally: Tally) -> None:
    while not tally.ended.is_set():
        try:
            got = await queue.dequeue(0.25, max_tasks=BATCH)
        except TorrelqueTimeoutError:
            continue
        except TorrelqueDecodeError as error:
            await queue.release(error.task_id, status=TorrelqueTaskStatus.REJECTED, strict=True)
            tally.rejected.append(str(error.task_id))
            continue
        results = [tally.result_for(number) for number in range(len(got))]
        first, _ = got[0]
        await queue.extend(first)
        errors = await queue.release_many([task_id for task_id, _ in got], results=results)
        tally.violations += [f"could not be released: {error}" for error in errors if error is not None]
        tally.delivered += [payload for _, payload in got]


async def _intrude(queue: Torrelque, tally: Tally) -> None:
    number = 0
    while not tally.ended.is_set():
        task_id = f"intruder-{id(queue)}-{number}"
        try:
            await queue.enqueue(task_id, task_id=task_id, delay=number % 2 or None)
        except TorrelqueFullError:
            tally.refused.append(task_id)
        except TorrelqueError as error:
            tally.violations.append(f"an enqueue at a full server: {error!r}")
        else:
            tally.violations.append(f"a full server took {task_id}")
        number += 1
        await anyio.sleep(PAUSE)


async def _loop(pair: Pair, url: str, tally: Tally) -> None:
    async with open_client(pair, url) as client, Torrelque(client, queue=tally.queue) as queue:
        queue.schedule_sweep(SWEEP)
        async with anyio.create_task_group() as group:
            for _ in range(CONSUMERS):
                group.start_soon(_consume, queue, tally)
            if tally.intrudes:
                group.start_soon(_intrude, queue, tally)


def _settlement(task: pb.Task, number: int, tally: Tally) -> tuple[pb.Settlement, list[str], str]:
    """Decide about a task that came over the wire: how to settle it, where to note it, and as what."""
    try:
        payload = json.loads(task.payload.data)
    except ValueError:
        action, place, name = pb.ReleaseAction(status=pb.TASK_STATUS_REJECTED), tally.rejected, task.task_id
    else:
        result = tally.result_for(number)
        kept = {} if result is None else {"result": pb.Payload(data=json.dumps(result).encode())}
        action, place, name = pb.ReleaseAction(**kept), tally.delivered, payload
    settlement = pb.Settlement(task_id=task.task_id, dequeue_count=task.dequeue_count, release=action)
    return settlement, place, name


def _call(address: str, tally: Tally) -> None:
    with connect(address, tally.queue) as client:
        while not tally.ended.is_set():
            tasks = client.dequeue(BATCH, wait=0.25)
            if not tasks:
                continue
            held = {"task_id": tasks[0].task_id, "dequeue_count": tasks[0].dequeue_count}
            request = pb.ExtendLeaseRequest(queue=tally.queue, task_timeout=seconds(300), **held)
            client.stub.ExtendLease(request, timeout=DEADLINE)
            decided = [_settlement(task, number, tally) for number, task in enumerate(tasks)]
            settlements = [settlement for settlement, *_ in decided]
            batch = pb.BatchReleaseRequest(queue=tally.queue, settlements=settlements)
            errors = client.stub.BatchRelease(batch, timeout=DEADLINE).errors
            tally.violations += [f"could not be released: {error}" for error in errors]
            for _, place, name in decided:
                place.append(name)


def _call_intruding(address: str, tally: Tally) -> None:
    with connect(address, tally.queue) as client:
        number = 0
        while not tally.ended.wait(PAUSE):
            task_id = f"intruder-grpc-{number}"
            number += 1
            try:
                client.enqueue(b"1", request_id=task_id)
            except grpc.RpcError as error:
                if (said := refusal(error)).name == "RESOURCE_EXHAUSTED/STORAGE_FULL":
                    tally.refused.append(task_id)
                else:
                    tally.violations.append(f"an enqueue at a full server: {said}")
            else:
                tally.violations.append(f"a full server took {task_id}")


@contextlib.contextmanager
def draining(url: str, tally: Tally, log: Log) -> Iterator[None]:
    """Let consumers of all kinds work while the body runs; what went wrong with them is in the tally."""

    def guarded(work: Any, *args: Any, **options: Any) -> None:
        try:
            work(*args, **options)
        except BaseException as error:
            tally.violations.append(f"a consumer has ended: {error!r}")

    with serving("--redis", url, "--sweep-interval", str(SWEEP)) as process:
        threads = [
            threading.Thread(
                target=guarded,
                args=(anyio.run, _loop, pair, url, tally),
                kwargs={"backend": pair.backend[0], "backend_options": pair.backend[1]},
            )
            for pair in LOOPS
        ]
        threads += [threading.Thread(target=guarded, args=(_call, process.address, tally)) for _ in range(CONSUMERS)]
        if tally.intrudes:
            threads.append(threading.Thread(target=guarded, args=(_call_intruding, process.address, tally)))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            tally.ended.set()
            for thread in threads:
                thread.join()
    log.lines += process.lines
