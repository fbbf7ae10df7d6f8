"""The library by itself: ``python grpc_library.py '{"url": ..., "queue": ...}'`` enqueues without a server.

It speaks as ``go-load`` does: "begin" and "end" on stderr around what is measured, one line of JSON on stdout.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import redis.asyncio
from figures import percentile

from grpc_server.embedding import loop_factory
from grpc_server.queues import AS_THEY_ARE
from torrelque import Torrelque


async def main(*, url: str, queue: str, callers: int, bulk: int, payload: int, seconds: float, warmup: float) -> None:
    """Enqueue bulks from all callers, first to warm up and then to measure."""
    bodies = [b"x" * payload] * bulk
    client = redis.asyncio.Redis.from_url(url)
    async with Torrelque(client, queue=queue, serialiser=AS_THEY_ARE) as opened:

        async def enqueue(until: float) -> list[float]:
            took = []
            while (began := time.perf_counter()) < until:
                await opened.enqueue_many(bodies)
                took.append(time.perf_counter() - began)
            return took

        async def all_callers(length: float) -> list[float]:
            until = time.perf_counter() + length
            lots = await asyncio.gather(*(enqueue(until) for _ in range(callers)))
            return [each for lot in lots for each in lot]

        await all_callers(warmup)
        print("begin", file=sys.stderr, flush=True)
        clock, processor = time.perf_counter(), time.process_time()
        took = await all_callers(seconds)
        clock, processor = time.perf_counter() - clock, time.process_time() - processor
        print("end", file=sys.stderr, flush=True)
    await client.aclose()
    report = {"count": bulk * len(took), "seconds": clock, "cpu_seconds": processor, "errors": 0}
    print(json.dumps(report | {"p50": percentile(took, 0.5), "p99": percentile(took, 0.99)}))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(**json.loads(sys.argv[1])))
