"""coredis.Redis, on asyncio and on Trio.

Requests are made on a connection of our own with the client's settings, below its retry policy: that would send a write
again after a lost answer. What blocks has another, run in a task group that ends with its use.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from typing import Any, NoReturn

import coredis
from anyio import CancelScope, Lock, create_task_group
from anyio.abc import TaskGroup, TaskStatus
from coredis import exceptions as theirs
from coredis.connection import BaseConnection
from coredis.patterns.pipeline import ClusterPipeline, Pipeline
from coredis.retry import NoRetryPolicy

from torrelque.calls import Call, Reply
from torrelque.errors import (
    TorrelqueClosedError,
    TorrelqueError,
    TorrelqueFullError,
    TorrelqueStorageError,
    TorrelqueTypeError,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
    TorrelqueValueError,
)

from ._asyncio import AsyncioSignal
from ._errors import ErrorMap
from ._scripts import arguments, run_scripts
from .base import ANSWER_TIMEOUT, LANES, LATE, Blocker, Signal, Subscriber


class CoredisUnavailableError(TorrelqueUnavailableError, theirs.ConnectionError):
    pass


class CoredisUnknownOutcomeError(TorrelqueUnknownOutcomeError, theirs.ConnectionError):
    pass


class CoredisFullError(TorrelqueFullError, theirs.ResponseError):
    pass


class CoredisStorageError(TorrelqueStorageError, theirs.ResponseError):
    pass


_ERRORS = ErrorMap(
    root=theirs.RedisError,
    reply=theirs.ResponseError,
    ours={
        TorrelqueUnavailableError: CoredisUnavailableError,
        TorrelqueFullError: CoredisFullError,
        TorrelqueStorageError: CoredisStorageError,
    },
)


def is_coredis(client: Any) -> bool:
    """Tell whether *client* is one that this driver serves."""
    return isinstance(client, coredis.Redis)


def open_url(url: str, options: dict[str, Any]) -> CoredisDriver:
    """Make the driver of a client for *url*, opened and closed with the driver."""
    try:
        client = coredis.Redis.from_url(url, retry_policy=NoRetryPolicy(), **options)
    except (ValueError, KeyError):
        # What coredis says repeats the value, and a URL may hold secrets anywhere.
        raise TorrelqueValueError("url or client_options hold a setting that coredis cannot read") from None
    return CoredisDriver(client, owned=True)


class _Lane:
    """A connection for requests that do not block, made when it is needed."""

    def __init__(self) -> None:
        self.connection: BaseConnection | None = None
        self.connecting = Lock()
        #: Requests under way.
        self.users = 0


def _users(lane: _Lane) -> int:
    return lane.users


class CoredisDriver:
    """Drives a :class:`coredis.Redis`: takes its settings, and its pipelines.

    :param owned: the client was made for this driver, and nobody enters it
    """

    cluster = False

    def __init__(self, client: coredis.Redis[Any], *, owned: bool = False) -> None:
        self._owned = owned
        self._pool = client.connection_pool
        self.db = int(self._pool.connection_kwargs.get("db") or 0)
        self._group: TaskGroup | None = None
        self._lanes = [_Lane() for _ in range(LANES)]
        self._signal: Callable[[], Signal] = _refuse
        self._clock: Callable[[], float] = _refuse

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        self._check_client()
        self._signal, self._clock = _of_event_loop()
        async with create_task_group() as group:
            self._group = group
            try:
                yield
            finally:
                self._group = None
                for lane in self._lanes:
                    if lane.connection is not None:
                        lane.connection.invalidate()

    def _check_client(self) -> None:
        if self._owned:
            return
        try:
            _ = self._pool.task_group
        except RuntimeError:
            raise TorrelqueError(
                "The coredis client must be entered before the queue: `async with client: async with queue:`"
            ) from None

    def signal(self) -> Signal:
        return self._signal()

    def now(self) -> float:
        return self._clock()

    def spawn_detached(self, function: Callable[[], Awaitable[None]]) -> None:
        raise _not_entered()

    async def execute(self, calls: Sequence[Call[Any]]) -> list[Reply | Exception]:
        replies = await run_scripts(self._send, calls)
        lost = CoredisUnknownOutcomeError
        return [_ERRORS.translate(reply, lost) if isinstance(reply, Exception) else reply for reply in replies]

    async def _send(self, name: bytes, calls: Sequence[Call[Any]]) -> list[Reply | Exception]:
        harmless = all(call.script.reads_only for call in calls)
        async with self._lend() as connection:
            with _ERRORS.mapped(CoredisUnavailableError):
                requests = [
                    connection.create_request(
                        name,
                        *arguments(name, call),
                        decode=False,
                        timeout=ANSWER_TIMEOUT,
                        disconnect_on_cancellation=True,
                    )
                    for call in calls
                ]
            with _ERRORS.mapped(CoredisUnavailableError if harmless else CoredisUnknownOutcomeError):
                return [await _answer(request) for request in requests]

    async def _command(self, name: bytes, *arguments: Any) -> Any:
        async with self._lend() as connection:
            with _ERRORS.mapped(CoredisUnavailableError):
                return await connection.create_request(name, *arguments, decode=False, timeout=ANSWER_TIMEOUT)

    @asynccontextmanager
    async def _lend(self) -> AsyncGenerator[BaseConnection]:
        """A connection for what does not block: the first that is idle, else one where the answers come in order."""
        lane = min(self._lanes, key=_users)
        lane.users += 1
        try:
            yield await self._connected(lane)
        finally:
            lane.users -= 1

    async def _connected(self, lane: _Lane) -> BaseConnection:
        if lane.connection is not None and lane.connection.usable:
            return lane.connection
        async with lane.connecting:
            if lane.connection is None or not lane.connection.usable:
                if self._group is None:
                    raise TorrelqueClosedError("The queue is closed: call it inside its `async with`")
                lane.connection = self._new_connection()
                with _ERRORS.mapped(CoredisUnavailableError):
                    await self._group.start(_run_shielded, lane.connection)
        return lane.connection

    def _new_connection(self) -> BaseConnection:
        # Not one of the pool's: those end with the scope around the client, while the queue may still have a task to
        # hand back, and the pool does not get back the place of a lent connection that died.
        options = {
            **self._pool.connection_kwargs, "decode_responses": False, "max_idle_time": None, "stream_timeout": None,
        }  # fmt: skip
        connection: BaseConnection = self._pool.connection_class(self._pool.location, **options)
        return connection

    async def config_get(self, name: str) -> str | None:
        try:
            reply = await self._command(b"CONFIG GET", name)
        except TorrelqueStorageError:
            return None
        values = list(reply.values()) if isinstance(reply, dict) else reply[1::2]
        return values[0].decode() if values else None

    def stage(self, call: Call[Any], pipeline: Any) -> None:
        if not isinstance(pipeline, Pipeline | ClusterPipeline):
            raise TorrelqueTypeError(f"pipeline must be a pipeline of a coredis client, not {type(pipeline).__name__}")
        pipeline.create_request(b"EVAL", *arguments(b"EVAL", call), callback=_as_is)

    @asynccontextmanager
    async def _own_connection(self) -> AsyncGenerator[BaseConnection]:
        connection = self._new_connection()
        async with create_task_group() as group:
            with _ERRORS.mapped(CoredisUnavailableError):
                await group.start(connection.run)
            try:
                yield connection
            finally:
                connection.invalidate()

    def blocking(self) -> AbstractAsyncContextManager[Blocker]:
        return self._blocking()

    @asynccontextmanager
    async def _blocking(self) -> AsyncGenerator[Blocker]:
        async with self._own_connection() as connection:
            yield CoredisBlocker(connection, self._command)

    def subscribing(self) -> AbstractAsyncContextManager[Subscriber]:
        return self._subscribing()

    @asynccontextmanager
    async def _subscribing(self) -> AsyncGenerator[Subscriber]:
        async with self._own_connection() as connection, aclosing(connection.push_messages) as messages:
            yield CoredisSubscriber(connection, messages)


def _not_entered() -> TorrelqueError:
    return TorrelqueError("With a coredis client the queue must be entered first: `async with queue:`")


def _refuse() -> NoReturn:
    raise _not_entered()


def _of_event_loop() -> tuple[Callable[[], Signal], Callable[[], float]]:
    """Pick the signals and the clock of the running event loop."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio

        from ._trio import TrioSignal  # only here is Trio known to be installed

        return TrioSignal, trio.current_time
    return partial(AsyncioSignal, loop=loop), loop.time


