"""A TCP relay whose connections can fall silent: as behind a firewall that has forgotten them, nobody is told."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit


class Freezer:
    """Stands before a server; what is connected when :meth:`freeze` is called hears nothing any more."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        #: Set for the connections of the present; a frozen one keeps its own.
        self._frozen = threading.Event()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def freeze(self, *, new_ones: bool = False) -> None:
        """Let the connections that there are fall silent, both ways; with *new_ones* those to come as well."""
        frozen, self._frozen = self._frozen, threading.Event()
        frozen.set()
        if new_ones:
            self._frozen.set()

    def thaw(self) -> None:
        """Let new connections through again; those that were frozen stay so."""
        self._frozen = threading.Event()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                server = self._connect()
                self._sockets.append(server)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=(*pair, self._frozen), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, frozen: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if frozen.is_set():
                    return  # what has come is lost, and the connection stays
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # this wakes who accepts, and closing it would not
        self._accepting.join()  # what it has accepted last is among the sockets now
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.close()


def _connector(url: str) -> Callable[[], socket.socket]:
    location = urlsplit(url)
    if location.scheme != "unix":
        return lambda: socket.create_connection((location.hostname, location.port))

    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(location.path)
        return connection

    return connect


@contextlib.contextmanager
def freezing(url: str) -> Iterator[Freezer]:
    """Run such a relay before the server of *url*: ``unix:/PATH`` or ``SCHEME://HOST:PORT``."""
    freezer = Freezer(_connector(url))
    try:
        yield freezer
    finally:
        freezer.close()
