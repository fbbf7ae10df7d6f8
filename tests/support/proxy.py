"""A TCP proxy that takes answers away: the request arrives and is done, and the client never hears of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

_FRAME_HEADER = 9
_HEADERS = 0x1


class DroppingProxy:
    """Stands before a server; of its first connections each is cut when the answer to a call begins."""

    def __init__(self, address: str, drops: int) -> None:
        host, _, port = address.rpartition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._drops_left = drops
        self._lock = threading.Lock()
        #: How many answers were taken away.
        self.dropped = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with self._lock:
                    drop = self._drops_left > 0
                    self._drops_left -= drop
                server = socket.create_connection(self._server)
                threading.Thread(target=self._copy, args=(client, server), daemon=True).start()
                target = self._copy_until_answered if drop else self._copy
                threading.Thread(target=target, args=(server, client), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        _hang_up(source, target)

    def _copy_until_answered(self, source: socket.socket, target: socket.socket) -> None:
        """Copy whole frames, up to the first that begins an answer."""
        buffer = b""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                buffer += data
                while len(buffer) >= _FRAME_HEADER:
                    length = _FRAME_HEADER + int.from_bytes(buffer[:3])
                    if buffer[3] == _HEADERS:
                        self.dropped += 1
                        _hang_up(source, target)
                        return
                    if len(buffer) < length:
                        break
                    target.sendall(buffer[:length])
                    buffer = buffer[length:]
        _hang_up(source, target)


def _hang_up(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@contextlib.contextmanager
def dropping(address: str, drops: int) -> Iterator[DroppingProxy]:
    """Run such a proxy."""
    proxy = DroppingProxy(address, drops)
    try:
        yield proxy
    finally:
        proxy.close()
