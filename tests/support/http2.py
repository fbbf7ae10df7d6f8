"""HTTP/2 by hand: frames that nobody would send, and a connection that sends them."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator, Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
ENQUEUE, CONSUME = "/torrelque.v1.TorrelqueService/Enqueue", "/torrelque.v1.TorrelqueService/Consume"


def frame(kind: int, flags: int, stream: int, body: bytes = b"", length: int | None = None) -> bytes:
    """Spell a frame, whose length may be a lie."""
    size = len(body) if length is None else length
    return struct.pack(">IBI", size << 8 | kind, flags, stream) + body


def number(value: int) -> bytes:
    """Spell the length of a string of a header."""
    if value < 127:
        return bytes([value])
    out, value = bytearray([127]), value - 127
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes(out) + bytes([value])


def header(name: bytes, value: bytes) -> bytes:
    """Spell a header: literal, not indexed."""
    return b"\0" + number(len(name)) + name + number(len(value)) + value


def block(path: str = ENQUEUE, more: Sequence[tuple[bytes, bytes]] = (), **changed: bytes) -> bytes:
    """Spell the headers of a call."""
    usual = {":method": b"POST", ":scheme": b"http", ":path": path.encode(), ":authority": b"x", "te": b"trailers"}
    usual |= {"content-type": b"application/grpc", **{name.replace("_", "-"): value for name, value in changed.items()}}
    return b"".join(header(name.encode(), value) for name, value in usual.items()) + b"".join(
        header(name, value) for name, value in more
    )


def message(data: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """Spell a message with its prefix, which may be a lie."""
    return struct.pack(">BI", flag, len(data) if length is None else length) + data


class Wire:
    """A connection that says what it is told to.

    :param secure: speaks TLS, if given
    """

    def __init__(
        self, address: str, *, preface: bytes = PREFACE + frame(SETTINGS, 0, 0), secure: ssl.SSLContext | None = None
    ) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), 10)
        if secure is not None:
            self._socket = secure.wrap_socket(self._socket, server_hostname=host)
        self._rest = b""
        self.send(preface)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> bool:
        """Send; returns whether anybody listens still."""
        try:
            self._socket.sendall(data)
        except OSError:
            return False
        return True

    def call(self, stream: int, headers: bytes, body: bytes) -> None:
        """Send a call; long headers go in several frames."""
        first, *more = [headers[start : start + 16_000] for start in range(0, len(headers), 16_000)]
        frames = [frame(HEADERS, 0 if more else END_HEADERS, stream, first)]
        frames += [frame(CONTINUATION, END_HEADERS if part is more[-1] else 0, stream, part) for part in more]
        self.send(b"".join(frames) + frame(DATA, END_STREAM, stream, body))

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Read frames until the end of the connection."""
        while True:
            while len(self._rest) < 9 or len(self._rest) < 9 + (size := int.from_bytes(self._rest[:3], "big")):
                try:
                    more = self._socket.recv(65536)
                except (ConnectionError, ssl.SSLError):
                    return
                if not more:
                    return
                self._rest += more
            body, kind, flags = self._rest[9 : 9 + size], self._rest[3], self._rest[4]
            stream = int.from_bytes(self._rest[5:9], "big")
            self._rest = self._rest[9 + size :]
            if kind == SETTINGS and not flags & ACK:
                self.send(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self.send(frame(PING, ACK, 0, body))
            yield kind, flags, stream, body

    def end_of(self, stream: int) -> tuple[str, bytes]:
        """Wait until a stream, or the whole connection, has ended; tells how, and what its headers held."""
        said = b""
        for kind, flags, of, body in self.frames():
            if kind == HEADERS and of == stream:
                said += body
                if flags & END_STREAM:
                    return "answered", said
            elif kind == RST and of == stream:
                return "reset", said
            elif kind == GOAWAY:
                return "goaway", body
        return "closed", said
