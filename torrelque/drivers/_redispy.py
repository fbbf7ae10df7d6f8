"""redis.asyncio.Redis and redis.asyncio.RedisCluster, on asyncio.

Commands go over connections lent by the client's pool, below ``execute_command``: that would send a write again
after a lost answer, and decode what must stay bytes. What blocks has a connection of its own, and where the primary may
move all connections are our own, made with the client's settings.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from typing import Any, cast

import redis.asyncio as aioredis
from anyio import Event, create_task_group, fail_after, move_on_after
from redis import exceptions as theirs
from redis.asyncio.client import Pipeline
from redis.asyncio.cluster import ClusterPipeline, RedisCluster
from redis.asyncio.connection import Connection
from redis.asyncio.sentinel import SentinelConnectionPool

from torrelque.calls import Assurance, Call, Reply
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

from ._asyncio import AsyncioSignal, Deadline, Deadlines
from ._errors import ErrorMap
from ._redispy_connections import Maker, Streams, drop
from ._scripts import Requests, ScriptRunner, arguments, pack
from ._topology import Cluster, Place, Searched, Sentinel, Topology, Watchman, on_watch
from ._wire import CLOSE_TIMEOUT, Wire
from .base import ANSWER_TIMEOUT, HOT, LANES, LATE, Blocker, Signal, Subscriber

logger = logging.getLogger("torrelque")


class RedisPyUnavailableError(TorrelqueUnavailableError, theirs.ConnectionError):
    pass


class RedisPyUnknownOutcomeError(TorrelqueUnknownOutcomeError, theirs.ConnectionError):
    pass


class RedisPyNotDurableError(TorrelqueNotDurableError, theirs.ResponseError):
    pass


class RedisPyFullError(TorrelqueFullError, theirs.ResponseError):
    pass


class RedisPyStorageError(TorrelqueStorageError, theirs.ResponseError):
    pass


_ERRORS = ErrorMap(
    root=theirs.RedisError,
    reply=theirs.ResponseError,
    ours={
        TorrelqueUnavailableError: RedisPyUnavailableError,
        TorrelqueUnknownOutcomeError: RedisPyUnknownOutcomeError,
        TorrelqueNotDurableError: RedisPyNotDurableError,
        TorrelqueFullError: RedisPyFullError,
        TorrelqueStorageError: RedisPyStorageError,
    },
)

# Before 5.3 a pool wants to be told for which command it lends; from then on telling it is deprecated.
_LEND_ARGS = (
    ()
    if inspect.signature(aioredis.ConnectionPool.get_connection).parameters["command_name"].default is None
    else ("EVALSHA",)
)


def is_redispy(client: Any) -> bool:
    """Tell whether *client* is one that this driver serves."""
    return isinstance(client, aioredis.Redis | RedisCluster) and not isinstance(client, Pipeline | ClusterPipeline)


def _place(settings: Mapping[str, Any]) -> Place:
    return Place(str(settings["host"]), int(settings["port"]))


def _find(client: Any) -> tuple[Topology, Maker | None]:
    """Find out from a client where its primary is, and how to connect to it if that is not for the pool to do."""
    if isinstance(client, RedisCluster):
        nodes = list(client.nodes_manager.startup_nodes.values())
        maker = Maker(nodes[0].connection_class, nodes[0].connection_kwargs)
        return Cluster(_asking(maker), [_place(node.connection_kwargs) for node in nodes]), maker
    pool: Any = client.connection_pool
    if not isinstance(pool, SentinelConnectionPool):
        return Topology(), None
    if not pool.is_master:
        raise TorrelqueError("client must be the one of a primary: Sentinel(...).master_for(name)")
    pools = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
    ask = _asking(Maker.of(pools[0]) if pools else Maker(Connection, {}))
    return Sentinel(ask, [_place(each.connection_kwargs) for each in pools], pool.service_name), Maker.of(pool)


def _asking(maker: Maker) -> Callable[[Place, Sequence[tuple[bytes, ...]]], Awaitable[list[Any]]]:
    """Ask those who know where the primary is."""

    async def ask(place: Place, question: Sequence[tuple[bytes, ...]]) -> list[Any]:
        with _ERRORS.mapped(RedisPyUnavailableError):
            connection = await maker.connect(place)
            try:
                return await Wire(Streams(connection)).ask(b"".join(map(pack, question)), len(question))
            finally:
                await drop(connection)

    return ask


@dataclass(slots=True)
class _Loan:
    """A connection lent by the pool.

    While we have it, it has no timeout of its own: redis-py starts a task for each write to keep to that. We keep to it
    with one timeout for the whole round trip.
    """

    connection: Any
    own_timeout: float | None
    streams: Streams
    wire: Wire
    used: float = 0.0
    """When it was used last, by the clock of the event loop."""
    generation: int = 0
    """Of the topology, when the connection was made."""
    pooled: bool = True
    """Made by the client's pool, which can check it."""
    apart: bool = False
    """For one round trip, beside those that may be lent."""

    @property
    def patience(self) -> float:
        return min(self.own_timeout or ANSWER_TIMEOUT, ANSWER_TIMEOUT)

    def usable(self, now: float) -> bool:
        """Whether it needs no check by the pool before it is used again."""
        hot = now - self.used < HOT or not self.pooled
        return hot and self.connection.is_connected and not self.streams.ended


