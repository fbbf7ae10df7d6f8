"""A worker of the published package: ``python -I peer_worker.py FOLDER NAME URL QUEUE``, in its own environment.

It uses the documented face only, and writes a history as ``history.py`` does, of which nothing can be imported here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import time
from typing import Any

import redis.asyncio

from torrelque import Torrelque, TorrelqueTimeoutError

FOLDER, NAME, URL, QUEUE = sys.argv[1:]
CONSUMERS = 3
history = os.open(os.path.join(FOLDER, f"{NAME}.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
numbers = iter(range(1 << 62))


def write(*line: Any) -> None:
    os.write(history, json.dumps(line).encode() + b"\n")


def begin(op: str, args: Any) -> int:
    number = next(numbers)
    write("i", number, op, args, {}, time.monotonic_ns())
    return number


def end(number: int, how: str, value: Any = None) -> None:
    write("c", number, how, value, time.monotonic_ns())


def digest(task: Any) -> str:
    """The producers' JSON is what Python writes, so its bytes can be made again."""
    return hashlib.sha256(json.dumps(task).encode()).hexdigest()[:32]


async def consume(queue: Torrelque) -> None:
    while True:
        number = begin("dequeue", 1)
        try:
            task_id, task = await queue.dequeue(1)
        except TorrelqueTimeoutError:
            end(number, "fail")
        except Exception as error:
            end(number, "unknown", repr(error))
            print(repr(error), file=sys.stderr, flush=True)
            await asyncio.sleep(0.05)
        else:
            end(number, "ok", [(task_id, None, digest(task))])
            await asyncio.sleep(0.002)
            await release(queue, task_id)


async def release(queue: Torrelque, task_id: str) -> None:
    # It only logs what it could not do, so an answer does not say that the release was applied.
    number = begin("release", [(task_id, None)])
    try:
        await queue.release(task_id)
    except Exception as error:
        print(repr(error), file=sys.stderr, flush=True)
    end(number, "unknown")


async def main() -> None:
    client = redis.asyncio.Redis.from_url(URL)
    queue = Torrelque(client, queue=QUEUE)
    await asyncio.gather(*(consume(queue) for _ in range(CONSUMERS)))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    asyncio.run(main())
