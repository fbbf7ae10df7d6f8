"""A worker with our library: ``python ours.py URL "coredis, Trio"``. ``bench.py`` starts and asks it."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import coredis
import redis.asyncio
from probe import Probe
from protocol import serve
from side import Event, Opened

from torrelque import Torrelque

#: Options of :func:`anyio.run` for each pair of client and event loop.
PAIRS: dict[str, dict[str, Any]] = {
    "redis-py, asyncio": {"backend": "asyncio"},
    "redis-py, uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "coredis, asyncio": {"backend": "asyncio"},
    "coredis, Trio": {"backend": "trio"},
}


class Ours:
    """Our library with one client on one event loop."""

    def __init__(self, url: str, pair: str) -> None:
        self.probe = Probe(url)
        self._url = url
        self._redispy = pair.startswith("redis-py")
        self._loop = PAIRS[pair]

    def run(self, job: Callable[[], Awaitable[Any]]) -> Any:
        return anyio.run(job, **self._loop)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Opened]:
        async with AsyncExitStack() as stack:
            client: Any
            if self._redispy:
                client = redis.asyncio.Redis.from_url(self._url)
                stack.push_async_callback(client.aclose)
            else:
                client = await stack.enter_async_context(coredis.Redis.from_url(self._url))
            yield Opened(client, await stack.enter_async_context(Torrelque(client, queue="bench")))

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    def event(self) -> Event:
        return anyio.Event()

    async def together(self, job: Callable[[Any], Awaitable[Any]], arguments: Iterable[Any]) -> None:
        async with anyio.create_task_group() as group:
            for argument in arguments:
                group.start_soon(job, argument)

    @asynccontextmanager
    async def background(self) -> AsyncGenerator[Callable[..., Any]]:
        async with anyio.create_task_group() as group:
            yield group.start_soon
            group.cancel_scope.cancel()

    async def enqueue_bulk(self, opened: Opened, tasks: list[Any]) -> None:
        await opened.queue.enqueue_many(tasks)

    async def release_bulk(self, opened: Opened, task_ids: list[str]) -> None:
        await opened.queue.release_many(task_ids)

    @asynccontextmanager
    async def pipeline(self, opened: Opened) -> AsyncGenerator[Any]:
        async with opened.client.pipeline(transaction=True) as pipeline:
            yield pipeline
            if self._redispy:  # that of coredis is executed by its own scope
                await pipeline.execute()


if __name__ == "__main__":
    serve(Ours(*sys.argv[1:]))
