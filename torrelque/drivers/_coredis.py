"""coredis.Redis (one server, or the primary that Sentinel tells of) and coredis.RedisCluster, on asyncio and on Trio.

Scripts go over connections of our own with the client's settings, below its retry policy: that would send a write again
after a lost answer. What blocks or subscribes has one of coredis's, run in a task group that ends with its use.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from typing import Any, NoReturn

import coredis
from anyio import CancelScope, create_task_group, fail_after
from coredis import exceptions as theirs
from coredis.connection import BaseConnection, TCPConnection, TCPLocation, UnixDomainSocketLocation
from coredis.patterns.pipeline import ClusterPipeline, Pipeline
from coredis.pool import ClusterConnectionPool, SentinelConnectionPool
from coredis.retry import NoRetryPolicy
from coredis.typing import Key

from torrelque.calls import Assurance, Call, Reply
from torrelque.checks import Target
from torrelque.errors import (
    TorrelqueError,
    TorrelqueFullError,
    TorrelqueNotDurableError,
    TorrelqueStorageError,
    TorrelqueTypeError,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
    TorrelqueValueError,
)

from ._asyncio import AsyncioSignal
from ._errors import ErrorMap
from ._lines import Lines, open_line
from ._scripts import Requests, ScriptRunner, arguments, pack
from ._topology import Cluster, Place, Searched, Sentinel, Topology, Watchman, on_watch
from .base import ANSWER_TIMEOUT, LATE, Blocker, Signal, Subscriber


class CoredisUnavailableError(TorrelqueUnavailableError, theirs.ConnectionError):
    pass


class CoredisUnknownOutcomeError(TorrelqueUnknownOutcomeError, theirs.ConnectionError):
    pass


class CoredisNotDurableError(TorrelqueNotDurableError, theirs.ResponseError):
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
        TorrelqueUnknownOutcomeError: CoredisUnknownOutcomeError,
        TorrelqueNotDurableError: CoredisNotDurableError,
        TorrelqueFullError: CoredisFullError,
        TorrelqueStorageError: CoredisStorageError,
    },
)


def is_coredis(client: Any) -> bool:
    """Tell whether *client* is one that this driver serves."""
    return isinstance(client, coredis.Redis | coredis.RedisCluster)


def open_url(target: Target, options: dict[str, Any]) -> CoredisDriver:
    """Make the driver of a client for *target*, opened and closed with the driver."""
    try:
        options = {"decode_components": True, **options}
        client = coredis.Redis.from_url(target.url, retry_policy=NoRetryPolicy(), **options)
    except (ValueError, KeyError, TypeError) as error:
        # What coredis says repeats the value, and a URL may hold secrets anywhere.
        kind = TorrelqueTypeError if isinstance(error, TypeError) else TorrelqueValueError
        raise kind("url or client_options hold a setting that coredis cannot read") from None
    settings = client.connection_pool.connection_kwargs
    places = [Place(host, port) for host, port in target.places]
    if target.kind == "sentinel":
        # User and password of the URL are those of the server.
        ours = {"db": None, "username": None, "password": None, "credential_provider": None, **target.login}
        ask = _asking({**settings, **ours})
        return CoredisDriver(client, Sentinel(ask, places, target.service))
    if target.kind == "cluster":
        return CoredisDriver(client, Cluster(_asking(settings), places))
    return CoredisDriver(client, _fixed(client.connection_pool.location))


def _topology(client: coredis.Redis[Any] | coredis.RedisCluster[Any]) -> Topology:
    """Find out from a client where its primary is."""
    pool = client.connection_pool
    if isinstance(pool, ClusterConnectionPool):
        return Cluster(_asking(pool.connection_kwargs), [_place(node) for node in pool.startup_nodes])
    if isinstance(pool, SentinelConnectionPool):
        if not pool.is_primary:
            raise TorrelqueError("client must be the one of a primary: Sentinel(...).primary_for(name)")
        pools = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
        # Each sentinel has a client, all with the same settings.
        ask = _asking(pools[0].connection_kwargs) if pools else _asking({})
        return Sentinel(ask, [_place(each.location) for each in pools], pool.service_name)
    return _fixed(pool.location)


def _fixed(location: Any) -> Topology:
    if isinstance(location, UnixDomainSocketLocation):
        return Topology(Place(path=location.path))
    return Topology(_place(location))


def _place(location: Any) -> Place:
    if not isinstance(location, TCPLocation):
        raise TorrelqueError("client must connect by TCP or a unix socket")
    return Place(location.host, location.port)


def _asking(settings: Mapping[str, Any]) -> Callable[[Place, Sequence[tuple[bytes, ...]]], Awaitable[list[Any]]]:
    """Ask those who know where the primary is, with the *settings* of a client."""

    async def ask(place: Place, question: Sequence[tuple[bytes, ...]]) -> list[Any]:
        with _ERRORS.mapped(CoredisUnavailableError):
            line = await open_line(place, settings)
            try:
                return await line.ask(b"".join(map(pack, question)), len(question))
            finally:
                await line.aclose()

    return ask


class CoredisDriver(ScriptRunner):
    """Drives a :class:`coredis.Redis` or a :class:`coredis.RedisCluster`: takes its settings, and its pipelines.

    :param topology: given for a client that was made for this driver, and that nobody enters
    """

    errors = _ERRORS

    def __init__(
        self, client: coredis.Redis[Any] | coredis.RedisCluster[Any], topology: Topology | None = None
    ) -> None:
        self._owned = topology is not None
        self._topology = topology or _topology(client)
        self._watchman = Watchman(self._topology) if isinstance(self._topology, Searched) else None
        self.cluster = self._topology.cluster
        self._pool: Any = client.connection_pool
        self.db = int(self._pool.connection_kwargs.get("db") or 0)
        self._lines = Lines(self._topology, self._pool.connection_kwargs, self._watchman)
        self._patience = min(self._pool.connection_kwargs.get("stream_timeout") or ANSWER_TIMEOUT, ANSWER_TIMEOUT)
        self._requests = Requests()
        self._signal: Callable[[], Signal] = _refuse
        self._clock: Callable[[], float] = _refuse

    def serve(self, key: bytes, assurance: Assurance | None = None) -> None:
        self._topology.key = key
        self._requests = Requests(assurance)
        self._lines.probe = partial(self._requests.probe, refusal=CoredisStorageError)

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        self._check_client()
        self._signal, self._clock = _of_event_loop()
        async with on_watch(self._watchman), self._lines:
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

    def spawn_detached(self, function: Callable[[], Awaitable[None]], forsaken: Callable[[], None]) -> None:
        raise _not_entered()

    async def _command(self, *command: bytes) -> Any:
        (reply,) = await self._ask(pack(command), 1, CoredisUnavailableError)
        if isinstance(reply, Exception):
            raise _ERRORS.translate(reply, CoredisUnavailableError)
        return reply

    async def _ask(
        self, request: bytes, answers: int, lost: type[TorrelqueError], waits: float = 0.0, apart: bool = False
    ) -> list[Reply | Exception]:
        with _ERRORS.mapped(CoredisUnavailableError):
            line = await (self._lines.make() if apart else self._lines.take())
        patience = self._patience + waits
        bounded = fail_after(patience) if self._watchman is None else self._lines.within(patience, line.generation)
        try:
            with _ERRORS.mapped(lost), bounded:
                replies = await line.ask(request, answers)
        except BaseException:
            # An answer may still come, and must never reach somebody else.
            self._topology.forget()
            await self._lines.drop(line)
            raise
        await self._lines.give_back(line)
        return list(map(_ERRORS.read, replies))

    async def _ask_once(
        self, place: Place, request: bytes, answers: int, lost: type[TorrelqueError]
    ) -> list[Reply | Exception]:
        patience = self._patience + self._requests.timeout
        with _ERRORS.mapped(CoredisUnavailableError), fail_after(patience):
            line = await open_line(place, self._pool.connection_kwargs)
        try:
            with _ERRORS.mapped(lost), fail_after(patience):
                replies = await line.ask(request, answers)
        finally:
            await line.aclose()
        return list(map(_ERRORS.read, replies))

    async def config_get(self, name: str) -> str | None:
        try:
            reply = await self._command(b"CONFIG", b"GET", name.encode())
        except TorrelqueStorageError:
            return None
        return reply[1].decode() if reply else None

    async def info(self) -> str | None:
        try:
            reply: bytes = await self._command(b"INFO")
        except TorrelqueStorageError:
            return None
        return reply.decode(errors="replace")

    def stage(self, call: Call[Any], pipeline: Any) -> None:
        if not isinstance(pipeline, Pipeline | ClusterPipeline):
            raise TorrelqueTypeError(f"pipeline must be a pipeline of a coredis client, not {type(pipeline).__name__}")
        if isinstance(pipeline, ClusterPipeline):
            script, count, *rest = arguments(b"EVAL", call)
            keys, values = rest[: len(call.keys)], rest[len(call.keys) :]
            pipeline.create_request(b"EVAL", script, count, *map(Key, keys), *values, callback=_as_is)
        else:
            pipeline.create_request(b"EVAL", *arguments(b"EVAL", call), callback=_as_is)

    def _new_connection(self, place: Place) -> BaseConnection:
        # Not one of the pool's, which does not get back the place of a lent connection that died.
        options = {
            **self._pool.connection_kwargs, "decode_responses": False, "max_idle_time": None, "stream_timeout": None,
        }  # fmt: skip
        if self._topology.moves:
            return TCPConnection(TCPLocation(place.host, place.port), **options)
        connection: BaseConnection = self._pool.connection_class(self._pool.location, **options)
        return connection

    @asynccontextmanager
    async def _own_connection(self) -> AsyncGenerator[BaseConnection]:
        with _ERRORS.mapped(CoredisUnavailableError):
            place, generation = await self._topology.locate(), self._topology.generation
        connection = self._new_connection(place)
        stay = CancelScope()
        try:
            async with create_task_group() as group:
                with _ERRORS.mapped(CoredisUnavailableError), self._lines.within(ANSWER_TIMEOUT, generation):
                    await group.start(connection.run)
                if self._topology.moves:
                    group.start_soon(self._stay, generation, stay)
                try:
                    yield connection
                finally:
                    connection.invalidate()
                    stay.cancel()
        except BaseException:
            self._topology.forget()
            raise

    async def _stay(self, generation: int, scope: CancelScope) -> None:
        """End the use of a connection to a server that has ceased to be the primary."""
        with scope:
            await self._topology.left(generation)
            raise CoredisUnavailableError("The primary is elsewhere now")

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
        async with self._own_connection() as connection:
            with _ERRORS.mapped(CoredisUnavailableError):  # it may have died by now
                messages = connection.push_messages
            async with aclosing(messages):
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
