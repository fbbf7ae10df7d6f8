"""The same jobs on the published package, run by its own Python; prints one JSON object. See throughput.py."""

import asyncio
import json
import sys
import time

import redis.asyncio

from torrelque import Torrelque


async def rate(callers, count, job):
    jobs = iter(range(count))

    async def call():
        for _ in jobs:
            await job()

    started = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return count / (time.perf_counter() - started)


async def main(url, count):
    client = redis.asyncio.Redis.from_url(url)
    queue = Torrelque(client, queue="published")

    async def enqueue():
        await queue.enqueue({"a": 1})

    async def work():
        task_id, _ = await queue.dequeue(5)
        await queue.release(task_id)

    print(
        json.dumps(
            {
                "enqueue, 32 callers": await rate(32, count, enqueue),
                "dequeue + release, 32 callers": await rate(32, count, work),
                "enqueue, one caller": await rate(1, count // 4, enqueue),
                "dequeue + release, one caller": await rate(1, count // 4, work),
            }
        )
    )
    await client.aclose()


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
