"""The connections of a coredis driver for what does not block, made with the client's settings."""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from anyio import (
    BrokenResourceError,
    EndOfStream,
    Semaphore,
    connect_tcp,
    connect_unix,
    create_task_group,
    current_time,
    fail_after,
)
from anyio.abc import ByteStream, SocketAttribute
from coredis import exceptions as theirs
from coredis.credentials import UserPassCredentialProvider

from torrelque.errors import TorrelqueClosedError

from ._scripts import pack
from ._topology import Place, Topology, Watchman
from ._wire import ReplyError, Wire
from .base import ANSWER_TIMEOUT, HOT, LANES


class Line(Wire):
    """A connection and when it was used last, by the clock of the event loop.

    :param generation: of the topology, when the connection was made
    :ivar lent: counts among those that there may be
    """

    def __init__(self, stream: ByteStream, place: Place, generation: int = 0) -> None:
        super().__init__(stream)
        self._raw = stream.extra(SocketAttribute.raw_socket)
        self.place = place
        self.generation = generation
        self.used = current_time()
        self.lent = False

    @property
    def usable(self) -> bool:
        """Whether the server has not hung up, as far as can be told without asking it."""
        return current_time() - self.used < HOT or not self._is_readable()

    def _is_readable(self) -> bool:
        # Between two requests a read that would not wait is the end of the connection.
        poll = select.poll()
        try:
            poll.register(self._raw, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True


class Lines:
    """Lends connections to one task at a time, each for one round trip; open between ``async with`` and its end.

    :param settings: the parameters with which the client makes its own connections
    :param watchman: where the primary may move
    """

    def __init__(self, topology: Topology, settings: Mapping[str, Any], watchman: Watchman | None) -> None:
        self._topology = topology
        self._settings = settings
        self._watchman = watchman
        self.probe: Callable[[Line], Awaitable[None]] | None = None
        self._open = False
        self._spares: list[Line] = []
        self._free = Semaphore(LANES, fast_acquire=True)

    async def __aenter__(self) -> None:
        self._open = True

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        spares, self._spares = self._spares, []
        # Each in a task of its own: a native cancellation that hits the closing of one must not leave the others open.
        async with create_task_group() as group:
            for line in spares:
                group.start_soon(line.aclose)

    async def take(self) -> Line:
        """Borrow a connection; :meth:`give_back` or :meth:`drop` it.

        :raises TorrelqueClosedError: the queue was left
        :raises ConnectionError, OSError, TimeoutError, RedisError: there is none, and none can be made
        """
        await self._free.acquire()
        try:
            line = await self._ready()
        except BaseException:
            self._free.release()
            raise
        line.lent = True
        return line

    async def make(self) -> Line:
        """Make a connection beside those that are lent, which may all be waiting for an answer: for one round trip.

        :raises TorrelqueClosedError, ConnectionError, OSError, TimeoutError, RedisError: as for :meth:`take`
        """
        self._check_open()
        return await self._topology.reach(self._new)

    async def give_back(self, line: Line) -> None:
        """Return a connection on which no answer is outstanding."""
        if not self._open or not line.lent:
            await self.drop(line)
            return
        line.used = current_time()
        self._spares.append(line)
        self._free.release()

    async def drop(self, line: Line) -> None:
        """Return a connection that is of no more use."""
        for spare in self._spares:
            spare.used = -math.inf  # what ended this one may have ended others: they are looked at before their use
        if line.lent:
            self._free.release()
        await line.aclose()

    async def _ready(self) -> Line:
        if self._topology.moves and self._open:
            await self._topology.locate()
        while self._spares:
            line = self._spares.pop()
            if line.generation == self._topology.generation and line.usable:
                return line
            await line.aclose()
        self._check_open()
        return await self._topology.reach(self._new)

    def _check_open(self) -> None:
        if not self._open:
            raise TorrelqueClosedError("The queue is closed: call it inside its `async with`")

    async def _new(self, place: Place) -> Line:
        generation = self._topology.generation
        with self.within(self._patience, generation):
            line = await open_line(place, self._settings, generation)
            try:
                if self.probe is not None:
                    await self.probe(line)
            except BaseException:
                await line.aclose()
                raise
            return line

    @property
    def _patience(self) -> float:
        return min(self._settings.get("connect_timeout") or ANSWER_TIMEOUT, ANSWER_TIMEOUT)

    @contextmanager
    def within(self, seconds: float, generation: int) -> Iterator[None]:
        """Bound the body, which waits for a server; it also ends when the primary turns out to be elsewhere.

        :raises TimeoutError: it was ended
        """
        with fail_after(seconds) as scope:
            if self._watchman is None:
                yield
                return
            self._watchman.begin(scope, generation, lambda: setattr(scope, "deadline", -math.inf))
            try:
                yield
            finally:
                self._watchman.end(scope)


async def open_line(place: Place, settings: Mapping[str, Any], generation: int = 0) -> Line:
    """Connect, and introduce the client."""
    line = Line(await _connect(place, settings), place, generation)
    try:
        await _introduce(line, settings)
    except BaseException:
        await line.aclose()
        raise
    return line


async def _connect(place: Place, settings: Mapping[str, Any]) -> ByteStream:
    if place.path:
        return await connect_unix(place.path)
    context = settings.get("ssl_context")
    if context is not None:
        try:
            return await connect_tcp(place.host, place.port, ssl_context=context, tls_standard_compatible=False)
        except (EndOfStream, BrokenResourceError) as error:
            raise ConnectionError("the connection is lost before TLS stands") from error
    stream = await connect_tcp(place.host, place.port)
    if settings.get("socket_keepalive"):
        raw = stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (settings.get("socket_keepalive_options") or {}).items():
            raw.setsockopt(socket.SOL_TCP, option, value)
    return stream


async def _introduce(line: Line, settings: Mapping[str, Any]) -> None:
    # The last one, because TLS sends something after its handshake that has to be read before a silence means
    # anything. What is answered to it does not matter: with a full disk that is an error.
    commands = [*await _introduction(settings), (b"PING",)]
    *replies, _ = await line.ask(b"".join(map(pack, commands)), len(commands))
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise theirs.ResponseError(str(reply))


async def _introduction(settings: Mapping[str, Any]) -> list[tuple[bytes, ...]]:
    commands: list[tuple[bytes, ...]] = []
    provider = settings.get("credential_provider")
    if provider is None and (settings.get("username") or settings.get("password")):
        provider = UserPassCredentialProvider(settings.get("username"), settings.get("password"))
    if provider is not None:
        given = await provider.get_credentials()
        commands.append((b"AUTH", given.username.encode(), (given.password or "").encode()))
    if settings.get("db"):
        commands.append((b"SELECT", b"%d" % settings["db"]))
    if settings.get("client_name"):
        commands.append((b"CLIENT", b"SETNAME", settings["client_name"].encode()))
    return commands
