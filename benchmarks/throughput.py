"""How many tasks a second, on every pair of client and event loop, beside the published package in the same run.

    python benchmarks/throughput.py [--count 20000] [--server /usr/bin/redis-server]

Only the ratios mean anything: the machine, its load and the server are the same for all columns of one run. The last
lines tell the longest script that the server saw, and how late delayed tasks were delivered.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import coredis
import redis
import redis.asyncio
from rich.console import Console
from rich.table import Table

from torrelque import Torrelque, open_server

PEER = Path(__file__).parent.parent / ".venv/peer/bin/python"
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "redis-py, asyncio": ("asyncio", {}),
    "redis-py, uvloop": ("asyncio", {"use_uvloop": True}),
    "coredis, asyncio": ("asyncio", {}),
    "coredis, Trio": ("trio", {}),
}


async def rate(callers: int, count: int, job: Callable[[], Awaitable[object]]) -> float:
    """Run *job* *count* times from several tasks; returns how many a second."""
    jobs = iter(range(count))

    async def call() -> None:
        for _ in jobs:
            await job()

    started = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(callers):
            group.start_soon(call)
    return count / (time.perf_counter() - started)


async def measure(queue: Torrelque, count: int) -> dict[str, float]:
    """Run every job; each leaves the queue as the next one needs it."""

    async def enqueue() -> None:
        await queue.enqueue({"a": 1})

    async def work() -> None:
        task_id, _ = await queue.dequeue(5)
        await queue.release(task_id)

    async def enqueue_500() -> None:
        await queue.enqueue_many([{"a": 1}] * 500)

    async def work_100() -> None:
        async with anyio.create_task_group() as group:
            for task_id, _ in await queue.dequeue(5, max_tasks=100):
                group.start_soon(queue.release, task_id)

    return {
        "enqueue, 32 callers": await rate(32, count, enqueue),
        "dequeue + release, 32 callers": await rate(32, count, work),
        "enqueue, one caller": await rate(1, count // 4, enqueue),
        "dequeue + release, one caller": await rate(1, count // 4, work),
        "bulk enqueue, 500 a call": 500 * await rate(1, count // 500, enqueue_500),
        "bulk dequeue, 100 a call, + release": 100 * await rate(1, count // 100, work_100),
        "late by, p99 of 200 delays, ms": 1000 * await lateness(queue),
    }


async def lateness(queue: Torrelque) -> float:
    """How late, in seconds, a waiting consumer gets delayed tasks, at the 99th percentile."""
    late = []
    for i in range(200):
        await queue.enqueue(i, delay=0.1 + i / 1000)
    for _ in range(200):
        task_id, i = await queue.dequeue(5)
        state = await queue.get_task_state(task_id)
        assert state.last_dequeue_time is not None
        late.append(state.last_dequeue_time - state.enqueue_time - (0.1 + i / 1000))
        await queue.release(task_id)
    return sorted(late)[197]


async def measure_pair(pair: str, url: str, count: int) -> dict[str, float]:
    """Measure one pair on a client of its own."""
    async with AsyncExitStack() as stack:
        client: Any
        if pair.startswith("redis-py"):
            client = redis.asyncio.Redis.from_url(url)
            stack.push_async_callback(client.aclose)
        else:
            client = await stack.enter_async_context(coredis.Redis.from_url(url))
        return await measure(await stack.enter_async_context(Torrelque(client, queue="bench")), count)


def measure_published(url: str, count: int) -> dict[str, float]:
    """Measure the published package in a process of its own; nothing where it is not installed."""
    if not PEER.exists():
        return {}
    command = [PEER, Path(__file__).with_name("published.py"), url, str(count // 3)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def show(columns: dict[str, dict[str, float]], published: dict[str, float], console: Console) -> None:
    """Print a row for each job, with the ratio to the published package."""
    table = Table("tasks per second", "published 0.9", *columns)
    for job in next(iter(columns.values())):
        base = published.get(job)
        cells = [
            f"{figures[job]:,.0f}" + (f"  x{figures[job] / base:.1f}" if base else "") for figures in columns.values()
        ]
        table.add_row(job, f"{base:,.0f}" if base else "-", *cells)
    console.print(table)


def seed_backlog(admin: redis.Redis, due: int, stale: int) -> None:
    """Make a backlog: delayed tasks that are all due, and leases that have all ended."""
    for place, count, status in (("delayed", due, 2), ("working", stale, 1)):
        for start in range(0, count, 1000):
            pipeline = admin.pipeline(transaction=False)
            for i in range(start, min(start + 1000, count)):
                task_id = f"{place}{i}"
                pipeline.zadd(f"backlog:{place}", {task_id: 1 + i / 1000})
                pipeline.hset("backlog:tasks", task_id, b"{}")
                pipeline.hset(f"backlog:task:{task_id}", mapping={"status": status, "enqueue_time": 1, "timeout": 300})
            pipeline.execute()


async def sweep_backlog(url: str) -> tuple[tuple[int, int, int], float]:
    """Sweep once; returns what went back, and the seconds it took."""
    async with Torrelque.from_url(url, queue="backlog") as queue:
        started = time.perf_counter()
        report = await queue.sweep()
        return report, time.perf_counter() - started


def show_longest_script(admin: redis.Redis, console: Console) -> None:
    """Tell the longest script that the server ran."""
    entries = [entry for entry in admin.slowlog_get(1000) if entry["command"].upper().startswith(b"EVAL")]
    longest = max((entry["duration"] for entry in entries), default=0)
    console.print(f"longest script in SLOWLOG: {longest / 1000:.1f} ms")


async def main(count: int, server: str | None) -> None:
    console = Console()
    async with open_server(server=server, fsync="no") as url:
        with redis.Redis.from_url(url) as admin:
            admin.config_set("slowlog-log-slower-than", 500)
            admin.config_set("slowlog-max-len", 1000)
            published = await anyio.to_thread.run_sync(measure_published, url, count)
            columns = {}
            for pair, (backend, options) in PAIRS.items():
                columns[pair] = await anyio.to_thread.run_sync(
                    lambda pair=pair, backend=backend, options=options: anyio.run(
                        measure_pair, pair, url, count, backend=backend, backend_options=options
                    )
                )
            show(columns, published, console)
            show_longest_script(admin, console)
            seed_backlog(admin, due=100_000, stale=10_000)
            admin.slowlog_reset()
            (stale, due, _), seconds = await sweep_backlog(url)
            console.print(f"one sweep of {due:,} due and {stale:,} stale tasks: {seconds:.1f} s", highlight=False)
            show_longest_script(admin, console)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="tasks for each job")
    parser.add_argument("--server", help="a redis-server or valkey-server of your own")
    given = parser.parse_args()
    anyio.run(main, given.count, given.server)