class RedisPyDriver(ScriptRunner):
    """Drives a :class:`redis.asyncio.Redis` or a :class:`redis.asyncio.RedisCluster`."""

    errors = _ERRORS

    def __init__(self, client: Any) -> None:
        self._topology, self._maker = _find(client)
        self._watchman = Watchman(self._topology) if isinstance(self._topology, Searched) else None
        self.cluster = self._topology.cluster
        #: Not used where connections are made by ourselves.
        self._pool = cast(Any, getattr(client, "connection_pool", None))
        settings: Mapping[str, Any] = self._pool.connection_kwargs if self._maker is None else self._maker.settings
        self._settings = settings
        self.db = int(self._settings.get("db") or 0)
        self._tasks: set[asyncio.Task[None]] = set()
        #: Of an entered queue, whose calls need not look for it.
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Connections that wait for the next call, and how many may: none in a queue that was not entered.
        self._spares: list[_Loan] = []
        self._keeps = 0
        self._deadlines = Deadlines()
        self._requests = Requests()
        self._lent = 0
        self._returned: Event | None = None

    def serve(self, key: bytes, assurance: Assurance | None = None) -> None:
        self._topology.key = key
        self._requests = Requests(assurance)

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        self._loop = self._check_loop()
        # A connection of the pool is left to the user's own commands between ours.
        self._keeps = LANES if self._maker else min(LANES, self._pool.max_connections - 1)
        try:
            async with on_watch(self._watchman):
                yield
        finally:
            self._loop = None
            self._keeps = 0
            spares, self._spares = self._spares, []
            # Each in a task of its own: a native cancellation that hits the return of one must not keep the others.
            async with create_task_group() as group:
                for spare in spares:
                    group.start_soon(self._release, spare)

    def _check_loop(self) -> asyncio.AbstractEventLoop:
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            raise TorrelqueError(
                "redis.asyncio.Redis works on asyncio only: on Trio, pass a coredis.Redis or use Torrelque.from_url"
            ) from None

    def signal(self) -> Signal:
        return AsyncioSignal(loop=self._loop or self._check_loop())

    def now(self) -> float:
        return (self._loop or self._check_loop()).time()

    def spawn_detached(self, function: Callable[[], Awaitable[None]], forsaken: Callable[[], None]) -> None:
        loop, begun = self._check_loop(), False

        async def run() -> None:
            nonlocal begun
            begun = True
            await function()

        def end(task: asyncio.Task[None]) -> None:
            self._forget(task)
            if not begun:
                forsaken()

        # Not by the loop's `create_task`: its factory may begin a task at once, as `asyncio.eager_task_factory` does.
        task = asyncio.Task(run(), loop=loop)
        self._tasks.add(task)
        task.add_done_callback(end)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("Background work of a queue that was not entered has failed", exc_info=error)

    async def _ask(
        self, request: bytes, answers: int, lost: type[TorrelqueError], waits: float = 0.0, apart: bool = False
    ) -> list[Reply | Exception]:
        loan = await (self._make(apart=True) if apart else self._lend())
        try:
            with _ERRORS.mapped(lost), self._within(loan, waits):
                replies = await loan.wire.ask(request, answers)
        except BaseException:
            # An answer may still come, and must never reach somebody else.
            self._topology.forget()
            await drop(loan.connection)
            raise
        finally:
            await self._give_back(loan)
        return list(map(_ERRORS.read, replies))

    async def _ask_once(
        self, place: Place, request: bytes, answers: int, lost: type[TorrelqueError]
    ) -> list[Reply | Exception]:
        assert self._maker is not None
        with _ERRORS.mapped(RedisPyUnavailableError), self._deadlines.within(ANSWER_TIMEOUT):
            connection = await self._maker.connect(place)
        try:
            with _ERRORS.mapped(lost), self._deadlines.within(ANSWER_TIMEOUT):
                replies = await Wire(Streams(connection)).ask(request, answers)
        finally:
            await drop(connection)
        return list(map(_ERRORS.read, replies))

    def _within(self, loan: _Loan, waits: float = 0.0) -> AbstractContextManager[None]:
        """Bound the wait for an answer; it also ends when the primary turns out to be elsewhere."""
        deadline = self._deadlines.within(loan.patience + waits)
        return deadline if self._watchman is None else _watched(self._watchman, deadline, loan.generation)

    async def _lend(self) -> _Loan:
        while True:
            try:
                loan = await self._take()
            except RedisPyUnavailableError as error:
                # The pool is small: calls of ours take turns. (Only later versions have a class for this error.)
                if not self._lent or "Too many connections" not in str(error):
                    raise
                self._returned = self._returned or Event()
                await self._returned.wait()
            else:
                self._lent += 1
                return loan

    async def _take(self) -> _Loan:
        if self._topology.moves:
            with _ERRORS.mapped(RedisPyUnavailableError):
                await self._topology.locate()
        while self._spares:
            spare = self._spares.pop()
            if spare.generation == self._topology.generation and spare.usable(self.now()):
                return spare
            await self._release(spare)
        if self._maker is not None:
            return await self._make()
        with _ERRORS.mapped(RedisPyUnavailableError), self._deadlines.within(ANSWER_TIMEOUT):
            connection = await self._pool.get_connection(*_LEND_ARGS)
        streams = Streams(connection)
        loan = _Loan(connection, connection.socket_timeout, streams, Wire(streams))
        connection.socket_timeout = None
        return await self._probed(loan)

    async def _make(self, *, apart: bool = False) -> _Loan:
        """Make a connection of our own."""
        with _ERRORS.mapped(RedisPyUnavailableError), self._deadlines.within(ANSWER_TIMEOUT):
            if self._maker is None:
                connection = await Maker(self._pool.connection_class, self._pool.connection_kwargs).connect()
                generation = 0
            else:
                connection, generation = await self._topology.reach(self._connect)
        streams, own_timeout = Streams(connection), self._settings.get("socket_timeout")
        loan = _Loan(connection, own_timeout, streams, Wire(streams), generation=generation, pooled=False, apart=apart)
        return await self._probed(loan)

    async def _probed(self, loan: _Loan) -> _Loan:
        try:
            with _ERRORS.mapped(RedisPyUnavailableError), self._within(loan):
                await self._requests.probe(loan.wire, RedisPyStorageError)
        except BaseException:
            await drop(loan.connection)
            await self._release(loan)
            raise
        return loan

    async def _connect(self, place: Place) -> tuple[Any, int]:
        """Make a connection of our own; returns it and the generation in which it was begun: it may be stale by now."""
        assert self._maker is not None
        assert self._watchman is not None
        generation = self._topology.generation
        with _watched(self._watchman, self._deadlines.within(ANSWER_TIMEOUT), generation):
            return await self._maker.connect(place), generation

    async def _give_back(self, loan: _Loan) -> None:
        if loan.apart:
            await self._release(loan)
            return
        try:
            if len(self._spares) < self._keeps:
                loan.used = self.now()
                self._spares.append(loan)
            else:
                await self._release(loan)
        finally:
            self._lent -= 1
            if self._returned is not None:
                self._returned.set()
                self._returned = None

    async def _release(self, loan: _Loan) -> None:
        if not loan.pooled:
            await drop(loan.connection)
            return
        loan.connection.socket_timeout = loan.own_timeout
        with move_on_after(CLOSE_TIMEOUT, shield=True):
            await self._pool.release(loan.connection)

    async def _command(self, *command: Any) -> Any:
        loan = await self._lend()
        connection = loan.connection
        try:
            with _ERRORS.mapped(RedisPyUnavailableError), self._within(loan):
                await connection.send_packed_command(connection.pack_command(*command))
                return await connection.read_response(disable_decoding=True)
        except BaseException as error:
            if not isinstance(error, TorrelqueStorageError):
                await drop(connection)
            raise
        finally:
            await self._give_back(loan)

    async def config_get(self, name: str) -> str | None:
        self._check_loop()
        try:
            reply = await self._command("CONFIG", "GET", name)
        except TorrelqueStorageError:
            return None
        if isinstance(reply, dict):
            reply = [part for pair in reply.items() for part in pair]
        return reply[1].decode() if reply else None

    async def info(self) -> str | None:
        self._check_loop()
        try:
            reply: bytes = await self._command("INFO")
        except TorrelqueStorageError:
            return None
        return reply.decode(errors="replace")

    def stage(self, call: Call[Any], pipeline: Any) -> None:
        if isinstance(pipeline, ClusterPipeline):
            pipeline.execute_command("EVAL", *arguments(b"EVAL", call))
            return
        if not isinstance(pipeline, Pipeline):
            raise TorrelqueTypeError(
                f"pipeline must be a pipeline of a redis.asyncio client, not {type(pipeline).__name__}"
            )
        if pipeline.watching and not pipeline.explicit_transaction:
            raise TorrelqueValueError("pipeline is watching keys: call its multi() before queueing calls on it")
        pipeline.execute_command(b"EVAL", *arguments(b"EVAL", call))

    @asynccontextmanager
    async def _own_connection(self) -> AsyncGenerator[Any]:
        if self._maker is not None:
            async with self._followed_connection() as connection:
                yield connection
            return
        with _ERRORS.mapped(RedisPyUnavailableError), fail_after(ANSWER_TIMEOUT):
            connection = await Maker(self._pool.connection_class, self._pool.connection_kwargs).connect()
        try:
            yield connection
        finally:
            await drop(connection)

    @asynccontextmanager
    async def _followed_connection(self) -> AsyncGenerator[Any]:
        """Connect to the primary for as long as it is the primary."""
        try:
            with _ERRORS.mapped(RedisPyUnavailableError):
                connection, generation = await self._topology.reach(self._connect)
            try:
                async with create_task_group() as group:
                    group.start_soon(self._stay, generation)
                    yield connection
                    group.cancel_scope.cancel()
            finally:
                await drop(connection)
        except BaseException:
            self._topology.forget()
            raise

    async def _stay(self, generation: int) -> None:
        await self._topology.left(generation)
        raise RedisPyUnavailableError("The primary is elsewhere now")

    def blocking(self) -> AbstractAsyncContextManager[Blocker]:
        return self._blocking()

    @asynccontextmanager
    async def _blocking(self) -> AsyncGenerator[Blocker]:
        async with self._own_connection() as connection:
            blocker = RedisPyBlocker(connection, self._command)
            await blocker.identify()
            yield blocker

    def subscribing(self) -> AbstractAsyncContextManager[Subscriber]:
        return self._subscribing()

    @asynccontextmanager
    async def _subscribing(self) -> AsyncGenerator[Subscriber]:
        async with self._own_connection() as connection:
            yield RedisPySubscriber(connection)


