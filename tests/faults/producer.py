"""A producer: enqueues at an even pace, each batch until it is acknowledged: ``python -m faults.producer``.

It ends when it has enqueued its share, or by SIGTERM. Tasks have ids of their own, so that a batch can be sent again
when it is not known whether it was stored.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import grpc
from faults.clients import PAUSE, dial, open_queue, payload
from faults.history import Recorder, digest
from support.bridge import seconds

from grpc_server._pb import torrelque_pb2 as pb
from torrelque import Torrelque, TorrelqueRedisError

#: No call by wire takes longer, in seconds.
DEADLINE = 10.0


@dataclass(frozen=True)
class Orders:
    """What a producer is told.

    :ivar way: ``redispy``, ``coredis`` or ``grpc``
    :ivar place: URL, or addresses of servers
    :ivar pace: tasks a second
    """

    name: str
    history: str
    way: str
    backend: str
    place: Any
    queue: str
    seed: str
    tasks: int
    pace: float
    lease: float
    batch: int = 100


@dataclass(frozen=True)
class Batch:
    """Tasks that go out together."""

    ids: list[str]
    bodies: list[bytes]
    delay: float
    due: float


def batches(orders: Orders) -> Any:
    """Draw what is enqueued, and when, in seconds from the start."""
    chance, made = random.Random(orders.seed), 0
    while made < orders.tasks:
        size = min(orders.tasks - made, 1 if chance.random() < 0.05 else chance.randint(1, orders.batch))
        ids = [f"{orders.name}-{made + i}" for i in range(size)]
        delay = chance.uniform(0.05, 0.5) if chance.random() < 0.05 else 0.0
        yield Batch(ids, [payload(chance, task_id) for task_id in ids], delay, made / orders.pace)
        made += size


def stoppable() -> list[int]:
    """Note a SIGTERM in the list that is returned: no batch is begun after that."""
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    return signals


def args(batch: Batch) -> list[tuple[str, str]]:
    return [(task_id, digest(body)) for task_id, body in zip(batch.ids, batch.bodies, strict=True)]


async def send(queue: Torrelque, batch: Batch, recorder: Recorder, lease: float) -> None:
    """Enqueue a batch, again and again until it is stored."""
    options: dict[str, Any] = {"task_timeout": lease, "delay": batch.delay or None}
    while True:
        try:
            with recorder.call("enqueue", args(batch)) as call:
                if len(batch.ids) == 1:
                    ids = [await queue.enqueue(batch.bodies[0], task_id=batch.ids[0], **options)]
                else:
                    ids = await queue.enqueue_many(batch.bodies, task_ids=batch.ids, **options)
                call.ok([task_id.deduplicated for task_id in ids])
        except TorrelqueRedisError as error:
            print(type(error).__name__, error, file=sys.stderr, flush=True)
            await anyio.sleep(PAUSE)
        else:
            return


async def produce(orders: Orders) -> None:
    """Enqueue with the library."""
    told_to_stop = stoppable()
    with Recorder(Path(orders.history), orders.name) as recorder:
        async with open_queue(orders.place, orders.queue, orders.way) as queue:
            began = anyio.current_time()
            for batch in batches(orders):
                await anyio.sleep_until(began + batch.due)
                if told_to_stop:
                    return
                await send(queue, batch, recorder, orders.lease)


def produce_by_wire(orders: Orders) -> None:
    """Enqueue through servers."""
    told_to_stop = stoppable()
    channel, stub = dial(orders.place)
    with channel, Recorder(Path(orders.history), orders.name) as recorder:
        began = time.monotonic()
        for batch in batches(orders):
            time.sleep(max(0.0, began + batch.due - time.monotonic()))
            if told_to_stop:
                return
            while not send_by_wire(stub, batch, recorder, orders):
                time.sleep(PAUSE)


def send_by_wire(stub: Any, batch: Batch, recorder: Recorder, orders: Orders) -> bool:
    """Enqueue a batch; tells whether it is stored."""
    specs = [
        pb.TaskSpec(
            payload=pb.Payload(data=body), request_id=task_id, task_timeout=seconds(orders.lease),
            delay=seconds(batch.delay),
        )
        for task_id, body in zip(batch.ids, batch.bodies, strict=True)
    ]  # fmt: skip
    try:
        with recorder.call("enqueue", args(batch)) as call:
            request = pb.BatchEnqueueRequest(queue=orders.queue, tasks=specs)
            answer = stub.BatchEnqueue(request, timeout=DEADLINE)
            call.ok([result.deduplicated for result in answer.results])
    except grpc.RpcError as error:
        print(error.code(), error.details(), file=sys.stderr, flush=True)
        return False
    return True


if __name__ == "__main__":
    told = Orders(**json.loads(sys.argv[1]))
    if told.way == "grpc":
        produce_by_wire(told)
    else:
        anyio.run(produce, told, backend=told.backend)
