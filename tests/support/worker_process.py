"""A worker process to be killed and stopped: ``python -m support.worker_process URL QUEUE PAIR NUMBER``.

It takes NUMBER tasks and says on stdout which, a line of JSON each time. The last one it holds with ``queue.lease``;
when that is lost, it says so, tries to settle the others as their payloads tell, and says what it was told.
"""

from __future__ import annotations

import json
import sys
from contextlib import AsyncExitStack
from typing import Any

import anyio
import coredis
import redis.asyncio

from support import PAIRS
from torrelque import Torrelque, TorrelqueLookupError


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


async def settle(queue: Torrelque, task_id: Any, how: str) -> str:
    """Return the name of the error that settling raises."""
    try:
        match how.split()[0]:
            case "release":
                await queue.release(task_id, result="late", strict=True)
            case "requeue":
                await queue.requeue(task_id, 1, task_timeout=7, strict=True)
            case "extend":
                await queue.extend(task_id, 1000)
    except TorrelqueLookupError as error:
        return type(error).__name__
    return "done"


async def main(url: str, name: str, client_name: str, number: int) -> None:
    async with AsyncExitStack() as stack:
        client: Any
        if client_name == "redispy":
            client = redis.asyncio.Redis.from_url(url)
            stack.push_async_callback(client.aclose)
        else:
            client = await stack.enter_async_context(coredis.Redis.from_url(url))
        queue = await stack.enter_async_context(Torrelque(client, queue=name))
        held: list[tuple[Any, Any]] = []
        while len(held) < number:
            held += await queue.dequeue(max_tasks=number - len(held))
        say({task: [task_id, task_id.dequeue_count] for task_id, task in held})
        leased, _ = held.pop()
        try:
            async with queue.lease(leased):
                await anyio.sleep_forever()
        except TorrelqueLookupError as error:
            say(type(error).__name__)
        say({task: await settle(queue, task_id, task) for task_id, task in held})


if __name__ == "__main__":
    url, name, pair_name, number = sys.argv[1:]
    pair = next(pair for pair in PAIRS if str(pair) == pair_name)
    anyio.run(main, url, name, pair.client, int(number), backend=pair.backend[0], backend_options=pair.backend[1])
