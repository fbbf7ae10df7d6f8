"""Requests and answers over a stream of bytes, one round trip at a time: RESP 2 and 3, as far as scripts need them.

Clients are made to serve any number of tasks, any command and any event on a connection. A queue has joined its calls
already, and a round trip that its own task makes by itself takes a third of the time that coredis takes.
"""

from __future__ import annotations

from typing import Any, Protocol

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, move_on_after

from torrelque.calls import Reply

#: Closing a connection must not hang on a peer that is gone.
CLOSE_TIMEOUT = 1.0
_CHUNK = 1 << 17
#: What is longer, or nested deeper, is no answer: nothing waits for its end or takes memory for it. Redis' own bound on
#: a string, and far more than any script answers.
MAX_STRING = 1 << 29
MAX_LINE = 1 << 16
MAX_ITEMS = 1 << 20
MAX_DEPTH = 8


class ReplyError(Exception):
    """The server's answer is an error; this is its text."""


class Stream(Protocol):
    """What a wire needs of a connection; its errors are those of AnyIO's streams, or an :exc:`OSError`."""

    async def send(self, item: bytes, /) -> None: ...

    async def receive(self, max_bytes: int, /) -> bytes: ...

    async def aclose(self) -> None: ...


class Wire:
    """A connection that one task at a time may use. After an error it must be closed: an answer may still come."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        #: Where in the buffer the next answer begins.
        self._at = 0

    async def ask(self, request: bytes, answers: int = 1) -> list[Reply | ReplyError]:
        """Send packed commands, and read their answers.

        :raises ConnectionError: the connection is lost, or what comes over it is no answer
        """
        try:
            await self._stream.send(request)
            replies = [await self._read() for _ in range(answers)]
            self._check_end()
        except EndOfStream:
            raise ConnectionError("the server has closed the connection") from None
        except (BrokenResourceError, ClosedResourceError) as error:
            raise ConnectionError("the connection is lost") from error
        return replies

    async def aclose(self) -> None:
        """Hang up."""
        with move_on_after(CLOSE_TIMEOUT, shield=True):
            await self._stream.aclose()

    def _check_end(self) -> None:
        """What else has come was not asked for: the next caller must not take it for an answer."""
        if len(self._buffer) > self._at and not self._buffer.startswith(b">", self._at):
            raise _garbled(self._buffer[self._at :])

    async def _read(self, depth: int = 0) -> Any:
        line = await self._line()
        try:
            while line[:1] == b">":  # an event that nobody here has asked for
                for _ in range(_length(line[1:], MAX_ITEMS if depth < MAX_DEPTH else -1)):
                    await self._read(depth + 1)
                line = await self._line()
            kind, rest = line[:1], line[1:]
            if kind == b"$":
                return await self._bulk(_length(rest, MAX_STRING))
            if kind == b"*":
                count = _length(rest, MAX_ITEMS if depth < MAX_DEPTH else -1)
                return None if count < 0 else [await self._read(depth + 1) for _ in range(count)]
            if kind == b":":
                return int(rest)
        except ValueError:
            raise _garbled(line) from None
        if kind == b"-":
            return ReplyError(rest.decode(errors="replace"))
        if kind == b"+":
            return rest
        if line == b"_":
            return None
        raise _garbled(line)

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n", self._at)) < 0:
            if len(self._buffer) - self._at > MAX_LINE:
                raise _garbled(self._buffer[self._at :])
            await self._receive()
        line = bytes(self._buffer[self._at : end])
        self._at = end + 2
        return line

    async def _bulk(self, length: int) -> bytes | None:
        if length < 0:
            return None
        while len(self._buffer) < self._at + length + 2:
            await self._receive()
        end = self._at + length
        bulk = bytes(self._buffer[self._at : end])
        if not self._buffer.startswith(b"\r\n", end):
            raise ValueError
        self._at = end + 2
        return bulk

    async def _receive(self) -> None:
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += await self._stream.receive(_CHUNK)


def _length(text: bytes, most: int) -> int:
    """Read a length; -1 is that of nothing."""
    length = int(text)
    if not -1 <= length <= most:
        raise ValueError
    return length


def _garbled(line: bytes | bytearray) -> ConnectionError:
    return ConnectionError(f"the server does not speak RESP: {bytes(line[:40])!r}")
