"""The published package beside the tests, and a way to lose an answer of the server."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator

import pytest
import redis
from anyio.from_thread import start_blocking_portal
from support import Server, wait_until
from support.peer import Peer, run_peer

from torrelque import open_server

REDIS = shutil.which("redis-server")


@pytest.fixture(scope="session")
def peer(server: Server) -> Iterator[Peer]:
    """The published package 0.9 in a process of its own, on the same server."""
    with run_peer(server.url) as peer:
        yield peer


@pytest.fixture(scope="session")
def cluster(server: Server) -> Iterator[str]:
    """The address of a node that is a cluster of its own, of the server's kind."""
    binary = None if server.kind == "valkey" else REDIS
    with socket.create_server(("127.0.0.1", 0)) as free:
        options = {"cluster-enabled": "yes", "cluster-port": str(free.getsockname()[1])}
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_server(server=binary, fsync="no", options=options)) as url,
    ):
        with redis.Redis.from_url(url) as admin:
            admin.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            wait_until(lambda: admin.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        yield url


class LossyProxy:
    """Passes bytes on to a server. The answer to a request that holds :attr:`marker` is lost, once."""

    def __init__(self, path: str) -> None:
        self.marker: bytes | None = None
        self._path = path
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._path)
                self._sockets += [client, server]
                lost = threading.Event()
                threading.Thread(target=self._requests, args=(client, server, lost), daemon=True).start()
                threading.Thread(target=self._answers, args=(client, server, lost), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while chunk := client.recv(1 << 16):
                if self.marker is not None and self.marker in chunk:
                    self.marker = None
                    lost.set()
                server.sendall(chunk)
        self._hang_up(client, server)

    def _answers(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while (chunk := server.recv(1 << 16)) and not lost.is_set():
                client.sendall(chunk)
        self._hang_up(client, server)

    @staticmethod
    def _hang_up(*sockets: socket.socket) -> None:
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up everyone."""
        self._hang_up(self._listener, *self._sockets)
        for each in (self._listener, *self._sockets):
            each.close()


@pytest.fixture
def lossy(server: Server) -> Iterator[LossyProxy]:
    """Another address of the server, where answers can be lost."""
    proxy = LossyProxy(server.url.removeprefix("unix://"))
    yield proxy
    proxy.close()