class CoredisBlocker:
    """Waits in Redis on a connection of its own."""

    def __init__(self, connection: Any, command: Callable[..., Awaitable[Any]]) -> None:
        self._connection = connection
        self._command = command

    async def move(self, source: bytes, destination: bytes, timeout: float) -> bytes | None:
        with _ERRORS.mapped(CoredisUnavailableError):
            reply: bytes | None = await self._connection.create_request(
                b"BLMOVE",
                source,
                destination,
                b"RIGHT",
                b"LEFT",
                timeout,
                decode=False,
                timeout=timeout + LATE,
                disconnect_on_cancellation=True,
            )
            return reply

    async def unblock(self) -> None:
        await self._command(b"CLIENT UNBLOCK", self._connection.client_id)


class CoredisSubscriber:
    """Receives messages on a connection of its own."""

    def __init__(self, connection: Any, messages: AsyncGenerator[Any]) -> None:
        self._connection = connection
        self._messages = messages

    async def subscribe(self, *channels: bytes) -> None:
        with _ERRORS.mapped(CoredisUnavailableError):
            self._connection.send_command(b"SUBSCRIBE", *channels)

    async def unsubscribe(self, *channels: bytes) -> None:
        with _ERRORS.mapped(CoredisUnavailableError):
            self._connection.send_command(b"UNSUBSCRIBE", *channels)

    async def ping(self) -> None:
        with _ERRORS.mapped(CoredisUnavailableError):
            await self._connection.create_request(b"PING", decode=False, timeout=LATE)

    async def receive(self) -> tuple[bytes, bytes, bytes | None]:
        with _ERRORS.mapped(CoredisUnavailableError):
            kind, channel, data = await anext(self._messages)
        return kind, channel, data if kind == b"message" else None


async def _run_shielded(connection: BaseConnection, *, task_status: TaskStatus[None]) -> None:
    # The scope around the queue may be cancelled while the queue still needs the connection; invalidate() ends it.
    with CancelScope(shield=True):
        await connection.run(task_status=task_status)


async def _answer(request: Any) -> Reply | Exception:
    try:
        return await request
    except theirs.ResponseError as error:
        return error


def _as_is(reply: Reply, **_: Any) -> Reply:
    return reply
