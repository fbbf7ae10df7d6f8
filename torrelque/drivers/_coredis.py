"""coredis.Redis, on asyncio and on Trio.

Scripts go over connections of our own with the client's settings, below its retry policy: that would send a write again
after a lost answer. What blocks or subscribes has one of coredis's, run in a task group that ends with its use.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from typing import Any, NoReturn

import coredis
from anyio import create_task_group, fail_after
from coredis import exceptions as theirs
from coredis.connection import BaseConnection
from coredis.patterns.pipeline import ClusterPipeline, Pipeline
from coredis.retry import NoRetryPolicy

from torrelque.calls import Call, Reply
from torrelque.errors import (
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
from ._lines import Lines
from ._scripts import arguments, pack, run_scripts
from ._wire import ReplyError
from .base import ANSWER_TIMEOUT, LATE, Blocker, Signal, Subscriber


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


class CoredisDriver:
    """Drives a :class:`coredis.Redis`: takes its settings, and its pipelines.

    :param owned: the client was made for this driver, and nobody enters it
    """

    cluster = False

    def __init__(self, client: coredis.Redis[Any], *, owned: bool = False) -> None:
        self._owned = owned
        self._pool = client.connection_pool
        self.db = int(self._pool.connection_kwargs.get("db") or 0)
        self._lines = Lines(self._pool.location, self._pool.connection_kwargs)
        self._signal: Callable[[], Signal] = _refuse
        self._clock: Callable[[], float] = _refuse

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        self._check_client()
        self._signal, self._clock = _of_event_loop()
        async with self._lines:
            yield

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
        request = b"".join([pack((name, *arguments(name, call))) for call in calls])
        harmless = all(call.script.reads_only for call in calls)
        return await self._ask(request, len(calls), CoredisUnavailableError if harmless else CoredisUnknownOutcomeError)

    async def _command(self, *command: bytes) -> Any:
        (reply,) = await self._ask(pack(command), 1, CoredisUnavailableError)
        if isinstance(reply, Exception):
            raise _ERRORS.translate(reply, CoredisUnavailableError)
        return reply

    async def _ask(self, request: bytes, answers: int, lost: type[TorrelqueError]) -> list[Reply | Exception]:
        """Make one round trip; *lost* is what it means that no answer came."""
        with _ERRORS.mapped(CoredisUnavailableError):
            line = await self._lines.take()
        try:
            with _ERRORS.mapped(lost), fail_after(ANSWER_TIMEOUT):
                replies = await line.ask(request, answers)
        except BaseException:
            # An answer may still come, and must never reach somebody else.
            await self._lines.drop(line)
            raise
        await self._lines.give_back(line)
        return [theirs.ResponseError(str(reply)) if isinstance(reply, ReplyError) else reply for reply in replies]

    async def config_get(self, name: str) -> str | None:
        try:
            reply = await self._command(b"CONFIG", b"GET", name.encode())
        except TorrelqueStorageError:
            return None
        return reply[1].decode() if reply else None

    def stage(self, call: Call[Any], pipeline: Any) -> None:
        if not isinstance(pipeline, Pipeline | ClusterPipeline):
            raise TorrelqueTypeError(f"pipeline must be a pipeline of a coredis client, not {type(pipeline).__name__}")
        pipeline.create_request(b"EVAL", *arguments(b"EVAL", call), callback=_as_is)

    def _new_connection(self) -> BaseConnection:
        # Not one of the pool's, which does not get back the place of a lent connection that died.
        options = {
            **self._pool.connection_kwargs, "decode_responses": False, "max_idle_time": None, "stream_timeout": None,
        }  # fmt: skip
        connection: BaseConnection = self._pool.connection_class(self._pool.location, **options)
        return connection

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
        await self._command(b"CLIENT", b"UNBLOCK", b"%d" % self._connection.client_id)


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


def _as_is(reply: Reply, **_: Any) -> Reply:
    return reply
