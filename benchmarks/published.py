"""A worker with the published package 0.9, run by the Python of its own virtual environment. ``bench.py`` asks it.

There the name ``torrelque`` is the published package, and nothing but redis-py is installed beside it. Only what is
documented of it is used.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import redis.asyncio
from probe import Probe
from protocol import serve
from side import Event, Opened

from torrelque import Torrelque


class Published:
    """The published package, on redis-py and asyncio: it has no other."""

    def __init__(self, url: str) -> None:
        self.probe = Probe(url)
        self._url = url

    def run(self, job: Callable[[], Awaitable[Any]]) -> Any:
        return asyncio.run(job())

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Opened]:
        # It takes a connection for each call under way, and redis-py's pool refuses more than 100 unless told. Nor
        # does it wait in Redis for longer than redis-py's own timeout of 5 s.
        client = redis.asyncio.Redis.from_url(self._url, max_connections=5000, socket_timeout=None)
        try:
            yield Opened(client, Torrelque(client, queue="bench"))
        finally:
            await client.aclose()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def event(self) -> Event:
        return asyncio.Event()

    async def together(self, job: Callable[[Any], Awaitable[Any]], arguments: Iterable[Any]) -> None:
        await asyncio.gather(*(job(argument) for argument in arguments))

    @asynccontextmanager
    async def background(self) -> AsyncGenerator[Callable[..., Any]]:
        tasks: list[asyncio.Task[Any]] = []
        async with asyncio.TaskGroup() as group:
            yield lambda job, *args: tasks.append(group.create_task(job(*args)))
            # Repeated, for a task that is cancelled while it reads an answer may miss that, and go on.
            while not all(task.done() for task in tasks):
                for task in tasks:
                    task.cancel()
                await asyncio.sleep(0.05)

    async def enqueue_bulk(self, opened: Opened, tasks: list[Any]) -> None:
        async with self.pipeline(opened) as pipeline:
            for task in tasks:
                await opened.queue.enqueue(task, pipeline=pipeline)

    async def release_bulk(self, opened: Opened, task_ids: list[str]) -> None:
        async with self.pipeline(opened) as pipeline:
            for task_id in task_ids:
                await opened.queue.release(task_id, pipeline=pipeline)

    @asynccontextmanager
    async def pipeline(self, opened: Opened) -> AsyncGenerator[Any]:
        # In a transaction, which is redis-py's default and what this package's calls on a pipeline need: without one
        # a consumer can see an id before its payload, and destroys the task.
        async with opened.client.pipeline(transaction=True) as pipeline:
            yield pipeline
            await pipeline.execute()


if __name__ == "__main__":
    if not version("torrelque").startswith("0.9"):
        sys.exit(f"This Python has torrelque {version('torrelque')} rather than the published 0.9")
    serve(Published(*sys.argv[1:]))
