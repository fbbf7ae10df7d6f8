"""The connections of a coredis driver for what does not block, made with the client's settings."""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from anyio import Semaphore, connect_tcp, connect_unix, create_task_group, current_time, fail_after
from anyio.abc import ByteStream, SocketAttribute
from coredis import exceptions as theirs
from coredis.connection import TCPLocation, UnixDomainSocketLocation
from coredis.credentials import UserPassCredentialProvider

from torrelque.errors import TorrelqueClosedError, TorrelqueError

from ._scripts import pack
from ._wire import ReplyError, Wire
from .base import ANSWER_TIMEOUT, HOT, LANES


class Line(Wire):
    """A connection and when it was used last, by the clock of the event loop."""

    def __init__(self, stream: ByteStream) -> None:
        super().__init__(stream)
        self._raw = stream.extra(SocketAttribute.raw_socket)
        self.used = current_time()

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
    """

    def __init__(self, location: Any, settings: Mapping[str, Any]) -> None:
        if not isinstance(location, TCPLocation | UnixDomainSocketLocation):
            raise TorrelqueError(
                "client must connect to one server, by TCP or a unix socket; a client of Sentinel is not supported yet"
            )
        self._location: TCPLocation | UnixDomainSocketLocation = location
        self._settings = settings
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
            return await self._ready()
        except BaseException:
            self._free.release()
            raise

    async def give_back(self, line: Line) -> None:
        """Return a connection on which no answer is outstanding."""
        if not self._open:
            await self.drop(line)
            return
        line.used = current_time()
        self._spares.append(line)
        self._free.release()

    async def drop(self, line: Line) -> None:
        """Return a connection that is of no more use."""
        for spare in self._spares:
            spare.used = -math.inf  # what ended this one may have ended others: they are looked at before their use
        self._free.release()
        await line.aclose()

    async def _ready(self) -> Line:
        while self._spares:
            line = self._spares.pop()
            if line.usable:
                return line
            await line.aclose()
        if not self._open:
            raise TorrelqueClosedError("The queue is closed: call it inside its `async with`")
        with fail_after(min(self._settings.get("connect_timeout") or ANSWER_TIMEOUT, ANSWER_TIMEOUT)):
            line = Line(await self._connect())
            try:
                await self._introduce(line)
            except BaseException:
                await line.aclose()
                raise
        return line

    async def _connect(self) -> ByteStream:
        if isinstance(self._location, UnixDomainSocketLocation):
            return await connect_unix(self._location.path)
        host, port, context = self._location.host, self._location.port, self._settings.get("ssl_context")
        if context is not None:
            return await connect_tcp(host, port, ssl_context=context, tls_standard_compatible=False)
        stream = await connect_tcp(host, port)
        if self._settings.get("socket_keepalive"):
            raw = stream.extra(SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (self._settings.get("socket_keepalive_options") or {}).items():
                raw.setsockopt(socket.SOL_TCP, option, value)
        return stream

    async def _introduce(self, line: Line) -> None:
        # The last one, because TLS sends something after its handshake that has to be read before a silence means
        # anything. What is answered to it does not matter: with a full disk that is an error.
        commands = [*await self._introduction(), (b"PING",)]
        *replies, _ = await line.ask(b"".join(map(pack, commands)), len(commands))
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise theirs.ResponseError(str(reply))

    async def _introduction(self) -> list[tuple[bytes, ...]]:
        settings = self._settings
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
