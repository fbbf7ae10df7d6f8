"""One server process for most tests, on a Valkey of its own that tests may look into, and clients for it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
import redis
from anyio.from_thread import start_blocking_portal

from support import folder_in_memory
from support.bridge import Client, Process, connect, serving
from torrelque import open_server


@pytest.fixture(scope="session")
def storage() -> Iterator[str]:
    """The URL of a Valkey; the library's own tests try other servers."""
    options = {"enable-debug-command": "yes"}
    with (
        folder_in_memory() as folder,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_server(folder, fsync="no", options=options)) as url,
    ):
        yield url


@pytest.fixture(scope="session")
def admin(storage: str) -> Iterator[redis.Redis]:
    """A plain client, to look at what is stored and to disturb it."""
    with redis.Redis.from_url(storage) as admin:
        yield admin


@pytest.fixture(scope="session")
def bridge(storage: str) -> Iterator[Process]:
    """A server with default settings. Whatever was done to it, its log is clean at the end."""
    with serving("--redis", storage) as process:
        yield process
    for sign in ("Traceback", "never retrieved", "ExecuteBatchError", "was never awaited"):
        assert sign not in process.log(), process.log()


@pytest.fixture
def queue(admin: redis.Redis) -> Iterator[str]:
    """A queue name that nobody else uses; what the test left in it is removed."""
    name = f"t{secrets.token_hex(6)}"
    yield name
    if keys := list(admin.scan_iter(f"{name}:*")):
        admin.delete(*keys)


@pytest.fixture
def client(bridge: Process, queue: str) -> Iterator[Client]:
    """A client on a connection of its own."""
    with connect(bridge.address, queue) as client:
        yield client
