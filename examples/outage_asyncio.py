"""A producer that outlives a restart of the server: each task gets in once, however often its enqueue is repeated.

python examples/outage_asyncio.py
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import redis.asyncio

from torrelque import Torrelque, TorrelqueRedisError, open_server

LONGEST_PAUSE = 2.0


async def enqueue(queue: Torrelque, number: int, failed: asyncio.Event) -> None:
    """Enqueue an invoice, repeating the call while Redis fails.

    That is safe even when only the answer was lost, for the same id again changes nothing. For how long it makes sense
    is for the caller to say, with `asyncio.timeout` around the call.
    """
    pause = 0.05
    while True:
        try:
            await queue.enqueue({"invoice": number}, task_id=f"invoice-{number}")
        except TorrelqueRedisError:
            failed.set()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            return


async def main() -> None:
    """Stop the server between two enqueues, and start it again on the same data."""
    failed = asyncio.Event()
    with tempfile.TemporaryDirectory() as data_dir:
        async with AsyncExitStack() as servers:
            url = await servers.enter_async_context(open_server(data_dir, port=0, fsync="always"))
            async with redis.asyncio.Redis.from_url(url) as client, Torrelque(client, queue="invoices") as queue:
                await enqueue(queue, 1, failed)
                await servers.aclose()

                async with asyncio.TaskGroup() as producers:
                    for number in (1, 2):
                        producers.create_task(enqueue(queue, number, failed))
                    await failed.wait()
                    print("the server is away, the producers repeat their calls")
                    await servers.enter_async_context(open_server(data_dir, port=urlsplit(url).port, fsync="always"))

                print((await queue.get_queue_stats()).tasks, "tasks in the queue")


if __name__ == "__main__":
    asyncio.run(main())
