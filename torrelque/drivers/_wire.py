"""Requests and answers over a byte stream, one round trip at a time: RESP2, as far as scripts need it.

coredis serves any number of tasks over a connection, with one task that reads for it and one that writes. A queue has
joined its calls already, and a round trip that its own task makes by itself takes a third of the time.
"""

from __future__ import annotations

import select
from typing import Any

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, current_time, move_on_after
from anyio.abc import ByteStream, SocketAttribute

from torrelque.calls import Reply

#: Closing a connection must not hang on a peer that is gone.
CLOSE_TIMEOUT = 1.0
#: A connection used this recently, in seconds, needs no check before it is used again.
HOT = 1.0
_CHUNK = 1 << 17


class ReplyError(Exception):
    """The server's answer is an error; this is its text."""


class Wire:
    """A connection that one task at a time may use. After an error it must be closed: an answer may still come."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        #: Where in the buffer the next answer begins.
        self._at = 0
        self._used = current_time()

    @property
    def usable(self) -> bool:
        """Whether the server has not hung up, as far as can be told without asking it."""
        return current_time() - self._used < HOT or not _is_readable(self._stream)

    async def ask(self, request: bytes, answers: int = 1) -> list[Reply | ReplyError]:
        """Send packed commands, and read their answers.

        :raises ConnectionError: the connection is lost, or what comes over it is no answer
        """
        try:
            await self._stream.send(request)
            replies = [await self._read() for _ in range(answers)]
        except EndOfStream:
            raise ConnectionError("the server has closed the connection") from None
        except (BrokenResourceError, ClosedResourceError) as error:
            raise ConnectionError("the connection is lost") from error
        self._used = current_time()
        return replies

    async def aclose(self) -> None:
        """Hang up."""
        with move_on_after(CLOSE_TIMEOUT, shield=True):
            await self._stream.aclose()

    async def _read(self) -> Any:
        line = await self._line()
        kind, rest = line[:1], line[1:]
        try:
            if kind == b"$":
                return await self._bulk(int(rest))
            if kind == b"*":
                return None if rest == b"-1" else [await self._read() for _ in range(int(rest))]
            if kind == b":":
                return int(rest)
        except ValueError:
            raise _garbled(line) from None
        if kind == b"-":
            return ReplyError(rest.decode(errors="replace"))
        if kind == b"+":
            return rest
        raise _garbled(line)

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n", self._at)) < 0:
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
        self._at = end + 2
        return bulk

    async def _receive(self) -> None:
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += await self._stream.receive(_CHUNK)


def _garbled(line: bytes) -> ConnectionError:
    return ConnectionError(f"the server does not speak RESP: {line[:40]!r}")


def _is_readable(stream: ByteStream) -> bool:
    """Tell whether a read would not wait: between two requests that is the end of the connection."""
    poll = select.poll()
    try:
        poll.register(stream.extra(SocketAttribute.raw_socket), select.POLLIN)
        return bool(poll.poll(0))
    except (OSError, ValueError):
        return True
