"""A server of one's own to kill and start again, and what callers may see meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import coredis.exceptions
import redis.exceptions

from torrelque import open_server

#: What the users of each client catch.
CLIENT_ERRORS: dict[str, type[Exception]] = {
    "redispy": redis.exceptions.RedisError,
    "coredis": coredis.exceptions.RedisError,
}


class Restartable:
    """A server on one port and one data directory, which survives its death."""

    def __init__(self, data_dir: Path, port: int, stack: AsyncExitStack, options: dict[str, Any]) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        self.admin = redis.Redis.from_url(self.url)
        self._data_dir = data_dir
        self._port = port
        self._stack = stack
        self._options = options

    async def start(self) -> None:
        """Return when it serves."""
        server = open_server(self._data_dir, port=self._port, fsync="always", **self._options)
        await self._stack.enter_async_context(server)

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory runs out."""
        os.kill(int((self._data_dir / "server.pid").read_text()), signal.SIGKILL)


@asynccontextmanager
async def open_restartable(data_dir: Path, port: int, **options: Any) -> AsyncGenerator[Restartable]:
    """Run a server that writes each answer to the disk first."""
    async with AsyncExitStack() as stack:
        server = Restartable(data_dir, port, stack, options)
        with server.admin:
            await server.start()
            yield server
