"""Connections of redis-py's: made with the settings of a client, used below its commands and its parser, let go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from anyio import (
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    Event,
    create_task_group,
    current_time,
    move_on_after,
)
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ._topology import Place
from ._wire import CLOSE_TIMEOUT


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes connections with the settings of a client."""

    kind: Any
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, pool: Any) -> Maker:
        """Take the settings of a pool, whose connections may know where to connect to by themselves."""
        settings = {name: value for name, value in pool.connection_kwargs.items() if name != "connection_pool"}
        return cls(SSLConnection if issubclass(pool.connection_class, SSLConnection) else Connection, settings)

    async def connect(self, place: Place | None = None) -> Any:
        """Connect to a place, or to where the settings say."""
        where = {} if place is None else {"host": place.host, "port": place.port}
        connection = _abrupt(self.kind)(**_redact({**self.settings, **where}))
        try:
            if isinstance(connection, SSLConnection):
                await _to_its_end(connection.connect)
            else:
                await connection.connect()
        except BaseException:
            await drop(connection)
            raise
        return connection


def _redact(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for a connection of our own: no retries (we pace them), no read deadline but the one given."""
    wanted = {name: value for name, value in kwargs.items() if "maint_notifications" not in name}
    return {**wanted, "socket_timeout": None, "retry": Retry(NoBackoff(), 0), "protocol": 2}


class _Abrupt:
    """Lets go at once, also where redis-py does it by itself because the server would not let it in."""

    async def disconnect(self, *args: Any, **more: Any) -> None:
        _abort(self)
        await cast(Any, super()).disconnect(*args, **more)


@cache
def _abrupt(kind: Any) -> Any:
    return type(kind.__name__, (_Abrupt, kind), {})


async def _to_its_end(connect: Callable[[], Awaitable[object]]) -> None:
    """Await *connect*; who is cancelled meanwhile waits for its end, up to a second.

    When that is cancelled just as TLS stands, asyncio closes the connection in good order, and nobody has got it who
    could abort it.
    """
    error: Exception | None = None
    ended, scope = Event(), CancelScope(shield=True)

    async def run() -> None:
        nonlocal error
        try:
            with scope:
                await connect()
        except Exception as caught:
            error = caught
        finally:
            ended.set()

    async with create_task_group() as group:
        group.start_soon(run)
        try:
            await ended.wait()
        finally:
            scope.deadline = current_time() + CLOSE_TIMEOUT
    if error is not None:
        raise error


class Streams:
    """The streams of a connection that redis-py has made, below its commands and its parser."""

    def __init__(self, connection: Any) -> None:
        self._reader: Any = connection._reader
        self._writer: asyncio.StreamWriter = connection._writer

    @property
    def ended(self) -> bool:
        """Whether the server has hung up, or said something that nobody has asked for."""
        return self._reader.at_eof() or bool(self._reader._buffer) or self._writer.is_closing()

    async def send(self, item: bytes, /) -> None:
        if self._writer.is_closing():  # uvloop would raise an error of its own
            raise ClosedResourceError
        self._writer.write(item)
        await self._writer.drain()

    async def receive(self, max_bytes: int, /) -> bytes:
        chunk: bytes = await self._reader.read(max_bytes)
        if not chunk:
            raise EndOfStream
        return chunk

    async def aclose(self) -> None:
        self._writer.close()


async def drop(connection: Any) -> None:
    """Let a connection go at once, whoever has made it."""
    _abort(connection)
    with move_on_after(CLOSE_TIMEOUT, shield=True):
        await connection.disconnect(nowait=True)


def _abort(connection: Any) -> None:
    # In good order TLS would stay open until the peer has said good-bye as well, which nobody waits for.
    if connection._writer is not None:
        connection._writer.transport.abort()