class RedisPyBlocker:
    """Waits in Redis on a connection of its own."""

    def __init__(self, connection: Any, command: Callable[..., Awaitable[Any]]) -> None:
        self._connection = connection
        self._command = command
        self._client_id = 0

    async def identify(self) -> None:
        """Learn by which number another connection can unblock this one."""
        with _ERRORS.mapped(RedisPyUnavailableError), fail_after(ANSWER_TIMEOUT):
            await self._connection.send_command("CLIENT", "ID")
            self._client_id = int(await self._connection.read_response(disable_decoding=True))

    async def move(self, source: bytes, destination: bytes, timeout: float) -> bytes | None:
        with _ERRORS.mapped(RedisPyUnavailableError):
            await self._connection.send_command("BLMOVE", source, destination, "RIGHT", "LEFT", timeout)
            with fail_after(timeout + LATE):
                reply: bytes | None = await self._connection.read_response(disable_decoding=True, timeout=None)
            return reply

    async def unblock(self) -> None:
        await self._command("CLIENT", "UNBLOCK", self._client_id)


class RedisPySubscriber:
    """Receives messages on a connection of its own."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._pong = Event()

    async def subscribe(self, *channels: bytes) -> None:
        with _ERRORS.mapped(RedisPyUnavailableError):
            await self._connection.send_command("SUBSCRIBE", *channels)

    async def unsubscribe(self, *channels: bytes) -> None:
        with _ERRORS.mapped(RedisPyUnavailableError):
            await self._connection.send_command("UNSUBSCRIBE", *channels)

    async def ping(self) -> None:
        self._pong = Event()
        with _ERRORS.mapped(RedisPyUnavailableError), fail_after(LATE):
            await self._connection.send_command("PING")
            await self._pong.wait()

    async def receive(self) -> tuple[bytes, bytes, bytes | None]:
        with _ERRORS.mapped(RedisPyUnavailableError):
            kind, channel, *rest = await self._connection.read_response(disable_decoding=True, timeout=None)
        if kind == b"pong":
            self._pong.set()
        return kind, channel, rest[0] if kind == b"message" else None


@contextmanager
def _watched(watchman: Watchman, deadline: Deadline, generation: int) -> Iterator[None]:
    with deadline:
        watchman.begin(deadline, generation, deadline.pass_by)
        try:
            yield
        finally:
            watchman.end(deadline)
