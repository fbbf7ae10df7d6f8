"""The servers, the legal pairs of client and event loop, and a fresh queue for each test."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import redis
import support
from support import PAIRS, SERVERS, Pair, Server, folder_in_memory, running_server

from torrelque import Torrelque


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together, where tests are spread over processes, those that share something that their module has opened."""
    for item in items:
        if isinstance(item, pytest.Function) and (shared := _shared(item)):
            item.add_marker(pytest.mark.xdist_group("".join([item.path.stem, *shared])))


def _shared(item: pytest.Function) -> list[str]:
    """Name the fixtures of module scope that a test uses, with their parameters."""
    found = item._fixtureinfo.name2fixturedefs
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return [f"-{name}-{params.get(name)}" for name, made in sorted(found.items()) if made[-1].scope == "module"]


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Undo what a command that ran in this process did to logging: its stream is closed by then."""
    root, ours = logging.getLogger(), logging.getLogger("torrelque")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture(scope="session", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A real server for the whole run, one kind after the other."""
    options = {"enable-debug-command": "yes"}
    with (
        folder_in_memory() as folder,
        running_server(request.param, data_dir=folder, fsync="no", options=options) as server,
    ):
        yield server


@pytest.fixture
def admin(server: Server) -> redis.Redis:
    """A plain client beside the tested one, to look at what is stored and to disturb it."""
    return server.admin


@pytest.fixture(params=PAIRS, ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    """A client library on an event loop that it works on."""
    return request.param


@pytest.fixture
def anyio_backend(pair: Pair) -> Any:
    """AnyIO's plugin runs each test on the loop of its pair."""
    return pair.backend


@pytest.fixture
def name(server: Server) -> Iterator[str]:
    """A queue name that nobody else uses; what the test left in it is removed."""
    name = f"t{secrets.token_hex(6)}"
    yield name
    if keys := list(server.admin.scan_iter(f"{name}:*")):
        server.admin.delete(*keys)


@pytest.fixture
def open_client(server: Server, pair: Pair) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """Open a client of the tested library."""

    def open_client(url: str = server.url, **options: Any) -> AbstractAsyncContextManager[Any]:
        return support.open_client(pair, url, **options)

    return open_client


@pytest.fixture
def open_queue(open_client: Any, pair: Pair, name: str) -> Callable[..., AbstractAsyncContextManager[Torrelque]]:
    """Open a queue of the test's name with a client of its own."""

    @asynccontextmanager
    async def open_queue(queue: str = name, **options: Any) -> AsyncGenerator[Torrelque]:
        client_options = options.pop("client_options", {})
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(open_client(**client_options))
            made = Torrelque(client, queue=queue, **options)
            yield await stack.enter_async_context(made) if pair.entered else made

    return open_queue
